"""A small server of Google Cloud Storage's JSON API, for runs in gs://, which counts requests and fails on request.

It knows what gcsfs and tensorstore ask for: objects with generations and preconditions, listings with prefix,
delimiter, offsets and pages, media, multipart and resumable uploads, range reads, deletions. Clients, also in child
processes, find it by the variables that gcsfs and tensorstore read (`install`).

A bucket in `Server.folders` has a hierarchical namespace: writing an object creates the folders above it, deleting it
leaves them, and listings show them as prefixes if asked to. Folders are listed, created and deleted through the
folders API (https://cloud.google.com/storage/docs/json_api/v1/folders); a folder that is not empty is not deleted.
"""

import base64
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
import gcs_client
import pytest

PAGE = 1000  # objects in a page of a listing
_PATH = re.compile(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/(o|storageLayout|folders))?(?:/(.+))?")


@dataclass
class Fault:
    """What the next `times` requests that match get.

    kind: a status, or "slow", "lost" (the request is done, the answer is not sent), "stale" (a listing as it was
    before the last change) or "hold" (nothing happens, for ever). name: a regular expression in the object's name or a
    listing's prefix.
    """

    kind: int | str
    method: str = ""  # any
    name: str = ""
    times: int = 1


@dataclass
class Server:
    """The objects of all buckets, and what was asked for."""

    objects: dict[str, dict[str, tuple[int, bytes]]] = field(default_factory=dict)  # by bucket and name
    folders: dict[str, set[str]] = field(default_factory=dict)  # by bucket, of those with a hierarchical namespace
    before: dict[str, dict[str, tuple[int, bytes]]] = field(default_factory=dict)  # the last change
    uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, name or prefix
    lock: Any = field(default_factory=threading.RLock)
    generation: int = 1_000_000
    delay: float = 0.0  # seconds before each request is done
    held: Any = field(default_factory=threading.Event)  # a request waits for ever
    url: str = ""

    def names(self, prefix: str = "", bucket: str = "bucket") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects[bucket] if name.startswith(prefix))

    def text(self, name: str, bucket: str = "bucket") -> str:
        return self.objects[bucket][name][1].decode()

    def put(self, bucket: str, name: str, data: bytes) -> int:
        with self.lock:
            self.before[bucket] = dict(self.objects[bucket])
            self.generation += 1
            self.objects[bucket][name] = self.generation, data
            if bucket in self.folders:
                self.folders[bucket] |= folders_above(name)
            return self.generation

    def fault(self, method: str, name: str) -> int | str | None:
        with self.lock:
            for one in self.faults:
                if one.times > 0 and one.method in ("", method) and re.search(one.name, name):
                    one.times -= 1
                    return one.kind
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        store: Server = self.server.store
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = _PATH.fullmatch(url.path)
        if found is None:
            return self._send(404)
        bucket, part, name = found[1], found[2], unquote(found[3] or "")
        shown = name or query.get("name") or query.get("prefix") or ""
        if "upload_id" in query:
            shown = store.uploads[query["upload_id"]][0]
        elif url.path.startswith("/upload") and not shown:
            shown = _multipart(body, self.headers.get("Content-Type", ""))[0]
        with store.lock:
            store.requests.append((self.command, shown))
        if store.delay:
            time.sleep(store.delay)
        fault = store.fault(self.command, shown)
        if isinstance(fault, int):
            return self._send(fault, {"error": {"code": fault, "message": "asked for by a test"}})
        if fault == "hold":
            store.held.set()
            time.sleep(3600)
        if fault == "slow":
            time.sleep(1.0)
        if fault == "lost":
            self.wfile = open(os.devnull, "wb")
            self.close_connection = True
        if bucket not in store.objects:
            return self._send(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        if part == "folders" and bucket in store.folders:
            with store.lock:
                return self._folder(store, bucket, name, query, body)
        if part == "storageLayout" and bucket in store.folders:
            return self._send(200, {"bucket": bucket, "hierarchicalNamespace": {"enabled": True}})
        if part != "o":
            return self._send(200, {"name": bucket, "kind": "storage#bucket", "locationType": "region"})
        if url.path.startswith("/upload"):
            return self._upload(store, bucket, query, body)
        if not name:
            objects = store.before.get(bucket, {}) if fault == "stale" else store.objects[bucket]
            return self._list(objects, query, store.folders.get(bucket, set()))
        with store.lock:
            there = store.objects[bucket].get(name)
            if (status := _precondition(there, query)) is not None:
                return self._send(status, {"error": {"code": status, "message": "conditionNotMet"}})
            if there is None:
                return self._send(404, {"error": {"code": 404, "message": f"No such object: {bucket}/{name}"}})
            if self.command == "DELETE":
                store.before[bucket] = dict(store.objects[bucket])
                del store.objects[bucket][name]
                return self._send(204)
        if query.get("alt") == "media" or "/download/" in url.path:
            return self._media(*there)
        self._send(200, _resource(bucket, name, *there))

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _media(self, generation: int, data: bytes) -> None:
        headers = {"x-goog-generation": str(generation), "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, data, headers)
        size = len(data)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first >= size:
            return self._send(416, b"", headers | {"Content-Range": f"bytes */{size}"})
        self._send(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{size}"})

    def _folder(self, store: Server, bucket: str, name: str, query: dict[str, str], body: bytes) -> None:
        there = store.folders[bucket]
        if self.command == "POST":
            name = json.loads(body)["name"].rstrip("/") + "/"
            if name in there:
                return self._send(409, {"error": {"code": 409, "message": "The folder already exists."}})
            there |= folders_above(name)
        elif not name:
            found = [{"name": each} for each in sorted(there) if each.startswith(query.get("prefix", ""))]
            return self._send(200, {"kind": "storage#folders", "items": found})
        name = name.rstrip("/") + "/"
        if name not in there:
            return self._send(404, {"error": {"code": 404, "message": f"No such folder: {bucket}/{name}"}})
        if self.command == "DELETE":
            inside = [each for each in [*there, *store.objects[bucket]] if each.startswith(name) and each != name]
            if inside:
                return self._send(412, {"error": {"code": 412, "message": "The folder is not empty."}})
            there.remove(name)
            return self._send(204)
        self._send(200, {"kind": "storage#folder", "bucket": bucket, "name": name})

    def _list(self, objects: dict[str, tuple[int, bytes]], query: dict[str, str], folders: set[str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], dict.fromkeys([])
        names = [n for n in sorted(objects) if n.startswith(prefix) and n >= start and (not end or n < end)]
        first = int(query.get("pageToken", 0))
        page = names[first : first + min(PAGE, int(query.get("maxResults", PAGE)))]
        for name in page:
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes[prefix + rest.split(delimiter)[0] + delimiter] = None
            else:
                items.append(_resource("bucket", name, *objects[name]))
        if delimiter == "/" and query.get("includeFoldersAsPrefixes") == "true" and not first:
            inside = [each[len(prefix) :] for each in sorted(folders) if each.startswith(prefix) and each != prefix]
            prefixes |= dict.fromkeys(prefix + rest.split("/")[0] + "/" for rest in inside)
        after = {"nextPageToken": str(first + len(page))} if first + len(page) < len(names) else {}
        self._send(200, {"kind": "storage#objects", "items": items, "prefixes": [*prefixes], **after})

    def _upload(self, store: Server, bucket: str, query: dict[str, str], body: bytes) -> None:
        kind, session = query.get("uploadType"), query.get("upload_id")
        name, data = query.get("name", ""), body
        if kind == "multipart":
            name, data = _multipart(body, self.headers.get("Content-Type", ""))
        elif session is not None:
            name, _, asked, kept = store.uploads[session]
            kept += body
            query = asked
            total = self.headers.get("Content-Range", "*/*").rpartition("/")[2]
            if total == "*" or len(kept) < int(total):
                return self._send(308, b"", {"Range": f"bytes=0-{len(kept) - 1}"} if kept else {})
            data = bytes(kept)
        elif kind == "resumable":
            name = name or json.loads(body)["name"]
            session = str(len(store.uploads))
            store.uploads[session] = name, bucket, query, bytearray()
            place = f"{store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
            return self._send(200, b"", {"Location": place})
        with store.lock:
            if (status := _precondition(store.objects[bucket].get(name), query)) is not None:
                return self._send(status, {"error": {"code": status, "message": "conditionNotMet"}})
            generation = store.put(bucket, name, data)
        self._send(200, _resource(bucket, name, generation, data))

    def _send(self, status: int, content: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json; charset=UTF-8"
        head = [f"HTTP/1.1 {status} -", f"Content-Length: {len(data)}", f"Content-Type: {kind}"]
        head += [f"{key}: {value}" for key, value in (headers or {}).items()]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write("\r\n".join([*head, "", ""]).encode() + (b"" if status in (204, 304) else data))


def folders_above(name: str) -> set[str]:
    """The folders that hold an object or a folder (which ends with a slash and is among them)."""
    parts = name.split("/")[:-1]
    return {"/".join(parts[: n + 1]) + "/" for n in range(len(parts))}


def _precondition(there: tuple[int, bytes] | None, query: dict[str, str]) -> int | None:
    generation = str(there[0]) if there else "0"
    if query.get("ifGenerationMatch", generation) != generation:
        return 412
    if query.get("ifGenerationNotMatch") == generation and there:
        return 304
    if query.get("generation", generation) != generation:
        return 404
    return None


def _multipart(body: bytes, kind: str) -> tuple[str, bytes]:
    found = re.search(r'boundary="?([^";]+)"?', kind)
    if found is None:
        return json.loads(body or b"{}").get("name", ""), b""
    _, meta, media = body.split(b"--" + found[1].encode(), 3)[:3]
    data = re.split(rb"\r?\n\r?\n", media, maxsplit=1)[1]
    meta = re.split(rb"\r?\n\r?\n", meta, maxsplit=1)[1]
    return json.loads(meta)["name"], data.removesuffix(b"\n").removesuffix(b"\r")


def _resource(bucket: str, name: str, generation: int, data: bytes) -> dict[str, Any]:
    return {
        "kind": "storage#object", "bucket": bucket, "name": name, "generation": str(generation), "metageneration": "1",
        "size": str(len(data)), "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
        "contentType": "application/octet-stream", "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z", "etag": f"E{generation}",
    }  # fmt: skip


class _Http(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients are killed."""


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server with an empty bucket called `bucket`."""
    http = _Http(("127.0.0.1", 0), _Handler)
    store = Server(objects={"bucket": {}}, url=f"http://127.0.0.1:{http.server_port}")
    http.store = store  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield store
    finally:
        http.shutdown()
        http.server_close()


def install(store: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lead gs:// of this process and its children to `store`; local copies are kept below `folder`.

    Buckets with a hierarchical namespace are recognized by this process only.
    """
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", store.url)
    monkeypatch.setenv("BERTJAX_STAGING", str(folder / "staged"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # do not look for credentials
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # tensorstore's
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would ask Google for the kind of bucket
    monkeypatch.setattr(gcs_client, "HIERARCHICAL", frozenset(store.folders))
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    packages = folder / "packages"
    if importlib.util.find_spec("gcsfs") is None and not packages.exists():
        about = packages / "gcs_client_test-1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gcs-client-test\nVersion: 1\n")
        points = "[fsspec.specs]\ngcs = gcs_client:JsonApi\ngs = gcs_client:JsonApi\n"
        (about / "entry_points.txt").write_text(points)
        path = os.pathsep.join([str(packages), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", path)
        for name in ("gcs", "gs"):
            fsspec.register_implementation(name, gcs_client.JsonApi, clobber=True)
    elif importlib.util.find_spec("gcsfs") is not None:  # another test may have registered its own
        module, kind = ("gcs_folders", "HierarchicalGcs") if store.folders else ("gcsfs.core", "GCSFileSystem")
        for name in ("gcs", "gs"):  # the class: fsspec would not look up a name again
            fsspec.register_implementation(name, getattr(importlib.import_module(module), kind), clobber=True)
        fsspec.filesystem("gcs").clear_instance_cache()
    from etils.epath.backend import fsspec_backend

    fsspec_backend._get_filesystem.cache_clear()
