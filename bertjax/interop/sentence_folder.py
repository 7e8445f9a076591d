"""The files that sentence-transformers adds to a folder of transformers: modules.json and the folders it names."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.interop.safetensors_folder import write_json
from bertjax.models.pooling import Pooling

MODULES = "modules.json"
_LENGTH = "sentence_bert_config.json"
_POOLING = "1_Pooling"
_NORMALIZE = "2_Normalize"
# names of the classes before version 6, which still reads them
_CLASSES = "sentence_transformers.models"
_MODES: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}


@dataclass(frozen=True)
class SentenceModules:
    """How a sentence-transformers model makes a vector of a text.

    max_length: tokens of a text, special ones included; None: as many as the model reads. notes: parts that are left
    out, one line each.
    """

    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None
    notes: tuple[str, ...] = ()


def read_modules(folder: Path) -> SentenceModules | None:
    """The modules of a folder; None if it is not of sentence-transformers.

    A pooling that is neither the mean nor the first token counts as the mean, with a note. Raises UserError for a
    damaged file.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    listed = _read_json(path)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UserError(f"{path}: not a list of modules; download it again")
    kinds = {str(one.get("type", "")).rpartition(".")[2]: str(one.get("path", "")) for one in listed}
    pooling, notes = _read_pooling(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else ("mean", [])
    others = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    notes += [f"{path}: the module {kind!a:.40} is not applied; vectors are those before it" for kind in others]
    return SentenceModules(pooling, "Normalize" in kinds, _read_length(folder / _LENGTH), tuple(notes))


def _read_pooling(path: Path) -> tuple[Pooling, list[str]]:
    """(the pooling, notes about one that is not supported)."""
    config = _read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: not an object; download it again")
    given = config.get("pooling_mode")
    if given is None:
        given = [key.removeprefix("pooling_mode_") for key, on in config.items() if "pooling_mode_" in key and on]
    modes = [given] if isinstance(given, str) else list(given) if isinstance(given, list) else [str(given)]
    if len(modes) != 1 or modes[0] not in _MODES:
        names = " and ".join(str(mode)[:40] for mode in modes) or "none"
        return "mean", [f"{path}: pooling {names!a} is not supported; vectors are the mean over the tokens"]
    return _MODES[modes[0]], []


def _read_length(path: Path) -> int | None:
    config = _read_json(path) if path.is_file() else {}
    length = config.get("max_seq_length") if isinstance(config, dict) else None
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); download it again") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON; download it again") from None


def write_modules(folder: Path, modules: SentenceModules, size: int) -> None:
    """Add the files to a folder of transformers; `size`: numbers in a vector. Raises OSError."""
    parts = [("", "Transformer"), (_POOLING, "Pooling"), *([(_NORMALIZE, "Normalize")] if modules.normalize else [])]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_CLASSES}.{kind}"}
        for number, (path, kind) in enumerate(parts)
    ]
    for path, _ in parts:
        (folder / path).mkdir(exist_ok=True)
    modes = {"cls_token": modules.pooling == "cls", "mean_tokens": modules.pooling == "mean"}
    modes |= {"max_tokens": False, "mean_sqrt_len_tokens": False}
    pooling = {"word_embedding_dimension": size, **{f"pooling_mode_{name}": on for name, on in modes.items()}}
    write_json(folder / _POOLING / "config.json", pooling)
    write_json(folder / _LENGTH, {"max_seq_length": modules.max_length, "do_lower_case": False})
    write_json(folder / MODULES, listed)
