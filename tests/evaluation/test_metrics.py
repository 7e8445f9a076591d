"""Scores of text-to-text tasks against sklearn, scipy, sacrebleu, rouge-score and plain re-statements of t5's rules.

The numbers of the reference's own tests are in the table of `bertjax verify`.
"""

import builtins
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.data import TextToText
from bertjax.data.preprocess.prompts.registry import get_prompt
from bertjax.data.preprocess.prompts.t5_prompts import TextExample
from bertjax.errors import UserError
from bertjax.evaluation.metrics import by_prompt, glue_average
from bertjax.evaluation.metrics import text as metrics_text
from bertjax.evaluation.metrics.labels import label_details, label_scores, score_names
from bertjax.evaluation.metrics.multi_label import SCORES, multi_label_details, multi_label_scores
from bertjax.report.classes import class_scores

IDS = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=30)
WORDS = st.sampled_from(["the cat", "Cat.", "a dog", "dog", "", "U . S . ", "U.S.", "‘owl’", "an  owl_s", "x-y", "x y"])


@settings(deadline=None)
@given(IDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_labels_as_sklearn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    targets, guesses = np.array(pairs).T
    assert metrics_text.accuracy(targets, guesses)["accuracy"] == pytest.approx(
        100 * sklearn.accuracy_score(targets, guesses)
    )
    macro = sklearn.fbeta_score(targets, guesses, beta=1, labels=range(3), average="macro", zero_division=0)
    assert metrics_text.mean_3class_f1(targets, guesses)["mean_3class_f1"] == pytest.approx(100 * macro)
    expected = sklearn.matthews_corrcoef(targets, guesses)
    assert metrics_text.matthews(targets, guesses)["matthews"] == pytest.approx(100 * expected, abs=1e-6)
    two = targets % 2
    flipped = np.where((guesses == 0) | (guesses == 1), guesses, 1 - two)
    assert metrics_text.f1(two, guesses)["f1"] == pytest.approx(100 * sklearn.f1_score(two, flipped, zero_division=0))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_scores_by_class_as_sklearn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    targets, guesses = np.array(pairs).T
    counts = label_details(np.eye(5)[guesses], targets, None)["classes"]
    assert counts["confusion"] == sklearn.confusion_matrix(targets, guesses, labels=range(5)).tolist()
    found = class_scores(counts)
    each = sklearn.precision_recall_fscore_support(targets, guesses, labels=range(5), zero_division=0)
    assert [[row[key] for row in found["rows"]] for key in ("precision", "recall", "f1", "support")] == [
        pytest.approx(list(column)) for column in each
    ]
    for mean in ("macro", "weighted"):
        precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
            targets, guesses, average=mean, zero_division=0
        )
        assert found[mean] == pytest.approx({"precision": precision, "recall": recall, "f1": f1})


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 5), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_scores_of_classes_as_sklearn(count, data):
    sklearn = pytest.importorskip("sklearn.metrics")
    one = st.integers(0, count - 1)
    targets, guesses = np.array(data.draw(st.lists(st.tuples(one, one), min_size=1, max_size=30))).T
    found = label_scores(np.eye(count)[guesses], targets)
    assert tuple(found) == score_names(count)
    f1 = lambda **how: 100 * sklearn.f1_score(targets, guesses, zero_division=0, **how)  # noqa: E731
    expected = {
        "accuracy": 100 * sklearn.accuracy_score(targets, guesses),
        "matthews": 100 * sklearn.matthews_corrcoef(targets, guesses),
        "macro_f1": f1(average="macro"), "weighted_f1": f1(average="weighted"),
    } | ({"f1": f1()} if count == 2 else {})  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_scores_of_numbers_as_sklearn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    guesses, numbers = np.array(pairs, np.float64).T / 3
    found = label_scores(guesses[:, None], numbers)
    assert tuple(found) == score_names(1)
    assert found["mse"] == pytest.approx(sklearn.mean_squared_error(numbers, guesses))
    assert found["r2"] == pytest.approx(100 * sklearn.r2_score(numbers, guesses), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(2, 4), st.integers(0, 10_000), st.sampled_from([0.5, 0.3]))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_scores_of_several_labels_as_sklearn(texts, labels, seed, threshold):
    """With equal logits, labels that never occur or always do, and texts without a label."""
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, (texts, labels)).astype(np.float32)
    truth = rng.random((texts, labels)) < rng.choice([0.0, 0.3, 0.7, 1.0], labels)
    doubles = logits.astype(np.float64)  # sklearn's means keep the type of the scores
    guesses = 1 / (1 + np.exp(-doubles)) >= threshold
    found = multi_label_scores(logits, truth.astype(np.uint8), threshold)
    assert tuple(found) == SCORES
    f1 = lambda **how: sklearn.f1_score(truth, guesses, zero_division=0, **how)  # noqa: E731
    some, both = truth.any(0), truth.any(0) & ~truth.all(0)
    means = {
        "average_precision": sklearn.average_precision_score(truth[:, some], doubles[:, some]) if some.any() else 0,
        "roc_auc": np.mean([sklearn.roc_auc_score(truth[:, c], doubles[:, c]) for c in np.flatnonzero(both)] or [0]),
    }
    expected = {
        "micro_f1": f1(average="micro"), "macro_f1": f1(average="macro"), "weighted_f1": f1(average="weighted"),
        "exact_match": sklearn.accuracy_score(truth, guesses),
        "label_ranking_average_precision": sklearn.label_ranking_average_precision_score(truth, doubles),
    } | means  # fmt: skip
    assert found == pytest.approx({name: 100 * float(value) for name, value in expected.items()}, abs=1e-6)
    details = multi_label_details(logits, truth, None, threshold)["classes"]
    each = sklearn.precision_recall_fscore_support(truth, guesses, zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert details[key] == pytest.approx(list(column), abs=1e-6)
    means = class_scores(details)
    for mean in ("micro", "macro", "weighted"):
        wanted = sklearn.precision_recall_fscore_support(truth, guesses, average=mean, zero_division=0)[:3]
        assert list(means[mean].values()) == pytest.approx(list(wanted))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(-1, 25)), min_size=3, max_size=30))
