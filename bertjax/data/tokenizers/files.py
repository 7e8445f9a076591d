"""Reads and writes the files of a tokenizer folder as transformers does: tokenizer.json and its settings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.data.tokenizers import backend_state
from bertjax.errors import UserError
from bertjax.storage import remote
from bertjax.storage.atomic import write_bytes_atomic, write_json_atomic
from bertjax.storage.text import read_bytes

JSON, CONFIG, SPECIAL, ADDED = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
DIGESTS = "sha256.json"  # of a folder that bertjax trained or keeps with a run
_IDENTITY = "tokenizer"  # its key there, beside the names of files
_SEAL = "bertjax"  # a key of tokenizer_config.json, which transformers ignores


@dataclass(frozen=True)
class SpecialTokens:
    """What transformers knows of a tokenizer in addition to its tokenizer.json.

    `is_native`: made by bertjax, where text never gives a special token, as in the reference. Exported folders do not
    say so, because the fill-mask pipeline of transformers needs [MASK] in a text.
    """

    roles: dict[str, str]  # {role: token} of pad, unk, cls, sep, mask, bos and eos, as far as there are
    others: tuple[str, ...] = ()  # without a role (additional_special_tokens)
    in_text: bool = True  # a text that spells a special token gives it (split_special_tokens false)
    is_native: bool = False

    @property
    def is_t5(self) -> bool:
        """Whether texts end with eos, as in T5, and are not framed by cls and sep."""
        return not {"cls", "sep"} <= self.roles.keys()

    def as_json(self) -> dict[str, Any]:
        return {"roles": self.roles, "others": list(self.others), "in_text": self.in_text, "own": self.is_native}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "SpecialTokens":
        """Raises ValueError, KeyError or TypeError for what `as_json` never gives."""
        roles, others = dict(found["roles"]), tuple(found["others"])
        if not all(isinstance(token, str) for token in [*roles, *roles.values(), *others]):
            raise TypeError("not text")
        return cls(roles, others, found["in_text"] is True, found["own"] is True)


NATIVE_SPECIAL_TOKENS = SpecialTokens(
    {role: f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}, (), False, True
)


def tokenizer_config(special: SpecialTokens, about: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with the generic class; BertTokenizer would reject words above 100 letters."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **about, **_special_tokens_map(special)}
    if not special.in_text and not special.is_native:
        config["split_special_tokens"] = True
    return config


def _special_tokens_map(special: SpecialTokens) -> dict[str, Any]:
    others = {"additional_special_tokens": list(special.others)} if special.others else {}
    return {f"{role}_token": token for role, token in special.roles.items()} | others


def with_digest(files: Mapping[str, str], special: SpecialTokens) -> dict[str, str]:
    """The files, {name: text}, with a digest in tokenizer_config.json, which `read_verified` checks."""
    config = json.loads(files[CONFIG])
    config[_SEAL] = {"special_tokens": special.as_json(), "sha256": _digest(files)}
    return {**files, CONFIG: _text(config)}


def read_verified(folder: Path) -> tuple[str, SpecialTokens] | None:
    """tokenizer.json and the special tokens of a folder whose files are as `with_digest` left them; None for others."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        seal = config.pop(_SEAL)  # before tokenizer.json is read, which others may read otherwise
        files = {JSON: (folder / JSON).read_text(encoding="utf-8")}
        files |= {n: (folder / n).read_text(encoding="utf-8") for n in (SPECIAL, ADDED) if (folder / n).is_file()}
        if seal["sha256"] != _digest({**files, CONFIG: _text(config)}):
            return None
        return files[JSON], SpecialTokens.from_json(seal["special_tokens"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _digest(files: Mapping[str, str]) -> str:
    read = {name: text for name, text in files.items() if name in (JSON, CONFIG, SPECIAL, ADDED)}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def hf_folder_files(
    tokenizer_json: str, special: SpecialTokens, about: Mapping[str, Any], pieces: Sequence[str] = ()
) -> dict[str, str]:
    """{name: text} of a folder that transformers' AutoTokenizer loads; vocab.txt where `pieces` are given."""
    files = {JSON: tokenizer_json, CONFIG: _text(tokenizer_config(special, about))}
    files[SPECIAL] = _text(_special_tokens_map(special))
    if pieces:
        files["vocab.txt"] = "\n".join(pieces) + "\n"
    return with_digest(files, special)


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write each file atomically; tokenizer.json, which readers look for, comes last."""
    if not remote.is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name == JSON):
        content = files[name]
        write_bytes_atomic(folder / name, content if isinstance(content, bytes) else content.encode())


def write_digests(folder: Path, identity: str | None = None) -> None:
    """Write the SHA-256 of each file of a tokenizer folder, for `is_intact`; after this the folder is complete.

    identity: the tokenizer's own `sha256`, which tells the tokenizer of an intact folder without loading it.
    """
    about = {} if identity is None else {_IDENTITY: identity}
    write_json_atomic(folder / DIGESTS, _file_digests(folder) | about)


def is_intact(folder: Path, identity: str | None = None) -> bool | None:
    """Whether the files of a folder are those of `write_digests`; None for a folder without digests.

    With an identity also whether the folder was written with it.
    """
    try:
        saved = json.loads(read_bytes(folder / DIGESTS))
        written = saved.pop(_IDENTITY, None)
        return bool(identity in (None, written) and saved == _file_digests(folder))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return False


def _file_digests(folder: Path) -> dict[str, str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != DIGESTS and not p.name.startswith("."))
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file. Raises UserError."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; repair or remove it")
    return found


def prefer_tokenizer_json(path: Path) -> Path:
    """The tokenizer.json of the folder for a vocab.txt with the same pieces, since only it records case and accents."""
    beside = path.parent / JSON
    if path.name != "vocab.txt" or not path.is_file() or not beside.is_file():
        return path
    try:
        vocab = backend_state.parse_backend(beside.read_text(encoding="utf-8"), str(beside)).get_vocab()
        same = path.read_text(encoding="utf-8") == "".join(f"{piece}\n" for piece in backend_state.pieces(vocab))
    except Exception:  # noqa: BLE001  (reading the file reports it)
        return path
    return beside if same else path


STATE_KEY = "transformers"  # the `type` of the JSON that a checkpoint keeps of a tokenizer that transformers loaded


def to_state_json(state: Mapping[str, Any], special: SpecialTokens) -> str:
    kept = {"type": STATE_KEY, "special_tokens": special.as_json(), "tokenizer": state}
    return json.dumps(kept, ensure_ascii=False) + "\n"


def from_state_json(found: Mapping[str, Any], where: str) -> tuple[str, SpecialTokens]:
    """-> (tokenizer.json, special tokens). Raises UserError."""
    try:
        return json.dumps(found["tokenizer"]), SpecialTokens.from_json(found["special_tokens"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{where}: not a tokenizer as bertjax keeps it; copy or export it again") from None
