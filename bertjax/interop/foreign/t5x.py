"""T5 checkpoints of google-research/t5x: a folder `checkpoint_N` with zarr arrays, or one msgpack file with everything.

Layout as t5x/checkpoints.py writes and `find_checkpoint` finds it: the file `checkpoint` is flax's msgpack of {version,
optimizer: {target, state}} (or the tree alone), whose leaves are arrays, tensorstore specs with a path relative to the
folder, or, where Orbax wrote it, `PLACEHOLDER://NAME` for the zarr array NAME. Parameters are named as in
t5x/examples/t5/network.py: `encoder/layers_0/attention/query/kernel` is [embed, heads * kv]. Scanned layers (`layers`
in t5x/examples/scalable_t5, the stack's own name in flaxformer) are one array with an axis of layers, by default 1;
heads may have an axis of their own. A relative embedding is [heads, buckets].
"""

import json
import re
from collections.abc import Iterator, Mapping
from math import ceil, prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from flax import serialization

from bertjax.errors import UserError
from bertjax.interop.foreign import t5_folder
from bertjax.interop.foreign.checkpoint import ForeignCheckpoint, check_names, damaged

_FILE = "checkpoint"
_PLACEHOLDER = "PLACEHOLDER://"
_EMBEDDING = "token_embedder/embedding"
_PARTS = {"SelfAttention": "self_attention", "EncDecAttention": "encoder_decoder_attention", "DenseReluDense": "mlp"}
_LEAVES = {"q": "query", "k": "key", "v": "value", "o": "out"}
_NORMS = {
    "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
    "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
}


def find_checkpoint(place: Path) -> Path | None:
    """The msgpack file of `place`: itself, a checkpoint's folder, or a folder of checkpoints (its last step)."""
    if place.is_file():
        return place if _is_msgpack(place) else None
    steps = [path for path in place.glob("checkpoint_*") if path.name.rpartition("_")[2].isdecimal()]
    for path in (place, *sorted(steps, key=lambda path: -int(path.name.rpartition("_")[2]))):
        for file in (path, path / _FILE, path / "state" / _FILE):
            if file.is_file() and _is_msgpack(file):
                return file
    return None


def _is_msgpack(path: Path) -> bool:
    """Whether a file starts as a map of msgpack does, whose first key is a string."""
    with path.open("rb") as file:
        start = file.read(8)
    head = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x80 <= start[0] <= 0x8F else 0) if start else 0
    return bool(head) and len(start) > head and (0xA0 <= start[head] <= 0xBF or start[head] == 0xD9)


def read(place: Path, path: Path, tokenizer: Path | None) -> ForeignCheckpoint:
    """The weights, a config.json and the tokenizer of a checkpoint. Raises UserError."""
    folder = path.parent
    folders = tuple(dict.fromkeys((folder, folder.absolute().parent, place if place.is_dir() else folder)))
    files = {t5_folder.TOKENIZER: t5_folder.find_tokenizer(place, folders, tokenizer)}
    if own := next((f / "config.json" for f in folders if (f / "config.json").is_file()), None):
        files["config.json"] = own
    target, others = _read_tree(path)
    arrays = {name: _read_leaf(path, name, leaf) for name, leaf in target.items()}
    arrays = _with_one_bias(path, _unscan(path, arrays))

    def shape_of(name: str) -> tuple[int, ...] | None:
        return None if (found := arrays.get(_parameter(name))) is None else _to_torch(name, found).shape

    config, notes = t5_folder.read_config(place, folders, shape_of)
    of_config = len(notes)
    wanted = {name: _parameter(name) for name in t5_folder.tensor_names(path, config)}
    check_names(path, arrays, wanted.values(), "T5 of this size")
    weights = {name: _to_torch(name, arrays[here]) for name, here in wanted.items()}
    if others:
        notes.append(f"{path}: the optimizer's state ({others} arrays) is not read; training starts with a new one")
    if own:
        return ForeignCheckpoint(weights, files, {}, tuple(notes[of_config:]))
    return ForeignCheckpoint(weights, files, {"config.json": config}, tuple(notes))


def _read_tree(path: Path) -> tuple[dict[str, Any], int]:
    """({parameter: leaf}, how many leaves are something else)."""
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        every = dict(_leaves(tree))
    except Exception as error:  # msgpack and flax raise many
        raise damaged(path, error, "T5X checkpoint") from None
    found = [name.removesuffix(_EMBEDDING) for name in every if f"/{name}".endswith(f"/{_EMBEDDING}")]
    prefix = next((above for above in found if "state" not in above.split("/")), None)  # whose arrays have these names
    if prefix is None:
        shown = ", ".join(list(every)[:3])
        raise UserError(f"{path}: has no {_EMBEDDING} and is no T5X checkpoint of a T5 (it holds {shown[:100]})")
    target = {name.removeprefix(prefix): leaf for name, leaf in every.items() if name.startswith(prefix)}
    if not prefix:  # the parameters alone
        target = {name: leaf for name, leaf in target.items() if name.split("/")[0] not in ("state", "step", "version")}
    counters = ("version", "step")
    others = sum(name.rpartition("/")[2] not in counters for name in every) - len(target)
    return target, others