def test_correlations_as_scipy(pairs):
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array(pairs, np.float64).T / 5
    found = metrics_text.pearson(x, y)["pearson"], metrics_text.spearman(x, y)["spearman"]
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert found == (0, 0)  # scipy says nan, which no JSON holds
        return
    expected = 100 * stats.pearsonr(x, y)[0], 100 * stats.spearmanr(x, y)[0]
    assert found == pytest.approx(expected, abs=1e-7)


def test_ratings_that_never_change_correlate_with_nothing():
    """The mean of three times 0.2 is not 0.2 in binary."""
    for metric in (metrics_text.pearson, metrics_text.spearman):
        assert list(metric(np.array([0.0, 1.0, 4.0]), np.array([0.2, 0.2, 0.2])).values()) == [0.0]


def test_what_cannot_be_read_is_wrong():
    labels = ["negative", "positive"]
    ids = metrics_text.class_ids(["positive", "Positive", " positive", "positive.", "", "<unk>"], labels)
    assert ids.tolist() == [1, -1, -1, -1, -1, -1]
    assert metrics_text.parse_numbers(["3.8", "nan", "inf", "1,0", " 2 "]).tolist() == [3.8, -1, -1, -1, 2]
    assert metrics_text.f1(np.array([1, 1, 0]), np.array([-1, 1, -1]))["f1"] == pytest.approx(50)


@given(st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), WORDS), min_size=1, max_size=6))
def test_answers_score_the_best_reference_alone(pairs):
    references, said = zip(*pairs, strict=True)
    for metric in (metrics_text.squad, metrics_text.trivia_qa):
        whole = metric(references, said)
        for key in ("em", "f1"):
            best = [max(metric([[r]], [p])[key] for r in rs) for rs, p in pairs]
            assert whole[key] == pytest.approx(np.mean(best))
        assert all(0 <= v <= 100 for v in whole.values())


def test_the_reference_scores_two_empty_texts_by_words():
    """qa_utils._f1_score: no word in common is 0, also where both have none; exact they are."""
    assert metrics_text.squad([["the"]], ["an"]) == {"em": 100.0, "f1": 0.0}
    assert metrics_text.squad([[]], [""]) == {"em": 100.0, "f1": 100.0}  # no answer, and none given
    assert metrics_text.squad([[]], ["owl"]) == {"em": 0.0, "f1": 0.0}


