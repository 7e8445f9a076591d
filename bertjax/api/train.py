"""`bertjax.train`: training from Python, on the code path of the command `bertjax train`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.config.loading.load import build, build_saved, load
from bertjax.config.schema.run import Config
from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.api.model import Model

ConfigLike = Config | str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class TrainResult:
    """What `train` has made.

    Attributes:
        config: the configuration that was trained.
        run_dir: the run folder; of a run in gs:// its mirror on this machine (`config.run_place` is the run).
        scores: {stage: {"evaluation/score": value}} of each stage's last checkpoint; {} without evaluations.
    """

    config: Config = field(repr=False)  # of hundreds of lines
    run_dir: Path
    scores: dict[str, dict[str, float]]

    def open(self, **options: Any) -> "Model":
        """Open the last checkpoint of the run, or another one: `options` are those of `bertjax.open`."""
        from bertjax.api import model

        return model.open(self.config.run_place, **options)


def make_config(config: ConfigLike, *overrides: str, **sections: Any) -> Config:
    """The checked configuration of a Config, a YAML file, the name of a shipped configuration or a dictionary.

    `sections` are merged like YAML (`run={"name": "x"}`, `stages={"qa": {"steps": 10}}`, `**{"run.seed": 1}`), then
    `overrides` ("run.name=x") as on the command line. Raises UserError with one line per problem.
    """
    if wrong := [one for one in overrides if not isinstance(one, str)]:
        raise UserError(f"an override is a text such as 'run.seed=1' (got {wrong[0]!r:.60})")
    if isinstance(config, Config):
        if not overrides and not sections:
            return config
        return build_saved(config.model_dump(mode="json"), overrides, where="the configuration", sections=sections)
    if isinstance(config, str | os.PathLike):
        return load(os.fspath(config), overrides, sections)
    if isinstance(config, Mapping):
        return build(dict(config), overrides, where="the configuration", sections=sections)
    raise UserError(f"a configuration is a Config, a path, a name or a dictionary (got {type(config).__name__})")


def train(config: ConfigLike, *overrides: str, callbacks: Sequence[Any] = (), **sections: Any) -> TrainResult:
    """Start a run, or resume it: the same call continues a run that was stopped, and does nothing to a finished one.

    config: a Config, a YAML file, the name of a shipped configuration or a dictionary. `sections` change it as YAML
    does (`run={"name": "x"}`, `stages={"qa": {"steps": 10}}`, `**{"run.seed": 1}`), then `overrides` as on the command
    line ("run.name=x"). callbacks: objects with methods of `bertjax.Callback`, or functions of (step, metrics), which
    the primary process calls besides those of the configuration's plugins.

    Ctrl-C (the stop button of a notebook) saves after the present step and raises StoppedSafely; a second one raises
    KeyboardInterrupt at once. The process is never ended; so the watchdog, which would, is off. Raises UserError,
    DivergedError and StorageError (`bertjax.errors`).
    """
    made = make_config(config, *overrides, **sections)
    if isinstance(callbacks, str) or not isinstance(callbacks, Iterable):
        raise UserError(f"callbacks: give a list of callbacks (got {callbacks!r:.60})")
    from bertjax.evaluation.evaluators.build import build_evaluators
    from bertjax.parallel.host_allocator import cpu_only, keep_freed_memory
    from bertjax.training import loop

    if cpu_only():
        keep_freed_memory()
    base = Path.cwd()
    loop.train(made, base, build_evaluators, [*callbacks], ends_process=False)
    return TrainResult(made, made.run_dir, final_scores(made, base))


def final_scores(config: Config, base: Path) -> dict[str, dict[str, float]]:
    """{stage: scores of its last checkpoint}, on every process."""
    from bertjax.parallel.multihost.primary import run_on_primary
    from bertjax.training.checkpoint.stage_files import run_stages

    def read() -> dict[str, dict[str, float]]:
        readers = {files.stage.name: files.checkpoints for files in run_stages(config, base)}
        steps = {name: reader.committed_steps() for name, reader in readers.items()}
        return {name: readers[name].scores_of(steps[name][-1]) for name in readers if steps[name]}

    return dict(run_on_primary(read))
