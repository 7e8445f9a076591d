"""Attention of T5: relative position bias, no scaling by 1/sqrt(K), masks by segment.

Shape letters: B rows, Q queries, S keys, D d_model, H heads, K d_kv.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bertjax.config.schema.model import T5Config
from bertjax.models.attention import MASK_VALUE, select_kernel
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.fused_attention.sharded import KeyMask, segment_key_mask, sharded_fused_attention
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.lora import make_lora
from bertjax.models.layers.modules import Linear, RmsNorm
from bertjax.models.layers.numerics import REMAT_NAME, einsum_lowp
from bertjax.models.peft_options import PeftOptions
from bertjax.models.sequence_parallel import all_gather_sequence
from bertjax.parallel.sharding import all_gather_fsdp, with_logical_constraint

KeysValues = tuple[jax.Array, jax.Array]


class CachedKeysValues(NamedTuple):
    """Keys and values of a decoding cache, in the layouts in which a step multiplies with them.

    float32 on the CPU, whose batched dots would convert all of them at every step; elsewhere of the compute dtype.
    """

    keys: jax.Array  # [B, H, K, S]
    values: jax.Array  # [B, H, S, K]


Visible = jax.Array | KeyMask  # which keys a query sees


def bucket_table(bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every key position minus query position in -max_distance..max_distance, int32 [2 max_distance + 1].

    Half of a direction's buckets hold one distance each, the others grow logarithmically up to `max_distance`. Without
    `bidirectional`, keys after the query share the bucket of distance 0 (t5x layers.py
    RelativePositionBiases._relative_position_bucket, with its float32 epsilon under the logarithm).
    """
    relative = np.arange(-max_distance, max_distance + 1)
    ahead = np.zeros(relative.shape, np.int32)
    if bidirectional:
        buckets //= 2
        ahead = np.where(relative > 0, buckets, 0)
        distance = np.abs(relative)
    else:
        distance = np.maximum(-relative, 0)
    exact = buckets // 2
    rise = np.log(np.maximum(distance, 1).astype(np.float32) / exact + np.finfo(np.float32).eps)
    far = exact + (rise / np.log(max_distance / exact) * (buckets - exact)).astype(np.int32)
    return (ahead + np.where(distance < exact, distance, np.minimum(far, buckets - 1))).astype(np.int32)


class RelativePositionBias(nnx.Module):
    """One learnt number per bucket and head, of all layers of a stack or of one layer (umT5)."""

    def __init__(self, config: T5Config, bidirectional: bool, rngs: nnx.Rngs):
        shape = (config.relative_attention_num_buckets, config.num_heads)
        init = nnx.initializers.normal(config.d_model**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), shape, jnp.float32), out_sharding=(None, "heads"))
        self.config, self.bidirectional = config, bidirectional

    def __call__(self, like_BS: jax.Array) -> jax.Array:
        """The bias between all positions 0, 1, ... of an array, of which only the shape is read: float32 [1, H, S, S].

        Entry (q, s) depends only on s - q, so the 2 S - 1 values are placed along diagonals by two reshapes.
        Their gradient is a sum; that of a look-up of all pairs would be a scatter into a few buckets.
        """
        length = like_BS.shape[1]
        width = 2 * length - 1
        values = self._by_distance(length)
        heads = values.shape[0]
        rows = jnp.broadcast_to(jnp.pad(values, ((0, 0), (0, 1)))[:, None], (heads, length, width + 1))
        skewed = rows.reshape(heads, -1)[:, : length * width].reshape(heads, length, width)  # row q is shifted by q
        return with_logical_constraint(skewed[None, :, :, length - 1 :], None, "heads", None, None)

    def by_distance(self, length: int) -> jax.Array:
        """The same values once, float32 [H, 2 S - 1]: c is for s - q = c - (length - 1)."""
        return with_logical_constraint(self._by_distance(length), "heads", None)

    def _by_distance(self, length: int) -> jax.Array:
        return self.bias_at(jnp.arange(2 * length - 1) - (length - 1)).T

    def bias_at(self, relative: jax.Array) -> jax.Array:
        """Key position minus query position, int32 [...] -> bias float32 [..., H]."""
        c = self.config
        furthest = c.relative_attention_max_distance
        buckets = jnp.asarray(bucket_table(self.bidirectional, c.relative_attention_num_buckets, furthest))
        index = buckets[jnp.clip(relative, -furthest, furthest) + furthest]
        return jnp.take(all_gather_fsdp(self.embedding[...], None, "heads"), index, axis=0)


