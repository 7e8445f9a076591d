"""Classify texts, or predict a number for them (regression)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.config.schema.data import Classify
from bertjax.config.schema.evaluation import ClassificationEvaluation
from bertjax.data.preprocess.classify import truncate_pair
from bertjax.errors import UserError
from bertjax.evaluation.inference.token_rows import TokenRow, check_texts
from bertjax.evaluation.predictors.base import Predictor, check_count, check_number
from bertjax.evaluation.predictors.results import Classification
from bertjax.models import families


def stage_options(restored: Any) -> Classify | None:
    """The `classify` section of the stage's training data; None for other data, and for a model that was imported."""
    if restored.hugging_face is not None:
        return None
    config = restored.ctx.config
    tasks = config.stage_tasks(config.stages[restored.stage]).values()
    return next((task.preprocess for task in tasks if isinstance(task.preprocess, Classify)), None)


def _evaluation_threshold(restored: Any) -> float:
    """The threshold of the stage's evaluation of labels; 0.5 without one."""
    evaluations = restored.ctx.config.stages[restored.stage].evaluate
    return next((one.threshold for one in evaluations if isinstance(one, ClassificationEvaluation)), 0.5)


class Classifier(Predictor):
    """Labels of texts, or of pairs of texts, as the classes are named in the training data."""

    head = "classifier"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        program, options = self.restored.program, stage_options(self.restored)
        names = families.record_of(program.model).encoder_inputs(program.model)
        self.is_regression, self.multi_label = program.num_classes == 1, program.is_multi_label
        self.threshold = _evaluation_threshold(self.restored)
        self.labels: list[str | int] = list(self.restored.labels or range(program.num_classes))
        self._pair = (options.text_a, options.text_b) if options is not None and options.text_b is not None else None
        self._length, self._why = program.model.max_length, "the most that the model reads"
        if options is not None:
            self._length, self._why = options.sequence_length, "as in training"

        def forward(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            hidden = model.encode(*(batch[name] for name in names))
            logits = model.class_logits(hidden, jnp.zeros((len(hidden), 1), jnp.int32))[:, 0].astype(jnp.float32)
            if program.is_multi_label:
                return jax.nn.sigmoid(logits)
            return logits if program.num_classes == 1 else jax.nn.softmax(logits, axis=-1)

        self._batches = self.length_batches(forward)

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, top_k: int | None = None,
        threshold: float | None = None,
    ) -> list[Classification]:  # fmt: skip
        """The label of each text, or of each text with the one of `pairs` beside it.

        Where a text may have several labels, those with a probability of `threshold` or more are predicted (default:
        that of the stage's evaluation, 0.5 without one).

        Texts are cut to the `sequence_length` of the stage's data, a pair from the end of its longer text, as in
        training. UserError for what is not a text, another number of `pairs` than of texts, or missing pairs.
        """
        given, seconds = check_texts("texts", texts), None if pairs is None else check_texts("pairs", pairs)
        if seconds is not None and len(seconds) != len(given):
            raise UserError(f"pairs: there are {len(seconds)} for {len(given)} texts; give one for each")
        if self._pair is not None and seconds is None:
            raise UserError(f"pairs: the model labels pairs of texts ('{self._pair[0]}', '{self._pair[1]}'); give both")
        kept = len(self.labels) if top_k is None else check_count("top_k", top_k)
        at = self._threshold(threshold)
        found = self._batches(self.params, self._rows(given, seconds))
        results: list[Classification] = []
        for number, (text, values) in enumerate(zip(given, found, strict=True)):
            head: Classification = {"text": text} if seconds is None else {"text": text, "pair": seconds[number]}
            results.append(self._result(head, values.tolist(), kept, at))
        return results

    def _threshold(self, given: float | None) -> float:
        if given is None:
            return self.threshold
        if not self.multi_label:
            raise UserError("threshold: the model gives each text one label or number; leave it out")
        if (value := check_number("threshold", given)) is None or not 0 <= value <= 1:
            raise UserError(f"threshold: must be a probability from 0 to 1 (got {given!r})")
        return value

    def _result(self, head: Classification, values: list[float], kept: int, threshold: float) -> Classification:
        if self.is_regression:
            return {**head, "value": values[0]}
        order = sorted(range(len(values)), key=lambda i: -values[i])
        if self.multi_label:
            return {
                **head, "predicted": [self.labels[i] for i in order if values[i] >= threshold],
                "labels": [{"label": self.labels[i], "probability": values[i]} for i in order[:kept]],
            }  # fmt: skip
        first = order[0]
        return {
            **head, "label": self.labels[first], "probability": values[first],
            "labels": [{"label": self.labels[i], "probability": values[i]} for i in order[:kept]],
        }  # fmt: skip

    def _rows(self, texts: list[str], pairs: list[str] | None) -> list[TokenRow]:
        layout = self.tokenizer.layout
        firsts = self.tokenizer.encode_batch(texts)
        seconds = [[]] * len(texts) if pairs is None else self.tokenizer.encode_batch(pairs)
        room = None if self._length is None else self._length - layout.num_special(pairs is not None)
        rows = []
        for a, b in zip(firsts, seconds, strict=True):
            a, b = (a, b) if room is None else truncate_pair(a, b, room)
            rows.append(TokenRow(*layout.row(a, None if pairs is None else b)))
        self.count_tokens([[*a, *b] for a, b in zip(firsts, seconds, strict=True)], room, self._why)
        return rows
