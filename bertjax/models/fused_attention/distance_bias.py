"""T5's relative position bias inside the TPU kernels: from values by distance to blocks of scores and back.

Row j of a block, transposed as in transposed.py, is row j - 1 moved by one place. Outside the kernels the values of
each diagonal of blocks are laid out for 8 rows, the sublanes of a TPU register; the other groups of 8 rows are the
same, moved by a multiple of 8. The gradient moves each group back and adds them up.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from bertjax.models.fused_attention.options import LANES, FusedOptions

SUBLANES = 8


def lay_out_diagonals(values: jax.Array, queries: int, keys: int, options: FusedOptions) -> jax.Array:
    """[H, Q + S - 1], index key - query + Q - 1 -> float32 [H, diagonals, 8, block_k + block_q].

    Entry (d, s, x) is the value of the distance between the key and the query block on diagonal d, + block_k + s - x.
    """
    bq, bk, step = options.block_q, options.block_k, options.step
    width = bq + bk
    count = num_diagonals(queries, keys, options)
    # reversed, so that index i is for distance keys + 7 - i; distances of keys and more are of no pair
    reversed_ = jnp.pad(values.astype(jnp.float32), ((0, 0), (0, SUBLANES)))[:, ::-1]
    rows = [reversed_[:, SUBLANES - 1 - s : SUBLANES - 1 - s + queries + keys] for s in range(SUBLANES)]
    together = jnp.stack(rows, axis=1)
    starts = [(count - 1 - number) * step for number in range(count)]
    return jnp.stack([together[:, :, start : start + width] for start in starts], axis=1)


def num_diagonals(queries: int, keys: int, options: FusedOptions) -> int:
    """Number of different distances between a key block and a query block, counted in steps."""
    return (queries - options.block_q + keys - options.block_k) // options.step + 1


def diagonal_index(query_block: jax.Array, key_block: jax.Array, queries: int, options: FusedOptions) -> jax.Array:
    """The diagonal of a block, 0 for the first key block and the last query block."""
    q_steps, k_steps = options.block_q // options.step, options.block_k // options.step
    return key_block * k_steps + (queries // options.block_q - 1 - query_block) * q_steps


def place_block(diagonal: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """A diagonal [8, S + Q] -> the bias of its block, [S, Q]."""
    S, Q = shape
    groups = []
    for first in range(0, S, SUBLANES):
        aligned, moved = _start(first, S)
        if moved:
            part = diagonal[:, aligned : aligned + Q + LANES]
            groups.append(pltpu.roll(part, Q + LANES - moved, axis=1)[:, :Q])
        else:
            groups.append(diagonal[:, aligned : aligned + Q])
    return jnp.concatenate(groups, axis=0)


def add_block(gradient: jax.Array, diagonal_ref: Any) -> None:
    """Add the gradient of a block's bias, [S, Q], to that of its diagonal, a reference [8, S + Q]."""
    S, Q = gradient.shape
    pad = jnp.zeros((SUBLANES, LANES), gradient.dtype)
    sums: dict[int, jax.Array] = {}
    for first in range(0, S, SUBLANES):
        aligned, moved = _start(first, S)
        part = jnp.concatenate([gradient[first : first + SUBLANES], pad], axis=1)
        part = pltpu.roll(part, moved, axis=1) if moved else part
        sums[aligned] = sums[aligned] + part if aligned in sums else part
    for aligned, part in sums.items():
        width = min(Q + LANES, S + Q - aligned)
        diagonal_ref[:, aligned : aligned + width] += part[:, :width]


def _start(first: int, rows: int) -> tuple[int, int]:
    """Where the values of the group of rows from `first` on begin: (a multiple of 128, places after it)."""
    start = rows - first
    aligned = start // LANES * LANES
    return aligned, start - aligned
