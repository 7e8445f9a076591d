"""Where a stage's first parameters come from: fresh, the previous stage, a checkpoint, or Hugging Face weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.data import backend_state, foreign_tokenizers, tokenizers
from bertjax.errors import UserError
from bertjax.interop import huggingface
from bertjax.training import bases
from bertjax.training.carried import Carried, carried_heads, carry, spell_modules
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.label_mapping import without
from bertjax.training.runs import Found, find, run_of, stage_folder
from bertjax.training.setup import Job
from bertjax.training.state import Params
from bertjax.training.step import Program


class Start(NamedTuple):
    """What a stage starts with.

    Attributes:
        params: in their shards.
        lines: say where they came from.
        base: what an adapter-only checkpoint says of the weights it leaves out (training/bases.py); None for others.
        carried: heads of the start that the stage does not train, for the stages behind it.
    """

    params: Params
    lines: list[str]
    base: dict[str, Any] | None
    carried: Carried = Carried()


Shapes = Mapping[str, Any]  # {path: something with a shape}


def check(job: Job, index: int, program: Program, before: Shapes, fresh: Sequence[str] = ()) -> Shapes:
    """Whether `initial` will find what stage `index` starts from: raises the UserError it would raise.

    before: what the stage before holds at its end; fresh: heads that the stage does not take over -> what this stage
    will hold. Weights of ours are judged by their
    description; those of others are read.
    """
    stage = job.config.stages[index]
    source = bases.source_of(stage, index)
    wanted = program.abstract_params()
    if source == "scratch":
        return wanted
    try:
        folder = None if source == "previous" else _folder(job, source)
        there = before if folder is None else _described(job, folder)
        there = without(there, fresh)
        where = f"{folder}" if folder else f"stage '{job.config.stages[index - 1].name}'"
        check_fit(wanted, there, where, stage.name)
    except UserError as error:
        raise UserError(f"stage '{stage.name}': init_from: {error}") from None
    return wanted | carried_heads(program, there)[1]


def _described(job: Job, folder: Path) -> Shapes:
    """What a folder holds."""
    if (folder / "config.json").is_file():
        check_tokenizer(folder, job)
        return huggingface.load_params(folder, job.config.model)
    return described(job, find(folder))


def described(job: Job, found: Found) -> Shapes:
    """What a checkpoint holds, with the weights of its base; refuses one made with another tokenizer."""
    with Checkpoints.reader(found) as checkpoints:
        meta = checkpoints.meta(found.step)
    check_made_with(meta, found, job)
    return bases.program_of(meta, found.path, job).abstract_params()


def _folder(job: Job, source: str) -> Path:
    return job.base / Path(source).expanduser()


def initial(job: Job, index: int, program: Program, key: jax.Array, left: Sequence[str] = ()) -> Start:
    """The parameters a stage begins with.

    Heads and adapters that the source does not have, and those named in `left`, start fresh; heads that the stage does
    not read are carried, and the lines name what else is left unused. Anything else missing or of another shape is a
    UserError.
    """
    stage = job.config.stages[index]
    source = bases.source_of(stage, index)
    fresh = program.initialize(key)
    if source == "scratch":
        alone = stage.trainable.kind == "adapters" and stage.trainable.adapter_only_checkpoints
        why = ["checkpoints hold all of them, there is nothing that adapters alone could stand on"] if alone else []
        return Start(fresh, ["fresh parameters", *why], None)
    loaded: Mapping[str, Any]
    step: int | None = None
    meta: Mapping[str, Any] = {}
    unused: list[str] = []
    if source == "previous":
        name = job.config.stages[index - 1].name
        found, where = Found(stage_folder(job.config.run_dir, index - 1, name), None), f"stage '{name}'"
        step, loaded, meta = from_checkpoint(job, found)
    else:
        folder = _folder(job, source)
        found, where = Found(folder, None), f"{folder}"
        if (folder / "config.json").is_file():
            check_tokenizer(folder, job)
            loaded = huggingface.load_params(folder, job.config.model)
            unused = huggingface.unused_tensors(folder, job.config.model)
        else:
            found = find(folder)
            step, loaded, meta = from_checkpoint(job, found, stage.init_base)
    carried = carry(program, without(loaded, left), meta)
    params, lines = merge(fresh, loaded, program, where, carried, left, stage.name)
    lines += [f"tensors without a place here: {', '.join(unused)}"] if unused else []
    if not bases.holds_part(stage, index):
        return Start(params, lines, None, carried)
    frozen = bases.left_out(params, stage.trainable)
    if missing := [path for path in frozen if path not in loaded]:
        raise UserError(
            f"stage '{stage.name}': init_from: {where}: has no parameter '{missing[0]}', so adapters alone cannot "
            f"stand on it; set stages.{stage.name}.trainable.adapter_only_checkpoints=false"
        )
    named = _folder(job, stage.init_base) if stage.init_base else None
    return Start(params, lines, bases.described(found, step, source == "previous", frozen, named), carried)


def check_tokenizer(folder: Path, job: Job) -> None:
    """Weights learnt with other pieces would fit by shape and mean nothing: refuses a folder with another tokenizer."""
    if not any((folder / name).is_file() for name in foreign_tokenizers.VOCABULARIES):
        return
    _refuse_other(
        tokenizers.from_file(folder, **_as_here(job.tokenizer)), job, folder, f"set tokenizer.path to {folder}"
    )


def _refuse_other(theirs: tokenizers.AnyTokenizer, job: Job, where: Path, use: str) -> None:
    changed = backend_state.differences(theirs.behavior, job.tokenizer.behavior)
    if changed:
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        raise UserError(
            f"{where}: was trained with another tokenizer; {use} "
            f"(differs from this run's: {'; '.join(changed[:2])}{more})"
        )


def _as_here(tokenizer: tokenizers.AnyTokenizer) -> dict[str, Any]:
    """What a vocabulary without settings is taken to be: as this run's."""
    if not isinstance(tokenizer, tokenizers.Tokenizer):
        return {"extra_ids": tokenizer.extra_ids}
    return {"lowercase": tokenizer.lowercase} | backend_state.bert_options(tokenizer.backend)


