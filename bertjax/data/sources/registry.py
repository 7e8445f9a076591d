"""The record of a source kind (`SourceKind`), its lookup, and the fingerprints of sources."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from bertjax.config.schema import base as schema
from bertjax.config.schema.slices import parse_slice
from bertjax.config.schema.sources import SOURCES
from bertjax.data.sources import sentences as sentence_rules
from bertjax.errors import UserError
from bertjax.storage import remote
from bertjax.storage.files import expand_globs, sha256_of_files

PART_BYTES = 64 << 20
T = TypeVar("T")


def describe_source(source: Any) -> str:
    """A source in messages: its files, its name, or its kind and split."""
    if files := getattr(source, "files", None):
        return ", ".join(files)[:150]
    split = getattr(source, "split", None)
    return getattr(source, "name", None) or source.kind + (f" ({split})" if split else "")


@dataclass(frozen=True)
class SourceKind:
    """Functions and facts of one source kind. `source` is a section of this kind; relative names start at `base`.

    A kind gives texts, documents, records or questions; the readers (`text`, `records`, `squad`) derive the others:
    texts from documents, the `text_field` of records or contexts of questions; documents by splitting texts into
    sentences; questions from records.

    Attributes:
        content: what identifies the data, such as a hash of the files.
        version: of the rules by which the kind is read; raise it when they change. (Kinds shared 1 and 2.)
        is_split: (source, whether sentences are wanted) -> whether `sentences.VERSION` applies.
        texts, documents: in order; documents are lists of sentences. Empty ones are left out.
        records: (source, base, field) -> (where, record); with a `field`, other columns may be left out.
        questions: checked `squad.Example`s.
        parts: [(source, bytes)], which together give what the source gives, in order.
        find_problem: a message when the data are missing.
        undivided: (the largest file that is read as one document, the blocks that blank lines divide it into).
        label_names: (source, base, field) -> the names of a label's classes by id.
        count: (source, one of its files) -> the records that its option `split` divides.
        describe: the source's name in messages.
    """

    content: Callable[[Any, Path], str]
    version: int = 2
    is_split: Callable[[Any, bool], bool] = lambda source, wanted: wanted
    texts: Callable[[Any, Path], Iterator[str]] | None = None
    documents: Callable[[Any, Path], Iterator[list[str]]] | None = None
    records: Callable[[Any, Path, str | None], Iterator[tuple[str, dict[str, Any]]]] | None = None
    questions: Callable[[Any, Path], Iterator[Any]] | None = None
    parts: Callable[[Any, Path], list[tuple[Any, int]]] = lambda source, base: [(source, 0)]
    files: Callable[[Any], Sequence[str]] = lambda source: getattr(source, "files", ())
    find_problem: Callable[[Any, Path], str | None] = lambda source, base: None
    undivided: Callable[[Any, Path], tuple[Path, int] | None] = lambda source, base: None
    label_names: Callable[[Any, Path, str], tuple[str, ...] | None] = lambda source, base, field: None
    describe: Callable[[Any], str] = describe_source
    count: Callable[[Any, Path], int] | None = None


def record_of(source: Any) -> SourceKind:
    """The record of a source's kind. Raises TypeError for a kind without one."""
    return schema.record_of(source, SourceKind)


def kinds_with(*what: str) -> str:
    """The kinds that give one of `what` (attributes of SourceKind), for messages."""
    kinds = [kind for kind, section in SOURCES.items() if any(getattr(record_of(section), name) for name in what)]
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]])


def hash_files(source: Any, base: Path) -> str:
    """`content` of kinds with `files`: names, sizes and bytes, whatever the folder."""
    return sha256_of_files(expand_globs(source.files, base))


def split_files(source: Any, base: Path) -> list[tuple[Any, int]]:
    """`parts` of kinds with `files`: sources of about PART_BYTES, without dividing a file."""
    files: list[list[str]] = [[]]
    sizes = [0]
    for path in expand_globs(source.files, base):
        if sizes[-1] >= PART_BYTES:
            files.append([])
            sizes.append(0)
        files[-1].append(str(path) if remote.is_remote(path) else os.path.abspath(path))
        sizes[-1] += remote.file_size(path) or 0
    parts = [(source.model_copy(update={"files": part}), size) for part, size in zip(files, sizes, strict=True)]
    if source.split is None:
        return parts
    return list(_sliced_parts(source, base, parts)) or _raise_empty(source, base)


