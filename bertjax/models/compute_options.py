"""Compute options: choices that change speed and memory of a model, not its function."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class ComputeOptions:
    """Static options of one compiled program."""

    platform: str = "cpu"  # cpu, gpu or tpu; decides dot and attention implementations
    dtype: DTypeLike = jnp.float32  # of activations and of the weights in matmuls; parameters stay float32
    dense_dtype: str = "compute"  # of the operands in the products of layers: compute (that above) or fp8
    attention: str = "auto"  # auto, xla, cudnn, splash or fused
    dropout_rng: str = "hash"  # hash (a fused counter hash) or threefry (jax.random)
    segments: tuple[int, ...] = ()  # layers per segment; longer ones are scanned. (): one layer each
    remat: str = "none"  # none, full, or dots (keep matmul outputs, recompute the rest)
