"""Types of predictions: plain dictionaries, as `bertjax predict --json` prints them."""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np


class MaskCandidate(TypedDict):
    """A token for a [MASK]."""

    token: str  # as the tokenizer has it, with its mark of a word's start or inside
    probability: float  # of a softmax over the vocabulary
    text: str  # the text with this mask filled


class FilledText(TypedDict):
    """The candidates for each [MASK] of a text, in order of the masks, best first."""

    text: str
    masks: list[list[MaskCandidate]]


class AnswerSource(TypedDict):
    """Where in the documents an answer is: `text[start:end]` of the file is the answer."""

    file: str
    line: NotRequired[int]  # of the record, in .jsonl files; `start` and `end` are characters of its text
    start: int  # characters of the file as UTF-8, without translation of line ends
    end: int
    passage: str  # that was read
    passage_start: int
    bm25: float  # score of the passage


class AnswerCandidate(TypedDict):
    """A span of the context."""

    text: str
    probability: float  # of a softmax over all candidates, and "no answer" where the model can predict it
    source: NotRequired[AnswerSource]  # of answers from documents


class NoAnswer(TypedDict):
    """How likely it is that the context has no answer."""

    probability: float
    null_odds: float  # logit of "no answer" minus that of the best answer
    threshold: float  # of the null odds, above which no answer is given
    confidence: NotRequired[float]  # calibrated: that "no answer" is right


class Answer(TypedDict):
    """The answer to a question; None with a `reason` where none is given."""

    question: str
    answer: str | None
    probability: NotRequired[float]  # of the answer; missing where it is None
    confidence: NotRequired[float]  # calibrated: that the answer, or "no answer", is right; missing without calibration
    source: NotRequired[AnswerSource]  # of answers from documents
    reason: NotRequired[str]
    no_answer: NotRequired[NoAnswer]  # of models for unanswerable questions
    candidates: list[AnswerCandidate]  # best first


class LabelProbability(TypedDict):
    """A class. Its label is its name in the training data, or its number if the classes have no names."""

    label: str | int
    probability: float


class Classification(TypedDict):
    """The most likely label, and all labels (or the first `top_k`), best first. A regression has `value` instead.

    Where a text may have several labels, `predicted` lists those with the probability or more of the threshold, instead
    of `label` and `probability`.
    """

    text: str
    pair: NotRequired[str]
    label: NotRequired[str | int]
    probability: NotRequired[float]
    predicted: NotRequired[list[str | int]]
    labels: NotRequired[list[LabelProbability]]
    value: NotRequired[float]


class TaggedEntity(TypedDict):
    """An entity, or a piece with its label (aggregation `none`)."""

    text: str  # characters start..end of the text
    label: str  # of an entity without B- and I-
    score: float  # probability of the label; of an entity the mean over its words or pieces
    start: int
    end: int  # exclusive
    token: NotRequired[str]  # the piece, as the tokenizer has it; of the unknown token its characters
    index: NotRequired[int]  # of the piece; [CLS] is 0


class TaggedText(TypedDict):
    """The entities of a text, in order."""

    text: str
    entities: list[TaggedEntity]


class TaggedWords(TypedDict):
    """The labels of the words of a sentence, with their probabilities."""

    words: list[str]
    labels: list[str]
    scores: list[float]


@dataclass(frozen=True)
class HiddenStates:
    """The outputs of all layers for N texts, padded to the S tokens of the longest one; D is the hidden size."""

    layers: list[np.ndarray]  # float32 [N, S, D]: the embeddings, then each layer; the last one is the encoder's output
    attention_mask: np.ndarray  # int32 [N, S]: 1 for tokens, 0 for padding
    input_ids: np.ndarray  # int32 [N, S]
    tokens: list[list[str]]  # of each text, special tokens included, without padding
