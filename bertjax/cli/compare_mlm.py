"""`bertjax compare-mlm`: what more pre-training on domain text has changed."""

import argparse

from bertjax.cli import arguments as cli
from bertjax.errors import UserError


@cli.command(
    "compare-mlm",
    "compare two masked language models on texts: cloze items and pseudo-perplexity",
    cli.option("base", metavar="BASE", help=cli.MODEL[1]["help"]),
    cli.option("adapted", metavar="ADAPTED", help="the other model, such as BASE trained further on domain text"),
    cli.option("--text", metavar="FILE", action="append", help="domain text: a plain text file, or records (.jsonl, "
               ".json, .csv, .tsv, .parquet); may be given more than once"),
    cli.option("--general", metavar="FILE", action="append", help="general text, to see what was forgotten; may be "
               "given more than once"),
    cli.option("--column", metavar="NAME", default="text", help="field of records with the text (default: text)"),
    cli.option("--cloze", metavar="FILE", help="cloze items: lines of a text with [MASK], a tab and the word, or "
               ".jsonl records with text and answer (default: chosen from --text)"),
    cli.option("--write-cloze", metavar="FILE", help="write the chosen items, for --cloze of another comparison"),
    cli.option("--limit", metavar="N", type=cli.positive_int, default=200, help="cloze items chosen, and sentences "
               "scored of each text (default: 200)"),
    cli.option("--top-k", metavar="K", type=cli.positive_int, default=10, help="candidates listed for a mask "
               "(default: 10)"),
    cli.option("--seed", metavar="N", type=cli.non_negative_int, default=1, help="seed of samples and bootstrap "
               "(default: 1)"),
    cli.option("--output", metavar="FILE", help="write an HTML page; a .json is written next to it"),
    cli.JSON,
    cli.option("--batch-size", metavar="N", type=cli.size, help="rows computed at once (default: by device)"),
    cli.DEVICE,
    cli.DTYPE,
    cli.PLUGINS,
    examples=(
        "bertjax compare-mlm google-bert/bert-base-uncased runs/domain --text heldout.txt --general wiki.txt",
        "bertjax compare-mlm runs/a runs/b --text heldout.txt --write-cloze cloze.txt --output comparison.html",
        "bertjax compare-mlm runs/a runs/c --cloze cloze.txt --json",
    ),
    note="the runs and files are your own",
)  # fmt: skip
def compare_mlm(arguments: argparse.Namespace) -> int:
    if not arguments.text and not arguments.cloze:
        raise UserError("bertjax compare-mlm: give --text, --cloze or both")
    if arguments.cloze and arguments.write_cloze:
        raise UserError("bertjax compare-mlm: --write-cloze is for items chosen from --text; leave out --cloze")
    text, general = ([cli.existing_path(path) for path in given or ()] for given in (arguments.text, arguments.general))
    cloze = cli.existing_path(arguments.cloze) if arguments.cloze else None
    inputs = [*text, *general, cloze]
    output = cli.output_path(arguments.output, inputs, (".html", ".json"))
    write_cloze = cli.output_path(arguments.write_cloze, inputs)
    if output is not None and write_cloze in (output.with_suffix(".html"), output.with_suffix(".json")):
        raise UserError("bertjax compare-mlm: --write-cloze and --output name the same file; name two")
    base, adapted = cli.pretrained_model(arguments.base), cli.pretrained_model(arguments.adapted)
    cli.require_device(arguments)
    from bertjax.tools.compare_mlm import command, table

    shared = ("column", "limit", "top_k", "seed", "batch_size", "dtype")
    request = command.Request(
        base, adapted, text=text, general=general, cloze=cloze, output=output, write_cloze=write_cloze,
        **{name: getattr(arguments, name) for name in shared},
    )  # fmt: skip
    report = command.compare_mlm(request)
    if arguments.json:
        return cli.print_result(report)
    shown = table.format_text(report)
    return cli.print_result(f"{shown}\n\n{output.with_suffix('.html')}" if output else shown)
