"""The averages of GLUE and SuperGLUE as the T5 paper (arXiv 1910.10683), the BERT paper and GLUE itself report them."""

from collections.abc import Iterable, Mapping
from typing import Any

# ---- the T5 paper's (section 2.3 and appendix E) ---------------------------------------------------------------------

# task -> the scores that count. Without WNLI and the diagnostic sets, as in the paper.
GLUE: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",), "sst2": ("accuracy",), "mrpc": ("f1", "accuracy"), "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"), "mnli": ("accuracy",), "qnli": ("accuracy",), "rte": ("accuracy",),
}  # fmt: skip
SUPER_GLUE: dict[str, tuple[str, ...]] = {
    "boolq": ("accuracy",), "cb": ("mean_3class_f1", "accuracy"), "copa": ("accuracy",),
    "multirc": ("f1", "exact_match"), "record": ("em", "f1"), "rte": ("accuracy",), "wic": ("accuracy",),
    "wsc": ("accuracy",),
}  # fmt: skip
SUITES = {"glue": GLUE, "super_glue": SUPER_GLUE}


def suite_average(suite: str, scores: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """(task, scores) pairs -> {average, tasks}: the mean within each task, then over the tasks.

    MNLI may be `mnli`, or `mnli_matched` and `mnli_mismatched`, which count as one task. Tasks outside the suite, or
    without a score that counts, are skipped; {} if none is left.
    """
    counted, means = SUITES[suite], dict[str, list[float]]()
    for name, found in scores:
        task = "mnli" if name in ("mnli_matched", "mnli_mismatched") else name
        keys = counted.get(task, ())
        if keys and all(key in found for key in keys):
            means.setdefault(task, []).append(sum(found[key] for key in keys) / len(keys))
    if not means:
        return {}
    return {"average": sum(sum(one) / len(one) for one in means.values()) / len(means), "tasks": len(means)}


def suite_task(prompt: str | None) -> tuple[str, str] | None:
    """(suite, task) of a prompt: super_glue_cb -> ("super_glue", "cb"); None if it is in no average."""
    for suite, tasks in SUITES.items():
        task = (prompt or "").removeprefix(f"{suite}_")
        if prompt == f"{suite}_{task}" and task in tasks:
            return suite, task
    return None


# ---- the averages of GLUE's leaderboard and of the BERT paper -------------------------------------------------------

# task -> {metric: evaluation/score of its development set}; arXiv 1804.07461, table 1. The first metric of a task is
# the one that the BERT paper reports (MNLI: both).
DEV_METRICS: dict[str, dict[str, str]] = {
    "cola": {"matthews": "dev/matthews"},
    "sst2": {"accuracy": "dev/accuracy"},
    "mrpc": {"f1": "dev/f1", "accuracy": "dev/accuracy"},
    "stsb": {"spearman": "dev/spearman", "pearson": "dev/pearson"},
    "qqp": {"f1": "dev/f1", "accuracy": "dev/accuracy"},
    "mnli": {"accuracy_matched": "matched/accuracy", "accuracy_mismatched": "mismatched/accuracy"},
    "qnli": {"accuracy": "dev/accuracy"},
    "rte": {"accuracy": "dev/accuracy"},
    "wnli": {"accuracy": "dev/accuracy"},
}  # fmt: skip
TITLES = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI",
    "rte": "RTE", "wnli": "WNLI",
}  # fmt: skip
# The columns of table 1 of the BERT paper (arXiv 1810.04805): "F1 scores are reported for QQP and MRPC, Spearman
# correlations for STS-B, and accuracy scores for the other tasks" (CoLA: Matthews correlation); without WNLI. MNLI has
# two columns, and both count.
BERT_PAPER = tuple(
    (task, metric)
    for task, metrics in DEV_METRICS.items()
    for metric in (metrics if task == "mnli" else [next(iter(metrics))])
    if task != "wnli"
)


def bert_paper_average(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """{task: {metric: score}} -> {average, of, missing}: the mean over the columns of the BERT paper's table 1.

    Columns without a score are left out, and their tasks listed as `missing`; `average` is None without any.
    """
    found = [scores[task][metric] for task, metric in BERT_PAPER if metric in scores.get(task, {})]
    missing = list(dict.fromkeys(task for task, metric in BERT_PAPER if metric not in scores.get(task, {})))
    return {"average": sum(found) / len(found) if found else None, "of": len(found), "missing": missing}


def leaderboard_average(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """{task: {metric: score}} -> {average, of, missing}: the macro-average of gluebenchmark.com over the nine tasks.

    A task with two metrics counts with their mean (arXiv 1804.07461), MNLI with that of m and mm. Tasks that lack one
    are left out and listed as `missing`.
    """
    complete = {task: metrics for task, metrics in DEV_METRICS.items() if metrics.keys() <= scores.get(task, {}).keys()}
    means = [sum(scores[task][name] for name in metrics) / len(metrics) for task, metrics in complete.items()]
    missing = [task for task in DEV_METRICS if task not in complete]
    return {"average": sum(means) / len(means) if means else None, "of": len(means), "missing": missing}
