"""Objectives: functions of (model, batch, key) that return sums of losses and of weights.

Sums over targets add up exactly over micro-batches, packed rows and processes; the train step divides once, by the
weight of the global batch.
"""
