"""T5 checkpoints of google-research/text-to-text-transfer-transformer: `model.ckpt-N.*` of Mesh TensorFlow.

Variables are named as by Mesh TensorFlow's transformer library (`load_tf_weights_in_t5` of transformers 4 reads them):
`encoder/block_000/layer_000/SelfAttention/q` is [d_model, heads * d_kv], a relative_attention_bias is [heads, buckets].
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bertjax.interop.foreign import t5_folder, tf_bundle
from bertjax.interop.foreign.checkpoint import ForeignCheckpoint, check_names
from bertjax.interop.foreign.tf_bundle import BundleTensor

FIRST = "shared/embedding"  # a T5 has it
_STATE = re.compile(r"global_step|.*(slot_v[rc]?)", re.ASCII)
# In the checkpoints of T5 1.0; transformers ignores it too.
_UNUSED = "decoder/block_000/layer_001/EncDecAttention/relative_attention_bias"


def read(folder: Path, index: Path, tensors: Mapping[str, BundleTensor], tokenizer: Path | None) -> ForeignCheckpoint:
    """The weights, a config.json and the tokenizer of a folder. Raises UserError."""
    files = {t5_folder.TOKENIZER: t5_folder.find_tokenizer(folder, (folder,), tokenizer)}

    def variable(name: str) -> str:
        old = _variable(name)
        new = old.replace("final_layer_norm", "rms_norm").replace("layer_norm", "rms_norm")
        return new if old not in tensors and new in tensors else old

    def shape_of(name: str) -> tuple[int, ...] | None:
        found = tensors.get(variable(name))
        return None if found is None else found.shape if name == "shared.weight" else found.shape[::-1]

    if (folder / "config.json").is_file():
        files["config.json"] = folder / "config.json"
    config, notes = t5_folder.read_config(folder, (folder,), shape_of)
    of_config = len(notes)
    state = {name: found[1] or name for name in tensors if (found := _STATE.fullmatch(name))}
    wanted = {name: variable(name) for name in t5_folder.tensor_names(folder, config)}
    check_names(index, tensors, wanted.values(), "T5 of this size", {*state, _UNUSED})
    weights = {}
    for name, here in wanted.items():
        array = tensors[here].read()
        weights[name] = array if name == "shared.weight" else np.ascontiguousarray(array.T)
    if state:
        notes.append(f"{index}: Adafactor's state is not read: {tf_bundle.count_by_kind(state)}")
    if "config.json" in files:
        return ForeignCheckpoint(weights, files, {}, tuple(notes[of_config:]))
    return ForeignCheckpoint(weights, files, {"config.json": config}, tuple(notes))


def _variable(name: str) -> str:
    """The variable of a tensor that transformers names `name`."""
    fixed = {"shared.weight": FIRST, "lm_head.weight": "decoder/logits/kernel"}
    if name in fixed:
        return fixed[name]
    module = re.sub(r"\.(block|layer)\.(\d+)", lambda m: f"/{m[1]}_{int(m[2]):03d}", name.removesuffix(".weight"))
    module = module.replace(".", "/")
    leaf = module.rpartition("/")[2]
    if leaf.endswith("layer_norm"):
        return f"{module}/scale"
    return f"{module}/kernel" if leaf.startswith("w") else module
