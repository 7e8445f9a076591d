"""Find silent data corruption: copies of the training state that differ, and steps that give other bits when repeated.

Hardware can return a wrong number without an error. Copies on several devices hold equal bits as long as each device
computes and communicates correctly, and a step is deterministic, so it can be repeated and compared.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.config.schema.run import RunConfig
from bertjax.errors import CorruptionError
from bertjax.models import param_paths
from bertjax.training.checkpoint.checksums import compute_digests, find_differing_replicas
from bertjax.training.state import TrainState, to_tree

ADVICE = "run the same command again, which continues from the last checkpoint; if it happens again, replace the device"
StepFn = Callable[[TrainState, Any], tuple[TrainState, Any]]


class CorruptionCheck:
    """The checks of a stage that `run.check_replicas_every` and `run.repeat_step_every` ask for; both collective."""

    def __init__(self, run: RunConfig, stage: str) -> None:
        self.stage = stage
        self.replicas_every, self.repeat_every = run.check_replicas_every, run.repeat_step_every

    def run_step(self, step: int, train_step: StepFn, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        """Run a step, twice if that is due, and compare copies if that is due. Raises CorruptionError."""
        if self.repeat_every is None or step % self.repeat_every:
            state, metrics = train_step(state, batch)
        else:
            state, metrics = self._run_twice(step, train_step, state, batch)
        if self.replicas_every is not None and step % self.replicas_every == 0:
            self.check_replicas(step, state)
        return state, metrics

    def before_save(self, step: int, state: TrainState) -> None:
        """Compare the copies before one of them is saved, if they are compared at all. Raises CorruptionError."""
        if self.replicas_every is not None and step % self.replicas_every:
            self.check_replicas(step, state)

    def check_replicas(self, step: int, state: TrainState) -> None:
        """Raise CorruptionError naming the array and the devices if copies of the training state differ."""
        differing = find_differing_replicas(_leaves(state))
        if differing:
            path, devices = differing[0]
            more = f" (and {len(differing) - 1} more arrays)" if len(differing) > 1 else ""
            where = f"device{'s' * (len(devices) > 1)} {', '.join(map(str, devices))}"
            raise CorruptionError(
                f"stage '{self.stage}' step {step}: {path}{more} differs on {where} from its copies; {ADVICE}"
            )

    def _run_twice(self, step: int, train_step: StepFn, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        copy = jax.tree.map(jnp.copy, state)  # the step donates its state
        first = compute_digests(_leaves(train_step(copy, batch)[0]))
        state, metrics = train_step(state, batch)
        second = compute_digests(_leaves(state))
        if changed := [path for path in first if first[path] != second[path]]:
            raise CorruptionError(
                f"stage '{self.stage}' step {step}: {len(changed)} arrays got other bits when the step was repeated, "
                f"the first is {changed[0]}; {ADVICE}"
            )
        return state, metrics


def _leaves(state: TrainState) -> Mapping[str, jax.Array]:
    return param_paths.flatten(to_tree(state))
