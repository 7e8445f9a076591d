"""Model families as nnx modules that hold only parameters and name logical axes; random keys are arguments."""

import flax

# For all threads, unlike nnx.set_graph_mode and nnx.use_eager_sharding, which set the thread that imports this.
flax.config.update("nnx_graph_mode", False)  # modules are plain pytrees; a parameter shared by two is an error, no copy
flax.config.update("flax_always_shard_variable", False)  # modules only name axes; training/state.py places them
