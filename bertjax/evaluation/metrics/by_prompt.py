"""The metrics of each prompt, and their scores of predictions."""

import importlib.util
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from bertjax.config.schema.custom import METRICS as METRICS_OF_PLUGINS
from bertjax.config.schema.data import TextToText
from bertjax.data.preprocess.prompts.t5_prompts import GLUE_TASKS as CLASSES
from bertjax.data.preprocess.prompts.t5_prompts import UNKNOWN_TARGET, TextExample
from bertjax.data.sources.squad import Example
from bertjax.errors import UserError
from bertjax.evaluation.metrics import text as metrics
from bertjax.evaluation.metrics.custom import custom_scores
from bertjax.evaluation.metrics.squad import V1_SCORES, V2_SCORES
from bertjax.evaluation.metrics.squad import score as score_squad
from bertjax.evaluation.metrics.text import Scores

# As in GLUE_METRICS and SUPERGLUE_METRICS of t5/data/glue_utils.py and the tasks of t5/data/tasks.py. The diagnostic
# sets have no labels, so only predictions; `metrics` in the configuration overrides this.
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
    "accuracy": metrics.accuracy, "f1": metrics.f1, "mean_3class_f1": metrics.mean_3class_f1,
    "matthews": metrics.matthews,
}  # fmt: skip
_NUMBER_METRICS = {"pearson": metrics.pearson, "spearman": metrics.spearman}
_TEXT_METRICS = {"exact_match": metrics.exact_match, "bleu": metrics.bleu, "rouge": metrics.rouge}
_PACKAGES = {"bleu": ("sacrebleu", "sacrebleu"), "rouge": ("rouge_score", "rouge-score")}
_NUM_CLASSES = {"f1": 2, "mean_3class_f1": 3}


def metrics_for(options: TextToText, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The configured metrics, else those of the prompt; custom templates have `exact_match`."""
    if wanted is not None:
        return tuple(wanted)
    return METRICS.get(options.prompt or "", ("exact_match",))


def check_metrics(names: Sequence[str], labels: Sequence[str] | None, examples: Sequence[TextExample]) -> None:
    """Raises UserError when the examples lack what a metric needs, or a package is missing."""
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
                raise UserError(
                    f"metric '{name}' needs the prompt of its data set, which provides the {what}; use that prompt"
                )


# metric -> the keys of its scores, where these are not its name
_KEYS = {
    "multirc": ("f1", "exact_match"), "record": ("record_em", "record_f1"), "wsc": ("accuracy",),
    "squad": ("squad_em", "squad_f1", *V1_SCORES, *V2_SCORES), "trivia_qa": ("trivia_qa_em", "trivia_qa_f1"),
    "rouge": ("rouge1", "rouge2", "rougeLsum"),
}  # fmt: skip


def score_names(names: Sequence[str]) -> set[str]:
    """The keys of `score` with these metrics."""
    return {"examples", *(key for name in names for key in _KEYS.get(name, (name,)))}


def has_answer(example: TextExample) -> bool:
    """Whether the reference is known; test sets hide it. No answer (SQuAD 2.0) is a reference too."""
    return example.extra.get("label", 0) != -1 and (bool(example.references) or example.targets != UNKNOWN_TARGET)


def score(
    names: Sequence[str], examples: Sequence[TextExample], predictions: Sequence[str],
    labels: Sequence[str] | None = None,
) -> Scores:  # fmt: skip
    """Scores of predictions [N] on examples [N] in percent, and `examples`, the number without a hidden label.

    EM and F1 of answers are `squad_em`, `trivia_qa_em` and so on, for SQuAD with t5's padded references; its keys
    `exact`, `f1` and `total` are those of the official script on the original references.
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
    if name in METRICS_OF_PLUGINS:
        return custom_scores(name, [list(texts) for texts in references], predictions)
    if name in _CLASS_METRICS and labels is not None:
        return _CLASS_METRICS[name](metrics.class_ids(targets, labels), metrics.class_ids(predictions, labels))
    if name == "accuracy":  # of free text
        return metrics.accuracy(targets, predictions)
    if name in _NUMBER_METRICS:
        return _NUMBER_METRICS[name](metrics.parse_numbers(targets), metrics.parse_numbers(predictions))
    if name in _TEXT_METRICS:
        return _TEXT_METRICS[name]([texts or ("",) for texts in references], predictions)
    if name == "wsc":
        return metrics.wsc([example.extra["label"] for example in examples], targets, predictions)
    if name == "multirc":
        classes = CLASSES["super_glue_multirc"][2]
        ids = (metrics.class_ids(targets, classes), metrics.class_ids(predictions, classes))
        return metrics.multirc(*ids, [_hashable(example.extra["group"]) for example in examples])
    if name == "record":
        return metrics.record(references, predictions, [_hashable(example.extra["group"]) for example in examples])
    found = (metrics.trivia_qa if name == "trivia_qa" else metrics.squad)(references, predictions)
    own = {f"{name}_{key}": value for key, value in found.items()}
    return own | (official_squad_scores(examples, predictions) if name == "squad" else {})


def official_squad_scores(examples: Sequence[TextExample], predictions: Sequence[str]) -> Scores:
    """Scores of the official SQuAD script on the original answers."""
    gold = [
        Example(str(n), "", "", [(text, 0) for text in example.extra.get("answers", example.references)])
        for n, example in enumerate(examples)
    ]
    return score_squad(gold, {str(n): text for n, text in enumerate(predictions)})


def _hashable(group: Any) -> Hashable:
    return tuple(group) if isinstance(group, list) else group
