"""Looks inside one model: nearest words, analogies, pictures of words and attention maps, as one report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bertjax.errors import UserError
from bertjax.evaluation.predictors.base import restore_for_prediction
from bertjax.evaluation.predictors.vectors import AttentionReader, LayerReader, has_attention
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.progress import reporter
from bertjax.report.pages.explore import explore_page
from bertjax.storage import atomic
from bertjax.tools.compare_mlm.texts import read_sample
from bertjax.tools.explore import contextual, words
from bertjax.tools.explore.analogies import Analogies, Question, Score, analogies
from bertjax.tools.explore.neighbors import nearest
from bertjax.tools.explore.projection import pca, tsne
from bertjax.tools.explore.vocabulary import normalize, word_ids

TABLE = "embeddings/word/embedding"  # the parameter with the input vectors [V, D]
SENTENCES = ("The cat sat on the mat because it was tired.", "The bank raised its rates after the river flooded.")
ATTENTION_TOKENS = 64  # of a sentence, with the special ones
CANDIDATES = 1000  # words of the vocabulary beside the given ones, where no text is given
MIN_LETTERS = 3  # of these
MAX_SENTENCES = 2000  # of --text that the model reads
MIN_POINTS = 4  # of a picture
Picture = Literal["pca", "tsne"]


@dataclass(frozen=True)
class Request:
    """What `explore` takes. `groups`: {group: words}; `text`: a file whose sentences give the contextual vectors."""

    model: str | Path
    groups: Mapping[str, Sequence[str]] = field(default_factory=lambda: words.GROUPS)
    questions: Sequence[Question] = field(default_factory=words.default_questions)
    questions_from: str = "built-in questions"
    sentences: Sequence[str] = SENTENCES
    text: Path | None = None
    layer: int | None = None  # of the contextual vectors; default: the last
    neighbors: int = 10
    picture: Literal["pca", "tsne", "both"] = "both"
    seed: int = 1
    output: Path | None = None  # of the page; the report is written beside it
    batch_size: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None


def explore(request: Request) -> dict[str, Any]:
    """Describe a model -> the report; files are written at the end.

    The report: {"path", "family", "vocabulary", "words", "groups", "notes", "static", "analogies", "contextual" (None
    for a model without an encoder), "attention" (None without attention)}. Cosines are of -1 to 1, accuracies percent,
    attention {"text", "tokens", "maps" [L, H, S, S]} of each sentence. Raises UserError for a model without a table of
    word vectors, a layer that it does not have and --picture tsne without scikit-learn.
    """
    restored = restore_for_prediction(request.model, dtype=request.dtype)
    if TABLE not in restored.params:
        raise UserError(f"{restored.where}: has no word vectors ({TABLE}); name a model that reads words or pieces")
    tokenizer = restored.ctx.tokenizer
    groups = _groups(request, tokenizer)
    ids = word_ids(tokenizer)
    notes: list[str] = []
    table = np.asarray(restored.params[TABLE], np.float32)[list(ids.values())]
    with reporter.task("word vectors", None):
        static = _space(list(ids), table, groups, request, notes, "input vectors")
        answered = analogies(table, {word: row for row, word in enumerate(ids)}, _normalized(request, tokenizer))
    report = {
        "path": str(request.model), "family": restored.program.model.family, "vocabulary": tokenizer.vocab_size,
        "words": len(ids), "groups": groups, "notes": notes, "static": static,
        "analogies": _analogies_report(answered, request, tokenizer),
        "contextual": _contextual(restored, list(ids), groups, request, notes),
        "attention": _attention(restored, request, notes),
    }  # fmt: skip
    if request.output is not None:
        beside = request.output.with_suffix(".json")
        page = explore_page(report, beside.name)
        request.output.parent.mkdir(exist_ok=True)
        atomic.write_json_atomic(beside, report, indent=None)
        atomic.write_text_atomic(request.output, page)
    return report


def _space(
    listed: Sequence[str], vectors: np.ndarray, groups: Mapping[str, Sequence[str]], request: Request,
    notes: list[str], name: str,
) -> dict[str, Any]:  # fmt: skip
    """Neighbors and pictures of the given words in one space: `vectors` [V, D] of the words `listed`."""
    index = {word: row for row, word in enumerate(listed)}
    wanted = [word for words_of in groups.values() for word in words_of]
    known = [word for word in wanted if word in index]
    found = nearest(vectors, listed, known, request.neighbors)
    named = [{"word": word, "neighbors": [{"word": other, "cosine": round(value, 4)} for other, value in line]}
             for word, line in found.items()]  # fmt: skip
    space: dict[str, Any] = {
        "size": vectors.shape[1], "words": len(listed), "unknown": [word for word in wanted if word not in index],
        "nearest": named, "pictures": {},
    }  # fmt: skip
    if len(known) < MIN_POINTS:
        notes.append(f"{name}: {len(known)} of the words are known; a picture needs {MIN_POINTS}")
        return space
    of_group = {word: group for group, words_of in groups.items() for word in words_of}
    rows = vectors[[index[word] for word in known]]
    for kind, points, explained in _pictures(rows, request, notes):
        space["pictures"][kind] = {"explained": explained, "points": [
            {"word": word, "group": of_group[word], "x": round(x, 4), "y": round(y, 4)}
            for word, (x, y) in zip(known, points.tolist(), strict=True)
        ]}  # fmt: skip
    return space


def _pictures(
    rows: np.ndarray, request: Request, notes: list[str]
) -> list[tuple[Picture, np.ndarray, list[float] | None]]:
    """(kind, points [N, 2], shares of the variance or None) of each picture that is asked for."""
    found: list[tuple[Picture, np.ndarray, list[float] | None]] = []
    if request.picture in ("pca", "both"):
        points, explained = pca(rows, 2)
        found.append(("pca", points, [round(share, 4) for share in explained.tolist()]))
    if request.picture in ("tsne", "both"):
        try:
            found.append(("tsne", tsne(rows, request.seed), None))
        except UserError as error:
            if request.picture == "tsne":
                raise
            if str(error) not in notes:
                notes.append(str(error))
    return found


def _groups(request: Request, tokenizer: Any) -> dict[str, list[str]]:
    """The words as the tokenizer writes them, each in its first group."""
    group_of: dict[str, str] = {}
    for group, listed in request.groups.items():
        for word in listed:
            group_of.setdefault(normalize(word, tokenizer), group)
    return {group: [word for word, own in group_of.items() if own == group] for group in request.groups}


def _normalized(request: Request, tokenizer: Any) -> list[Question]:
    return [Question(q.section, *(normalize(word, tokenizer) for word in q.words)) for q in request.questions]


def _analogies_report(found: Analogies, request: Request, tokenizer: Any) -> dict[str, Any]:
    asked = zip(_normalized(request, tokenizer), found.answers, strict=True)
    return {
        "source": request.questions_from, "total": _score(found.total),
        "sections": [{"section": name, **_score(score)} for name, score in found.sections.items()],
        "answers": [
            {"section": q.section, "question": [q.a, q.b, q.c], "gold": q.d, "answer": answer} for q, answer in asked
        ],
    }  # fmt: skip


def _score(score: Score) -> dict[str, Any]:
    accuracy = None if score.accuracy is None else round(score.accuracy, 2)
    return {"correct": score.correct, "answered": score.answered, "unknown": score.unknown, "accuracy": accuracy}


def _contextual(
    restored: RestoredCheckpoint, vocabulary: Sequence[str], groups: Mapping[str, Sequence[str]], request: Request,
    notes: list[str],
) -> dict[str, Any] | None:  # fmt: skip
    if not contextual.has_layers(restored):
        notes.append("the model has no encoder: there are no contextual vectors")
        return None
    reader = LayerReader(restored, request.batch_size)
    about: dict[str, Any]
    if request.text is None:
        wanted = [word for words_of in groups.values() for word in words_of]
        more = [word for word in vocabulary if len(word) >= MIN_LETTERS][:CANDIDATES]
        about = {"template": contextual.TEMPLATE}
        with reporter.task("words in a sentence", len({*wanted, *more}), "texts"):
            found = contextual.template_vectors(reader, [*wanted, *more], request.layer)
    else:
        sample = read_sample([request.text], "text", request.seed, MAX_SENTENCES)
        sentences = sample.sentences[:MAX_SENTENCES]
        about = {"text": str(request.text), "sentences": len(sentences), "of": sample.total}
        with reporter.task("words in sentences", len(sentences), "texts"):
            found = contextual.text_vectors(reader, sentences, request.layer)
    counts = dict(zip(found.words, found.counts, strict=True))
    space = _space(found.words, found.vectors, groups, request, notes, "contextual vectors")
    for one in space["nearest"]:
        one["occurrences"] = counts[one["word"]]
    return about | {"layer": found.layer} | space


def _attention(restored: RestoredCheckpoint, request: Request, notes: list[str]) -> list[dict[str, Any]] | None:
    if not has_attention(restored):
        notes.append("attention maps are those of the BERT families, of GPT and of T5's encoder: this model has none")
        return None
    reader = AttentionReader(restored, request.batch_size)
    longest = restored.program.model.max_length or ATTENTION_TOKENS
    with reporter.task("attention maps", len(request.sentences), "texts"):
        found = reader(request.sentences, min(longest, ATTENTION_TOKENS))
    reader.print_notes()
    return [
        {"text": text, "tokens": tokens, "maps": np.round(maps.astype(np.float64), 4).tolist()}
        for text, (tokens, maps) in zip(request.sentences, found, strict=True)
    ]
