"""TPU's splash attention, run by Pallas's interpreter, against the XLA path: same outputs, same gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from bertjax.models.attention import dot_product_attention, select_kernel
from bertjax.models.compute_options import ComputeOptions

SPLASH, XLA = ComputeOptions(platform="tpu", attention="splash"), ComputeOptions(platform="cpu", attention="xla")


@pytest.mark.parametrize("packed", [True, False])
def test_splash_equals_xla(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splash, "make_splash_mha", partial(splash.make_splash_mha, interpret=True))
    rng = np.random.default_rng(0)
    q, k, v, weight = (jnp.asarray(rng.normal(size=(2, 256, 2, 64)), jnp.float32) for _ in range(4))
    segments = np.zeros((2, 256), np.int32)
    segments[0, :230] = 1  # the rest is padding
    segments[1] = 1
    if packed:
        segments[0, 100:230] = 2
        segments[1, 60:] = 2
    ids = jnp.asarray(segments)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, compute: ComputeOptions) -> jax.Array:
        out = dot_product_attention(q, k, v, ids, packed=packed, rate=0.1, key=None, compute=compute)
        return jnp.where((ids > 0)[..., None, None], out * weight, 0).sum()

    found, expected = (
        jax.jit(jax.value_and_grad(partial(loss, compute=compute), argnums=(0, 1, 2)))(q, k, v)
        for compute in (SPLASH, XLA)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_auto_takes_it_when_it_can() -> None:
    auto = ComputeOptions(platform="tpu")
    assert select_kernel(auto, length=512, head_dim=64, rate=0.0) == "splash"
    assert select_kernel(auto, length=512, head_dim=64, rate=0.1) == "fused"
    assert select_kernel(auto, length=320, head_dim=64, rate=0.0) == "fused"
    with pytest.raises(ValueError, match="multiples of 128"):
        select_kernel(ComputeOptions(platform="tpu", attention="splash"), length=320, head_dim=64, rate=0.0)
