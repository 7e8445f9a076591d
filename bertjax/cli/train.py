"""`bertjax train`, `bertjax compare` and `bertjax ladder`."""

import argparse
from pathlib import Path

from bertjax.cli import arguments as cli
from bertjax.interrupts import exit_on_signal


@cli.command(
    "train",
    "start a run, or resume it with the same command",
    cli.CONFIG,
    cli.DEVICE,
    examples=(
        "bertjax train debug/cpu",
        "bertjax train debug/cpu run.name=trial stages.pretrain.steps=20 --device cpu",
    ),
    overrides=True,
)
def train(arguments: argparse.Namespace) -> int:
    message = "stopped before the run started; run the same command again"
    with exit_on_signal(lambda: message, message):  # until the run installs its own handlers
        config = cli.load_config(arguments)
        cli.select_platform(arguments)
        from bertjax.evaluation.evaluators.build import build_evaluators
        from bertjax.training import loop

        loop.train(config, Path.cwd(), build_evaluators)
    return 0


@cli.command(
    "compare",
    "train every fine-tuning method listed under `compare` and tabulate scores and costs",
    cli.CONFIG,
    cli.DEVICE,
    cli.JSON,
    examples=("bertjax compare debug/compare", "bertjax compare debug/compare --json compare.0.name=everything"),
    note="also written to run.root: NAME-comparison.md, .json and .html, where NAME is run.name",
    overrides=True,
)
def compare(arguments: argparse.Namespace) -> int:
    config = cli.load_config(arguments)
    cli.select_platform(arguments)
    from bertjax.tools.compare import compare_command

    return cli.print_result(compare_command(config, Path.cwd(), arguments.json))


@cli.command(
    "ladder",
    "pre-train the kinds of models listed under `ladder` on one corpus and score them side by side",
    cli.CONFIG,
    cli.DEVICE,
    cli.JSON,
    examples=("bertjax ladder debug/ladder_cpu", "bertjax ladder debug/ladder_cpu --json 'ladder.seeds=[1]'"),
    note="also written to run.root: NAME-ladder.md, .json and .html, where NAME is run.name",
    overrides=True,
)
def ladder(arguments: argparse.Namespace) -> int:
    config = cli.load_config(arguments)
    cli.select_platform(arguments)
    from bertjax.tools.ladder.command import ladder_command

    return cli.print_result(ladder_command(config, Path.cwd(), arguments.json))
