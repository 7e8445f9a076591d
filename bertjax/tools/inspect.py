"""`bertjax inspect`: describe a configuration or checkpoint, and what trains at a given step."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from bertjax.config.loading.load import load
from bertjax.config.loading.pretrained import locate_model
from bertjax.config.schema.run import Config, Stage
from bertjax.errors import UserError
from bertjax.evaluation import hf_model
from bertjax.models import registry
from bertjax.objectives import registry as objectives_registry
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.storage import pretrained, remote
from bertjax.storage.pretrained import Pretrained
from bertjax.training import freezing, optimizers, rates, run_context
from bertjax.training.checkpoint.locate import find, find_remote, find_run_dir, list_complete_steps
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor import goodput
from bertjax.training.monitor.param_summary import model_summary
from bertjax.training.program import peft_options
from bertjax.training.triggers.early_stopping import StopRule
from bertjax.training.untrained_heads import all_heads, summary_line

NOMINAL_STEPS = 10_000  # steps assumed for a stage of unknown length


def inspect_command(target: str | Path, overrides: Sequence[str], step: int | None, as_json: bool) -> str:
    """Describe a YAML file, a run folder, a checkpoint or a pretrained model as text or JSON.

    For a configuration: the model and episodes of each stage and, at `step` (counted over all stages; default 0), the
    stage, episode, learning rate and trained groups. For a checkpoint: its step, scores and origin.
    """
    if Path(target).is_file():
        found = inspect_config(load(target, overrides), step)
    else:
        place = locate_model(target) if not remote.is_remote(target) else _copy_remote(str(target), step)
        with pretrained.name_in_errors(place):
            is_hugging_face = (place.path / "config.json").is_file()
            found = inspect_hugging_face(place) if is_hugging_face else inspect_checkpoint(place.path, step)
            if not place.is_local and "checkpoint" in found and not is_hugging_face:
                found |= _remote_facts(place, found)
    if as_json:
        return json.dumps({k: v for k, v in found.items() if k != "table"}, indent=2)
    return "\n".join(_lines(found))


def _copy_remote(url: str, step: int | None) -> Pretrained:
    """A copy of the small files of a model in an object store; of a Hugging Face folder all of it."""
    place = pretrained.locate(url, weights=False, step=find_remote(url, step=step))
    return locate_model(url) if (place.path / "config.json").is_file() else place


def _remote_facts(place: Pretrained, found: dict[str, Any]) -> dict[str, Any]:
    """What `inspect_checkpoint` cannot see in the copy of a run: its place in the store, and the other steps there."""
    if not remote.is_remote(place.name):
        return {}
    where = found["checkpoint"].replace(str(place.path), place.name.rstrip("/"))
    return {"checkpoint": where, "steps": list_complete_steps(remote.as_path(where)) or found["steps"]}


def inspect_hugging_face(place: Pretrained) -> dict[str, Any]:
    """Describe a Hugging Face folder, or a model on the Hub."""
    model = hf_model.open_model(place)
    config = model.ctx.config
    meta = run_context.checkpoint_meta(model.ctx, model.program, 0, 0)
    return {
        "checkpoint": str(place),
        **({"pretrained": place.record} if place.record else {}),
        "steps": [0],
        "step": 0,
        "stage": config.stages[0].name,
        "heads": meta["heads"],
        **({"labels": model.labels} if model.labels else {}),
        "tokenizer_sha256": meta["tokenizer_sha256"],
        "environment": meta["environment"],
        **_model(config, config.stages[0], meta),
    }


def inspect_checkpoint(target: Path, step: int | None) -> dict[str, Any]:
    place = find(target, step=step)
    checkpoints = CheckpointReader(place)
    meta, config, steps = checkpoints.meta(), checkpoints.config(), checkpoints.committed_steps()
    run = find_run_dir(place.folder)
    spent = goodput.read(run) if run else None
    stage = config.stages[meta["stage"]]
    return {
        "checkpoint": str(place.path if place.name else place.folder),
        "steps": steps,
        "step": meta["step"],
        "stage": stage.name,
        "heads": meta["heads"],
        **_early_stopping(checkpoints, stage, meta),
        **({"labels": meta["labels"]} if meta.get("labels") else {}),
        **({"carried_heads": meta["carried"]} if meta.get("carried") else {}),
        "tokenizer_sha256": meta["tokenizer_sha256"],
        "environment": meta["environment"],
        **({"goodput": asdict(spent)} if spent else {}),
        **({"base": meta["base"]} if meta.get("base") else {}),
        **({"pretrained": meta["pretrained"]} if meta.get("pretrained") else {}),
        **_model(config, stage, meta),
    }


def _early_stopping(checkpoints: CheckpointReader, stage: Stage, meta: dict[str, Any]) -> dict[str, Any]:
    """The scores that early stopping has seen, and the step at which it ended the stage."""
    if stage.early_stopping is None:
        return {}
    rule = StopRule(stage.early_stopping, checkpoints.config().run.checkpoint.best_mode)
    rule.restore(meta, checkpoints.scores_of(meta["step"]))
    seen = {str(step): value for step, value in rule.history}
    return {"early_stopping": {"metric": stage.early_stopping.metric, "scores": seen, "stopped_at": rule.step}}


def inspect_config(config: Config, step: int | None) -> dict[str, Any]:
    """Raises UserError for a step in or after a stage whose length in steps is unknown."""
    stages = [_stage(config, stage) for stage in config.stages]
    return {"name": config.run.name, "stages": stages, "at": _place(config, stages, step)}


def _place(config: Config, described: list[dict[str, Any]], step: int | None) -> dict[str, Any] | None:
    """The state at a step counted over all stages (None: 0); None without a step if the first length is unknown."""
    passed, wanted = 0, step or 0
    for stage, description in zip(config.stages, described, strict=True):
        if stage.steps is None:
            if step is None:
                return None
            raise UserError(
                f"stages.{stage.name}.epochs: its steps are known when the data is read, so step {step} cannot be "
                f"placed; give stages.{stage.name}.epochs=null stages.{stage.name}.steps=N"
            )
        if wanted < passed + stage.steps or stage is config.stages[-1]:
            return _at(stage, description, stage.steps, min(wanted - passed, stage.steps)) | {"step": wanted}
        passed += stage.steps
    return None


def _model(config: Config, stage: Stage, meta: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint, marked if they trained in its last step; an import (step 0) trained none."""
    peft = peft_options(stage.trainable)
    heads, labels = all_heads(meta), meta["num_labels"]
    names = registry.logical_axes(registry.abstract_model(config.model, heads, labels, peft=peft)[1])
    params = registry.abstract_params(config.model, heads, labels, peft)
    own = registry.abstract_params(config.model, tuple(meta["heads"]), labels, peft)
    mesh, table = make_mesh(config.mesh), merge_rules(config.mesh.rules)
    param_shardings = {p: sharding.named_sharding(mesh, names[p], x.shape, table) for p, x in params.items()}
    steps = meta.get("steps") or stage.steps or meta["step"]
    plan = freezing.stage_episodes(stage, freezing.param_groups(own), steps) if meta["step"] else ()
    trained = next((e.groups for e in reversed(plan) if e.start < meta["step"]), ())
    factors = {path: rate.factor for path, rate in rates.other_rates(stage.optimizer, own).items()}
    text = model_summary(own, param_shardings, trained, factors)
    if untrained := {path: x for path, x in params.items() if path not in own}:
        text += summary_line(untrained)
    return {"parameters": sum(prod(x.shape) for x in params.values()), "table": text}


