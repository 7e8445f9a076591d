"""Commands that score and report: `evaluate`, `report`, `qa-report` and `score squad`."""

import argparse
from pathlib import Path

from bertjax.cli import arguments as cli
from bertjax.errors import UserError
from bertjax.storage.locations import local_path


@cli.command(
    "evaluate",
    "restore a checkpoint and score it",
    cli.option("run", **cli.MODEL[1]),
    cli.STEP,
    cli.BEST,
    cli.option("--stage", metavar="NAME", help="the stage to score (default: the last one)"),
    cli.option("--name", metavar="EVAL", help="run only the evaluation with this name"),
    cli.option(
        "--output",
        metavar="FOLDER",
        help="folder of scores and predictions (default: the run folder), or .json file of one evaluation's scores",
    ),
    cli.option(
        "--predictions-dir", metavar="FOLDER",
        help="also write predictions.json, nbest_predictions.json and null_odds.json, as run_squad.py does",
    ),
    cli.option(
        "--keep-threshold", action="store_true",
        help="keep the null threshold and calibration of these data with the checkpoint, for `predict answer`",
    ),
    cli.BASE,
    cli.DEVICE,
    cli.DTYPE,
    examples=(
        "bertjax evaluate runs/demo --device cpu",
        "bertjax evaluate runs/demo --stage pretrain --step 2500",
        "bertjax evaluate runs/demo-t5 --best unseen_modules/squad_f1 --name unseen_modules",
        "bertjax evaluate runs/demo stages.qa.evaluate.unseen_modules.n_best=5 --output scores/",
    ),
    note="the runs are those of `bertjax demo`",
    overrides=True,
)  # fmt: skip
def evaluate(arguments: argparse.Namespace) -> int:
    output = local_path(arguments.output) if arguments.output else None
    if output is not None:
        cli.existing_path(str(output.parent))
    run = cli.pretrained_model(arguments.run)
    cli.require_device(arguments)
    from bertjax.tools.evaluate import evaluate_command

    where = (arguments.step, arguments.stage, arguments.name)
    overrides = arguments.overrides + cli.dtype_override(arguments)
    more = cli.base_model_argument(arguments)
    if arguments.predictions_dir is not None:
        more["predictions_dir"] = local_path(arguments.predictions_dir)
    if arguments.keep_threshold:
        more["keep_threshold"] = True
    return cli.print_result(evaluate_command(run, *where, overrides, arguments.best, output, **more))


@cli.command(
    "report",
    "write an HTML page about a run, or about several side by side",
    cli.option("runs", metavar="RUN ...", nargs="+", help="a run; several are compared on one page"),
    cli.option(
        "--output",
        metavar="FILE",
        help="HTML page (default: report.html in the run folder, RUN-report.html here for one in a bucket, or "
        "comparison.html for several)",
    ),
    cli.option("--json", action="store_true", help="print the content as JSON, or write it to --output; no page"),
    examples=(
        "bertjax report runs/demo",
        "bertjax report runs/demo runs/demo-from-random-weights --output demos.html",
        "bertjax report runs/demo --json",
    ),
    note="the runs are those of `bertjax demo`",
)
def report(arguments: argparse.Namespace) -> int:
    runs, output = [cli.run_folder(run) for run in arguments.runs], cli.output_path(arguments.output)
    if output is None and not arguments.json and len(runs) == 1 and "://" in arguments.runs[0]:
        output = Path(f"{runs[0].name}-report.html")  # the run folder is a copy
    if arguments.json:
        from bertjax.report import as_json

        return cli.print_result(str(as_json.write_json(runs, output)) if output else as_json.report_json(runs))
    from bertjax import report

    if len(runs) > 1:
        return cli.print_result(str(report.write_comparison(runs, output or Path("comparison.html"))))
    return cli.print_result(str(report.write_report(runs[0], output)))


@cli.command(
    "qa-report",
    "compare extractive, text-to-text and closed-book answers to the same questions",
    cli.option("--extractive", metavar="RUN", help="a run with a QA head, which selects spans of the context"),
    cli.option("--context", metavar="RUN", help="a T5 run that reads question and context"),
    cli.option("--closed-book", metavar="RUN", help="a T5 run that reads only the question"),
    cli.option("--data", metavar="SQUAD", help="SQuAD JSON file (default: the evaluation data of the first run)"),
    cli.option("--limit", metavar="N", type=cli.positive_int, help="use a random sample of N questions"),
    cli.option("--output", metavar="FILE", help="HTML page; a .json is written next to it (default: qa-report.html)"),
    cli.option("--json", action="store_true", help="print the scores as JSON"),
    cli.PLUGINS,
    cli.DEVICE,
    examples=(
        "bertjax qa-report --extractive runs/demo --context runs/demo-t5",
        "bertjax qa-report --extractive runs/demo --limit 100 --json",
    ),
    note="the runs are those of `bertjax demo`",
)
def qa_report(arguments: argparse.Namespace) -> int:
    named = {"extractive": arguments.extractive, "context": arguments.context, "closed_book": arguments.closed_book}
    runs = {way: cli.run_folder(run, weights=True) for way, run in named.items() if run}
    data = cli.existing_path(arguments.data) if arguments.data else None
    output = cli.output_path(arguments.output or "qa-report.html", [data], (".html", ".json"))
    assert output is not None
    cli.require_device(arguments)
    from bertjax.tools import qa_report

    found = qa_report.qa_report(runs, data=data, limit=arguments.limit, output=output)
    if arguments.json:
        return cli.print_result({name: found[name] for name in ("source", "questions", "ways")})
    return cli.print_result(f"{qa_report.format_text(found)}\n\n{output.with_suffix('.html')}")