def make_segment_mask(query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
    """Segment ids int [B, Q], [B, S] (0 on padding) -> bool [B, 1, Q, S]: whether a query sees a key."""
    return (query_ids[:, None, :, None] == key_ids[:, None, None, :]) & (key_ids > 0)[:, None, None, :]


def make_decoder_mask(segment_ids: jax.Array, prefix_mask: jax.Array | None) -> jax.Array:
    """int [B, T] -> bool [B, 1, T, T]: keys of the same segment that are not after the query, or in the prefix.

    `prefix_mask` is 1 for decoder inputs of the fully visible prefix (t5x layers.py make_decoder_mask).
    """
    place = jnp.arange(segment_ids.shape[1])
    seen = (place[:, None] >= place[None, :])[None, None]
    if prefix_mask is not None:
        seen = seen | (prefix_mask > 0)[:, None, None, :]
    return make_segment_mask(segment_ids, segment_ids) & seen


def check_kernel(compute: ComputeOptions) -> None:
    """Raises ValueError for a kernel without position bias."""
    if compute.attention not in ("auto", "xla"):
        select_kernel(compute, length=128, head_dim=64, rate=0.0, biased=True)


def segment_mask(query_ids: jax.Array, key_ids: jax.Array, config: T5Config, compute: ComputeOptions) -> Visible:
    """`make_segment_mask`, or ids for the fused kernel where it is used."""
    if _is_fused(query_ids.shape[1], key_ids.shape[1], config, compute):
        return segment_key_mask(query_ids, key_ids)
    return make_segment_mask(query_ids, key_ids)


def decoder_mask(
    segment_ids: jax.Array, prefix_mask: jax.Array | None, config: T5Config, compute: ComputeOptions
) -> Visible:
    """`make_decoder_mask`, or ids for the fused kernel where it is used."""
    length = segment_ids.shape[1]
    if _is_fused(length, length, config, compute):
        return segment_key_mask(segment_ids, segment_ids, prefix=prefix_mask, causal=True)
    return make_decoder_mask(segment_ids, prefix_mask)


def _is_fused(queries: int, keys: int, config: T5Config, compute: ComputeOptions) -> bool:
    kernel = select_kernel(
        compute, length=queries, key_length=keys, head_dim=config.d_kv, rate=config.dropout_rate, biased=True,
        broadcast_dropout=True,
    )  # fmt: skip
    return kernel == "fused"


def dot_product_attention(
    q_BQHK: jax.Array, keys_values: KeysValues, bias: jax.Array | None, visible: Visible, *,
    rate: float, key: jax.Array | None, compute: ComputeOptions,
) -> jax.Array:  # fmt: skip
    """softmax(q k^T + bias) v -> [B, Q, H, K]; the softmax is in float32.

    `visible` is bool [B, 1, Q or 1, S], and `bias` broadcasts to [B, H, Q, S]; or they are a `KeyMask` and [H, 2 S - 1]
    by distance for the fused kernel. bias is None in cross attention.
    """
    if isinstance(visible, KeyMask):
        return sharded_fused_attention(
            q_BQHK, *keys_values, visible, scale=1.0, rate=rate, key=key, compute=compute, bias=bias,
            broadcast_length=True,
        )  # fmt: skip
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q_BQHK, *keys_values))
    probabilities = _probabilities(q, k, bias, visible, compute)
    kept = dropout(probabilities, rate, key, compute, broadcast_length=True, names=("batch", "heads")).astype(q.dtype)
    context = einsum_lowp("bhqs,bhsk->bhqk", kept, v, compute.platform).astype(q.dtype)
    return jnp.moveaxis(context, 1, 2)


def cached_attention(
    q_BQHK: jax.Array, cached: CachedKeysValues, bias: jax.Array | None, visible: jax.Array
) -> jax.Array:
    """`dot_product_attention` for a few queries of a cache, without dropout -> [B, Q, H, K]."""
    dtype, accumulate = q_BQHK.dtype, cached.keys.dtype
    scores = jnp.einsum("bqhk,bhks->bhqs", q_BQHK.astype(accumulate), cached.keys).astype(jnp.float32)
    kept = _softmax(scores, bias, visible).astype(dtype).astype(accumulate)
    context = jnp.einsum("bhqs,bhsk->bhqk", kept, cached.values)
    return jnp.moveaxis(context.astype(dtype), 1, 2)


