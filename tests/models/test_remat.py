"""run.remat: `full` repeats the forward pass, `dots` keeps the matrix products and repeats only what is cheap."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bertjax.config.schema.model import BertConfig
from bertjax.models import registry
from bertjax.models.compute_options import ComputeOptions

MODEL = BertConfig(
    vocab_size=64, hidden_size=64, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@pytest.mark.parametrize("segments", [(4,), pytest.param((), marks=pytest.mark.slow)])
def test_dots_repeats_no_projection(segments: tuple[int, ...]) -> None:
    params = registry.init_params(MODEL, (), 2, jax.random.key(0))
    ids = jnp.ones((4, 64), jnp.int32)

    def dots(remat: str) -> tuple[int, dict[str, jax.Array]]:
        compute = ComputeOptions(segments=segments, remat=remat)

        def loss(params: dict[str, jax.Array]) -> jax.Array:
            model = registry.build_model(MODEL, (), params, compute=compute)
            return (model.encode(ids, 0 * ids, ids, 0 * ids) ** 2).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
        return projections(jaxpr.jaxpr), jax.grad(loss)(params)

    (none, expected), (kept, found), (full, _) = dots("none"), dots("dots"), dots("full")
    assert none == kept < full
    for path, gradient in expected.items():
        assert jnp.allclose(gradient, found[path], rtol=1e-4, atol=1e-6), path


def projections(jaxpr: Any) -> int:
    """Matrix products with a weight, which have no batch axes; those of attention do."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            count += not equation.params["dimension_numbers"][1][0]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            count += projections(inner) if hasattr(inner, "eqns") else 0
    return count
