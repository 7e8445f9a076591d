"""`bertjax prepare` and `bertjax mix`: the training data before a run."""

import argparse
from pathlib import Path

from bertjax.cli import arguments as cli
from bertjax.interrupts import KEPT_MESSAGE, exit_on_signal

STOP_SECONDS = 2.0  # seconds for reaching the end of a job; files appear complete, so nothing is lost after that


@cli.command(
    "prepare",
    "tokenize and store the training data before a run",
    cli.CONFIG,
    cli.option("--runner", choices=("local", "beam"), default="local", help="where to run the jobs (default: local)"),
    cli.option("--workers", metavar="N", type=cli.positive_int, help="local processes (default: the number of cores)"),
    cli.option("--beam-args", metavar="OPTIONS", help="--beam-args='--region=r ...'; options may also follow `--`"),
    cli.option("--verify", action="store_true", help="read every shard back and compare it with its manifest"),
    examples=(
        "bertjax prepare debug/cpu --workers 2 --verify",
        "bertjax prepare debug/cpu run.prepared_dir=prepared --runner beam -- --runner=DirectRunner",
    ),
    note="Beam: pip install 'bertjax[beam]'",
    overrides=True,
    rest="BEAM_OPTION",
)
def prepare(arguments: argparse.Namespace) -> int:
    if arguments.workers:
        arguments.overrides.append(f"run.prepare_workers={arguments.workers}")
    stopped, interrupted = f"stopped; {KEPT_MESSAGE}", f"interrupted; {KEPT_MESSAGE}"
    with exit_on_signal(lambda: stopped, interrupted, polled=True, grace=STOP_SECONDS):
        config = cli.load_config(arguments)
        from bertjax.tools.prepare import prepare_command

        prepare_command(config, arguments.runner, arguments.beam_args, arguments.rest, arguments.verify)
    return 0


@cli.command(
    "mix",
    "show the rates, epochs and tokens of each task in a mixture",
    cli.CONFIG,
    cli.option("--count", metavar="TASK:COUNT", action="append", help="state the number of examples, without the data"),
    cli.option("--limits", metavar="K,K", type=cli.positive_ints, help="limits to try (default: powers of two)"),
    cli.option("--temperatures", metavar="T,T", type=cli.positive_floats, default=[2.0, 4.0], help="default: 2,4"),
    cli.JSON,
    examples=(
        "bertjax mix demo_t5",
        "bertjax mix demo_t5 --count spans:90000 --count questions:7000 --limits 8192,65536",
    ),
    overrides=True,
)
def mix(arguments: argparse.Namespace) -> int:
    config = cli.load_config(arguments)
    from bertjax.data.pipeline.mixture_report import MixtureSize, build_report, parse_counts
    from bertjax.progress import reporter
    from bertjax.tools.prepare import open_stage_data
    from bertjax.training.inputs import check_data

    if arguments.count:
        stated = parse_counts(arguments.count, config)
        sizes = [MixtureSize.from_counts(config, stage, stated) for stage in config.stages]
    else:
        check_data(config, Path.cwd())
        sizes = [
            MixtureSize.from_batches(config, stage, batches) for stage, batches in open_stage_data(config, reporter.say)
        ]
    found = [build_report(size, arguments.limits, arguments.temperatures) for size in sizes]
    if arguments.json:
        return cli.print_result([each.as_dict() for each in found])
    return cli.print_result("\n".join(each.as_text() for each in found))
