"""Vectors of texts: one for each text (embeddings), the outputs of all layers for each token (hidden states), and the
attention between tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config.schema.training import SentenceEmbeddingObjective
from bertjax.errors import UserError
from bertjax.evaluation.inference.generate import MAX_INPUT_TOKENS
from bertjax.evaluation.inference.length_batches import LengthBatches
from bertjax.evaluation.inference.token_rows import TokenRow, check_texts, frame, num_special
from bertjax.evaluation.predictors.base import Predictor, check_count
from bertjax.evaluation.predictors.results import HiddenStates
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.models import families
from bertjax.models.pooling import POOLINGS, Pooling, pool


class Defaults(NamedTuple):
    """Options of `Embedder` that are not given: those of the training, or of a sentence-transformers folder."""

    pooling: Pooling = "mean"
    normalize: bool = True
    max_tokens: int | None = None  # None: as many as the model reads


def defaults_of(restored: RestoredCheckpoint) -> Defaults:
    """Those of the stage if it trained sentence embeddings, else the mean, of length 1."""
    stage = restored.ctx.config.stages[restored.stage]
    if not isinstance(objective := stage.objective, SentenceEmbeddingObjective):
        return Defaults()
    tasks = restored.ctx.config.stage_tasks(stage).values()
    return Defaults(objective.pooling, objective.normalize, max(task.preprocess.sequence_length for task in tasks))


class TextEncoder(Predictor):
    """Reads texts with the encoder: [CLS] text [SEP] for BERT, text </s> for T5."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = self.restored.program.model
        self._inputs = families.record_of(model).encoder_inputs(model)
        if not self._inputs:
            raise UserError(f"{self.restored.where}: a model without an encoder gives no vectors; name a BERT or a T5")

    def encode(self, texts: Sequence[str], max_tokens: int | None, why: str = "max_tokens") -> list[TokenRow]:
        """Rows of at most `max_tokens` tokens with the special ones (default: as many as the model reads)."""
        longest = self.restored.program.model.max_length
        limit, why = (longest, "the most that the model reads") if max_tokens is None else (max_tokens, why)
        if limit is not None and longest is not None and limit > longest:
            raise UserError(f"max_tokens: must be at most {longest}, the positions of the model (got {limit})")
        special = num_special(self.tokenizer)
        if limit is not None and limit <= special:
            raise UserError(f"max_tokens: must be above {special}, the number of special tokens (got {limit})")
        ids = self.tokenizer.encode_batch(check_texts("texts", texts))
        for number, row in enumerate(ids):
            if limit is None and len(row) >= MAX_INPUT_TOKENS:
                size = f"has {len(row):,} tokens, and attention memory grows with their square"
                raise UserError(f"item {number} of the texts: {size}; above {MAX_INPUT_TOKENS:,} set max_tokens")
        room = None if limit is None else limit - special
        self.count_tokens(ids, room, why)
        return [TokenRow(frame(self.tokenizer, row[:room])) for row in ids]


class Embedder(TextEncoder):
    """One vector for each text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forwards: dict[tuple[Pooling, bool], LengthBatches] = {}
        self.defaults = defaults_of(self.restored)

    def __call__(
        self,
        texts: Sequence[str],
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        max_tokens: int | None = None,
    ) -> np.ndarray:
        """N texts -> float32 [N, D].

        pooling: `mean` of the last layer over the tokens of the text, the special ones included (as
        sentence-transformers); `cls`: the first token. normalize: to length 1. max_tokens: longer texts are cut there.
        Options that are not given: see `defaults_of`.
        """
        pooling = self.defaults.pooling if pooling is None else pooling
        normalize = self.defaults.normalize if normalize is None else normalize
        if pooling not in POOLINGS:
            raise UserError(f"pooling: must be one of {', '.join(POOLINGS)} (got {pooling!r})")
        if pooling == "cls" and not hasattr(self.tokenizer, "cls_id"):
            raise UserError("pooling: this model reads no [CLS]; use mean")
        if max_tokens is None:
            rows = self.encode(texts, self.defaults.max_tokens, "the length that the model was trained with")
        else:
            rows = self.encode(texts, check_count("max_tokens", max_tokens))
        forward = self._forward(pooling, bool(normalize))
        if not rows:  # the width of a vector is not that of a parameter in all families
            return np.stack(forward(self.params, [TokenRow(frame(self.tokenizer, []))]))[:0]
        return np.stack(forward(self.params, rows))

    def _forward(self, pooling: Pooling, normalize: bool) -> LengthBatches:
        if (pooling, normalize) not in self._forwards:
            self._forwards[pooling, normalize] = self.length_batches(_pooled(self._inputs, pooling, normalize))
        return self._forwards[pooling, normalize]


def _pooled(
    inputs: Sequence[str], pooling: Pooling, normalize: bool
) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
    def forward(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        hidden = model.encode(*(batch[name] for name in inputs))
        return pool(hidden, batch["segment_ids"], pooling, normalize)

    return forward


class LayerReader(TextEncoder):
    """The outputs of all layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inputs = self._inputs

        def forward(model: Any, batch: Mapping[str, jax.Array]) -> list[jax.Array]:
            return [x.astype(jnp.float32) for x in model.hidden_states(*(batch[name] for name in inputs))]

        self._batches = self.length_batches(forward)

    def __call__(self, texts: Sequence[str], max_tokens: int | None = None) -> HiddenStates:
        """The embeddings and the output of each layer for N texts, padded to the longest one with zeros."""
        rows = self.encode(texts, None if max_tokens is None else check_count("max_tokens", max_tokens))
        found = self._batches(self.params, rows)
        longest = max(map(len, rows), default=0)
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int32)
        mask = mask.reshape(len(rows), longest)
        ids = np.full((len(rows), longest), self.tokenizer.pad_id, np.int32)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = row.input_ids
        layers = []
        for number in range(len(found[0]) if found else 0):
            layer = np.zeros((len(rows), longest, found[0][number].shape[-1]), np.float32)
            for out, states, row in zip(layer, found, rows, strict=True):
                out[: len(row)] = states[number][: len(row)]
            layers.append(layer)
        tokens = [[self.tokenizer.pieces[i] for i in row.input_ids] for row in rows]
        return HiddenStates(layers, mask, ids, tokens)


class AttentionReader(TextEncoder):
    """The attention of every layer and head. Raises UserError for an encoder without attention."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inputs = self._inputs
        if not has_attention(self.restored):
            raise UserError(f"{self.restored.where}: the attention of this family is not read; name BERT, GPT or T5")

        def forward(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            maps = model.attention_probabilities(*(batch[name] for name in inputs))
            return jnp.stack(maps, axis=1)  # [B, L, H, S, S]

        self._batches = self.length_batches(forward)

    def __call__(self, texts: Sequence[str], max_tokens: int | None = None) -> list[tuple[list[str], np.ndarray]]:
        """N texts -> (tokens, float32 [L, H, S, S]) of each: row q of a map says how much token q reads of each."""
        rows = self.encode(texts, max_tokens)
        found = self._batches(self.params, rows)
        return [
            ([self.tokenizer.pieces[i] for i in row.input_ids], maps[:, :, : len(row), : len(row)])
            for row, maps in zip(rows, found, strict=True)
        ]


def has_attention(restored: RestoredCheckpoint) -> bool:
    """Whether the model has an encoder whose attention can be read."""
    model = restored.program.model
    module = restored.program.build_model(restored.params)
    return bool(families.record_of(model).encoder_inputs(model)) and hasattr(module, "attention_probabilities")
