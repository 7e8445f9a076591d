"""Runs in gs://, against a server of the JSON API: the bits of a run on a disk, and one line for what goes wrong.

The server is tests/kit/gcs_server.py, asked by tensorstore itself and by gcsfs where it is installed.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gcs_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tally
from gcs_server import Fault, Server

from bertjax.cli.main import main
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import StorageError, UserError
from bertjax.storage import lease, remote, remote_folder
from bertjax.storage.mirror import Mirror
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of gcsfs
ROOT = Path(__file__).parents[2]
SHORT = ["stages.pretrain.steps=3", "stages.qa.steps=4", "stages.qa.trainable=all"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with gcs_server.serve() as store:
        yield store


@pytest.fixture
def bucket(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An empty bucket, and this machine without any copies."""
    server.objects = {"bucket": {}}
    server.faults, server.requests = [], []
    gcs_server.install(server, tmp_path, monkeypatch)
    return server


# ---- a run ----------------------------------------------------------------------------------------------------------
def train(project: Path, root: str, *overrides: str) -> int:
    return main(["train", str(project / "tiny.yaml"), f"run.root={root}", *SHORT, *overrides])


def in_child(project: Path, root: str, *overrides: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "bertjax", "train", "tiny.yaml", f"run.root={root}", *SHORT, *overrides]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        words, cwd=project, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def digests(texts: Iterator[str]) -> list[dict]:
    return [json.loads(text)["leaves"] for text in texts]