def _sliced_parts(source: Any, base: Path, parts: list[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
    """The records of each part that `split` takes, as slices of the part; parts without any are left out."""
    first, last = slice_bounds(source, base)
    before = 0
    for number, (part, size) in enumerate(parts):
        if last is not None and before >= last:
            return
        is_last = number == len(parts) - 1
        count = None if is_last and last is None else count_records(part.model_copy(update={"split": None}), base)
        start = max(first - before, 0)
        stop = None if last is None else last - before
        if count is not None:
            stop = count if stop is None else min(stop, count)
        if stop is None or start < stop:
            everything = start == 0 and stop == count
            taken = None if everything and count is not None else f"[{start}:{'' if stop is None else stop}]"
            yield part.model_copy(update={"split": None if taken == "[0:]" else taken}), size
        before += count or 0


def count_records(source: Any, base: Path) -> int:
    """How many records the files of a source hold, whatever its `split`; each file is read once."""
    options = source.model_dump_json(exclude={"files", "split"})
    total = 0
    for path in expand_globs(source.files, base):
        if remote.is_remote(path):
            total += _count(source, path)
        else:
            stat = path.stat()
            total += _count_local(cast(Any, type(source)), options, str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    return total


def _count(source: Any, path: Path) -> int:
    if (count := record_of(source).count) is None:
        raise UserError(f"source of kind '{source.kind}': split: its records cannot be counted; leave it out")
    return count(source, path)


@functools.lru_cache(maxsize=4096)
def _count_local(section: Any, options: str, path: str, size: int, mtime_ns: int) -> int:
    # size and mtime_ns are part of the cache key: a changed file is read again
    return _count(section.model_validate({**json.loads(options), "files": [path]}), Path(path))


def slice_bounds(source: Any, base: Path) -> tuple[int, int | None]:
    """(first, end) of the records that `split` takes; the files are read for percentages and negative numbers."""
    bounds = parse_slice(source.split)
    return bounds.bounds(count_records(source, base) if bounds.needs_total else None)


def take_slice(
    items: Iterator[T], source: Any, base: Path, ends: Callable[[T], bool] = lambda item: True
) -> Iterator[T]:
    """The items of the records that the option `split` of a source takes; `ends`: whether an item is a record's last.

    Raises UserError if it takes none.
    """
    if source.split is None:
        yield from items
        return
    first, last = slice_bounds(source, base)
    empty, record = True, 0
    for item in items if last is None or first < last else ():
        if record >= first:
            empty = False
            yield item
        record += ends(item)
        if record == last:
            break
    if empty:
        _raise_empty(source, base)


def _raise_empty(source: Any, base: Path) -> NoReturn:
    held = f"holds {count_records(source, base):,} records, and split '{source.split}' takes none of them"
    raise UserError(f"{describe_source(source)}: {held}; choose another part")


def fingerprint(source: Any, base: Path, *, sentences: bool = True, version: int | None = None) -> str:
    """sha256 over the version of the rules (default: now), options and content: changes when what is read may change.

    `sentences`: whether the source is read as sentences, so that the version of the sentence rules counts.
    """
    version = rules_version(source, sentences) if version is None else version
    options = json.dumps(source.model_dump(mode="json", exclude={"files"}), sort_keys=True)
    content = record_of(source).content(source, base)
    return hashlib.sha256(f"{version}\n{options}\n{content}".encode()).hexdigest()


def rules_version(source: Any, sentences: bool = True) -> int:
    """The sum of the version numbers that apply: they only grow, so each sum identifies one state of the rules."""
    record = record_of(source)
    return record.version + (sentence_rules.VERSION if record.is_split(source, sentences) else 0)


def match_earlier_version(sources: Sequence[Any], base: Path, before: Sequence[str]) -> bool:
    """Whether `before` are fingerprints of these sources, perhaps by earlier rules: the same data, read differently."""
    return len(before) == len(sources) and all(
        found in {fingerprint(source, base, version=version) for version in range(1, rules_version(source) + 1)}
        for source, found in zip(sources, before, strict=True)
    )
