"""Unpacked rows for each kind of preprocessing, as jobs for `shards.write_shards`, and the packing of such rows.

Every function named `*_blocks` is pure: the rows depend on its arguments only. Row fields: see `row_dtype`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.data_schema import BertPairs, Classify, SpanQa
from bertjax.data import text_counts
from bertjax.data.masking import MaskingRules, mask_rows
from bertjax.data.packing import Assignment, pack_rows
from bertjax.data.pairs import Corpus, document_rng, pairs_from_document, to_row
from bertjax.data.shards import BLOCK_ROWS, Blocks, CountedBlocks
from bertjax.data.store import Store

if TYPE_CHECKING:
    from bertjax.data.labels import Labels
    from bertjax.data.questions import Example
    from bertjax.data.tokenizers import Tokenizer

UNIT_BITS = 32  # a row's number for static masks: its job in the high bits, its place in the job in the low ones


def row_dtype(sequence_length: int, **per_example: Any) -> np.dtype:
    """input_ids, token_type_ids, segment_ids, positions int32 [S], then `per_example` fields [1] of the types given."""
    names = ("input_ids", "token_type_ids", "segment_ids", "positions")
    tokens = [(name, "<i4", (sequence_length,)) for name in names]
    return np.dtype(tokens + [(name, np.dtype(kind).str, (1,)) for name, kind in per_example.items()])


def pairs_dtype(pairs: BertPairs) -> np.dtype:
    return row_dtype(pairs.sequence_length, cls_positions="i4", nsp_labels="i4", nsp_weights="f4")


def with_masks(dtype: np.dtype, rules: MaskingRules | None) -> np.dtype:
    """`dtype` and the fields of static masks [K]."""
    if rules is None:
        return dtype
    kinds = {"masked_positions": "<i4", "masked_ids": "<i4", "masked_weights": "<f4"}
    return np.dtype(_fields(dtype) + [(name, kind, (rules.row_predictions,)) for name, kind in kinds.items()])


def packed_dtype(dtype: np.dtype, max_segments: int) -> np.dtype:
    """`dtype` with room for `max_segments` examples: fields [1] become [G]."""
    return np.dtype([(name, kind, (max_segments,) if shape == (1,) else shape) for name, kind, shape in _fields(dtype)])


def _fields(dtype: np.dtype) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, dtype[name].base.str, dtype[name].shape) for name in dtype.names or ()]


@dataclass(frozen=True)
class Masker:
    """Static masks: drawn once, when the rows are made."""

    rules: MaskingRules
    seed: int

    def __call__(self, rows: np.ndarray, first: int) -> None:
        """Masks rows [n], numbered from `first`, in place."""
        drawn = mask_rows(rows, self.rules, seed=self.seed, epoch=0, indices=np.arange(first, first + len(rows)))
        for name, values in drawn.items():
            rows[name] = values


# ---- sentence pairs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairsWork:
    corpus: Corpus
    pairs: BertPairs
    seed: int
    ids: dict[str, int]  # cls_id, sep_id, pad_id
    dtype: np.dtype
    masker: Masker | None


@dataclass(frozen=True)
class PairsUnit:
    """Documents first..last-1 in pass `repeat`."""

    number: int
    repeat: int
    first: int
    last: int


def pairs_blocks(work: PairsWork, unit: PairsUnit) -> Blocks:
    """The pairs of a unit, document by document."""
    made = (
        to_row(pair, work.pairs.sequence_length, **work.ids)
        for document in range(unit.first, unit.last)
        for pair in pairs_from_document(
            document, work.corpus, work.pairs, document_rng(work.seed, unit.repeat, document)
        )
    )
    done = 0
    while chunk := list(islice(made, BLOCK_ROWS)):
        rows = np.zeros(len(chunk), work.dtype)
        for name in chunk[0]:
            rows[name] = [row[name] for row in chunk]
        if work.masker:
            work.masker(rows, (unit.number << UNIT_BITS) + done)
        done += len(rows)
        yield rows


def pairs_units(tokens: Sequence[int], repeats: int, unit_tokens: int) -> Iterator[PairsUnit]:
    """Cuts `repeats` passes over documents of `tokens` [documents] tokens into units of about `unit_tokens`."""
    bounds, held = [0], 0
    for document, count in enumerate(tokens, 1):
        held += count
        if held >= unit_tokens or document == len(tokens):
            bounds.append(document)
            held = 0
    spans = [(r, *span) for r in range(repeats) for span in zip(bounds, bounds[1:], strict=False)]
    return (PairsUnit(number, *span) for number, span in enumerate(spans))


# ---- questions ------------------------------------------------------------------------------------------------------


def qa_blocks(work: tuple["Tokenizer", SpanQa], examples: Sequence["Example"]) -> CountedBlocks:
    """The training windows of some questions."""
    from bertjax.data.qa import counted_training_features

    rows, counts = counted_training_features(examples, *work)
    yield rows
    return counts


# ---- classification -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifyWork:
    tokenizer: "Tokenizer"
    classify: Classify
    labels: "Labels"
    dtype: np.dtype


def classify_blocks(work: ClassifyWork, records: Sequence[dict[str, Any]]) -> CountedBlocks:
    """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`: run_classifier.py's convert_single_example (google-research/bert).

    A single text is cut at its end; of a pair the longer text loses tokens from its end (B when equal).
    """
    options, tokenizer = work.classify, work.tokenizer
    texts_a = tokenizer.encode_batch([record[options.text_a] for record in records])
    texts_b: Sequence[list[int]] = [[]] * len(records)
    if options.text_b is not None:
        texts_b = tokenizer.encode_batch([record[options.text_b] for record in records])
    rows = np.zeros(len(records), work.dtype)
    rows["input_ids"] = tokenizer.pad_id
    room = options.sequence_length - (2 if options.text_b is None else 3)
    for row, record, a, b in zip(rows, records, texts_a, texts_b, strict=True):
        a, b = _cut(a, b, room)
        ids = [tokenizer.cls_id, *a, tokenizer.sep_id]
        first = len(ids)
        if options.text_b is not None:
            ids += [*b, tokenizer.sep_id]
        row["input_ids"][: len(ids)] = ids
        row["token_type_ids"][first : len(ids)] = 1
        row["segment_ids"][: len(ids)] = 1
        row["positions"][: len(ids)] = np.arange(len(ids))
        row["labels"], row["label_weights"] = work.labels.number(record[options.label])
    yield rows
    both = [[*a, *b] for a, b in zip(texts_a, texts_b, strict=True)]
    return {"texts": text_counts.count(both, room, tokenizer.unk_id)}


def _cut(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """_truncate_seq_pair of run_classifier.py: what popping the longer one, B on a tie, leaves."""
    if len(a) + len(b) <= room:
        return a, b
    keep_a = min(len(a), max(room - len(b), room - room // 2))
    return a[:keep_a], b[: room - keep_a]


# ---- packing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackingWork:
    store: Store
    max_segments: int
    pad_id: int
    dtype: np.dtype
    masker: Masker | None


def packing_blocks(work: PackingWork, part: tuple[int, Assignment]) -> Blocks:
    """Packs the rows of an assignment, numbered from part[0], out of a store of unpacked rows."""
    first, assignment = part
    for start in range(0, assignment.rows, BLOCK_ROWS):
        some = assignment.part(start, min(start + BLOCK_ROWS, assignment.rows))
        packed = pack_rows(work.store.rows(some.examples), some, work.max_segments, work.pad_id)
        rows = np.zeros(some.rows, work.dtype)
        for name, values in packed.items():
            rows[name] = values
        if work.masker:
            work.masker(rows, first + start)
        yield rows
