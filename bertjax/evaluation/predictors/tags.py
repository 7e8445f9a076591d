"""Label the words of texts and find entities."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config.schema.data import TokenLabels
from bertjax.data.preprocess.token_labels.words import (
    Pieces,
    cut_long_words,
    encode_texts,
    encode_words,
    split_words,
    windows,
)
from bertjax.errors import UserError
from bertjax.evaluation.inference.tag_decoding import Aggregation, TaggedPiece, TaggedSpan, decode_tags
from bertjax.evaluation.inference.token_rows import TokenRow, check_texts, frame, num_special
from bertjax.evaluation.predictors.base import Predictor, print_note
from bertjax.evaluation.predictors.results import TaggedEntity, TaggedText, TaggedWords
from bertjax.models import families

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
CONTEXT = 4  # windows over a long text share 1 / CONTEXT of their pieces


def stage_options(restored: Any) -> TokenLabels | None:
    """The `token_labels` section of the stage's training data; None for other data, and for an imported model."""
    if restored.hugging_face is not None:
        return None
    config = restored.ctx.config
    tasks = config.stage_tasks(config.stages[restored.stage]).values()
    return next((task.preprocess for task in tasks if isinstance(task.preprocess, TokenLabels)), None)


class Tagger(Predictor):
    """Labels of words and entities, named as in the training data. Texts may have any length: long ones are read in
    overlapping windows, and each word is labelled in the window where it has the most context."""

    head = "token_classifier"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        program, options = self.restored.program, stage_options(self.restored)
        names = families.record_of(program.model).encoder_inputs(program.model)
        self.labels = list(self.restored.labels or (f"LABEL_{number}" for number in range(program.num_classes)))
        longest = program.model.max_length if options is None else options.sequence_length
        self._room = None if longest is None else longest - num_special(self.tokenizer)
        model = self.tokenizer.backend.model
        self._marks_words = bool(getattr(model, "continuing_subword_prefix", None))

        def forward(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            logits = model.token_logits(model.encode(*(batch[name] for name in names)))
            return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

        self._batches = self.length_batches(forward)

    def __call__(self, texts: Sequence[str], aggregation: Aggregation = "first") -> list[TaggedText]:
        """The entities of each text; `aggregation` as of `decode_tags`.

        UserError for what is not a text, and for an unknown `aggregation`.
        """
        if aggregation not in AGGREGATIONS:
            raise UserError(f"aggregation: must be one of {', '.join(AGGREGATIONS)} (got {aggregation!r})")
        given = check_texts("texts", texts)
        encoded = self._encode(given)
        results: list[TaggedText] = []
        for text, pieces, probabilities in zip(given, encoded, self._probabilities(encoded), strict=True):
            spans = decode_tags(self._pieces(text, pieces, probabilities), self.labels, aggregation)
            results.append({"text": text, "entities": [_entity(text, span) for span in spans]})
        return results

    def tag_words(self, sentences: Iterable[Sequence[str]]) -> list[TaggedWords]:
        """The label of each word of sentences that are lists of words, at its first piece.

        UserError for what is not a list of texts, and for an empty word.
        """
        given = [check_texts(f"words of sentence {number}", one) for number, one in enumerate(sentences)]
        for number, words in enumerate(given):
            if "" in words:
                raise UserError(f"words of sentence {number}: item {words.index('')} is empty; remove it")
        encoded = encode_words(given, self.tokenizer)
        return self._tagged(given, encoded)

    def tag_text_words(self, texts: Sequence[str]) -> list[TaggedWords]:
        """The label of each word of each text; punctuation marks are words."""
        given = check_texts("texts", texts)
        encoded = self._encode(given)
        words = [[text[start:end] for start, end in split_words(text)] for text in given]
        return self._tagged(words, encoded)

    def _tagged(self, sentences: Sequence[list[str]], encoded: Sequence[Pieces]) -> list[TaggedWords]:
        results: list[TaggedWords] = []
        for words, pieces, probabilities in zip(sentences, encoded, self._probabilities(encoded), strict=True):
            # a word without a piece of its own is part of the one before it
            places = np.searchsorted(pieces.words[pieces.first], np.arange(len(words)), side="right") - 1
            chosen = probabilities[pieces.first][places] if len(words) else probabilities[:0]
            best = chosen.argmax(-1)
            scores = chosen[np.arange(len(words)), best].tolist()
            results.append({"words": words, "labels": [self.labels[i] for i in best.tolist()], "scores": scores})
        return results

    def _encode(self, texts: list[str]) -> list[Pieces]:
        return encode_texts(texts, [split_words(text) for text in texts], self.tokenizer)

    def _probabilities(self, encoded: Sequence[Pieces]) -> list[np.ndarray]:
        """float32 [T, C] of the T pieces of each sentence."""
        room = self._room or max((len(one.ids) for one in encoded), default=1)
        rows: list[TokenRow] = []
        parts = []
        self.count_tokens([one.ids for one in encoded], None, "")
        for number, pieces in enumerate(encoded):
            cut = cut_long_words(pieces, room)
            if cut.lost:
                print_note(f"a word of text {number} has more pieces than a row: {cut.lost} of them are left out")
            kept = np.ones(len(pieces.ids), bool) if not cut.lost else _kept(pieces, room)
            found = windows(cut, room, room // CONTEXT)
            parts.append((np.flatnonzero(kept), found))
            rows += [TokenRow(frame(self.tokenizer, cut.ids[one.start : one.stop])) for one in found]
        results = iter(self._batches(self.params, rows))
        return [
            _joined(len(pieces.ids), len(self.labels), places, [(one, next(results)) for one in found])
            for pieces, (places, found) in zip(encoded, parts, strict=True)
        ]

    def _pieces(self, text: str, pieces: Pieces, probabilities: np.ndarray) -> list[TaggedPiece]:
        found, listed = [], self.tokenizer.pieces
        inside = self.tokenizer.is_continuation
        for place, (token, (start, end)) in enumerate(zip(pieces.ids, pieces.offsets or (), strict=True)):
            stripped = text[start:end].strip()
            start = end - len(text[start:end].lstrip()) if stripped else end
            end = start + len(stripped)
            if self._marks_words:
                continues = bool(inside[token])
            else:  # without marks of word ends, a word is one of `split_words`
                continues = bool(pieces.words[place] >= 0 and not pieces.first[place])
            shown = stripped if token == self.tokenizer.unk_id else listed[token]
            found.append(TaggedPiece(shown, place + 1, start, end, probabilities[place], continues))
        return found


def _kept(pieces: Pieces, room: int) -> np.ndarray:
    """bool [T]: the pieces that `cut_long_words` keeps."""
    numbered = pieces._replace(ids=list(range(len(pieces.ids))))
    kept = np.zeros(len(pieces.ids), bool)
    kept[cut_long_words(numbered, room).ids] = True
    return kept


def _joined(size: int, classes: int, places: np.ndarray, found: Sequence[tuple[Any, np.ndarray]]) -> np.ndarray:
    """The probabilities of `size` pieces from those of their windows; pieces that were cut have those of the last."""
    joined = np.zeros((len(places), classes), np.float32)
    for window, probabilities in found:
        part = slice(window.start, window.stop)
        joined[part][window.own] = probabilities[1 : 1 + window.stop - window.start][window.own]
    if len(places) == size:
        return joined
    return joined[np.searchsorted(places, np.arange(size), side="right") - 1]


def _entity(text: str, span: TaggedSpan) -> TaggedEntity:
    found: TaggedEntity = {
        "text": text[span.start : span.end], "label": span.label, "score": span.score, "start": span.start,
        "end": span.end,
    }  # fmt: skip
    if span.piece is not None:
        found |= {"token": span.piece.token, "index": span.piece.place}
    return found
