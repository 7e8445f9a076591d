"""The runs of a ladder: a pre-training of every rung and seed, and one for each task, frozen and tuned."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bertjax.config.loading import variants
from bertjax.config.schema.ladder import Ladder, Rung
from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.tools.ladder.text_tasks import as_text_to_text

_REFUSED = {  # keys that overrides of a rung cannot have
    "run.name": "a run is named after its rung; change the rung's name",
    "run.seed": "seeds are those of ladder.seeds",
    "run.root": "all rungs are under one root",
    "init_from": "a rung is pre-trained, and its tasks start from that",
    "pretrained": "is not read here",
    "name": "the stage has the same name in every rung",
    "stages": "give keys of the stage",
    "compare": "is not read here",
    "ladder": "is not read here",
}


@dataclass(frozen=True)
class RungRuns:
    """The runs of a rung with one seed. `frozen` and `tuned`: {name of the task: its run}."""

    rung: Rung
    seed: int
    pretraining: Config
    frozen: dict[str, Config]
    tuned: dict[str, Config]

    def all(self) -> Iterator[Config]:
        yield from (self.pretraining, *self.frozen.values(), *self.tuned.values())


def tokenizer_folder(config: Config) -> str:
    """Where the vocabulary is that the rungs share, trained once."""
    return str(config.run_place.with_name(f"{config.run.name}-tokenizer"))


def build_runs(config: Config) -> list[RungRuns]:
    """The runs of each rung and seed, in order; all are validated. Raises UserError."""
    ladder = config.ladder
    if ladder is None:
        raise UserError("ladder: names no rungs; give ladder: {rungs: [{name: bert}, ...]}")
    if config.tokenizer.path is None:
        shared = config.tokenizer.model_copy(update={"path": tokenizer_folder(config)})
        config = config.model_copy(update={"tokenizer": shared})
    return [_rung_runs(config, ladder, rung, seed) for rung in ladder.rungs for seed in ladder.seeds]


def _rung_runs(config: Config, ladder: Ladder, rung: Rung, seed: int) -> RungRuns:
    first, *tasks = config.stages
    name = f"{rung.name}-s{seed}"
    seeded = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed}), "stages": [first]})
    pretraining = _run(seeded, name, {f"ladder.{rung.name}.overrides": rung.overrides})
    begun = {
        "model": pretraining.model,
        "tokenizer": pretraining.tokenizer.model_copy(update={"path": str(pretraining.run_place / "tokenizer")}),
        "mesh": pretraining.mesh,
        "run": pretraining.run.model_copy(update={"name": config.run.name}),
    }
    frozen: dict[str, Config] = {}
    tuned: dict[str, Config] = {}
    for task in tasks:
        stage = as_text_to_text(config, task) if rung.text_to_text else task
        stage = stage.model_copy(update={"init_from": str(pretraining.run_place)})
        alone = config.model_copy(update={**begun, "stages": [stage]})
        changes: dict[str, Mapping[str, Any]] = {f"ladder.{rung.name}.tasks": rung.tasks}
        tuned[task.name] = _run(alone, f"{name}-{task.name}-tuned", changes)
        if rung.frozen is not None:
            changes |= {"ladder.frozen": _with_trainable(ladder.frozen), f"ladder.{rung.name}.frozen": rung.frozen}
            frozen[task.name] = _run(alone, f"{name}-{task.name}-frozen", changes)
    return RungRuns(rung, seed, pretraining, frozen, tuned)


def _with_trainable(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    given = any(key.split(".")[-1] == "trainable" or ".trainable." in f".{key}" for key in overrides)
    return overrides if given else {"trainable": "head", **overrides}


def _run(config: Config, name: str, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    """The run of a configuration of one stage; `changes`: {where they are written: overrides}."""
    scope = "a rung overrides keys of one stage, without its name"
    keyed = {
        where: variants.full_keys(overrides, config, 0, where=where, scope=scope, refused=_REFUSED)
        for where, overrides in changes.items()
    }
    replaced: dict[str, Any] = {}
    for keys in keyed.values():
        if "model" in keys:  # replaced as one: no sizes of the base stay
            replaced["model"] = keys.pop("model")
    return variants.run_config(config, name, {}, keyed, replaced)
