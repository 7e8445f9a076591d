"""The static part of a stage: model, objective, optimizer, mesh and shardings, as one record."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from bertjax.config.schema.model import ModelConfig
from bertjax.config.schema.optimizers import Optimizer
from bertjax.config.schema.run import Config, Stage
from bertjax.config.schema.training import Trainable
from bertjax.data.pipeline.task_rows import Fields
from bertjax.models import families, layer_stack, param_paths, registry
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.peft_options import PeftOptions
from bertjax.objectives import registry as objectives
from bertjax.objectives.base import Objective
from bertjax.parallel import sharding
from bertjax.parallel.mesh_shape import RULES, Rules, batch_shards, merge_rules
from bertjax.training import freezing, optimizers, rates
from bertjax.training import state as training_state
from bertjax.training.freezing import parse_layer
from bertjax.training.guards.spikes import SpikeRule
from bertjax.training.state import Params, TrainState


class Teacher(NamedTuple):
    """The model of a teacher, with the layers that its own training added."""

    model: ModelConfig
    peft: PeftOptions = PeftOptions()


@dataclass(frozen=True)
class TrainProgram:
    """Everything static about a stage."""

    model: ModelConfig
    objective: Objective
    heads: tuple[str, ...]
    optimizer: Optimizer
    steps: int
    grad_accum: int
    compute: ComputeOptions
    mesh: Mesh
    rules: Rules
    tasks: int = 1  # that its batches are mixed from
    peft: PeftOptions = PeftOptions()
    num_labels: int | None = None  # outputs of a classifier; default: the objective's
    multi_label: bool | None = None  # whether a text may have several of its labels; default: as the objective says
    episodes: tuple[tuple[int, int], ...] = ()  # steps of each episode, for schedules that restart
    spike_rule: SpikeRule | None = None  # of a stage that skips spikes
    fixed_prefix: bool = False  # frozen layers at the bottom of an encoder have no dropout, so that they can be cached
    frozen_layers: int = 0  # of these, while some groups train: see `split_segments`
    teacher: "TrainProgram | None" = None  # of a distilled stage: the model that gives soft targets, never trained

    @property
    def num_classes(self) -> int:
        return self.objective.num_labels if self.num_labels is None else self.num_labels

    @property
    def is_multi_label(self) -> bool:
        return self.objective.multi_label if self.multi_label is None else self.multi_label

    def __post_init__(self) -> None:
        structure = registry.abstract_model(self.model, self.heads, self.num_classes, self.compute, self.peft)
        object.__setattr__(self, "_structure", structure)
        object.__setattr__(self, "tx", optimizers.make_transform(self.optimizer))

    def build_model(self, params: Mapping[str, jax.Array]) -> registry.Module:
        model = registry.merge(*self._structure, params)  # type: ignore[attr-defined,call-arg]
        if self.frozen_layers:
            model.frozen_layers = self.frozen_layers
        return model

    def logical_axes(self) -> dict[str, tuple[str | None, ...]]:
        """{path: logical axes} of all parameters."""
        return registry.logical_axes(self._structure[1])  # type: ignore[attr-defined]

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{path: shape, dtype and sharding} of all parameters."""
        return dict(self._abstract_params)

    @cached_property
    def _abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        names = self.logical_axes()
        flat = param_paths.flatten(nnx.as_pure(self._structure[1]))  # type: ignore[attr-defined]
        return {
            path: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding.named_sharding(self.mesh, names[path], x.shape, self.rules)
            )
            for path, x in flat.items()
        }

    def param_shardings(self) -> dict[str, NamedSharding]:
        return {path: x.sharding for path, x in self.abstract_params().items()}

    @cached_property
    def rate_factors(self) -> dict[str, float]:
        """{path: factor of the learning rate} of the parameters whose factor is not 1."""
        others = rates.other_rates(self.optimizer, self.abstract_params())
        return {path: rate.factor for path, rate in others.items() if rate.factor != 1.0}

    def named_rates(self, groups: Collection[str]) -> dict[str, float]:
        """{pattern or parameter group: factor of the learning rate} of these groups, where an option gives one."""
        params = self.abstract_params()
        of = freezing.grouped(params)
        others = rates.other_rates(self.optimizer, params)
        return {rate.name: rate.factor for path, rate in others.items() if of[path] in groups}

    @property
    def manual_axes(self) -> tuple[str, ...]:
        """Batch axes of the mesh along which the step itself gathers weights and sums gradients; none in most programs.

        The partitioner would all-reduce full gradients over all devices in every micro-batch. Manual collectives
        reduce-scatter them inside a slice or an `fsdp` group and sum only the pieces between these, once a step. The
        partitioner is used where that gains nothing (only `data` or `fsdp`, without slices, micro-batches or split
        positions), and for uneven sizes, other rules or jax's own dropout bits.
        """
        size, batch = self.mesh.shape, self.rules["batch"]
        gains = size["dcn"] > 1 or (size["data"] > 1 and (self.grad_accum > 1 or size["fsdp"] > 1))
        gains = gains or prod(size[a] for a in self.rules["sequence"]) > 1
        inner = [axes for name, axes in self.rules.items() if name not in ("batch", "embed")]
        plain = batch == RULES["batch"] and not any(set(batch) & set(axes) for axes in inner)
        plain = plain and self.compute.dropout_rng == "hash" and self._divides_evenly()
        plain = plain and (self.teacher is None or self.teacher._divides_evenly())
        return tuple(a for a in batch if size[a] > 1) if gains and plain else ()

    def _divides_evenly(self) -> bool:
        """Whether every parameter axis that the rules split over batch axes divides evenly."""
        ways = prod(self.mesh.shape[a] for a in self.rules["embed"] if a in self.rules["batch"])
        names, params = self.logical_axes(), self.abstract_params()
        axes = (axis for path, x in params.items() for axis in zip(names[path], x.shape, strict=True))
        return all(size % ways == 0 for name, size in axes if name == "embed")

    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, sharding.logical_to_mesh_axes(("batch",), self.rules))

    @property
    def batch_shards(self) -> int:
        """The number of parts that the rows of a batch are split into."""
        return batch_shards(self.mesh.shape, self.rules["batch"])

    def row_flops(self, fields: Fields, groups: Collection[str]) -> int:
        """Model FLOPs of a training step for one row while `groups` train, and of a teacher's forward pass."""
        parts = self.objective.sequences(fields)
        widths = {name: shape[0] // parts for name, (shape, _) in fields.items() if shape}
        widths = self.objective.row_widths(widths)
        flops = parts * families.record_of(self.model).row_flops(self.model, widths, self.heads, groups, self.peft)
        if self.teacher is None:
            return flops
        forward = families.record_of(self.teacher.model).row_flops
        return flops + parts * forward(self.teacher.model, widths, self.teacher.heads, (), PeftOptions())

    def constrain_grads(self, grads: Params) -> Params:
        """Constrain gradients to the shardings of their parameters, so that each device keeps only its part."""
        names = self.logical_axes()
        return {path: sharding.with_logical_constraint(g, *names[path]) for path, g in grads.items()}

    def initialize(self, key: jax.Array) -> Params:
        """Fresh parameters, created in their shards."""

        near = self.peft.adapter_init == "near_identity"

        def make(key: jax.Array) -> Params:
            params = registry.init_params(self.model, self.heads, self.num_classes, key, self.peft)
            return registry.init_adapters_near_identity(params, key) if near else params

        with sharding.use_mesh_and_rules(self.mesh, self.rules):
            return jax.jit(make, out_shardings=self.param_shardings())(key)

    def init_state(self, params: Params, groups: tuple[str, ...], key: jax.Array) -> TrainState:
        """The state at step 0 of a stage, from parameters in their shards."""
        return self._jit_state(self._make_state(groups), params, key)(params, key)  # type: ignore[no-any-return]

    def _make_state(self, groups: tuple[str, ...]) -> Callable[[Params, jax.Array], TrainState]:
        window = self.spike_rule.window if self.spike_rule else 0
        return lambda p, k: training_state.init_state(p, groups, self.tx, k, window)  # type: ignore[attr-defined]

    def unfreeze(self, state: TrainState, groups: tuple[str, ...]) -> TrainState:
        return self.jit_unfreeze(state, groups)(state)  # type: ignore[no-any-return]

    def jit_unfreeze(self, like: TrainState, groups: tuple[str, ...]) -> "MeshJit":
        """Jit the change of states shaped like `like` to those that train `groups`."""
        return self._jit_state(lambda s: training_state.unfreeze(s, groups, self.tx), like)  # type: ignore[attr-defined]

    def _jit_state(self, make: Callable[..., TrainState], *like: Any) -> "MeshJit":
        where = training_state.shardings(jax.eval_shape(make, *like), self.param_shardings(), self.mesh)
        return MeshJit(jax.jit(make, out_shardings=where), self.mesh, self.rules)

    def abstract_state(self, groups: tuple[str, ...], key: jax.Array | jax.ShapeDtypeStruct) -> TrainState:
        """Shapes and shardings of the state while `groups` train, for restoring and ahead-of-time compilation."""
        shape = jax.eval_shape(self._make_state(groups), self.abstract_params(), key)
        return training_state.abstract(shape, training_state.shardings(shape, self.param_shardings(), self.mesh))

    def split_segments(self, groups: Collection[str]) -> "TrainProgram":
        """This program while `groups` train: segments are split so that frozen layers get no backward pass.

        They are split at the lowest trained layer. With `fixed_prefix` `frozen_layers` counts those below it.
        """
        lowest: dict[str, int] = {}
        for name, layer in filter(None, map(parse_layer, groups)):
            lowest[name] = min(layer, lowest.get(name, layer))
        segments, order = self.compute.segments, families.record_of(self.model).layer_order
        if order is not None:  # the first layer with these parameters
            lowest = {name: order(self.model).index(layer) for name, layer in lowest.items()}
        for at in lowest.values():
            segments = layer_stack.split_segments(segments, at)
        prefix = lowest.get("", 0) if self.fixed_prefix and "embeddings" not in groups else 0
        if segments == self.compute.segments and prefix == self.frozen_layers:
            return self
        return replace(self, compute=replace(self.compute, segments=segments), frozen_layers=prefix)


def stage_program(
    config: Config, stage: Stage, mesh: Mesh, steps: int, *, heads: tuple[str, ...] | None = None,
    num_labels: int | None = None, multi_label: bool | None = None, teacher: Teacher | None = None,
) -> TrainProgram:  # fmt: skip
    """The program of a stage; `heads`, `num_labels` and `multi_label` of a checkpoint (default: the objective's).

    Without a `teacher` the program of a distilled stage has the losses of the labels alone, as evaluations need.
    """
    tasks = len(config.stage_tasks(stage))
    objective = objectives.build(stage.objective, tasks, stage.distillation if teacher else None)
    return TrainProgram(
        teacher=_teacher_program(config, stage, mesh, teacher) if teacher else None,
        model=config.model,
        objective=objective,
        heads=objective.heads if heads is None else heads,
        num_labels=num_labels,
        multi_label=multi_label,
        optimizer=stage.optimizer,
        steps=steps,
        tasks=tasks,
        peft=peft_options(stage.trainable),
        fixed_prefix=stage.trainable.kind == "gradual" and stage.trainable.cache_frozen,
        grad_accum=stage.grad_accum,
        spike_rule=_spike_rule(stage, steps),
        compute=compute_options(config, mesh),
        mesh=mesh,
        rules=merge_rules(config.mesh.rules),
    )


def _teacher_program(config: Config, stage: Stage, mesh: Mesh, teacher: Teacher) -> TrainProgram:
    """The teacher with the heads that the objective of a distilled stage reads, on the mesh of the stage."""
    run = config.run if isinstance(config.run.segments, str) else config.run.model_copy(update={"segments": "auto"})
    assert stage.distillation is not None, "a program has a teacher only then"
    alone = stage.model_copy(update={"distillation": None})
    made = config.model_copy(update={"model": teacher.model, "run": run, "stages": [alone]})
    heads = objectives.teacher_heads(stage.objective, stage.distillation)
    return replace(stage_program(made, alone, mesh, 1, heads=heads), peft=teacher.peft)


def _spike_rule(stage: Stage, steps: int) -> SpikeRule | None:
    """When steps of a stage are skipped: by default from the end of its warm-up on."""
    rule = stage.skip_spikes
    if rule is None:
        return None
    after = optimizers.warmup_steps(stage.optimizer, steps) if rule.after is None else rule.after
    return SpikeRule(rule.window, rule.sigma, after)


def peft_options(trainable: Trainable) -> PeftOptions:
    """The layers that a stage adds to the model."""
    if trainable.kind == "adapters":
        return PeftOptions(
            adapter_size=trainable.adapter_size,
            adapter_placement=trainable.adapter_placement,
            adapter_init=trainable.adapter_init,
        )
    if trainable.kind == "lora":
        return PeftOptions(
            lora_rank=trainable.lora_rank,
            lora_scale=trainable.lora_scale,
            lora_dropout=trainable.lora_dropout,
            lora_targets=tuple(trainable.lora_targets),
        )
    return PeftOptions(feature_layers=trainable.feature_layers if trainable.kind == "features" else "")


@lru_cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions (AMX or AVX-512); without them bfloat16 is slower than float32."""
    try:
        return not {"amx_bf16", "avx512_bf16"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def compute_options(config: Config, mesh: Mesh) -> ComputeOptions:
    """How the model is computed on the mesh's devices."""
    run, kind = config.run, mesh.devices.flat[0].platform
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(kind, kind)
    fast = kind != "cpu" or cpu_has_bfloat16()
    dtype = {"auto": jnp.bfloat16 if fast else jnp.float32, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
    layers = config.model.num_hidden_layers
    if isinstance(run.segments, list):
        segments = tuple(run.segments)
    else:  # a scan compiles faster and runs slower (1.5x on the CPU); deep stacks and TPU pods scan
        scan = run.segments == "scan" or (run.segments == "auto" and (kind == "tpu" or layers > 24))
        segments = (layers,) if scan else ()
    return ComputeOptions(
        platform=kind,
        dtype=jnp.dtype(dtype[run.compute_dtype]),
        dense_dtype=run.dense_dtype,
        attention=run.attention,
        dropout_rng=run.dropout_rng,
        segments=segments,
        remat=run.remat,
    )


class MeshJit:
    """A jitted function that runs, and lowers, under its mesh and rules; `last`: arguments that are always the same."""

    def __init__(self, jitted: Any, mesh: Mesh, rules: Rules, last: tuple[Any, ...] = ()):
        self.jitted, self.mesh, self.rules, self.last = jitted, mesh, rules, last

    def __call__(self, *args: Any) -> Any:
        with sharding.use_mesh_and_rules(self.mesh, self.rules):
            return self.jitted(*args, *self.last)

    def lower(self, *args: Any) -> Any:
        with sharding.use_mesh_and_rules(self.mesh, self.rules):
            return self.jitted.lower(*args, *self.last)
