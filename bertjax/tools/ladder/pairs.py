"""Minimal pairs: sentences of which one is acceptable, scored by paradigm and phenomenon (arXiv 1912.00582)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.config.schema.ladder import MinimalPairs
from bertjax.data.sources.record_files import read_by_suffix
from bertjax.errors import UserError
from bertjax.storage.files import expand_globs

_FIELDS = ("sentence_good", "sentence_bad", "UID", "linguistics_term")


@dataclass(frozen=True)
class Pair:
    good: str
    bad: str
    paradigm: str
    phenomenon: str


def read_pairs(options: MinimalPairs, base: Path) -> list[Pair]:
    """The first `limit` pairs of each paradigm, in the order of the files. Raises UserError."""
    found: list[Pair] = []
    counts: dict[str, int] = defaultdict(int)
    for path in expand_globs(options.files, base):
        records = read_by_suffix(path)
        if records is None:
            raise UserError(f"ladder.minimal_pairs.files: {path}: give records: .jsonl, .json, .csv, .tsv or .parquet")
        for where, record in records:
            values = [record.get(field) for field in _FIELDS]
            if missing := [field for field, x in zip(_FIELDS, values, strict=True) if not isinstance(x, str) or not x]:
                raise UserError(f"{where}: no text in the field '{missing[0]}' of a minimal pair; correct the record")
            pair = Pair(*map(str, values))
            counts[pair.paradigm] += 1
            if options.limit is None or counts[pair.paradigm] <= options.limit:
                found.append(pair)
    if not found:
        raise UserError(f"ladder.minimal_pairs.files: {', '.join(options.files)}: no pair in them; name others")
    return found


def accuracies(
    pairs: Sequence[Pair], encode: Callable[[list[str]], list[list[int]]],
    score: Callable[[Sequence[Sequence[int]]], list[float]], room: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Percent of the pairs whose good sentence has the higher score; equal scores count half, as a guess would.

    -> `mean` over the paradigms, which BLiMP reports, `paradigms` and `phenomena` {name: mean}, `pairs` scored, and
    `left_out`: those with a sentence of more than `room` tokens.
    """
    sides = [encode([getattr(pair, side) for pair in pairs]) for side in ("good", "bad")]
    lengths = [max(map(len, both)) for both in zip(*sides, strict=True)]
    kept = [number for number, length in enumerate(lengths) if room is None or length <= room]
    if not kept:
        raise UserError(f"ladder.minimal_pairs: every pair has more than {room} tokens; give shorter sentences")
    texts = [sides[side][number] for side in (0, 1) for number in kept]
    scores = score(texts)
    by_paradigm: dict[str, list[float]] = defaultdict(list)
    for number, good, bad in zip(kept, scores[: len(kept)], scores[len(kept) :], strict=True):
        by_paradigm[pairs[number].paradigm].append(100.0 * (good > bad) + 50.0 * (good == bad))
    paradigms = {name: sum(values) / len(values) for name, values in by_paradigm.items()}
    phenomena = {pair.paradigm: pair.phenomenon for pair in pairs}
    return {
        "mean": _mean(paradigms.values()),
        "phenomena": _by_phenomenon(paradigms, phenomena),
        "paradigms": paradigms,
        "pairs": len(kept),
        "left_out": len(pairs) - len(kept),
    }


def _by_phenomenon(paradigms: Mapping[str, float], phenomena: Mapping[str, str]) -> dict[str, float]:
    inside: dict[str, list[float]] = defaultdict(list)
    for name, value in paradigms.items():
        inside[phenomena[name]].append(value)
    return {name: _mean(values) for name, values in inside.items()}


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
