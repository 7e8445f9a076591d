"""Metrics of generated text as in t5/evaluation/metrics.py and postprocessors.py; all in percent.

Targets come first, as in the reference. Labels are compared as class ids; other texts are -1, which is wrong.
"""

import functools
import math
import re
import string
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from bertjax.errors import UserError
from bertjax.evaluation.metrics.labels import correlation, ranks
from bertjax.evaluation.metrics.squad import normalize, word_f1

Scores = dict[str, float]
Texts = Sequence[str]


def class_ids(texts: Texts, labels: Texts) -> np.ndarray:
    """The index of each text in the labels, else -1 (string_label_to_class_id) -> int64 [N]."""
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers.get(text, -1) for text in texts], np.int64)


def parse_numbers(texts: Texts) -> np.ndarray:
    """Each text as a number, -1 if it is not a finite number (string_to_float) -> float64 [N]."""
    return np.array([_number(text) for text in texts], np.float64)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def accuracy(targets: Sequence[Any] | np.ndarray, predictions: Sequence[Any] | np.ndarray) -> Scores:
    """Fraction of predictions [N] that equal their target [N]; class ids or texts."""
    return {"accuracy": _mean(bool(t == p) for t, p in zip(targets, predictions, strict=True))}


def exact_match(references: Sequence[Texts], predictions: Texts) -> Scores:
    """Fraction of predictions that equal one of their references (sequence_accuracy)."""
    return {"exact_match": _mean(p in r for r, p in zip(references, predictions, strict=True))}


def f1(targets: np.ndarray, predictions: np.ndarray) -> Scores:
    """F1 of class 1 of two; an unreadable prediction becomes the opposite of its target (f1_score_with_invalid)."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    predictions = np.where((predictions == 0) | (predictions == 1), predictions, 1 - targets)
    return {"f1": 100 * _class_f1(targets, predictions, 1)}


def mean_3class_f1(targets: np.ndarray, predictions: np.ndarray) -> Scores:
    """The unweighted mean of the F1 of classes 0, 1 and 2 (mean_multiclass_f1)."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    return {"mean_3class_f1": 100 * sum(_class_f1(targets, predictions, c) for c in range(3)) / 3}


def _class_f1(targets: np.ndarray, predictions: np.ndarray, number: int) -> float:
    real, said = targets == number, predictions == number
    total = int(real.sum() + said.sum())
    return 2 * int((real & said).sum()) / total if total else 0.0


def matthews(targets: np.ndarray, predictions: np.ndarray) -> Scores:
    """Matthews correlation of any number of classes, -1 included (sklearn's, as in t5); 0 if undefined."""
    classes = np.union1d(targets, predictions)
    real, said = (np.equal.outer(x, classes).astype(np.float64) for x in (targets, predictions))
    real, said = real - real.mean(0), said - said.mean(0)
    spread = math.sqrt((real * real).sum() * (said * said).sum())
    return {"matthews": 100 * float((real * said).sum()) / spread if spread else 0.0}


def pearson(targets: np.ndarray, predictions: np.ndarray) -> Scores:
    """Pearson correlation; 0 if undefined (nan in scipy, which t5 calls)."""
    return {"pearson": 100 * correlation(np.asarray(targets, np.float64), np.asarray(predictions, np.float64))}


def spearman(targets: np.ndarray, predictions: np.ndarray) -> Scores:
    """Spearman rank correlation; 0 if undefined."""
    return {"spearman": 100 * correlation(ranks(np.asarray(targets)), ranks(np.asarray(predictions)))}


_TRIVIA_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`_", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@functools.lru_cache(maxsize=1 << 16)
def normalize_trivia_qa(text: str) -> str:
    """Like SQuAD's `normalize`, but punctuation and ‘’´` become spaces (the official TriviaQA script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_TRIVIA_PUNCTUATION)).split())


def squad(references: Sequence[Texts], predictions: Texts) -> Scores:
    """EM and F1 after SQuAD's normalization, with the best reference -> {em, f1} (`squad`, qa_metrics).

    A question without references (SQuAD 2.0, not supported by the reference) is right if the prediction is empty.
    """
    return _answers(references, predictions, normalize)


