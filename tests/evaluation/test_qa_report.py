"""Three ways to answer on the same questions, with tiny runs; and T5 runs trained, evaluated and restored for real."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.data.preprocess import sampling
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.metrics import squad
from bertjax.parallel import mesh
from bertjax.storage.files import read_text
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import loop

T5 = """\
model: {family: t5, vocab_size: 128, d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_heads: 2, dropout_rate: 0.0}
tokenizer: {kind: sentencepiece, extra_ids: 10}
run: {name: t5, log_every: 10, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1}
stages:
  - name: context
    data: {source: {kind: squad, files: [train.json]}, preprocess: &context {kind: text_to_text, prompt: squad,
      sequence_length: 64, target_length: 6}}
    objective: {kind: text_to_text}
    steps: 2
    batch_size: 8
    optimizer: &adafactor {kind: adafactor, learning_rate: 1e-2, schedule: constant, warmup_steps: 0}
    evaluate:
      - {kind: text_to_text, name: squad, data: &heldout {source: {kind: squad, files: [heldout.json]},
          preprocess: *context}}
      - {kind: loss, name: heldout, data: *heldout}
  - name: closed
    data: {source: {kind: squad, files: [train.json]}, preprocess: &closed {kind: text_to_text,
      inputs: "ask: {question}", targets: "{answers}", sequence_length: 32, target_length: 6}}
    objective: {kind: text_to_text}
    steps: 2
    batch_size: 8
    optimizer: *adafactor
    evaluate:
      - {kind: text_to_text, name: rte, data: {source: {kind: jsonl, files: [rte.jsonl]}, preprocess: {
          kind: text_to_text, prompt: glue_rte, sequence_length: 32, target_length: 6}}}
      - {kind: text_to_text, name: mnli, data: {source: {kind: jsonl, files: [mnli.jsonl]}, preprocess: {
          kind: text_to_text, prompt: glue_mnli, sequence_length: 32, target_length: 6}}}
