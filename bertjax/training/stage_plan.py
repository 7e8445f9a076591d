"""A stage with everything decided that does not need its parameters: data, program and episodes; and what remains."""

from dataclasses import dataclass

import numpy as np

from bertjax.config.schema import Config, Stage
from bertjax.data.loader import Batches, open_batches
from bertjax.parallel import distributed
from bertjax.training import freezing, preflight
from bertjax.training.runs import stage_folder
from bertjax.training.setup import Job
from bertjax.training.step import Program
from bertjax.training.step_folders import committed_steps


@dataclass(frozen=True)
class StagePlan:
    """A stage with everything decided that does not need its parameters."""

    stage: Stage
    batches: Batches
    program: Program
    episodes: tuple[freezing.Episode, ...]
    rows: slice | np.ndarray


def open_stage(job: Job, stage: Stage) -> StagePlan:
    """Prepares the data and checks batch, mesh and episodes, so that a later stage's mistake shows at once."""
    report = (lambda line: print(line, flush=True)) if distributed.is_lead() else None
    batches = open_batches(job.config, stage, job.tokenizer, base=job.base, cache=job.cache, report=report)
    preflight.check_labels(stage, batches)
    steps = batches.steps(stage)
    program = job.program(stage, steps)
    distributed.local_rows(program.batch_sharding(), stage.batch_size // stage.grad_accum)
    groups = freezing.groups_of(program.abstract_params())
    plan = freezing.episodes(stage.trainable, groups, steps)
    return StagePlan(stage, batches, program, plan, distributed.local_rows(program.batch_sharding(), stage.batch_size))


def unfinished(config: Config, plans: list[StagePlan]) -> list[int]:
    """The last stage that has begun and those behind it.

    It may be at its end: it is restored all the same, and what is damaged made anew, before the next one builds on it.
    """
    begun = [i for i, p in enumerate(plans) if committed_steps(stage_folder(config.run_dir, i, p.stage.name))]
    return list(range(max(begun, default=0), len(plans)))