def _probabilities(
    q: jax.Array, k: jax.Array, bias: jax.Array | None, visible: jax.Array, compute: ComputeOptions
) -> jax.Array:
    """[B, H, Q, K], [B, H, S, K] -> float32 [B, H, Q, S]."""
    return _softmax(einsum_lowp("bhqk,bhsk->bhqs", q, k, compute.platform).astype(jnp.float32), bias, visible)


def _softmax(scores: jax.Array, bias: jax.Array | None, visible: jax.Array) -> jax.Array:
    scores = scores if bias is None else scores + bias
    return jax.nn.softmax(jnp.where(visible, scores, MASK_VALUE), axis=-1)


def linear_layers(
    compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions
) -> Callable[[tuple[int, int], tuple[str | None, str | None], float, str], Linear]:
    """(shape, logical axes, standard deviation, LoRA target) -> a linear layer."""

    def make(shape: tuple[int, int], names: tuple[str | None, str | None], std: float, target: str) -> Linear:
        lora = make_lora(target, shape, names, peft, compute, rngs)
        return Linear(shape, names, std, compute, rngs, lora, layer=True)

    return make


class Attention(nnx.Module):
    """A residual sublayer: x + dropout(output(attend(norm(x), ...)))."""

    def __init__(self, config: T5Config, compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions):
        D, K, inner = config.d_model, config.d_kv, config.num_heads * config.d_kv
        # the initial query replaces the division of scores by sqrt(K) (transformers T5 _init_weights)
        linear = linear_layers(compute, rngs, peft)
        self.query = linear((D, inner), ("embed", "heads"), (D * K) ** -0.5, "query")
        self.key = linear((D, inner), ("embed", "heads"), D**-0.5, "key")
        self.value = linear((D, inner), ("embed", "heads"), D**-0.5, "value")
        self.output = linear((inner, D), ("heads", "embed"), inner**-0.5, "attention_output")
        self.norm = RmsNorm(D, config.layer_norm_epsilon)
        self.config, self.compute = config, compute

    def keys_values(self, source_BSD: jax.Array, key: jax.Array | None = None) -> KeysValues:
        """Source [B, S, D] (normalized, for self-attention) -> keys and values, each [B, S, H, K]."""
        return self._heads(self.key(source_BSD, key)), self._heads(self.value(source_BSD, key))

    def to_cache(self, keys_values: KeysValues) -> CachedKeysValues:
        """Keys and values [B, S, H, K] in the layouts and the dtype of a cache."""
        dtype = jnp.float32 if self.compute.platform == "cpu" else self.compute.dtype
        keys, values = (x.astype(dtype) for x in keys_values)
        return CachedKeysValues(jnp.moveaxis(keys, 1, 3), jnp.moveaxis(values, 1, 2))

    def __call__(
        self, x_BQD: jax.Array, keys_values: KeysValues | CachedKeysValues | None, bias: jax.Array | None,
        visible: Visible, key: jax.Array | None,
    ) -> jax.Array:  # fmt: skip
        """`keys_values`: of the encoder or a cache; None: of x."""
        rate, compute = self.config.dropout_rate, self.compute
        k1, k2 = (None, None) if key is None else jax.random.split(key)
        y = all_gather_sequence(self.norm(x_BQD))
        keys_values = self.keys_values(y, key) if keys_values is None else keys_values
        q = self._heads(self.query(y, key))
        if isinstance(keys_values, CachedKeysValues):
            assert not isinstance(visible, KeyMask)
            context = cached_attention(q, keys_values, bias, visible)
        else:
            context = dot_product_attention(q, keys_values, bias, visible, rate=rate, key=k1, compute=compute)
        context = checkpoint_name(context.reshape(*context.shape[:2], -1), REMAT_NAME)
        y = dropout(self.output(context, key), rate, k2, compute, broadcast_length=True)
        return with_logical_constraint(x_BQD + y, "batch", None, None)

    def probabilities(self, x_BSD: jax.Array, bias: jax.Array, visible: jax.Array) -> jax.Array:
        """The weights of self-attention on an input of the sublayer, float32 [B, H, S, S]: a row for each query."""
        y = self.norm(x_BSD)
        q, k = (jnp.moveaxis(self._heads(part(y)), 2, 1) for part in (self.query, self.key))
        return _probabilities(q, k, bias, visible, self.compute)

    def _heads(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], -1, self.config.d_kv)
        return with_logical_constraint(x, "batch", None, "heads", None)
