"""Read safetensors files of a folder, one tensor at a time as float32, and write a folder atomically."""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertjax.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
INT8_WEIGHTS, SCALE = "model.int8.safetensors", ".int8_scale"  # `bertjax quantize`: int8 rows and their float32 scales
# Weights that transformers 4 saved beside or instead of safetensors; `bertjax import` reads all but the last.
_OLD_WEIGHTS = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack", "flax_model.msgpack.index.json",
    "tf_model.h5",
)  # fmt: skip
_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Any  # safetensors' open file
    scale: str | None = None  # of int8 weights: the tensor with the scale of each row

    def read(self) -> np.ndarray:
        """The tensor as float32 [*shape]. Raises UserError for NaN or infinity."""
        try:
            array = self.file.get_tensor(self.name).astype(np.float32)
            if self.scale is not None:
                array *= self.file.get_tensor(self.scale)[:, None]
        except Exception as error:
            raise corrupt_file(self.path, error) from None
        if not np.isfinite(array).all():
            raise UserError(f"{self.path}: tensor '{self.name}' holds NaN or infinite values; download it again")
        return array


def open_folder(folder: Path, rename: Callable[[str], str] = str) -> dict[str, StoredTensor]:
    """{rename(name): tensor} of model.safetensors, of the files in its index, or of model.int8.safetensors."""
    tensors: dict[str, StoredTensor] = {}
    for path in _files(folder):
        for stored in _open(path):
            name = rename(stored.name)
            if name in tensors:
                raise UserError(f"{path}: tensors '{tensors[name].name}' and '{stored.name}' are the same; remove one")
            tensors[name] = stored
    return tensors


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return shard_files(folder / INDEX)
    if (folder / INT8_WEIGHTS).is_file():
        return [folder / INT8_WEIGHTS]
    old = next((name for name in _OLD_WEIGHTS if (folder / name).is_file()), None)
    if old == "tf_model.h5":
        raise UserError(
            f"{folder}: holds {old} and no {WEIGHTS}; convert it where it is trusted: in transformers 4 with torch and "
            "tf (5 reads no such file), AutoModel...from_pretrained(folder, from_tf=True).save_pretrained(new_folder), "
            "AutoModel... being the class that config.json names under architectures"
        )
    if old:
        raise UserError(f"{folder}: holds {old} and no {WEIGHTS}; `bertjax import` of it makes a run folder to use")
    raise UserError(f"{folder}: holds no {WEIGHTS}; give a folder that transformers' save_pretrained wrote")


def shard_files(index: Path, ending: str = ".safetensors") -> list[Path]:
    """The files that an index of weights lists. Raises UserError for no index, other names and missing files."""
    kind = ending.removeprefix(".")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{index}: not an index of {kind} files (weight_map); download it again") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(ending):
            raise UserError(f"{index}: {name!a:.60} is not the name of a {kind} file beside it; download it again")
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: lists {name}, which is not there; download it too")
    return sorted(index.parent / name for name in names)


def _open(path: Path) -> list[StoredTensor]:
    with path.open("rb") as start:
        if start.read(24).startswith(b"version https://git-lfs"):
            raise UserError(f"{path}: is a Git LFS pointer and not the weights; run git lfs pull")
    try:
        file = safe_open(str(path), framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        tensors = {n: StoredTensor(path, n, tuple(s.get_shape()), s.get_dtype(), file) for n, s in slices.items()}
    except Exception as error:  # safetensors raises more than its one error class
        raise corrupt_file(path, error) from None
    return _with_scales(tensors) if path.name == INT8_WEIGHTS else list(tensors.values())


def _with_scales(tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """int8 weights [rows, columns] as float32 tensors that read their scale [rows]."""
    found = []
    for name, stored in tensors.items():
        if (scale := tensors.get(name + SCALE)) is not None:
            if (
                stored.dtype != "I8"
                or len(stored.shape) != 2
                or (scale.dtype, scale.shape) != ("F32", stored.shape[:1])
            ):
                raise corrupt_file(stored.path, ValueError(f"{name} and its scale do not fit"))
            stored = replace(stored, dtype="F32", scale=scale.name)
        if not name.endswith(SCALE):
            found.append(stored)
    return found


def corrupt_file(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:100]
    return UserError(f"{path}: not a sound safetensors file ({reason}); download or save it again")


def check_fields(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises UserError if config.json has another value of one of these fields than the model section."""
    for name in names:
        if name in theirs and theirs[name] != ours[name]:
            raise UserError(
                f"{folder / 'config.json'}: {name} is {theirs[name]!a:.40}, the model here has {ours[name]!r}; "
                "make the model section agree (or use model.config_from)"
            )


def check_complete(folder: Path, found: Mapping[str, StoredTensor], wanted: Collection[str], model: str) -> None:
    """Raises UserError if the folder lacks a tensor."""
    if missing := [name for name in wanted if name not in found]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{folder}: has no tensor '{missing[0]}'{more}; give a complete {model}")


def check_tensor(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    """Raises UserError when a tensor has another shape, or is not of floats."""
    if stored.shape != shape:
        raise UserError(
            f"{stored.path}: tensor '{stored.name}' has shape {list(stored.shape)}, the model needs {list(shape)}; "
            "make the model section agree with the folder (or use model.config_from)"
        )
    if stored.dtype not in _FLOATS:
        known = ", ".join(_FLOATS)
        raise UserError(f"{stored.path}: tensor '{stored.name}' is stored as {stored.dtype}; give one of {known}")


def write_folder(
    out: Path, weights: Mapping[str, np.ndarray], config: dict[str, Any], add: Callable[[Path], None]
) -> None:
    """Write model.safetensors, config.json and the files of `add`; `out` appears atomically. Raises OSError."""
    work = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        write_tensors(work / WEIGHTS, weights)
        write_json(work / "config.json", config)
        shutil.copymode(work / "config.json", work / WEIGHTS)  # safetensors makes it readable by its owner only
        add(work)
        os.replace(work, out)  # all of its files in one piece
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one file of tensors, as PyTorch's. Raises OSError, which the library gives as text."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(number := int(found[1]), os.strerror(number), str(path)) from None
        raise


def merge_config(imported: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of an imported folder, updated with ours; `dtype` is the newer name of `torch_dtype`."""
    before = (imported or {}).get("config", {})
    return {name: value for name, value in before.items() if name not in ("dtype", "_name_or_path")} | dict(ours)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
