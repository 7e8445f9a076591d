"""Layers with shared parameters (ALBERT): segments, gradients, freezing, rates and FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.model import AlbertConfig, BertConfig
from bertjax.config.schema.training import Trainable
from bertjax.errors import UserError
from bertjax.models import registry
from bertjax.models.bert import flops
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.peft_options import PeftOptions
from bertjax.training import freezing, rates

SIZES = {"vocab_size": 31, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 12, "hidden_act": "gelu_new"}  # fmt: skip
ALBERT = AlbertConfig(**SIZES, num_hidden_layers=5, num_hidden_groups=2, embedding_size=8, hidden_dropout_prob=0.1)
GROUPS = ("embeddings", "layers/0", "layers/1", "heads")


def shared_params(config: AlbertConfig = ALBERT) -> dict[str, jax.Array]:
    return registry.init_params(config, ("mlm",), 2, jax.random.key(0))


def gradients(params: dict[str, jax.Array], **compute) -> tuple[jax.Array, dict[str, jax.Array]]:
    ids = jnp.arange(24).reshape(2, 12) % 31
    places = jnp.broadcast_to(jnp.arange(12), (2, 12))

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        model = registry.build_model(ALBERT, ("mlm",), params, compute=ComputeOptions(**compute))
        hidden = model.encode(ids, 0 * ids, jnp.ones_like(ids), places, key=jax.random.key(1))
        return (hidden * jnp.arange(16)).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def unrolled() -> tuple[jax.Array, dict[str, jax.Array]]:
    return gradients(shared_params())


@pytest.mark.parametrize(("segments", "remat"), [((5,), "none"), ((1, 4), "dots")])
def test_a_scan_computes_the_same_with_the_same_dropout(unrolled, segments, remat):
    (expected, wanted), (value, found) = unrolled, gradients(shared_params(), segments=segments, remat=remat)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path, gradient in wanted.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-3, atol=1e-3, err_msg=path)


def test_a_scan_over_one_group_holds_one_copy_of_it():
    """No array of the size of all layers' kernels is made."""
    one = ALBERT.model_copy(update={"num_hidden_groups": 1})
    params, ids = shared_params(one), jnp.ones((2, 12), jnp.int32)

    def encode(params: dict[str, jax.Array]) -> jax.Array:
        model = registry.build_model(one, ("mlm",), params, compute=ComputeOptions(segments=(5,)))
        return model.encode(ids, 0 * ids, ids, 0 * ids)

    text = str(jax.make_jaxpr(encode)(params))
    assert "scan[" in text and "5,16,24" not in text
    assert max(freezing.stack_depths(freezing.param_groups(params)).values()) == 1


def test_layers_are_assigned_as_in_transformers():
    order = lambda layers, groups: AlbertConfig(num_hidden_layers=layers, num_hidden_groups=groups).layer_order  # noqa: E731
    assert order(12, 1) == (0,) * 12
    assert order(12, 3) == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
    assert order(5, 2) == (0, 0, 0, 1, 1)
    for layers in range(1, 30):
        for groups in range(1, layers + 1):
            assert order(layers, groups) == tuple(int(i / (layers / groups)) for i in range(layers))
            assert set(order(layers, groups)) == set(range(groups))
    with pytest.raises(ValueError, match="at most num_hidden_layers"):
        order(2, 3)


def test_groups_are_the_units_of_unfreezing_and_of_layer_decay():
    params = shared_params()
    assert freezing.param_groups(params) == GROUPS
    first, second = freezing.episodes(Trainable(kind="gradual"), GROUPS, 10)
    assert (first.groups, second.groups) == (("layers/1", "heads"), GROUPS)
    with pytest.raises(UserError, match="3 is more than the 2 layers") as error:
        freezing.episodes(Trainable(kind="gradual", episodes=3), GROUPS, 10)
    assert "\n" not in str(error.value)
    assert rates.depth_factors(params, 0.5) == {"layers/1": 0.5, "layers/0": 0.25, "embeddings": 0.125}


@pytest.mark.parametrize("inner", [1, 2])
def test_flops_are_those_of_all_layers(inner):
    albert = ALBERT.model_copy(update={"inner_group_num": inner, "embedding_size": 16})
    bert = BertConfig(**SIZES, num_hidden_layers=5 * inner)
    widths, project = {"input_ids": 12}, 2 * 16 * 16 * 12
    every = tuple(f"layers/{i}" for i in range(5 * inner))
    none = PeftOptions()
    row = flops.row_flops(bert, widths, (), ("embeddings", *every), none)
    assert flops.row_flops(albert, widths, (), ("embeddings", "layers/0", "layers/1"), none) == row + 3 * project
    top = flops.row_flops(bert, widths, (), every[3 * inner :], none)  # the second group is the upper two layers
    assert flops.row_flops(albert, widths, (), ("layers/1", "heads"), none) == top + project
    assert flops.row_flops(albert, widths, (), ("heads",), none) == flops.encoder_flops(bert, 12) + project
    narrow = albert.model_copy(update={"embedding_size": 8})
    assert flops.head_flops(narrow, 3) == 3 * (2 * 16 * 8 + 2 * 8 * 31)
