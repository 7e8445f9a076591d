"""Restore the parameters of a checkpoint, also of an adapter-only one, which holds only what trains.

The other weights come from its base, the checkpoint or Hugging Face folder that the stage started from; `base` in its
meta data names the base and has a digest of the weights taken from it. LoRA of the base that the stage merged into
these weights (`lora_merged`) is in the digest and merged again: a sum may differ in the last bits between devices.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from bertjax.config.loading.pretrained import locate_model
from bertjax.config.schema.run import MeshConfig, Stage
from bertjax.config.schema.training import Trainable
from bertjax.data.tokenizers import load
from bertjax.errors import StorageError, UserError
from bertjax.interop import hf_folder
from bertjax.models import param_paths
from bertjax.models.layers import lora
from bertjax.models.peft_options import PeftOptions
from bertjax.parallel.mesh import make_mesh
from bertjax.storage import pretrained, remote
from bertjax.storage.pretrained import Pretrained
from bertjax.training import freezing, run_context
from bertjax.training import state as training_state
from bertjax.training.checkpoint import checksums
from bertjax.training.checkpoint.integrity import json_sha256
from bertjax.training.checkpoint.locate import CheckpointRef, find
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.checkpoint.stage_files import init_source
from bertjax.training.program import TrainProgram, peft_options, stage_program
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params, TrainState
from bertjax.training.untrained_heads import all_heads


def is_adapter_only(stage: Stage, index: int) -> bool:
    """Whether the checkpoints of a stage hold only what trains; without a base (from scratch) they hold all."""
    return can_be_adapter_only(stage) and init_source(stage, index) != "scratch"


def can_be_adapter_only(stage: Stage) -> bool:
    return stage.trainable.kind in ("adapters", "lora", "features") and stage.trainable.adapter_only_checkpoints


def omitted_params(params: Mapping[str, Any], trainable: Trainable) -> dict[str, Any]:
    """The part of {path: x} that an adapter-only checkpoint omits."""
    (episode,) = freezing.episodes(trainable, freezing.param_groups(params), 1)
    groups = freezing.grouped(params)
    return {path: x for path, x in params.items() if groups[path] not in episode.groups}


def params_digest(params: Mapping[str, jax.Array]) -> str:
    """A digest of {path: array} that does not depend on shardings."""
    return json_sha256({path: f"{leaf.digest:08x}" for path, leaf in checksums.compute_digests(params).items()})


def saved_program(checkpoints: CheckpointReader, step: int | None, ctx: RunContext) -> TrainProgram:
    """The program of a checkpoint, on the run's mesh."""
    meta, config = checkpoints.meta(step), checkpoints.config(step)
    stage = config.stages[meta["stage"]]
    return stage_program(
        config, stage, ctx.mesh, 1, heads=all_heads(meta), num_labels=meta["num_labels"],
        multi_label=run_context.is_multi_label(meta),
    )  # fmt: skip


