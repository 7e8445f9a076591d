"""Compute options: choices that change speed and memory of a model, not its function."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class ComputeOptions:
    """Static options of one compiled program.

    Attributes:
        platform: cpu, gpu or tpu; decides dot and attention implementations.
        dtype: of activations and of the weights in matmuls; parameters stay float32.
        attention: auto, xla, cudnn or splash.
        dropout_rng: hash (a fused counter hash) or threefry (jax.random).
        segments: layers per segment; longer ones are scanned. (): one layer each.
        remat: none, full, or dots (keep matmul outputs, recompute the rest).
    """

    platform: str = "cpu"
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"
    dropout_rng: str = "hash"
    segments: tuple[int, ...] = ()
    remat: str = "none"
