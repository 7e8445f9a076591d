"""Where a stage's first parameters come from: fresh, the previous stage, a checkpoint, or Hugging Face weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.data.tokenizers import backend_state, huggingface, load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.training.checkpoint import adapters
from bertjax.training.checkpoint.label_mapping import drop_fresh
from bertjax.training.checkpoint.locate import CheckpointRef, find, find_run_dir, stage_folder
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params
from bertjax.training.untrained_heads import UntrainedHeads, find_untrained_heads, format_modules, load_untrained_heads


class StageInit(NamedTuple):
    """What a stage starts with.

    Attributes:
        params: in their shards.
        lines: say where they came from.
        base: what an adapter-only checkpoint says of the weights it leaves out (training/checkpoint/adapters.py); None for others.
        untrained: heads of the start that the stage does not train, for the stages behind it.
    """

    params: Params
    lines: list[str]
    base: dict[str, Any] | None
    untrained: UntrainedHeads = UntrainedHeads()


Shapes = Mapping[str, Any]  # {path: something with a shape}


def check_init(ctx: RunContext, index: int, program: TrainProgram, before: Shapes, fresh: Sequence[str] = ()) -> Shapes:
    """Whether `init_params` will find what stage `index` starts from: raises the UserError it would raise.

    before: what the stage before holds at its end; fresh: heads that the stage does not take over -> what this stage
    will hold. Weights of ours are judged by their
    description; those of others are read.
    """
    stage = ctx.config.stages[index]
    source = adapters.init_source(stage, index)
    wanted = program.abstract_params()
    if source == "scratch":
        return wanted
    try:
        folder = None if source == "previous" else _folder(ctx, source)
        there = before if folder is None else _folder_shapes(ctx, folder)
        there = drop_fresh(there, fresh)
        where = f"{folder}" if folder else f"stage '{ctx.config.stages[index - 1].name}'"
        check_shapes(wanted, there, where, stage.name)
    except UserError as error:
        raise UserError(f"stage '{stage.name}': init_from: {error}") from None
    return wanted | find_untrained_heads(program, there)[1]


def _folder_shapes(ctx: RunContext, folder: Path) -> Shapes:
    """What a folder holds."""
    if (folder / "config.json").is_file():
        check_tokenizer(folder, ctx)
        return hf_folder.load_params(folder, ctx.config.model)
    return checkpoint_shapes(ctx, find(folder))


def checkpoint_shapes(ctx: RunContext, found: CheckpointRef) -> Shapes:
    """What a checkpoint holds, with the weights of its base; refuses one made with another tokenizer."""
    with CheckpointManager.open_readonly(found) as checkpoints:
        meta = checkpoints.meta(found.step)
    check_same_tokenizer(meta, found, ctx)
    return adapters.program_from_meta(meta, found.path, ctx).abstract_params()


def _folder(ctx: RunContext, source: str) -> Path:
    return ctx.base / Path(source).expanduser()


def init_params(
    ctx: RunContext, index: int, program: TrainProgram, key: jax.Array, left: Sequence[str] = ()
) -> StageInit:
    """The parameters a stage begins with.

    Heads and adapters that the source does not have, and those named in `left`, start fresh; heads that the stage does
    not read are carried, and the lines name what else is left unused. Anything else missing or of another shape is a
    UserError.
    """
    stage = ctx.config.stages[index]
    source = adapters.init_source(stage, index)
    fresh = program.initialize(key)
    if source == "scratch":
        alone = stage.trainable.kind == "adapters" and stage.trainable.adapter_only_checkpoints
        why = ["checkpoints hold all of them, there is nothing that adapters alone could stand on"] if alone else []
        return StageInit(fresh, ["fresh parameters", *why], None)
    loaded: Mapping[str, Any]
    step: int | None = None
    meta: Mapping[str, Any] = {}
    unused: list[str] = []
    if source == "previous":
        name = ctx.config.stages[index - 1].name
        found, where = CheckpointRef(stage_folder(ctx.config.run_dir, index - 1, name), None), f"stage '{name}'"
        step, loaded, meta = from_checkpoint(ctx, found)
    else:
        folder = _folder(ctx, source)
        found, where = CheckpointRef(folder, None), f"{folder}"
        if (folder / "config.json").is_file():
            check_tokenizer(folder, ctx)
            loaded = hf_folder.load_params(folder, ctx.config.model)
            unused = hf_folder.unused_tensors(folder, ctx.config.model)
        else:
            found = find(folder)
            step, loaded, meta = from_checkpoint(ctx, found, stage.adapter_base)
    untrained = load_untrained_heads(program, drop_fresh(loaded, left), meta)
    params, lines = merge_params(fresh, loaded, program, where, untrained, left, stage.name)
    lines += [f"tensors without a place here: {', '.join(unused)}"] if unused else []
    if not adapters.is_adapter_only(stage, index):
        return StageInit(params, lines, None, untrained)
    frozen = adapters.omitted_params(params, stage.trainable)
    if missing := [path for path in frozen if path not in loaded]:
        raise UserError(
            f"stage '{stage.name}': init_from: {where}: has no parameter '{missing[0]}', so adapters alone cannot "
            f"stand on it; set stages.{stage.name}.trainable.adapter_only_checkpoints=false"
        )
    named = _folder(ctx, stage.adapter_base) if stage.adapter_base else None
    return StageInit(params, lines, adapters.base_meta(found, step, source == "previous", frozen, named), untrained)


def check_tokenizer(folder: Path, ctx: RunContext) -> None:
    """Weights learnt with other pieces would fit by shape and mean nothing: refuses a folder with another tokenizer."""
    if not any((folder / name).is_file() for name in huggingface.VOCAB_FILES):
        return
    _refuse_other(
        load.from_file(folder, **_tokenizer_defaults(ctx.tokenizer)), ctx, folder, f"set tokenizer.path to {folder}"
    )


def _refuse_other(theirs: load.AnyTokenizer, ctx: RunContext, where: Path, use: str) -> None:
    changed = backend_state.differences(theirs.behavior, ctx.tokenizer.behavior)
    if changed:
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        raise UserError(
            f"{where}: was trained with another tokenizer; {use} "
            f"(differs from this run's: {'; '.join(changed[:2])}{more})"
        )


def _tokenizer_defaults(tokenizer: load.AnyTokenizer) -> dict[str, Any]:
    """What a vocabulary without settings is taken to be: as this run's."""
    if not isinstance(tokenizer, Tokenizer):
        return {"extra_ids": tokenizer.extra_ids}
    return {"lowercase": tokenizer.lowercase} | backend_state.bert_options(tokenizer.backend)


