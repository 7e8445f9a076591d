"""`bertjax explore`: words and attention inside a model."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.cli import arguments as cli
from bertjax.errors import UserError
from bertjax.storage.locations import local_path

_PAGE = "explore.html"


@cli.command(
    "explore",
    "look inside a model: nearest words, word analogies, pictures of words, attention maps",
    cli.MODEL,
    cli.option("--words", metavar="FILE|LIST", help="words to look at: a file with one in each line, where a line "
               "`: name` begins a group, or a list with commas (default: 64 common English words)"),
    cli.option("--analogies", metavar="FILE", help="questions: lines `a b c d`, and `: name` before a section, as in "
               "questions-words.txt of word2vec (default: a few English ones)"),
    cli.option("--sentence", metavar="TEXT", action="append", help="sentence whose attention is drawn; may be given "
               "more than once"),
    cli.option("--text", metavar="FILE", help="text for the contextual vectors: plain, or records with a field text "
               "(default: each word in one short sentence)"),
    cli.option("--layer", metavar="L", type=cli.non_negative_int, help="layer of the contextual vectors, 0 is the "
               "embeddings (default: the last)"),
    cli.option("--neighbors", metavar="N", type=cli.positive_int, default=10, help="nearest words (default: 10)"),
    cli.option("--picture", choices=("pca", "tsne", "both"), default="both", help="how words are drawn: principal "
               "components, t-SNE (needs scikit-learn) or both (default)"),
    cli.option("--seed", metavar="N", type=cli.non_negative_int, default=1, help="seed of t-SNE and of the sentences "
               "drawn from --text (default: 1)"),
    cli.option("--output", metavar="PATH", help="write an HTML page, FILE.html, or explore.html in a folder; a .json "
               "is written next to it"),
    cli.JSON,
    cli.option("--batch-size", metavar="N", type=cli.size, help="rows computed at once (default: by device)"),
    cli.DEVICE,
    cli.DTYPE,
    examples=(
        "bertjax explore google-bert/bert-base-uncased --output bert.html",
        "bertjax explore runs/a --words king,queen,man,woman --sentence 'The king spoke.' --output pages/",
        "bertjax explore runs/a --analogies questions-words.txt --text wiki.txt --json",
    ),
    note="the run and files are your own",
)  # fmt: skip
def explore(arguments: argparse.Namespace) -> int:
    from bertjax.tools.explore import inputs

    for text in arguments.sentence or ():
        if not text.strip() or not cli.is_utf8(text):
            raise UserError(f"--sentence: {text[:60]!a} is no text; write a sentence")
    words, text = _words_file(arguments.words), arguments.text and cli.existing_path(arguments.text)
    questions = cli.existing_path(arguments.analogies) if arguments.analogies else None
    given: dict[str, Any] = {}
    if arguments.words is not None:
        given["groups"] = inputs.parse_words(arguments.words) if words is None else inputs.read_words(words)
    if questions is not None:
        given |= {"questions": inputs.read_questions(questions), "questions_from": str(questions)}
    if arguments.sentence:
        given["sentences"] = arguments.sentence
    output = _output(arguments.output, [words, questions, text])
    model = cli.pretrained_model(arguments.checkpoint)
    cli.require_device(arguments)
    from bertjax.tools.explore import command, table

    shared = ("layer", "neighbors", "picture", "seed", "batch_size", "dtype")
    options = {name: getattr(arguments, name) for name in shared}
    report = command.explore(command.Request(model, text=text, output=output, **options, **given))
    if arguments.json:
        return cli.print_result(report)
    shown = table.format_text(report)
    return cli.print_result(f"{shown}\n\n{output or 'for the page with pictures and attention: --output FILE.html'}")


def _words_file(given: str | None) -> Path | None:
    """The file that --words names; None where it is a list. Raises UserError for a file that does not exist."""
    if given is None or "," in given:
        return None
    path = local_path(given)
    return cli.existing_path(given) if path.exists() or path.suffix or len(path.parts) > 1 else None


def _output(given: str | None, inputs: Sequence[Path | None]) -> Path | None:
    """The page: a file .html, or explore.html in a folder, whose own folder exists."""
    if given is None:
        return None
    path = local_path(given)
    if path.suffix != ".html":
        if path.suffix and not path.is_dir():
            raise UserError(f"--output: {given[:200]!a} is neither a folder nor a file .html; name one of them")
        cli.existing_path(str(path.parent))
        if path.exists() and not path.is_dir():
            raise UserError(f"--output: {given[:200]!a} is a file; name a folder or a file .html")
        path = path / _PAGE
        if not path.parent.exists():
            cli.require_writable(path.parent.parent)
            return path
    return cli.output_path(str(path), inputs, (".html", ".json"))
