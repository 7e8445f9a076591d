"""Replace passwords and tokens by `***` in everything the launcher prints or saves. Standard library only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

HIDDEN = "***"
_WORDS = r"(?<![A-Za-z])(?:pass|pat|pwd|auth|jwt)(?![A-Za-z])"  # parts of a name between underscores
_ENDS = r"(?<!by)(?<!com)(?<!sur)(?<!er)pass(?![A-Za-z])"  # PGPASS, SSHPASS; not bypass, compass
_SECRET = rf"(?:key|token(?!i[sz])|secret|passw|passphrase|credential|webhook|{_ENDS}|{_WORDS})"
# KEY=VALUE where the last part of the dotted key is named like a secret.
_KEY = rf"(?<![\w.?&-])((?:--env=)?(?:[\w-]+\.)*[\w-]*{_SECRET}[\w-]*=)(?!VALUE\b)"
_PAIR = re.compile(rf"{_KEY}(.+)", re.IGNORECASE | re.DOTALL)
_PAIR_IN_TEXT = re.compile(rf"{_KEY}('[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE)
_HTTP = re.compile(r"(https?://)[^\s'\"]*@", re.IGNORECASE)  # up to the last @: passwords may contain any character
_USER = re.compile(r"(\w[\w+.-]*://)[^\s'\"/@]*:[^\s'\"]*@")  # user:password of other schemes
_NAME = re.compile(r"(\w[\w+.-]*(?<!ssh)://)[^\s'\"/@]+@")  # a token; with ssh it is a user, as in ssh://git@host
_BARE = re.compile(r"(?<![\w@])[\w.+-]+:[^\s'\"@/]+@(?=\w)")  # user:password@host where the scheme is missing
_QUERY = re.compile(rf"([?&#][\w-]*(?:{_SECRET}|sig)[\w-]*=)[^&\s'\"#]+", re.IGNORECASE)
_SHAPES = re.compile(r"\b(gh[opsru]_|github_pat_|glpat-|hf_|sk-|xox[a-z]-|AKIA|Bearer )[\w.-]{10,}")


def redact(text: str) -> str:
    """Removes anything that looks like a secret from a line of text."""
    return _urls(_PAIR_IN_TEXT.sub(rf"\1{HIDDEN}", text))


def redact_word(word: str) -> str:
    """Redacts one argument; the entire value of KEY=VALUE where the key is named like a secret."""
    if word.startswith("--metadata="):  # several pairs, see gcloud.join_pairs
        pairs = re.fullmatch(r"--metadata=(?:\^([^^]+)\^)?(.*)", word, re.DOTALL)
        assert pairs is not None
        mark = pairs[1] or ","
        start = word[: -len(pairs[2])] if pairs[2] else word
        return start + mark.join(map(redact_word, pairs[2].split(mark)))
    found = _PAIR.fullmatch(word)
    return f"{found[1]}{HIDDEN}" if found else _urls(word)


def redact_command(argv: Sequence[str]) -> str:
    """A command in shell syntax, without secrets."""

    def hide(word: str) -> str:
        flag, _, remote = word.partition("=")
        if flag == "--command":
            return f"{flag}={shlex.join(map(hide, shlex.split(remote)))}"
        return redact_word(word)

    return shlex.join(map(hide, argv))


def _urls(text: str) -> str:
    text = _HTTP.sub(rf"\1{HIDDEN}@", text)
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _NAME.sub(rf"\1{HIDDEN}@", text)
    text = _BARE.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _SHAPES.sub(rf"\1{HIDDEN}", text)
