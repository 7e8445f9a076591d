"""Restore the parameters of a checkpoint, also of an adapter-only one, which holds only what trains.

The weights that it omits are those of its base, the checkpoint or Hugging Face folder that the stage started from;
`base` in its meta data names it and has a digest of the weights taken from it. Restoring gives all parameters, checked
against that digest. Many adapters can share one base.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema.run import Stage
from bertjax.config.schema.training import Trainable
from bertjax.errors import StorageError, UserError
from bertjax.interop import hf_folder
from bertjax.models import param_paths
from bertjax.training import freezing
from bertjax.training import state as training_state
from bertjax.training.checkpoint import checksums
from bertjax.training.checkpoint.integrity import json_sha256
from bertjax.training.checkpoint.locate import CheckpointRef, find
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.checkpoint.stage_files import init_source
from bertjax.training.program import TrainProgram, stage_program
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params, TrainState
from bertjax.training.untrained_heads import all_heads


def is_adapter_only(stage: Stage, index: int) -> bool:
    """Whether the checkpoints of a stage hold only what trains; from scratch there is no base, so they hold all."""
    kind = stage.trainable
    return kind.kind == "adapters" and kind.adapter_only_checkpoints and init_source(stage, index) != "scratch"


def omitted_params(params: Mapping[str, Any], trainable: Trainable) -> dict[str, Any]:
    """The part of {path: x} that an adapter-only checkpoint omits: all that does not train."""
    (episode,) = freezing.episodes(trainable, freezing.param_groups(params), 1)
    return {path: x for path, x in params.items() if freezing.param_group(path) not in episode.groups}


def params_digest(params: Mapping[str, jax.Array]) -> str:
    """One digest of {path: array}, the same for every sharding."""
    return json_sha256({path: f"{leaf.digest:08x}" for path, leaf in checksums.compute_digests(params).items()})


def saved_program(checkpoints: CheckpointReader, step: int | None, ctx: RunContext) -> TrainProgram:
    """The program that a checkpoint was made by, on the run's mesh."""
    meta, config = checkpoints.meta(step), checkpoints.config(step)
    stage = config.stages[meta["stage"]]
    return stage_program(config, stage, ctx.mesh, 1, heads=all_heads(meta), num_labels=meta["num_labels"])


def checkpoint_tree(state: TrainState, stage: Stage, index: int, untrained: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's checkpoint holds of a state: all of it, or all but the frozen parameters; and untrained heads."""
    tree = training_state.to_tree(state)
    frozen = {} if is_adapter_only(stage, index) else state.frozen
    return tree | {"params": param_paths.unflatten({**state.params, **frozen, **untrained})}


def merge_base(
    tree: dict[str, Any],
    base: Mapping[str, Any] | None,
    folder: Path,
    like: TrainState,
    ctx: RunContext,
    named: Path | None = None,
) -> dict[str, Any]:
    """The restored tree of `checkpoint_tree`, with the omitted parameters out of the base of the checkpoint."""
    if base is None:
        return tree
    params = param_paths.flatten(tree["params"]) | base_params(base, folder, like.frozen, ctx, named)
    return tree | {"params": param_paths.unflatten(params)}


def restore_params(
    checkpoints: CheckpointReader,
    ctx: RunContext,
    step: int | None = None,
    named: Path | None = None,
    program: TrainProgram | None = None,
) -> tuple[int, Params]:
    """-> (step, all parameters on the run's mesh) of a checkpoint, those of its base among them.

    named: where the user says that the base is. program: that of the checkpoint, where it is built already. Raises like
    `CheckpointReader.restore`, and UserError when the base is missing or has other weights, or when one is named and
    the checkpoint needs none.
    """
    meta = checkpoints.meta(step)
    wanted = (program or saved_program(checkpoints, step, ctx)).abstract_params()
    base = meta.get("base")
    if named is not None and base is None:
        raise UserError(f"{checkpoints.path}: holds all its weights and needs no base; leave out {named}")
    left = omitted_params(wanted, checkpoints.config(step).stages[meta["stage"]].trainable) if base else {}
    saved = {path: x for path, x in wanted.items() if path not in left}
    step, params, _ = checkpoints.restore_params(param_paths.unflatten(saved), step)
    return step, param_paths.flatten(params) | (base_params(base, checkpoints.path, left, ctx, named) if base else {})


def base_params(
    base: Mapping[str, Any], folder: Path, wanted: Mapping[str, Any], ctx: RunContext, named: Path | None = None
) -> Params:
    """The parameters `wanted` ({path: abstract array in its shards}) out of the base of the checkpoints in `folder`.

    The base is `named`, or where it was, or at the same place relative to the checkpoints. Its digest identifies it:
    one that moved is accepted, one with other weights is refused.
    """
    problems = []
    for place in [named] if named is not None else _candidate_paths(base, folder):
        name = f"{place}" if base["step"] is None else f"{place} step {base['step']}"
        try:
            loaded = _load(place, base["step"], ctx)
        except (UserError, StorageError) as error:
            problems.append(f"the weights below them cannot be read from {name}; put them back there ({error})")
            continue
        fits = {path: x for path, x in wanted.items() if path in loaded and loaded[path].shape == x.shape}
        found = {path: jax.device_put(loaded[path], x.sharding) for path, x in fits.items()}
        if params_digest(found) == base["digest"]:
            return found
        problems.append(f"{name} no longer has the weights they were trained on; put those back")
    raise UserError(
        f"{folder}: holds adapters alone, and {problems[0]}, or name a folder that has them (digest "
        f"{base['digest'][:12]}): --base PATH, in a configuration stages.NAME.adapter_base"
    )


def _candidate_paths(base: Mapping[str, Any], folder: Path) -> list[Path]:
    """Where the base was, where `adapter_base` said that its weights are, and folders with the last names of its path
    beside and above the checkpoints.
    """
    recorded = folder.parent / base["stage"] if "stage" in base else Path(base["path"])
    tails = [Path(*recorded.parts[-length:]) for length in range(1, min(5, len(recorded.parts)))]
    around = [above / tail for above in [folder, *folder.absolute().parents[:4]] for tail in tails]
    known = [recorded, *([Path(base["init_base"])] if "init_base" in base else [])]
    return [*known, *dict.fromkeys(place for place in around if place not in (*known, folder) and place.is_dir())]


def _load(place: Path, step: int | None, ctx: RunContext) -> Mapping[str, Any]:
    if (place / "config.json").is_file():
        return hf_folder.load_params(place, ctx.config.model)
    checkpoints = CheckpointReader(find(place))
    asked = checkpoints.ref.step
    if asked is None and step in checkpoints.committed_steps():
        asked = step
    return restore_params(checkpoints, ctx, asked)[1]


def base_meta(
    found: CheckpointRef, step: int | None, same_run: bool, frozen: Mapping[str, jax.Array], named: Path | None = None
) -> dict[str, Any]:
    """The entry `base` in the meta data of an adapter-only checkpoint, whose weights `frozen` come from `found`.

    step: None for a Hugging Face folder. A stage of the same run is named without its path: a run may be moved.
    named: where the user said that the weights below the adapters of that base are (adapter_base).
    """
    place = found.path if found.name else found.folder
    where = {"stage": place.name} if same_run else {"path": str(place.absolute())}
    where |= {"init_base": str(named.absolute())} if named else {}
    return where | {"step": step, "digest": params_digest(frozen)}