def _stage(config: Config, stage: Stage) -> dict[str, Any]:
    """Describes a stage. Episode bounds are steps, or fractions of a stage in epochs."""
    objective = objectives_registry.build(stage.objective)
    peft = peft_options(stage.trainable)
    shapes = registry.abstract_params(config.model, objective.heads, objective.num_labels, peft)
    sizes = freezing.group_sizes(shapes)
    plan = freezing.stage_episodes(stage, tuple(sizes), stage.steps or NOMINAL_STEPS)
    rates.check_patterns(stage, shapes, plan)
    others = {rate.name: rate.factor for rate in rates.other_rates(stage.optimizer, shapes).values()}
    bound = lambda at: at if stage.steps else at / NOMINAL_STEPS  # noqa: E731
    warmup = {"warmup_steps": optimizers.warmup_steps(stage.optimizer, stage.steps)} if stage.steps else {}
    length = {"steps": stage.steps} if stage.steps else {"epochs": stage.epochs}
    longest = max(task.preprocess.sequence_length for task in config.stage_tasks(stage).values())
    trained = {e: sum(sizes[group] for group in e.groups) for e in plan}
    return {
        "stage": stage.name,
        "objective": stage.objective.kind,
        **length,
        "batch_size": stage.batch_size,
        "tokens_per_step": stage.batch_size * longest,
        "parameters": sum(sizes.values()),
        **({"adapter_size": peft.adapter_size} if peft.adapter_size else {}),
        **({"lora_rank": peft.lora_rank, "lora_targets": list(peft.lora_targets)} if peft.lora_rank else {}),
        **({"feature_layers": peft.feature_layers} if peft.feature_layers else {}),
        **({"early_stopping": stage.early_stopping.model_dump()} if stage.early_stopping else {}),
        **warmup,
        **({"rate_factors": others} if others else {}),
        "episodes": [
            {"start": bound(e.start), "stop": bound(e.stop), "groups": list(e.groups), "trained": trained[e]}
            for e in plan
        ],
    }


