"""Scores against the official evaluate-v1.1.py and evaluate-v2.0.py (golden) and plain re-statements."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.cli.main import main
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.sources.squad import Example, read_squad
from bertjax.errors import UserError
from bertjax.evaluation.metrics import squad
from bertjax.verify import runner
from bertjax.verify.squad import answerable_only

GOLDEN = Path(str(runner.GOLDENS))
SCORES = json.loads((GOLDEN / "squad_scores.json").read_text(encoding="utf-8"))
TINY = json.loads((GOLDEN / "squad_tiny.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", SCORES["cases"], ids=lambda case: case["name"])
def test_scores_are_those_of_the_official_scripts(case):
    gold = TINY if case["version_2"] else answerable_only(TINY)
    scores = squad.score(gold, case["predictions"], case["na_prob"], case["na_prob_thresh"])
    for key, want in case["scores"].items():
        assert scores[key] == pytest.approx(want, abs=1e-9), key
    assert scores["total"] == case["scores"].get("total", 19)
    if not case["version_2"]:
        assert list(scores) == ["exact_match", "f1", "exact", "total"] and scores["exact"] == scores["exact_match"]
    elif "stopped" not in case:
        assert list(scores) == list(case["scores"])  # nothing else, and in the official order


def test_a_question_without_prediction_is_in_no_v2_total():
    predictions = {"q00": "1895", "q04": "x", "q03": ""}  # right, wrong, right; the other 19 are missing
    scores = squad.score(TINY, predictions)
    assert {key: scores[key] for key in ("exact", "total", "HasAns_exact", "HasAns_total")} == {
        "exact": pytest.approx(200 / 3), "total": 3, "HasAns_exact": 50.0, "HasAns_total": 2,
    }  # fmt: skip
    assert (scores["NoAns_exact"], scores["NoAns_total"]) == (100.0, 1)
    assert "NoAns_exact" not in squad.score(TINY, {"q00": "1895"})
    with pytest.raises(UserError, match="none is for a question of the gold data"):
        squad.score(TINY, {"other": "1895"})


@pytest.mark.parametrize(
    "golds, predicted, exact, f1",
    [(["the", "wall"], "", 0, 0), (["the", "wall"], "a wall", 1, 1), (["A", "..."], "", 1, 1), (["A"], "the", 1, 1)],
)
def test_v2_golds_without_words_are_dropped(golds, predicted, exact, f1):
    """Values of evaluate-v2.0.py; v1.1 keeps such golds, and its F1 of two empty texts is 0."""
    examples = [Example("a", "q", "c", [(text, 0) for text in golds])]
    scores = squad.score(examples, {"a": predicted}, version_2=True)
    assert (scores["exact"], scores["f1"]) == (100.0 * exact, 100.0 * f1)
    kept = squad.score(examples, {"a": predicted})
    assert (kept["exact_match"], kept["f1"]) == (100.0, 100.0 * (predicted == "a wall"))


def test_the_version_is_told_from_the_gold_data():
    predictions = {"q00": "1895"}
    assert "exact_match" in squad.score(answerable_only(TINY), predictions)
    assert "exact_match" not in squad.score(answerable_only(TINY) | {"version": "v2.0"}, predictions)
    assert "exact_match" not in squad.score(TINY["data"], predictions)  # it has unanswerable questions
    assert "best_exact" in squad.score(answerable_only(TINY), predictions, {"q00": 0.1})
    assert squad.score(TINY, predictions, version_2=False)["total"] == 22  # as v1.1: no question is left out


def test_examples_score_as_their_file_does():
    examples = read_squad(SquadFiles(kind="squad", files=["squad_tiny.json"]), GOLDEN)
    for case in SCORES["cases"]:
        if case["version_2"]:
            arguments = case["predictions"], case["na_prob"], case["na_prob_thresh"]
            assert squad.score(examples, *arguments) == squad.score(TINY, *arguments)
    with pytest.raises(UserError, match="no questions"):
        squad.score([], {})


def test_a_missing_no_answer_probability_is_named():
    with pytest.raises(UserError, match="'q01' has a prediction but no number"):
        squad.score(TINY, {"q00": "a", "q01": "b"}, {"q00": 0.5})


@given(st.text("ab the.!", max_size=12), st.text("ab the.!", max_size=12))
def test_f1_against_a_count_by_hand(gold, predicted):
    left, shared = squad.normalize(gold).split(), 0
    words = squad.normalize(predicted).split()
    total = len(left) + len(words)
    for word in words:
        if word in left:
            left.remove(word)
            shared += 1
    for version_2 in (False, True):
        want = 2 * shared / total if total else float(version_2)
        example = Example("a", "q", "c", [(gold, 0)])
        scores = squad.score([example], {"a": predicted}, version_2=version_2)
        assert scores["f1"] == pytest.approx(100 * want)
        assert scores["exact"] == 100.0 * (words == squad.normalize(gold).split())


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_best_threshold_against_every_threshold(seed, count):
    draw = random.Random(seed)
    examples = [Example(str(n), "q", "c", [("x y", 0)] if draw.random() < 0.6 else []) for n in range(count)]
    predictions = {e.id: draw.choice(["x y", "x", "z", ""]) for e in examples}
    na_prob = {e.id: value for e, value in zip(examples, draw.sample(range(100), count), strict=True)}

    def mean(threshold: float, name: str) -> float:
        answered = {key: text if na_prob[key] <= threshold else "" for key, text in predictions.items()}
        return squad.score(examples, answered, version_2=True)[name]

    scores = squad.score(examples, predictions, na_prob, version_2=True)
    for name in ("exact", "f1"):
        best = max(mean(threshold, name) for threshold in (-1, *na_prob.values()))
        assert scores[f"best_{name}"] == pytest.approx(best)
        if mean(-1, name) < best - 1e-9:
            assert mean(scores[f"best_{name}_thresh"], name) == pytest.approx(best)
        else:
            # Answering nothing is best: the official starting value, or one that a rounding of the sum puts above it.
            found = scores[f"best_{name}_thresh"]
            assert found == 0.0 or mean(found, name) == pytest.approx(best)
        assert squad.score(examples, predictions, na_prob, 50)[name] == pytest.approx(mean(50, name))


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    def write(**contents):
        for name, content in contents.items():
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return [tmp_path / name for name in contents]

    return write


def test_score_command(files, tmp_path, capsys):
    case = next(case for case in SCORES["cases"] if case["name"] == "v2 odds 3")
    gold, predictions, odds = files(gold=TINY, predictions=case["predictions"], odds=case["na_prob"])
    scores = squad.score_command(gold, predictions, odds, case["na_prob_thresh"])
    assert scores == pytest.approx(case["scores"]) and capsys.readouterr().err == ""
    packed = tmp_path / "gold.json.gz"
    packed.write_bytes(gzip.compress(gold.read_bytes()))
    assert squad.score_command(str(packed), str(predictions), str(odds), case["na_prob_thresh"]) == scores
    json.dumps(scores, allow_nan=False)


def test_scores_do_not_replace_the_files_they_are_of(files, capsys):
    gold, predictions = map(str, files(gold=TINY, predictions={"a": "x"}))
    for name in (gold, predictions):
        before = Path(name).read_bytes()
        assert main(["score", "squad", gold, predictions, "--out-file", name]) == 2
        assert capsys.readouterr().err == f"'{name}': is read by this command and would be overwritten; name another\n"
        assert Path(name).read_bytes() == before
    assert main(["score", "squad", gold, predictions, "--na-prob-thresh", "0.5"]) == 2
    assert capsys.readouterr().err == "bertjax score squad: --na-prob-thresh needs --null-odds\n"


def test_score_command_counts_missing_predictions_on_stderr(files, capsys):
    gold_1, gold_2, some, none = files(gold1=answerable_only(TINY), gold2=TINY, some={"q00": "1895"}, none={})
    assert squad.score_command(gold_1, some)["exact_match"] == pytest.approx(100 / 19)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "18 of 19 questions have no prediction and count 0 (first: q01)\n"
    assert squad.score_command(gold_2, some)["total"] == 1
    assert "21 of 22 questions have no prediction and are left out of the totals" in capsys.readouterr().err
    assert squad.score_command(gold_1, none)["f1"] == 0.0
    with pytest.raises(UserError, match="gold2, .*none: predictions: none is for"):
        squad.score_command(gold_2, none)


GOOD = {"q00": "1895"}
BAD = {
    "gold is not JSON": ("{", GOOD, None, "gold: line 1: not JSON"),
    "gold is a list": ([], GOOD, None, "gold: a JSON object is needed, not list"),
    "gold is predictions": (GOOD, GOOD, None, "gold: key 'data' is missing"),
    "gold without ids": ({"data": [{"paragraphs": [{"qas": [{}]}]}]}, GOOD, None, "gold: key 'id' is missing"),
    "gold of numbers": ({"data": [1]}, GOOD, None, "gold: a list or an object is of another type"),
    "gold without questions": ({"data": []}, GOOD, None, "contains no questions"),
    "predictions are not JSON": (TINY, "q00: 1895", None, "predictions: line 1: not JSON"),
    "predictions are a list": (TINY, ["1895"], None, "predictions: a JSON object is needed, not list"),
    "a prediction is a list": (TINY, {"q00": ["1895"]}, None, "predictions: 'q00': a string is needed, not list"),
    "odds are text": (TINY, GOOD, {"q00": "0.5"}, "odds: 'q00': a number is needed, not '0.5'"),
    "odds are NaN": (TINY, GOOD, '{"q00": NaN}', "odds: 'q00': a number is needed, not nan"),
    "odds are missing": (TINY, GOOD, {}, "'q00' has a prediction but no number"),
}


@pytest.mark.parametrize("name", BAD)
def test_score_command_names_what_is_wrong(files, name, tmp_path):
    gold, predictions, odds, message = BAD[name]
    paths = files(gold=gold, predictions=predictions, odds=odds if odds is not None else {})
    with pytest.raises(UserError) as caught:
        squad.score_command(*paths[: 3 if odds is not None else 2])
    text = str(caught.value)
    assert message in text and "\n" not in text and len(text.replace(str(tmp_path), "")) <= 300


def test_score_command_without_a_file(files):
    (predictions,) = files(predictions=GOOD)
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        squad.score_command("nowhere.json", predictions)


@pytest.mark.parametrize("name", ["dev-v1.1", "dev-v2.0"])
def test_gold_answers_as_predictions_score_100(shared_data, name):
    file = shared_data / "squad" / f"{name}.first-half.json.gz"
    examples = read_squad(SquadFiles(kind="squad", files=[str(file)]), shared_data)
    perfect = {e.id: e.answers[-1][0] if e.answers else "" for e in examples}
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        scores = squad.score(json.load(stream), perfect)
    assert (scores["exact"], scores["f1"], scores["total"]) == (100.0, 100.0, len(examples))
    assert ("exact_match" in scores) == (name == "dev-v1.1")
    if name == "dev-v2.0":
        nothing = squad.score(examples, dict.fromkeys(perfect, ""))
        assert nothing["exact"] == nothing["f1"] == pytest.approx(100 * 2916 / 5690)
