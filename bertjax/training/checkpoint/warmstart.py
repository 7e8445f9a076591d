"""Make a stage's first parameters: fresh ones, or from the previous stage, a checkpoint or Hugging Face weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.config.schema.model import ModelConfig
from bertjax.data.tokenizers import backend_state, huggingface, load
from bertjax.data.tokenizers.load import SentinelTokenizer, Tokenizer
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.models.layers import lora
from bertjax.models.peft_options import PeftOptions
from bertjax.storage import pretrained
from bertjax.storage.pretrained import Pretrained
from bertjax.training.checkpoint import adapters, init_layers
from bertjax.training.checkpoint.label_mapping import drop_fresh
from bertjax.training.checkpoint.locate import CheckpointRef, find_run_dir
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.checkpoint.stage_files import StageFiles, init_error
from bertjax.training.program import TrainProgram, peft_options
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params
from bertjax.training.untrained_heads import (
    UntrainedHeads,
    find_untrained_heads,
    format_modules,
    label_head,
    load_untrained_heads,
)


class StageInit(NamedTuple):
    """What a stage starts with; `lines` say where the parameters came from."""

    params: Params
    lines: list[str]
    base: dict[str, Any] | None  # `base` in the meta data of adapter-only checkpoints
    untrained: UntrainedHeads = UntrainedHeads()


Shapes = Mapping[str, Any]  # {path: something with a shape}


def check_init(
    ctx: RunContext, files: StageFiles, program: TrainProgram, before: Shapes, fresh: Sequence[str] = ()
) -> Shapes:
    """Raise the UserError that `init_params` would raise -> the shapes that the stage will hold.

    before: shapes at the end of the previous stage; fresh: heads not taken over. No arrays of checkpoints are read.
    """
    stage, wanted = files.stage, program.abstract_params()
    if files.init_source == "scratch":
        return wanted
    try:
        if files.init_weights and files.init_place:
            with pretrained.name_in_errors(files.init_place):
                check_tokenizer(files.init_weights, ctx)
                before = hf_folder.load_params(files.init_weights, _source_model(files))
        elif not files.starts_from_previous and files.init_checkpoints:
            before = checkpoint_shapes(ctx, files.init_checkpoints)
        if stage.init_layers is not None:
            before = init_layers.select_layers(
                before, stage, _source_model(files), program.model, files.init_name
            ).params
        if not program.peft.same_lora(source_peft(files)):
            before = {path: x for path, x in before.items() if not lora.is_lora(path)}
        held = drop_fresh(before, fresh)
        check_shapes(wanted, held, files.init_name, stage.name)
        check_mixture(source_peft(files), program, held, files.init_name, stage.name)
    except UserError as error:
        raise init_error(stage, error) from None
    return wanted | find_untrained_heads(program, {} if source_peft(files).mixes_layers else held)[1]


def _source_model(files: StageFiles) -> ModelConfig:
    """The model section of what a stage starts from."""
    if files.starts_from_previous:
        return files.config.model  # type: ignore[no-any-return]
    return init_layers.source_model(files.stage, files.init_weights, files.init_checkpoints, files.config.model)


def checkpoint_shapes(ctx: RunContext, checkpoints: CheckpointReader) -> Shapes:
    """The shapes of a checkpoint and its base. Raises UserError if it was made with another tokenizer."""
    check_same_tokenizer(checkpoints, ctx)
    return adapters.saved_program(checkpoints, None, ctx).abstract_params()


def source_peft(files: StageFiles) -> PeftOptions:
    """The layers that the stage before, or that of the checkpoint which `init_from` names, has added."""
    if files.starts_from_previous:
        return peft_options(files.config.stages[files.index - 1].trainable)
    return adapters.checkpoint_peft(files.init_checkpoints) if files.init_checkpoints else PeftOptions()


def init_params(
    ctx: RunContext, files: StageFiles, program: TrainProgram, key: jax.Array, left: Sequence[str] = ()
) -> StageInit:
    """Make the first parameters of a stage.

    LoRA of the source trains on in a stage with the same options, and is merged into the weights for any other. Heads
    and adapters that the source lacks, and those named in `left`, start fresh; heads that the stage does not read are
    carried. Raises UserError when another parameter is missing or has another shape.
    """
    stage, where = files.stage, files.init_name
    fresh = program.initialize(key)
    if files.init_source == "scratch":
        alone = adapters.can_be_adapter_only(stage)
        why = ["checkpoints hold all of them, because there is no base to omit"] if alone else []
        return StageInit(fresh, ["fresh parameters", *why], None)
    loaded: Mapping[str, Any]
    step: int | None = None
    meta: Mapping[str, Any] = {}
    unused: list[str] = []
    checkpoints = files.init_checkpoints
    if checkpoints is None:
        place = files.init_place or Pretrained("", Path())
        found = CheckpointRef(place.path, None)
        with pretrained.name_in_errors(place):
            check_tokenizer(place.path, ctx)
            loaded = hf_folder.load_params(place.path, _source_model(files))
            unused = hf_folder.unused_tensors(place.path, _source_model(files))
    else:
        found = checkpoints.ref
        check_same_tokenizer(checkpoints, ctx)
        meta = checkpoints.meta()
        named = files.adapter_base if files.init_folder else None
        step, loaded = adapters.restore_params(checkpoints, ctx, named=named)
        where += f" (step {step})" if files.init_source == "best" else ""
    loaded, chosen = init_layers.select_layers(loaded, stage, _source_model(files), program.model, where)
    raw, merged, source = loaded, 0, source_peft(files)
    if "lora" not in left and not program.peft.same_lora(source):
        loaded, merged = merge_lora(raw, source.lora_scale)
    untrained = load_untrained_heads(program, {} if source.mixes_layers else drop_fresh(loaded, left), meta)
    params, lines = merge_params(fresh, loaded, program, where, untrained, left, stage.name)
    lines = [*chosen, *lines]
    lines += [f"LoRA of rank {source.lora_rank} merged into {merged} kernels"] if merged else []
    lines += [f"tensors without a place here: {', '.join(unused)}"] if unused else []
    if not adapters.is_adapter_only(stage, files.index):
        return StageInit(params, lines, None, untrained)
    frozen = adapters.omitted_params(params, stage.trainable)
    if missing := [path for path in frozen if path not in loaded]:
        raise UserError(
            f"stage '{stage.name}': init_from: {where}: has no parameter '{missing[0]}', so adapters alone cannot "
            f"stand on it; set stages.{stage.name}.trainable.adapter_only_checkpoints=false"
        )
    own: dict[str, Any] = frozen
    if merged:
        own = {path: x for path, x in raw.items() if lora.is_lora(path) or path in frozen}
    base = adapters.base_meta(found, step, files.init_place, own, files.adapter_base, merged=merged > 0)
    return StageInit(params, lines, base, untrained)


def merge_lora(loaded: Mapping[str, Any], scale: float) -> tuple[Mapping[str, Any], int]:
    """-> (parameters with their LoRA merged into them, number of kernels that this changed)."""
    kernels = {path.partition("/lora/")[0] for path in loaded if lora.is_lora(path)}
    return (lora.merge(loaded, scale), len(kernels)) if kernels else (loaded, 0)


def check_tokenizer(folder: Path, ctx: RunContext) -> None:
    """Raise UserError if a folder of weights has another tokenizer; a vocabulary without settings gets the run's."""
    if ctx.tokenizer is None or not any((folder / name).is_file() for name in huggingface.VOCAB_FILES):
        return
    options: dict[str, Any]
    if isinstance(ctx.tokenizer, SentinelTokenizer):
        raise UserError(f"{folder}: is read with its own tokenizer; set tokenizer: {{kind: sentencepiece, path: ...}}")
    if isinstance(ctx.tokenizer, Tokenizer):
        options = {"lowercase": ctx.tokenizer.lowercase} | backend_state.bert_options(ctx.tokenizer.backend)
    else:
        options = {"extra_ids": ctx.tokenizer.extra_ids}
    _refuse_other(load.from_file(folder, **options), ctx, folder, f"set tokenizer.path to {folder}")


