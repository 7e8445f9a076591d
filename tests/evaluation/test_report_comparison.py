"""Several runs on one page: options that differ, scores, curves by step, tokens and time; and the same as JSON."""

import json
from pathlib import Path

import pytest
import yaml
from report_page import Page

from bertjax.cli.main import main
from bertjax.config.loading.load import dump, load
from bertjax.errors import UserError
from bertjax.report import comparison, write_comparison

STAGE = {"objective": {"kind": "mlm_nsp"}, "data": "text", "batch_size": 8, "optimizer": {"learning_rate": 1e-3}}
TASKS = {"text": {"source": {"kind": "text", "files": ["a.txt"]}, "preprocess": {"sequence_length": 32}}}
MODEL = {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8,
         "max_position_embeddings": 32}  # fmt: skip


def write_run(
    root: Path, name: str, rate: float, stages: tuple[str, ...] = ("s",), loss: float = 1.0, data: str = "d"
) -> Path:
    """A finished run of 100 steps a stage, 1000 tokens and half a second each; the first line has compiled."""
    run = root / name
    run.mkdir(parents=True)
    sections = [STAGE | {"name": stage, "steps": 100, "optimizer": {"learning_rate": rate}} for stage in stages]
    config = {
        "model": MODEL | {"max_position_embeddings": 32},
        "tasks": TASKS,
        "stages": sections,
        "run": {"name": name},
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (run / "config.yaml").write_text(dump(load(root / f"{name}.yaml")))
    lines = []
    for place, stage in enumerate(stages):
        for step in range(10, 101, 10):
            timed = {"tokens_per_second": 2000.0, "step_seconds": 0.5} if step > 10 else {"tokens_per_second": None}
            elapsed = 7 + 100 * place + step / 2
            numbers = {"loss": loss + 10 / step, "learning_rate": rate, "elapsed": elapsed}
            lines.append({"kind": "train", "stage": stage, "step": step} | numbers | timed)
        lines.append(
            {"kind": "eval", "stage": stage, "step": 100, "name": "dev", "scores": {"mlm_loss": loss, "f1": 50.0}}
        )
        lines.append({"kind": "event", "stage": stage, "step": 100, "event": "stage_end"})
        folder = run / "evaluations" / f"{place:02}-{stage}"
        folder.mkdir(parents=True)
        scores = {"mlm_loss": loss, "f1": 50.0 + rate, "total": 7}
        (folder / "dev.json").write_text(json.dumps({"step": 100, "scores": scores, "made_from": {"data": data}}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def page_of(paths: list[Path], output: Path) -> tuple[Page, str]:
    source = write_comparison(paths, output).read_text(encoding="utf-8")
    return Page(source), source


def test_options_scores_and_curves(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 1e-3), write_run(tmp_path, "b", 2e-3, loss=2.0), write_run(tmp_path, "c", 1e-3)]
    page, source = page_of(runs, tmp_path / "page.html")
    assert "stages. s. optimizer. learning_rate 0.001 0.002 0.001" in page.text
    assert "stages. s. steps" not in page.text
    assert "s dev MLM loss 1.0000 2.0000 1.0000" in page.text and "s dev F1 50.00 50.00 50.00" in page.text
    assert source.count('<span class="best">1.0000</span>') == 2 and "total" not in page.text
    losses = [data for data in page.data if data["series"][0]["label"] == "a" and data["series"][0]["y"][0] == 2]
    assert [data["xUnit"] for data in losses] == ["step", "tokens", "seconds"]
    steps, tokens, seconds = ([series["x"] for series in data["series"]] for data in losses)
    assert steps[0] == list(range(10, 101, 10)) and len(steps) == 3
    assert tokens[0] == [1000 * step for step in steps[0]]  # the compiling line by the median
    assert seconds[0] == [7 + step / 2 for step in steps[0]]
    assert [series["colour"] for series in losses[0]["series"]] == [1, 2, 3]


def test_stages_align_by_name(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 1e-3, ("s", "t")), write_run(tmp_path, "b", 1e-3, ("t", "u"))]
    page, source = page_of(runs, tmp_path / "page.html")
    assert "Only a has the stage s. Only b has the stage u." in page.text
    assert [text in source for text in ("<h2>Stage t</h2>", "<h2>Stage s</h2>", "<h2>Stage u</h2>")] == [
        True,
        False,
        False,
    ]
    assert "stages. s (present) not set" in page.text
    times = [data for data in page.data if data["xUnit"] == "seconds"][0]["series"]
    assert times[0]["x"][-1] == 100 and times[1]["x"][-1] == 57  # from the start of the stage in each run


def test_runs_with_nothing_in_common(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 1e-3, ("s",)), write_run(tmp_path, "b", 1e-3, ("t",))]
    page, _ = page_of(runs, tmp_path / "page.html")
    assert "These runs have no stage in common" in page.text and "Only b has the stage t." in page.text
    assert "No score is in two of these runs." in page.text and not page.data


def test_scores_on_different_data_are_marked(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 1e-3), write_run(tmp_path, "b", 1e-3, data="other")]
    page, _ = page_of(runs, tmp_path / "page.html")
    assert "s dev † F1" in page.text and "Not scored on the same data" in page.text


def test_names_are_told_apart_and_runs_named_once(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "x", "a", 1e-3), write_run(tmp_path / "y", "a", 1e-3)
    assert [run.label for run in comparison.read_runs([one, two])] == ["x/a", "y/a"]
    with pytest.raises(UserError, match="is named twice"):
        comparison.read_runs([one, one / ".." / "a"])


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, name, 1e-3) for name in ("a", "b")]
    (runs[1] / "config.yaml").write_text("stages: [{name: s}]\nfuture: 1\n")
    page, _ = page_of(runs, tmp_path / "page.html")
    assert "The configuration of b could not be read and is left out." in page.text and "Stage s" in page.text


def test_the_command(tmp_path: Path, capsys, monkeypatch) -> None:
    runs = [write_run(tmp_path, "a", 1e-3), write_run(tmp_path, "b", 2e-3)]
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 0 and capsys.readouterr().out == "comparison.html\n"
    assert main(["report", "a", "b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == {"stages.s.optimizer.learning_rate": {"a": 1e-3, "b": 2e-3}}
    assert found["scores"][0]["values"] == {"a": 1.0, "b": 1.0} and found["scores"][0]["same_data"] is True
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "stage": "s", "step": 101, "loss": NaN, "note": "\\ud800"}\n')
    assert main(["report", "a", "--json", "--output", "a.json"]) == 0 and capsys.readouterr().out == "a.json\n"
    (stage,) = json.loads(Path("a.json").read_text())["stages"]
    assert (
        stage["train"][-1]["loss"] is None
        and stage["train"][-1]["note"] == "?"
        and stage["evaluations"][0]["scores"]["total"] == 7
    )
    assert not (runs[0] / "report.html").exists()
    assert main(["report", "a", "a.json"]) == 2
    assert capsys.readouterr().err == "a.json: is a file; name the folder of a run, which 'bertjax train' wrote\n"
