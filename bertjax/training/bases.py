"""What a checkpoint's parameters are, and adapter-only checkpoints: those that hold nothing but what trains.

The weights they leave out are those of their base, the checkpoint or Hugging Face folder that the stage started from;
`base` in their meta data names it and has a digest of the weights taken from it. Whoever reads such a checkpoint gets
whole parameters, checked against that digest. Many adapters stand on one base.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from bertjax.config.schema import Stage
from bertjax.config.training_schema import Trainable
from bertjax.errors import StorageError, UserError
from bertjax.interop import huggingface
from bertjax.models import paths
from bertjax.training import digest, freezing
from bertjax.training import state as states
from bertjax.training.carried import all_heads
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.runs import Found, find
from bertjax.training.setup import Job, config_of
from bertjax.training.state import Params, TrainState
from bertjax.training.step import Program
from bertjax.training.step_record import sha256


def source_of(stage: Stage, index: int) -> str:
    """scratch, previous, or the folder that a stage starts from."""
    return stage.init_from or ("previous" if index else "scratch")


def holds_part(stage: Stage, index: int) -> bool:
    """Whether the checkpoints of a stage hold only what trains; from scratch there is no base, so they hold all."""
    kind = stage.trainable
    return kind.kind == "adapters" and kind.adapter_only_checkpoints and source_of(stage, index) != "scratch"


def left_out(params: Mapping[str, Any], trainable: Trainable) -> dict[str, Any]:
    """What of {path: x} an adapter-only checkpoint leaves out: all that does not train."""
    (episode,) = freezing.episodes(trainable, freezing.groups_of(params), 1)
    return {path: x for path, x in params.items() if freezing.group_of(path) not in episode.groups}


def digest_of(params: Mapping[str, jax.Array]) -> str:
    """One digest of {path: array}, the same for every sharding."""
    return sha256({path: f"{leaf.digest:08x}" for path, leaf in digest.measure(params).items()})


def program_of(meta: Mapping[str, Any], where: Path, job: Job) -> Program:
    """The program a checkpoint was made by, on this job's mesh."""
    stored = config_of(dict(meta), where)
    stage = stored.stages[meta["stage"]]
    own = Job(stored, job.base, job.mesh, job.tokenizer)
    return own.program(stage, steps=1, heads=all_heads(meta), num_labels=meta["num_labels"])


def to_tree(state: TrainState, stage: Stage, index: int, carried: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's checkpoint holds of a state: all of it, or all but the frozen parameters; and the carried ones."""
    tree = states.to_tree(state)
    frozen = {} if holds_part(stage, index) else state.frozen
    return tree | {"params": paths.unflatten({**state.params, **frozen, **carried})}


def completed(
    tree: dict[str, Any],
    base: Mapping[str, Any] | None,
    folder: Path,
    like: TrainState,
    job: Job,
    named: Path | None = None,
) -> dict[str, Any]:
    """What `to_tree` gave and a checkpoint in `folder` kept, with the parameters of its base for those it left out."""
    if base is None:
        return tree
    params = paths.flatten(tree["params"]) | beneath(base, folder, like.frozen, job, named)
    return tree | {"params": paths.unflatten(params)}


def read(
    checkpoints: Checkpoints, step: int | None, meta: Mapping[str, Any], job: Job, named: Path | None = None
) -> tuple[int, Params]:
    """-> (step, all parameters on this job's mesh) of a checkpoint with these meta data, its base's among them.

    named: where a person says that the base is. Raises like `Checkpoints.restore`, and UserError when the base is not
    there or has other weights, or when one is named and the checkpoint needs none.
    """
    wanted = program_of(meta, checkpoints.where, job).abstract_params()
    base = meta.get("base")
    if named is not None and base is None:
        raise UserError(f"{checkpoints.where}: holds all its weights and needs no base; leave out {named}")
    trainable = config_of(dict(meta), checkpoints.where).stages[meta["stage"]].trainable
    left = left_out(wanted, trainable) if base else {}
    held = {path: x for path, x in wanted.items() if path not in left}
    step, params, _ = checkpoints.restore_params(paths.unflatten(held), step)
    return step, paths.flatten(params) | (beneath(base, checkpoints.where, left, job, named) if base else {})


def beneath(
    base: Mapping[str, Any], folder: Path, wanted: Mapping[str, Any], job: Job, named: Path | None = None
) -> Params:
    """The parameters `wanted` ({path: abstract array in its shards}) out of the base of the checkpoints in `folder`.

    The base is `named`, or where it was, or at the same place relative to the checkpoints. It is known by its digest:
    one that moved is as good, one with other weights is refused.
    """
    problems = []
    for place in [named] if named is not None else _places(base, folder):
        name = f"{place}" if base["step"] is None else f"{place} step {base['step']}"
        try:
            loaded = _load(place, base["step"], job)
        except (UserError, StorageError) as error:
            problems.append(f"the weights below them cannot be read from {name}; put them back there ({error})")
            continue
        fits = {path: x for path, x in wanted.items() if path in loaded and loaded[path].shape == x.shape}
        found = {path: jax.device_put(loaded[path], x.sharding) for path, x in fits.items()}
        if digest_of(found) == base["digest"]:
            return found
        problems.append(f"{name} no longer has the weights they were trained on; put those back")
    raise UserError(
        f"{folder}: holds adapters alone, and {problems[0]}, or name a folder that has them (digest "
        f"{base['digest'][:12]}): --base PATH, in a configuration stages.NAME.init_base"
    )


def _places(base: Mapping[str, Any], folder: Path) -> list[Path]:
    """Where the base was, where `init_base` said that its weights are, and folders with the last names of its path
    beside and above the checkpoints.
    """
    recorded = folder.parent / base["stage"] if "stage" in base else Path(base["path"])
    tails = [Path(*recorded.parts[-length:]) for length in range(1, min(5, len(recorded.parts)))]
    around = [above / tail for above in [folder, *folder.absolute().parents[:4]] for tail in tails]
    known = [recorded, *([Path(base["init_base"])] if "init_base" in base else [])]
    return [*known, *dict.fromkeys(place for place in around if place not in (*known, folder) and place.is_dir())]


def _load(place: Path, step: int | None, job: Job) -> Mapping[str, Any]:
    if (place / "config.json").is_file():
        return huggingface.load_params(place, job.config.model)
    found = find(place)
    with Checkpoints.reader(found) as checkpoints:
        asked = step if found.step is None and step in checkpoints.committed_steps() else found.step
        return read(checkpoints, asked, checkpoints.meta(asked), job)[1]


def described(
    found: Found, step: int | None, same_run: bool, frozen: Mapping[str, jax.Array], named: Path | None = None
) -> dict[str, Any]:
    """What the meta data of an adapter-only checkpoint say of its base, from which the weights `frozen` come.

    step: None for a Hugging Face folder. A stage of the same run is named without its path: a run may be moved.
    named: where a person said that the weights below the adapters of that base are (init_base).
    """
    place = found.path if found.name else found.folder
    where = {"stage": place.name} if same_run else {"path": str(place.absolute())}
    where |= {"init_base": str(named.absolute())} if named else {}
    return where | {"step": step, "digest": digest_of(frozen)}
