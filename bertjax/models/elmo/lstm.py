"""An LSTM over rows of several examples, with the gradients of its weights as one product over all steps.

B rows, S positions, H cells, P width of the outputs (H without a projection), 4 gates in the order of torch.nn.LSTM:
input, forget, cell, output.
"""

import jax
import jax.numpy as jnp
from jax import lax

Weights = tuple[jax.Array, jax.Array | None]  # recurrent [P, 4, H], projection [H, P] or None


def run_lstm(x: jax.Array, starts: jax.Array, recurrent: jax.Array, projection: jax.Array | None) -> jax.Array:
    """Products of the inputs and biases x [B, S, 4, H] -> outputs, float32 [B, S, P].

    `starts` bool [B, S]: where the state, zero at first, begins again. The recurrence is
    c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c) @ projection (arXiv 1402.1128 without peepholes).
    """
    keep = jnp.where(starts, 0.0, 1.0).astype(jnp.float32)
    y = _lstm(jnp.moveaxis(x, 1, 0), keep.T[..., None], recurrent, projection)
    return jnp.moveaxis(y, 0, 1)


@jax.custom_vjp
def _lstm(x: jax.Array, keep: jax.Array, recurrent: jax.Array, projection: jax.Array | None) -> jax.Array:
    """x [S, B, 4, H], keep float32 [S, B, 1], 0 where the state begins again -> float32 [S, B, P]."""
    return _forward(x, keep, recurrent, projection)[0]


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a.astype(b.dtype), b, preferred_element_type=jnp.float32)


def _forward(x: jax.Array, keep: jax.Array, recurrent: jax.Array, projection: jax.Array | None) -> tuple:
    def step(state: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]) -> tuple:
        h, c = state[0] * now[1], state[1] * now[1]
        z = now[0].astype(jnp.float32) + _product("bp,pgh->bgh", h, recurrent)
        i, f, g, o = jax.nn.sigmoid(z[:, 0]), jax.nn.sigmoid(z[:, 1]), jnp.tanh(z[:, 2]), jax.nn.sigmoid(z[:, 3])
        c = f * c + i * g
        h = o * jnp.tanh(c)
        h = h if projection is None else _product("bh,hp->bp", h, projection)
        return (h, c), (h, c, jnp.stack([i, f, g, o], axis=1).astype(x.dtype))

    rows, cells = x.shape[1], x.shape[3]
    zeros = jnp.zeros((rows, recurrent.shape[0]), jnp.float32), jnp.zeros((rows, cells), jnp.float32)
    kept: tuple[jax.Array, jax.Array, jax.Array] = lax.scan(step, zeros, (x, keep))[1]
    y, c, gates = kept
    return y, (y, c, gates, keep, recurrent, projection)


def _backward(saved: tuple, dy: jax.Array) -> tuple:
    y, c, gates, keep, recurrent, projection = saved
    before = lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]) * keep  # noqa: E731

    def step(state: tuple[jax.Array, jax.Array], now: tuple) -> tuple:
        (dy, c, c_before, gates, keep), (dh, dc) = now, state
        dh = dh + dy
        i, f, g, o = (gates[:, n].astype(jnp.float32) for n in range(4))
        dm = dh if projection is None else _product("bp,hp->bh", dh, projection)
        t = jnp.tanh(c)
        dc = dc + dm * o * (1 - t * t)
        parts = dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dm * t * o * (1 - o)
        dz = jnp.stack(parts, axis=1)
        return (keep * _product("bgh,pgh->bp", dz, recurrent), keep * dc * f), (dz.astype(gates.dtype), dh)

    zeros = jnp.zeros(y.shape[1:], jnp.float32), jnp.zeros(c.shape[1:], jnp.float32)
    inner: tuple[jax.Array, jax.Array] = lax.scan(step, zeros, (dy, c, before(c), gates, keep), reverse=True)[1]
    dz, dh = inner
    d_recurrent = _product("sbp,sbgh->pgh", before(y), dz).astype(recurrent.dtype)
    d_projection = None
    if projection is not None:
        m = gates[:, :, 3].astype(jnp.float32) * jnp.tanh(c)
        d_projection = _product("sbh,sbp->hp", m, dh.astype(projection.dtype)).astype(projection.dtype)
    return dz, None, d_recurrent, d_projection


_lstm.defvjp(_forward, _backward)
