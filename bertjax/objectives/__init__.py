"""Objectives: sums of losses and weights, which add up over micro-batches, packed rows and processes.

The train step divides once, by the weight of the global batch.
"""
