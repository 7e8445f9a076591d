"""Runs in buckets with a hierarchical namespace, where folders stay when their objects are deleted.

An empty folder is no run, no stage, no checkpoint and no step, and is not in the way of one. Where gcsfs is installed,
it is gcsfs that asks the server of tests/kit/gcs_server.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import gcs_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gcs_server import Server

from bertjax.cli.main import main
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.storage import folders, remote, remote_folder
from bertjax.storage.mirror import Mirror
from bertjax.training.checkpoint.locate import find_remote, find_stage_names
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of gcsfs
FOLDER = "gs://bucket/r/checkpoints/00-a"
STEPS = "r/checkpoints/00-a"
TREE = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(5)}
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with gcs_server.serve() as server:
        server.folders = {"bucket": set()}
        gcs_server.install(server, tmp_path, monkeypatch)
        yield server


def empty(server: Server, prefix: str) -> None:
    """Delete every object below a prefix, as `gcloud storage rm gs://bucket/PREFIX**` does: its folders stay."""
    names = server.names(prefix)
    assert names
    for name in names:
        del server.objects["bucket"][name]
    assert any(name.startswith(prefix) for name in server.folders["bucket"])


def manager(folder: str = FOLDER, **policy: int) -> CheckpointManager:
    return CheckpointManager(remote.as_path(folder), CheckpointPolicy(**policy))


def save(steps: CheckpointManager, step: int) -> None:
    steps.save(step, jax.tree.map(lambda x: x + step, TREE), {"step": step, "config": {}})
    steps.wait()


@pytest.mark.parametrize("inside", ["", "state/d/"])
def test_an_empty_folder_is_no_step_and_makes_room_for_one(bucket: Server, inside: str):
    with manager() as steps:
        save(steps, 1)
        bucket.folders["bucket"] |= gcs_server.folders_above(f"{STEPS}/2/{inside}")
        assert sorted(folders.list_folders(remote.as_path(FOLDER))) == ["1", "2"]  # it is there
        assert steps.committed_steps() == [1] == CheckpointReader(remote.as_path(FOLDER)).committed_steps()
        save(steps, 2)
        assert steps.committed_steps() == [1, 2]
        np.testing.assert_array_equal(steps.restore(LIKE)[1]["w"], TREE["w"] + 2)


def test_the_next_writer_removes_empty_folders(bucket: Server):
    with manager() as steps:
        save(steps, 1)
        save(steps, 2)
    empty(bucket, f"{STEPS}/2/")
    with manager() as steps:
        assert steps.committed_steps() == [1]
        assert not [name for name in bucket.folders["bucket"] if name.startswith(f"{STEPS}/2/")]


def test_removed_steps_leave_no_folders(bucket: Server):
    with manager(keep_last=2) as steps:
        for step in (1, 2, 3):
            save(steps, step)
        assert steps.committed_steps() == [2, 3]
    assert not bucket.names(f"{STEPS}/1/")
    assert not [name for name in bucket.folders["bucket"] if name.startswith(f"{STEPS}/1/")]


@pytest.mark.parametrize("marked", [True, False], ids=["a run", "copied from a disk"])
def test_an_empty_step_or_stage_is_not_chosen(bucket: Server, marked: bool):
    for stage, step in (("00-a", 1), ("00-a", 2), ("01-b", 7), ("02-c", 1)):
        with manager(f"gs://bucket/r/checkpoints/{stage}") as steps:
            save(steps, step)
    empty(bucket, "r/checkpoints/00-a/2/")
    empty(bucket, "r/checkpoints/01-b/7/")
    empty(bucket, "r/checkpoints/02-c/")
    if not marked:
        del bucket.objects["bucket"][f"{STEPS}/1/commit_success.txt"]
    copy = remote_folder.fetch("gs://bucket/r", weights=True)
    there = {path.relative_to(copy).parts[1:3] for path in copy.rglob("*") if path.is_file()}
    assert there == {("00-a", "1")}
    if marked:
        assert find_stage_names(remote.as_path("gs://bucket/r")) == ["a"]
        assert find_remote("gs://bucket/r", stage="a") == "checkpoints/00-a/1"


def test_small_files_beside_empty_folders(bucket: Server, tmp_path: Path):
    def opened(name: str) -> Mirror:
        made = Mirror(remote.as_path("gs://bucket/r/x"), tmp_path / name / "x")
        made.open(True, 0)
        return made

    first = opened("a")
    (tmp_path / "a/x/evaluations/00-a").mkdir(parents=True)
    for name in ("evaluations/00-a/dev.json", "metrics.jsonl"):
        (tmp_path / "a/x" / name).write_text("{}\n")
    first.start()
    (tmp_path / "a/x/evaluations/00-a/dev.json").unlink()
    first.close(failed=False)
    assert bucket.names("r/x/") == ["r/x/metrics.jsonl"] and "r/x/evaluations/00-a/" in bucket.folders["bucket"]
    second = opened("b")
    assert [path.name for path in (tmp_path / "b/x").rglob("*") if path.is_file()] == ["metrics.jsonl"]
    second.close(failed=False)
    empty(bucket, "r/x/")  # the run is deleted, its folders stay
    third = opened("a")
    assert not (tmp_path / "a/x").exists()
    third.close(failed=False)


@pytest.mark.slow
def test_a_run_ends_is_read_and_starts_again_among_empty_folders(
    bucket: Server, tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tiny_project)
    words = ["train", "tiny.yaml", "stages.pretrain.steps=3", "stages.qa.steps=4"]
    run = ["run.root=gs://bucket/runs"]

    def digest(text: str) -> dict:
        return json.loads(text)["leaves"]

    name = "checkpoints/01-qa/4/digest/metadata"
    assert main([*words, *run]) == 0
    first = digest(bucket.text(f"runs/tiny/{name}"))
    assert main([*words, f"run.root={tmp_path}/local"]) == 0
    assert first == digest((tmp_path / "local/tiny" / name).read_text())
    empty(bucket, "runs/tiny/checkpoints/01-qa/4/")
    capsys.readouterr()
    assert main(["inspect", "gs://bucket/runs/tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    assert main([*words, *run]) == 0  # goes on from the step before
    assert digest(bucket.text(f"runs/tiny/{name}")) == first
    assert main(["evaluate", "gs://bucket/runs/tiny"]) == 0
    empty(bucket, "runs/tiny/")
    capsys.readouterr()
    for command in ("inspect", "evaluate"):
        assert main([command, "gs://bucket/runs/tiny"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "gs://bucket/runs/tiny" in error, error
    assert main([*words, *run]) == 0
    assert "pretrain 0 | start" in capsys.readouterr().out
    assert digest(bucket.text(f"runs/tiny/{name}")) == first
