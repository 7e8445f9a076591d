"""Writes checkpoints of T5X, Mesh TensorFlow, google-research/bert and Flax from the tensors of a Hugging Face folder.

The TensorFlow files follow the same published formats as bertjax/interop/foreign/tf_bundle.py; TensorFlow 2.21 read the
result of `write_bundle` with equal tensors.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow
import tensorstore
from flax import serialization, traverse_util

Arrays = dict[str, np.ndarray]


# ---- Flax -----------------------------------------------------------------------------------------------------------


def flax_tree(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters as FlaxBert... and FlaxT5... of transformers 4 saved them."""
    flat = {}
    for name, array in weights.items():
        *module, leaf = name.split(".")
        last = module[-1].lower()
        if leaf == "weight" and ("embeddings" in last or last == "shared" or "attention_bias" in last):
            leaf = "embedding"
        elif leaf == "weight" and last == "layernorm":
            leaf = "scale"
        elif leaf == "weight" and array.ndim == 2:
            leaf, array = "kernel", array.T
        flat[(*module, leaf)] = np.ascontiguousarray(array)
    return traverse_util.unflatten_dict(flat)


# ---- TensorFlow's bundles -------------------------------------------------------------------------------------------

_DTYPES = {np.float32: 1, np.float64: 2, np.int32: 3, np.int64: 9, ml_dtypes.bfloat16: 14, np.float16: 19}


def _crc(data: bytes) -> int:
    """The masked CRC-32C, bit by bit."""
    register = 0xFFFFFFFF
    for octet in data:
        register ^= octet
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    register ^= 0xFFFFFFFF
    return ((register >> 15 | register << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value)


def _block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    out, before, restarts = bytearray(), b"", []
    for count, (key, value) in enumerate(entries):
        shared = 0
        if count % 16:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray], per_block: int = 20, snappy: bool = False) -> Path:
    """PREFIX.index and PREFIX.data-00000-of-00001 -> the index. `snappy`: compress the blocks, as LevelDB may."""
    data, entries = bytearray(), [(b"", _field(1, 1) + _field(3, _field(1, 1)))]
    for name, array in sorted(tensors.items()):
        content = np.ascontiguousarray(array).tobytes()
        shape = b"".join(_field(2, _field(1, size)) for size in np.shape(array))
        entry = _field(1, _DTYPES[np.asarray(array).dtype.type]) + _field(2, shape)
        entry += _field(4, len(data)) + _field(5, len(content)) + _varint(6 << 3 | 5) + struct.pack("<I", _crc(content))
        entries.append((name.encode(), entry))
        data += content
    file = bytearray()

    def add(block: bytes) -> bytes:
        kind = b"\1" if snappy else b"\0"
        block = pyarrow.compress(block, codec="snappy", asbytes=True) if snappy else block
        handle = _varint(len(file)) + _varint(len(block))
        file.extend(block + kind + struct.pack("<I", _crc(block + kind)))
        return handle

    groups = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    index = [(group[-1][0], add(_block(group))) for group in groups]
    handles = add(_block([])) + add(_block(index))
    file += handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    path = prefix.with_name(prefix.name + ".index")
    path.write_bytes(file)
    return path


def bert_variables(weights: Mapping[str, np.ndarray]) -> Arrays:
    """BERT's tensors as the variables of google-research/bert's modeling.py and its scripts."""
    fixed = {
        "cls.predictions.bias": "cls/predictions/output_bias",
        "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
        "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
        "qa_outputs.weight": "cls/squad/output_weights",
        "qa_outputs.bias": "cls/squad/output_bias",
        "classifier.weight": "output_weights",
        "classifier.bias": "output_bias",
    }
    found = {}
    for name, array in weights.items():
        if name in fixed:
            found[fixed[name]] = array
        elif name.endswith("_embeddings.weight"):
            found[name.removesuffix(".weight").replace(".", "/")] = array
        else:
            path = name.replace(".layer.", ".layer_").replace(".", "/")
            if "LayerNorm" in path:
                path = path.replace("/weight", "/gamma").replace("LayerNorm/bias", "LayerNorm/beta")
            elif path.endswith("/weight"):
                path, array = path.removesuffix("weight") + "kernel", array.T
            found[path] = np.ascontiguousarray(array)
    return found


def mesh_variables(weights: Mapping[str, np.ndarray]) -> Arrays:
    """T5's tensors as the variables of Mesh TensorFlow."""
    found = {"shared/embedding": weights["shared.weight"]}
    if "lm_head.weight" in weights:
        found["decoder/logits/kernel"] = weights["lm_head.weight"].T
    for name, array in weights.items():
        stack, *rest = name.split(".")
        if rest[0] == "final_layer_norm":
            found[f"{stack}/final_layer_norm/scale"] = array
        elif rest[0] == "block":
            _, block, _, layer, *module, _ = rest
            end = {"layer_norm": "/scale", "wi": "/kernel", "wi_0": "/kernel", "wi_1": "/kernel", "wo": "/kernel"}
            here = f"{stack}/block_{int(block):03d}/layer_{int(layer):03d}/{'/'.join(module)}{end.get(module[-1], '')}"
            found[here] = array.T
    return found


