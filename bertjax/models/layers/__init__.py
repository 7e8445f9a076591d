"""Building blocks of the models: modules, their numerics with low-precision gradients, dropout."""
