"""Restore a checkpoint, or a pretrained model, onto this machine's devices from its own files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bertjax.config.loading.earlier_versions import upgrade_config
from bertjax.config.loading.load import build_saved
from bertjax.config.loading.pretrained import locate_model
from bertjax.config.schema.run import Config
from bertjax.data.tokenizers import load
from bertjax.errors import UserError
from bertjax.evaluation import hf_model
from bertjax.parallel.mesh import make_mesh
from bertjax.storage import pretrained, remote
from bertjax.storage.pretrained import Pretrained
from bertjax.training.checkpoint import adapters, fits
from bertjax.training.checkpoint.locate import CheckpointRef, find, find_remote, results_folder
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.program import TrainProgram, stage_program
from bertjax.training.run_context import RunContext, is_multi_label
from bertjax.training.state import Params
from bertjax.training.untrained_heads import all_heads


@dataclass(frozen=True)
class RestoredCheckpoint:
    ctx: RunContext
    stage: int
    step: int
    program: TrainProgram
    params: Params
    labels: list[str] | None = None  # names of the classes by id, where the training data had names
    unanswerable: int | None = None  # questions without an answer in the training data, where that is known
    hugging_face: dict[str, Any] | None = None  # of imported weights: what the folder's two JSON files say
    saved_config: Config | None = None  # the configuration without overrides
    is_last: bool = True  # whether it is the last step of its stage
    in_run: bool = True  # whether ctx.config.run_dir is the run that the checkpoint belongs to
    untrained_heads: tuple[str, ...] = ()  # heads that the stage has not trained
    where: str = "the checkpoint"  # its path, for error messages
    folder: Path | None = None  # of the step, or the Hugging Face folder; None for a copy of a model from elsewhere
    fitted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by its evaluations: see checkpoint/fits
    better: str | None = None  # a line about an earlier step with a better score, where the last one was taken


def restore(
    path: str | Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    best: str | None = None,
    overrides: Sequence[str] = (),
    base_model: str | Path | None = None,
    devices: Sequence[Any] | None = None,
) -> RestoredCheckpoint:
    """Read parameters trained on any mesh onto this machine's devices (default: all of jax's), or onto `devices`.

    `path`: a run, a stage's checkpoints, a step, a Hugging Face folder, one of these in an object store (gs://...), or
    a model on the Hub (`org/name`, `org/name@revision`), which is fetched once. A Hugging Face model is restored with
    its own tokenizer, as `bertjax import` converts it: one stage, `import`, at step 0.

    Instead of a step, `best` names a score (squad/f1) whose best step is taken. `base_model`: where the weights below
    adapters are, if they moved. Raises UserError when `path` holds no checkpoint, or none with that score.
    """
    place = locate_model(path, step=remote_step(path, stage, step, best))
    with pretrained.name_in_errors(place):
        if (place.path / "config.json").is_file():
            _check_no_steps(place, stage, step, best, base_model)
            return _restore_hugging_face(place, overrides, devices)
        found = _restore_checkpoint(place.path, stage, step, best, overrides, base_model, devices)
        return found if place.is_local else replace(found, folder=None)


def remote_step(
    path: str | Path, stage: str | None = None, step: int | None = None, best: str | None = None
) -> str | None:
    """The step of a run in an object store that is to be copied here; None: the newest, or `path` is no such run."""
    if not remote.is_remote(path):
        return None
    with_best = None if best is None else lambda folder: best_step(CheckpointReader(folder), best)
    return find_remote(str(path), stage=stage, step=step, best_step=with_best)


def _restore_checkpoint(
    path: Path, stage: str | None, step: int | None, best: str | None, overrides: Sequence[str],
    base_model: str | Path | None, devices: Sequence[Any] | None,
) -> RestoredCheckpoint:  # fmt: skip
    found = find(path, stage=stage, step=step)
    checkpoints = CheckpointReader(found)
    if best is not None:
        found = replace(found, step=best_step(checkpoints, best))
        checkpoints.ref = found
    meta = checkpoints.meta()
    here = dict(meta["config"], mesh={})
    if isinstance(here.get("run"), dict):  # else `build_saved` refuses it
        here["run"] = here["run"] | {"attention": "auto", "segments": "auto"}
    where = str(found.path)
    config, in_run = _with_run_dir(build_saved(here, overrides, where=where), meta, found)
    saved_config = _with_run_dir(build_saved(here, where=where), meta, found)[0] if overrides else config
    tokenizer = load.from_json(meta["tokenizer_json"], where)
    ctx = RunContext(config, Path.cwd(), make_mesh(config.mesh, devices), tokenizer)
    heads, classes = all_heads(meta), meta["num_labels"]
    program = stage_program(
        config, config.stages[meta["stage"]], ctx.mesh, 1, heads=heads, num_labels=classes,
        multi_label=is_multi_label(meta),
    )  # fmt: skip
    named = None if base_model is None else remote.as_path(base_model)  # or the name of a model on the Hub
    restored_step, params = adapters.restore_params(checkpoints, ctx, named=named, program=program)
    return RestoredCheckpoint(
        ctx,
        meta["stage"],
        restored_step,
        program,
        params,
        labels=meta.get("labels"),
        unanswerable=meta.get("unanswerable"),
        hugging_face=meta.get("hugging_face"),
        saved_config=saved_config,
        is_last=meta.get("steps") in (None, restored_step),
        in_run=in_run,
        untrained_heads=tuple(meta.get("carried", ())),
        where=where,
        folder=checkpoints.step_path(restored_step),
        fitted=fits.read_fits(checkpoints.step_path(restored_step), restored_step),
        better=better_step(checkpoints, config, meta["stage"], restored_step) if found.step is None else None,
    )


def _check_no_steps(
    place: Pretrained, stage: str | None, step: int | None, best: str | None, base_model: str | Path | None
) -> None:
    """Raise UserError where something is asked of a Hugging Face model that only runs have."""
    asked = {"stage": None if stage == hf_model.STAGE else stage, "step": step, "best": best, "base": base_model}
    for name, value in asked.items():
        if value is not None:
            raise UserError(f"{place}: is a Hugging Face model, without steps and stages; leave out --{name} {value}")


def _restore_hugging_face(
    place: Pretrained, overrides: Sequence[str], devices: Sequence[Any] | None
) -> RestoredCheckpoint:
    model = hf_model.open_model(place, overrides=overrides, devices=devices)
    program = model.program
    return RestoredCheckpoint(
        model.ctx,
        0,
        0,
        program,
        model.to_devices(program),
        labels=model.labels,
        hugging_face=model.files,
        saved_config=model.saved_config,
        in_run=False,
        where=str(place),
        folder=place.path if place.is_local else None,
        fitted=fits.read_fits(place.path),
    )


def _with_run_dir(config: Config, meta: Mapping[str, Any], found: CheckpointRef) -> tuple[Config, bool]:
    """-> (config with the run's present folder, or that for results of a lone checkpoint; whether it is the run's).

    A folder that an override names is kept.
    """
    run, was = config.run, meta["config"]["run"]
    if (run.root, run.name) != (was.get("root", run.root), was.get("name", run.name)):
        return config, True
    folder, in_run = results_folder(found)
    changes = {"root": str(folder.parent), "name": folder.name}
    changes |= {} if in_run or run.prepared_dir else {"prepared_dir": str(folder / "prepared")}
    return config.model_copy(update={"run": run.model_copy(update=changes)}), in_run


def better_step(checkpoints: CheckpointReader, config: Config, stage: int, step: int) -> str | None:
    """A line about the best step of a stage by its `early_stopping` or `keep_best`; None if `step` is the best."""
    score = config.best_score(config.stages[stage])
    try:
        best = step if score is None else checkpoints.best_step(score, config.run.checkpoint.best_mode)
    except UserError:  # no score yet
        return None
    return None if best == step else f"step {step} is the last one; step {best} has the best {score}: --best {score}"


def best_step(checkpoints: CheckpointReader, score: str) -> int:
    """The step with the best value of a score. Raises UserError without one, or where a step is named already."""
    if (found := checkpoints.ref).step is not None:
        raise UserError(f"{found.path}: step {found.step} is named already; leave it out to get the best {score}")
    return checkpoints.best_step(score, upgrade_config(checkpoints.meta()["config"])["run"]["checkpoint"]["best_mode"])