def test_bleu_is_sacrebleus_with_intl_tokens_case_and_several_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    golds = [
        ["Der Hund läuft – schnell.", "Der Hund rennt."],
        ["Sie sagt: „Nein“, danke."],
        ["Es kostet 3,50 € heute."],
    ]
    said = ["Der Hund rennt – schnell.", "Sie sagt: „Nein“, Danke.", "Es kostet 3,50€ heute."]
    streams = [[g[0] for g in golds], [g[1] if len(g) > 1 else None for g in golds]]
    expected = sacrebleu.metrics.BLEU(tokenize="intl", smooth_method="exp").corpus_score(said, streams).score
    assert metrics_text.bleu(golds, said)["bleu"] == pytest.approx(expected)
    other = sacrebleu.metrics.BLEU(tokenize="13a").corpus_score(said, streams).score
    assert other != pytest.approx(expected)
    lowered = metrics_text.bleu(golds, [text.lower() for text in said])["bleu"]
    assert lowered < expected


def test_rouge_is_the_mean_over_examples_with_lines_at_full_stops():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeLsum"])
    golds = ["the cat sat . it ran away . the end", "owls fly at night"]
    said = ["it ran . the cat sat on a mat .", "an owl flies at night"]
    found = metrics_text.rouge([[g] for g in golds], said)
    cut = lambda text: text.replace(" . ", " .\n")  # noqa: E731
    each = [scorer.score(target=cut(g), prediction=cut(p)) for g, p in zip(golds, said, strict=True)]
    for key, value in found.items():
        assert value == pytest.approx(100 * np.mean([one[key].fmeasure for one in each]))
    assert found["rougeLsum"] != pytest.approx(
        100 * np.mean([scorer.score(g, p)["rougeLsum"].fmeasure for g, p in zip(golds, said, strict=True)])
    )
    assert metrics_text.rouge([golds], said[:1])["rouge1"] == pytest.approx(
        100 * each[0]["rouge1"].fmeasure
    )  # the best


@pytest.mark.parametrize(("metric", "module"), [(metrics_text.bleu, "sacrebleu"), (metrics_text.rouge, "rouge_score")])
def test_a_missing_package_is_named(monkeypatch, metric, module):
    real = builtins.__import__

    def lacking(name, *rest):
        if name.split(".")[0] == module:
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(UserError, match=r"pip install 'bertjax\[eval\]'"):
        metric([["a"]], ["a"])


def test_multirc_and_record_by_hand():
    """Groups may lie apart; a query's first example counts, and the best of all its answers."""
    found = metrics_text.multirc(np.array([1, 0, 1, 1]), np.array([1, 1, 1, -1]), ["a", "b", "a", "c"])
    assert found == {"f1": pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1)), "exact_match": pytest.approx(100 / 3)}
    found = metrics_text.record(
        [["Paris"], ["Rome", "Oslo"], ["Paris"]], ["paris", "Oslo city", "Rome"], [(0, 1), 2, (0, 1)]
    )
    assert found == {"em": 50.0, "f1": pytest.approx(50 + 50 * 2 / 3)}


# ---- prompts --------------------------------------------------------------------------------------------------------


def example(targets: str, label: int | None = None, **extra) -> TextExample:
    hidden = label == -1
    extra |= {} if label is None else {"label": label}
    return TextExample("q", targets, () if hidden else (targets,), extra)


def test_every_prompt_has_metrics_and_every_metric_a_function():
    from typing import get_args

    from bertjax.config.schema.custom import TEXT_METRICS
    from bertjax.config.schema.data import Prompt

    assert set(get_args(Prompt)) <= set(by_prompt.METRICS)
    assert {name for names in by_prompt.METRICS.values() for name in names} <= set(TEXT_METRICS)
    made = [example("1.0", 1, group=1), example("0.0", 0, group=2)]
    for name in TEXT_METRICS:
        labels = ["0.0", "1.0", "2.0"] if name == "mean_3class_f1" else ["0.0", "1.0"]
        by_prompt.check_metrics([name], labels, made)
        found = by_prompt.score([name], made, ["1.0", "0.0"], labels)
        assert found.pop("examples") == 2 and found, name
        assert all(isinstance(value, int | float) for value in found.values()), name


@pytest.mark.parametrize(
    ("prompt", "targets", "said", "expected"),
    [
        ("glue_cola", ["acceptable", "unacceptable"], ["acceptable", "unacceptable"], {"matthews": 100}),
        ("glue_mrpc", ["equivalent", "not_equivalent"], ["equivalent", "?"], {"f1": 200 / 3, "accuracy": 50}),
        ("glue_mnli", ["neutral", "entailment"], ["neutral", "Entailment"], {"accuracy": 50}),
        ("super_glue_boolq", ["True", "False"], ["True", "True"], {"accuracy": 50}),
    ],
)
def test_labels_of_a_prompt(prompt, targets, said, expected):
    options = TextToText(prompt=prompt)
    from bertjax.data.preprocess.text_to_text import class_names

    examples = [*(example(text, 0) for text in targets), example("<unk>", -1)]
    found = by_prompt.score(by_prompt.metrics_for(options), examples, [*said, targets[0]], class_names(options))
    assert found == {**{key: pytest.approx(value) for key, value in expected.items()}, "examples": 2}


