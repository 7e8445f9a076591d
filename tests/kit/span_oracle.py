"""Logits of a model that knows the answers, as the training rows name them."""

from collections.abc import Sequence

import numpy as np

from bertjax.config.schema.data import SpanQa
from bertjax.data.preprocess.span_qa import Features, evaluation_features, training_features
from bertjax.data.sources.squad import Example
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.evaluation.inference import span_decoding


def oracle(
    examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa
) -> tuple[Features, np.ndarray, np.ndarray]:
    """(features, start logits, end logits): high at the labels of the training rows, [CLS] in the other windows."""
    features = evaluation_features(examples, tokenizer, span_qa)
    rows = training_features(examples, tokenizer, span_qa)
    assert len(rows) == len(features)  # nothing was skipped
    start, end = np.zeros((2, *features.token_to_word.shape), np.float32)
    n = np.arange(len(rows))
    start[n, rows["start_positions"][:, 0]] = end[n, rows["end_positions"][:, 0]] = 10.0
    return features, start, end


def oracle_answers(examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa) -> dict[str, str]:
    """The texts by id that the labels of the training rows stand for."""
    return span_decoding.predict_answers(examples, *oracle(examples, tokenizer, span_qa), max_answer_length=1000)[0]
