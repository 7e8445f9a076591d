"""Callbacks: the user's code that a run calls between its steps, on the primary process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema.run import Config
from bertjax.errors import BertjaxError, UserError, brief, error_line

EVENTS = (
    "on_train_begin", "on_stage_begin", "on_step_end", "on_evaluate", "on_save", "on_stage_end", "on_train_end",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingRun:
    """The run that a callback watches.

    Attributes:
        config: the configuration.
        run_dir: the run folder.
        stop: ask the run to stop: it saves after the present step and ends like after Ctrl-C (StoppedSafely); the same
            command continues it.
    """

    config: Config
    run_dir: Path
    stop: Callable[[], None]


class StepMetrics(Mapping[str, float]):
    """The metrics of a step. Reading one waits until the device has finished the step; ignoring them costs nothing."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = {name: array for name, array in arrays.items() if not array.ndim}

    def __getitem__(self, name: str) -> float:
        return float(self._arrays[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return repr(dict(self))


class Callback:
    """Base class of callbacks; override what you need. Any object with some of these methods is a callback too.

    Callbacks run on the primary process, in the main thread, between two steps: what they take, training waits. An
    exception ends the run with a line that names the callback; with one process the step is saved first, with several
    the exit code is 70.
    """

    def on_train_begin(self, run: TrainingRun) -> None:
        """Called when the run has been checked and its folder exists."""

    def on_stage_begin(self, stage: str, step: int, steps: int) -> None:
        """Called when a stage starts or resumes at `step` of `steps`."""

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each step (from 1 in each stage) with its loss, grad_norm, learning_rate and other metrics."""

    def on_evaluate(self, name: str, scores: Mapping[str, float]) -> None:
        """Called after each evaluation with its name and scores."""

    def on_save(self, step: int, path: Path) -> None:
        """Called when a checkpoint has been started; it is complete on disk a little later."""

    def on_stage_end(self, stage: str, scores: Mapping[str, float]) -> None:
        """Called when a stage has ended, with its last scores as `evaluation/score`."""

    def on_train_end(self) -> None:
        """Called once when the run ends, also by an error or a stop."""


class Callbacks:
    """The callbacks of a run; processes other than the primary have none.

    given: objects, classes (instantiated without arguments) or functions of (step, metrics). Raises UserError for
    anything else.
    """

    def __init__(self, given: Sequence[Any] = ()) -> None:
        self.callbacks = [_make(each) for each in given]

    def call(self, event: str, *arguments: Any) -> None:
        """Call the method `event` of each callback. Raises UserError that names the one that fails."""
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is None:
                continue
            try:
                method(*arguments)
            except Exception as error:
                failed = _failed(callback, event, error)
                if failed is error:
                    raise
                raise failed from error

    def step_end(self, step: int, metrics: Mapping[str, Any]) -> None:
        if self.callbacks:
            self.call("on_step_end", step, StepMetrics(metrics))


def _failed(callback: Any, event: str, error: Exception) -> Exception:
    """The error that ends the run and names the callback; a BertjaxError that it raises itself stays as it is."""
    if jax.process_count() > 1:  # the others do not know: not a BertjaxError, which would wait for them
        kind: type[Exception] = RuntimeError
    elif isinstance(error, BertjaxError):
        return error
    else:
        kind = UserError
    name = f"{type(callback).__name__}.{event}"
    if isinstance(callback, _OnStep):
        name = getattr(callback.function, "__name__", repr(callback.function))
    return kind(f"callback '{name}' ({error_line(error)}) failed: {brief(error, 200)}")


class _OnStep:
    """A function of (step, metrics) as a callback."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], Any]) -> None:
        self.function = function

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self.function(step, metrics)


def _make(given: Any) -> Any:
    if isinstance(given, type):
        try:
            given = given()
        except Exception as error:
            raise UserError(
                f"callback '{given.__name__}' ({error_line(error)}) cannot be made without arguments: "
                f"{brief(error, 200)}"
            ) from error
    if any(callable(getattr(given, event, None)) for event in EVENTS):
        return given
    if callable(given):
        return _OnStep(given)
    raise UserError(
        f"callbacks: {repr(given)[:60]} is no callback; give an object with methods such as "
        "on_step_end(step, metrics), or a function of (step, metrics)"
    )
