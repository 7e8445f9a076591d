"""Logits of a model that knows the answers, as the training rows name them."""

from collections.abc import Sequence

import numpy as np

from bertjax.config.data_schema import SpanQa
from bertjax.data import qa
from bertjax.data.questions import Example
from bertjax.data.tokenizers import Tokenizer
from bertjax.evaluation import answers


def oracle(
    examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa
) -> tuple[qa.Features, np.ndarray, np.ndarray]:
    """(features, start logits, end logits): high at the labels of the training rows, [CLS] in the other windows."""
    features = qa.evaluation_features(examples, tokenizer, span_qa)
    rows = qa.training_features(examples, tokenizer, span_qa)
    assert len(rows) == len(features)  # nothing was skipped
    start, end = np.zeros((2, *features.token_to_word.shape), np.float32)
    n = np.arange(len(rows))
    start[n, rows["start_positions"][:, 0]] = end[n, rows["end_positions"][:, 0]] = 10.0
    return features, start, end


def oracle_answers(examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa) -> dict[str, str]:
    """The texts by id that the labels of the training rows stand for."""
    return answers.predict_answers(examples, *oracle(examples, tokenizer, span_qa), max_answer_length=1000)[0]
