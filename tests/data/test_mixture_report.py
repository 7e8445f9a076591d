"""`bertjax mix`: the paper's proportions of GLUE, and the arithmetic of rows, epochs and tokens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.cli import main
from bertjax.config.loading.load import build
from bertjax.config.schema.run import Stage
from bertjax.data.pipeline import mixing, mixture_report
from bertjax.errors import UserError
from bertjax.verify import t5

GLUE = t5.GLUE
PROPORTIONS = {
    "proportional": t5.GLUE_RATES["T=1"][1],
    "K=65,536": t5.GLUE_RATES["K=2^16"][1],
    "T=2": t5.GLUE_RATES["T=2"][1],
    "equal": [0.125] * 8,
}
TASKS = {name: {"source": {"kind": "stdlib_docs"}} for name in GLUE}


def glue(**mixture):
    data = {"mixture": list(GLUE), **mixture}
    stages = [{"name": "multitask", "data": data, "steps": 1000, "batch_size": 128}, {"name": "one", "data": "rte"}]
    stages[1] |= {"epochs": 2, "batch_size": 32}
    return {"tasks": TASKS, "stages": stages}


def test_glue_proportions():
    rules = mixture_report.sweep_rates(GLUE, [65536], [2.0])
    assert list(rules) == [*list(PROPORTIONS)[:3], "K=65,536 T=2", "equal"]
    for rule, expected in PROPORTIONS.items():
        assert [round(rules[rule][task], 5) for task in GLUE] == pytest.approx(expected, abs=6e-6), rule


def test_rows_epochs_and_tokens():
    config = build(glue(limit=65536))
    rates = mixing.rates(GLUE, config.stages[0].data)
    size = mixture_report.MixtureSize(config.stages[0], 1000, GLUE, GLUE, rates, dict.fromkeys(GLUE, 50.0))
    found = {share.task: share for share in mixture_report.build_report(size, [], []).shares}
    assert found["rte"].rate == pytest.approx(0.00881, abs=1e-5)
    assert found["rte"].drawn == pytest.approx(128_000 * found["rte"].rate)
    assert found["rte"].epochs == pytest.approx(found["rte"].drawn / 2490)
    assert found["rte"].tokens == round(50 * found["rte"].drawn)
    assert sum(share.drawn for share in found.values()) == pytest.approx(128_000)


def test_packed_tasks_take_their_share_of_the_examples():
    """Two tasks of 1,000 examples at equal rates, one with ten in a row: both end at the same epochs."""
    counts, rows = {"a": 1000, "b": 1000}, {"a": 100, "b": 1000}
    stage = Stage(name="s", data={"mixture": ["a", "b"], "rate": "equal"}, steps=11, batch_size=100)
    a, b = mixture_report.build_report(
        mixture_report.MixtureSize(stage, 11, counts, rows, {"a": 0.5, "b": 0.5}, None), [], []
    ).shares
    assert (a.drawn, b.drawn) == pytest.approx((100, 1000)) and a.epochs == pytest.approx(b.epochs)


def test_stated_counts_need_no_data(tmp_path, capsys):
    file = tmp_path / "glue.yaml"
    file.write_text(json.dumps(glue(temperature=2)))
    counts = [part for task, rows in GLUE.items() for part in ("--count", f"{task}:{rows}")]
    assert main.main(["mix", str(file), "--json", *counts]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [round(task["rate"], 5) for task in found[0]["tasks"]] == pytest.approx(PROPORTIONS["T=2"], abs=6e-6)
    assert found[0]["tasks"][0]["tokens"] is None
    assert found[1]["steps"] == -(-2 * 2490 // 32) and found[1]["rules"] == {}
    assert main.main(["mix", str(file), *counts, "--limits", "65536", "--temperatures", "8"]) == 0
    text = capsys.readouterr().out
    assert "stage multitask: 1,000 steps of 128 rows = 128,000 rows, proportional rates" in text
    assert "K=65,536  " in text and "T=8  " in text and "K=65,536 T=8  " in text


def test_a_named_mixture_of_mixtures(tmp_path, capsys):
    """multitask: the unlabelled text a half, GLUE the other half at its own rates (seqio.Mixture.get_rate)."""
    config = glue()
    config["tasks"] = TASKS | {"text": TASKS["rte"]}
    config["mixtures"] = {
        "glue": {"mixture": list(GLUE), "limit": 65536},
        "multitask": {"mixture": {"text": 10, "glue": 10}, "rate": "explicit"},
    }
    config["stages"] = [{"name": "s", "data": "multitask", "steps": 10}]
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(config))
    counts = [part for task, rows in (GLUE | {"text": 10**6}).items() for part in ("--count", f"{task}:{rows}")]
    assert main.main(["mix", str(file), "--json", *counts]) == 0
    found = {task["task"]: task["rate"] for task in json.loads(capsys.readouterr().out)[0]["tasks"]}
    assert list(found) == ["text", *GLUE] and found["text"] == pytest.approx(0.5)
    assert [2 * found[task] for task in GLUE] == pytest.approx(PROPORTIONS["K=65,536"], abs=1.1e-5)
    assert main.main(["mix", str(file), *counts]) == 0
    assert "rows, mixture multitask" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["cola"], "--count cola: must be TASK:COUNT"), (["cola:0"], "must be TASK:COUNT"),
        (["wnli:3"], "no stage has a task 'wnli'; there are: cola, sst2"), (["cola:3"], "task 'sst2' has none"),
    ],
)  # fmt: skip
def test_bad_counts_are_one_line(pairs, says):
    with pytest.raises(UserError, match=says):
        mixture_report.parse_counts(pairs, build(glue()))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**9), min_size=1))
def test_limits_that_tell_lie_between_the_tasks(rows):
    found = mixture_report.candidate_limits(rows)
    assert len(found) <= 3 and all(min(rows.values()) < limit < max(rows.values()) for limit in found)


def test_real_data_gives_counts_and_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task = {"source": {"kind": "stdlib_docs", "split": "heldout"}, "preprocess": {"sequence_length": 64}}
    model = {"vocab_size": 600, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    stage = {"name": "s", "data": {"mixture": ["a", "b"], "rate": "equal"}, "steps": 10, "batch_size": 8}
    (tmp_path / "c.yaml").write_text(
        json.dumps({"model": model, "tasks": {"a": task, "b": task | {"limit": 50}}, "stages": [stage]})
    )
    assert main.main(["mix", "c.yaml", "--json"]) == 0
    out = capsys.readouterr()
    first, second = json.loads(out.out)[0]["tasks"]
    assert second["epochs"] == pytest.approx(40 / second["rows"])  # of a sample of 50 documents
    assert first["rows"] > second["rows"] > 50 and 40 * 20 < first["tokens"] <= 40 * 64
    assert "examples in" in out.err
