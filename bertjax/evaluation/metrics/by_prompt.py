"""Which scores a prompt has, and from predictions on its examples to these scores."""

import importlib.util
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from bertjax.config.schema.data import TextToText
from bertjax.data.preprocess.prompts.t5_prompts import GLUE_TASKS as CLASSES
from bertjax.data.preprocess.prompts.t5_prompts import UNKNOWN_TARGET, TextExample
from bertjax.data.sources.squad import Example
from bertjax.errors import UserError
from bertjax.evaluation.metrics.squad import score as score_squad
from bertjax.evaluation.metrics.text import (
    Scores,
    accuracy,
    bleu,
    class_ids,
    exact_match,
    f1,
    matthews,
    mean_3class_f1,
    multirc,
    parse_numbers,
    pearson,
    record,
    rouge,
    spearman,
    squad,
    trivia_qa,
    wsc,
)

# As GLUE_METRICS and SUPERGLUE_METRICS of t5/data/glue_utils.py and the tasks of t5/data/tasks.py have them. The
# diagnostic sets come without labels, so they have predictions only; `metrics` in the configuration goes before this.
METRICS: dict[str, tuple[str, ...]] = {
    "glue_cola": ("matthews",), "glue_sst2": ("accuracy",), "glue_mrpc": ("f1", "accuracy"),
    "glue_qqp": ("f1", "accuracy"), "glue_stsb": ("pearson", "spearman"), "glue_mnli": ("accuracy",),
    "glue_qnli": ("accuracy",), "glue_rte": ("accuracy",), "glue_wnli": ("wsc",), "glue_ax": (),
    "super_glue_boolq": ("accuracy",), "super_glue_cb": ("mean_3class_f1", "accuracy"),
    "super_glue_copa": ("accuracy",), "super_glue_multirc": ("multirc",), "super_glue_record": ("record",),
    "super_glue_rte": ("accuracy",), "super_glue_wic": ("accuracy",), "super_glue_wsc": ("wsc",),
    "super_glue_axb": (), "super_glue_axg": (), "definite_pronoun_resolution": ("accuracy",), "squad": ("squad",),
    "squad_closed_book": ("squad",), "trivia_qa_closed_book": ("trivia_qa",), "translate": ("bleu",),
    "summarize": ("rouge",),
}  # fmt: skip
_CLASS_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Scores]] = {
    "accuracy": accuracy, "f1": f1, "mean_3class_f1": mean_3class_f1,
    "matthews": matthews,
}  # fmt: skip
_NUMBER_METRICS = {"pearson": pearson, "spearman": spearman}
_TEXT_METRICS = {"exact_match": exact_match, "bleu": bleu, "rouge": rouge}
_PACKAGES = {"bleu": ("sacrebleu", "sacrebleu"), "rouge": ("rouge_score", "rouge-score")}
_NUM_CLASSES = {"f1": 2, "mean_3class_f1": 3}


def metrics_for(options: TextToText, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The metrics wanted, else those of the prompt; own templates have `exact_match`."""
    if wanted is not None:
        return tuple(wanted)
    return METRICS.get(options.prompt or "", ("exact_match",))


def check_metrics(names: Sequence[str], labels: Sequence[str] | None, examples: Sequence[TextExample]) -> None:
    """Raises UserError where the examples lack what a metric compares with, or a package is missing, before the run."""
    for name in names:
        module, package = _PACKAGES.get(name, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise UserError(f"metric '{name}' needs {package}: pip install 'bertjax[eval]'")
        count = _NUM_CLASSES.get(name)
        if name in ("f1", "mean_3class_f1", "matthews") and labels is None:
            raise UserError(f"metric '{name}' needs the classes; give preprocess.labels: [name, name, ...]")
        if count is not None and labels is not None and len(labels) != count:
            raise UserError(f"metric '{name}' is for {count} classes, the task has {len(labels)}; choose another one")
        for what in {"multirc": ("group", "label"), "record": ("group",), "wsc": ("label",)}.get(name, ()):
            if any(what not in example.extra for example in examples):
                raise UserError(f"metric '{name}' needs the prompt of its data set, which says the {what}; use that")


def has_answer(example: TextExample) -> bool:
    """Whether there is something to compare with: test sets hide it. No answer at all (SQuAD 2.0) is an answer."""
    return example.extra.get("label", 0) != -1 and (bool(example.references) or example.targets != UNKNOWN_TARGET)


def score(
    names: Sequence[str], examples: Sequence[TextExample], predictions: Sequence[str],
    labels: Sequence[str] | None = None,
) -> Scores:  # fmt: skip
    """Scores of predictions [N] on examples [N] by the metrics named, in percent, and `examples`, how many counted.

    Examples whose label is hidden are left out. EM and F1 of answers are `squad_em` and `squad_f1`, `trivia_qa_em` and
    so on. Of SQuAD there are both scores: t5's, whose golds are padded like the prompt's text, and with the official
    keys (`exact`, `f1`, `total`) those of the official script on the golds as the data set spells them.
    """
    pairs = [(e, p) for e, p in zip(examples, predictions, strict=True) if has_answer(e)]
    scores: Scores = {}
    for name in names if pairs else ():
        scores |= _metric(name, [e for e, _ in pairs], [p for _, p in pairs], labels)
    return scores | {"examples": len(pairs)}


def _metric(
    name: str, examples: list[TextExample], predictions: list[str], labels: Sequence[str] | None
) -> Scores:  # fmt: skip
    references = [example.references for example in examples]
    targets = [example.targets for example in examples]
    if name in _CLASS_METRICS and labels is not None:
        return _CLASS_METRICS[name](class_ids(targets, labels), class_ids(predictions, labels))
    if name == "accuracy":  # of texts that are not from a list
        return accuracy(targets, predictions)
    if name in _NUMBER_METRICS:
        return _NUMBER_METRICS[name](parse_numbers(targets), parse_numbers(predictions))
    if name in _TEXT_METRICS:
        return _TEXT_METRICS[name]([texts or ("",) for texts in references], predictions)
    if name == "wsc":
        return wsc([example.extra["label"] for example in examples], targets, predictions)
    if name == "multirc":
        classes = CLASSES["super_glue_multirc"][2]
        ids = (class_ids(targets, classes), class_ids(predictions, classes))
        return multirc(*ids, [_hashable(example.extra["group"]) for example in examples])
    if name == "record":
        return record(references, predictions, [_hashable(example.extra["group"]) for example in examples])
    found = (trivia_qa if name == "trivia_qa" else squad)(references, predictions)
    own = {f"{name}_{key}": value for key, value in found.items()}
    return own | (official_squad_scores(examples, predictions) if name == "squad" else {})


def official_squad_scores(examples: Sequence[TextExample], predictions: Sequence[str]) -> Scores:
    """Scores with the keys of the official SQuAD script, on the answers as the data set spells them."""
    gold = [
        Example(str(n), "", "", [(text, 0) for text in example.extra.get("answers", example.references)])
        for n, example in enumerate(examples)
    ]
    return score_squad(gold, {str(n): text for n, text in enumerate(predictions)})


def _hashable(group: Any) -> Hashable:
    return tuple(group) if isinstance(group, list) else group
