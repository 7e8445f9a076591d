"""Floor 4: training. Optimizers, freezing, state, the step, the loop, tracking and checkpoints.

The only layer that imports optax; only `checkpoint/orbax_io.py` imports Orbax. Evaluators reach the loop as callables.
"""
