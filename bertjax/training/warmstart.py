"""Where a stage's first parameters come from: fresh, the previous stage, a checkpoint, or Hugging Face weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertjax.config.schema import Stage
from bertjax.data import tokenizers
from bertjax.errors import UserError
from bertjax.interop import huggingface
from bertjax.models import paths
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.runs import Found, find, run_of, stage_folder
from bertjax.training.setup import Job, config_of
from bertjax.training.state import Params
from bertjax.training.step import Program


def check(job: Job, index: int, programs: Sequence[Program]) -> None:
    """Whether `initial` will find what stage `index` starts from: raises the UserError it would raise.

    `programs`: of all stages. Weights of ours are judged by their description; those of others are read.
    """
    stage = job.config.stages[index]
    source = _source(stage, index)
    wanted = programs[index].abstract_params()
    try:
        if source == "previous":
            check_fit(wanted, programs[index - 1].abstract_params(), f"stage '{job.config.stages[index - 1].name}'")
        elif source != "scratch":
            folder = _folder(job, source)
            check_fit(wanted, _described(job, folder), f"{folder}")
    except UserError as error:
        raise UserError(f"stage '{stage.name}': init_from: {error}") from None


def _described(job: Job, folder: Path) -> Mapping[str, Any]:
    """{path: something with its shape} of what a folder holds."""
    if (folder / "config.json").is_file():
        check_tokenizer(folder, job)
        return huggingface.load_params(folder, job.config.model)
    found = find(folder)
    with Checkpoints(found.folder, job.config.run.checkpoint, read_only=True) as checkpoints:
        meta = checkpoints.meta(found.step)
    check_made_with(meta, found, job)
    return paths.flatten(abstract_of(meta, found.folder, job))


def _source(stage: Stage, index: int) -> str:
    return stage.init_from or ("previous" if index else "scratch")


def _folder(job: Job, source: str) -> Path:
    return job.base / Path(source).expanduser()


def initial(job: Job, index: int, program: Program, key: jax.Array) -> tuple[Params, list[str]]:
    """-> (parameters in their shards, lines that say where they came from).

    Heads that the source does not have start fresh; anything else missing, or of another shape, is a UserError.
    """
    stage = job.config.stages[index]
    source = _source(stage, index)
    loaded: Mapping[str, Any]
    fresh = program.initialize(key)
    if source == "scratch":
        return fresh, ["fresh parameters"]
    if source == "previous":
        previous = stage_folder(job.config.run_dir, index - 1, job.config.stages[index - 1].name)
        loaded, where = from_checkpoint(job, Found(previous, None)), f"stage '{job.config.stages[index - 1].name}'"
    else:
        folder = _folder(job, source)
        where = f"{folder}"
        if (folder / "config.json").is_file():
            check_tokenizer(folder, job)
            loaded = huggingface.load_params(folder, job.config.model)
        else:
            loaded = from_checkpoint(job, find(folder))
    return merge(fresh, loaded, program, where)


def check_tokenizer(folder: Path, job: Job) -> None:
    """Weights learnt with other pieces would fit by shape and mean nothing: refuses a folder with another tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return
    theirs = tokenizers.from_file(folder, lowercase=job.tokenizer.lowercase)
    if (theirs.pieces, theirs.lowercase) != (job.tokenizer.pieces, job.tokenizer.lowercase):
        raise UserError(f"{folder}: has another tokenizer than this run; set tokenizer.path to {folder}")


def merge(
    fresh: Params, loaded: Mapping[str, jax.Array | np.ndarray], program: Program, where: str
) -> tuple[Params, list[str]]:
    """`fresh` with every parameter that `loaded` has."""
    check_fit(fresh, loaded, where)
    placed = program.placed()
    new = [path for path in fresh if path not in loaded]
    params = fresh | {p: jax.device_put(loaded[p], placed[p]) for p in fresh if p in loaded}
    lines = [f"{len(params) - len(new)} of {len(params)} arrays from {where}"]
    return params, lines + ([f"fresh: {', '.join(sorted({p.rsplit('/', 1)[0] for p in new}))}"] if new else [])


def check_fit(wanted: Mapping[str, Any], loaded: Mapping[str, Any], where: str) -> None:
    """Raises UserError naming the first parameter that `loaded` lacks, heads apart, or has in another shape."""
    for path, start in wanted.items():
        value = loaded.get(path)
        if value is None and not path.startswith("heads/"):
            raise UserError(f"{where}: has no parameter '{path}'; init_from needs a model of the same family and size")
        if value is not None and value.shape != start.shape:
            raise UserError(
                f"{where}: '{path}' has shape {list(value.shape)}, the model here needs {list(start.shape)}; "
                "make the model section agree with it (or use model.config_from)"
            )


def from_checkpoint(job: Job, found: Found) -> dict[str, jax.Array]:
    """All parameters of a checkpoint, placed on this job's mesh; refuses one made with another tokenizer."""
    with Checkpoints(found.folder, job.config.run.checkpoint, read_only=True) as checkpoints:
        meta = checkpoints.meta(found.step)
        check_made_with(meta, found, job)
        _, params, _ = checkpoints.restore_params(abstract_of(meta, found.folder, job), found.step)
    return paths.flatten(params)


def check_made_with(meta: Mapping[str, Any], found: Found, job: Job) -> None:
    if meta["tokenizer_sha256"] != job.tokenizer.sha256:
        kept = run_of(found.folder) / "tokenizer"
        raise UserError(f"{found.folder}: was trained with another tokenizer; set tokenizer.path to {kept}")


def abstract_of(meta: Mapping[str, Any], where: Path, job: Job) -> dict[str, Any]:
    """The nested abstract parameters of a checkpoint, in the shards they have on this job's mesh."""
    stored = config_of(dict(meta), where)
    stage = stored.stages[meta["stage"]]
    program = Job(stored, job.base, job.mesh, job.tokenizer).program(stage, steps=1, heads=tuple(meta["heads"]))
    return paths.unflatten(program.abstract_params())