def _refuse_other(theirs: load.AnyTokenizer, ctx: RunContext, where: Path, use: str) -> None:
    changed = backend_state.differences(theirs.behavior, ctx.tokenizer.behavior)
    if changed:
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        raise UserError(
            f"{where}: was trained with another tokenizer; {use} "
            f"(differs from this run's: {'; '.join(changed[:2])}{more})"
        )


def merge_params(
    fresh: Params,
    loaded: Mapping[str, jax.Array | np.ndarray],
    program: TrainProgram,
    where: str,
    untrained: UntrainedHeads,
    left: Sequence[str] = (),
    stage: str = "",
) -> tuple[Params, list[str]]:
    """Replace `fresh` parameters by `loaded` ones -> (parameters, lines that report the use of every array)."""
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
    """Raise UserError naming the first parameter of another shape, or missing in `loaded` (except heads and adapters).

    Adapters of another size or in other places, or in a model without them, are refused too: weights trained with them
    need them.
    """
    if size := _adapter_size(loaded):
        here = _adapter_size(wanted)
        if size != here:
            has = f"the stage's are of size {here}" if here else "this stage has none"
            raise UserError(
                f"{where}: has adapters of size {size}, {has}; set trainable.kind=adapters "
                f"trainable.adapter_size={size}, or start from the weights below those adapters"
            )
        if elsewhere := [path for path in loaded if "/adapter/" in path and path not in wanted]:
            raise UserError(
                f"{where}: has an adapter '{elsewhere[0]}', this stage none; set trainable.adapter_placement"
            )
    for path, start in wanted.items():
        value = loaded.get(path)
        if value is None and not (path.startswith("heads/") or "/adapter/" in path or lora.is_lora(path)):
            raise UserError(f"{where}: has no parameter '{path}'; init_from needs a model of the same family and size")
        head = label_head(path.split("/")[1:2])
        if value is not None and value.shape != start.shape and head is not None:
            raise UserError(
                f"{where}: its classifier has {value.shape[-1]} outputs, this stage's {start.shape[-1]}; set "
                f"objective.num_labels={value.shape[-1]}, or stages.{stage}.fresh=[{head}] to start a fresh one"
            )
        if value is not None and value.shape != start.shape:
            raise UserError(
                f"{where}: '{path}' has shape {list(value.shape)}, the model here needs {list(start.shape)}; "
                "make the model section agree with it (or use model.config_from)"
            )


