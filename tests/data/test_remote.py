"""Sources and stores in an object store: the same bytes as on a disk, and one line for everything that goes wrong."""

import errno
import pickle
from pathlib import Path
from types import SimpleNamespace

import fakegcs
import numpy as np
import pytest
import yaml
from preparing import TASKS, contents, prepared, small_jobs, write_texts

from bertjax.cli.main import main
from bertjax.data.store.reader import Store
from bertjax.errors import StorageError, UserError
from bertjax.storage import remote, staging
from bertjax.storage.files import expand_globs, read_lines, sha256_of_files


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The objects of gs://bucket, with the texts under in/; nothing else of them is on the disk."""
    folder = fakegcs.install(tmp_path, monkeypatch) / "bucket"
    (folder / "in").mkdir(parents=True)
    write_texts(folder / "in")
    return folder


def fault(bucket: Path, what: str | None) -> None:
    path = bucket.parent / "FAULT"
    path.write_text(what) if what else path.unlink()


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_are_found_read_and_told_apart(bucket: Path, tmp_path: Path):
    names = [str(path) for path in expand_globs(["gs://bucket/in/part-*.jsonl", "gs://bucket/in/squad.json"], tmp_path)]
    assert names == [f"gs://bucket/in/part-{n}.jsonl" for n in range(5)] + ["gs://bucket/in/squad.json"]
    (path,) = expand_globs(["gs://bucket/in/part-0.jsonl"], tmp_path)
    lines = list(read_lines(path))
    assert lines == list(read_lines(bucket / "in" / "part-0.jsonl"))
    before = sha256_of_files([path])
    (bucket / "in" / "part-0.jsonl").write_text("{}")
    assert sha256_of_files([path]) != before


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2"])
def test_compressed_objects_are_read(bucket: Path, tmp_path: Path, suffix: str):
    import bz2
    import gzip
    import lzma

    opener = {"gz": gzip, "xz": lzma, "bz2": bz2}[suffix].open
    with opener(bucket / f"a.txt.{suffix}", "wt") as file:
        file.write("one\ntwo\n")
    (path,) = expand_globs([f"gs://bucket/a.txt.{suffix}"], tmp_path)
    assert [line for _, line in read_lines(path)] == ["one", "two"]
    (bucket / f"a.txt.{suffix}").write_bytes((bucket / f"a.txt.{suffix}").read_bytes()[:-6])
    with pytest.raises(UserError, match=f"the .{suffix} data is cut short or damaged"):
        list(read_lines(path))


def test_parquet_is_read(bucket: Path, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bertjax.config.schema.sources import Parquet
    from bertjax.data.sources.text import read_texts

    pq.write_table(pa.table({"text": ["one", "two"], "n": [1, 2]}), bucket / "t.parquet")
    assert list(read_texts(Parquet(files=["gs://bucket/t.parquet"]), tmp_path)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gs://bucket/in/nothing.txt", "no such file; check the bucket"),
        ("gs://bucket/in/*.md", "no file matches"),
        ("gs://bucket/in/**/*.json", r"'\*\*' is not searched for"),
        ("gs://bucket/in", "is a folder; name its files"),
        ("gs://bucket/empty.txt", "the file is empty"),
        ("ftp://host/x.txt", "'ftp://' is not known"),
    ],
)
def test_what_cannot_be_read_is_one_line(bucket: Path, tmp_path: Path, name: str, message: str):
    (bucket / "empty.txt").write_text("")
    with pytest.raises(UserError, match=message) as caught:
        expand_globs([name], tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [("unreachable", 4, "cannot be reached"), ("forbidden", 2, "access is refused")],
)
def test_an_object_store_out_of_reach(bucket: Path, tmp_path: Path, what: str, code: int, message: str):
    fault(bucket, what)
    for ask in (
        lambda: expand_globs(["gs://bucket/in/part-0.jsonl"], tmp_path),
        lambda: Store(remote.as_path("gs://bucket/store")),
        lambda: prepared("pairs", tmp_path, "gs://bucket/cache", str(bucket / "in")),
    ):
        with pytest.raises((StorageError, UserError), match=message) as caught:
            ask()
        assert caught.value.exit_code == code and "\n" not in str(caught.value)


