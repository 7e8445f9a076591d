"""A preparation that is interrupted goes on: finished parts are compared with their records and kept."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from preparing import TASKS, contents, prepared, small_jobs, task_of, write_texts

from bertjax.config.schema.sources import JsonLines
from bertjax.data.jobs import shards
from bertjax.data.jobs.jobs import JobOutput, Jobs, LocalRunner, load_finished, run_job
from bertjax.data.jobs.scratch_dir import scratch_dir
from bertjax.data.pipeline.prepare import prepare
from bertjax.errors import UserError


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_texts(tmp_path)
    small_jobs(monkeypatch)
    return tmp_path


def squares(shared: int, argument: int, index: int, folder: Path) -> JobOutput:
    """A job: a file with a number in it."""
    with (folder.parents[1] / "log").open("a") as log:
        log.write(f"{index}\n")
    (folder / f"{index}.txt").write_text(str(shared * argument**2))
    return JobOutput([f"{index}.txt"], {"argument": argument}, np.array([argument, -argument]))


def jobs_in(folder: Path) -> Jobs:
    return Jobs(squares, 7, folder / "files", folder / "squares-done")


def test_a_finished_job_is_not_done_again(tmp_path: Path):
    jobs = jobs_in(tmp_path)
    first = run_job(jobs, 3, 5)
    again = run_job(jobs, 3, 5)
    assert (tmp_path / "files" / "3.txt").read_text() == "175"
    assert not first.reused and again.reused and again.files == first.files and again.facts == {"argument": 5}
    assert again.counts.tolist() == [5, -5] == first.counts.tolist()
    assert (tmp_path / "log").read_text() == "3\n"
    assert not any((tmp_path / "making").iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "half a record", "no record"])
def test_a_damaged_job_is_done_again(tmp_path: Path, damage: str):
    jobs = jobs_in(tmp_path)
    run_job(jobs, 3, 5)
    path, record = tmp_path / "files" / "3.txt", jobs.record_path(3)
    {
        "flip": lambda: path.write_text("174"),
        "cut": lambda: path.write_text("17"),
        "gone": path.unlink,
        "half a record": lambda: record.write_bytes(record.read_bytes()[:40]),
        "no record": record.unlink,
    }[damage]()
    assert load_finished(jobs, 3) is None
    assert not run_job(jobs, 3, 5).reused
    assert path.read_text() == "175" and load_finished(jobs, 3)


@pytest.mark.slow
def test_records_come_in_order_from_a_pool(tmp_path: Path):
    records = list(LocalRunner().run(jobs_in(tmp_path), range(9), workers=2))
    assert [record.facts["argument"] for record in records] == list(range(9))


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("kind", TASKS)
def test_what_was_finished_is_kept_and_the_bytes_are_the_same(base: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    expected = contents(prepared(kind, base, "whole"))
    made, original = [], shards.make_shard

    def failing(work: shards.ShardContext, argument: object, index: int, folder: Path) -> JobOutput:
        if len(made) == 3:
            raise Interrupted
        made.append(index)
        return original(work, argument, index, folder)

    monkeypatch.setattr(shards, "make_shard", failing)
    with pytest.raises(Interrupted):
        prepared(kind, base)
    (work,) = (base / "cache").iterdir()
    assert work.name.endswith(".work2") and len(list(work.glob("examples-done/*.json"))) == 3

    again: list[int] = []

    def counted(work: shards.ShardContext, argument: object, index: int, folder: Path) -> JobOutput:
        again.append(index)
        return original(work, argument, index, folder)

    lines: list[str] = []
    monkeypatch.setattr(shards, "make_shard", counted)
    store = prepared(kind, base, report=lines.append)
    assert contents(store) == expected
    assert again[:1] == [3]  # the first three were there
    assert [path.name for path in (base / "cache").iterdir()] == [store.folder.name]
    if not kind.startswith(("pairs packed", "questions")):  # there the last step had not begun
        assert "3 of" in lines[-1] and "were finished before" in lines[-1]


@pytest.mark.slow
def test_parts_of_a_corpus_do_not_change_a_byte(base: Path, monkeypatch: pytest.MonkeyPatch):
    for kind in ("pairs", "chunks"):
        many = prepared(kind, base, "many", workers=2)
        with monkeypatch.context() as patched:
            patched.setattr("bertjax.data.sources.registry.PART_BYTES", 1 << 30)
            one = prepared(kind, base, "one")
        assert contents(many) == contents(one)


def test_a_source_without_text_is_named_among_others(base: Path):
    (base / "blank.jsonl").write_text('{"text": " "}\n')
    task, tokenizer = task_of("pairs")
    empty = task.model_copy(update={"source": [*task.source, JsonLines(files=["blank.jsonl"])]})
    with pytest.raises(UserError, match=r"blank\.jsonl: holds no text at all"):
        prepare(empty, "t", tokenizer, seed=1, base=base, cache=base / "cache", workers=1)
    assert not (base / "cache").exists()


def test_the_throughput_is_told(base: Path):
    lines: list[str] = []
    store = prepared("chunks", base, report=lines.append)
    rows, tokens = store.meta["rows"], store.meta["tokens_in_rows"]
    assert f"{rows:,} rows, {tokens:,} tokens" in lines[-1]
    for unit in (" rows/s", " tokens/s", " MB/s"):
        assert unit in lines[-1]


SCRIPT = """
import sys, time
from pathlib import Path
import pytest
from bertjax.data.jobs import jobs
from bertjax.data.preprocess import bert_pairs
import preparing

