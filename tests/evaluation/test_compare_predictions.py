"""`bertjax compare-predictions`: scores against the official ones, the tests against SciPy, files and folders."""

import json
import random
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.cli.main import main
from bertjax.errors import UserError
from bertjax.evaluation.metrics.paired import mcnemar, paired_bootstrap
from bertjax.evaluation.metrics.squad import score_command
from bertjax.tools.compare_predictions.command import compare_predictions, format_text
from bertjax.tools.compare_predictions.groups import question_word

CONTEXT = "The Norman dynasty had a major impact on medieval Europe, and in 1066 Duke William conquered England."


def gold(version: str, count: int = 60) -> dict:
    rng = random.Random(5)
    words = CONTEXT.rstrip(".").split()
    paragraphs: dict[str, list] = {"First": [], "Second": []}
    for n in range(count):
        start = rng.randrange(len(words) - 3)
        text = " ".join(words[start : start + rng.randint(1, 3)]).rstrip(",")
        asked = rng.choice(["Who did it?", "When was it?", "How many were there?", "In what year?", "Name it."])
        qa = {"id": f"q{n}", "question": asked, "answers": [{"text": text, "answer_start": CONTEXT.index(text)}]}
        if version != "1.1":
            qa["is_impossible"] = n % 3 == 0
            qa["answers"] = [] if n % 3 == 0 else qa["answers"]
        paragraphs["First" if n % 2 else "Second"].append(qa)
    data = [{"title": t, "paragraphs": [{"context": CONTEXT, "qas": qas}]} for t, qas in paragraphs.items()]
    return {"version": version, "data": data}


