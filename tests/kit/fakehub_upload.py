"""The side of the fake Hub that takes uploads: logins, new models, branches, LFS objects and commits.

`tokens` maps a token to its user; a user may write to models of its own name and of `orgs`. Every commit becomes a
folder of files below `stored`, which the reading side offers at once.
"""

import base64
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fakehub


@dataclass
class UploadHub(fakehub.Hub):
    stored: Path = Path()
    tokens: dict[str, str] = field(default_factory=dict)
    orgs: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    commits: list[dict[str, Any]] = field(default_factory=list)  # {name, revision, summary, files, deleted}
    lfs: dict[str, bytes] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)  # {part of a path: HTTP status} of uploads that go wrong

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        folder = self.models[name][revision]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def handler(self) -> type:
        return type("Handler", (_Handler,), {"hub": self})


class _Handler(fakehub._Handler):
    hub: UploadHub

    def do_POST(self) -> None:  # noqa: N802
        self.take()

    def do_PUT(self) -> None:  # noqa: N802
        self.take()

    def answer(self) -> None:
        if self.path.startswith("/api/whoami"):
            self.hub.requests.append("GET whoami")
            if (user := self.user()) is None:
                return self.fail(401, "Invalid user token.")
            return self.reply({"name": user, "type": "user", "orgs": [], "auth": {}})
        return super().answer()

    def user(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def take(self) -> None:
        data = self.body()
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        if status := next((code for part, code in self.hub.fails.items() if part in path), None):
            return self.fail(status, "out of order")
        if path.startswith("lfs/"):
            self.hub.lfs[path.removeprefix("lfs/")] = data
            return self.reply({})
        if (user := self.user()) is None:
            return self.fail(401, "Invalid user token.")
        if path == "api/validate-yaml":
            return self.reply({"warnings": [], "errors": []})
        if path == "api/repos/create":
            return self.create(user, json.loads(data))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(data))
        name, what, rest = self.parts(path)
        if not self.may_write(user, name):
            return self.fail(403, "Forbidden: you don't have the rights")
        if what == "preupload":
            files = json.loads(data)["files"]
            mode = lambda one: "lfs" if one["path"].endswith(".safetensors") else "regular"  # noqa: E731
            return self.reply(
                {"files": [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in files]}
            )
        if what == "branch":
            head = self.hub.models[name]["main"]
            if rest in self.hub.models[name]:
                return self.fail(409, "Reference already exists")
            self.hub.models[name][rest] = head
            return self.reply({})
        return self.commit(name, rest, data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while length := int(self.rfile.readline(), 16):
            data += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def parts(self, path: str) -> tuple[str, str, str]:
        """api/models/org/name/what/rest -> (org/name, what, rest)."""
        org, name, what, rest = path.removeprefix("api/models/").split("/", 3)
        return f"{org}/{name}", what, rest

    def may_write(self, user: str, name: str) -> bool:
        return name.split("/")[0] in {user, *self.hub.orgs}

    def create(self, user: str, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if not self.may_write(user, name):
            return self.fail(403, "You don't have the rights to create a model under this namespace")
        if name in self.hub.models:
            return self.fail(409, "You already created this model repo", {"url": f"{self.hub.url}/{name}"})
        empty = self.hub.stored / name / "0"
        empty.mkdir(parents=True)
        (empty / ".gitattributes").write_text("")
        self.hub.models[name] = {"main": empty}
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        return self.reply({"url": f"{self.hub.url}/{name}"})

    def batch(self, asked: dict[str, Any]) -> None:
        href = lambda one: {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}  # noqa: E731
        self.reply({"transfer": "basic", "objects": [one | {"actions": href(one)} for one in asked["objects"]]})

    def commit(self, name: str, revision: str, data: bytes) -> None:
        lines = [json.loads(line) for line in data.splitlines() if line.strip()]
        versions = self.hub.models[name]
        number = len(self.hub.commits) + 1
        folder = self.hub.stored / name / str(number)
        shutil.copytree(versions.get(revision, versions["main"]), folder)
        done: dict[str, Any] = {"name": name, "revision": revision, "files": [], "deleted": []}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                done["summary"] = value["summary"]
            elif line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
                done["deleted"].append(value["path"])
            else:
                content = base64.b64decode(value["content"]) if line["key"] == "file" else self.hub.lfs[value["oid"]]
                if line["key"] == "lfsFile":
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                (folder / value["path"]).write_bytes(content)
                done["files"].append(value["path"])
        is_pr = "create_pr" in self.path
        versions["refs/pr/1" if is_pr else revision] = folder
        self.hub.commits.append(done)
        oid = fakehub.commit_of(folder)
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
        return self.reply(answer | ({"pullRequestUrl": f"{self.hub.url}/{name}/discussions/1"} if is_pr else {}))

    def reply(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, message: str, more: dict[str, Any] | None = None) -> None:
        return self.reply({"error": message} | (more or {}), status)
