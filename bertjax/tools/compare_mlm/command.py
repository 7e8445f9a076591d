"""Compares two models with MLM heads: cloze items, pseudo-perplexities, and the report of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bertjax.errors import UserError
from bertjax.evaluation.predictors.base import restore_for_prediction
from bertjax.evaluation.predictors.masked_scores import MaskScore, MaskScorer
from bertjax.progress import reporter
from bertjax.report.pages.compare_mlm import mlm_page
from bertjax.storage import atomic
from bertjax.tools.compare_mlm import cloze, significance
from bertjax.tools.compare_mlm.cloze import ClozeItem, ClozeSet
from bertjax.tools.compare_mlm.likelihood import compare_likelihoods
from bertjax.tools.compare_mlm.texts import TextSample, read_sample

Scorers = tuple[MaskScorer, MaskScorer]


@dataclass(frozen=True)
class Request:
    """What `compare_mlm` takes. `text`, `general`: files; `column`: the field of records that holds the text."""

    base: str | Path
    adapted: str | Path
    text: Sequence[Path] = ()
    general: Sequence[Path] = ()
    cloze: Path | None = None  # default: chosen from `text`
    column: str = "text"
    limit: int = 200  # cloze items chosen, and sentences scored of each text
    top_k: int = 10
    seed: int = 1
    output: Path | None = None  # of the page; the report is written beside it
    write_cloze: Path | None = None
    batch_size: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None


def compare_mlm(request: Request) -> dict[str, Any]:
    """Compare ADAPTED (B) with BASE (A) -> the report; files are written at the end.

    The report: {"a", "b": {"path", "vocabulary"}, "same_tokenizer", "seed", "notes", "cloze", "texts": {"domain",
    "general"}}. A mask is won where the gold word has a smaller rank in B. Accuracies are percent, log-probabilities
    nats. Raises UserError for a model without an MLM head, and for files without text or without a usable item.
    """
    if not request.text and request.cloze is None:
        raise UserError("bertjax compare-mlm: give --text, --cloze or both")
    given = None if request.cloze is None else cloze.read_cloze(request.cloze)
    scorers = (_open(request.base, request), _open(request.adapted, request))
    samples = {
        name: read_sample(files, request.column, request.seed, request.limit)
        for name, files in (("domain", request.text), ("general", request.general))
        if files
    }
    found = _cloze_set(request, given, samples.get("domain"), scorers)
    report = {
        "a": _about(request.base, scorers[0]), "b": _about(request.adapted, scorers[1]),
        "same_tokenizer": _same_tokenizer(scorers), "seed": request.seed, "notes": _notes(found, samples, scorers),
        "cloze": _cloze_report(request, found, scorers),
        "texts": {
            name: compare_likelihoods(sample, scorers, request.limit, request.seed, name)
            for name, sample in samples.items()
        },
    }  # fmt: skip
    if request.write_cloze is not None:
        cloze.write_cloze(request.write_cloze, found.items)
    if request.output is not None:
        beside = request.output.with_suffix(".json")
        atomic.write_json_atomic(beside, report)
        atomic.write_text_atomic(request.output.with_suffix(".html"), mlm_page(report, beside.name))
    return report


def _open(model: str | Path, request: Request) -> MaskScorer:
    return MaskScorer(restore_for_prediction(model, dtype=request.dtype), request.batch_size)


def _about(path: str | Path, scorer: MaskScorer) -> dict[str, Any]:
    return {"path": str(path), "vocabulary": scorer.tokenizer.vocab_size}


def _same_tokenizer(scorers: Scorers) -> bool:
    a, b = scorers
    return bool(a.tokenizer.behavior == b.tokenizer.behavior)


def _cloze_set(
    request: Request, given: list[ClozeItem] | None, sample: TextSample | None, scorers: Scorers
) -> ClozeSet:
    """The items that both models can be asked. Raises UserError without any."""
    if given is not None:
        found, source = cloze.fitting_items(given, scorers), str(request.cloze)
        hint = "its answers are no single pieces in both vocabularies, or its texts are too long"
    else:
        assert sample is not None
        found, source = cloze.choose_cloze(sample, scorers, request.limit, request.seed), sample.files[0]
        hint = "no word to mask; give a longer text, or a set with --cloze"
    if not found.items:
        raise UserError(f"{source}: holds no cloze item for both models: {hint}")
    return found


def _cloze_report(request: Request, found: ClozeSet, scorers: Scorers) -> dict[str, Any]:
    sides = []
    for letter, scorer, rows in zip("AB", scorers, found.rows, strict=True):
        with reporter.task(f"cloze items of {letter}", len(rows), "texts"):
            sides.append(scorer.score(rows, request.top_k))
    a, b = ([score for scores in side for score in scores] for side in sides)
    source = {"cloze": str(request.cloze)} if request.cloze else {"text": [str(path) for path in request.text]}
    return {
        "source": source, "texts": len(found.items), "masks": len(a), "left_out": dict(found.left_out),
        "a": significance.aggregate(a), "b": significance.aggregate(b), "counts": significance.counts(a, b),
        "significance": significance.paired_tests(a, b, request.seed),
        "items": [
            _item(item, number, one, other)
            for item, ones, others in zip(found.items, *sides, strict=True)
            for number, (one, other) in enumerate(zip(ones, others, strict=True))
        ],
    }  # fmt: skip


def _item(item: ClozeItem, number: int, a: MaskScore, b: MaskScore) -> dict[str, Any]:
    """One mask; `mask` is its number in the text."""
    about = {"text": item.text, "mask": number, "answer": item.answers[number], "rank_change": b.rank - a.rank}
    return about | {"a": _side(a), "b": _side(b)}


def _side(score: MaskScore) -> dict[str, Any]:
    top = [{"token": token, "probability": probability} for token, probability in score.top]
    return {"rank": score.rank, "log_probability": score.log_probability, "top": top}


def _notes(found: ClozeSet, samples: dict[str, TextSample], scorers: Scorers) -> list[str]:
    notes = []
    if not _same_tokenizer(scorers):
        notes.append(
            "the tokenizers differ: ranks are those in two vocabularies, and perplexity per token cannot be compared; "
            "compare perplexity per word"
        )
    if count := sum(found.left_out.values()):
        listed = ", ".join(f"{reason}: {number:,}" for reason, number in found.left_out.items())
        notes.append(f"cloze: {count:,} left out ({listed}; by either model)")
    for name, sample in samples.items():
        if len(sample.sentences) < sample.total:
            notes.append(f"{name}: a random sample of {len(sample.sentences):,} of {sample.total:,} sentences was used")
    return notes
