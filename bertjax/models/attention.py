"""Self-attention with a kernel chosen by capability: XLA, cuDNN on GPUs, splash on TPUs or the package's own."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bertjax.models.compute_options import ComputeOptions
from bertjax.models.fused_attention.sharded import KeyMask, segment_key_mask, sharded_fused_attention
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.numerics import REMAT_NAME, einsum_lowp
from bertjax.parallel.sharding import auto_axes, divisible_spec

MASK_VALUE = -1e30  # finite: no NaN for a row without a key
_MOST_IN_VMEM = 8192 * 64  # numbers of one head: the fused kernel keeps their gradient
_MOST_PADDING = 1.25  # of lengths to multiples of 128, in `auto`


# What `auto` tries, in this order. On GPUs `fused` is not measured yet and used by name only.
KERNELS = {"cpu": (), "gpu": ("cudnn",), "tpu": ("splash", "fused")}
_PLATFORMS = {"cudnn": ("gpu",), "splash": ("tpu",), "fused": ("tpu", "gpu", "cpu")}


def select_kernel(
    compute: ComputeOptions, *, length: int, head_dim: int, rate: float, key_length: int | None = None,
    biased: bool = False, broadcast_dropout: bool = False,
) -> str:  # fmt: skip
    """The kernel to use. `auto`: the platform's first fused kernel that computes the same, else xla.

    `key_length`: of keys, if not of queries. `biased`: with a bias by distance. `broadcast_dropout`: one mask for all
    queries. Raises ValueError with the reason for a named kernel that cannot be used.
    """
    keys = length if key_length is None else key_length
    why_not = partial(
        _why_not, compute=compute, lengths=(length, keys), head_dim=head_dim, rate=rate, biased=biased,
        broadcast_dropout=broadcast_dropout,
    )  # fmt: skip
    if compute.attention == "xla":
        return "xla"
    if compute.attention != "auto":
        if why := why_not(compute.attention):
            raise ValueError(f"attention kernel '{compute.attention}' cannot be used: {why}")
        return compute.attention
    wasteful = max(-(-n // 128) * 128 / n for n in (length, keys)) > _MOST_PADDING
    kernels = (name for name in KERNELS[compute.platform] if not (name == "fused" and wasteful))
    return next((name for name in kernels if not why_not(name)), "xla")


def _why_not(
    kernel: str, compute: ComputeOptions, lengths: tuple[int, int], head_dim: int, rate: float, biased: bool,
    broadcast_dropout: bool,
) -> str | None:  # fmt: skip
    """Why a kernel cannot be used.

    cuDNN's public interface and splash have no dropout of probabilities and need bfloat16; splash needs lengths in
    multiples of 128.
    """
    if kernel != "fused" and (biased or lengths[0] != lengths[1]):
        return "it does not take T5's relative position bias: use fused or xla"
    if compute.platform not in _PLATFORMS[kernel]:
        return f"it does not run on {compute.platform}"
    if kernel == "fused":
        if rate > 0 and compute.dropout_rng != "hash" and not broadcast_dropout:
            return "it has the dropout of run.dropout_rng: hash only"
        if head_dim % 8 or head_dim > 128:
            return f"it needs a head size in multiples of 8 up to 128, not {head_dim}"
        if compute.platform == "gpu" and head_dim not in (16, 32, 64, 128):
            return f"on GPUs it needs a head size of 16, 32, 64 or 128, not {head_dim}"
        if compute.platform == "tpu" and max(lengths) * head_dim > _MOST_IN_VMEM:
            return f"it needs sequence lengths up to {_MOST_IN_VMEM // head_dim}, not {max(lengths)}"
        return None
    if rate > 0:
        return "it has no dropout on attention probabilities: set attention_probs_dropout_prob to 0, or use fused"
    if kernel == "cudnn" and (jnp.dtype(compute.dtype).itemsize != 2 or head_dim % 8 or head_dim > 128):
        return f"it needs bfloat16 and a head size in multiples of 8 up to 128, not {compute.dtype} and {head_dim}"
    if kernel == "splash" and lengths[0] % 128:
        return f"it needs sequence lengths in multiples of 128, not {lengths[0]}"
    return None


def dot_product_attention(
    q_BSHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids_BS: jax.Array, *,
    packed: bool, rate: float, key: jax.Array | None, compute: ComputeOptions, causal: bool = False,
) -> jax.Array:  # fmt: skip
    """softmax(q k^T / sqrt(K)) v (arXiv 1706.03762 section 3.2.1).

    `segment_ids` is 0 on padding. With `packed`, a token sees its own example; without, all non-padding tokens. With
    `causal`, of these only itself and those before it.
    """
    rate = 0.0 if key is None else rate
    kernel = select_kernel(compute, length=q_BSHK.shape[1], head_dim=q_BSHK.shape[-1], rate=rate)
    if kernel == "cudnn":
        return _cudnn(q_BSHK, k_BSHK, v_BSHK, segment_ids_BS, packed, causal)
    if kernel == "splash":
        return _splash(q_BSHK, k_BSHK, v_BSHK, segment_ids_BS, causal)
    if kernel == "fused":
        keys = make_key_mask(segment_ids_BS, packed, causal)
        scale = q_BSHK.shape[-1] ** -0.5
        return sharded_fused_attention(q_BSHK, k_BSHK, v_BSHK, keys, scale=scale, rate=rate, key=key, compute=compute)
    mask = make_attention_mask(segment_ids_BS, packed, causal)
    return _xla(q_BSHK, k_BSHK, v_BSHK, mask, rate, key, compute)


def make_attention_mask(segment_ids: jax.Array, packed: bool, causal: bool = False) -> jax.Array:
    """The keys that a query sees, bool [B, 1, Q, S] if packed or causal, else [B, 1, 1, S]."""
    visible = (segment_ids > 0)[:, None, None, :]
    if packed:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    if causal:
        place = jnp.arange(segment_ids.shape[1])
        visible = visible & (place[:, None] >= place)
    return visible


def make_key_mask(segment_ids: jax.Array, packed: bool, causal: bool = False) -> KeyMask:
    """The same mask by ids."""
    if packed:
        return segment_key_mask(segment_ids, segment_ids, causal=causal)
    return KeyMask(jnp.ones_like(segment_ids), (segment_ids > 0).astype(segment_ids.dtype), causal=causal)


def attention_probabilities(
    q_BSHK: jax.Array, k_BSHK: jax.Array, segment_ids_BS: jax.Array, *, packed: bool, compute: ComputeOptions,
    causal: bool = False,
) -> jax.Array:  # fmt: skip
    """softmax(q k^T / sqrt(K)), float32 [B, H, Q, S], as `dot_product_attention` has it without dropout."""
    q, k = (jnp.moveaxis(x, 2, 1) for x in (q_BSHK, k_BSHK))
    return _probabilities(q, k, make_attention_mask(segment_ids_BS, packed, causal), compute)


def _probabilities(q: jax.Array, k: jax.Array, mask: jax.Array, compute: ComputeOptions) -> jax.Array:
    """[B, H, Q, K], [B, H, S, K] -> float32 [B, H, Q, S]."""
    scores = einsum_lowp("bhqk,bhsk->bhqs", q, k, compute.platform).astype(jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask, scores, MASK_VALUE)
    return jax.nn.softmax(scores, axis=-1)


def _xla(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, rate: float, key: jax.Array | None,
    compute: ComputeOptions,
) -> jax.Array:  # fmt: skip
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    probabilities = _probabilities(q, k, mask, compute)
    probabilities = dropout(probabilities, rate, key, compute, names=("batch", "heads")).astype(q.dtype)
    context = einsum_lowp("bhqs,bhsk->bhqk", probabilities, v, compute.platform).astype(q.dtype)
    return jnp.moveaxis(context, 1, 2)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, packed: bool, causal: bool) -> jax.Array:
    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        if packed:  # cuDNN needs the full mask
            B, S = segment_ids.shape
            mask = jnp.broadcast_to(make_attention_mask(segment_ids, True, causal), (B, 1, S, S))
            return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        lengths = (segment_ids > 0).sum(-1).astype(jnp.int32)
        return jax.nn.dot_product_attention(
            q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, is_causal=causal, implementation="cudnn"
        )

    mesh = jax.sharding.get_abstract_mesh()
    if len(auto_axes(mesh)) == len(mesh.axis_names):  # jax partitions cuDNN's calls, but not inside a shard_map
        return local(q, k, v, segment_ids)
    return _shard_map_kernel(local, q, k, v, segment_ids)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, causal: bool) -> jax.Array:
    """Packed or not, segment ids are the mask; padding (segment 0) sees padding, so that its rows are finite."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = next(size for size in (512, 384, 256, 128) if q.shape[1] % size == 0)
    blocks = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        heads, length = q.shape[2], q.shape[1]
        kind = splash.CausalMask if causal else splash.FullMask
        mask = splash.MultiHeadMask([kind((length, length)) for _ in range(heads)])
        kernel = splash.make_splash_mha(
            mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, residual_checkpoint_name=REMAT_NAME
        )
        move = partial(jnp.moveaxis, source=2, destination=1)
        scaled = (move(q) * q.shape[-1] ** -0.5).astype(q.dtype)
        ids = splash.SegmentIds(segment_ids, segment_ids)
        return move(jax.vmap(kernel)(scaled, move(k), move(v), segment_ids=ids))

    return _shard_map_kernel(local, q, k, v, segment_ids)


def _shard_map_kernel(
    local: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """Run a kernel, which the partitioner cannot split, on each device's rows and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    free = auto_axes(mesh)
    if not free:
        return local(q, k, v, segment_ids)
    heads = divisible_spec(mesh, ("batch", None, "heads", None), q.shape)
    rows = divisible_spec(mesh, ("batch", None), segment_ids.shape)
    specs = (heads, heads, heads, rows)
    run = jax.shard_map(local, in_specs=specs, out_specs=heads, axis_names=set(free), check_vma=False)
    return run(q, k, v, segment_ids)
