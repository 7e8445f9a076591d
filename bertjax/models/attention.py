"""Self-attention kernels behind one function: XLA everywhere, cuDNN on GPUs, splash on TPUs, chosen by capability."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bertjax.models.execution import Execution
from bertjax.models.layers import KEPT, contract, dropout
from bertjax.parallel.mesh import fitted, free_axes

MASKED = -1e30  # finite, so that a row without any key stays a number


def choose(execution: Execution, *, length: int, head_dim: int, rate: float) -> str:
    """Which kernel runs. `auto` takes the flash kernel of the platform when it can do the job exactly.

    Neither cuDNN's public interface nor splash has dropout on the probabilities, and both want bfloat16; splash wants
    lengths in multiples of 128. Asking for one by name where it cannot serve raises ValueError with the reason.
    """
    if execution.attention == "xla" or (execution.attention == "auto" and execution.platform == "cpu"):
        return "xla"
    kernel = {"gpu": "cudnn", "tpu": "splash"}.get(execution.platform, "xla")
    kernel = kernel if execution.attention == "auto" else execution.attention
    why = None
    if rate > 0:
        why = "it has no dropout on attention probabilities: set attention_probs_dropout_prob to 0"
    elif kernel == "cudnn" and (jnp.dtype(execution.dtype).itemsize != 2 or head_dim % 8 or head_dim > 128):
        why = f"it needs bfloat16 and a head size in multiples of 8 up to 128, not {execution.dtype} and {head_dim}"
    elif kernel == "splash" and length % 128:
        why = f"it needs sequence lengths in multiples of 128, not {length}"
    elif kernel != {"gpu": "cudnn", "tpu": "splash"}.get(execution.platform):
        why = f"it does not run on {execution.platform}"
    if why is None:
        return kernel
    if execution.attention != "auto":
        raise ValueError(f"attention kernel '{kernel}' cannot be used: {why}")
    return "xla"


def attend(
    q_BSHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids_BS: jax.Array, *,
    packed: bool, rate: float, key: jax.Array | None, execution: Execution,
) -> jax.Array:  # fmt: skip
    """softmax(q k^T / sqrt(K)) v, fully visible within each example (arXiv 1706.03762 section 3.2.1).

    `segment_ids` is 0 on padding. With `packed` a token sees its own example only; without, all real tokens of the row.
    """
    rate = 0.0 if key is None else rate
    kernel = choose(execution, length=q_BSHK.shape[1], head_dim=q_BSHK.shape[-1], rate=rate)
    if kernel == "cudnn":
        return _cudnn(q_BSHK, k_BSHK, v_BSHK, segment_ids_BS, packed)
    if kernel == "splash":
        return _splash(q_BSHK, k_BSHK, v_BSHK, segment_ids_BS)
    return _xla(q_BSHK, k_BSHK, v_BSHK, segment_ids_BS, packed, rate, key, execution)


def visible(segment_ids: jax.Array, packed: bool) -> jax.Array:
    """Which keys a query sees, [B, 1, Q, S] when packed and [B, 1, 1, S] when not."""
    real = (segment_ids > 0)[:, None, None, :]
    return real & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]) if packed else real


def _xla(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, packed: bool, rate: float,
    key: jax.Array | None, execution: Execution,
) -> jax.Array:  # fmt: skip
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    scores = contract("bhqk,bhsk->bhqs", q, k, execution.platform).astype(jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(visible(segment_ids, packed), scores, MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1)
    probabilities = dropout(probabilities, rate, key, execution, names=("batch", "heads")).astype(q.dtype)
    context = contract("bhqs,bhsk->bhqk", probabilities, v, execution.platform).astype(q.dtype)
    return jnp.moveaxis(context, 1, 2)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, packed: bool) -> jax.Array:
    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        if packed:  # cuDNN takes the mask only in its full shape
            B, S = segment_ids.shape
            mask = jnp.broadcast_to(visible(segment_ids, True), (B, 1, S, S))
            return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        lengths = (segment_ids > 0).sum(-1).astype(jnp.int32)
        return jax.nn.dot_product_attention(
            q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
        )

    mesh = jax.sharding.get_abstract_mesh()
    if len(free_axes(mesh)) == len(mesh.axis_names):  # jax partitions cuDNN's calls, but not inside a shard_map
        return local(q, k, v, segment_ids)
    return _by_shards(local, q, k, v, segment_ids)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Segment ids say it all, packed or not; padding (segment 0) sees padding, so its rows stay finite."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = next(size for size in (512, 384, 256, 128) if q.shape[1] % size == 0)
    blocks = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        heads, length = q.shape[2], q.shape[1]
        mask = splash.MultiHeadMask([splash.FullMask((length, length)) for _ in range(heads)])
        kernel = splash.make_splash_mha(
            mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, residual_checkpoint_name=KEPT
        )
        move = partial(jnp.moveaxis, source=2, destination=1)
        scaled = (move(q) * q.shape[-1] ** -0.5).astype(q.dtype)
        ids = splash.SegmentIds(segment_ids, segment_ids)
        return move(jax.vmap(kernel)(scaled, move(k), move(v), segment_ids=ids))

    return _by_shards(local, q, k, v, segment_ids)


def _by_shards(
    local: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """A kernel on each device's rows and heads: it is no operation that the partitioner can split."""
    mesh = jax.sharding.get_abstract_mesh()
    free = free_axes(mesh)
    if not free:
        return local(q, k, v, segment_ids)
    heads = fitted(mesh, ("batch", None, "heads", None), q.shape)
    rows = fitted(mesh, ("batch", None), segment_ids.shape)
    run = jax.shard_map(
        local, in_specs=(heads, heads, heads, rows), out_specs=heads, axis_names=set(free), check_vma=False
    )
    return run(q, k, v, segment_ids)