def trivia_qa(references: Sequence[Texts], predictions: Texts) -> Scores:
    """The same with TriviaQA's normalization."""
    return _answers(references, predictions, normalize_trivia_qa)


def _answers(references: Sequence[Texts], predictions: Texts, normal: Callable[[str], str]) -> Scores:
    exact, shared = [], []
    for texts, prediction in zip(references, predictions, strict=True):
        said, golds = normal(prediction), [normal(text) for text in texts]
        exact.append(said in golds if golds else not said)
        shared.append(max((word_f1(gold, said) for gold in golds), default=float(not said)))
    return {"em": _mean(exact), "f1": _mean(shared)}


def multirc(targets: np.ndarray, predictions: np.ndarray, groups: Sequence[Hashable]) -> Scores:
    """F1 over all answers (multirc_f1_over_all_answers), and `exact_match`: the fraction of questions, `groups` [N],
    with all answers right (mean_group_metric(all_match))."""
    right: dict[Hashable, bool] = {}
    for target, prediction, group in zip(targets, predictions, groups, strict=True):
        right[group] = right.get(group, True) and bool(target == prediction)
    return f1(targets, predictions) | {"exact_match": _mean(right.values())}


def record(references: Sequence[Texts], predictions: Texts, groups: Sequence[Hashable]) -> Scores:
    """SQuAD's EM and F1 over the first example of each query (`groups` [N]): deduplicate_metric(squad)."""
    first: dict[Hashable, int] = {}
    for place, group in enumerate(groups):
        first.setdefault(group, place)
    return squad([references[i] for i in first.values()], [predictions[i] for i in first.values()])


_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose your".split()
)


def wsc_label(prediction: str, referent: str) -> int:
    """Whether a prediction names the referent: 1 or 0, -1 without a prediction (wsc_simple of postprocessors.py).

    The words of one, without determiners, must be among those of the other; "Bob" is not "Bob's hat".
    """
    said, named = _plain_words(prediction), _plain_words(referent)
    if not said:
        return -1
    if ("'" in said) != ("'" in named):
        return 0
    words, others = set(said.split(" ")), set(named.split(" "))
    return int(words <= others or others <= words)


def _plain_words(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)


def wsc(labels: Sequence[int], referents: Texts, predictions: Texts) -> Scores:
    """Accuracy of `wsc_label` against whether the proposed referent is the right one."""
    return accuracy(labels, [wsc_label(p, r) for p, r in zip(predictions, referents, strict=True)])


def bleu(references: Sequence[Texts], predictions: Texts) -> Scores:
    """Corpus BLEU by sacrebleu: exponential smoothing, the `intl` tokenizer, case kept. UserError without sacrebleu."""
    try:
        import sacrebleu
    except ModuleNotFoundError:
        raise UserError("the metric bleu needs sacrebleu: pip install 'bertjax[eval]'") from None
    most = max(map(len, references))
    streams: Any = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
    found = sacrebleu.corpus_bleu(
        list(predictions), streams, smooth_method="exp", lowercase=False, tokenize="intl", use_effective_order=False
    )
    return {"bleu": float(found.score)}


def rouge(references: Sequence[Texts], predictions: Texts) -> Scores:
    """ROUGE-1, -2 and -Lsum F-measures with the best reference, sentences cut at " . ", without stemming: plain means
    (rouge_mean) instead of t5's random bootstrap; UserError without rouge-score."""
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError:
        raise UserError("the metric rouge needs rouge-score: pip install 'bertjax[eval]'") from None
    keys = ["rouge1", "rouge2", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(keys)
    lines = lambda text: text.replace(" . ", " .\n")  # noqa: E731
    found = [
        scorer.score_multi([lines(text) for text in texts], lines(prediction))
        for texts, prediction in zip(references, predictions, strict=True)
    ]
    return {key: _mean(one[key].fmeasure for one in found) for key in keys}


def _mean(values: Any) -> float:
    """Mean in percent; 0 without values."""
    listed = list(values)
    return 100.0 * float(sum(listed)) / len(listed) if listed else 0.0
