"""Errors kept while a classification is scored, for reports: texts, labels and predictions."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.evaluation.evaluators.heldout import NUM_SAMPLES
from bertjax.evaluation.metrics.multi_label import probabilities

MAX_CHARS = 1000  # of each text of a sample
Fields = Callable[[], Mapping[str, np.ndarray]]  # the rows of a batch, fetched only where one is kept


class LabelSamples:
    """The NUM_SAMPLES most certain errors (regression: largest errors) so far; equal ones in order of the data.

    threshold: of the probability of each label, where a text may have several; None: it has one.
    """

    def __init__(self, tokenizer: AnyTokenizer, names: Sequence[str] | None, threshold: float | None = None) -> None:
        self.tokenizer, self.names, self.threshold = tokenizer, names, threshold
        self._kept: list[tuple[float, int, dict[str, Any]]] = []  # a heap, the least certain first
        self._seen = 0

    def add(self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, fields: Fields) -> None:
        """logits [B, G, C], labels [B, G] or [B, G, C] and weights [B, G] of a batch; all processes call it alike."""
        scored = weights > 0
        if self.threshold is not None:
            chances = probabilities(logits)
            errors = np.abs(chances - labels).max(-1)
            wrong = scored & ((chances >= self.threshold) != (labels > 0)).any(-1)
        elif logits.shape[-1] == 1:
            errors = np.abs(logits[..., 0] - labels)
            wrong = scored & (errors > 0)
        else:
            errors = _softmax(logits).max(-1)
            wrong = scored & (logits.argmax(-1) != labels)
        wrong &= np.isfinite(errors)
        rows: Mapping[str, np.ndarray] | None = None
        for at in np.argwhere(wrong):
            row, group = (int(i) for i in at)
            key = (float(errors[row, group]), -(self._seen + row * weights.shape[1] + group))
            if len(self._kept) == NUM_SAMPLES and key <= self._kept[0][:2]:
                continue
            rows = fields() if rows is None else rows
            sample = self._sample(rows, row, group, logits[row, group], labels[row, group])
            push = heapq.heappushpop if len(self._kept) == NUM_SAMPLES else heapq.heappush
            push(self._kept, (*key, sample))
        self._seen += weights.size

    def samples(self) -> list[dict[str, Any]]:
        """[{"text", "text_b"?, "label", "predicted", "probability"? }...], the most certain error first."""
        return [sample for _, _, sample in sorted(self._kept, key=lambda one: one[:2], reverse=True)]

    def _sample(
        self, rows: Mapping[str, np.ndarray], row: int, group: int, logits: np.ndarray, label: Any
    ) -> dict[str, Any]:
        own = rows["segment_ids"][row] == group + 1
        ids, types = rows["input_ids"][row][own], rows["token_type_ids"][row][own]
        first, second = self.tokenizer.layout.split(ids.tolist(), types.tolist())
        texts = {"text": self._text(first)} | ({} if second is None else {"text_b": self._text(second)})
        if self.threshold is not None:
            sets = {"label": label > 0, "predicted": probabilities(logits) >= self.threshold}
            return texts | {key: self._names(np.flatnonzero(there)) for key, there in sets.items()}
        if len(logits) == 1:
            return texts | {"label": round(float(label), 4), "predicted": round(float(logits[0]), 4)}
        best = int(logits.argmax())
        shown = {"label": label_name(self.names, int(label)), "predicted": label_name(self.names, best)}
        return texts | shown | {"probability": round(float(_softmax(logits)[best]), 4)}

    def _names(self, numbers: np.ndarray) -> str:
        return ", ".join(label_name(self.names, int(number)) for number in numbers) or "(none)"

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids)
        return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + " …"


def label_name(names: Sequence[str] | None, number: int) -> str:
    return names[number] if names and 0 <= number < len(names) else str(number)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def fetch_fields(replicate: Callable[[dict[str, jax.Array]], Any], batch: Mapping[str, jax.Array]) -> Fields:
    names = ("input_ids", "token_type_ids", "segment_ids")
    return lambda: jax.device_get(replicate({name: batch[name] for name in names}))
