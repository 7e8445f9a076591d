"""Reads the docstrings and language reference (`pydoc_data.topics`) of the running Python's standard library.

A hash of its name puts a module into `heldout` or `train`.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.data.sources.registry import SourceKind
from bertjax.data.sources.stdlib import qa
from bertjax.data.sources.stdlib.parse import Entry, extract_prose, module_entries, parse, source_files, stdlib_root
from bertjax.errors import UserError
from bertjax.storage.files import sha256_of_files

VERSION = 2  # part of every fingerprint: raise it when the output changes
HELDOUT_PERCENT = 15
TOPICS = Path("pydoc_data/topics.py")


def documents(split: str) -> Iterator[tuple[str, list[str]]]:
    """(name, sentences) of the documented modules, then of the topics; `split` is train, heldout or all."""
    for name, opening, entries in _modules(stdlib_root()):
        sentences = [*opening, *_body(entries)]
        if len(sentences) > 1 and _in_split(name, split):
            yield name, sentences
    for name, sentences in _topics(stdlib_root()):
        if _in_split(name, split):
            yield name, list(sentences)


def squad(split: str) -> dict[str, Any]:
    """Questions in SQuAD v1.1 format; `split` is train or heldout, which share no module and no question."""
    training = [(name, entries) for name, _, entries in _modules(stdlib_root()) if _in_split(name, "train")]
    if split == "train":
        return qa.build_squad(training)
    heldout = [(name, entries) for name, _, entries in _modules(stdlib_root()) if _in_split(name, "heldout")]
    return qa.build_squad(heldout, seen=qa.iter_questions(qa.build_squad(training)))


def is_heldout(module: str) -> bool:
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 100 < HELDOUT_PERCENT


def content(source: Any, base: Path) -> str:
    """VERSION and a hash of the files that `documents` and `squad` read, for fingerprints."""
    paths = [path for _, path in source_files(stdlib_root())] + [stdlib_root() / TOPICS]
    return f"{VERSION} {sha256_of_files(paths)}"


def _in_split(module: str, split: str) -> bool:
    return split == "all" or is_heldout(module) == (split == "heldout")


def _body(entries: list[Entry]) -> Iterator[str]:
    """Sentences from the docstrings, signatures and bodies of the entries."""
    for entry in entries:
        if entry.lead:
            yield entry.opening()
        yield from entry.prose
        yield from entry.facts()


def _modules(root: Path) -> Iterator[tuple[str, list[str], list[Entry]]]:
    """(name, sentences of the module's own docstring, entries), each read when it is asked for."""
    files = source_files(root)
    if len(files) < 100:
        raise UserError(f"{root}: the Python standard library's sources are missing; install the full python3 package")
    for name, path in files:
        if (found := _module(path)) is not None:
            yield name, *found


@functools.cache
def _module(path: Path) -> tuple[list[str], list[Entry]] | None:
    tree = parse(path)
    return None if tree is None else (extract_prose(ast.get_docstring(tree) or ""), module_entries(tree))


@functools.cache
def _topics(root: Path) -> list[tuple[str, list[str]]]:
    path = root / TOPICS
    tree = parse(path) if path.is_file() else None
    if tree is None:
        return []
    table = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign) and n.value)
    return [(f"topics.{name}", extract_prose(_unmark(text))) for name, text in sorted(table.items())]


def _unmark(topic: str) -> str:
    """A topic without the underlines of its headings and without indented code (which follows a line ending in ':')."""
    kept: list[str] = []
    in_code = False
    for block in topic.split("\n\n"):
        lines = [line for line in block.split("\n") if line.strip("*=-~^\"' ")]
        in_code = bool(lines) and lines[0].startswith("   ") and (in_code or bool(kept) and kept[-1].endswith("::"))
        if lines and not in_code:
            kept.append("\n".join(line.strip() for line in lines))
    return "\n\n".join(kept)


STDLIB_DOCS = SourceKind(
    content=content,
    is_split=lambda source, wanted: True,
    documents=lambda source, base: (found for _, found in documents(source.split)),
)
