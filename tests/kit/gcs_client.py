"""A file system of fsspec over the JSON API of Google Cloud Storage, where gcsfs is not installed (see gcs_server).

Buckets in HIERARCHICAL have folders of their own, with which it does what gcsfs does: `mkdir` creates them, listings
and `info` show empty ones, `rm` deletes them below what it deletes.
"""

import io
import json
import os
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from fsspec.spec import AbstractFileSystem

HIERARCHICAL: frozenset[str] = frozenset()


class JsonApi(AbstractFileSystem):
    """The parts of gcsfs that are used, with its errors and its retries, without waiting long between them."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, finalize_on_close: bool = False, **options: Any) -> None:
        super().__init__(**options)

    def _ask(self, method: str, path: str, data: bytes | None = None, **query: Any) -> bytes:
        url = f"{os.environ['STORAGE_EMULATOR_HOST']}/{path}?{urlencode(query)}"
        for attempt in range(4):
            try:
                with urlopen(Request(url, data=data, method=method), timeout=20) as answer:
                    return answer.read()
            except HTTPError as error:
                error.close()  # its socket
                if error.code == 404:
                    raise FileNotFoundError(path) from None
                if error.code == 403:
                    raise OSError(f"Forbidden: {path}") from None
                if error.code == 400:
                    raise ValueError(f"Bad Request: {path}") from None
                if error.code < 500 and error.code != 429 or attempt == 3:
                    raise RuntimeError(f"{error.code}: {path}") from None
            except (URLError, ConnectionError):
                if attempt == 3:
                    raise
            time.sleep(0.1)
        raise AssertionError

    def _object(self, path: str) -> tuple[str, str]:
        bucket, _, name = self._strip_protocol(path).partition("/")
        return bucket, name

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("gs://").removeprefix("gcs://").rstrip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        bucket, name = self._object(path)
        if not name:
            return json.loads(self._ask("GET", f"storage/v1/b/{bucket}")) | {"size": 0, "type": "directory"}
        try:
            found = json.loads(self._ask("GET", f"storage/v1/b/{bucket}/o/{quote(name, safe='')}"))
            return found | {"name": f"{bucket}/{name}", "size": int(found["size"]), "type": "file"}
        except FileNotFoundError:
            if self._is_folder(bucket, name) or self._list(bucket, f"{name}/", maxResults=1):
                return {"name": f"{bucket}/{name}", "size": 0, "type": "directory"}
            raise

    def _is_folder(self, bucket: str, name: str) -> bool:
        if bucket not in HIERARCHICAL:
            return False
        try:
            return bool(self._ask("GET", f"storage/v1/b/{bucket}/folders/{quote(name, safe='')}"))
        except FileNotFoundError:
            return False

    def _list(self, bucket: str, prefix: str, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            page = json.loads(self._ask("GET", f"storage/v1/b/{bucket}/o", prefix=prefix, **query, **more))
            found += [
                one | {"name": f"{bucket}/{one['name']}", "size": int(one["size"]), "type": "file"}
                for one in page.get("items", [])
            ]
            folders = (f"{bucket}/{each.rstrip('/')}" for each in page.get("prefixes", []))
            found += [{"name": each, "size": 0, "type": "directory"} for each in folders]
            if "nextPageToken" not in page or "maxResults" in query:
                return found
            more = {"pageToken": page["nextPageToken"]}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        bucket, name = self._object(path)
        folders = {"includeFoldersAsPrefixes": "true"} if bucket in HIERARCHICAL else {}
        found = self._list(bucket, f"{name}/" if name else "", delimiter="/", **folders)
        if not found and not self._is_folder(bucket, name):
            found = [self.info(path)]
        return found if detail else sorted(one["name"] for one in found)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        bucket, name = self._object(path)
        if mode == "rb":
            return io.BytesIO(self._ask("GET", f"storage/v1/b/{bucket}/o/{quote(name, safe='')}", alt="media"))
        place = f"upload/storage/v1/b/{bucket}/o"
        return _Upload(lambda data: self._ask("POST", place, data, uploadType="media", name=name))

    def rm_file(self, path: str) -> None:
        bucket, name = self._object(path)
        self._ask("DELETE", f"storage/v1/b/{bucket}/o/{quote(name, safe='')}")

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        bucket, name = self._object(path)
        if bucket in HIERARCHICAL and not self._is_folder(bucket, name):
            self._ask("POST", f"storage/v1/b/{bucket}/folders", json.dumps({"name": name}).encode(), recursive="true")

    def rmdir(self, path: str) -> None:
        bucket, name = self._object(path)
        if bucket in HIERARCHICAL:
            self._ask("DELETE", f"storage/v1/b/{bucket}/folders/{quote(name, safe='')}")

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        found = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        kinds = {each: self.isdir(each) for each in found}
        for each in sorted(kinds, key=lambda name: (kinds[name], -name.count("/"))):  # files, then the deepest folders
            self.rmdir(each) if kinds[each] else self.rm_file(each)

    makedirs = mkdir


class _Upload(io.BytesIO):
    def __init__(self, send: Any) -> None:
        super().__init__()
        self._send = send

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            self._send = None
        self.close()

    def close(self) -> None:
        send, self._send = self._send, None
        if send is not None:
            send(self.getvalue())
        super().close()
