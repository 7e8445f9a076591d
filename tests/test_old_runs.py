"""Run folders made before the packages were rearranged (tests/golden/old_runs): they restore, score and go on as then.

Only the command line and files are used, so that no move of a module changes what is tested.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertjax.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT / "tests" / "golden" / "old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text())
NAMES = ("bert", "t5")
STEPS = [(name, path) for name in NAMES for path in EXPECTED[name]["checkpoints"]]
NEWEST = [(name, list(EXPECTED[name]["checkpoints"])[-1]) for name in NAMES]
EARLIER = [step for step in STEPS if step not in NEWEST]
TIMED = {"tokens_per_second", "step_seconds", "data_wait", "mfu", "memory_bytes", "elapsed"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Unpacks a project and makes it the current folder."""

    def unpack(name: str) -> Path:
        with tarfile.open(OLD / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        for path in (tmp_path / name).glob("*.yaml"):  # a person's files, where old keys are refused
            path.write_text(path.read_text().replace("compile_cache:", "compilation_cache_dir:"))
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / name

    return unpack


def run(*argv: str, code: int = 0) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main(list(argv))
    assert found == code, (argv, found, out.getvalue(), err.getvalue())
    return out.getvalue()


def run_alone(*argv: str) -> str:
    """In a process of its own, with one device: on the machine that made the archives the numbers are the same bits."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "bertjax", *argv]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, (argv, found.returncode, found.stdout, found.stderr)
    return found.stdout


def near(found: object, expected: object, relative: float = 2e-3, absolute: float = 5e-4) -> bool:
    """Whether two JSON values are equal but for the rounding of their numbers."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and found.keys() == expected.keys() and all(
            near(found[key], expected[key], relative, absolute) for key in expected
        )  # fmt: skip
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(
            near(*pair, relative, absolute) for pair in zip(found, expected, strict=True)
        )  # fmt: skip
    if isinstance(expected, float):
        return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=relative, abs_tol=absolute)
    return found == expected


def metrics(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if line["kind"] in ("train", "eval")]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def tensors(folder: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return dict(sorted(load_file(f"{folder}/model.safetensors").items()))


def sha256(array: np.ndarray) -> str:
    x = np.ascontiguousarray(array)
    return hashlib.sha256(f"{x.dtype} {list(x.shape)} ".encode() + x.tobytes()).hexdigest()


def stores(prepared: Path) -> dict[str, dict]:
    """Number of rows and sha256 of the rows of each store, by the store's name."""
    from array_record.python.array_record_module import ArrayRecordReader

    found = {}
    for manifest in sorted(prepared.glob("*/manifest.json")):
        digest, count = hashlib.sha256(), 0
        for shard in json.loads(manifest.read_text())["shards"]:
            reader = ArrayRecordReader(str(manifest.parent / shard["file"]))
            for row in reader.read_all():
                digest.update(row)
                count += 1
            reader.close()
        found[manifest.parent.name] = {"rows": count, "sha256": digest.hexdigest()}
    return found


def check_stores(name: str) -> None:
    """The old stores are as they were, and whatever was prepared since holds the rows of an old one of its kind."""
    old, now = EXPECTED[name]["stores"], stores(Path("kept/prepared"))
    assert {key: now.get(key) for key in old} == old
    for store, rows in now.items():
        same = [old[other] for other in old if other.partition("-")[0] == store.partition("-")[0]]
        assert store in old or rows in same, store


def check_scores(path: str, about: dict, command: Callable[..., str]) -> None:
    command("evaluate", str(Path(path).parents[2]), "--stage", about["stage"], "--step", str(about["step"]),
            "--name", about["evaluation"], "--output", "scores.json")  # fmt: skip
    assert near(json.loads(Path("scores.json").read_text())["scores"], about["scores"])


def test_the_archives_hold_no_path_of_the_machine_that_made_them(project):
    for name in NAMES:
        for path in project(name).rglob("*"):
            if path.is_file():
                held = path.read_bytes()
                assert not any(root in held for root in (b"/home/", b"/tmp/", b"/root/", b"/Users/")), path


@pytest.mark.parametrize(("name", "path"), NEWEST)
def test_the_newest_step_has_the_scores_of_then(project, name, path):
    project(name)
    check_scores(path, EXPECTED[name]["checkpoints"][path], run_alone)
    own = Path(f"kept/{name}/evaluations/01-qa/text_to_text.predictions.json")
    if own.exists():
        assert json.loads(Path("scores.predictions.json").read_text()) == json.loads(own.read_text())
    check_stores(name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), EARLIER)
