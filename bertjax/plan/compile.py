"""The train step of a stage, compiled for devices that need not be attached."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.row_fields import dummy_tokenizer, stage_fields
from bertjax.data.pipeline.task_rows import Fields
from bertjax.errors import UserError
from bertjax.parallel.mesh import make_mesh
from bertjax.progress import reporter
from bertjax.training import freezing, rates, validate
from bertjax.training.checkpoint.teacher import planned_teacher
from bertjax.training.program import TrainProgram, stage_program
from bertjax.training.run_context import RunContext
from bertjax.training.stage import plan as stage_plan
from bertjax.training.state import TrainState
from bertjax.training.step import jit_train_step

DEFAULT_STEPS = 1000  # for a stage in epochs: affects only schedules and episode bounds
# For a program, or for its temporaries if these alone do not fit.
_MEMORY = re.compile(
    r"(?:Used|for HLO temporaries) \(?([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])",
    re.IGNORECASE,
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class StageProgram:
    """A stage ready to lower: abstract state and batch with their shardings."""

    config: Config
    stage: Stage
    ctx: RunContext
    program: TrainProgram
    episode: int
    episodes: int
    groups: tuple[str, ...]
    fields: Fields
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]

    def lower(self) -> Any:
        step: Any = jit_train_step(self.program, self.state)
        return step.lower(self.state, self.batch)


@dataclass(frozen=True)
class CompileResult:
    """A compiled program, or why the compiler failed."""

    seconds: float
    compiled: Any = None
    reason: str = ""  # one line
    required_bytes: int | None = None  # on a device, if it ran out of memory
    hlo_dump: str = ""  # the optimized program as the TPU compiler dumped it, if requested

    @property
    def text(self) -> str:
        return self.hlo_dump or self.compiled.as_text()


def build_stage_program(
    config: Config, stage: Stage, devices: Sequence[Any], episode: int | None = None
) -> StageProgram:
    """Build a stage for these devices; `episode` counts from 0 (default: the last, with the most trained parameters).

    Raises UserError as a run would: for a mesh or batch that does not divide, or rows that do not fit the objective.
    """
    validate.check_kinds(config, stage)
    ctx = RunContext(config, Path(), make_mesh(config.mesh, devices), dummy_tokenizer(config))
    program = stage_program(config, stage, ctx.mesh, stage.steps or DEFAULT_STEPS, teacher=planned_teacher(stage))
    stage_plan.check_batch(stage, program)
    groups = freezing.param_groups(program.abstract_params())
    plan = freezing.stage_episodes(stage, groups, program.steps)
    rates.check_patterns(stage, program.abstract_params(), plan)
    number = len(plan) - 1 if episode is None else episode
    if number >= len(plan):
        raise UserError(f"--episode: stage '{stage.name}' has episodes 0 to {len(plan) - 1}; got {number}")
    state = program.abstract_state(plan[number].groups, jax.eval_shape(lambda: jax.random.key(0)))
    fields = stage_fields(config, stage)
    batch = abstract_batch(fields, stage.batch_size, program)
    return StageProgram(config, stage, ctx, program, number, len(plan), plan[number].groups, fields, state, batch)


def abstract_batch(fields: Fields, rows: int, program: TrainProgram) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract global batch with so many rows."""
    put = program.batch_sharding()
    return {name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=put) for name, (shape, dtype) in fields.items()}


def compile_lowered(lower: Any, dump: bool = False) -> CompileResult:
    """Lower and compile; a failure of the compiler or of a kernel is a result, not an exception.

    `dump`: let the TPU compiler dump its program, because jaxlib 0.10.2 cannot parse all programs of libtpu 0.0.51.
    """
    with TemporaryDirectory(prefix="bertjax-plan-") as folder:
        outcome = _compile(lower, {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if dump else None)
        written = sorted(Path(folder).glob("*.after_optimizations.txt"), key=lambda path: path.stat().st_size)
        return replace(outcome, hlo_dump=written[-1].read_text(encoding="utf-8") if written else "")


def _compile(lower: Any, options: dict[str, Any] | None) -> CompileResult:
    began = time.perf_counter()
    try:
        with reporter.task("compiling", finish=False):
            compiled = lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return _compile_failure(str(error), time.perf_counter() - began)
    except ValueError as error:  # models/attention.py: the configured kernel does not support this model
        if not str(error).startswith("attention kernel"):
            raise
        return CompileResult(time.perf_counter() - began, reason=str(error))
    return CompileResult(time.perf_counter() - began, compiled)


def _compile_failure(message: str, seconds: float) -> CompileResult:
    if found := _MEMORY.search(message):
        needs = int(float(found[1]) * _UNITS[found[2].upper()])
        reason = f"needs {found[1]} {found[2]}iB of the {found[3]} {found[4]}iB available to the compiler"
        return CompileResult(seconds, reason=reason, required_bytes=needs)
    return CompileResult(seconds, reason=" ".join(message.split())[:300])
