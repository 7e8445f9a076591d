"""Trees for the tests of checkpoints: made from a seed, compared bit for bit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.models import param_paths
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader

META = {"stage": 1, "config": {"run": {"name": "x"}}, "tokenizer_json": "é" * 50}


def mesh_of(data: int, fsdp: int) -> jax.sharding.Mesh:
    devices = np.asarray(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def make_tree(seed: int, mesh: jax.sharding.Mesh | None = None) -> dict:
    """Parameters, slots, a counter and a key, all from `seed`; placed by fsdp where a dimension allows it."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((16, 24)).astype(np.float32)
    tree = {
        "params": {
            "layers": {"0": {"kernel": kernel}, "1": {"kernel": kernel[::-1].copy()}},
            "bias": rng.standard_normal(24).astype(np.float32),
            "half": jnp.asarray(rng.standard_normal((8, 8)), jnp.bfloat16),
        },
        "opt": {"top": {"mu.kernel": rng.standard_normal((16, 24)).astype(np.float32), "count": np.int32(seed)}},
        "step": np.int32(seed),
        "key": jax.random.key(seed),
    }
    mesh = mesh or mesh_of(4, 2)
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("fsdp") if x.ndim == 2 else P())), tree)


def abstract_of(tree: dict, mesh: jax.sharding.Mesh | None = None) -> dict:
    def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
        where = x.sharding if mesh is None else NamedSharding(mesh, P(None, "data") if x.ndim == 2 else P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(shape, tree)


def assert_same(found: dict, expected: dict) -> None:
    """Equal structure, dtype and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(param_paths.flatten(found).items(), param_paths.flatten(expected).values(), strict=True):
        assert a.dtype == b.dtype, path
        plain = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b)]
        assert np.asarray(plain[0]).tobytes() == np.asarray(plain[1]).tobytes(), path


def save_steps(folder: Path, *steps: int, policy: CheckpointPolicy | None = None, **kwargs: object) -> None:
    with CheckpointManager(folder, policy or CheckpointPolicy(), **kwargs) as ck:
        for step in steps:
            ck.save(step, make_tree(step), {**META, "step": step})


def reader(folder: Path) -> CheckpointReader:
    return CheckpointReader(folder)
