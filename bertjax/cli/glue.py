"""`bertjax glue`: fine-tune an encoder on the tasks of GLUE."""

import argparse
from typing import Any

from bertjax.cli import arguments as cli
from bertjax.errors import UserError
from bertjax.interrupts import exit_on_signal
from bertjax.storage.locations import local_path


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(cli.non_negative_int(part) for part in text.split(","))
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"must be different numbers (got '{text}')")
    return seeds


@cli.command(
    "glue",
    "fine-tune an encoder on the nine tasks of GLUE, a run for each task and seed, and write scores and a submission",
    cli.option("--init", metavar="MODEL", required=True, help="what to start from: anything that `pretrained:` takes"),
    cli.option(
        "--data",
        metavar="DIR|NAME",
        default="nyu-mll/glue",
        help="folder with the official CoLA, SST-2, ... or with saved data sets, or a name on the Hub "
        "(default: nyu-mll/glue)",
    ),
    cli.option("--output", metavar="DIR", default="runs/glue", help="folder of runs and results (default: runs/glue)"),
    cli.option("--tasks", metavar="A,B", help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli (default: all)"),
    cli.option("--seeds", metavar="A,B", type=_seeds, default=(1, 2, 3), help="a run for each (default: 1,2,3)"),
    cli.option("--epochs", type=cli.positive_float, help="passes over the training data (default: 3)"),
    cli.option("--batch-size", type=cli.size, help="rows per step (default: 32)"),
    cli.option("--learning-rate", type=cli.positive_float, help="learning rate after warm-up (default: 2e-5)"),
    cli.option(
        "--grid",
        metavar="KEY=A,B",
        help="try all values, several keys separated by spaces; the best median on development data is reported",
    ),
    cli.option(
        "--select",
        choices=("last", "best"),
        default="last",
        help="score each run's last checkpoint, or the best on development data (default: last)",
    ),
    cli.option(
        "--intermediate", choices=("mnli",), help="start RTE, MRPC and STS-B from the MNLI model with the median score"
    ),
    cli.option("--limit", metavar="N", type=cli.positive_int, help="sample N examples of each set, for a trial"),
    cli.option(
        "--submission",
        choices=("median", "best", "none"),
        default="median",
        help="predict the tests with the run that has the median or the best score of its task (default: median)",
    ),
    cli.option("--dry-run", action="store_true", help="print tasks, examples, steps and runs; train and write nothing"),
    cli.JSON,
    cli.DEVICE,
    examples=(
        "bertjax glue --init google-bert/bert-base-uncased",
        "bertjax glue --init runs/bert-base --data GLUE --tasks mrpc,rte --seeds 1,2,3,4,5 rte.epochs=10",
        "bertjax glue --init runs/bert-base --data GLUE --grid learning_rate=2e-5,3e-5,5e-5 trainable=gradual",
    ),
    note="GLUE is the folder of the official files, runs/bert-base a run of yours",
    overrides=True,
)
def glue(arguments: argparse.Namespace) -> int:
    output = local_path(arguments.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {arguments.output[:200]!a}: is a file; name a folder")
    message = "stopped between two runs; run the same command again"
    with exit_on_signal(lambda: message, message):  # a run that is training has its own handlers
        cli.select_platform(arguments)
        from bertjax.tools.glue.command import glue_command
        from bertjax.tools.glue.runs import Request, parse_grid

        request = Request(
            init=arguments.init,
            data=arguments.data,
            output=output,
            tasks=_tasks(arguments.tasks),
            seeds=arguments.seeds,
            options=_options(arguments),
            grid=parse_grid(arguments.grid),
            select=arguments.select,
            intermediate=arguments.intermediate is not None,
            limit=arguments.limit,
            submission=arguments.submission,
            settings=tuple(arguments.overrides),
        )
        return cli.print_result(glue_command(request, dry_run=arguments.dry_run, as_json=arguments.json))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "learning_rate")}
    return {name: str(value) for name, value in values.items() if value is not None}


def _tasks(text: str | None) -> tuple[str, ...]:
    """Names of tasks, in any case and with or without hyphens, in the order of the table. Raises UserError."""
    if text is None:
        return ()
    from bertjax.tools.glue.tasks import TASKS

    wanted = [part.strip().lower().replace("-", "") for part in text.split(",")]
    if unknown := [part for part in wanted if part not in TASKS]:
        raise UserError(f"--tasks: {unknown[0][:60]!a} is not a task of GLUE; they are: {', '.join(TASKS)}")
    return tuple(name for name in TASKS if name in wanted)
