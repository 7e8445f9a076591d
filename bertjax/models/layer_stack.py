"""A stack of equal layers in segments: a segment of one layer is called, a longer one is stacked and scanned.

Parameters are stored per layer with any segments; the compiled step stacks the copies that the cast to the compute
dtype makes anyway.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.models import param_paths, sequence_parallel
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.numerics import REMAT_NAME

LayerFn = Callable[..., jax.Array]  # (layer, x, key, *arrays) -> x


def _remat(body: Callable, kind: str) -> Callable:
    if kind == "none":
        return body
    policy = jax.checkpoint_policies.save_only_these_names(REMAT_NAME) if kind == "dots" else None
    return jax.checkpoint(body, policy=policy)


def split_segments(segments: Sequence[int], at: int) -> tuple[int, ...]:
    """Segments with a boundary below layer `at`: (6, 6) split at 8 is (6, 2, 4)."""
    out: list[int] = []
    start = 0
    for length in segments:
        below = min(max(at - start, 0), length)
        out += [part for part in (below, length - below) if part]
        start += length
    return tuple(out)


def apply_layers(
    layers: Sequence[nnx.Module],
    x: jax.Array,
    call: LayerFn,
    key: jax.Array | None,
    compute: ComputeOptions,
    *given: sequence_parallel.LogicalArray,
    heads: int,
    order: Sequence[int] | None = None,
    first: int = 0,
    stop: int | None = None,
) -> jax.Array:
    """Apply `call(layer, x, key, *arrays)` to x [B, S, D] through all layers, or those from `first` to below `stop`.

    Layer i gets `fold_in(key, i)` with any segments. `given`: other arrays that a layer reads, with their logical axes;
    `heads`: the number of attention heads; `order`: from the bottom up, the index in `layers` of the parameters that
    each layer reads (default: each has its own). Returns x with sharded positions if the rules shard them and dropout
    does not need full rows.
    """
    order = tuple(range(len(layers))) if order is None else tuple(order)
    inside = partial(_scan_segments, call=call, compute=compute, order=order, first=first, stop=stop)
    full_rows = key is not None and compute.dropout_rng != "hash"
    axes = () if full_rows else sequence_parallel.stack_shard_axes(x.shape[1], layers, heads)
    if not axes:
        return inside(x, layers, key, *(array for array, _ in given))
    return sequence_parallel.shard_map_sequence(inside, axes, x, layers, ((key, ()), *given))


def _scan_segments(
    x: jax.Array,
    layers: Sequence[nnx.Module],
    key: jax.Array | None,
    *arrays: Any,
    call: LayerFn,
    compute: ComputeOptions,
    order: tuple[int, ...],
    first: int,
    stop: int | None,
) -> jax.Array:
    lengths = compute.segments or (1,) * len(order)
    if sum(lengths) != len(order):
        raise ValueError(f"segments {lengths} do not add up to {len(order)} layers")
    stop = len(order) if stop is None else stop
    lengths = split_segments(split_segments(lengths, first), stop)

    def one(x: jax.Array, layer: nnx.Module, index: jax.Array | int) -> jax.Array:
        return call(layer, x, None if key is None else jax.random.fold_in(key, index), *arrays)

    def lower(path: tuple, weight: jax.Array) -> jax.Array:
        name = param_paths.keystr(path)
        return weight.astype(compute.dtype) if "/kernel" in name or "/lora/" in name else weight

    step = jax.jit(_remat(one, compute.remat), inline=True)  # equal layers are traced once
    start = 0
    for numbers in _scans(lengths, order):
        if not first <= start < stop:
            start += len(numbers)
            continue
        indices = jnp.arange(start, start + len(numbers))
        if len(numbers) == 1:
            x = step(x, layers[numbers[0]], start)
        elif len(set(numbers)) == 1:  # shared parameters in float32, so that their gradients are summed in float32
            repeat = partial(_repeat, step, layers[numbers[0]])
            x, _ = jax.lax.scan(repeat, x, indices)
        else:
            low = [jax.tree_util.tree_map_with_path(lower, layers[number]) for number in numbers]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *low)
            x, _ = jax.lax.scan(lambda x, layer: (step(x, *layer), None), x, (stacked, indices))
        start += len(numbers)
    return x


def _scans(lengths: Sequence[int], order: Sequence[int]) -> list[tuple[int, ...]]:
    """The layers of each segment; a segment with shared layers is split where the parameters change."""
    found: list[tuple[int, ...]] = []
    start = 0
    for length in lengths:
        segment = tuple(order[start : start + length])
        shared = len(set(segment)) < length
        found += [tuple(run) for _, run in groupby(segment)] if shared else [segment]
        start += length
    return found


def _repeat(step: Callable[..., jax.Array], layer: nnx.Module, x: jax.Array, index: jax.Array) -> tuple:
    return step(x, layer, index), None
