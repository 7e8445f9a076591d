"""The averages of GLUE and SuperGLUE as the T5 paper reports them (arXiv 1910.10683 section 2.3 and appendix E)."""

from collections.abc import Iterable, Mapping
from typing import Any

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
