"""Objectives: functions of (model, batch, key) that return sums and weights, never means.

Sums over real targets add up exactly over micro-batches, packed rows and processes; the train step divides once by the
weight of the global batch. One module per family of objectives.
"""
