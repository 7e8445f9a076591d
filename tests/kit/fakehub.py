"""A Hugging Face Hub on 127.0.0.1: answers what huggingface_hub asks for models, from folders on this disk.

`install` makes it the Hub of this process, with an empty cache; `Hub.environment` does so for child processes.
`Hub.requests` lists what was asked, so that tests can tell a fetched file from a cached one.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from bertjax.storage import model_hub


@dataclass
class Hub:
    """`models`: {"org/name": {revision: folder}}; `gated` ones show their list of files and give none."""

    cache: Path
    models: dict[str, dict[str, Path]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)  # names of files that end too early
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, folder: Path, revision: str = "main") -> str:
        """Offer a folder -> its commit."""
        self.models.setdefault(name, {})[revision] = folder
        return commit_of(folder)

    def fetched(self, ending: str = "") -> list[str]:
        """The files that were sent, by name, since the last call."""
        found = [line.rsplit("/", 1)[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line]
        self.requests.clear()
        return [name for name in found if name.endswith(ending)]

    def handler(self) -> type:
        return type("Handler", (_Handler,), {"hub": self})

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(self.cache), "HF_HUB_OFFLINE": "0"}


def commit_of(folder: Path) -> str:
    digest = hashlib.sha1()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def install(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> ThreadingHTTPServer:
    """Start the server and point huggingface_hub of this process to it; the caller shuts it down."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model_hub.forget()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer()

    def do_GET(self) -> None:  # noqa: N802
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        is_api = path.startswith("api/models/")
        path = path.removeprefix("api/models/")
        name = next((name for name in self.hub.models if path == name or path.startswith(f"{name}/")), None)
        if name is None:
            return self.refuse(404, "RepoNotFound", "Repository Not Found")
        what, _, rest = path[len(name) :].strip("/").partition("/")
        revision = rest if what == "revision" else rest.split("/")[0] if what in ("tree", "resolve") else "main"
        folders = self.hub.models[name]
        folder = folders.get(revision) or next((f for f in folders.values() if commit_of(f) == revision), None)
        if folder is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        if what == "auth-check":
            return self.refuse(403, "GatedRepo", "restricted") if name in self.hub.gated else self.send({})
        if not is_api:
            return self.send_file(name, folder, files, rest.split("/", 1)[1])
        if what == "tree":
            return self.send(
                [{"type": "file", "path": n, "size": p.stat().st_size, "oid": _oid(p)} for n, p in files.items()]
            )
        listed = [{"rfilename": n, "size": p.stat().st_size, "blobId": _oid(p)} for n, p in files.items()]
        return self.send(
            {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": commit_of(folder),
                "gated": "auto" if name in self.hub.gated else False,
                "siblings": listed,
            }
        )

    def send_file(self, name: str, folder: Path, files: dict[str, Path], wanted: str) -> None:
        if name in self.hub.gated:
            return self.refuse(403, "GatedRepo", "Access to this model is restricted")
        if wanted not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = files[wanted].read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit_of(folder))
        self.send_header("ETag", f'"{_oid(files[wanted])}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            if wanted in self.hub.broken:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return None
            self.wfile.write(data)
        return None

    def send(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
