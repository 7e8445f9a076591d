"""`bertjax train` and `bertjax compare`."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertjax.cli.arguments import CONFIG, DEVICE, JSON, command
from bertjax.cli.startup import load_config, print_result, select_platform


@command(
    "train",
    "start a run, or resume it with the same command",
    CONFIG,
    DEVICE,
    examples=("bertjax train configs/debug/cpu.yaml", "bertjax train my.yaml run.name=trial stages.pretrain.steps=100"),
    overrides=True,
)
def train(arguments: argparse.Namespace) -> int:
    with _exit_on_signal():
        config = load_config(arguments)
        select_platform(arguments)
        from bertjax.evaluation.evaluators.build import build_evaluators
        from bertjax.training import loop

        loop.train(config, Path.cwd(), build_evaluators)
    return 0


@contextmanager
def _exit_on_signal() -> Iterator[None]:
    """Exits with 75 on SIGTERM or Ctrl-C until the run installs its own handlers; nothing is on disk yet."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        print("stopped before the run started; run the same command again", file=sys.stderr, flush=True)
        os._exit(75)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@command(
    "compare",
    "train every fine-tuning method listed under `compare` and tabulate scores and costs",
    CONFIG,
    DEVICE,
    JSON,
    examples=("bertjax compare configs/recipes/compare_finetuning.yaml",),
    overrides=True,
)
def compare(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    select_platform(arguments)
    from bertjax.tools.compare import compare_command

    return print_result(compare_command(config, Path.cwd(), arguments.json))
