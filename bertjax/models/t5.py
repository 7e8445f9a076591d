"""T5 (arXiv 1910.10683)."""

import jax
from flax import nnx

from bertjax.config.model_schema import T5Config
from bertjax.models.execution import Execution


class T5(nnx.Module):
    def __init__(
        self, config: T5Config, heads: tuple[str, ...], execution: Execution, rngs: nnx.Rngs, adapter_size: int = 0
    ):
        raise NotImplementedError

    def encode(self, input_ids: jax.Array, segment_ids: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        raise NotImplementedError
