"""Methods of T5 for decoding with a key-value cache, whose arrays all begin with the row axis."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bertjax.models.t5.attention import CachedKeysValues, make_decoder_mask
from bertjax.parallel.sharding import with_logical_constraint

T5: TypeAlias = Any  # models/t5/model.py imports this module
BiasOf: TypeAlias = Callable[[Any], jax.Array]  # RelativePositionBias -> its bias, broadcasting to [B, H, Q, length]


class Cache(NamedTuple):
    """Keys and values of the decoder's layers: L layers, B rows, H heads, K d_kv."""

    layers: tuple[CachedKeysValues, ...]  # L pairs of `length` slots of self-attention, filled from slot 0 on
    positions: jax.Array  # int32 [B, length], of the token in each slot among its row's non-padding tokens
    visible: jax.Array  # bool [B, length], whether a slot holds a non-padding token
    cross: tuple[CachedKeysValues, ...]  # L pairs of the encoder's output; () for decoder-only models
    cross_visible: jax.Array | None  # bool [B, S], or None for decoder-only models


def init_cache(model: T5, hidden: jax.Array | None, segment_ids: jax.Array, length: int) -> Cache:
    """An empty cache of `length` slots for one example per row.

    hidden [B, S, D] and segment_ids int [B, S] are the encoder's. Decoder-only models give None and any segment_ids
    with B rows.
    """
    c, rows = model.config, segment_ids.shape[0]
    layers, empty = model.decoder.layers, jnp.zeros((rows, length, c.num_heads, c.d_kv))
    cross: tuple[CachedKeysValues, ...] = ()
    if hidden is not None:
        across = [layer.cross_attention for layer in layers]
        cross = tuple(_constrain(one.to_cache(one.keys_values(hidden))) for one in across)
    return Cache(
        layers=tuple(_constrain(layer.attention.to_cache((empty, empty))) for layer in layers),
        positions=jnp.zeros((rows, length), jnp.int32),
        visible=jnp.zeros((rows, length), bool),
        cross=cross,
        cross_visible=None if hidden is None else segment_ids > 0,
    )


def _constrain(cached: CachedKeysValues) -> CachedKeysValues:
    return CachedKeysValues(*(with_logical_constraint(x, "batch", "heads", None, None) for x in cached))


def prefill(
    model: T5, ids: jax.Array, segment_ids: jax.Array, prefix_mask: jax.Array | None, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Prompts [B, P] into slots 0..P-1 -> (float32 [B, V] after each row's last non-padding token, cache).

    The ids are decoder inputs, which begin with the start id. A row's tokens (segment 1) are contiguous, with padding
    (segment 0) before or after them. The next step is at index P for all rows: distances count non-padding tokens.
    """
    width = ids.shape[1]
    real = segment_ids > 0
    cache = cache._replace(
        positions=cache.positions.at[:, :width].set(jnp.where(real, jnp.cumsum(real, axis=1) - 1, 0)),
        visible=cache.visible.at[:, :width].set(real),
    )
    visible = make_decoder_mask(segment_ids, prefix_mask)
    x, cache = _run_layers(model, ids, lambda table: table(ids), visible, cache, 0, alone=True)
    last = jnp.max(jnp.where(real, jnp.arange(width), 0), axis=1)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)
    return _logits(model, x)[:, 0], cache


def decode_step(model: T5, ids: jax.Array, cache: Cache, index: jax.Array | int) -> tuple[jax.Array, Cache]:
    """One decoder input per row, int [B], into slot `index` -> (float32 [B, V] of the token after it, cache).

    Slots from `index` on are overwritten. The first input of an encoder-decoder is the start id, at index 0.
    """
    slots = jnp.arange(cache.visible.shape[1])
    before = cache.visible & (slots < index)
    position = before.sum(axis=1, dtype=jnp.int32)
    cache = cache._replace(
        positions=jnp.where(slots == index, position[:, None], cache.positions), visible=before | (slots == index)
    )
    bias_of = _bias_at(cache.positions - position[:, None])
    x, cache = _run_layers(model, ids[:, None], bias_of, cache.visible[:, None, None], cache, index)
    return _logits(model, x)[:, 0], cache


def beam_step(
    model: T5, ids: jax.Array, cache: Cache, at: jax.Array | int, seen: jax.Array
) -> tuple[jax.Array, Cache, jax.Array]:
    """One decoder input for each of K beams of a row, int [B, K], into slots `at`..`at` + K - 1.

    `seen`, bool [B, K, length], marks the slots of each beam's past. -> (float32 [B, K, V], cache, `seen` with the new
    slots). The beams of a row share one cache: continuing from another beam copies its `seen` instead of a cache.
    """
    beams, slots = ids.shape[1], jnp.arange(seen.shape[2])
    position = seen[:, 0].sum(axis=1, dtype=jnp.int32)[:, None]
    seen = seen | (slots == at + jnp.arange(beams)[:, None])
    new = (slots >= at) & (slots < at + beams)
    cache = cache._replace(positions=jnp.where(new, position, cache.positions), visible=cache.visible | new)
    bias_of = _bias_at(cache.positions - position)
    x, cache = _run_layers(model, ids, bias_of, seen[:, None], cache, at)
    return _logits(model, x), cache, seen


def _logits(model: T5, x: jax.Array) -> jax.Array:
    """The last layer's output [B, Q, D] -> float32 [B, Q, V]."""
    rows = model.decoder.norm(x).reshape(-1, x.shape[-1])
    return model.logits(rows).reshape(*x.shape[:2], -1)


def _bias_at(relative: jax.Array) -> BiasOf:
    """Key position minus query position, int32 [B, length] -> the bias of one query, float32 [B, H, 1, length]."""
    return lambda table: jnp.moveaxis(table.bias_at(relative), 2, 1)[:, :, None]


def _run_layers(
    model: T5, ids: jax.Array, bias_of: BiasOf, visible: jax.Array, cache: Cache, at: jax.Array | int, *,
    alone: bool = False,
) -> tuple[jax.Array, Cache]:  # fmt: skip
    """The decoder's layers over ids [B, Q], whose keys and values go to the slots from `at` on.

    `alone`: the ids are a whole prompt and see each other only; else they see all slots.
    """
    x = model.embeddings(ids, None)
    source = None
    filled = []
    shared = bias_of(model.decoder.position) if hasattr(model.decoder, "position") else None
    for number, layer in enumerate(model.decoder.layers):
        new = layer.attention.keys_values(layer.attention.norm(x))
        cached = _write(cache.layers[number], layer.attention.to_cache(new), at)
        filled.append(cached)
        if cache.cross_visible is not None:
            source = cache.cross[number], cache.cross_visible[:, None, None]
        bias = bias_of(layer.position) if shared is None else shared
        x = layer(x, bias, visible, None, keys_values=new if alone else cached, source=source)
    return x, cache._replace(layers=tuple(filled))


def _write(cached: CachedKeysValues, new: CachedKeysValues, at: jax.Array | int) -> CachedKeysValues:
    """`new` in the slots from `at` on."""
    keys = jax.lax.dynamic_update_slice_in_dim(cached.keys, new.keys, at, axis=3)
    return CachedKeysValues(keys, jax.lax.dynamic_update_slice_in_dim(cached.values, new.values, at, axis=2))
