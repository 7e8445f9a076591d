"""Muon against torch.optim.Muon and the singular value decomposition, and AdamW scaled by the parameter's RMS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5_models import make_t5, train_t5

from bertjax.config.schema.optimizers import AdamW, Muon
from bertjax.config.schema.run import Stage
from bertjax.models import param_paths
from bertjax.training import freezing, optimizers
from bertjax.training.state import from_tree, to_tree

SHAPES = {
    "layers/0/mlp/intermediate/kernel": (24, 40), "layers/0/mlp/output/kernel": (40, 24), "heads/qa/kernel": (24, 2),
}  # fmt: skip
OTHERS = [
    "embeddings/word/embedding", "heads/pooler/kernel", "heads/mlm/transform/kernel", "layers/0/attention/qkv/bias",
    "layers/0/mlp/norm/scale", "embeddings/project/kernel", "encoder/position/embedding",
    "layers/0/attention/qkv/lora/query/a", "layers/0/mlp/adapter/down/kernel",
    "encoder/layers/1/mlp/adapter/up/kernel",
]  # fmt: skip
MATRICES = [
    "layers/11/attention/qkv/kernel", "decoder/layers/0/cross_attention/key/kernel",
    "layers/0/forward/recurrent_kernel", "heads/generator/layers/2/mlp/output/kernel",
]  # fmt: skip


def random_tree(seed: int, shapes: dict = SHAPES) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {path: jax.random.normal(key, shape) for key, (path, shape) in zip(keys, shapes.items(), strict=True)}


def updates(config: Muon | AdamW, params: dict, grads: list[dict]) -> list[dict]:
    tx, found = optimizers.make_transform(config), []
    state = tx.init(params)
    for one in grads:
        update, state = tx.update(one, state, params)
        found.append(update)
    return found


def test_which_parameters_are_matrices():
    assert [path for path in OTHERS + MATRICES if optimizers.is_matrix(path)] == MATRICES


@pytest.mark.parametrize(("nesterov", "steps"), [(False, 4), (True, 1)])
@pytest.mark.parametrize(("update_rms", "adjust"), [(0.2, "match_rms_adamw"), (None, "original")])
def test_matrices_move_as_in_torch(nesterov, steps, update_rms, adjust):
    """torch iterates in bfloat16. Later Nesterov steps differ: optax's momentum has bias correction."""
    torch = pytest.importorskip("torch")
    params = random_tree(0)
    grads = [random_tree(seed) for seed in range(1, steps + 1)]
    found = updates(Muon(weight_decay=0, nesterov=nesterov, update_rms=update_rms), params, grads)
    for path in SHAPES:
        if not optimizers.is_matrix(path):
            continue
        # torch's matrices are [outputs, inputs]
        weight = torch.nn.Parameter(torch.tensor(np.array(params[path].T)))
        theirs = torch.optim.Muon(
            [weight], lr=1.0, weight_decay=0, momentum=0.95, nesterov=nesterov, adjust_lr_fn=adjust
        )
        for one, update in zip(grads, found, strict=True):
            before = weight.detach().clone()
            weight.grad = torch.tensor(np.array(one[path].T))
            theirs.step()
            expected = (before - weight.detach()).numpy().T
            error = np.linalg.norm(update[path] - expected) / np.linalg.norm(expected)
            assert error < 0.02, path


def test_an_update_is_nearly_orthogonal():
    """U V^T of the gradient: the iteration leaves singular values between 0.68 and 1.14 in the place of 1."""
    params, grads = random_tree(0), random_tree(1)
    update = updates(Muon(weight_decay=0), params, [grads])[0]
    for path in (path for path in SHAPES if optimizers.is_matrix(path)):
        u, _, vt = np.linalg.svd(grads[path], full_matrices=False)
        turned = u.T @ np.array(update[path]) @ vt.T / (0.2 * max(SHAPES[path]) ** 0.5)
        assert np.all((np.diag(turned) > 0.6) & (np.diag(turned) < 1.25))
        np.testing.assert_allclose(turned - np.diag(np.diag(turned)), 0, atol=1e-4)
        assert np.sqrt(np.mean(update[path] ** 2)) == pytest.approx(0.2, rel=0.25)


