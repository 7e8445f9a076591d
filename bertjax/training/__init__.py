"""Training: optimizers, freezing, the train step (`step`), the `loop`, checkpoints and monitoring.

The only layer that imports optax; only `checkpoint/orbax_io.py` imports Orbax. Evaluators reach the loop as callables.
"""