"""


@pytest.fixture(scope="module")
def project(tiny_project, tmp_path_factory) -> Path:
    """The tiny project with two runs, of a BERT and of a T5, trained for a few steps on one device."""
    home = tmp_path_factory.mktemp("answers")
    shutil.copytree(tiny_project, home, dirs_exist_ok=True)
    (home / "t5.yaml").write_text(T5)
    rte = [{"idx": n, "sentence1": "a dog", "sentence2": "an owl", "label": n % 2} for n in range(4)]
    (home / "rte.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rte))
    mnli = [{"idx": n, "hypothesis": "a dog", "premise": "an owl", "label": n % 3} for n in range(6)]
    (home / "mnli.jsonl").write_text("".join(json.dumps(one) + "\n" for one in mnli))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
        short = ["stages.pretrain.steps=1", "stages.qa.steps=2", "stages.qa.trainable=all"]
        for name, overrides in (("tiny", short), ("t5", [])):
            loop.train(load(home / f"{name}.yaml", [f"run.root={home}/runs", *overrides]), home, build_evaluators)
    return home


@pytest.fixture
def here(project, monkeypatch) -> Iterator[Path]:
    monkeypatch.chdir(project)
    monkeypatch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
    return project


def record_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_t5_is_scored_as_it_trains_and_again_from_its_checkpoint(here):
    run = here / "runs" / "t5"
    trained = {line["name"]: line["scores"] for line in record_of(run) if line["kind"] == "eval"}
    found = evaluate_command(run, None, "context", None, [])["scores"]
    assert found == {name: pytest.approx(trained[name], rel=1e-5) for name in ("squad", "heldout")}
    assert found["squad"]["examples"] == 24 and {"squad_em", "squad_f1", "exact", "f1"} <= found["squad"].keys()
    assert found["heldout"]["target_perplexity"] > 1 and 0 <= found["heldout"]["target_accuracy"] <= 1
    (first, *_) = json.loads((run / "evaluations" / "00-context" / "heldout.json").read_text())["teacher_forced"]
    assert "context" in first["inputs"] and first["targets"] and first["prediction"]
    predictions = run / "evaluations" / "00-context" / "squad.predictions.json"
    official = squad.score_command(here / "heldout.json", predictions)
    assert {key: found["squad"][key] for key in official} == official


def test_the_average_of_a_suite_is_in_the_command_and_at_the_stage_end(here):
    run = here / "runs" / "t5"
    found = evaluate_command(run, None, None, None, [])["scores"]
    mean = (found["rte"]["accuracy"] + found["mnli"]["accuracy"]) / 2
    assert found["glue_average"] == {"average": pytest.approx(mean), "tasks": 2}
    (end,) = [line for line in record_of(run) if line.get("event") == "stage_end" and line["stage"] == "closed"]
    assert end["scores"]["glue_average/tasks"] == 2 and "glue_average/average" in end["scores"]
    assert evaluate_command(run, None, None, "rte", [])["scores"].keys() == {"rte"}


def test_three_ways_on_the_same_questions(here, capsys):
    ways = {"extractive": "runs/tiny", "context": "runs/t5/checkpoints/00-context", "closed-book": "runs/t5"}
    words = [word for way, run in ways.items() for word in (f"--{way}", run)]
    assert main(["qa-report", *words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "24 questions from heldout.json" in out and out.rstrip().endswith("qa-report.html")
    report = json.loads(Path("qa-report.json").read_text())
    assert list(report["ways"]) == ["extractive", "context", "closed_book"] and report["questions"] == 24
    for way, name in (("extractive", "01-qa/squad"), ("context", "00-context/squad")):
        run = here / "runs" / ("tiny" if way == "extractive" else "t5")
        evaluated = json.loads((run / "evaluations" / f"{name}.predictions.json").read_text())
        assert {row["id"]: row["predictions"][way] for row in report["answers"]} == evaluated
    gold = json.loads(read_text(here / "heldout.json"))
    for way, found in report["ways"].items():
        official = squad.score(gold, {row["id"]: row["predictions"][way] for row in report["answers"]})
        assert found["scores"] == pytest.approx(official)
        assert sum(row["exact"][way] for row in report["answers"]) / 24 * 100 == pytest.approx(official["exact"])
    page = Path("qa-report.html").read_text()
    assert page.count('<p class="question">') == 24 and page.count("<script") == 1 and "Answered right by" in page
    text = re.sub("<[^>]+>", " ", page)
    assert "Closed book" in text and "runs/t5, stage closed" in text


def test_another_file_a_limit_and_json(here, capsys):
    data = json.loads((here / "heldout.json").read_text())
    first = sampling.sample_indices(24, 5, 0)[0]  # of the sample, by the run's seed
    data["data"][first // 3]["paragraphs"][0]["qas"][first % 3] |= {
        "answers": [],
        "is_impossible": True,
        "question": "<b>Why?</b>",
    }
    (here / "other.json").write_text(json.dumps(data))
    words = ["--context", "runs/t5/checkpoints/00-context", "--data", "other.json", "--limit", "5", "--json"]
    assert main(["qa-report", *words, "--output", "page.html"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["questions"] == 5 and report["ways"]["context"]["scores"]["NoAns_total"] == 1
    page = Path("page.html").read_text()
    assert "&lt;b&gt;Why?&lt;/b&gt;" in page and "<b>Why" not in page and Path("page.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name at least one run: --extractive, --context or --closed-book"),
        (["--context", "runs/tiny"], "a bert model generates no text"),
        (["--extractive", "runs/t5"], "has no 'qa' head"),
        (["--closed-book", "runs/t5"], "stage 'closed' has no evaluation with questions; name them with --data"),
        (["--extractive", "nowhere"], "'nowhere': no such file or folder"),
        (["--extractive", "runs/tiny", "--data", "none.json"], "'none.json': no such file"),
    ],
)
def test_what_cannot_be_reported(here, capsys, words, message):
    assert main(["qa-report", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