def test_fused_matrices_are_orthogonalized_one_by_one():
    fused = {"layers/0/attention/qkv/kernel": (24, 3, 16)}
    params, grads = random_tree(0, fused), random_tree(1, fused)
    path = next(iter(fused))
    found = updates(Muon(weight_decay=0), params, [grads])[0][path]
    for part in range(3):
        name = f"layers/0/attention/{part}/kernel"
        alone = updates(Muon(weight_decay=0), {name: params[path][:, part]}, [{name: grads[path][:, part]}])[0][name]
        np.testing.assert_allclose(found[:, part], alone, atol=1e-5)


def test_other_parameters_have_adamw():
    params, grads = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
    options: dict = {"b1": 0.8, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1}
    found = updates(Muon(**options), params, grads)
    for muon, adam in zip(found, updates(AdamW(kind="adamw", **options), params, grads), strict=True):
        np.testing.assert_allclose(muon["heads/qa/kernel"], adam["heads/qa/kernel"], rtol=1e-6)
    plain = updates(Muon(**options | {"weight_decay": 0}), params, grads)
    for path in SHAPES:
        np.testing.assert_allclose(found[0][path] - plain[0][path], 0.1 * params[path], atol=1e-5)


def test_updates_scaled_by_the_parameter():
    """AdamWScale of nanoT5: the step size times max(1e-3, RMS of the parameter)."""
    params = {"a": 3 * random_tree(0)["heads/qa/kernel"], "b": jnp.zeros((8,))}
    grads = [{"a": random_tree(seed)["heads/qa/kernel"], "b": jnp.arange(8.0)} for seed in (1, 2)]
    plain = updates(AdamW(kind="adamw", weight_decay=0), params, grads)
    found = updates(AdamW(kind="adamw", weight_decay=0, multiply_by_parameter_scale=True), params, grads)
    scale = {path: max(1e-3, float(jnp.sqrt(jnp.mean(x**2)))) for path, x in params.items()}
    for one, other in zip(found, plain, strict=True):
        for path in params:
            np.testing.assert_allclose(one[path], other[path] * scale[path], rtol=1e-5)


# ---- in the step ----------------------------------------------------------------------------------------------------

MUON = Muon(learning_rate=1e-3, adam_learning_rate=4e-3, weight_decay=0.01)


def train(steps: int, **options: object) -> tuple:
    program = make_t5(optimizer=MUON, steps=100, **options)
    return *train_t5(program, steps), program


def test_a_mesh_changes_nothing_and_the_state_is_kept():
    losses, state, program = train(6)
    assert program.rate_factors["embeddings/word/embedding"] == 4.0
    assert not any(optimizers.is_matrix(path) for path in program.rate_factors)
    split, sharded, _ = train(6, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_allclose(split, losses, rtol=1e-5)
    for path, x in state.params.items():
        np.testing.assert_allclose(sharded.params[path], x, atol=2e-4, err_msg=path)
    path = "encoder/layers/0/mlp/intermediate/kernel"
    moments = next(
        x for name, x in param_paths.flatten(sharded.opt_state).items() if name.endswith(path) and "mu" in name
    )
    assert moments.sharding.spec == sharded.params[path].sharding.spec

    again = from_tree(jax.device_get(to_tree(state)), state)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again.opt_state), jax.tree.leaves(state.opt_state))


def test_a_pattern_overrides_the_rate_of_adamw():
    stage = Stage(name="a", data="b", steps=10, optimizer={
        "kind": "muon", "learning_rate": 1e-3, "adam_learning_rate": 5e-4, "learning_rates": {"embeddings": 2e-3},
    })  # fmt: skip
    program = make_t5(optimizer=stage.optimizer, steps=10)
    factors = program.rate_factors
    assert (factors["embeddings/word/embedding"], factors["encoder/norm/scale"]) == (2.0, 0.5)
    groups = freezing.param_groups(program.abstract_params())
    assert program.named_rates(groups) == {"embeddings": 2.0, "adam_learning_rate": 0.5}