def checkpoint_tree(state: TrainState, stage: Stage, index: int, untrained: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that a stage saves: its state (adapter-only: without frozen parameters) and untrained heads."""
    tree = training_state.to_tree(state)
    frozen = {} if is_adapter_only(stage, index) else state.frozen
    return tree | {"params": param_paths.unflatten({**state.params, **frozen, **untrained})}


def restore_params(
    checkpoints: CheckpointReader,
    ctx: RunContext,
    step: int | None = None,
    named: Path | None = None,
    program: TrainProgram | None = None,
) -> tuple[int, Params]:
    """-> (step, all parameters on the run's mesh) of a checkpoint and its base, which the user may have `named`.

    Raises like `CheckpointReader.restore`, and UserError for a base that is missing, differs or is not needed.
    """
    meta = checkpoints.meta(step)
    wanted = (program or saved_program(checkpoints, step, ctx)).abstract_params()
    base = meta.get("base")
    if named is not None and base is None:
        raise UserError(f"{checkpoints.path}: holds all its weights and needs no base; leave out {named}")
    left = omitted_params(wanted, checkpoints.config(step).stages[meta["stage"]].trainable) if base else {}
    saved = {path: x for path, x in wanted.items() if path not in left}
    step, params, _ = checkpoints.restore_params(param_paths.unflatten(saved), step)
    found = param_paths.flatten(params)
    if not base:
        return step, found
    own = replace(ctx, config=checkpoints.config(step))  # the base has the sizes of this model, not those of the run's
    return step, found | base_params(base, checkpoints.path, left, own, named)


def base_params(
    base: Mapping[str, Any], folder: Path, wanted: Mapping[str, Any], ctx: RunContext, named: Path | None = None
) -> Params:
    """Read the parameters `wanted` ({path: abstract array}) from the base of the checkpoints in `folder`.

    The base is at `named`, where it was, or at the same relative place; its digest must match.
    """
    problems = []
    for place in [named] if named is not None else _candidate_paths(base, folder):
        name = f"{place}" if base["step"] is None else f"{place} step {base['step']}"
        try:
            loaded, peft = _load(place, base["step"], ctx)
        except (UserError, StorageError) as error:
            problems.append(f"the weights below them cannot be read from {name}; put them back there ({error})")
            continue
        fits = {path: x for path, x in wanted.items() if path in loaded and loaded[path].shape == x.shape}
        merged = {path: x for path, x in loaded.items() if lora.is_lora(path)} if base.get("lora_merged") else {}
        found = {path: jax.device_put(loaded[path], x.sharding) for path, x in fits.items()}
        if params_digest({**found, **merged}) == base["digest"]:
            whole = lora.merge({**found, **merged}, peft.lora_scale)
            return {path: jax.device_put(whole[path], x.sharding) for path, x in fits.items()} if merged else found
        problems.append(f"{name} no longer has the weights they were trained on; put those back")
    raise UserError(
        f"{folder}: holds only what was trained, and {problems[0]}, or name a folder that has them (digest "
        f"{base['digest'][:12]}): --base PATH, in a configuration stages.NAME.adapter_base"
    )


def _candidate_paths(base: Mapping[str, Any], folder: Path) -> list[Path | str]:
    """The recorded path of the base, its own `adapter_base`, and folders with matching names near the checkpoints."""
    if "path" in base and (remote.is_remote(base["path"]) or pretrained.hub_name(base["path"])):
        return [base["path"], *([Path(base["init_base"])] if "init_base" in base else [])]
    recorded = folder.parent / base["stage"] if "stage" in base else Path(base["path"])
    if remote.is_remote(folder):
        return [recorded, *([Path(base["init_base"])] if "init_base" in base else [])]
    tails = [Path(*recorded.parts[-length:]) for length in range(1, min(5, len(recorded.parts)))]
    around = [above / tail for above in [folder, *folder.absolute().parents[:4]] for tail in tails]
    known = [recorded, *([Path(base["init_base"])] if "init_base" in base else [])]
    return [*known, *dict.fromkeys(place for place in around if place not in (*known, folder) and place.is_dir())]


def _load(name: Path | str, step: int | None, ctx: RunContext) -> tuple[Mapping[str, Any], PeftOptions]:
    checkpoints = CheckpointReader(remote.as_path(name))
    if not remote.is_remote(name) or not checkpoints.committed_steps():  # a stage in an object store is read there
        place = locate_model(name)
        with pretrained.name_in_errors(place):
            if (place.path / "config.json").is_file():
                return hf_folder.load_params(place.path, ctx.config.model), PeftOptions()
            checkpoints = CheckpointReader(find(place.path))
    asked = checkpoints.ref.step
    if asked is None and step in checkpoints.committed_steps():
        asked = step
    return restore_params(checkpoints, ctx, asked)[1], checkpoint_peft(checkpoints, asked)


def lone_context(checkpoints: CheckpointReader) -> RunContext:
    """A context of this machine's devices for reading a checkpoint outside its run."""
    tokenizer = load.from_json(checkpoints.meta()["tokenizer_json"], str(checkpoints.path))
    return RunContext(checkpoints.config(), Path.cwd(), make_mesh(MeshConfig()), tokenizer)


def checkpoint_peft(checkpoints: CheckpointReader, step: int | None = None) -> PeftOptions:
    """The layers that the stage of a checkpoint added."""
    return peft_options(checkpoints.config(step).stages[checkpoints.meta(step)["stage"]].trainable)


def base_meta(
    found: CheckpointRef,
    step: int | None,
    start: Pretrained | None,
    frozen: Mapping[str, jax.Array],
    named: Path | None = None,
    merged: bool = False,
) -> dict[str, Any]:
    """The entry `base` in the meta data of an adapter-only checkpoint, whose weights `frozen` come from `found`.

    With `merged`, `frozen` is as in `found`, with the LoRA that is to be merged into it.

    step: None for Hugging Face weights. start: what `init_from` names, None for a stage of the same run, which is
    recorded without its path: runs may be moved. Copies are recorded by their name, with the commit.
    """
    place = found.path if found.name else found.folder
    where = {"stage": place.name} if start is None else {"path": str(place.absolute())}
    if start is not None and not start.is_local:
        where = {"path": str(start)}
    where |= {"init_base": str(named.absolute())} if named else {}
    about: dict[str, Any] = {"lora_merged": True} if merged else {}
    return where | about | {"step": step, "digest": params_digest(frozen)}
