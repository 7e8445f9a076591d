"""Commands that score and report: `evaluate`, `report`, `qa-report` and `score squad`."""

import argparse
from pathlib import Path

from bertjax.cli.arguments import (
    BASE,
    DEVICE,
    DTYPE,
    OUTPUT,
    RUN,
    STEP,
    base_model_argument,
    command,
    dtype_override,
    existing_path,
    option,
    output_path,
    positive_int,
)
from bertjax.cli.startup import print_result, require_device
from bertjax.storage.locations import local_path


@command(
    "evaluate",
    "restore a checkpoint and score it",
    option("run", metavar="RUN", help="a run folder or one of its checkpoints"),
    STEP,
    option("--best", metavar="SCORE", help="the checkpoint with the best value of a training score, such as squad/f1"),
    option("--stage", metavar="NAME", help="the stage to score (default: the last one)"),
    option("--name", metavar="EVAL", help="run only the evaluation with this name"),
    option(
        "--output",
        metavar="FOLDER",
        help="folder for scores and predictions (default: the run folder; results that differ from the run's own "
        "evaluation get files of their own there), or a .json file for the scores of one evaluation",
    ),
    BASE,
    DEVICE,
    DTYPE,
    examples=(
        "bertjax evaluate runs/qa --device cpu",
        "bertjax evaluate runs/qa --stage squad --step 2000",
        "bertjax evaluate runs/t5 --best squad/squad_em --name squad",
        "bertjax evaluate runs/qa stages.squad.evaluate.squad.data.source.files=[other.json] --output scores/",
    ),
    overrides=True,
)
def evaluate(arguments: argparse.Namespace) -> int:
    run = existing_path(arguments.run)
    output = local_path(arguments.output) if arguments.output else None
    if output is not None:
        existing_path(str(output.parent))
    require_device(arguments)
    from bertjax.tools.evaluate import evaluate_command

    where = (arguments.step, arguments.stage, arguments.name)
    overrides = arguments.overrides + dtype_override(arguments)
    return print_result(
        evaluate_command(run, *where, overrides, arguments.best, output, **base_model_argument(arguments))
    )


@command(
    "report", "write an HTML page about a run", RUN, OUTPUT, examples=("bertjax report runs/demo --output demo.html",)
)
def report(arguments: argparse.Namespace) -> int:
    run, output = existing_path(arguments.run), output_path(arguments.output)
    from bertjax.report import write_report

    return print_result(str(write_report(run, output)))


@command(
    "qa-report",
    "compare extractive, text-to-text and closed-book answers to the same questions",
    option("--extractive", metavar="RUN", help="a run with a QA head, which selects spans of the context"),
    option("--context", metavar="RUN", help="a T5 run that reads question and context"),
    option("--closed-book", metavar="RUN", help="a T5 run that reads only the question"),
    option("--data", metavar="SQUAD", help="questions as SQuAD JSON (default: the evaluation data of the first run)"),
    option("--limit", metavar="N", type=positive_int, help="use a random sample of N questions"),
    option("--output", metavar="FILE", help="HTML page; a .json is written next to it (default: qa-report.html)"),
    option("--json", action="store_true", help="print the scores as JSON"),
    DEVICE,
    examples=("bertjax qa-report --extractive runs/qa --context runs/t5-squad --closed-book runs/t5-closed-book",),
)
def qa_report(arguments: argparse.Namespace) -> int:
    named = {"extractive": arguments.extractive, "context": arguments.context, "closed_book": arguments.closed_book}
    runs = {way: existing_path(run) for way, run in named.items() if run}
    data = existing_path(arguments.data) if arguments.data else None
    output = output_path(arguments.output) or Path("qa-report.html")
    require_device(arguments)
    from bertjax.tools import qa_report

    found = qa_report.qa_report(runs, data=data, limit=arguments.limit, output=output)
    if arguments.json:
        return print_result({name: found[name] for name in ("source", "questions", "ways")})
    return print_result(f"{qa_report.format_text(found)}\n\n{output.with_suffix('.html')}")


@command(
    "score squad",
    "score SQuAD predictions with the metrics of the official script",
    option("gold", metavar="GOLD", help="the SQuAD JSON file, v1.1 or v2.0"),
    option("predictions", metavar="PREDICTIONS", help="JSON: question id -> answer"),
    option("--na-prob-file", metavar="FILE", help="JSON: question id -> no-answer probability"),
    option(
        "--na-prob-thresh", metavar="X", type=float, default=1.0, help="no-answer probability threshold (default: 1)"
    ),
    OUTPUT,
    examples=("bertjax score squad dev-v2.0.json predictions.json",),
)
def score_squad(arguments: argparse.Namespace) -> int:
    gold, predictions = existing_path(arguments.gold), existing_path(arguments.predictions)
    na_prob_file = existing_path(arguments.na_prob_file) if arguments.na_prob_file else None
    output = output_path(arguments.output)
    from bertjax.evaluation.metrics.squad import score_command
    from bertjax.storage.atomic import write_json_atomic

    scores = score_command(gold, predictions, na_prob_file, arguments.na_prob_thresh)
    if not output:
        return print_result(scores)
    write_json_atomic(output, scores, indent=2)
    return 0
