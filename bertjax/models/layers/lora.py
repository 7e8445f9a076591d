"""Low-rank updates of weights, LoRA (arXiv 2106.09685): y = x W + scale * x A B with W frozen.

The update is computed beside the product with W, which is not changed. As in microsoft/LoRA and the peft library A is
uniform in +-1/sqrt(D) at first and B zero (the paper's text has a normal A).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.numerics import REMAT_NAME, einsum_lowp
from bertjax.models.peft_options import PeftOptions
from bertjax.parallel.sharding import all_gather_fsdp

FUSED = ("query", "key", "value")  # the order of the weights in a fused kernel [D, 3, F]
_FIRST_KEY = 2**30  # far above what `jax.random.split` derives from the same key


class LowRank(nnx.Module):
    """A [D, r] and B [r, F] of one weight [D, F], sharded like its rows and its columns."""

    def __init__(self, rows: int, columns: int, names: Sequence[str | None], rank: int, rngs: nnx.Rngs):
        bound = rows**-0.5  # kaiming_uniform_(a=sqrt(5))
        a = jax.random.uniform(rngs.peft(), (rows, rank), jnp.float32, -bound, bound)
        self.a = nnx.Param(a, out_sharding=(names[0], None))
        self.b = nnx.Param(jnp.zeros((rank, columns), jnp.float32), out_sharding=(None, names[-1]))

    def matrices(self, compute: ComputeOptions) -> tuple[jax.Array, jax.Array]:
        """A and B in the compute dtype, gathered over `fsdp`."""
        (rows, _), (_, columns) = (x.get_metadata("out_sharding") for x in (self.a, self.b))
        a, b = self.a[...].astype(compute.dtype), self.b[...].astype(compute.dtype)
        return all_gather_fsdp(a, rows, None), all_gather_fsdp(b, None, columns)


class Lora(LowRank):
    """The update of one weight: x [B, S, D] -> scale * dropout(x) A B [B, S, F]; no dropout without a key.

    `number` tells weights apart that are given the same key.
    """

    def __init__(
        self, shape: tuple[int, ...], names: Sequence[str | None], number: int, peft: PeftOptions,
        compute: ComputeOptions, rngs: nnx.Rngs,
    ):  # fmt: skip
        super().__init__(shape[0], shape[1], names, peft.lora_rank, rngs)
        self.number = number
        self.rate, self.scale = peft.lora_dropout, peft.lora_scale
        self.rows, self.compute = names[0], compute

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        x = _dropout(x, self.rate, key, self.number, self.rows, self.compute)
        return _product(x, *self.matrices(self.compute), self.scale, "f", self.compute)


class FusedLora(nnx.Module):
    """Updates of parts of a fused kernel [D, 3, F]: x [B, S, D] -> [B, S, 3, F], zero for parts without one.

    Without dropout one product with all A and one with all B; dropout has a mask per part, as separate layers would.
    """

    def __init__(
        self, shape: tuple[int, ...], names: Sequence[str | None], peft: PeftOptions, compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.parts = peft.rank_of(*FUSED)
        for part in self.parts:
            setattr(self, part, LowRank(shape[0], shape[-1], names, peft.lora_rank, rngs))
        self.rate, self.scale = peft.lora_dropout, peft.lora_scale
        self.rows, self.compute = names[0], compute

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        found = {part: getattr(self, part).matrices(self.compute) for part in self.parts}
        if key is None or not self.rate:
            a = jnp.concatenate([a for a, _ in found.values()], axis=1)
            return _product(x, a, _in_place(found), self.scale, "tf", self.compute)
        y: jax.Array | float = 0.0
        for part, (a, b) in found.items():
            dropped = _dropout(x, self.rate, key, FUSED.index(part), self.rows, self.compute)
            y = y + _product(dropped, a, _in_place({part: (a, b)}), self.scale, "tf", self.compute)
        return jnp.asarray(y)


def _in_place(found: Mapping[str, tuple[jax.Array, jax.Array]]) -> jax.Array:
    """B matrices [r, F] of parts -> [n r, 3, F], each in the place of its part."""
    places = np.eye(len(FUSED))
    parts = [b[:, None] * places[FUSED.index(part)][:, None].astype(b.dtype) for part, (_, b) in found.items()]
    return jnp.concatenate(parts)


def _product(x: jax.Array, a: jax.Array, b: jax.Array, scale: float, out: str, compute: ComputeOptions) -> jax.Array:
    low = einsum_lowp("bsd,dr->bsr", x, a, compute.platform)
    low = checkpoint_name((low * scale).astype(compute.dtype), REMAT_NAME)
    return einsum_lowp(f"bsr,r{out}->bs{out}", low, b, compute.platform)


def _dropout(
    x: jax.Array, rate: float, key: jax.Array | None, number: int, rows: str | None, compute: ComputeOptions
) -> jax.Array:
    if key is None or not rate:
        return x
    name = None if rows == "embed" else rows  # activations are not sharded like the rows of their weight
    return dropout(x, rate, jax.random.fold_in(key, _FIRST_KEY + number), compute, names=("batch", None, name))


def make_lora(
    target: str | None, shape: tuple[int, ...], names: Sequence[str | None], peft: PeftOptions,
    compute: ComputeOptions, rngs: nnx.Rngs,
) -> Lora | FusedLora | None:  # fmt: skip
    """The updates of a kernel [D, *out] that is the weight `target` (None: query, key and value fused), if any."""
    if target is None:
        return FusedLora(shape, names, peft, compute, rngs) if peft.rank_of(*FUSED) else None
    if not peft.rank_of(target):
        return None
    number = FUSED.index(target) if target in FUSED else 0
    return Lora(shape, names, number, peft, compute, rngs)


def is_lora(path: str) -> bool:
    """Whether a parameter belongs to an update."""
    return "/lora/" in path


def parse_path(path: str) -> tuple[str, int, str]:
    """The path of A or B -> (path of its kernel, the part of a fused kernel or 0, "a" or "b")."""
    kernel, _, inside = path.partition("/lora/")
    *part, matrix = inside.split("/")
    return f"{kernel}/kernel", FUSED.index(part[0]) if part else 0, matrix


def merge(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """{path: array} with every update added to its kernel, W + scale * A B, and without the updates; float32."""
    merged = {path: x for path, x in params.items() if not is_lora(path)}
    for path, a in params.items():
        if not is_lora(path) or not path.endswith("/a"):
            continue
        name, part, _ = parse_path(path)
        update = scale * jnp.matmul(a, params[f"{path[:-1]}b"], precision=lax.Precision.HIGHEST)
        kernel = jnp.asarray(merged[name])
        merged[name] = kernel.at[:, part].add(update) if kernel.ndim == 3 else kernel + update
    return merged