# ---- T5X ------------------------------------------------------------------------------------------------------------


def t5x_parameters(
    weights: Mapping[str, np.ndarray], scanned: str | None = None, split_heads: int = 0, axis: int = 1
) -> Arrays:
    """T5's tensors as t5x/examples/t5 names them.

    scanned: the name of the module with all layers of a stack, `{}` for the stack's own. split_heads: the number of
    heads, if they have an axis of their own.
    """
    found = {"token_embedder/embedding": weights["shared.weight"]}
    if "lm_head.weight" in weights:
        found["decoder/logits_dense/kernel"] = weights["lm_head.weight"].T

    def kernel(name: str) -> np.ndarray:
        array = weights[f"{name}.weight"].T
        if not split_heads or "Attention" not in name:
            return array
        if name.endswith(".o"):
            return array.reshape(split_heads, -1, array.shape[1])
        return array.reshape(array.shape[0], split_heads, -1)

    for stack in ("encoder", "decoder"):
        is_decoder = stack == "decoder"
        bias = weights[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        found[f"{stack}/relpos_bias/rel_embedding"] = bias.T
        found[f"{stack}/{stack}_norm/scale"] = weights[f"{stack}.final_layer_norm.weight"]
        layers: list[Arrays] = []
        while f"{stack}.block.{len(layers)}.layer.0.layer_norm.weight" in weights:
            at = f"{stack}.block.{len(layers)}.layer"
            own = "self_attention" if is_decoder else "attention"
            layer = {f"pre_{own}_layer_norm/scale": weights[f"{at}.0.layer_norm.weight"]}
            attentions = {own: f"{at}.0.SelfAttention"}
            if is_decoder:
                layer["pre_cross_attention_layer_norm/scale"] = weights[f"{at}.1.layer_norm.weight"]
                attentions["encoder_decoder_attention"] = f"{at}.1.EncDecAttention"
            for name, there in attentions.items():
                for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "o"}.items():
                    layer[f"{name}/{ours}/kernel"] = kernel(f"{there}.{theirs}")
            last = f"{at}.{1 + is_decoder}"
            layer["pre_mlp_layer_norm/scale"] = weights[f"{last}.layer_norm.weight"]
            for name in ("wi", "wi_0", "wi_1", "wo"):
                if f"{last}.DenseReluDense.{name}.weight" in weights:
                    layer[f"mlp/{name}/kernel"] = kernel(f"{last}.DenseReluDense.{name}")
            layers.append(layer)
        if scanned is None:
            found |= {f"{stack}/layers_{i}/{name}": x for i, layer in enumerate(layers) for name, x in layer.items()}
        else:
            home = f"{stack}/{scanned.format(stack)}"
            found |= {f"{home}/{name}": np.stack([layer[name] for layer in layers], axis) for name in layers[0]}
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def write_t5x(folder: Path, parameters: Arrays, stored: str = "specs") -> Path:
    """checkpoint_N: `specs` or `placeholders` in msgpack with zarr arrays beside it, or `flat` msgpack -> the msgpack.

    The optimizer's state is one row and one column for each parameter, and the step.
    """
    folder.mkdir(parents=True)
    target: dict[tuple[str, ...], Any] = {}
    for name, array in parameters.items():
        where = f"target.{name.replace('/', '.')}"
        metadata = {
            "zarr_format": 2, "shape": list(array.shape), "dtype": array.dtype.str,
            "chunks": [max(1, size // 2) if size % 2 == 0 else size for size in array.shape],
            "compressor": {"id": "gzip", "level": 1}, "filters": None, "order": "C", "fill_value": None,
        }  # fmt: skip
        if array.dtype == ml_dtypes.bfloat16:
            metadata["dtype"] = "bfloat16"
        spec = {"driver": "zarr", "dtype": array.dtype.name, "kvstore": {"driver": "file", "path": where}}
        if stored == "flat":
            target[tuple(name.split("/"))] = array
            continue
        there = spec | {"kvstore": {"driver": "file", "path": f"{folder / where}/"}, "metadata": metadata}
        tensorstore.open(there, create=True).result().write(array).result()
        bucket = {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": where}
        spec = {"driver": "zarr", "dtype": array.dtype.name, "kvstore": bucket, "metadata": metadata}
        target[tuple(name.split("/"))] = spec if stored == "specs" else f"PLACEHOLDER://{where}"
    states = {(*path, leaf): np.zeros(3, np.float32) for path in target for leaf in ("v_row", "v_col")}
    state = {"step": np.int32(7), "param_states": traverse_util.unflatten_dict(states)}
    tree = {"target": traverse_util.unflatten_dict(target), "state": state}
    path = folder / "checkpoint"
    # lists of a spec are left as they are: `msgpack_serialize` of flax takes them, `to_bytes` makes dictionaries
    path.write_bytes(serialization.msgpack_serialize({"version": 3, "optimizer": tree}))
    return path


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
