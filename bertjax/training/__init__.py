"""Floor 4: training. Optimizers, freezing, state, the step, the loop, tracking and checkpoints.

The only floor that knows optax; `checkpoint.py` alone knows Orbax. Evaluators reach the loop as callables.
"""
