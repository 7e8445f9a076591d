"""A stand-in for `bertjax.training.loop.train` that starts, saves, restores and ends as it does, without a model.

Its program compiles in a second: for tests of what a lost process does in each of these places.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.run import Config
from bertjax.errors import StoppedSafely
from bertjax.parallel.multihost import initialize, primary
from bertjax.parallel.multihost.exit_together import exit_together
from bertjax.storage.atomic import write_text_atomic
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
            _steps(config, mesh, stop)

    return run


def _steps(config: Config, mesh: Mesh, stop: preemption.PreemptionHandler) -> None:
    sharding = NamedSharding(mesh, P("data"))
    like = {"x": jax.ShapeDtypeStruct((8 * mesh.size,), jnp.float32, sharding=sharding)}

    @jax.jit
    def step(x: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.sin(1.3 * x + number)  # every bit of every step before shows
        return jax.lax.with_sharding_constraint(x + x.sum() / x.size, sharding), jnp.square(x).sum()

    with CheckpointManager(config.run_dir / "checkpoints" / "00-pretrain", config.run.checkpoint) as checkpoints:
        if checkpoints.committed_steps():
            start, tree, _ = checkpoints.restore(like)
            x = tree["x"]
        else:
            start, x = 0, jax.jit(lambda: jnp.ones(like["x"].shape), out_shardings=sharding)()
        log = Log(config.run_dir / "metrics.jsonl", start)
        for number in range(start + 1, config.stages[0].steps + 1):
            x, loss = one_step(step, x, number)
            log.add(number, float(loss))
            stopping = stop.poll() and number < config.stages[0].steps
            if stopping or number % config.run.checkpoint.save_every == 0:
                checkpoints.save(number, {"x": x}, {"step": number})
            if stopping:
                checkpoints.wait()
                raise StoppedSafely(f"stopped at step {number}, saved; run the same command again")
        checkpoints.wait()


def one_step(step: Callable[..., tuple[jax.Array, jax.Array]], x: jax.Array, number: int) -> Any:
    """A function to arrange faults at."""
    return jax.block_until_ready(step(x, np.float32(number)))


class Log:
    """The record of the primary process, as a run has it: without the steps after the one that it continues from."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path if primary.is_primary() else None
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
        if self.path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, loss: float) -> None:
        if self.path:
            with open(self.path, "a") as out:
                out.write(json.dumps({"kind": "train", "step": step, "loss": loss}) + "\n")
