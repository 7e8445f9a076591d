"""The training loop: open and check everything a run needs, then train stage after stage."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from bertjax.config.loading import plugins
from bertjax.config.schema.custom import CALLBACKS
from bertjax.config.schema.run import Config
from bertjax.parallel.mesh import all_devices
from bertjax.parallel.multihost import initialize, primary
from bertjax.parallel.multihost.exit_together import exit_together
from bertjax.parallel.multihost.primary import primary_first, run_on_primary
from bertjax.progress import reporter as progress
from bertjax.training import consistency, inputs, run_context, validate
from bertjax.training.checkpoint.stage_files import hub_models, newest_meta, run_stages
from bertjax.training.monitor import preemption, run_log, run_mirror
from bertjax.training.monitor.callbacks import Callbacks, TrainingRun
from bertjax.training.monitor.phases import PREPARE, Phases
from bertjax.training.monitor.run_monitor import monitor_run
from bertjax.training.monitor.tracking import Tracker
from bertjax.training.monitor.watchdog import watch_preparation
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.stage.evaluations import Evaluator
from bertjax.training.stage.plan import StagePlan, open_stage, unfinished_stages
from bertjax.training.stage.runner import StageRunner

# (context, index of the stage, its program, names of its labels) -> its evaluators
BuildEvaluators = Callable[[RunContext, int, TrainProgram, list[str] | None], list[Evaluator]]


def train(
    config: Config,
    base: Path,
    build_evaluators: BuildEvaluators,
    callbacks: Sequence[Any] = (),
    *,
    ends_process: bool = True,
) -> None:
    """Run, or continue, every stage of a configuration. Raises the errors of `bertjax.errors`.

    Everything is checked before the run folder is created, so that a mistake in the last stage shows at once. The
    callbacks of the configuration's plugins run besides `callbacks`. Without `ends_process`, as in a notebook, neither
    a signal nor the watchdog ends the process: a second Ctrl-C is a KeyboardInterrupt.
    """
    own = plugins.registered_by(plugins.require(config.plugins, str(config.run_dir)), CALLBACKS)
    watching = Callbacks([*own, *callbacks])
    phases = Phases()
    stop = preemption.PreemptionHandler(phases.heartbeat, ends_process=ends_process)
    with (
        run_mirror.mirrored(config) as mirror,
        run_log.report_run() as reporter,
        preemption.set_current(stop),
        stop.handle_signals(),
        exit_together(),
    ):
        with stop.may_exit("starting"), reporter.task("starting", finish=False):
            initialize.initialize_distributed()
            stop.after_distributed_init()
            all_devices()  # that there are some, before anything is prepared
            reporter.quiet = not primary.is_primary()
            run_mirror.open_mirror(mirror, config)
            limits = config.run.watchdog if ends_process else None
            with watch_preparation(phases, limits, is_here=primary.is_primary()):
                opened = open_run(config, base, build_evaluators, phases)
        if opened is None:
            if primary.is_primary():
                reporter.result(f"{config.run_place}: every stage is finished")
            return
        ctx, plans, evaluators = opened
        if mirror is not None:
            run_on_primary(mirror.start)
        run_log.open_run_log(reporter, config.run_dir, jax.process_index())
        watching = watching if primary.is_primary() else Callbacks()
        tracker = Tracker(
            config.run_dir,
            stages={plan.stage.name: plan.program.steps for plan in plans},
            tensorboard=config.run.tensorboard or False,
            wandb=config.run.wandb,
            is_primary=primary.is_primary(),
            config=config.model_dump(mode="json"),
        )
        with tracker, monitor_run(config, stop, phases, tracker, mirror) as monitor:
            with _notify(watching, config, stop):
                for index in evaluators:
                    StageRunner(ctx, plans[index], tracker, monitor, evaluators[index], watching).run()


@contextmanager
def _notify(callbacks: Callbacks, config: Config, stop: preemption.PreemptionHandler) -> Iterator[None]:
    """Tell the callbacks of the beginning and the end of the run."""
    callbacks.call("on_train_begin", TrainingRun(config, config.run_dir, stop.request))
    try:
        yield
    except BaseException:
        try:
            callbacks.call("on_train_end")
        except Exception as error:  # must not hide what ended the run
            progress.say(str(error))
        raise
    callbacks.call("on_train_end")


def open_run(
    config: Config, base: Path, build_evaluators: BuildEvaluators, phases: Phases
) -> tuple[RunContext, list[StagePlan], dict[int, list[Evaluator]]] | None:
    """Open a run -> (context, stage plans, evaluators of each stage to do); None when all stages are done."""
    stages = run_stages(config, base)
    consistency.check_start(config, base)
    run_on_primary(lambda: validate.check_settings(stages))
    if run_on_primary(lambda: validate.is_complete(stages[-1])):
        return None
    if primary.is_primary():
        run_mirror.note_prepared_dir(config)
    checked = primary_first(lambda: inputs.check_run(stages))
    primary_first(lambda: validate.check_init_shapes(stages, checked.classes))
    run_context.enable_compilation_cache(config)
    with phases.enter(PREPARE):  # the tokenizer
        ctx = primary_first(lambda: run_context.open_run_context(config, base, checked.tokenizer))
    initialize.warm_up_collectives(ctx.mesh)
    plans: list[StagePlan] = []
    for files in stages:
        previous = plans[-1].labels if plans else None
        with phases.enter(PREPARE):
            plans.append(primary_first(partial(open_stage, ctx, files, previous)))
    models = hub_models(config, stages)
    consistency.check_equal(
        {f"the data of stage '{plan.stage.name}'": json.dumps(plan.batches.source_fingerprints) for plan in plans}
        | {f"the pretrained model of {key}": model for key, model in models.items()}
    )
    todo = run_on_primary(lambda: unfinished_stages(plans))
    with phases.enter(PREPARE):
        evaluators = {
            index: primary_first(partial(build_evaluators, ctx, index, plan.program, plan.labels.names))
            for index, plan in enumerate(plans)
            if index in todo
        }
    run_on_primary(lambda: validate.check_init_sources(ctx, plans))
    run_on_primary(lambda: run_context.create_run_dir(ctx, models, newest_meta(stages)))
    return ctx, plans, evaluators
