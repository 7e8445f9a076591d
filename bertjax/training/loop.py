"""The training loop: what a run needs before its first step, then stage after stage; it reads top to bottom."""

import json
from functools import partial
from pathlib import Path
from typing import Protocol

from bertjax.config.schema import Config
from bertjax.parallel import distributed
from bertjax.parallel.devices import all_devices
from bertjax.training import agreement, inputs, preflight, setup, stopping
from bertjax.training.lead import from_lead, lead_first
from bertjax.training.operations import watching
from bertjax.training.phases import Phases
from bertjax.training.setup import Job
from bertjax.training.stage_plan import StagePlan, open_stage, unfinished
from bertjax.training.stage_run import Evaluator, StageRun
from bertjax.training.step import Program
from bertjax.training.tracking import Tracker


class BuildEvaluators(Protocol):
    def __call__(self, job: Job, index: int, program: Program, labels: list[str] | None) -> list[Evaluator]: ...


def train(config: Config, base: Path, build_evaluators: BuildEvaluators) -> None:
    """Run, or continue, every stage of a configuration. Raises the errors of `bertjax.errors`.

    All that can be read and checked is, before the run folder is there: a mistake in the last stage shows at once, and
    its correction finds no half-begun run. A finished run is left as it is.
    """
    phases = Phases()
    stop = stopping.Stop(phases.beat)
    with stopping.running(stop), stop.listening(), distributed.fail_together():
        with stop.free("starting"):
            distributed.start()
            stop.joined()
            all_devices()  # that there are some, before anything is prepared
            opened = open_run(config, base, build_evaluators)
        if opened is None:
            if distributed.is_lead():
                print(f"{config.run_dir}: every stage is finished", flush=True)
            return
        job, plans, evaluators = opened
        tracker = Tracker(
            config.run_dir,
            stages={plan.stage.name: plan.program.steps for plan in plans},
            tensorboard=config.run.tensorboard or False,
            wandb=config.run.wandb,
            lead=distributed.is_lead(),
            config=config.model_dump(mode="json"),
        )
        with tracker, watching(config, stop, phases, tracker) as operations:
            for index in evaluators:
                StageRun(job, index, plans[index], tracker, operations, evaluators[index]).run()


def open_run(
    config: Config, base: Path, build_evaluators: BuildEvaluators
) -> tuple[Job, list[StagePlan], dict[int, list[Evaluator]]] | None:
    """What a run needs before its first step, and the evaluators of the stages to do; None when all are done."""
    agreement.check_start(config, base)
    preflight.check_settings(config)
    if from_lead(lambda: preflight.is_complete(config)):
        return None
    lead_first(lambda: inputs.check_run(config, base))
    setup.use_compile_cache(config)
    job = lead_first(lambda: setup.open_job(config, base))
    distributed.connect(job.mesh)
    plans: list[StagePlan] = []
    for index in range(len(config.stages)):
        previous = plans[-1].labels if plans else None
        plans.append(lead_first(partial(open_stage, job, index, previous)))
    agreement.check({f"the data of stage '{plan.stage.name}'": json.dumps(plan.batches.sources) for plan in plans})
    todo = from_lead(lambda: unfinished(config, plans))
    evaluators = {
        index: lead_first(partial(build_evaluators, job, index, plan.program, plan.labels.names))
        for index, plan in enumerate(plans)
        if index in todo
    }
    from_lead(lambda: preflight.check_starts(job, plans))
    from_lead(lambda: setup.open_run_folder(job))
    return job, plans, evaluators
