"""Weights of transformers in its older files: torch's pytorch_model.bin and Flax's flax_model.msgpack.

torch reads its files with `weights_only=True`: tensors are made and no code in the file runs. Files are named as
transformers 4 saves them, in one piece or as the shards of an index. Flax names are those of transformers 4's
`modeling_flax_pytorch_utils.py`: `kernel` is a torch `weight` with its axes reversed, `scale` and `embedding` are
`weight`, and the levels are joined by dots.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util
from jax import numpy as jnp
from packaging.version import Version

from bertjax.errors import UserError
from bertjax.interop import safetensors_folder
from bertjax.interop.foreign.checkpoint import ForeignCheckpoint, damaged

TORCH, FLAX = "pytorch_model.bin", "flax_model.msgpack"
_OLDEST_TORCH = Version("2.6")  # weights_only=True could run code before (CVE-2025-32434)
_FLAX_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_WEIGHTS = (".bin", ".msgpack", ".h5", ".index.json", ".ot", ".onnx")  # endings of files that are not linked


def has_torch(folder: Path) -> bool:
    return _present(folder, TORCH)


def torch_is_installed() -> bool:
    return find_spec("torch") is not None


def has_flax(folder: Path) -> bool:
    return _present(folder, FLAX)


def _present(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.index.json").is_file()


def read_torch(folder: Path) -> ForeignCheckpoint:
    """The tensors of pytorch_model.bin. Raises UserError, also where torch is not installed."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{folder}: holds {TORCH}, which only torch can read; pip install 'bertjax[torch]', or use a folder with "
            f"{safetensors_folder.WEIGHTS}"
        ) from None
    if Version(torch.__version__) < _OLDEST_TORCH:
        raise UserError(
            f"{folder}: holds {TORCH}, and a file could run code in torch {torch.__version__}; install torch "
            f"{_OLDEST_TORCH} or newer"
        )

    def read(path: Path) -> Mapping[str, Any]:
        _check_pointer(path)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises pickle's, zipfile's and its own
            reason = "it holds more than weights" if "weights_only" in str(error) else error
            raise damaged(path, reason, "torch file of weights") from None
        named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
        if not named or not all(isinstance(x, torch.Tensor) for x in found.values()):
            raise damaged(path, "not a dictionary of tensors", "torch file of weights")
        return {name: as_numpy(path, name, x) for name, x in found.items()}

    def as_numpy(path: Path, name: str, tensor: Any) -> np.ndarray:
        try:
            tensor = tensor.detach().contiguous()
            if tensor.dtype == torch.bfloat16:  # numpy has it under another name
                return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
            return tensor.numpy()
        except (TypeError, RuntimeError, NotImplementedError):  # sparse, quantized, 8 bits, or without data
            kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}".replace("torch.", "")
            raise UserError(
                f"{path}: tensor '{name}' cannot be read ({kind}); save it as a dense tensor of float32 or bfloat16"
            ) from None

    return ForeignCheckpoint(_merge(folder, TORCH, read), _other_files(folder))


def read_flax(folder: Path) -> ForeignCheckpoint:
    """The arrays of flax_model.msgpack, named and laid out as torch's. Raises UserError."""

    def read(path: Path) -> Mapping[str, Any]:
        _check_pointer(path)
        try:
            found = serialization.msgpack_restore(path.read_bytes())
            flat = traverse_util.flatten_dict(found, sep="/")
        except Exception as error:  # msgpack and flax raise many
            raise damaged(path, error, "Flax file of weights") from None
        if not flat or not all(isinstance(x, np.ndarray) for x in flat.values()):
            raise damaged(path, "not a tree of arrays", "Flax file of weights")
        return flat

    weights = dict(to_torch(name, array) for name, array in _merge(folder, FLAX, read).items())
    return ForeignCheckpoint(weights, _other_files(folder))


def to_torch(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """`a/b/kernel` [in, out] -> (`a.b.weight`, [out, in]); embeddings, norms and biases keep their axes."""
    *module, leaf = name.split("/")
    there = ".".join((*module, _FLAX_LEAVES.get(leaf, leaf)))
    return there, np.ascontiguousarray(array.T if leaf == "kernel" else array)


def _merge(folder: Path, name: str, read: Callable[[Path], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all files. Raises UserError where two files hold one name."""
    index = folder / f"{name}.index.json"
    paths = [folder / name]
    if not paths[0].is_file():
        paths = safetensors_folder.shard_files(index, Path(name).suffix)
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        found = read(path)
        if twice := sorted(found.keys() & arrays.keys()):
            raise UserError(f"{path}: holds '{twice[0]}', as another file of {index.name} does; remove one of them")
        arrays |= found
    return arrays


def _check_pointer(path: Path) -> None:
    with path.open("rb") as start:
        if start.read(24).startswith(b"version https://git-lfs"):
            raise UserError(f"{path}: is a Git LFS pointer and not the weights; run git lfs pull")


def _other_files(folder: Path) -> dict[str, Path]:
    """Everything in a folder that holds no weights of some format."""
    return {
        path.name: path for path in folder.iterdir()
        if path.suffix != ".bin" and not path.name.endswith(_WEIGHTS)
    }  # fmt: skip
