"""The lines of JSON by which the processes of a job recognize each other, signed with a secret that they share.

Process 0 greets every connection with a number used once; the other process answers with its own number, who it is, and
a signature over all of it, and gets an answer that is signed too. A stranger cannot make the signatures, nor use those
it has seen. Without a secret the key is empty: who knows this protocol may then take part.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENV_SECRET = "BERTJAX_SECRET"  # noqa: S105 - the name of a variable
MAX_LINE_BYTES = 4096
MAX_HOST_CHARS = 100


@dataclass(frozen=True)
class Hello:
    """What a process says of itself."""

    index: int
    count: int  # of processes it was started for
    host: str


def job_key() -> bytes:
    """The secret that the launcher gave to all processes of the job; empty without one."""
    return os.environ.get(ENV_SECRET, "").strip().encode()


def make_nonce() -> str:
    return secrets.token_hex(16)


def greeting(nonce: str) -> bytes:
    """The first line, of process 0."""
    return _line({"bertjax": 1, "nonce": nonce})


def read_greeting(line: bytes) -> str | None:
    """Process 0's nonce; None if this is another program."""
    said = _parse(line)
    nonce = said.get("nonce")
    return nonce if said.get("bertjax") == 1 and isinstance(nonce, str) and len(nonce) <= 64 else None


def hello(of: Hello, key: bytes, greeted: str, nonce: str) -> bytes:
    """The answer to a greeting; `greeted`: its nonce."""
    said = {"process": of.index, "of": of.count, "host": of.host, "nonce": nonce}
    return _line(said | {"mac": _sign(key, greeted, said)})


def read_hello(line: bytes, key: bytes, greeted: str) -> tuple[Hello, str] | None:
    """-> (who it is, its nonce); None for anything but a process that has the key."""
    said = _parse(line)
    if not _is_signed(said, key, greeted):
        return None
    index, count, host, nonce = (said.get(name) for name in ("process", "of", "host", "nonce"))
    if type(index) is not int or type(count) is not int or not isinstance(host, str) or not isinstance(nonce, str):
        return None
    return Hello(index, count, clean_host(host)), nonce


def answer(said: Mapping[str, Any], key: bytes, nonce: str) -> bytes:
    """Process 0's last word; `nonce`: of the process that gets it."""
    return _line({**said, "mac": _sign(key, nonce, said)})


def read_answer(line: bytes, key: bytes, nonce: str) -> dict[str, Any]:
    """What process 0 answered; {} if it was another program."""
    said = _parse(line)
    return said if _is_signed(said, key, nonce) else {}


def clean_host(name: object) -> str:
    """A host's name for a message: short and printable."""
    return "".join(c if c.isprintable() else "?" for c in str(name)[:MAX_HOST_CHARS])


def _line(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    """A line that is one JSON object; {} for anything else."""
    try:
        said = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _sign(key: bytes, nonce: str, said: Mapping[str, Any]) -> str:
    text = json.dumps([nonce, {name: value for name, value in said.items() if name != "mac"}], sort_keys=True)
    return hmac.new(b"bertjax rendezvous\0" + key, text.encode(), hashlib.sha256).hexdigest()


def _is_signed(said: Mapping[str, Any], key: bytes, nonce: str) -> bool:
    mac = said.get("mac")
    return isinstance(mac, str) and mac.isascii() and hmac.compare_digest(mac, _sign(key, nonce, said))
