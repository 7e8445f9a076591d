"""How a model runs, as opposed to what it computes: the choices here change speed and memory, never the mathematics."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class ComputeOptions:
    """Static choices of one compiled program.

    Attributes:
        platform: cpu, gpu or tpu: which dot and attention forms are fast.
        dtype: of activations and of the weights in matmuls; parameters stay float32.
        attention: auto, xla, cudnn or splash.
        dropout_rng: hash (a fused counter hash) or threefry (jax.random).
        segments: layers per segment; a segment of one is called directly, a longer one is scanned. () means one each.
        remat: none, full, or dots (keep matmul outputs, recompute the rest).
    """

    platform: str = "cpu"
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"
    dropout_rng: str = "hash"
    segments: tuple[int, ...] = ()
    remat: str = "none"