def questions(data: dict) -> list[dict]:
    return [qa for article in data["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]]


def guesses(data: dict, seed: int) -> dict[str, str]:
    rng = random.Random(seed)
    made = {}
    for qa in questions(data):
        right = qa["answers"][0]["text"] if qa["answers"] else ""
        made[qa["id"]] = rng.choice([right, right, right + " England", "", "major impact"])
    return made


@pytest.fixture(params=["1.1", "v2.0"])
def files(request, tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(tmp_path)
    data = gold(request.param)
    Path("dev.json").write_text(json.dumps(data))
    for name, seed in (("a", 1), ("b", 2)):
        Path(f"{name}.json").write_text(json.dumps(guesses(data, seed)))
    return data


def test_scores_are_the_official_ones_and_counts_are_those_of_the_questions(files):
    report = compare_predictions(Path("a.json"), Path("b.json"), Path("dev.json"))
    a, b = guesses(files, 1), guesses(files, 2)
    for side, name in (("a", "a.json"), ("b", "b.json")):
        assert report[side]["scores"] == score_command("dev.json", name)
    won = lost = 0
    for qa in questions(files):
        Path("one.json").write_text(
            json.dumps({**files, "data": [{"paragraphs": [{"context": CONTEXT, "qas": [qa]}]}]})
        )
        f1 = []
        for answers in (a, b):
            Path("said.json").write_text(json.dumps({qa["id"]: answers[qa["id"]]}))
            f1.append(score_command("one.json", "said.json")["f1"])
        won, lost = won + (f1[1] > f1[0]), lost + (f1[1] < f1[0])
    counts = report["counts"]
    assert (counts["won"], counts["lost"], counts["tied"]) == (won, lost, 60 - won - lost)
    assert sum(counts[name] for name in ("both_right", "only_a_right", "only_b_right", "none_right")) == 60
    difference = report["b"]["scores"]["f1"] - report["a"]["scores"]["f1"]
    assert report["significance"]["bootstrap"]["f1"]["difference"] == pytest.approx(difference)
    assert ("answerable" in report["groups"]) == (files["version"] == "v2.0")
    for kind, rows in report["groups"].items():
        asked = 40 if kind == "answer_words" and files["version"] == "v2.0" else 60
        assert sum(row["questions"] for row in rows) == asked
        mean = sum(row["questions"] * row["b"]["exact"] for row in rows) / asked
        assert asked != 60 or mean == pytest.approx(report["b"]["scores"]["exact"])
    words = {row["name"]: row["questions"] for row in report["groups"]["question"]}
    assert words.keys() == {"who", "when", "how many", "what", "other"}
    for name, better in (("won", "b"), ("lost", "a")):
        shown = report["examples"][name]
        assert shown and all(
            one["scores"][better]["f1"] == max(s["f1"] for s in one["scores"].values()) for one in shown
        )
        gaps = [abs(one["scores"]["a"]["f1"] - one["scores"]["b"]["f1"]) for one in shown]
        assert gaps == sorted(gaps, reverse=True)


def test_the_other_way_round_is_the_mirror_image(files):
    one = compare_predictions(Path("a.json"), Path("b.json"), Path("dev.json"))
    other = compare_predictions(Path("b.json"), Path("a.json"), Path("dev.json"))
    assert (one["counts"]["won"], one["counts"]["lost"]) == (other["counts"]["lost"], other["counts"]["won"])
    tests, mirrored = one["significance"], other["significance"]
    assert tests["mcnemar"] == mirrored["mcnemar"]
    assert tests["bootstrap"]["f1"]["low"] == pytest.approx(-mirrored["bootstrap"]["f1"]["high"])
    same = compare_predictions(Path("a.json"), Path("a.json"), Path("dev.json"))
    assert same["counts"]["tied"] == 60 and same["significance"]["mcnemar"]["p"] == 1
    assert same["significance"]["bootstrap"]["f1"]["p"] == 1 and same["examples"] == {"won": [], "lost": []}


def test_missing_and_extra_questions_are_said(files, capsys):
    a = guesses(files, 1)
    del a["q3"], a["q5"]
    Path("a.json").write_text(json.dumps(a | {"else": "x"}))
    report = compare_predictions(Path("a.json"), Path("b.json"), Path("dev.json"))
    effect = "are left out of its scores" if files["version"] == "v2.0" else "count 0 in its scores"
    assert report["notes"] == [
        f"A has no answer to 2 of 60 questions (first: q3), which {effect}",
        "A has answers to 1 question that is not in the data (first: else)",
    ]
    assert report["compared"] == 58 and report["a"]["scores"] == score_command("dev.json", "a.json")
    assert "note: A has no answer to 2 of 60" in format_text(report)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(deadline=None)  # the first call imports SciPy
def test_mcnemar_is_the_binomial_test(one, other):
    stats = pytest.importorskip("scipy.stats")
    wanted = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(wanted, rel=1e-9)


def test_many_questions_do_not_overflow():
    assert 0 < mcnemar(5_000, 6_000) < 1e-20 and mcnemar(20_000, 20_000) == 1.0


def test_the_bootstrap_has_the_normal_interval_and_a_seed():
    """Of many independent differences the percentile interval is close to mean +- 1.96 standard errors."""
    differences = np.random.default_rng(0).normal(0.03, 1, 4000)
    found = paired_bootstrap(differences, seed=1)
    error = 1.96 * differences.std() / np.sqrt(len(differences))
    assert found["low"] == pytest.approx(differences.mean() - error, abs=0.1 * error)
    assert found["high"] == pytest.approx(differences.mean() + error, abs=0.1 * error)
    norm = pytest.importorskip("scipy.stats").norm
    assert found["p"] == pytest.approx(2 * norm.sf(abs(differences.mean()) / error * 1.96), abs=0.02)
    assert found == paired_bootstrap(differences, seed=1) != paired_bootstrap(differences, seed=2)


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("How many people live there?", "how many"), ("By how much did it grow?", "how many"),
        ("How did it end?", "how"), ("To whom was it given?", "who"), ("Whose idea was it?", "who"),
        ("In what year did he say who won?", "what"), ("Which is it?", "which"), ("What’s his name?", "what"),
        ("Somewhat like whatever", "other"), ("Name the king.", "other"), ("Wo ist er?", "other"),
        ("Why, and when?", "why"),
    ],
)  # fmt: skip
def test_question_words(question, word):
    assert question_word(question) == word


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sections: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        if tag == "section":
            self.sections.append(dict(attributes)["id"])


def test_the_command_prints_and_writes(files, capsys):
    where = ["compare-predictions", "a.json", "b.json", "--data", "dev.json", "--examples", "2"]
    assert main([*where, "--output", "page.html"]) == 0
    out = capsys.readouterr().out
    assert "McNemar's exact test (exact" in out and "paired bootstrap (10,000 samples, seed 1), f1" in out
    assert "Question word" in out and out.endswith("page.html\n")
    written = json.loads(Path("page.json").read_text())
    assert main([*where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    page = _Parser()
    page.feed(Path("page.html").read_text())
    assert {"scores", "counts", "tests", "question", "title", "won", "lost"} <= set(page.sections)


def test_answers_of_several_lines_and_control_characters_stay_in_their_line(files, capsys):
    a, asked = json.loads(Path("a.json").read_text()), questions(files)
    key = next(q["id"] for q in asked if q["answers"])
    right = next(q["answers"][0]["text"] for q in asked if q["id"] == key)
    Path("c.json").write_text(json.dumps(a | {key: "wrong\nin two \x1b[31mlines"}))
    Path("d.json").write_text(json.dumps(a | {key: right}))
    assert main(["compare-predictions", "c.json", "d.json", "--data", "dev.json"]) == 0
    out = capsys.readouterr().out
    assert f"gold: {right}" in out and f"| A: wrong in two \\x1b[31mlines | B: {right}" in out and "\x1b" not in out


def test_predictions_are_found_in_runs_records_and_files_of_predict(files, capsys):
    a = guesses(files, 1)
    folder = Path("run/evaluations/00-qa")
    (folder / "other").mkdir(parents=True)
    (folder / "squad.predictions.json").write_text(json.dumps(a))
    (folder / "squad.nbest.json").write_text("{}")
    (folder / "other" / "squad-step3-ab.predictions.json").write_text("{}")
    (folder / "squad.json").write_text(json.dumps({"step": 3, "scores": {}}))
    lines = [json.dumps({"id": key, "question": "q", "answer": text or None}) for key, text in a.items()]
    Path("a.jsonl").write_text("\n".join(lines))
    wanted = compare_predictions(Path("a.json"), Path("b.json"), Path("dev.json"))
    for name in ("run", "run/evaluations/00-qa", "run/evaluations/00-qa/squad.json", "a.jsonl"):
        found = compare_predictions(Path(name), Path("b.json"), Path("dev.json"))
        assert found["a"]["scores"] == wanted["a"]["scores"] and found["counts"] == wanted["counts"]
    (folder / "more.predictions.json").write_text(json.dumps(a))
    with pytest.raises(UserError, match="run: has several predictions .*choose with --name"):
        compare_predictions(Path("run"), Path("b.json"), Path("dev.json"))
    found = compare_predictions(Path("run"), Path("run"), Path("dev.json"), name="more")
    assert found["a"]["path"].endswith("more.predictions.json") and found["counts"]["tied"] == 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "bad.json: a JSON object is needed, not list"),
        ('{"q1": ["x"]}', "bad.json: 'q1': a string is needed, not list; this looks like an n-best file"),
        ("{\n]", "bad.json: line 2: not JSON"),
        ('{"z": "x"}', "bad.json: has an answer to no question of dev.json"),
        ('{"step": 1, "scores": {}}', "bad.json: is the record of an evaluation without predictions"),
        ('{"q1": "\\ud800"}', "bad.json: 'q1' holds a lone surrogate"),
    ],
)
def test_files_that_cannot_be_compared(files, capsys, content, message):
    Path("bad.json").write_text(content)
    assert main(["compare-predictions", "a.json", "bad.json", "--data", "dev.json", "--output", "p.html"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1 and not Path("p.html").exists()


@pytest.mark.parametrize("output", ["b.html", "a.json", "dev.html"])
def test_no_file_that_is_read_is_overwritten(files, capsys, output):
    """A page called b.html has b.json beside it."""
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert main(["compare-predictions", "a.json", "b.json", "--data", "dev.json", "--output", output]) == 2
    said = capsys.readouterr().err
    assert said == f"'{Path(output).stem}.json': is read by this command and would be overwritten; name another\n"
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


# ---- labels ---------------------------------------------------------------------------------------------------------


def table(name: str, predicted: list[str], ids: list[int] | None = None, true: str = "good bad good bad good") -> None:
    header = "id,text,label,predicted_label,probability\n" if ids else "text,label,predicted_label,probability\n"
    rows = [
        (f"{ids[n]}," if ids else "") + f"t{n},{label},{guess},0.5"
        for n, (label, guess) in enumerate(zip(true.split(), predicted, strict=True))
    ]
    Path(name).write_text(header + "\n".join(rows) + "\n")


def test_labels_are_compared_by_class(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table("a.csv", ["good", "good", "bad", "bad", "good"])
    table("b.csv", ["good", "bad", "good", "good", "good"])
    report = compare_predictions(Path("a.csv"), Path("b.csv"))
    assert report["a"]["scores"] == {"accuracy": 60.0, "total": 5} and report["b"]["scores"]["accuracy"] == 80.0
    assert report["counts"] == {
        "won": 2, "lost": 1, "tied": 2, "both_right": 2, "only_a_right": 1, "only_b_right": 2, "none_right": 0
    }  # fmt: skip
    rows = {
        row["name"]: (row["questions"], row["a"]["accuracy"], row["b"]["accuracy"]) for row in report["groups"]["label"]
    }
    assert rows["good"] == (3, pytest.approx(200 / 3), 100) and rows["bad"] == (2, 50, 50)
    assert main(["compare-predictions", "a.csv", "b.csv", "--output", "p.html"]) == 0
    assert "accuracy" in capsys.readouterr().out and Path("p.html").is_file()
    table("c.csv", ["good", "bad", "good", "good", "good"], [5, 4, 3, 2, 1], "good bad good bad good")
    table("d.csv", ["good", "good", "bad", "bad", "good"], [1, 2, 3, 4, 9], "good bad good bad good")
    report = compare_predictions(Path("c.csv"), Path("d.csv"))
    assert report["compared"] == 4 and len(report["notes"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.csv short.csv", "short.csv: has 4 lines and a.csv 5"),
        ("a.csv other.csv", "other.csv: line 2: 'text' differs from that line of a.csv"),
        ("a.csv a.csv --label mood", "a.csv: line 2: no field 'mood'; the fields are: text, label, predicted_label"),
        ("a.csv a.csv --data a.csv", "a.csv: holds labels, whose true ones are in --label"),
        ("a.csv x.json", "a.csv: holds labels, and x.json does not"),
        ("ids.csv ids.csv", "ids.csv: no true label is a label that was predicted"),
        ("many.jsonl a.csv", "many.jsonl: 'predicted_labels': only one label for each text can be compared"),
        ("none.csv none.csv", "none.csv: no text has a true label in the field 'label'"),
    ],
)
def test_labels_that_cannot_be_compared(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    table("a.csv", ["good"] * 5)
    table("ids.csv", ["good"] * 5, true="0 1 0 1 0")
    table("short.csv", ["good"] * 4, true="good bad good bad")
    Path("other.csv").write_text(Path("a.csv").read_text().replace("t0", "u0"))
    Path("none.csv").write_text("text,label,predicted_label\nx,,good\n")
    Path("x.json").write_text("{}")
    Path("many.jsonl").write_text('{"text": "x", "predicted_labels": ["a"]}\n')
    assert main(["compare-predictions", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
