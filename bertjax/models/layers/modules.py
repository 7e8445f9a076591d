"""Modules with parameters that all families use: dense layers and norms."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.fp8 import einsum_fp8
from bertjax.models.layers.lora import FusedLora, Lora
from bertjax.models.layers.numerics import REMAT_NAME, add_bias, einsum_lowp, layer_norm, rms_norm
from bertjax.models.sequence_parallel import reduce_scatter_sequence
from bertjax.parallel.sharding import all_gather_fsdp, unshard

Initializer = Callable[..., jax.Array]
Update: TypeAlias = Lora | FusedLora


def out_sharding(*names: str | None) -> dict[str, tuple[str | None, ...]]:
    return {"out_sharding": names}


def choose_einsum(compute: ComputeOptions, layer: bool) -> Callable[[str, jax.Array, jax.Array, str], jax.Array]:
    """The product of a dense layer: in eight bits inside the layers of a model if `compute` says so."""
    return einsum_fp8 if layer and compute.dense_dtype == "fp8" else einsum_lowp


class Embed(nnx.Module):
    """A table [rows, width], float32; the models look rows up and multiply with it themselves."""

    def __init__(
        self, rows: int, width: int, init: Initializer, rngs: nnx.Rngs,
        names: tuple[str | None, ...] = ("vocab", "embed"),
    ):  # fmt: skip
        self.embedding = nnx.Param(init(rngs.params(), (rows, width), jnp.float32), **out_sharding(*names))


class Dense(nnx.Module):
    """y [B, S, *out] = x [B, S, D] @ kernel [D, *out] + bias [*out], in the compute dtype.

    `lora` is a low-rank update of the kernel; it reads `key` for its dropout. `layer`: the product may be in eight
    bits, as `compute.dense_dtype` says; heads, adapters and projections of embeddings stay in the compute dtype.
    """

    def __init__(
        self, shape: tuple[int, ...], names: tuple[str | None, ...], init: Initializer, compute: ComputeOptions,
        rngs: nnx.Rngs, lora: Update | None = None, *, layer: bool = False,
    ):  # fmt: skip
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32), **out_sharding(*names))
        self.bias = nnx.Param(jnp.zeros(shape[1:], jnp.float32), **out_sharding(*names[1:]))
        if lora is not None:
            self.lora = lora
        self.names, self.compute = names, compute
        self.einsum = choose_einsum(compute, layer)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        compute = self.compute
        kernel = all_gather_fsdp(self.kernel[...].astype(compute.dtype), *self.names)
        out = "tf" if kernel.ndim == 3 else "f"
        lead = "bs"[: x.ndim - 1]
        y = self.einsum(f"{lead}d,d{out}->{lead}{out}", x, kernel, compute.platform)
        if hasattr(self, "lora"):
            y = y + self.lora(x, key)
        y = checkpoint_name(reduce_scatter_sequence(y, self.names), REMAT_NAME)
        return add_bias(y, unshard(self.bias[...], *self.names[1:])).astype(compute.dtype)


class LayerNorm(nnx.Module):
    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32), **out_sharding(None))
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32), **out_sharding(None))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class Linear(nnx.Module):
    """y [B, S, F] = x [B, S, D] @ kernel [D, F] without a bias, in the compute dtype; see `Dense`."""

    def __init__(
        self, shape: tuple[int, int], names: tuple[str | None, str | None], std: float, compute: ComputeOptions,
        rngs: nnx.Rngs, lora: Update | None = None, *, layer: bool = False,
    ):  # fmt: skip
        self.kernel = nnx.Param(nnx.initializers.normal(std)(rngs.params(), shape, jnp.float32), **out_sharding(*names))
        if lora is not None:
            self.lora = lora
        self.names, self.compute = names, compute
        self.einsum = choose_einsum(compute, layer)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        compute = self.compute
        kernel = all_gather_fsdp(self.kernel[...].astype(compute.dtype), *self.names)
        y = self.einsum("bsd,df->bsf", x, kernel, compute.platform)
        if hasattr(self, "lora"):
            y = y + self.lora(x, key)
        y = reduce_scatter_sequence(y, self.names)
        return checkpoint_name(y, REMAT_NAME).astype(compute.dtype)


class RmsNorm(nnx.Module):
    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32), **out_sharding(None))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps)