def _leaves(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf); a tensorstore spec is one leaf."""
    if isinstance(tree, dict) and not {"driver", "kvstore"} <= tree.keys():
        for key, value in tree.items():
            yield from _leaves(value, f"{above}/{key}" if above else str(key))
    elif tree is not None:
        yield above, tree


def _read_leaf(path: Path, name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, np.ndarray):
        return leaf
    if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
        where: Any = leaf.removeprefix(_PLACEHOLDER)
    elif isinstance(leaf, dict):
        store = leaf.get("kvstore")
        where = store.get("path", leaf.get("path")) if isinstance(store, dict) else None
        if leaf["driver"] != "zarr":
            raise UserError(f"{path}: {name} is stored as {leaf['driver']!a:.40}; only zarr arrays are read")
    else:
        where = None
    parts = PurePosixPath(where).parts if isinstance(where, str) else ()
    if not parts or ".." in parts or parts[0] == "/":
        raise damaged(path, f"{name} is neither an array nor the name of one", "T5X checkpoint")
    return _read_zarr(path.parent.joinpath(*parts), path)


def _read_zarr(folder: Path, index: Path) -> np.ndarray:
    """A zarr array in its dtype. Raises UserError, also for missing chunks, which would read as zeros."""
    import tensorstore

    try:
        there = (folder / ".zarray").is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        raise UserError(
            f"{index}: names the array {folder.name!a:.80}, which is not beside it; copy the whole checkpoint"
        )
    try:
        about = json.loads((folder / ".zarray").read_text(encoding="utf-8"))
        grid = [ceil(size / chunk) for size, chunk in zip(about["shape"], about["chunks"], strict=True)]
        chunks = sum(1 for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        if about["fill_value"] is None and chunks < prod(grid):  # with one, chunks of it are not stored
            raise ValueError(f"{prod(grid) - chunks} of {prod(grid)} chunks are missing")
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"}}
        array = tensorstore.open(spec, open=True, read=True).result().read().result()
    except (ValueError, KeyError, TypeError, ArithmeticError, OSError) as error:
        raise damaged(folder, error, "zarr array") from None
    if array.dtype.kind not in "fV":  # V: bfloat16
        raise UserError(f"{folder}: is stored as {array.dtype}; only floats are read")
    return np.asarray(array)


def _unscan(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`arrays` with scanned layers taken apart: {"encoder/layers_0/...": array of one layer}."""
    if arrays[_EMBEDDING].ndim != 2:
        raise UserError(
            f"{path}: {_EMBEDDING} has shape {list(arrays[_EMBEDDING].shape)}; it must be [vocabulary, d_model]"
        )
    width = arrays[_EMBEDDING].shape[1]
    found: dict[str, np.ndarray] = {}
    for stack in _NORMS:
        norm = next((n for n in arrays if re.fullmatch(rf"{stack}/(layers|{stack})/{_NORMS[stack][0]}/scale", n)), None)
        if norm is None:
            continue
        container, shape = norm.split("/")[1], arrays[norm].shape
        if len(shape) != 2 or width not in shape:
            raise UserError(f"{path}: {norm} has shape {list(shape)}; one axis must be that of d_model, {width}")
        axis = 1 if shape[0] == width else 0
        for name, array in arrays.items():
            if name.startswith(f"{stack}/{container}/"):
                if array.ndim <= axis or array.shape[axis] != shape[axis]:
                    raise UserError(
                        f"{path}: {name} has shape {list(array.shape)}; axis {axis} must hold {shape[axis]} layers"
                    )
                rest = name.split("/", 2)[2]
                found |= {f"{stack}/layers_{i}/{rest}": array.take(i, axis) for i in range(shape[axis])}
    scanned = re.compile(r"encoder/(layers|encoder)/|decoder/(layers|decoder)/")
    if twice := sorted(found.keys() & arrays.keys()):
        raise UserError(f"{path}: holds {twice[0]} and a scanned array with the same layer; give a checkpoint with one")
    return {name: array for name, array in arrays.items() if not scanned.match(name)} | found


def _with_one_bias(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`arrays` with one relative embedding for each stack. Raises UserError where layers have their own (umT5)."""
    kept = dict(arrays)
    for stack in _NORMS:
        own = rf"{stack}/layers_\d+/(relpos_bias|relative_posemb)/rel_embedding"
        if names := [name for name in arrays if re.fullmatch(own, name)]:
            if any(not np.array_equal(arrays[name], arrays[names[0]]) for name in names):
                raise UserError(
                    f"{path}: the {stack}'s layers have relative position biases of their own, as in umT5; a T5 has "
                    "one for each stack"
                )
            kept[f"{stack}/relpos_bias/rel_embedding"] = arrays[names[0]]
            kept = {name: array for name, array in kept.items() if name not in names}
    return kept


def _parameter(name: str) -> str:
    """The parameter of a tensor that transformers names `name`."""
    fixed = {"shared.weight": _EMBEDDING, "lm_head.weight": "decoder/logits_dense/kernel"}
    if name in fixed:
        return fixed[name]
    stack, _, rest = name.removesuffix(".weight").partition(".")
    if rest == "final_layer_norm":
        return f"{stack}/{stack}_norm/scale"
    _, layer, _, number, *module = rest.split(".")
    if module[-1] == "relative_attention_bias":
        return f"{stack}/relpos_bias/rel_embedding"
    if module == ["layer_norm"]:
        return f"{stack}/layers_{layer}/{_NORMS[stack][int(number)]}/scale"
    part, leaf = module
    there = "attention" if (stack, part) == ("encoder", "SelfAttention") else _PARTS[part]
    return f"{stack}/layers_{layer}/{there}/{_LEAVES.get(leaf, leaf)}/kernel"


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """The array as torch keeps it: heads joined, matrices [out, in], relative embeddings [buckets, heads]."""
    if name == "shared.weight" or array.ndim < 2:
        return array
    if array.ndim == 3:  # [embed, heads, kv], or [heads, kv, embed] of the output
        array = array.reshape(-1, array.shape[-1]) if name.endswith(".o.weight") else array.reshape(len(array), -1)
    return array.T