def _at(stage: Stage, described: dict[str, Any], steps: int, step: int) -> dict[str, Any]:
    """The state at `step` of a stage."""
    number = next((i for i, e in enumerate(described["episodes"]) if step < e["stop"]), -1)
    episode = described["episodes"][number]
    bounds = [(e["start"], e["stop"]) for e in described["episodes"]]
    rate = float(optimizers.restarting_schedule(stage.optimizer, steps, bounds)(jnp.int32(step)))
    others = described.get("rate_factors", {})
    return {
        "stage": stage.name,
        "stage_step": step,
        "episode": number % len(described["episodes"]),
        "learning_rate": rate,
        **({"learning_rates": {name: rate * factor for name, factor in others.items()}} if others else {}),
        "trains": episode["groups"],
        "trained_parameters": episode["trained"],
    }


def _lines(found: dict[str, Any]) -> list[str]:
    if "checkpoint" in found:
        head = [f"{key}: {found[key]}" for key in ("checkpoint", "steps", "step", "stage", "heads", "tokenizer_sha256")]
        names = [f"{number}={name}" for number, name in enumerate(found.get("labels", ()))]
        if rule := found.get("early_stopping"):
            seen = ", ".join(f"{value} at {step}" for step, value in rule["scores"].items()) or "no scores yet"
            ended = f"; stopped the stage at step {rule['stopped_at']}" if rule["stopped_at"] else ""
            head.append(f"early stopping: {rule['metric']}: {seen}{ended}")
        if names:
            head.append(f"labels: {', '.join(names)}")
        if "carried_heads" in found:
            head.append(f"carried heads, not trained here: {', '.join(found['carried_heads'])}")
        if base := found.get("base"):
            head.append(f"base: {base.get('path') or base['stage']}, step {base['step']}, digest {base['digest'][:12]}")
        if start := found.get("pretrained"):
            head.append(f"started from: {start['name']}, commit {start['commit']}")
        if "goodput" in found:
            head.append(str(goodput.GoodputSummary(**found["goodput"])))
        devices = ", ".join(map(str, found["environment"].get("devices", ())))
        return [*head, f"devices: {devices}", "", found["table"].rstrip()]
    lines = []
    for s in found["stages"]:
        length = f"{s['steps']} steps" if "steps" in s else f"{s['epochs']:g} epochs"
        warmup = f", warm-up {s['warmup_steps']}" if "steps" in s else ""
        added = f" with adapters of size {s['adapter_size']}" if "adapter_size" in s else ""
        if "lora_rank" in s:
            added = f" with LoRA of rank {s['lora_rank']} on {', '.join(s['lora_targets'])}"
        if "feature_layers" in s:
            added = f" on features of the encoder ({s['feature_layers']})"
        lines.append(
            f"stage {s['stage']}: {s['objective']}, {length} of {s['batch_size']} rows a step "
            f"({s['tokens_per_step']:,} positions), {s['parameters']:,} parameters{added}{warmup}"
        )
        if rule := s.get("early_stopping"):
            lines.append(f"  ends early when {rule['metric']} has not improved in {rule['patience']} evaluations")
        if factors := s.get("rate_factors"):
            lines.append("  learning rate x " + ", ".join(f"{factor:.4g}: {name}" for name, factor in factors.items()))
        for number, e in enumerate(s["episodes"]):
            bounds = f"steps {e['start']}..{e['stop'] - 1}" if "steps" in s else f"{e['start']:.0%} to {e['stop']:.0%}"
            trains = f"trains {e['trained']:,} parameters: {freezing.format_groups(e['groups'])}"
            lines.append(f"  episode {number}: {bounds}, {trains}")
    if at := found["at"]:
        lines.append(
            f"at step {at['step']}: stage {at['stage']} step {at['stage_step']}, episode {at['episode']}, "
            f"learning rate {at['learning_rate']:.3g}, trains {freezing.format_groups(at['trains'])}"
        )
        lines += [f"  {name}: learning rate {rate:.3g}" for name, rate in at.get("learning_rates", {}).items()]
    return lines
