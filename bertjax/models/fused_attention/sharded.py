"""Fused attention under a mesh: on each device's rows and heads, with the dropout that one device would have."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.dropout import dropout, hash_seeds
from bertjax.parallel.sharding import auto_axes, divisible_spec, shard_index


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyMask:
    """Which keys a query sees: those with its id, with `causal` only those before it or in a prefix.

    Attributes:
        query_ids: int32 [B, Q].
        key_ids: int32 [B, S]; 0 on padding, where no query has 0.
        prefix: int [B, S], positive for keys that all queries with their id see, or None.
    """

    query_ids: jax.Array
    key_ids: jax.Array
    prefix: jax.Array | None = None
    causal: bool = field(default=False, metadata={"static": True})


def segment_key_mask(
    query_ids: jax.Array, key_ids: jax.Array, *, prefix: jax.Array | None = None, causal: bool = False
) -> KeyMask:
    """Segment ids int [B, Q], [B, S], 0 on padding: a query sees the keys of its segment, one on padding none."""
    return KeyMask(jnp.where(query_ids > 0, query_ids, -1), key_ids, prefix, causal)


def sharded_fused_attention(
    q_BQHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, mask: KeyMask, *, scale: float, rate: float,
    key: jax.Array | None, compute: ComputeOptions, bias: jax.Array | None = None, broadcast_length: bool = False,
) -> jax.Array:  # fmt: skip
    """`fused_attention` -> [B, Q, H, K], with the dropout of `dropout(probabilities, rate, key, compute, ...)`.

    The probabilities are [B, H, Q, S] with names (batch, heads); broadcast_length: one mask for all queries, as T5.
    bias: float32 [H, Q + S - 1].
    """
    from bertjax.models.fused_attention.attention import DropoutBits, fused_attention  # imports Pallas, which is slow

    (B, _, H, _), S = q_BQHK.shape, k_BSHK.shape[1]
    rate = 0.0 if key is None else rate
    if rate > 0 and broadcast_length:  # a probability dropped for all queries is as a value of zero
        kept = dropout(jnp.ones((B, H, 1, S), jnp.float32), rate, key, compute, names=("batch", "heads"))
        v_BSHK = (v_BSHK.astype(jnp.float32) * jnp.moveaxis(kept, 3, 1)).astype(v_BSHK.dtype)
        rate = 0.0
    seeds = jnp.zeros(2, jnp.uint32) if key is None or rate == 0.0 else hash_seeds(key)
    (row_shards, row_shard), (head_shards, head_shard) = shard_index("batch"), shard_index("heads")
    # numbers among all devices, sharded below as the arrays are
    rows = row_shard * B + jnp.arange(B, dtype=jnp.int32)
    heads = head_shard * H + jnp.arange(H, dtype=jnp.int32)

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, mask: KeyMask, bias: jax.Array | None, seeds: jax.Array,
        rows: jax.Array, heads: jax.Array,
    ) -> jax.Array:  # fmt: skip
        return fused_attention(
            q, k, v, mask.query_ids, mask.key_ids, prefix_BS=mask.prefix, causal=mask.causal, scale=scale, rate=rate,
            bits=DropoutBits(seeds, rows[0], heads[0], row_shards * B, head_shards * H), bias=bias,
            gpu=compute.platform == "gpu", interpret=compute.platform == "cpu",
        )  # fmt: skip

    inputs = (q_BQHK, k_BSHK, v_BSHK, mask, bias, seeds, rows, heads)
    mesh = jax.sharding.get_abstract_mesh()
    free = auto_axes(mesh)
    if not free:
        return local(*inputs)
    whole = divisible_spec(mesh, ("batch", None, "heads", None), q_BQHK.shape)
    of_rows, _, of_heads, _ = whole
    specs = (whole, whole, whole, P(of_rows, None), P(of_heads, None), P(None), P(of_rows), P(of_heads))
    run = jax.shard_map(local, in_specs=specs, out_specs=whole, axis_names=set(free), check_vma=False)
    return run(*inputs)