def check_mixture(source: PeftOptions, program: TrainProgram, loaded: Shapes, where: str, stage: str) -> None:
    """Raise UserError if a head of `loaded` that the stage takes over was trained on another mixture of layers."""
    if not source.mixes_layers or source.feature_layers == program.peft.feature_layers:
        return
    taken = [head for head in program.heads if any(path.startswith(f"heads/{head}/") for path in loaded)]
    if taken:
        raise UserError(
            f"{where}: its heads were trained on feature_layers: {source.feature_layers}; set trainable.kind=features "
            f"trainable.feature_layers={source.feature_layers}, or stages.{stage}.fresh="
            f"[{','.join(taken)}] to start fresh ones"
        )


def _adapter_size(params: Mapping[str, Any]) -> int:
    """The inner width of a model's adapters; 0 without adapters."""
    return next((x.shape[-1] for path, x in params.items() if path.endswith("/adapter/intermediate/kernel")), 0)


def check_same_tokenizer(checkpoints: CheckpointReader, ctx: RunContext) -> None:
    meta, found = checkpoints.meta(), checkpoints.ref
    if ctx.tokenizer is not None and meta["tokenizer_sha256"] != ctx.tokenizer.sha256:
        theirs = load.from_json(meta["tokenizer_json"], str(found.path))
        run = find_run_dir(found.folder)
        use = f"set tokenizer.path to {run / 'tokenizer'}" if run else f"`bertjax export {found.path} OUT` writes that"
        _refuse_other(theirs, ctx, found.path, use)