def test_a_missing_package_is_named(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fakegcs.FakeGcs, "info", missing)
    with pytest.raises(UserError, match="the package 'gcsfs' is missing; pip install gcsfs"):
        expand_globs(["gs://bucket/in/part-0.jsonl"], tmp_path)


# ---- stores ---------------------------------------------------------------------------------------------------------


def objects(bucket: Path, store: Store) -> dict[str, bytes]:
    folder = bucket.parent / str(store.folder).removeprefix("gs://")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", TASKS)
def test_a_remote_store_has_the_same_bytes(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    small_jobs(monkeypatch)
    here = prepared(kind, tmp_path, where="gs://bucket/in")
    far = prepared(kind, tmp_path, "gs://bucket/cache", "gs://bucket/in")
    assert str(far.folder) == f"gs://bucket/cache/{here.folder.name}"
    assert objects(bucket, far) == contents(here)
    assert [path.name for path in (bucket / "cache").iterdir()] == [far.folder.name]
    np.testing.assert_array_equal(far.rows(np.arange(len(far))), here.rows(np.arange(len(here))))
    again = pickle.loads(pickle.dumps(far))
    assert again[0] == here[0]
    far.verify(2)
    assert not any((tmp_path / "staged" / "work").glob("*"))


def test_copies_are_made_once_and_outlive_a_process(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_jobs(monkeypatch)
    far = prepared("chunks", tmp_path, "gs://bucket/cache", "gs://bucket/in")
    opened: list[str] = []
    original = fakegcs.FakeGcs._open

    def counted(self: fakegcs.FakeGcs, path: str, mode: str = "rb", **options: object) -> object:
        opened.append(path)
        return original(self, path, mode, **options)

    far.fetch()
    monkeypatch.setattr(fakegcs.FakeGcs, "_open", counted)
    again = Store(far.folder)
    assert len(again.rows(np.arange(len(again)))) == len(far)
    assert [path.rsplit("/", 1)[1] for path in opened] == ["manifest.json"]


def test_opening_alone_copies_nothing(bucket: Path, tmp_path: Path):
    far = prepared("chunks", tmp_path, "gs://bucket/cache", "gs://bucket/in")
    again = Store(far.folder)
    assert len(again) == again.meta["rows"] and len(again.rows([])) == 0
    assert not [path for path in (tmp_path / "staged").rglob("*") if path.stem in str(far.shards)]
    far.fetch()
    assert [path for path in (tmp_path / "staged").rglob("*") if path.stem in str(far.shards)]


def test_damage_in_the_bucket_is_found(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_jobs(monkeypatch)
    far = prepared("chunks", tmp_path, "gs://bucket/cache", "gs://bucket/in")
    path = bucket.parent / str(far.folder / far.shards[1]["file"]).removeprefix("gs://")
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(StorageError, match=r"rows-00001.*damaged \(sha256 differs from manifest.json\)"):
        far.verify()
    monkeypatch.setenv("BERTJAX_STAGING", str(tmp_path / "another machine"))
    monkeypatch.setattr(staging.time, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match="rows-00001.*damaged"):
        Store(far.folder).fetch()
    path.write_bytes(good[:-1])
    with pytest.raises(StorageError, match="rows-00001.*bytes, not"):
        Store(far.folder)
    lines: list[str] = []
    again = prepared("chunks", tmp_path, "gs://bucket/cache", "gs://bucket/in", report=lines.append)
    assert "preparing it now" in lines[0] and path.read_bytes() == good
    again.verify()


def test_an_upload_that_is_damaged_is_not_believed(bucket: Path, tmp_path: Path):
    fault(bucket, "corrupt")
    local = tmp_path / "local"
    local.write_bytes(b"x" * 1000)
    with pytest.raises(StorageError, match="reads back differently"):
        remote.move_verified(local, remote.as_path("gs://bucket/x"))
    assert local.exists()
    fault(bucket, None)
    assert remote.move_verified(local, remote.as_path("gs://bucket/x"))["bytes"] == 1000
    assert (bucket / "x").read_bytes() == b"x" * 1000 and not local.exists()


def test_a_store_too_large_for_this_disk(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    far = prepared("chunks", tmp_path, "gs://bucket/cache", "gs://bucket/in")
    monkeypatch.setenv("BERTJAX_STAGING", str(tmp_path / "another machine"))
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match="GB are free; set BERTJAX_STAGING to a larger disk, or mount the bucket"):
        Store(far.folder)[0]


def test_a_preparation_that_broke_off_goes_on(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_jobs(monkeypatch)
    expected = contents(prepared("pairs", tmp_path, where="gs://bucket/in"))
    original, uploads = remote.move_verified, []

    def failing(local: Path, path: Path) -> dict:
        if remote.is_remote(path):
            uploads.append(path.name)
            if len(uploads) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
        return original(local, path)

    monkeypatch.setattr(remote, "move_verified", failing)
    with pytest.raises(StorageError, match="free some space; what is finished is kept"):
        prepared("pairs", tmp_path, "gs://bucket/cache", "gs://bucket/in")
    with pytest.raises(UserError, match="not a prepared store"):
        Store(remote.as_path(f"gs://bucket/cache/{next((bucket / 'cache').iterdir()).name}"))
    far = prepared("pairs", tmp_path, "gs://bucket/cache", "gs://bucket/in")
    assert uploads[3:5] == ["rows-00003.array_record"] * 2  # the first three were there
    assert objects(bucket, far) == expected


# ---- the command ----------------------------------------------------------------------------------------------------


def config(tmp_path: Path, bucket: Path) -> Path:
    from preparing import PIECES

    (bucket / "vocab").mkdir()
    (bucket / "vocab" / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    model = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 32}  # fmt: skip
    data = {
        "source": {"kind": "jsonl", "files": ["gs://bucket/in/part-*.jsonl"]},
        "preprocess": {"sequence_length": 32},
    }
    stage = {"name": "pre", "data": data, "steps": 2, "batch_size": 4}
    whole = {
        "model": model, "tokenizer": {"path": "gs://bucket/vocab"}, "stages": [stage],
        "run": {"root": str(tmp_path / "runs"), "prepared_dir": "gs://bucket/prepared"},
    }  # fmt: skip
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def test_the_command_prepares_verifies_and_tells(bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = config(tmp_path, bucket)
    assert main(["prepare", str(path), "--workers", "1", "--verify"]) == 0
    out = capsys.readouterr().out
    assert " tokens/s, " in out and "pre: rows: pre " in out and "as the manifest says" in out
    (store,) = (bucket / "prepared").iterdir()
    shard = next(store.glob("*.array_record"))
    data = bytearray(shard.read_bytes())
    data[50] ^= 1
    shard.write_bytes(data)
    assert main(["prepare", str(path), "--verify"]) == 4
    assert f"{shard.name}: damaged" in capsys.readouterr().err
    fault(bucket, "unreachable")
    assert main(["prepare", str(path)]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "gs://bucket/" in error
    fault(bucket, None)
    assert main(["prepare", str(path), "stages.pre.data.source.files=[gs://bucket/no/*.jsonl]"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["prepare", str(path), "--", "--project=p"]) == 2
    assert "need --runner beam" in capsys.readouterr().err
    assert main(["prepare", str(path), "--runner", "beam", "--beam-args", "'"]) == 2
    assert "close the quotes" in capsys.readouterr().err