def merge_params(
    fresh: Params,
    loaded: Mapping[str, jax.Array | np.ndarray],
    program: TrainProgram,
    where: str,
    untrained: UntrainedHeads,
    left: Sequence[str] = (),
    stage: str = "",
) -> tuple[Params, list[str]]:
    """`fresh` with every parameter that `loaded` has; the lines say of each array of either what becomes of it."""
    kept = drop_fresh(loaded, left)
    check_shapes(fresh, kept, where, stage)
    param_shardings = program.param_shardings()
    taken = [path for path in fresh if path in kept]
    params = fresh | {p: jax.device_put(loaded[p], param_shardings[p]) for p in taken}
    said = {
        "fresh": [path for path in fresh if path not in kept],
        "carried on, not trained here": list(untrained.params),
        "left unused": [path for path in loaded if path not in taken and path not in untrained.params],
    }
    lines = [f"{len(taken)} of {len(params)} arrays from {where} ({format_modules(taken)})"]
    return params, lines + [f"{what}: {format_modules(arrays)}" for what, arrays in said.items() if arrays]


def check_shapes(wanted: Mapping[str, Any], loaded: Mapping[str, Any], where: str, stage: str = "") -> None:
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


def from_checkpoint(
    ctx: RunContext, found: CheckpointRef, base: str | None = None
) -> tuple[int, Params, dict[str, Any]]:
    """-> (step, all parameters of a checkpoint on the run's mesh, its meta data).

    base: where the weights below its adapters are, if not where they were. Refuses a checkpoint made with another
    tokenizer.
    """
    with CheckpointManager.open_readonly(found) as checkpoints:
        meta = checkpoints.meta(found.step)
        check_same_tokenizer(meta, found, ctx)
        return *adapters.restore_params(checkpoints, found.step, meta, ctx, _folder(ctx, base) if base else None), meta


def check_same_tokenizer(meta: Mapping[str, Any], found: CheckpointRef, ctx: RunContext) -> None:
    if meta["tokenizer_sha256"] != ctx.tokenizer.sha256:
        theirs = load.from_json(meta["tokenizer_json"], str(found.path))
        run = find_run_dir(found.folder)
        use = f"set tokenizer.path to {run / 'tokenizer'}" if run else f"`bertjax export {found.path} OUT` writes that"
        _refuse_other(theirs, ctx, found.path, use)
