"""The report: well-formed, complete, safe with hostile text, whole without a network, and made from unfinished runs."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from report_page import Page

from bertjax.errors import StorageError, UserError
from bertjax.evaluation.metrics.labels import label_details
from bertjax.evaluation.metrics.multi_label import multi_label_details, multi_label_scores
from bertjax.report import parts, write_report
from bertjax.report.record import read_run
from bertjax.report.samples import excerpt, verdict
from bertjax.report.scales import downsample, smooth, ticks
from bertjax.report.script import SCRIPT, digest

CONTEXT = "The Grotto stands behind the basilica. It is a replica of the grotto at Lourdes, France. " * 3
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" $x^2$ {}"


def report(run: Path) -> tuple[Page, str]:
    source = write_report(run).read_text(encoding="utf-8")
    return Page(source), source


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "my-run"
    run.mkdir()
    lines: list[dict | str] = [{"kind": "event", "stage": "pretrain", "step": 0, "event": "start", "time": "x"}]
    for step in range(10, 1001, 10):
        lines.append({
            "kind": "train", "stage": "pretrain", "step": step, "loss": 9 - step / 200, "mlm_loss": 8 - step / 200,
            "nsp_loss": 0.7, "mlm_accuracy": step / 2000, "nsp_accuracy": 0.5, "learning_rate": 1e-4,
            "grad_norm": 2.5 - step / 1000, "tokens_per_second": 61_900, "step_seconds": 0.125, "data_wait": 0.031,
            "mfu": 0.503, "memory_bytes": 3 * 2**30, "elapsed": step * 3.7, "trainable_parameters": 109_000_000,
            "episode": 1,
        })  # fmt: skip
    lines.append({"kind": "eval", "stage": "pretrain", "step": 1000, "name": "mlm",
                  "scores": {"loss": 4.25, "mlm_accuracy": 0.4321, "nsp_accuracy": 0.75}})  # fmt: skip
    lines.append({"kind": "event", "stage": "pretrain", "step": 1000, "event": "stage_end"})
    for step in range(5, 61, 5):
        episode = (step - 1) // 20 + 1
        lines.append({"kind": "event", "stage": "qa", "step": step - 5, "event": "episode", "episode": episode,
                      "trainable_parameters": 1000 * episode**2})  # fmt: skip
        lines.append({"kind": "train", "stage": "qa", "step": step, "loss": 3.0, "learning_rate": 3e-5, "mfu": None,
                      "elapsed": 3700 + step, "episode": episode})  # fmt: skip
    lines.append({"kind": "eval", "stage": "qa", "step": 60, "name": "squad", "scores": {"exact": 11.0, "f1": 12.0}})
    lines.append({"kind": "event", "stage": "qa", "step": 60, "event": "stage_end"})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "train", "st')
    stages = [{"name": "pretrain", "steps": 1000}, {"name": "qa", "steps": 60}]
    (run / "config.yaml").write_text(yaml.safe_dump({"run": {"seed": 4711}, "stages": stages}))
    (run / "environment.json").write_text(json.dumps({
        "date": "2026-03-04T05:06:07Z", "device_kind": "NVIDIA H200", "device_count": 8,
        "versions": {"bertjax": "0.1.0", "jax": "0.10.2"}, "env": {"WANDB_API_KEY": "hunter2", "XLA_FLAGS": "--x"},
    }))  # fmt: skip
    (run / "baselines.json").write_text(json.dumps([{"name": "sliding window", "exact": 13.25, "f1": 20.5}]))
    folder = run / "evaluations" / "02-qa"
    folder.mkdir(parents=True)
    samples = [
        {"id": "a", "question": "What stands behind?", "context": CONTEXT, "answers": ["The Grotto"],
         "prediction": "Grotto"},
        {"id": "b", "question": "Where is the real one?", "context": CONTEXT, "answers": ["at Lourdes, France"],
         "prediction": "Lourdes"},
        {"id": "c", "question": "What is it?", "context": CONTEXT, "answers": [{"text": "a replica"}],
         "prediction": "basilica"},
        {"id": "d", "question": "Who asked?", "context": CONTEXT, "answers": [], "prediction": ""},
    ]  # fmt: skip
    scores = {"exact": 71.2345, "f1": 79.5, "exact_match": 71.2345, "total": 10570}
    (folder / "squad.json").write_text(json.dumps({"scores": scores, "samples": samples}))
    (folder / "squad.predictions.json").write_text(json.dumps({str(n): "x" for n in range(1234)}))
    (folder / "squad.nbest.json").write_text(
        json.dumps({"c": [{"text": "basilica", "probability": 0.6}, {"text": "runner up", "probability": 0.25}]})
    )
    return run


def test_every_section_and_number_is_there(finished_run: Path) -> None:
    page, _ = report(finished_run)
    sections = {"summary", "baselines", "stage-1", "stage-2", "made"}
    assert sections <= set(page.ids)
    for expected in (
        "my-run finished", "2026-03-04 05:06 UTC", "8 × NVIDIA H200", "bertjax 0.1.0, jax 0.10.2",  # header
        "71.23", "79.50", "10,570", "F1, stage qa", "1,060", "109M",  # tiles and scores
        "pretrain 1,000 1h01m 4.0000 61.9k 125 ms 3.1% 50.3% 3.0 GiB 109M",  # summary: median, and the last loss
        "qa 60 1m00s 3.0000 n/a n/a n/a n/a n/a n/a",
        "loss 4.2500 MLM accuracy 43.2% NSP accuracy 75.0%",
        "qa: squad (this run) 71.23 79.50", "sliding window 13.25 20.50",
        "1 0 to 20 1,000", "2 20 to 40 4,000", "3 40 to 60 9,000",  # episodes
        "4 samples from 1,234 predictions", "runner up 25.0%", "seed: 4711",
        "1 line of metrics.jsonl could not be read",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "exact match 71.23 F1 79.50 total 10,570" in page.text  # once, although the file has exact_match too
    assert "11.00" not in page.text  # the file's scores are newer than the record's
    assert "hunter2" not in page.text and "XLA_FLAGS" in page.text
    assert [word for word in ("✓ right", "≈ partly", "✗ wrong") if word in page.text] == [
        "✓ right",
        "≈ partly",
        "✗ wrong",
    ]


def test_charts_are_drawn_with_their_series(finished_run: Path) -> None:
    page, source = report(finished_run)
    titles = re.findall(r"<figcaption><b>([^<]+)</b>", source)
    assert titles == [
        "Loss of all stages", "Loss", "Accuracy", "Learning rate", "Gradient norm", "Tokens per second", "MFU",
        "Memory", "Loss", "Scores", "Learning rate",
    ]  # fmt: skip
    assert page.tags.count("svg") == len(titles) == len(page.data)
    assert "episode 2 · 4k trained" in page.text and "1e-4" in page.text and "60%" in page.text
    figures = re.findall(r"<figure.*?</figure>", source, re.DOTALL)
    assert all(f"var(--c{n})" in figures[1] for n in (1, 2, 3)) and "MLM loss" in figures[1] and "eval" in figures[1]
    assert 'class="band"' in figures[8] and 'class="band"' not in figures[1]
    loss = page.data[1]["series"][0]
    assert loss["label"] == "loss" and loss["x"] == list(range(10, 1001, 10)) and loss["y"][:2] == [8.95, 8.9]
    memory = page.chart("Memory")["series"][0]
    assert memory["y"] == [3] * 100 and "3 GiB" in page.text
    (norm,) = page.chart("Gradient norm")["series"]
    assert norm["y"][-1] == 1.5
    assert page.chart("MFU")["series"][0]["y"][0] == 50.3
    labels = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label")]
    assert "Learning rate by step. learning rate: 1e-4 at 10 to 1e-4 at 1k" in labels


def test_the_page_needs_nothing_from_outside(finished_run: Path) -> None:
    page, source = report(finished_run)
    assert not {"link", "iframe", "object", "img", "image", "base"} & set(page.tags)
    assert "://" not in source and "@import" not in source
    links = [value for _, key, value in page.attributes if key in ("src", "href", "xlink:href", "action")]
    assert {link.removeprefix("#") for link in links} <= set(page.ids)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest(SCRIPT)}'"
    assert ("meta", "content", policy) in page.attributes
    *data, script = re.findall(r"<script([^>]*)>(.*?)</script>", source, re.DOTALL)
    assert all(kind == ' type="application/json"' for kind, _ in data) and script[0] == ""
    assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() == digest(
        SCRIPT
    )  # else it would not run
    assert len(page.ids) == len(set(page.ids))


def test_the_same_run_gives_the_same_bytes(finished_run: Path, tmp_path: Path) -> None:
    first, second = (write_report(finished_run, tmp_path / name) for name in ("one.html", "new/folder/two.html"))
    assert first == tmp_path / "one.html" and first.read_bytes() == second.read_bytes()
    assert write_report(finished_run, tmp_path) == tmp_path / "report.html"
    assert not list(tmp_path.rglob("*.partial"))


def test_hostile_text_stays_text(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "a<b>&'c"
    shutil.copytree(finished_run, run)
    sample = {"id": "a", "question": EVIL, "context": f"before {EVIL} after", "answers": [EVIL], "prediction": EVIL}
    scores = {"f1": 50.0, "exact": 40.0, EVIL: 1.0, EVIL + "_loss": 2.0}
    folder = run / "evaluations" / "02-qa"
    (folder / "squad.json").write_text(json.dumps({"scores": scores, "samples": [sample]}))
    nbest = {"a": [{"text": EVIL, "probability": 1.0}, {"text": EVIL + "2", "probability": 0.5}]}
    (folder / "squad.nbest.json").write_text(json.dumps(nbest))
    (run / "baselines.json").write_text(json.dumps([{"name": EVIL, "exact": 1.0, "f1": 2.0}]))
    (run / "environment.json").write_text(
        json.dumps({"date": EVIL, "device_kind": EVIL, "versions": {"jax": EVIL}, EVIL: 1})
    )
    (run / "config.yaml").write_text(f"# {EVIL}\nstages:\n- name: {json.dumps(EVIL)}\n  steps: 3\n")
    with (run / "metrics.jsonl").open("a") as file:
        line = {"stage": EVIL, "step": 1, "name": EVIL, "scores": {EVIL: 1.0, f"{EVIL}_loss": 3.0}}
        file.write("\n" + json.dumps(line | {"kind": "eval"}) + "\n")
        file.write(json.dumps(line | {"kind": "train", f"{EVIL}_loss": 2.0, "loss": 1.0}) + "\n")
    page, source = report(run)
    assert not {"img", "b>"} & set(page.tags) and page.tags.count("script") == len(page.data) + 1
    assert "onerror" not in {key for _, key, _ in page.attributes}
    assert page.text.count("<script>alert('x')</script>") > 8
    assert "<mark>&lt;script&gt;" in source


FORGED: list[tuple[str, str, object]] = [  # kind of line, key, value
    ("train", "loss", EVIL), ("train", "loss", [EVIL]), ("train", "loss", {EVIL: EVIL}), ("train", "elapsed", EVIL),
    ("train", "episode", EVIL), ("train", "trainable_parameters", EVIL), ("train", "grad_norm", EVIL),
    ("train", "mfu", [EVIL]), ("train", EVIL, 1.0), ("eval", "name", [EVIL]), ("eval", "scores", {"f1": EVIL}),
    ("eval", "scores", {"f1": [EVIL]}), ("eval", "scores", EVIL), ("event", "event", EVIL), ("event", "time", EVIL),
    ("event", "episode", EVIL),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "key", "value"), FORGED)
def test_a_forged_record_is_text(finished_run: Path, tmp_path: Path, kind: str, key: str, value: object) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    last = {line["stage"]: i for i, line in enumerate(lines) if line["kind"] == kind}
    for place in last.values():
        lines[place][key] = value
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page, source = report(run)
    assert "img" not in page.tags and "<script>alert" not in source
    assert page.tags.count("script") == len(page.data) + 1


@pytest.mark.parametrize("left", ["config", "metrics"])
def test_a_run_that_has_only_begun(tmp_path: Path, left: str) -> None:
    if left == "config":
        (tmp_path / "config.yaml").write_text("stages:\n- {name: pretrain, steps: 10}\n- {name: qa, epochs: 2}\n")
        page, _ = report(tmp_path)
        assert "0 of 2 stages finished" in page.text and page.text.count("not started") == 2
        assert "Stage 2: qa" in page.text and "No steps are logged yet." in page.text
    else:
        (tmp_path / "metrics.jsonl").write_text(
            '{"kind":"train","stage":"pretrain","step":7,"loss":null,"episode":1}\n'
        )
        page, _ = report(tmp_path)
        assert "0 of 1 stages finished" in page.text and "Stage 1: pretrain not finished" in page.text
        assert "Parameters pretrain 7" not in page.text and "Steps pretrain 7" in page.text  # nothing else is known


def test_a_stopped_stage_shows_how_far_it_came(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    shutil.copytree(finished_run, run)
    kept = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"qa"' not in line]
    (run / "metrics.jsonl").write_text("\n".join(kept[:51]))
    shutil.rmtree(run / "evaluations")
    page, _ = report(run)
    assert "0 of 2 stages finished" in page.text and "500 of 1,000" in page.text
    assert "Stage 2: qa not started" in page.text and "Scores" not in page.text


def test_broken_files_are_left_out(tmp_path: Path) -> None:
    good = {"kind": "train", "stage": "pretrain", "step": 1, "loss": 2.0}
    lines = [
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"null",
        b'{"kind": "train"}',
        json.dumps(good).encode(),
        b'{"kind": "eval", "st',
    ]
    lines.insert(3, b'{"kind": "eval", "stage": "pretrain", "step": 1, "name": "x", "scores": null}')
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "config.yaml").write_text("stages: [unclosed\n")
    for name, text in (("environment.json", "[]"), ("baselines.json", '[1, {"name": "x", "f1": "high"}]')):
        (tmp_path / name).write_text(text)
    folder = tmp_path / "evaluations" / "01-pretrain"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{")
    (folder / "b.json").write_text(
        '{"scores": {"f1": 3.0, "exact": null}, "samples": [1, {"question": 2}], "step": "x"}'
    )
    page, _ = report(tmp_path)
    assert "5 lines of metrics.jsonl could not be read" in page.text and "F1 3.00" in page.text
    assert [line["loss"] for line in read_run(tmp_path).stages[0].train] == [2.0]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="is not a run folder") as error:
            write_report(folder)
        assert "\n" not in str(error.value)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UserError, match="is a file; name the folder of a run"):
        write_report(tmp_path / "file.txt")
    assert not (tmp_path / "report.html").exists()


def test_an_output_that_cannot_be_written(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_report(finished_run, tmp_path / "file" / "report.html")


# ---- curves of real runs: not finite, resumed, long -----------------------------------------------------------------


def write_lines(run: Path, lines: list[dict]) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def train_line(step: int, **numbers: object) -> dict:
    return {"kind": "train", "stage": "s", "step": step, "elapsed": step * 0.5, **numbers}


def test_values_that_are_not_finite_and_resumes_are_marked(tmp_path: Path) -> None:
    lines = [train_line(step, loss=None if step in (30, 40) else 1.0, grad_norm=1.0) for step in range(10, 101, 10)]
    lines[6] = train_line(70, loss=float("nan"))  # written by hand: JSON has no NaN
    lines.insert(5, {"kind": "event", "stage": "s", "step": 50, "event": "resume"})
    page, source = report(write_lines(tmp_path / "run", lines))
    data = page.chart("Loss")
    assert data["series"][0]["y"] == [1, 1, None, None, 1, 1, None, 1, 1, 1]
    assert [50, "resumed from step 50"] in data["marks"]
    assert [x for x, text in data["marks"] if "not finite" in text] == [30, 40, 70]
    loss = re.search(r"<figure.*?</figure>", source, re.DOTALL)[0]
    assert loss.count('class="mark nonfinite"') == 3 and loss.count('class="mark resume"') == 1
    line = re.search(r'class="line"[^>]* d="([^"]*)"', loss)[1]
    assert line.count("M") == 3  # two gaps
    assert "Red ticks at the top: values that are not finite." in page.text


def test_many_points_keep_their_spikes(tmp_path: Path) -> None:
    lines = [train_line(step, loss=9.0 if step == 7777 else 1.0 + step % 2) for step in range(1, 20_001)]
    page, source = report(write_lines(tmp_path / "run", lines))
    (loss,) = page.chart("Loss")["series"]
    assert len(loss["x"]) == 400 and sum(loss["n"]) == 20_000
    assert max(loss["high"]) == 9 and min(loss["low"]) == 1
    assert 'class="range"' in source and len(source) < 150_000


def test_huge_ratios_are_on_a_logarithmic_axis(tmp_path: Path) -> None:
    lines = [
        train_line(step, loss=1e9 if step == 3 else 1.0, grad_norm=1e300 if step == 5 else 0.5) for step in range(9)
    ]
    page, _ = report(write_lines(tmp_path / "run", lines))
    assert page.chart("Loss")["log"] and page.chart("Gradient norm")["log"] and "Logarithmic axis." in page.text


# ---- results of evaluations -----------------------------------------------------------------------------------------


def with_evaluation(run: Path, name: str, content: dict) -> Path:
    write_lines(run, [train_line(1, loss=1.0)])
    folder = run / "evaluations" / "00-s"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return run


def test_numbers_and_errors_by_class(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    guesses = np.concatenate([np.repeat([0, 2], [40, 10]), np.repeat([0], 30), np.repeat([2, 0], [15, 5])])
    names = ["a", "<b>", "c" * 300, "d"]
    details = label_details(np.eye(4)[guesses], labels, names)
    assert details["classes"]["confusion"] == [[40, 0, 10, 0], [30, 0, 0, 0], [5, 0, 15, 0], [0, 0, 0, 0]]
    error = {"text": EVIL, "text_b": "\u202eabc", "label": "a", "predicted": EVIL, "probability": 0.987}
    content = {"scores": {"accuracy": 55.0}, "samples": [error]} | details
    page, source = report(with_evaluation(tmp_path / "run", "dev", content))
    assert source.count("<td class=hit") == 4 and "98.7%" in page.text
    titles = [value for _, key, value in page.attributes if key == "title"]
    assert f"a, predicted as {'c' * 300}: 10 of 50 (20.0%)" in titles
    assert "a 53.33 80.00 64.00 50 <b> 0.00 0.00 0.00 30" in page.text  # 40/75, 40/50; never predicted
    assert "d 0.00 0.00 0.00 0 macro average 37.78 51.67 43.56 100 weighted average 38.67 55.00 45.33 100" in page.text


def test_many_classes_list_their_confusions(tmp_path: Path) -> None:
    labels = np.arange(300) % 100
    logits = np.eye(100)[np.where(labels == 7, 8, labels)]
    details = label_details(logits, labels, None)
    assert details["classes"]["confused"] == [[7, 8, 3]] and "confusion" not in details["classes"]
    page, _ = report(with_evaluation(tmp_path / "run", "dev", {"scores": {"accuracy": 99.0}} | details))
    assert "7 8 3" in page.text and "The 40 of 100 classes with the lowest F1." in page.text


def test_several_labels_have_figures_of_each_and_no_matrix(tmp_path: Path) -> None:
    logits = np.float32([[3, -3, 2, -1], [3, 3, -2, -1], [-3, -3, -2, -1], [-3, 3, 2, -1]])
    truth = np.uint8([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
    details = multi_label_details(logits, truth, ["a", "<b>", "c", "never"], 0.5)
    error = {"text": "t", "label": "a", "predicted": "a, c"}
    content = {"scores": multi_label_scores(logits, truth), "samples": [error]} | details
    page, source = report(with_evaluation(tmp_path / "run", "dev", content))
    assert "<b>" not in source.split("Classes: dev")[1] and 'class="confusion"' not in source
    assert (
        "A text has the labels with a probability of 0.5 or more. 1 of 4 texts have no label; 1 are predicted"
        in page.text
    )
    assert "c 50.00 100.00 66.67 1 50.00 83.33" in page.text and "never 0.00 0.00 0.00 0 – –" in page.text
    assert "micro average 83.33 100.00 90.91 5" in page.text and "macro average 62.50 75.00 66.67 5" in page.text
    assert "The errors in which the model was most certain." in page.text and "a, c" in page.text


def test_a_regression_is_a_scatter_plot(tmp_path: Path) -> None:
    labels = np.linspace(0, 5, 900)
    details = label_details(labels[:, None] + 0.25, labels, None)
    assert len(details["regression"]["points"]) == 500 and details["regression"]["of"] == 900
    page, _ = report(with_evaluation(tmp_path / "run", "sts", {"scores": {"pearson": 100.0}} | details))
    chart = page.chart("Predictions by label")
    assert chart["scatter"] and chart["series"][0]["x"][-1] == 5 and chart["series"][0]["y"][-1] == 5.25
    assert "500 of 900 examples." in page.text and "pearson 100.00" in page.text


def test_masked_tokens_and_targets(tmp_path: Path) -> None:
    guesses = [{"token": "</span><script>", "probability": 0.5}, {"token": "مرحبا", "probability": 0.25}]
    mask = {"gold": "مرحبا", "shown": "[MASK]", "guesses": guesses}
    target = {"inputs": "x" * 5000, "targets": "<extra_id_0> \ud800", "prediction": ""}
    content = {
        "scores": {"loss": 1.0},
        "masked": [["say ", mask, " now 😀"], ["no mask"], 3],
        "teacher_forced": [target],
    }
    page, source = report(with_evaluation(tmp_path / "run", "mlm", content))
    assert "say مرحبا 1 now 😀" in page.text and "1 مرحبا : </span><script> 50.0% · مرحبا 25.0%" in page.text
    assert source.count('<article class="sample') == 2 and 'class="slot fair"' in source
    assert "(5,000 characters)" in page.text and "<extra_id_0> ?" in page.text and "(nothing)" in page.text


@pytest.mark.parametrize("broken", [
    {"classes": {"names": ["a"], "support": [1, 2], "predicted": [1], "correct": [1]}}, {"classes": 3},
    {"classes": {"names": ["a"], "support": [1], "predicted": [1], "correct": [5], "confusion": "x"}},
    {"regression": {"points": [[1], "x", [None, 2]]}}, {"masked": [[{"guesses": 4}]], "teacher_forced": [[1]]},
    {"classes": {"names": ["a", "b"], "support": [1, 1], "predicted": [1, 1], "correct": [1, 1], "confusion": [[1]]}},
])  # fmt: skip
def test_damaged_details_are_left_out(tmp_path: Path, broken: dict) -> None:
    page, _ = report(with_evaluation(tmp_path / "run", "dev", {"scores": {"accuracy": 50.0}} | broken))
    assert "accuracy 50.00" in page.text and "confusion" not in " ".join(
        v for _, k, v in page.attributes if k == "class"
    )


# ---- pieces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers, prediction, expected",
    [
        (["The Grotto"], "grotto!", "right"),  # articles, case and punctuation do not count (SQuAD's normalization)
        (["no", "a copper statue"], "copper statue", "right"),
        (["Saint Bernadette Soubirous"], "Bernadette", "partly"),  # precision 1, recall 1/3: F1 = 0.5
        (["a golden statue of the Virgin Mary"], "the Basilica of the Sacred Heart", "wrong"),  # "of" alone: F1 2/9
        ([], "", "right"), ([], "something", "wrong"), (["something"], "", "wrong"),
    ],
)  # fmt: skip
def test_verdicts(answers: list[str], prediction: str, expected: str) -> None:
    assert verdict(answers, prediction) == expected


def test_excerpts_mark_answer_and_prediction() -> None:
    text = "x " * 400 + "the red fox & the dog" + " y" * 400
    shown = excerpt(text, "red fox", "fox & the dog")
    assert '<mark>red fox</mark><mark class="said"> &amp; the dog</mark>' in shown
    assert shown.startswith("… ") and shown.endswith(" …") and len(shown) < 500
    assert excerpt("short", "absent", "") == "short"
    assert excerpt("a b a b a", "b a", "b") == "a <mark>b a</mark> b a"  # the first answer, the prediction inside it
    far = excerpt("gold " + "z " * 2000 + "said", "gold", "said")
    assert "<mark>gold</mark>" in far and "said" not in far


@given(st.text("ab <&", max_size=60), st.text("ab <&", max_size=6), st.text("ab <&", max_size=6))
def test_excerpts_never_change_the_text(context: str, answer: str, prediction: str) -> None:
    page = Page(excerpt(context, answer, prediction))
    assert "".join(page.words) == context  # shorter than an excerpt: shown whole
    assert ("mark" in page.tags) == bool((answer and answer in context) or (prediction and prediction in context))


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=300), st.integers(1, 50))
def test_fewer_points_keep_extremes_and_order(values: list[float], most: int) -> None:
    curve = downsample(np.arange(len(values), dtype=float), values, most)
    finite = np.array(values)[np.isfinite(values)]
    assert len(curve.x) == len(curve.y) == min(len(values), most) and np.all(np.diff(curve.x) > 0)
    if len(finite):
        assert np.nanmin(curve.low) == finite.min() and np.nanmax(curve.high) == finite.max()
    shown = np.isfinite(curve.y)
    assert np.all(curve.low[shown] <= curve.y[shown]) and np.all(curve.y[shown] <= curve.high[shown])
    if not curve.is_exact:
        assert curve.counts.sum() == len(finite)


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(2, 10))
def test_ticks_are_round_and_inside(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    assert len(found) <= 2 * most + 2 and found == sorted(found)
    assert all(low - span * 1e-3 - abs(low) * 1e-9 <= t <= low + span * 1.001 + abs(low) * 1e-9 for t in found)


def test_ticks_of_a_logarithmic_axis() -> None:
    assert ticks(0.5, 2e4, 5, log=True) == [1, 10, 100, 1000, 1e4]
    assert ticks(16, 800, 8, log=True) == [20, 50, 100, 200, 500]
    assert ticks(10, 100, 4, integers=True) == [20, 40, 60, 80, 100]


def test_smoothing_keeps_lines_and_beginnings() -> None:
    line = np.arange(50.0)
    assert np.allclose(smooth(line, 5)[:45], line[:45])
    assert np.allclose(smooth(np.ones(7), 3), 1)
    assert smooth(np.array([9.0, 1, 1, 1]), 2)[0] == 9
    assert np.isclose(smooth(np.array([0.0, 0, 3, 0, 0, 0]), 1)[1], 1.0)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("accuracy", 85.0, "85.00"),
        ("mlm_accuracy", 0.85, "85.0%"),
        ("average", 83.284, "83.28"),
        ("squad_em", 80.9, "80.90"),
    ],
)
def test_shares_of_training_and_percentages_of_tasks_are_told_apart(key: str, value: float, shown: str) -> None:
    assert parts.score_text(key, value) == shown
