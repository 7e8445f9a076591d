"""`bertjax inspect`: what a configuration or a checkpoint is, and what trains at a given step, without training."""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax import objectives
from bertjax.config.load import load
from bertjax.config.schema import CheckpointPolicy, Config, Stage
from bertjax.models import bert, paths
from bertjax.parallel import mesh as meshes
from bertjax.training import freezing, optim
from bertjax.training.checkpoint import Checkpoints
from bertjax.training.runs import find
from bertjax.training.setup import config_of
from bertjax.training.summary import model_summary


def inspect_command(target: Path, overrides: Sequence[str], step: int | None, as_json: bool) -> str:
    """Text (or JSON) about a YAML file, a run folder or a checkpoint.

    For a configuration: each stage's model, episodes and, at `step` (counted over all stages; default 0), the stage,
    episode, learning rate and trained groups. For a checkpoint: its step, scores and where it came from.
    """
    found = inspect_config(load(target, overrides), step or 0) if target.is_file() else inspect_checkpoint(target, step)
    if as_json:
        return json.dumps({k: v for k, v in found.items() if k != "table"}, indent=2)
    return "\n".join(_lines(found))


def inspect_checkpoint(target: Path, step: int | None) -> dict[str, Any]:
    place = find(target, step=step)
    with Checkpoints(place.folder, CheckpointPolicy(), read_only=True) as checkpoints:
        meta = checkpoints.meta(place.step)
        steps = checkpoints.committed_steps()
    config = config_of(meta, place.folder)
    stage = config.stages[meta["stage"]]
    return {
        "checkpoint": str(place.folder),
        "steps": steps,
        "step": meta["step"],
        "stage": stage.name,
        "heads": meta["heads"],
        "tokenizer_sha256": meta["tokenizer_sha256"],
        "environment": meta["environment"],
        **_model(config, tuple(meta["heads"]), meta["num_labels"]),
    }


def inspect_config(config: Config, step: int) -> dict[str, Any]:
    stages, at, passed = [], None, 0
    for index, stage in enumerate(config.stages):
        steps, known = _steps(stage)
        described = _stage(config, stage, steps) | ({} if known else {"steps": f"{stage.epochs} epochs"})
        stages.append(described)
        last = index == len(config.stages) - 1
        if at is None and (step < passed + steps or last or not known):
            at = _at(stage, described, steps, min(step - passed, steps)) | {"step": step}
        passed += steps
    return {"name": config.run.name, "stages": stages, "at": at}


def _steps(stage: Stage) -> tuple[int, bool]:
    """Steps of a stage; with `epochs` they depend on the prepared data, and 1000 stand in for them."""
    return (stage.steps, True) if stage.steps else (1000, False)


def _model(config: Config, heads: tuple[str, ...], num_labels: int) -> dict[str, Any]:
    _, abstract = bert.structure(config.model, heads, num_labels)
    names = bert.logical_axes(abstract)
    mesh = meshes.make_mesh(config.mesh)
    table = meshes.rules(config.mesh.rules)
    params = _arrays(abstract)
    placed = {p: meshes.sharding(mesh, names[p], x.shape, table) for p, x in params.items()}
    return {
        "parameters": sum(prod(x.shape) for x in params.values()),
        "table": model_summary(params, placed, freezing.groups_of(params)),
    }


def _arrays(abstract: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return paths.flatten(nnx.as_pure(abstract))


def _stage(config: Config, stage: Stage, steps: int) -> dict[str, Any]:
    objective = objectives.build(stage.objective)
    _, abstract = bert.structure(config.model, objective.heads, objective.num_labels)
    sizes = _sizes(_arrays(abstract))
    plan = freezing.episodes(stage.trainable, tuple(sizes), steps)
    return {
        "stage": stage.name,
        "objective": stage.objective.kind,
        "steps": steps,
        "batch_size": stage.batch_size,
        "tokens_per_step": stage.batch_size
        * max(task.preprocess.sequence_length for task in config.stage_tasks(stage).values()),
        "parameters": sum(sizes.values()),
        "warmup_steps": optim.warmup_steps(stage.optimizer, steps),
        "episodes": [
            {"start": e.start, "stop": e.stop, "groups": list(e.groups), "trained": sum(sizes[g] for g in e.groups)}
            for e in plan
        ],
    }


def _sizes(params: dict[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    return {
        group: sum(prod(x.shape) for path, x in params.items() if freezing.group_of(path) == group)
        for group in freezing.groups_of(params)
    }


def _at(stage: Stage, described: dict[str, Any], steps: int, step: int) -> dict[str, Any]:
    """What holds at `step` of a stage."""
    number = next((i for i, e in enumerate(described["episodes"]) if step < e["stop"]), -1)
    episode = described["episodes"][number]
    return {
        "stage": stage.name,
        "stage_step": step,
        "episode": number % len(described["episodes"]),
        "learning_rate": float(optim.schedule(stage.optimizer, steps)(jnp.int32(step))),
        "trains": episode["groups"],
        "trained_parameters": episode["trained"],
    }


def _lines(found: dict[str, Any]) -> list[str]:
    if "checkpoint" in found:
        head = [f"{key}: {found[key]}" for key in ("checkpoint", "steps", "step", "stage", "heads", "tokenizer_sha256")]
        return [*head, f"devices: {', '.join(found['environment']['devices'])}", "", found["table"].rstrip()]
    lines = []
    for s in found["stages"]:
        lines.append(
            f"stage {s['stage']}: {s['objective']}, {s['steps']} steps of {s['batch_size']} rows "
            f"({s['tokens_per_step']:,} positions), {s['parameters']:,} parameters, warm-up {s['warmup_steps']}"
        )
        for number, e in enumerate(s["episodes"]):
            lines.append(
                f"  episode {number}: steps {e['start']}..{e['stop'] - 1}, trains {e['trained']:,} parameters: "
                f"{_short(e['groups'])}"
            )
    at = found["at"]
    lines.append(
        f"at step {at['step']}: stage {at['stage']} step {at['stage_step']}, episode {at['episode']}, "
        f"learning rate {at['learning_rate']:.3g}, trains {_short(at['trains'])}"
    )
    return lines


def _short(groups: Sequence[str]) -> str:
    """embeddings, layers 4..11, heads."""
    numbers = [int(g.split("/")[1]) for g in groups if g.startswith("layers/")]
    layers = [f"layers {numbers[0]}..{numbers[-1]}" if len(numbers) > 1 else f"layer {numbers[0]}"] if numbers else []
    others = [g for g in groups if not g.startswith("layers/")]
    return ", ".join([g for g in others if g == "embeddings"] + layers + [g for g in others if g != "embeddings"])
