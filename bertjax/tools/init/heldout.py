"""Split a held-out part off the user's data, into two files beside the configuration.

Which examples are held out depends only on their texts: equal texts go to the same side, and the same data are always
split in the same way.
"""

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.storage.atomic import name_errors
from bertjax.storage.files import expand_globs, read_lines, read_text
from bertjax.tools.init.source import Data

MAX_BYTES = 500_000_000  # of data that are copied into two files
MIN_EXAMPLES = 20
Keyed = tuple[str, str]  # (text of an example, label or "")
Parts = tuple[Path, Path]  # the files for training and evaluation


def check_size(data: Data) -> None:
    if data.size > MAX_BYTES:
        raise UserError(
            f"{data.described}: {data.size / 1e6:,.0f} MB are too much to copy into a training and a held-out file; "
            "name a held-out file with --eval, or train without evaluation: --eval none"
        )


def choose_heldout(keys: Iterable[Keyed], fraction: float, most: int, what: str) -> set[int]:
    """Hashes of the texts to hold out: a fraction of each label, at most `most` in all.

    Raises UserError for too few.
    """
    hashes: dict[str, list[int]] = defaultdict(list)
    for text, label in keys:
        hashes[label].append(text_hash(text))
    total = sum(map(len, hashes.values()))
    if total < MIN_EXAMPLES:
        raise UserError(
            f"{total} {what} are too few to hold some out; name held-out data with --eval, or use all: --eval none"
        )
    share = min(fraction, most / total)
    found: set[int] = set()
    for values in hashes.values():
        count = round(share * len(values)) or int(len(values) > 4)
        found.update(sorted(values)[:count])
    return found or {min(value for values in hashes.values() for value in values)}


def text_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).digest()[:8], "big")


def split_records(records: Iterator[tuple[dict[str, Any], str]], heldout: set[int], parts: Parts) -> tuple[int, int]:
    """Write (record, text) as JSON lines into the two files -> records in each."""

    def lines() -> Iterator[tuple[str, bool]]:
        for record, text in records:
            yield json.dumps(record, ensure_ascii=False, default=str) + "\n", text_hash(text) in heldout

    return write_parts(lines(), parts)


def split_squad(data: Data, base: Path, parts: Parts) -> tuple[int, int]:
    """Split files in SQuAD's format by article, or by paragraph if there are few articles -> questions in each."""
    articles = [
        article for path in expand_globs(data.keys["files"], base) for article in json.loads(read_text(path))["data"]
    ]
    if len(articles) < MIN_EXAMPLES:
        articles = [article | {"paragraphs": [part]} for article in articles for part in article["paragraphs"]]
        what = "paragraphs"
    else:
        what = "articles"
    texts = [json.dumps(article["paragraphs"], sort_keys=True) for article in articles]
    contexts = [article["paragraphs"][0]["context"] if article["paragraphs"] else "" for article in articles]
    keys = texts if what == "articles" else contexts
    heldout = choose_heldout(((key, "") for key in keys), 0.1, 100, what)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for article, key in zip(articles, keys, strict=True):
        sides[text_hash(key) in heldout].append(article)
    contents = [json.dumps({"version": "", "data": side}, ensure_ascii=False) for side in sides]
    write_parts(((content, bool(side)) for side, content in enumerate(contents)), parts)
    counts = [sum(len(p["qas"]) for article in side for p in article["paragraphs"]) for side in sides]
    return counts[0], counts[1]


def read_blocks(paths: Sequence[Path]) -> Iterator[str]:
    """The blocks of lines between blank lines, each with a blank line after it."""
    for path in paths:
        lines = (line for _, line in read_lines(path))
        for blank, block in groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield "\n".join(block) + "\n\n"


def split_text(paths: Sequence[Path], parts: Parts) -> tuple[int, int]:
    """Split text files at blank lines -> blocks in each; a file without blank lines gives its last lines."""
    if len(list(islice(read_blocks(paths), 2))) < 2:
        lines = [line for path in paths for _, line in read_lines(path)]
        if len(lines) < MIN_EXAMPLES:
            raise UserError(
                f"{paths[0]}: one block of {len(lines)} lines cannot be split; separate documents by blank lines, name "
                "held-out text with --eval, or use all: --eval none"
            )
        last = max(1, len(lines) // 20)
        return write_parts(((line + "\n", at >= len(lines) - last) for at, line in enumerate(lines)), parts)
    heldout = choose_heldout(((block, "") for block in read_blocks(paths)), 0.05, 1000, "blocks of text")
    return write_parts(((block, text_hash(block) in heldout) for block in read_blocks(paths)), parts)


def split_documents(paths: Sequence[Path], parts: Parts) -> tuple[int, int]:
    """Split text files that are a document each, into JSON lines with the field `text` -> documents in each."""

    def texts() -> Iterator[str]:
        return (text for path in paths if (text := read_text(path)).strip())

    found = choose_heldout(((text, "") for text in texts()), 0.05, 1000, "documents")
    return split_records((({"text": text}, text) for text in texts()), found, parts)


def hold_out_files(paths: Sequence[Path]) -> tuple[list[str], list[str]] | None:
    """(training files, held-out files): the last file, if it is at most a fifth of all; None if it is larger."""
    sizes = [path.stat().st_size for path in paths]
    if not 2 <= len(paths) <= 20 or sizes[-1] * 5 > sum(sizes):
        return None
    return [str(path) for path in paths[:-1]], [str(paths[-1])]


def write_parts(items: Iterable[tuple[str, bool]], parts: Parts) -> tuple[int, int]:
    """Write (text, whether it is held out) to the two files -> items in each; both appear together, at the end."""
    drafts = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in parts]
    counts = [0, 0]
    try:
        with name_errors(parts[0]), contextlib.ExitStack() as stack:
            files = [stack.enter_context(draft.open("w", encoding="utf-8", newline="\n")) for draft in drafts]
            for text, side in items:
                files[side].write(text)
                counts[side] += 1
        if not all(counts):
            raise UserError("all examples are the same; name held-out data with --eval, or use all: --eval none")
        for draft, path in zip(drafts, parts, strict=True):
            draft.replace(path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    return counts[0], counts[1]