slow = bert_pairs.pairs_blocks
def blocks(work, unit):
    time.sleep(0.05)
    yield from slow(work, unit)

if __name__ == "__main__":
    bert_pairs.pairs_blocks = blocks
    preparing.small_jobs(pytest.MonkeyPatch())
    from bertjax.data.jobs.scratch_dir import KEPT_MESSAGE
    from bertjax.interrupts import exit_on_signal
    from bertjax.errors import BertjaxError
    base = Path(sys.argv[1])
    try:
        with exit_on_signal(lambda: f"stopped; {KEPT_MESSAGE}", "interrupted"):
            store = preparing.prepared("pairs", base, sys.argv[2], report=print, workers=int(sys.argv[3]))
    except BertjaxError as error:
        print(error)
        sys.exit(error.exit_code)
    store.verify()
"""


def start(base: Path, cache: str, workers: int) -> subprocess.Popen:
    script = base / "script.py"
    script.write_text(SCRIPT)
    kit = Path(__file__).parents[1] / "kit"
    path = os.pathsep.join([str(kit), str(Path(__file__).parents[2])])
    command = [sys.executable, str(script), str(base), cache, str(workers)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)


def wait_for_records(base: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((base / "cache").glob(".*.work2/examples-done/*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_killed_process_leaves_no_orphans_and_the_next_goes_on(base: Path, number: signal.Signals, code: int):
    expected = contents(prepared("pairs", base, "whole"))
    first = start(base, "cache", 2)
    wait_for_records(base, 4)
    workers = children_of(first.pid)
    first.send_signal(number)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == code
    if code == 75:
        assert output.splitlines()[-1] == "stopped; what is finished is kept: run the same command again"
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)
    (work,) = (base / "cache").glob(".*.work2")
    kept = len(list(work.glob("examples-done/*.json")))
    shard = sorted(work.glob("rows/*.array_record"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])  # one of them is damaged meanwhile

    second = start(base, "cache", 1)
    output = second.communicate(timeout=120)[0]
    assert second.returncode == 0
    assert f"{kept - 1} of" in output.splitlines()[-1]
    (store,) = (base / "cache").iterdir()
    assert {path.name: path.read_bytes() for path in sorted(store.iterdir())} == expected


def test_only_one_of_two_preparers_takes_the_kept_work(base: Path):
    store = base / "cache" / "store"
    with scratch_dir(store, False) as first, scratch_dir(store, False) as second:
        assert first.folder.name == ".store.work2" != second.folder.name
    assert not (base / "cache").exists()
    with pytest.raises(Interrupted), scratch_dir(store, False) as first:
        (first.folder / "rows-done").mkdir()
        (first.folder / "rows-done" / "00000.json").write_text("{}")
        raise Interrupted
    with scratch_dir(store, False) as third:
        assert (third.folder / "rows-done" / "00000.json").exists()
    with pytest.raises(UserError), scratch_dir(store, False) as fourth:
        (fourth.folder / "rows-done").mkdir()
        (fourth.folder / "rows-done" / "00000.json").write_text("{}")
        raise UserError("the source is at fault")
    assert list((base / "cache").iterdir()) == []


@pytest.mark.slow
def test_a_worker_that_dies_is_told(base: Path):
    with pytest.raises(UserError, match="one of 2 worker processes died"):
        list(LocalRunner().run(Jobs(_dies, None, base / "x", base / "x-done"), range(4), workers=2))


def _dies(shared: None, argument: int, index: int, folder: Path) -> JobOutput:
    os._exit(9)
