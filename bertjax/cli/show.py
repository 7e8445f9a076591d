"""`bertjax show` and `bertjax tokenize`: rows of the training data, and pieces of texts."""

import argparse
import os
import shutil
import sys

from bertjax.cli import arguments as cli
from bertjax.errors import UserError
from bertjax.storage.locations import local_path

MAX_WIDTH = 120  # columns of text


@cli.command(
    "show",
    "show rows of the training data: masks and originals, spans, labels, inputs and targets, packing",
    cli.CONFIG,
    cli.option("--stage", metavar="NAME", help="stage (default: the first)"),
    cli.option("--task", metavar="NAME", help="rows of one task of a mixture (default: all)"),
    cli.option("-n", "--count", metavar="N", type=cli.positive_int, default=5, help="rows to show (default: 5)"),
    cli.option("--step", metavar="K", type=cli.non_negative_int, default=0, help="step of the stage (default: 0)"),
    cli.option("--output", metavar="FILE", help="write an HTML page instead"),
    cli.JSON,
    examples=(
        "bertjax show debug/cpu",
        "bertjax show debug/cpu --stage qa -n 2 --output rows.html",
        "bertjax show debug/t5_cpu --stage multitask --task spans --step 100",
    ),
    overrides=True,
)
def show(arguments: argparse.Namespace) -> int:
    output = cli.output_path(arguments.output, [local_path(arguments.config)])
    if output and arguments.json:
        raise UserError("--output: writes HTML; leave out --json")
    if (kept := local_path(arguments.config) / "config.yaml").is_file():
        raise UserError(f"{arguments.config}: is a run; `show` reads a configuration: bertjax show {kept}")
    config = cli.load_config(arguments)
    from bertjax.tools.show.command import rows_json, show_rows

    rows = show_rows(config, stage=arguments.stage, task=arguments.task, step=arguments.step, count=arguments.count)
    if output:
        from bertjax.report.pages.rows import rows_page
        from bertjax.storage.atomic import write_text_atomic

        stage = arguments.stage or config.stages[0].name
        write_text_atomic(output, rows_page(str(arguments.config), stage, rows_json(rows)))
        return cli.print_result(f"wrote {output}")
    if arguments.json:
        return cli.print_result(rows_json(rows))
    from bertjax.tools.show.text import rows_text

    colors = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    return cli.print_result(rows_text(rows, width, colors).rstrip("\n"))


@cli.command(
    "tokenize",
    "show the pieces and ids of texts, and what the ids decode to",
    cli.option("model", metavar="MODEL", help="a run, a checkpoint, a Hugging Face folder, a tokenizer file, or a "
               "model on the Hub: org/name, org/name@revision"),
    cli.option("text", metavar="[TEXT ...]", nargs="*", help="texts (default: the lines of standard input)"),
    cli.option("--file", metavar="FILE", help="read texts from a UTF-8 file, one per line"),
    cli.JSON,
    examples=(
        'bertjax tokenize google-bert/bert-base-uncased "Unaffable tokenizers"',
        "bertjax tokenize runs/debug-cpu --file texts.txt --json",
    ),
    note="a model on the Hub, a run and a file of yours",
)  # fmt: skip
def tokenize(arguments: argparse.Namespace) -> int:
    texts = cli.given_texts(arguments)
    from pathlib import Path

    from bertjax.data.tokenizers import load, locate
    from bertjax.storage import pretrained
    from bertjax.tools.show.command import tokenize_texts
    from bertjax.tools.show.text import tokenized_text

    place = locate.locate(arguments.model, Path.cwd())
    with pretrained.name_in_errors(place):
        tokenizer = load.from_pretrained(place.path)
    found = tokenize_texts(tokenizer, texts)
    return cli.print_result(found if arguments.json else tokenized_text(found))