def test_ratings_are_compared_as_t5_rounds_them():
    """The target of STS-B is the text, so 2.5 is 2.4; a bad answer is -1.0."""
    make = get_prompt(TextToText(prompt="glue_stsb"))
    examples = [make({"sentence1": "a", "sentence2": "b", "label": y, "idx": 0})[0] for y in (2.5, 0.0, 5.0)]
    found = by_prompt.score(("pearson", "spearman"), examples, ["2.4", "-1.0", "4.8"])
    expected = np.corrcoef([2.4, 0, 5.0], [2.4, -1, 4.8])[0, 1]
    assert found == {"pearson": pytest.approx(100 * expected), "spearman": pytest.approx(100), "examples": 3}


def test_squad_has_both_scores():
    """'U.S.' is asked for as 'U . S . ': right by the padded golds, not by the official script (semantics.md 8)."""
    make = get_prompt(TextToText(prompt="squad"))
    record = {"id": "1", "question": "Where?", "context": "In the U.S. of A.", "answers": {"text": ["U.S."]}}
    (padded,) = make(record)
    assert padded.references == ("U . S . ",)
    found = by_prompt.score(("squad",), [padded], ["U . S ."])
    assert (found["squad_em"], found["squad_f1"], found["exact"], found["f1"]) == (100, 100, 0, 0)
    (none,) = make(record | {"answers": []})
    found = by_prompt.score(("squad",), [padded, none], ["U.S.", ""])
    assert (found["squad_em"], found["exact"], found["NoAns_exact"], found["examples"]) == (50, 100, 100, 2)


def test_hidden_labels_have_predictions_only():
    assert by_prompt.score(("accuracy",), [example("<unk>", -1)], ["positive"], ["positive"]) == {"examples": 0}


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("f1", None, "needs the classes"),
        ("f1", ["a", "b", "c"], "is for 2 classes, the task has 3"),
        ("mean_3class_f1", ["a", "b"], "is for 3 classes"),
        ("multirc", None, "needs the prompt of its data set"),
        ("wsc", None, "provides the label"),
    ],
)
def test_metrics_that_do_not_fit(name, labels, message):
    with pytest.raises(UserError, match=message):
        by_prompt.check_metrics([name], labels, [example("a")])


# ---- averages -------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(sorted(glue_average.GLUE)), min_size=1, unique=True), st.integers(0, 99))
def test_an_average_is_over_what_is_there(tasks, seed):
    draw = random.Random(seed)
    scores = {task: {key: draw.uniform(0, 100) for key in glue_average.GLUE[task]} for task in tasks}
    found = glue_average.suite_average(
        "glue", [*scores.items(), ("wnli", {"accuracy": 100.0}), ("cb", {"accuracy": 100.0})]
    )
    expected = np.mean([np.mean(list(one.values())) for one in scores.values()])
    assert found == {"average": pytest.approx(expected), "tasks": len(tasks)}


def test_both_halves_of_mnli_are_one_task_and_other_scores_do_not_count():
    halves = {"mnli_matched": {"accuracy": 80.0, "examples": 9}, "mnli_mismatched": {"accuracy": 60.0}}
    assert glue_average.suite_average("glue", [*halves.items(), ("rte", {"accuracy": 50.0})]) == {
        "average": 60.0,
        "tasks": 2,
    }
    pairs = [("mnli", {"accuracy": 80.0}), ("mnli", {"accuracy": 60.0}), ("rte", {"accuracy": 50.0})]
    assert glue_average.suite_average("glue", pairs) == {"average": 60.0, "tasks": 2}
    assert glue_average.suite_average("glue", [("mrpc", {"accuracy": 80.0})]) == {}  # without its F1
    assert (
        glue_average.suite_task("super_glue_rte") == ("super_glue", "rte")
        and glue_average.suite_task("glue_wnli") is None
    )
    assert glue_average.suite_task("squad") is None and glue_average.suite_task(None) is None
