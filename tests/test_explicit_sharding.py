"""Every shipped configuration is traced with the mesh axes of type Explicit, where JAX checks shardings like types.

Runs use axes of type Auto: the partitioner chooses where the program says nothing. Under Explicit it chooses nothing,
so each operation whose result could be placed in several ways is an error. Three rules say what is left open under
Auto, and `with_logical_constraint` reshards instead of asserting: look-ups are placed like their ids, contractions keep
the axes of their operands, and biases follow what they are added to. All else has to agree by itself.

Models are cut to two layers and nothing is compiled. The mesh is the configuration's own, over eight CPU devices.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT / "configs").as_posix() for path in ROOT.glob("configs/**/*.yaml"))
TRACE = """
import json, sys, tempfile
from pathlib import Path
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from bertjax.models.bert import heads
from bertjax.models.layers import modules
from bertjax.parallel import mesh
from bertjax.plan.compile import build_stage_program
from test_configs import resolved

class ExplicitAxes:
    Auto = Explicit = AxisType.Explicit

take, einsum, add_bias = jnp.take, jnp.einsum, modules.add_bias
spec_of = lambda x: jax.typeof(x).sharding.spec
is_explicit = lambda: AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types

def placed_take(table, ids, axis=0, **options):
    if axis or not is_explicit():
        return take(table, ids, axis=axis, **options)
    return table.at[ids].get(out_sharding=P(*spec_of(jnp.asarray(ids)), *(None,) * (table.ndim - 1)))

def placed_einsum(text, *operands, **options):
    if len(operands) == 2 and is_explicit():
        inputs, output = text.split("->")
        axes, used, spec = {}, set(), []
        for letters, operand in zip(inputs.split(","), operands):
            for letter, axis in zip(letters, spec_of(operand)):
                axes[letter] = axes.get(letter) or axis
        for letter in output:
            names = set(jax.tree.leaves((axes[letter],)))
            spec.append(None if names & used else axes[letter])
            used |= names
        options["out_sharding"] = P(*spec)
    return einsum(text, *operands, **options)

def placed_add_bias(y, bias):
    if is_explicit():
        bias = jax.sharding.reshard(bias, P(*spec_of(y)[y.ndim - bias.ndim:]))
    return add_bias(y, bias)

jnp.take, jnp.einsum, modules.add_bias, heads.add_bias = placed_take, placed_einsum, placed_add_bias, placed_add_bias
mesh.AxisType = ExplicitAxes
for name in sys.argv[1:]:
    config = resolved(name, Path(tempfile.mkdtemp()))
    depths = [key for key in ("num_hidden_layers", "num_layers", "num_decoder_layers") if hasattr(config.model, key)]
    depths = [key for key in depths if key in type(config.model).model_fields]
    if not any(stage.trainable.kind == "gradual" for stage in config.stages):
        config = config.model_copy(update={"model": config.model.model_copy(update=dict.fromkeys(depths, 2))})
    for stage in config.stages:
        try:
            program = build_stage_program(config, stage, jax.devices())
            assert set(program.program.mesh.axis_types) == {AxisType.Explicit}
            program.lower()
            error = ""
        except Exception as found:
            error = f"{type(found).__name__}: {found}"[:500]
        print(json.dumps([name, stage.name, error]), flush=True)
"""


@pytest.fixture(scope="module")
def traced() -> dict[str, dict[str, str]]:
    """{configuration: {stage: error}}, by two processes."""
    flags = "--xla_force_host_platform_device_count=8"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    command = [sys.executable, "-c", TRACE]
    parts = [subprocess.Popen([*command, *CONFIGS[i::2]], stdout=subprocess.PIPE, text=True, env=env) for i in (0, 1)]
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        for line in part.communicate()[0].splitlines():
            name, stage, error = json.loads(line)
            found.setdefault(name, {})[stage] = error
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_shardings_agree(traced, name):
    assert traced[name] and not any(traced[name].values()), traced[name]
