"""Model families as nnx modules that hold only parameters and name logical axes; random keys are arguments."""

from flax import nnx

nnx.set_graph_mode(False)  # modules are plain pytrees; a parameter shared by two modules is an error, not a silent copy
nnx.use_eager_sharding(False)  # modules only name axes; training/state.py places them
