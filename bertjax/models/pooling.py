"""One vector for a text from the hidden states of its tokens, as sentence-transformers' Pooling and Normalize."""

from typing import Literal

import jax
import jax.numpy as jnp

Pooling = Literal["mean", "cls"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls")


def pool(hidden: jax.Array, segment_ids: jax.Array, pooling: Pooling, normalize: bool) -> jax.Array:
    """hidden [B, S, D], segment_ids int [B, S], 0 on padding -> float32 [B, D].

    `mean` over the tokens, the special ones included; `cls`: the first token. normalize: to length 1.
    """
    hidden = hidden.astype(jnp.float32)
    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        mask = (segment_ids > 0).astype(jnp.float32)[:, :, None]
        pooled = (hidden * mask).sum(1) / jnp.maximum(mask.sum(1), 1e-9)
    return unit_length(pooled) if normalize else pooled


def unit_length(x: jax.Array) -> jax.Array:
    """x [..., D] / max(|x|, 1e-12), as torch.nn.functional.normalize; its gradient at 0 is 0."""
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
