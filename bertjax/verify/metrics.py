"""Scores of text-to-text tasks: what the tests of the reference expect of it."""

from importlib.util import find_spec

from bertjax.evaluation.metrics import glue_average, text
from bertjax.verify.runner import Comparisons, NotCompared

_SAME = "this is a string"
_NEEDS_EVAL = NotCompared("its package is missing; pip install 'bertjax[eval]'")


def labels() -> Comparisons:
    """metrics_test.py, postprocessors_test.py."""
    yield "accuracy", text.accuracy([0, 0, 2, 1], [0, 1, 2, 1])["accuracy"], 75.0
    yield "Matthews", text.matthews([0, 0, 2, 1], [0, 1, 2, 1])["matthews"], 70.0  # type: ignore[arg-type]
    yield "F1 with unreadable answers", text.f1([0, 1, 1, 0], [0, 1, 2, 2])["f1"], 50.0  # type: ignore[arg-type]
    found = text.mean_3class_f1([0, 1, 1, 2], [0, 0, 2, 2])  # type: ignore[arg-type]
    yield "mean F1 of three classes", found["mean_3class_f1"], 44.44444444444444
    yield "Pearson", text.pearson([0, 2], [0, 1])["pearson"], 100.0  # type: ignore[arg-type]
    yield "Spearman", text.spearman([0, 2, 1], [0, 1, 2])["spearman"], 50.0  # type: ignore[arg-type]
    yield "MultiRC F1", text.multirc([1, 1, 0], [1, 0, 1], "aab")["f1"], 50.0  # type: ignore[arg-type]
    found = text.multirc([0, 1, 0, 1], [0, 1, 0, 2], "aabb")  # type: ignore[arg-type]
    yield "MultiRC questions: all_match is 100 and 0, their mean", found["exact_match"], 50.0
    yield "names of classes", text.class_ids(["one", "two", "foo"], ["one", "two"]).tolist(), [0, 1, -1]
    yield "numbers", text.parse_numbers(["10", "10.", "asdf"]).tolist(), [10.0, 10.0, -1.0]
    for said, referent, expected in (
        ("potato", "turnip", 0), ("turnip", "turnip", 1), ("the cat", "cat", 1), ("Bob's hat", "Bob", 0),
        ("Bob's hat", "Bob's hat", 1), ("potato", "Potato", 1), ("a potato", "my potato", 1),
        ("fuzzy bunny", "fuzzy hungry bunny", 1), ("", "cat", -1), ("a this", "cat", -1),
    ):  # fmt: skip
        yield f"WSC: '{said}' for '{referent}'", text.wsc_label(said, referent), expected


def answers() -> Comparisons:
    """metrics_test.py, qa_utils_test.py."""
    right, wrong = {"em": 100.0, "f1": 100.0}, {"em": 0.0, "f1": 0.0}
    yield "same answer", text.squad([["", _SAME], [_SAME, _SAME]], [_SAME, _SAME]), right
    yield "no answer", text.squad([[_SAME, _SAME], [_SAME, _SAME]], ["", ""]), wrong
    golds = [["big moose", "hippo"], ["correct1"], ["correct2.1", "correct2.2"], ["a", "b"]]
    said = ["‘a big  Moose!‘", "wrong", "correct2.2", "c"]
    yield "four questions, SQuAD", text.squad(golds, said), {"em": 25.0, "f1": 35.0}
    yield "four questions, TriviaQA", text.trivia_qa(golds, said), {"em": 50.0, "f1": 50.0}
    yield "part of an answer", text.squad([["abc abd", "$$$$"]], ["abd"]), {"em": 0.0, "f1": 200 / 3}
    raw = "`Needs\tA_LOT of the 'normalization'.\"‘"
    yield "TriviaQA's normal form", text.normalize_trivia_qa(raw), "needs lot of normalization"
    yield "SQuAD's normal form", text.normalize(raw), "needs alot of normalization‘"
    twice = [["answer"], ["else"], ["answer"]]
    yield "ReCoRD counts a query once", text.record(twice, ["answer", "answer", "answer"], [1, 1, 2]), right


def generated_text() -> Comparisons:
    """metrics_test.py; what needs the extra `eval` is compared where it is installed."""
    same, empty = [[_SAME], [_SAME]], ["", ""]
    if not find_spec("sacrebleu"):
        yield "BLEU of three texts", _NEEDS_EVAL, None
    else:
        yield "same text, BLEU", text.bleu(same, [_SAME, _SAME])["bleu"], 100.0
        yield "no text, BLEU", text.bleu(same, empty)["bleu"], 0.0
        yield "one of two references", text.bleu([["", _SAME], [_SAME, ""]], [_SAME, _SAME])["bleu"], 100.0
    if not find_spec("rouge_score"):
        yield "ROUGE of two texts", _NEEDS_EVAL, None
    else:
        for said, expected in (([_SAME, _SAME], 100.0), (empty, 0.0)):
            found = text.rouge(same, said)
            yield f"ROUGE of '{said[0]}'", found, dict.fromkeys(("rouge1", "rouge2", "rougeLsum"), expected)


# arXiv 1910.10683 table 16 (appendix E), the row of the baseline model: scores by task, and the averages beside them
_GLUE = {
    "cola": {"matthews": 53.84}, "sst2": {"accuracy": 92.68}, "mrpc": {"f1": 92.07, "accuracy": 88.92},
    "stsb": {"pearson": 88.02, "spearman": 87.94}, "qqp": {"f1": 88.67, "accuracy": 91.56},
    "mnli_matched": {"accuracy": 84.24}, "mnli_mismatched": {"accuracy": 84.57}, "qnli": {"accuracy": 90.48},
    "rte": {"accuracy": 76.28},
}  # fmt: skip
_SUPER_GLUE = {
    "boolq": {"accuracy": 76.62}, "cb": {"mean_3class_f1": 91.22, "accuracy": 91.96}, "copa": {"accuracy": 66.20},
    "multirc": {"f1": 66.13, "exact_match": 25.78}, "record": {"em": 68.16, "f1": 69.05}, "rte": {"accuracy": 75.34},
    "wic": {"accuracy": 68.04}, "wsc": {"accuracy": 78.56},
}  # fmt: skip


def averages() -> Comparisons:
    """Compare averages to the two printed digits; both exclude WNLI."""
    found = glue_average.suite_average("glue", (_GLUE | {"wnli": {"accuracy": 0.0}}).items())
    yield "GLUE", [round(found["average"], 2), found["tasks"]], [83.28, 8]
    found = glue_average.suite_average("super_glue", (_SUPER_GLUE | {"axb": {"accuracy": 0.0}}).items())
    yield "SuperGLUE", [round(found["average"], 2), found["tasks"]], [71.36, 8]