def merge(
    fresh: Params,
    loaded: Mapping[str, jax.Array | np.ndarray],
    program: Program,
    where: str,
    carried: Carried,
    left: Sequence[str] = (),
    stage: str = "",
) -> tuple[Params, list[str]]:
    """`fresh` with every parameter that `loaded` has; the lines say of each array of either what becomes of it."""
    kept = without(loaded, left)
    check_fit(fresh, kept, where, stage)
    placed = program.placed()
    taken = [path for path in fresh if path in kept]
    params = fresh | {p: jax.device_put(loaded[p], placed[p]) for p in taken}
    said = {
        "fresh": [path for path in fresh if path not in kept],
        "carried on, not trained here": list(carried.params),
        "left unused": [path for path in loaded if path not in taken and path not in carried.params],
    }
    lines = [f"{len(taken)} of {len(params)} arrays from {where} ({spell_modules(taken)})"]
    return params, lines + [f"{what}: {spell_modules(arrays)}" for what, arrays in said.items() if arrays]


def check_fit(wanted: Mapping[str, Any], loaded: Mapping[str, Any], where: str, stage: str = "") -> None:
    """Raises UserError naming the first parameter that `loaded` lacks, heads and adapters apart, or has in another
    shape; and for adapters that the model here does not have, since weights learnt beside them do little alone.
    """
    if size := _adapter_size(loaded):
        here = _adapter_size(wanted)
        if size != here:
            has = f"the stage's are of size {here}" if here else "this stage has none"
            raise UserError(
                f"{where}: has adapters of size {size}, {has}; set trainable.kind=adapters "
                f"trainable.adapter_size={size}, or start from the weights below those adapters"
            )
    for path, start in wanted.items():
        value = loaded.get(path)
        if value is None and not (path.startswith("heads/") or "/adapter/" in path):
            raise UserError(f"{where}: has no parameter '{path}'; init_from needs a model of the same family and size")
        if value is not None and value.shape != start.shape and path.startswith("heads/classifier/"):
            raise UserError(
                f"{where}: its classifier has {value.shape[-1]} outputs, this stage's {start.shape[-1]}; set "
                f"objective.num_labels={value.shape[-1]}, or stages.{stage}.fresh=[classifier] to start a fresh one"
            )
        if value is not None and value.shape != start.shape:
            raise UserError(
                f"{where}: '{path}' has shape {list(value.shape)}, the model here needs {list(start.shape)}; "
                "make the model section agree with it (or use model.config_from)"
            )


def _adapter_size(params: Mapping[str, Any]) -> int:
    """The inner width of a model's adapters; 0 if it has none."""
    return next((x.shape[-1] for path, x in params.items() if path.endswith("/adapter/intermediate/kernel")), 0)


def from_checkpoint(job: Job, found: Found, base: str | None = None) -> tuple[int, Params, dict[str, Any]]:
    """-> (step, all parameters of a checkpoint on this job's mesh, its meta data).

    base: where the weights below its adapters are, if not where they were. Refuses a checkpoint made with another
    tokenizer.
    """
    with Checkpoints.reader(found) as checkpoints:
        meta = checkpoints.meta(found.step)
        check_made_with(meta, found, job)
        return *bases.read(checkpoints, found.step, meta, job, _folder(job, base) if base else None), meta


def check_made_with(meta: Mapping[str, Any], found: Found, job: Job) -> None:
    if meta["tokenizer_sha256"] != job.tokenizer.sha256:
        theirs = tokenizers.from_json(meta["tokenizer_json"], str(found.path))
        run = run_of(found.folder)
        use = f"set tokenizer.path to {run / 'tokenizer'}" if run else f"`bertjax export {found.path} OUT` writes that"
        _refuse_other(theirs, job, found.path, use)
