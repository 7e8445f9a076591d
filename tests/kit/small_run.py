"""A stand-in for `bertjax.training.loop.train` that starts, saves, restores and ends as it does, without a model.

Its program compiles in a second: for tests of what a lost process does in each of these places.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.run import Config
from bertjax.parallel.multihost import initialize
from bertjax.parallel.multihost.exit_together import exit_together
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.monitor import preemption, run_log


def without_model(train: Callable[..., None]) -> Callable[..., None]:
    """The stand-in, with the arguments of `train`."""

    def run(config: Config, base: Path, *_: Any) -> None:
        stop = preemption.PreemptionHandler()
        with run_log.report_run(), preemption.set_current(stop), stop.handle_signals(), exit_together():
            with stop.may_exit("starting"):
                initialize.initialize_distributed()
                stop.after_distributed_init()
            mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
            initialize.warm_up_collectives(mesh)
            _steps(config, mesh)

    return run


def _steps(config: Config, mesh: Mesh) -> None:
    sharding = NamedSharding(mesh, P("data"))
    like = {"x": jax.ShapeDtypeStruct((8 * mesh.size,), jnp.float32, sharding=sharding)}

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x + x.sum() / x.size, sharding)

    with CheckpointManager(config.run_dir / "checkpoints" / "00-pretrain", config.run.checkpoint) as checkpoints:
        if checkpoints.committed_steps():
            start, tree, _ = checkpoints.restore(like)
            x = tree["x"]
        else:
            start, x = 0, jax.jit(lambda: jnp.ones(like["x"].shape), out_shardings=sharding)()
        for number in range(start + 1, config.stages[0].steps + 1):
            x = one_step(step, x)
            if number % config.run.checkpoint.save_every == 0:
                checkpoints.save(number, {"x": x}, {"step": number})
        checkpoints.wait()


def one_step(step: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A function to arrange faults at."""
    return jax.block_until_ready(step(x))
