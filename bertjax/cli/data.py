"""`bertjax prepare` and `bertjax mix`: the training data before a run."""

import argparse
import sys
from functools import partial
from pathlib import Path

from bertjax.cli.arguments import CONFIG, JSON, command, option, positive_floats, positive_int, positive_ints
from bertjax.cli.startup import load_config, print_result


@command(
    "prepare",
    "tokenize and store the training data before a run",
    CONFIG,
    option("--runner", choices=("local", "beam"), default="local", help="where to run the jobs (default: local)"),
    option("--workers", metavar="N", type=positive_int, help="local processes (default: the number of cores)"),
    option("--beam-args", metavar="OPTIONS", help="--beam-args='--region=r ...'; options may also follow `--`"),
    option("--verify", action="store_true", help="read every shard back and compare it with its manifest"),
    examples=(
        "bertjax prepare configs/bert/pretrain_base.yaml --workers 8 --verify",
        "bertjax prepare my.yaml --runner beam run.prepared_dir=gs://bucket/data -- --runner=DataflowRunner ...",
    ),
    overrides=True,
    rest="BEAM_OPTION",
)
def prepare(arguments: argparse.Namespace) -> int:
    if arguments.workers:
        arguments.overrides.append(f"run.prepare_workers={arguments.workers}")
    config = load_config(arguments)
    from bertjax.tools.prepare import prepare_command

    prepare_command(config, arguments.runner, arguments.beam_args, arguments.rest, arguments.verify)
    return 0


@command(
    "mix",
    "show the rates, epochs and tokens of each task in a mixture",
    CONFIG,
    option("--count", metavar="TASK:COUNT", action="append", help="state a number of examples instead of reading data"),
    option("--limits", metavar="K,K", type=positive_ints, help="limits to try (default: relevant powers of two)"),
    option(
        "--temperatures",
        metavar="T,T",
        type=positive_floats,
        default=[2.0, 4.0],
        help="temperatures to try (default: 2,4)",
    ),
    JSON,
    examples=(
        "bertjax mix my.yaml",
        "bertjax mix my.yaml --count news:9000000 --count books:70000 --limits 65536,524288",
    ),
    overrides=True,
)
def mix(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    from bertjax.data.pipeline.mixture_report import MixtureSize, build_report, parse_counts
    from bertjax.tools.prepare import open_stage_data
    from bertjax.training.inputs import check_data

    if arguments.count:
        stated = parse_counts(arguments.count, config)
        sizes = [MixtureSize.from_counts(config, stage, stated) for stage in config.stages]
    else:
        check_data(config, Path.cwd())
        report = partial(print, file=sys.stderr, flush=True)
        sizes = [MixtureSize.from_batches(config, stage, batches) for stage, batches in open_stage_data(config, report)]
    found = [build_report(size, arguments.limits, arguments.temperatures) for size in sizes]
    return print_result(
        [each.as_dict() for each in found] if arguments.json else "\n".join(each.as_text() for each in found)
    )