@cli.command(
    "compare-predictions",
    "compare two sets of predictions: won and lost, by kind of question, with significance tests",
    cli.option("a", metavar="A", help="predictions: a .json file {question id: answer}, a file that `bertjax predict "
               "answer` or `predict classify` wrote, the record of an evaluation, or a run"),
    cli.option("b", metavar="B", help="predictions for the same questions or texts"),
    cli.option("--data", metavar="FILE", help="questions and answers: SQuAD's JSON, or .jsonl or .parquet records"),
    cli.option("--name", metavar="EVAL", help="the evaluation of a run that has several"),
    cli.option("--label", metavar="FIELD", help="field of A with the true labels of texts (default: label)"),
    cli.option("--examples", metavar="N", type=cli.positive_int, default=20, help="examples each way (default: 20)"),
    cli.option("--seed", metavar="N", type=cli.non_negative_int, default=1, help="seed of the bootstrap (default: 1)"),
    cli.option("--output", metavar="FILE", help="write an HTML page; a .json is written next to it"),
    cli.option("--json", action="store_true", help="print JSON"),
    examples=(
        "bertjax compare-predictions old.json new.json --data dev-v1.1.json",
        "bertjax compare-predictions runs/all runs/gradual --data dev-v1.1.json --output comparison.html",
        "bertjax compare-predictions labels-a.csv labels-b.csv --label sentiment",
    ),
    note="the files, runs/all and runs/gradual are your own",
)  # fmt: skip
def compare_predictions(arguments: argparse.Namespace) -> int:
    a, b = cli.run_folder(arguments.a), cli.run_folder(arguments.b)
    data = cli.existing_path(arguments.data) if arguments.data else None
    output = cli.output_path(arguments.output, [a, b, data], (".html", ".json"))
    from bertjax.tools.compare_predictions import command

    names = {"name": arguments.name, "label": arguments.label}
    more = {"seed": arguments.seed, "examples": arguments.examples, "output": output}
    found = command.compare_predictions(a, b, data, **names, **more)
    if arguments.json:
        return cli.print_result(found)
    text = command.format_text(found)
    return cli.print_result(f"{text}\n\n{output.with_suffix('.html')}" if output else text)


@cli.command(
    "score squad",
    "score SQuAD predictions with the metrics of the official script",
    cli.option("gold", metavar="GOLD", help="the SQuAD JSON file, v1.1 or v2.0"),
    cli.option("predictions", metavar="PREDICTIONS", help="JSON: question id -> answer"),
    cli.option(
        "--na-prob-file", "--null-odds", metavar="FILE", dest="na_prob_file",
        help="JSON: question id -> no-answer probability, or the null odds",
    ),
    cli.option(
        "--na-prob-thresh", metavar="X", type=cli.finite_float,
        help="answer nothing where FILE has more than X (default: 1)",
    ),
    cli.option("--output", "--out-file", metavar="FILE", dest="output", help="write JSON to FILE"),
    examples=(
        "bertjax score squad dev-v1.1.json predictions.json",
        "bertjax score squad dev-v2.0.json predictions.json --null-odds null_odds.json",
    ),
    note="dev-v1.1.json is SQuAD's file, predictions.json yours: {question id: answer}",
)  # fmt: skip
def score_squad(arguments: argparse.Namespace) -> int:
    gold, predictions = cli.existing_path(arguments.gold), cli.existing_path(arguments.predictions)
    na_prob_file = cli.existing_path(arguments.na_prob_file) if arguments.na_prob_file else None
    output = cli.output_path(arguments.output, [gold, predictions, na_prob_file])
    if arguments.na_prob_thresh is not None and na_prob_file is None:
        raise UserError("bertjax score squad: --na-prob-thresh needs --null-odds")
    from bertjax.evaluation.metrics.squad import score_command
    from bertjax.storage.atomic import write_json_atomic

    threshold = 1.0 if arguments.na_prob_thresh is None else arguments.na_prob_thresh
    scores = score_command(gold, predictions, na_prob_file, threshold)
    if not output:
        return cli.print_result(scores)
    write_json_atomic(output, scores, indent=2)
    return 0