@pytest.fixture(scope="module")
def trained(server: Server, tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """-> (the objects of a run that was killed at its last commit and resumed elsewhere, the same run on a disk)."""
    place = tmp_path_factory.mktemp("gcs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_project)
        server.objects, server.faults = {"bucket": {}}, [Fault("hold", "POST", "01-qa/4/commit_success.txt")]
        gcs_server.install(server, place / "first", patch)
        child = in_child(tiny_project, "gs://bucket/runs")
        if not server.held.wait(400):  # on a busy machine
            child.kill()
            raise AssertionError(child.communicate()[0].decode()[-3000:])
        child.send_signal(signal.SIGKILL)
        child.communicate()
        half = set(server.names())
        gcs_server.install(server, place / "second", patch)  # an empty disk
        assert train(tiny_project, "gs://bucket/runs") == 0
        whole = {bucket: dict(objects) for bucket, objects in server.objects.items()}
        assert train(tiny_project, str(place / "local")) == 0
    yield half, whole, place / "local" / "tiny"


@pytest.fixture
def run(trained: tuple, bucket: Server, tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the run, on another machine again."""
    monkeypatch.chdir(tiny_project)
    bucket.objects = {name: dict(objects) for name, objects in trained[1].items()}
    return "gs://bucket/runs/tiny"


def test_a_killed_run_goes_on_elsewhere_with_the_bits_of_a_local_one(trained: tuple, run: str, bucket: Server):
    half, _, local = trained
    assert "runs/tiny/checkpoints/01-qa/2/commit_success.txt" in half
    assert "runs/tiny/checkpoints/01-qa/4/state/manifest.ocdbt" in half
    assert "runs/tiny/checkpoints/01-qa/4/commit_success.txt" not in half and "runs/tiny/writer.lock" in half
    for stage, step in (("00-pretrain", 3), ("01-qa", 4)):
        name = f"checkpoints/{stage}/{step}/digest/metadata"
        ours, theirs = json.loads(bucket.text(f"runs/tiny/{name}")), json.loads((local / name).read_text())
        assert ours["leaves"] == theirs["leaves"] and ours["scores"] == theirs["scores"]
    assert not bucket.names("runs/tiny/writer.lock")

    def numbers(text: str) -> list[tuple]:
        lines = [json.loads(line) for line in text.splitlines()]
        return [(line["stage"], line["step"], line["loss"]) for line in lines if line["kind"] == "train"]

    steps = numbers(bucket.text("runs/tiny/metrics.jsonl"))
    assert steps == numbers((local / "metrics.jsonl").read_text()) and len(steps) == 7
    there = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    small = {name for name in there if not name.startswith("checkpoints/")}
    assert small == {n.removeprefix("runs/tiny/") for n in bucket.names("runs/tiny/") if "checkpoints/" not in n}
    for name in ("config.yaml", "tokenizer/tokenizer.json", "evaluations/01-qa/squad.predictions.json"):
        ours = bucket.text(f"runs/tiny/{name}").replace("gs://bucket/runs", str(local.parent))
        assert ours == (local / name).read_text(), name
    assert "resume" in bucket.text("runs/tiny/metrics.jsonl")


def test_a_finished_run_is_left_alone(run: str, bucket: Server, tiny_project: Path, capsys):
    before = dict(bucket.objects["bucket"])
    assert train(tiny_project, "gs://bucket/runs") == 0
    assert "gs://bucket/runs/tiny: every stage is finished" in capsys.readouterr().out
    assert bucket.objects["bucket"].keys() == before.keys()
    assert train(tiny_project, "gs://bucket/runs", "stages.qa.optimizer.learning_rate=1e-4") == 2
    assert "gs://bucket/runs/tiny/config.yaml: this run has other settings" in capsys.readouterr().err


def test_commands_read_the_run(run: str, bucket: Server, tmp_path: Path, capsys):
    def output(*words: str) -> str:
        assert main([*words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    before = set(bucket.names())
    found = json.loads(output("inspect", run, "--json"))
    assert found["checkpoint"] == f"{run}/checkpoints/01-qa" and found["steps"] == [2, 4] and found["step"] == 4
    assert json.loads(output("inspect", run, "--step", "2", "--json"))["step"] == 2
    scores = json.loads(output("evaluate", run))
    assert scores["step"] == 4 and scores["scores"]["squad"]
    assert json.loads(output("evaluate", run, "--stage", "pretrain"))["stage"] == "pretrain"
    assert json.loads(output("evaluate", run, "--step", "2"))["step"] == 2
    new = set(bucket.names()) - before
    assert new and all("/evaluations/01-qa/other/squad" in name for name in new), new
    answer = ("predict", "answer", run, "--question", "Where?", "--context", "The dog sleeps in the barn.")
    assert output(*answer, "--best", "squad/f1")
    page = tmp_path / "page.html"
    output("report", run, "--output", str(page))
    assert "squad" in page.read_text()
    assert json.loads(output("compare-predictions", run, run, "--data", "heldout.json", "--json"))
    found = output("qa-report", "--extractive", run, "--limit", "3", "--output", str(tmp_path / "qa.html"), "--json")
    assert json.loads(found)["questions"] == 3
    output("export", run, str(tmp_path / "hf"))
    assert (tmp_path / "hf" / "model.safetensors").is_file()


def test_results_stay_here_without_the_right_to_write(run: str, bucket: Server, capsys):
    bucket.faults = [Fault(403, "POST", "", 99)]
    assert main(["evaluate", run]) == 0
    assert "note: not uploaded: gs://bucket/runs/tiny/evaluations" in capsys.readouterr().err


def test_a_step_that_is_deleted_while_it_is_copied_is_not_missed(run: str, bucket: Server, monkeypatch):
    original = remote_folder._copy

    def late(*arguments) -> None:
        for name in bucket.names("runs/tiny/checkpoints/01-qa/4/"):
            bucket.objects["bucket"].pop(name)
        original(*arguments)

    monkeypatch.setattr(remote_folder, "_copy", late)
    copy = remote_folder.fetch(run, weights=True)
    assert [path.name for path in (copy / "checkpoints" / "01-qa").iterdir()] == ["2"]


@pytest.mark.slow
def test_a_stage_starts_from_a_run_in_a_bucket(run: str, bucket: Server, tiny_project: Path):
    more = ["stages.pretrain.init_from=gs://bucket/runs/tiny", "run.name=more", "stages.qa.steps=2"]
    assert train(tiny_project, "gs://bucket/runs", *more) == 0
    assert "runs/more/checkpoints/01-qa/2/commit_success.txt" in bucket.names()


def test_a_damaged_step_is_put_aside(run: str, bucket: Server, tiny_project: Path, capsys):
    folder = "runs/tiny/checkpoints/01-qa"
    for name in bucket.names(f"{folder}/4/state/d/"):
        generation, data = bucket.objects["bucket"][name]
        bucket.put("bucket", name, data[:-200] + bytes(200))
    del bucket.objects["bucket"][f"{folder}/4/scores.json"]  # as if its evaluation had not ended
    assert train(tiny_project, "gs://bucket/runs") == 0
    assert json.loads(bucket.text(f"{folder}/quarantine/4.json"))["step"] == "4"
    assert f"{folder}/4/commit_success.txt" in bucket.names()  # saved again
    local = CheckpointReader(remote.as_path(f"gs://bucket/{folder}"))
    assert local.committed_steps() == [2, 4] and local.meta(4)["step"] == 4


@pytest.mark.slow
def test_variants_are_compared_in_a_bucket(bucket: Server, tiny_project: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny_project)
    compare = "compare=[{name: full, trainable: all}, {name: head, trainable: head}]"
    words = ["compare", "tiny.yaml", "run.root=gs://bucket/runs", *SHORT, compare]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "head" in first and not Path("runs").exists()
    assert {f"runs/tiny-comparison.{ending}" for ending in ("md", "json", "html")} <= set(bucket.names("runs/"))
    found = json.loads(bucket.text("runs/tiny-comparison.json"))
    assert [row["run"] for row in found["methods"]] == [f"gs://bucket/runs/tiny-{name}" for name in ("full", "head")]
    before = {name: bucket.text(name) for name in bucket.names("runs/") if name.endswith("metrics.jsonl")}
    gcs_server.install(bucket, tmp_path / "elsewhere", monkeypatch)  # a machine without copies
    assert len(before) == 3 and main(words) == 0
    assert capsys.readouterr().out == first
    assert {name: bucket.text(name) for name in before} == before, "a finished run is not repeated"


@pytest.mark.slow
def test_a_loop_of_ones_own_saves_into_a_bucket(bucket: Server, tiny_project: Path, monkeypatch):
    import bertjax

    monkeypatch.chdir(tiny_project)
    stage = bertjax.build_program("tiny.yaml", None, "run.root=gs://bucket/runs", *SHORT)
    assert str(stage.save(stage.init_state())) == "gs://bucket/runs/tiny/checkpoints/00-pretrain/0"
    assert {"runs/tiny/config.yaml", "runs/tiny/tokenizer/tokenizer.json"} <= set(bucket.names())
    assert not bucket.names("runs/tiny/writer.lock")
    assert bertjax.open("gs://bucket/runs/tiny").step == 0


@pytest.mark.slow
def test_adapters_find_their_base_in_the_bucket(bucket: Server, tiny_project: Path, monkeypatch):
    monkeypatch.chdir(tiny_project)
    lora = "stages.qa.trainable={kind: lora, lora_rank: 2}"
    assert train(tiny_project, "gs://bucket/runs", lora) == 0
    assert main(["evaluate", "gs://bucket/runs/tiny"]) == 0
    del bucket.objects["bucket"]["runs/tiny/checkpoints/01-qa/4/commit_success.txt"]
    assert train(tiny_project, "gs://bucket/runs", lora) == 0
    assert "runs/tiny/checkpoints/01-qa/4/commit_success.txt" in bucket.names()


# ---- checkpoints ----------------------------------------------------------------------------------------------------

FOLDER = "gs://bucket/r/checkpoints/00-a"
TREE = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(5)}
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)


def manager(**policy) -> CheckpointManager:
    return CheckpointManager(remote.as_path(FOLDER), CheckpointPolicy(**policy))


def save(steps: CheckpointManager, step: int) -> None:
    steps.save(step, jax.tree.map(lambda x: x + step, TREE), {"step": step, "config": {}})
    steps.wait()


def test_old_steps_are_removed_marker_first(bucket: Server):
    with manager(keep_last=2) as steps:
        for step in (1, 2, 3):
            save(steps, step)
        assert steps.committed_steps() == [2, 3]
        found = steps.restore(LIKE)
        np.testing.assert_array_equal(found[1]["w"], TREE["w"] + 3)
    assert not bucket.names("r/checkpoints/00-a/1/")
    deleted = [name for method, name in bucket.requests if method == "DELETE"]
    marker, manifest = (f"r/checkpoints/00-a/1/{name}" for name in ("commit_success.txt", "state/manifest.ocdbt"))
    assert deleted.index(marker) < deleted.index(manifest)


def test_an_unfinished_step_is_not_there_and_is_removed_by_the_next_writer(bucket: Server):
    with manager() as steps:
        save(steps, 1)
        save(steps, 2)
    del bucket.objects["bucket"]["r/checkpoints/00-a/2/commit_success.txt"]
    assert CheckpointReader(remote.as_path(FOLDER)).committed_steps() == [1]
    with manager() as steps:
        assert not bucket.names("r/checkpoints/00-a/2/")
        assert steps.restore(LIKE)[0] == 1
        save(steps, 2)
        assert steps.committed_steps() == [1, 2]


def test_a_stale_listing_removes_nothing(bucket: Server):
    with manager() as steps:
        save(steps, 1)
        save(steps, 2)
    bucket.faults = [Fault("stale", "GET", "r/checkpoints/00-a/$", 9)]
    with manager() as steps:
        assert steps.committed_steps() == [1, 2]


def test_busy_and_slow_stores_are_asked_again(bucket: Server):
    bucket.faults = [
        Fault(503, "POST", "00-a/1/", 2),
        Fault(429, "GET", "00-a/1/", 2),
        Fault("lost", "POST", "1/state"),
    ]
    with manager() as steps:
        save(steps, 1)
        bucket.faults = [Fault(503, "GET", "state/d/", 1), Fault("slow", "GET", "state", 1)]
        np.testing.assert_array_equal(steps.restore(LIKE)[1]["b"], TREE["b"] + 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a loop that Orbax closed
def test_a_refused_save_is_one_line_and_the_run_before_it_stays(bucket: Server):
    with manager() as steps:
        save(steps, 1)
        bucket.faults = [Fault(403, "POST", "00-a/2/state", 999)]
        with pytest.raises(StorageError, match="00-a/2: could not be written") as caught:
            save(steps, 2)
        assert "\n" not in str(caught.value)
        bucket.faults = []
        assert steps.committed_steps() == [1] and not bucket.names("r/checkpoints/00-a/2/")
        save(steps, 2)


def test_requests_of_a_save_and_a_restore_are_bounded(bucket: Server):
    with manager(keep_last=9) as steps:
        save(steps, 1)
        bucket.requests = []
        save(steps, 2)
        saving = Counter(method for method, _ in bucket.requests)
        bucket.requests = []
        steps.restore(LIKE)
        restoring = Counter(method for method, _ in bucket.requests)
    print(saving, restoring)
    assert saving["POST"] <= 40 and saving["DELETE"] <= 8 and saving["GET"] <= 110, saving
    assert restoring.keys() == {"GET"} and restoring["GET"] <= 60, restoring


# ---- one writer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "EXPIRE_SECONDS", 0.6)


def elsewhere(patch: pytest.MonkeyPatch) -> None:
    """This process is one on another machine from now on."""
    patch.setattr(lease.socket, "gethostname", lambda: "elsewhere")
    patch.setattr(lease, "_held", {})


PLACE = "gs://bucket/r"


def test_a_second_writer_is_refused(bucket: Server, short_lease: None, monkeypatch: pytest.MonkeyPatch):
    held = lease.hold(remote.as_path(PLACE))
    inside = lease.hold(remote.as_path(FOLDER))  # the same one
    with pytest.raises(UserError, match=r"gs://bucket/r: process \d+ on .* writes checkpoints here"):
        lease.hold(remote.as_path(PLACE))
    with monkeypatch.context() as patch:
        elsewhere(patch)
        with pytest.raises(UserError, match="writes checkpoints here; wait for it"):
            lease.hold(remote.as_path(PLACE))
    inside.release()
    assert bucket.names("r/writer.lock")
    held.release()
    assert not bucket.names("r/writer.lock")


def test_a_silent_lease_is_taken_over_and_its_holder_stops(bucket: Server, short_lease: None, monkeypatch):
    held = lease.hold(remote.as_path(PLACE))
    held._stop.set()  # suspended
    with manager() as steps:
        save(steps, 1)
        with monkeypatch.context() as patch:
            elsewhere(patch)
            other = lease.hold(remote.as_path(PLACE))
        with pytest.raises(StorageError, match="has taken this run over.*stops without saving"):
            save(steps, 2)
        assert not bucket.names("r/checkpoints/00-a/2/commit_success.txt")
        other.check()
        other.release()


def test_a_lost_answer_and_a_lost_race_are_told_apart(bucket: Server, short_lease: None, monkeypatch):
    bucket.faults = [Fault("lost", "POST", "writer.lock")]
    held = lease.hold(remote.as_path(PLACE))  # its first write was done, and its retry met it
    held.check()
    bucket.faults = [Fault(412, "POST", "writer.lock")]
    held._renew()
    held.check()
    held.release()
    bucket.faults = [Fault(412, "POST", "writer.lock")]
    lease.hold(remote.as_path(PLACE)).release()


@pytest.mark.parametrize(
    ("url", "fault", "kind", "message"),
    [
        (PLACE, 403, UserError, "cannot be written, access is refused"),
        ("gs://nowhere/r", None, UserError, "there is no such bucket"),
    ],
)
def test_a_lease_without_rights_or_bucket(bucket: Server, url: str, fault: int | None, kind: type, message: str):
    bucket.faults = [Fault(fault, "POST", "", 99)] if fault else []
    with pytest.raises(kind, match=message) as caught:
        lease.hold(remote.as_path(url))
    assert "\n" not in str(caught.value)


# ---- small files ----------------------------------------------------------------------------------------------------


def mirror(folder: Path) -> Mirror:
    made = Mirror(remote.as_path("gs://bucket/r/x"), folder / "x")
    made.open(True, 0)
    return made


def test_small_files_follow_a_run_to_another_machine(bucket: Server, tmp_path: Path):
    first = mirror(tmp_path / "a")
    (tmp_path / "a/x/sub").mkdir(parents=True)
    (tmp_path / "a/x/metrics.jsonl").write_text("1\n")
    (tmp_path / "a/x/sub/big").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "a/x/.metrics.jsonl.ab.partial").write_text("half")
    first.start()
    assert bucket.names("r/x/") == ["r/x/metrics.jsonl", "r/x/sub/big", "r/x/writer.lock"]
    with (tmp_path / "a/x/metrics.jsonl").open("a") as file:
        file.write("2\n")
    first.close(failed=False)
    second = mirror(tmp_path / "b")
    assert (tmp_path / "b/x/metrics.jsonl").read_text() == "1\n2\n"
    assert (tmp_path / "b/x/sub/big").read_bytes() == (tmp_path / "a/x/sub/big").read_bytes()
    (tmp_path / "b/x/metrics.jsonl").write_text("1\n")  # taken back to its checkpoint
    (tmp_path / "b/x/sub/big").unlink()
    second.close(failed=False)
    assert bucket.names("r/x/") == ["r/x/metrics.jsonl"]
    (tmp_path / "a/x/unsent").write_text("of a killed process")
    third = mirror(tmp_path / "a")
    assert (tmp_path / "a/x/metrics.jsonl").read_text() == "1\n" and not (tmp_path / "a/x/sub/big").exists()
    assert (tmp_path / "a/x/unsent").exists()
    third.close(failed=False)
    bucket.objects["bucket"].clear()  # the run is deleted
    fourth = mirror(tmp_path / "a")
    assert not (tmp_path / "a/x").exists()
    fourth.close(failed=False)


def test_another_process_fetches_what_it_starts_from_and_uploads_its_own_files(bucket: Server, tmp_path: Path):
    for name in ("config.yaml", "tokenizer/vocab.txt", "metrics.jsonl", "checkpoints/00-a/1/meta/metadata"):
        bucket.put("bucket", f"r/x/{name}", b"content")
    other = Mirror(remote.as_path("gs://bucket/r/x"), tmp_path / "x")
    other.open(False, 1)
    there = {path.relative_to(tmp_path / "x").as_posix() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert there == {"config.yaml", "tokenizer/vocab.txt"}
    for name in ("train.1.log", "hang-1.txt", "train.log", "config.yaml"):
        (tmp_path / "x" / name).write_text("its own")
    other.close(failed=False)
    assert bucket.text("r/x/train.1.log") == bucket.text("r/x/hang-1.txt") == "its own"
    assert bucket.text("r/x/config.yaml") == "content" and "r/x/train.log" not in bucket.names()


def test_lines_that_were_not_sent_when_a_process_died_stay(bucket: Server, tmp_path: Path):
    first = mirror(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/metrics.jsonl").write_text("1\n")
    first.push()
    (tmp_path / "x/metrics.jsonl").write_text("1\n2\n")
    first._lease.release()
    again = mirror(tmp_path)
    assert (tmp_path / "x/metrics.jsonl").read_text() == "1\n2\n"
    bucket.requests = []
    again.push()
    assert bucket.text("r/x/metrics.jsonl") == "1\n2\n"
    again.push()
    assert len(bucket.requests) <= 5  # nothing has changed since
    again.close(failed=False)


def test_a_large_file_is_uploaded_less_often(bucket: Server, tmp_path: Path):
    made = mirror(tmp_path)
    (tmp_path / "x").mkdir()
    for name, size in (("large", 3_000_000), ("small", 100)):
        (tmp_path / "x" / name).write_bytes(bytes(size))
    made.push()
    for name in ("large", "small"):
        with (tmp_path / "x" / name).open("ab") as file:
            file.write(b"more")
    made.push()
    assert len(bucket.objects["bucket"]["r/x/small"][1]) == 104
    assert len(bucket.objects["bucket"]["r/x/large"][1]) == 3_000_000
    made.push(everything=True)
    assert len(bucket.objects["bucket"]["r/x/large"][1]) == 3_000_004
    made.close(failed=True)


def test_a_hanging_process_waits_for_its_last_upload_only_so_long(bucket: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("bertjax.storage.mirror.LAST_SECONDS", 0.3)
    made = mirror(tmp_path)
    (tmp_path / "x").mkdir()
    for name in ("hang-0.txt", "train.log"):
        (tmp_path / "x" / name).write_text("stacks")
    bucket.faults = [Fault("hold", "POST", "train.log")]
    began = time.monotonic()
    made.push_last()
    assert time.monotonic() - began < 5 and bucket.text("r/x/hang-0.txt") == "stacks"
    made._lease.release()


def test_files_that_cannot_be_uploaded_are_named_at_the_end(bucket: Server, tmp_path: Path):
    made = mirror(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/train.log").write_text("line\n")
    bucket.faults = [Fault(403, "POST", "train.log", 99)]
    with pytest.raises(
        StorageError, match="the last small files were not uploaded, they are in .*run the same command"
    ):
        made.close(failed=False)
    assert not bucket.names("r/x/writer.lock")


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("gcs://bucket/runs", "did you mean gs://bucket/runs?"),
        ("ftp://host/runs", "'ftp://' is not known"),
        ("s3://bucket/runs", "runs are kept in a local folder or in gs://"),
        ("gs:/bucket", "an object is named like gs://bucket/name"),
    ],
)
@pytest.mark.parametrize("command", ["train", "inspect"])
def test_an_unknown_root_is_one_line(tiny_project: Path, capsys, root: str, message: str, command: str):
    assert main([command, str(tiny_project / "tiny.yaml"), f"run.root={root}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "run.root" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("root", "faults", "message"),
    [
        ("gs://nowhere/runs", [], "there is no such bucket"),
        ("gs://bucket/runs", [Fault(403, "POST", "", 99)], "access is refused"),
        ("gs://bucket/runs", [Fault(401, "", "", 99)], "access is refused"),
        ("gs://bucket/runs", [Fault(400, "", "", 99)], "the request is refused"),
    ],
)
def test_a_bucket_that_is_no_use_ends_a_run_before_data_are_prepared(
    bucket: Server, tiny_project: Path, tmp_path: Path, monkeypatch, capsys, root: str, faults: list, message: str
):
    monkeypatch.chdir(tiny_project)
    bucket.faults = faults
    assert train(tiny_project, root) == 2
    error = capsys.readouterr().err
    assert message in error and root in error and "Traceback" not in error
    assert not list((tmp_path / "staged").rglob("prepared")) and not Path("gs:").exists()


@pytest.mark.parametrize("name", ["runs", "runs/tiny"])
def test_a_run_below_a_file_is_refused(bucket: Server, tiny_project: Path, monkeypatch, capsys, name: str):
    monkeypatch.chdir(tiny_project)
    bucket.put("bucket", name, b"text")
    assert train(tiny_project, "gs://bucket/runs") == 2
    assert capsys.readouterr().err.endswith(
        f"gs://bucket/{name}: is a file; name a folder in run.root, or another run.name\n"
    )
    assert bucket.names() == [name]


@pytest.mark.parametrize("command", ["inspect", "evaluate", "report", "verify-run"])
@pytest.mark.parametrize(
    ("url", "fault", "message"),
    [
        ("gs://nowhere", None, "bucket"),
        ("gs://nowhere/run/", None, "bucket"),
        ("gs:///bucket", None, "did you mean gs://bucket?"),
        ("gs:bucket/x", None, "did you mean gs://bucket/x?"),
        ("gs://bucket", None, "gs://bucket: holds neither config.json (Hugging Face) nor a checkpoint; here are runs"),
        ("gs://bucket/runs/", None, "nor a checkpoint; here are file.txt"),
        ("gs://bucket/runs/file.txt", None, "gs://bucket/runs/file.txt: is a file; name the folder of a run"),
        ("gs://bucket/nothing", None, "gs://bucket/nothing: no such folder"),
        ("gs://bucket/runs", 403, "access is refused"),
        ("gs://bucket/runs", 400, "the request is refused"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(bucket: Server, command: str, url: str, fault, message: str, capsys):
    bucket.put("bucket", "runs/file.txt", b"text")
    bucket.faults = [Fault(fault, "", "", 999)] if fault else []
    assert main([command, url]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if " ... | " not in line]  # those are progress
    assert message in error


@pytest.mark.parametrize("level", ["01-qa", "01-qa/2"])
def test_one_stage_or_step_in_a_bucket_is_verified(run: str, level: str, capsys):
    assert main(["verify-run", f"{run}/checkpoints/{level}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    steps = ["2"] if level.endswith("2") else ["2", "4"]
    assert [entry["path"].rpartition("/")[2] for entry in found] == steps


def test_the_small_files_in_a_bucket_are_verified(run: str, bucket: Server, capsys):
    assert main(["verify-run", run]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 checkpoints and 3 files: all good"
    name = "runs/tiny/config.yaml"
    config = bucket.text(name).replace("hidden_dropout_prob: 0.1", "hidden_dropout_prob: 0.3")
    bucket.put("bucket", name, config.encode())
    bucket.put("bucket", "runs/tiny/metrics.jsonl", bucket.text("runs/tiny/metrics.jsonl").encode() + b"\xff\n")
    assert main(["verify-run", run]) == 4
    *lines, last = capsys.readouterr().out.splitlines()
    changed = "not what the checkpoints were made with (model.hidden_dropout_prob: 0.1 -> 0.3)"
    assert f"{run}/config.yaml: DAMAGED: {changed}" in lines and last == "4 checkpoints and 3 files: 2 DAMAGED"
    assert any(line.startswith(f"{run}/metrics.jsonl: DAMAGED: 1 of ") for line in lines)
    for name in bucket.names("runs/tiny/tokenizer/"):
        bucket.objects["bucket"].pop(name)
    assert main(["verify-run", run]) == 4
    assert f"{run}/tokenizer: DAMAGED: no such" in capsys.readouterr().out


def test_a_store_out_of_reach_and_a_missing_package(bucket: Server, tiny_project: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny_project)
    monkeypatch.setattr(lease, "RETRIES", {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"})
    bucket.faults = [Fault(503, "", "", 999)]
    assert train(tiny_project, "gs://bucket/runs") == 4
    assert "gs://bucket/runs/tiny/writer.lock: cannot be reached" in capsys.readouterr().err

    def missing(path: Path) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(remote, "file_system", missing)
    assert train(tiny_project, "gs://bucket/runs") == 2
    assert "the package 'gcsfs' is missing; pip install gcsfs" in capsys.readouterr().err


# ---- long ones ------------------------------------------------------------------------------------------------------


KILLS = 40


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_forty_kills(bucket: Server, tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed at random and continued, each time on a machine without copies: the bits of a run without kills."""

    def is_commit(request: tuple[str, str]) -> bool:
        method, name = request
        return method == "POST" and re.search(r"/checkpoints/[^/]+/\d+/commit_success.txt$", name) is not None

    rng = np.random.default_rng(0)
    options = ["stages.pretrain.steps=40", "stages.qa.steps=40", "run.checkpoint.save_every=4"]
    options += [f"run.compilation_cache_dir={tmp_path / 'xla'}"]
    kills = finished = 0
    while kills < KILLS or not finished:
        gcs_server.install(bucket, tmp_path / f"{finished}-{kills}", monkeypatch)
        bucket.requests = []
        child = in_child(tiny_project, "gs://bucket/runs", *options, f"run.name=r{finished}")
        commits = rng.integers(0, 4)  # 0: at its start
        while child.poll() is None and sum(map(is_commit, bucket.requests)) < commits:
            time.sleep(0.05)
        try:
            output, _ = child.communicate(timeout=None if kills == KILLS else 3 * rng.random())
            assert child.returncode == 0, output[-3000:]
            finished += 1
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            kills += 1
    print(f"{kills} kills, {finished} runs")
    monkeypatch.chdir(tiny_project)
    assert train(tiny_project, str(tmp_path / "local"), *options) == 0
    for number in range(finished):
        for name in ("checkpoints/00-pretrain/40/digest/metadata", "checkpoints/01-qa/40/digest/metadata"):
            ours = json.loads(bucket.text(f"runs/r{number}/{name}"))
            assert ours["leaves"] == json.loads((tmp_path / "local/tiny" / name).read_text())["leaves"]
        lines = [json.loads(line) for line in bucket.text(f"runs/r{number}/metrics.jsonl").splitlines()]
        seen = [(line["stage"], line["step"]) for line in lines if line["kind"] == "train"]
        assert len(seen) == len(set(seen)) == 80
    tally.add("process killed", "SIGKILL at a random time, continued on an empty disk", kills, where="gs://")


@pytest.mark.slow
def test_two_processes_write_one_run(bucket: Server, tiny_project: Path, tmp_path: Path):
    """Each writes its shards and has its own disk; both save and stop by SIGTERM."""
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{port.getsockname()[1]}"
    port.close()
    options = ["mesh.fsdp=4", "stages.pretrain.steps=400", "run.checkpoint.save_every=4"]
    children = []
    for process in range(2):
        more = {
            "BERTJAX_STAGING": str(tmp_path / f"machine{process}"), "BERTJAX_COORDINATOR": address,
            "BERTJAX_NUM_PROCESSES": "2", "BERTJAX_PROCESS_ID": str(process),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, value in more.items():
                patch.setenv(name, value)
            children.append(in_child(tiny_project, "gs://bucket/runs", *options))
    while "runs/tiny/checkpoints/00-pretrain/8/commit_success.txt" not in bucket.names():
        assert all(child.poll() is None for child in children), [child.communicate()[0][-2000:] for child in children]
        time.sleep(0.2)
    children[0].send_signal(signal.SIGTERM)
    outputs = [child.communicate(timeout=200)[0].decode() for child in children]
    assert [child.returncode for child in children] == [75, 75], outputs
    reader = CheckpointReader(remote.as_path("gs://bucket/runs/tiny/checkpoints/00-pretrain"))
    last = reader.committed_steps()[-1]
    assert any("/ocdbt.process_1/" in name for name in bucket.names(f"runs/tiny/checkpoints/00-pretrain/{last}/"))
    assert not bucket.names("runs/tiny/writer.lock")
    lines = [json.loads(line) for line in bucket.text("runs/tiny/metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [*range(1, last + 1)]