def test_an_earlier_step_has_the_scores_of_then_without_prepared_data(project, name, path):
    """Nothing but the checkpoint and the sources is needed: what is prepared again holds the same rows."""
    project(name)
    kept = Path("kept/prepared").rename("elsewhere")
    check_scores(path, EXPECTED[name]["checkpoints"][path], run)  # on eight devices
    new, old = stores(Path("kept/prepared")), stores(kept)
    assert all(rows in old.values() for rows in new.values())


def said_then(argv: list[str]) -> Any:
    """What a command says now, without the list of answers, which `predict generate` did not print then."""
    found = json.loads(run(*argv))
    for one in found if argv[1] == "generate" else ():
        assert len(one.pop("answers")) == 1
    return found


@pytest.mark.parametrize(("name", "what"), [("bert", "fill-mask"), ("bert", "answer"), ("t5", "generate")])
def test_predictions_are_those_of_then(project, name, what):
    project(name)
    about = EXPECTED[name]["predict"][what]
    found = said_then(about["argv"])
    if what == "answer":
        assert found.pop("question") == "Where is the bee?"  # which was not printed then
    assert near(found, json.loads(about["stdout"]))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["generate-beam", "generate-sample"])
def test_beams_and_samples_are_those_of_then(project, what):
    project("t5")
    about = EXPECTED["t5"]["predict"][what]
    assert near(said_then(about["argv"]), json.loads(about["stdout"]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), STEPS)
def test_exported_tensors_are_those_of_then_bit_for_bit(project, name, path):
    project(name)
    expected = EXPECTED[name]["checkpoints"][path]["exported"]
    if expected is None:  # adapters: transformers has no place for them
        run("export", path, "hf", code=2)
        return
    run("export", path, "hf")
    assert {key: sha256(x) for key, x in tensors("hf").items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_inspect_and_report_read_an_old_run(project, name):
    project(name)
    said = json.loads(run("inspect", f"kept/{name}", "--json"))
    assert said
    run("inspect", f"{name}.yaml")
    run("report", f"kept/{name}", "--output", "report.html")
    page = Path("report.html").read_text(encoding="utf-8")
    assert "pretrain" in page and "qa" in page


def test_a_finished_run_stays_as_it_is(project):
    project("t5")
    before = {path: path.read_bytes() for path in Path("kept/t5").rglob("*") if path.is_file()}
    assert "every stage is finished" in run("train", "t5.yaml")
    assert {path: path.read_bytes() for path in Path("kept/t5").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_stage_under_way_goes_on_to_the_numbers_of_a_run_without_a_stop(project):
    project("bert")
    expected = EXPECTED["bert"]["finished"]
    run_alone("train", "bert.yaml")
    found = metrics(Path("kept/bert/metrics.jsonl"))
    assert near(found, expected["metrics"]), found
    check_stores("bert")
    run("export", "kept/bert", "hf")
    about = {key: [float(x.sum()), float(np.linalg.norm(x))] for key, x in tensors("hf").items()}
    assert near(about, expected["exported"], absolute=5e-3)


@pytest.mark.slow
def test_a_new_run_starts_from_an_old_one(project):
    project("bert")
    run_alone("train", "next.yaml")
    assert near(metrics(Path("kept/next/metrics.jsonl")), EXPECTED["bert"]["next"])


@pytest.mark.slow
def test_adapters_find_their_base_in_another_folder(project):
    """The stage's folder alone is copied; the weights below the adapters are named."""
    project("t5")
    about = EXPECTED["t5"]["predict"]["generate"]
    shutil.copytree("kept/t5/checkpoints/01-qa", "alone/qa")
    argv = ["alone/qa" if word == "kept/t5" else word for word in about["argv"]]
    Path("kept/t5/checkpoints/00-pretrain").rename("base")
    assert near(json.loads(run(*argv, "--base", "base")), json.loads(about["stdout"]))


@pytest.mark.slow
def test_prepare_verifies_the_stores_of_an_old_run(project):
    for name in NAMES:
        project(name)
        assert "as the manifest says" in run("prepare", f"{name}.yaml", "--verify")
        check_stores(name)
