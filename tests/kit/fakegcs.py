"""gs:// without a network: a file system for fsspec, under which etils.epath finds it as it would find gcsfs.

It behaves as an object store does: there are no folders but those that objects imply, an object appears when it is
closed, nothing is renamed, and `info` has a checksum. The objects lie in $FAKE_GCS, so that child processes see them;
they get the file system by an entry point in a folder that `install` puts on PYTHONPATH. A file FAULT in there says
what goes wrong: "unreachable", "forbidden", or "corrupt" (what is written is damaged on its way).
"""

import os
import secrets
import sys
import zlib
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes gs:// known to this process and its children; returns the folder of the objects: BUCKET/NAME."""
    objects, packages = folder / "gcs", folder / "packages"
    about = packages / "fakegcs_test-1.dist-info"
    about.mkdir(parents=True)
    objects.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fakegcs-test\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[fsspec.specs]\ngcs = fakegcs.FakeGcs\ngs = fakegcs.FakeGcs\n")
    path = os.pathsep.join([str(packages), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FAKE_GCS", str(objects))
    monkeypatch.setenv("BERTJAX_STAGING", str(folder / "staged"))
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, sys.modules[__name__].FakeGcs, clobber=True)
    from etils.epath.backend import fsspec_backend

    fsspec_backend._get_filesystem.cache_clear()
    return objects


class FakeGcs(AbstractFileSystem):
    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, finalize_on_close: bool = False, **options: Any) -> None:
        super().__init__(**options)

    def _real(self, path: str) -> Path:
        root = Path(os.environ["FAKE_GCS"])
        fault = (root / "FAULT").read_text() if (root / "FAULT").exists() else ""
        if fault == "unreachable":
            raise ConnectionError("Cannot connect to host storage.googleapis.com")
        if fault == "forbidden":
            raise PermissionError("Anonymous caller does not have storage.objects.get access")
        return root / self._strip_protocol(path)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("gs://").removeprefix("gcs://").rstrip("/")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        real = self._real(path)
        name = self._strip_protocol(path)
        if real.is_dir() and ("/" not in name or any(found.is_file() for found in real.rglob("*"))):
            return {"name": name, "size": 0, "type": "directory"}
        if not real.is_file():
            raise FileNotFoundError(path)
        data = real.read_bytes()
        return {"name": name, "size": len(data), "type": "file", "crc32c": f"{zlib.crc32(data):08x}"}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        real = self._real(path)
        if real.is_file():
            names = [self._strip_protocol(path)]
        elif real.is_dir():
            names = [f"{self._strip_protocol(path)}/{found.name}" for found in sorted(real.iterdir())]
        else:
            raise FileNotFoundError(path)
        found = [self.info(name) for name in names if self.exists(name)]
        return found if detail else [each["name"] for each in found]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        real = self._real(path)
        if mode == "rb":
            return real.open("rb")
        return _Upload(real)

    def rm_file(self, path: str) -> None:
        if not self._real(path).is_dir():  # a folder goes with the last of its objects
            self._real(path).unlink()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("an object store has no folders to make")

    mkdir = makedirs
    rename = mv = makedirs  # type: ignore[assignment]


class _Upload:
    """Written beside, then there in one piece."""

    def __init__(self, real: Path) -> None:
        self._real = real
        self._part = Path(os.environ["FAKE_GCS"]).parent / f"upload-{secrets.token_hex(8)}"
        self._file = self._part.open("wb")

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def __enter__(self) -> "_Upload":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(kind is None)

    def close(self, whole: bool = True) -> None:
        if self._file.closed:
            return
        self._file.close()
        fault = Path(os.environ["FAKE_GCS"]) / "FAULT"
        if fault.exists() and fault.read_text() == "corrupt":
            data = bytearray(self._part.read_bytes())
            data[len(data) // 2] ^= 1
            self._part.write_bytes(data)
        if whole:
            self._real.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._part, self._real)
        else:
            self._part.unlink()
