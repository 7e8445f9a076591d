"""Score given tokens at masks: their rank and probability, and pseudo-log-likelihoods of texts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.data.tokenizers.load import AnyTokenizer, Tokenizer
from bertjax.evaluation.inference.length_batches import LengthBatches
from bertjax.evaluation.inference.token_rows import TokenRow, frame, num_special
from bertjax.evaluation.predictors.base import Predictor
from bertjax.evaluation.predictors.masks import MASK, encode_with_masks, require_mask_token, to_tokenizer_mask
from bertjax.models import families

CHUNK_ROWS = 8192  # rows of a pseudo-log-likelihood in memory at once


@dataclass(frozen=True)
class MaskedRow:
    """A framed text with masks: `masks` are their positions in `ids`, `gold` the ids of the tokens they replace."""

    ids: Sequence[int]
    masks: Sequence[int]
    gold: Sequence[int]


@dataclass(frozen=True)
class MaskScore:
    """The gold token of one mask: its rank from 1 in the vocabulary, and the natural log of its probability.

    `top`: the most likely tokens and their probabilities, best first. Equal tokens are in the order of their ids.
    """

    rank: int
    log_probability: float
    top: list[tuple[str, float]]


class MaskScorer(Predictor):
    """Scores tokens at masks with the MLM head; probabilities are a softmax over the vocabulary in float32."""

    head = "mlm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_mask_token(self.tokenizer)
        self._model = self.restored.program.model
        self._inputs = families.record_of(self._model).encoder_inputs(self._model)
        self._gold_batches: dict[int, LengthBatches] = {}  # by top_k
        self._token_batches = self.length_batches(_one_token(self._inputs, cast(int, self.tokenizer.mask_id)))

    def room(self) -> int | None:
        """The most tokens of a text without the special ones; None for a model without a limit."""
        longest = self._model.max_length
        return None if longest is None else longest - num_special(self.tokenizer)

    def score(self, rows: Sequence[MaskedRow], top_k: int) -> list[list[MaskScore]]:
        """The gold token of each mask of each row; all masks of a row are hidden at once."""
        top_k = min(top_k, self.tokenizer.vocab_size)
        if top_k not in self._gold_batches:
            forward = _gold_tokens(self._inputs, self.tokenizer.vocab_size, top_k)
            self._gold_batches[top_k] = self.length_batches(forward)
        given = [TokenRow(row.ids, extra={"masks": row.masks, "gold": row.gold}) for row in rows]
        found = self._gold_batches[top_k](self.params, given)
        return [
            [self._mask_score(out, number) for number in range(len(row.masks))]
            for row, out in zip(rows, found, strict=True)
        ]

    def _mask_score(self, out: Any, number: int) -> MaskScore:
        log_probability, rank, probabilities, tokens = (values[number] for values in out)
        top = [
            (self.tokenizer.pieces[token], probability)
            for token, probability in zip(tokens.tolist(), probabilities.tolist(), strict=True)
        ]
        return MaskScore(int(rank), float(log_probability), top)

    def pseudo_log_likelihoods(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """The sum over the tokens of each text of ln p(token | the other tokens), each masked in turn.

        `texts`: ids without special tokens, which are added and never masked. Salazar et al. 2020 (arXiv 1910.14659),
        equation 1.
        """
        score = lambda rows: self._token_batches(self.params, rows)  # noqa: E731
        return sum_over_tokens(self.tokenizer, texts, score)


def sum_over_tokens(
    tokenizer: AnyTokenizer, texts: Sequence[Sequence[int]], score: Callable[[Sequence[TokenRow]], Sequence[Any]]
) -> list[float]:
    """Sums over the tokens of each text of what `score` gives for a row in which one token is to be hidden.

    `texts`: ids without special tokens. A row has the framed text, and as `masks` and `gold` the place of the token and
    its id.
    """
    found = [0.0] * len(texts)
    before = _tokens_in_front(tokenizer)
    for chunk in _chunks(texts):
        rows, owners = [], []
        for index in chunk:
            ids = frame(tokenizer, texts[index])
            for place, token in enumerate(texts[index], before):
                rows.append(TokenRow(ids, extra={"masks": [place], "gold": [token]}))
                owners.append(index)
        sums: dict[int, list[float]] = {index: [] for index in chunk}
        for index, value in zip(owners, score(rows), strict=True):
            sums[index].append(float(value))
        found = [math.fsum(sums[i]) if i in sums else value for i, value in enumerate(found)]
    return found


def _tokens_in_front(tokenizer: AnyTokenizer) -> int:
    """The number of special tokens in front of a text."""
    marker = tokenizer.vocab_size  # no id of a piece
    return frame(tokenizer, [marker]).index(marker)


def _chunks(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of the texts, shortest first, in groups of about CHUNK_ROWS tokens, so that a group has few widths."""
    group: list[int] = []
    tokens = 0
    for index in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if group and tokens + len(texts[index]) > CHUNK_ROWS:
            yield group
            group, tokens = [], 0
        group.append(index)
        tokens += len(texts[index])
    if group:
        yield group


