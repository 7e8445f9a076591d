"""Restore a checkpoint onto this machine's devices; everything that is needed comes out of the checkpoint itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertjax.config.load import build_kept
from bertjax.config.schema import Config
from bertjax.data import tokenizers
from bertjax.errors import UserError
from bertjax.parallel import mesh as meshes
from bertjax.training import bases
from bertjax.training.carried import all_heads
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.runs import Found, find, results_folder
from bertjax.training.setup import Job
from bertjax.training.state import Params
from bertjax.training.step import Program


@dataclass(frozen=True)
class Restored:
    """A checkpoint opened for use on this machine."""

    job: Job
    stage: int
    step: int
    program: Program
    params: Params
    labels: list[str] | None = None  # names of the classes by id, where the training data had names
    unanswerable: int | None = None  # questions without an answer in the training data, where that is known
    hugging_face: dict[str, Any] | None = None  # of imported weights: what the folder's two JSON files say
    stored: Config | None = None  # the configuration without overrides
    is_last: bool = True  # whether it is the last step of its stage
    in_run: bool = True  # whether job.config.run_dir is the run that the checkpoint belongs to
    carried: tuple[str, ...] = ()  # heads that the stage has not trained


def restore(
    path: str | Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    best: str | None = None,
    overrides: Sequence[str] = (),
    base: str | Path | None = None,
) -> Restored:
    """Read a checkpoint's parameters onto this machine's devices; everything else comes out of the checkpoint itself.

    The mesh it was trained on does not matter. Instead of a step, `best` names a score (squad/f1) whose best step is
    taken. `base`: where the weights below its adapters are, if not where they were. Raises UserError when `path` holds
    no checkpoint, or none with that score.
    """
    found = find(path, stage=stage, step=step)
    with Checkpoints.reader(found) as checkpoints:
        if best is not None:
            found = replace(found, step=_best(found, checkpoints, best))
        meta = checkpoints.meta(found.step)
        here = dict(meta["config"], mesh={})
        here["run"] = here["run"] | {"attention": "auto", "segments": "auto"}
        config, in_run = _at_home(build_kept(here, overrides, where=str(found.path)), meta, found)
        tokenizer = tokenizers.from_json(meta["tokenizer_json"], str(found.path))
        job = Job(config, Path.cwd(), meshes.make_mesh(config.mesh), tokenizer)
        stage_config, classes = config.stages[meta["stage"]], meta["num_labels"]
        program = job.program(stage_config, steps=1, heads=all_heads(meta), num_labels=classes)
        named = Path(base).expanduser() if base is not None else None
        restored_step, params = bases.read(checkpoints, found.step, meta, job, named)
    return Restored(
        job,
        meta["stage"],
        restored_step,
        program,
        params,
        labels=meta.get("labels"),
        unanswerable=meta.get("unanswerable"),
        hugging_face=meta.get("hugging_face"),
        stored=_at_home(build_kept(here, where=str(found.path)), meta, found)[0],
        is_last=meta.get("steps") in (None, restored_step),
        in_run=in_run,
        carried=tuple(meta.get("carried", ())),
    )


def _at_home(config: Config, meta: Mapping[str, Any], found: Found) -> tuple[Config, bool]:
    """The configuration with the run folder where it is now, or where results of a lone checkpoint are kept instead.

    -> (config, whether that is the checkpoint's run). What an override names is left as it is.
    """
    run, was = config.run, meta["config"]["run"]
    if (run.root, run.name) != (was["root"], was["name"]):
        return config, True
    folder, in_run = results_folder(found)
    changes = {"root": str(folder.parent), "name": folder.name}
    changes |= {} if in_run or run.prepared else {"prepared": str(folder / "prepared")}
    return config.model_copy(update={"run": run.model_copy(update=changes)}), in_run


def _best(found: Found, checkpoints: Checkpoints, score: str) -> int:
    if found.step is not None:
        raise UserError(f"{found.path}: step {found.step} is named already; leave it out to get the best {score}")
    return checkpoints.best_step(score, checkpoints.meta()["config"]["run"]["checkpoint"]["best_is"])
