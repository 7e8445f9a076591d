"""Atomic writes: the old content or the new, nothing left over, and forced to the disk where that is asked for."""

import json
import os
from pathlib import Path

import pytest

from bertjax.storage import atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "kept.txt"
    atomic.write_text_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic.write_text_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_durable_write_forces_file_and_folder_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []
    monkeypatch.setattr(atomic, "fsync_path", lambda path: synced.append(Path(path).name))
    atomic.write_json_atomic(tmp_path / "a.json", {"name": "Z\u00fcrich"})
    assert not synced and json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "Z\u00fcrich"}
    atomic.write_json_atomic(tmp_path / "a.json", {"name": "b"}, durable=True)
    assert synced[0].startswith(".a.json.") and synced[1:] == [tmp_path.name]


def test_a_folder_is_made_only_on_request(tmp_path: Path):
    path = tmp_path / "new" / "a"
    with pytest.raises(FileNotFoundError):
        atomic.write_bytes_atomic(path, b"x")
    atomic.write_bytes_atomic(path, b"x", parents=True)
    assert path.read_bytes() == b"x"