Forward = Callable[[Any, Mapping[str, jax.Array]], Any]


def _gold_tokens(inputs: Sequence[str], size: int, top_k: int) -> Forward:
    """(model, batch) -> log-probabilities and ranks of the gold tokens [B, N], probabilities and ids [B, N, top_k]."""

    def forward(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        logits = model.mlm_logits(model.encode(*(batch[name] for name in inputs)), batch["masks"])
        scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)[..., :size]
        gold = batch["gold"][..., None]
        own = jnp.take_along_axis(scores, gold, axis=-1)
        ahead = (scores > own) | ((scores == own) & (jnp.arange(size) < gold))
        best, tokens = jax.lax.top_k(scores, top_k)
        return own[..., 0], 1 + ahead.sum(-1), jnp.exp(best), tokens

    return forward


def _one_token(inputs: Sequence[str], mask_id: int) -> Forward:
    """(model, batch) -> float32 [B]: log-probability of the token `gold` at the place `masks`, which is hidden here."""

    def forward(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        ids = batch["input_ids"]
        hidden = jnp.where(jnp.arange(ids.shape[1]) == batch["masks"], mask_id, ids)
        seen = dict(batch, input_ids=hidden)
        logits = model.mlm_logits(model.encode(*(seen[name] for name in inputs)), batch["masks"])
        scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.take_along_axis(scores, batch["gold"][..., None], axis=-1)[:, 0, 0]

    return forward


def mask_rows(
    tokenizer: Tokenizer, items: Sequence[tuple[str, Sequence[str]]], room: int | None
) -> list[MaskedRow | str]:
    """Rows of texts with [MASK]s and the answer to each; instead of a row, the reason why there is none.

    An answer has to be one piece: in the text with its answers filled in, one piece covers it and nothing else.
    """
    filled = [_fill(text, answers) for text, answers in items]
    encoded = tokenizer.encode_batch_offsets([text for text, _ in filled])
    marked = encode_with_masks(tokenizer, [to_tokenizer_mask(tokenizer, text) for text, _ in items])
    rows: list[MaskedRow | str] = []
    for (text, spans), pieces, row in zip(filled, encoded, marked, strict=True):
        places = np.flatnonzero(np.asarray(row) == tokenizer.mask_id).tolist()
        gold = [find_piece(tokenizer, text, pieces, span) for span in spans]
        if any(piece is None for piece in gold) or len(places) != len(spans):
            rows.append("not one piece")
        elif room is not None and len(row) > room + num_special(tokenizer):
            rows.append("too long")
        else:
            rows.append(MaskedRow(row, places, [cast(int, piece) for piece in gold]))
    return rows


def _fill(text: str, answers: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text with its answers, and where they are in it."""
    first, *others = text.split(MASK)
    filled, spans = first, []
    for answer, part in zip(answers, others, strict=True):
        spans.append((len(filled), len(filled) + len(answer)))
        filled += answer + part
    return filled, spans


def find_piece(
    tokenizer: Tokenizer, text: str, encoded: tuple[Sequence[int], Sequence[tuple[int, int]]], span: tuple[int, int]
) -> int | None:
    """The id of the piece that covers these characters of a text and, but for white space, nothing else; else None.

    `encoded`: the ids and offsets of the text, as `encode_batch_offsets` gives them.
    """
    start, stop = span
    inside = [(i, a, b) for i, (a, b) in zip(*encoded, strict=True) if a < stop and b > start]
    if len(inside) != 1 or inside[0][0] == tokenizer.unk_id:
        return None
    piece, a, b = inside[0]
    return piece if text[a:b].strip() == text[start:stop].strip() else None
