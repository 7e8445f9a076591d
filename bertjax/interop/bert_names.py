"""Which Hugging Face tensors make up each of our parameters, and the two ways between them.

Names are those that transformers' BertFor* and DistilBertFor* save. A torch Linear keeps its weight as [out, in], ours
is [in, out]; our query, key and value are one array with an axis of three.
"""

from collections.abc import Sequence

import numpy as np

from bertjax.config.schema.model import BertConfig

# The name of the encoder inside a model with heads; the bare encoder is saved without it.
PREFIX = {"bert": "bert.", "distilbert": "distilbert."}
LAYERS = {"bert": "encoder.layer.", "distilbert": "transformer.layer."}
POOLER = "pooler.dense"

_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "norm": "LayerNorm",
}
_LAYER = {
    "bert": {
        "attention/qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention/output": ("attention.output.dense",),
        "attention/norm": ("attention.output.LayerNorm",),
        "mlp/intermediate": ("intermediate.dense",),
        "mlp/output": ("output.dense",),
        "mlp/norm": ("output.LayerNorm",),
    },
    "distilbert": {
        "attention/qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention/output": ("attention.out_lin",),
        "attention/norm": ("sa_layer_norm",),
        "mlp/intermediate": ("ffn.lin1",),
        "mlp/output": ("ffn.lin2",),
        "mlp/norm": ("output_layer_norm",),
    },
}
# Modules of each head; the first is the one that tells whether a file has the head.
HEADS: dict[str, dict[str, dict[str, str]]] = {
    "bert": {
        "mlm": {"mlm/transform": "cls.predictions.transform.dense", "mlm/norm": "cls.predictions.transform.LayerNorm"},
        "nsp": {"nsp": "cls.seq_relationship"},
        "qa": {"qa": "qa_outputs"},
        "classifier": {"classifier": "classifier"},
    },
    "distilbert": {
        "mlm": {"mlm/transform": "vocab_transform", "mlm/norm": "vocab_layer_norm"},
        "qa": {"qa": "qa_outputs"},
        "classifier": {"classifier": "classifier", "pre_classifier": "pre_classifier"},
    },
}
MLM_BIAS = {"bert": "cls.predictions.bias", "distilbert": "vocab_projector.bias"}
# Copies of a tensor under another name, which old files hold: the output matrix and its bias are tied.
TIED = {
    "bert": {"decoder": "cls.predictions.decoder.weight", "bias": "cls.predictions.decoder.bias"},
    "distilbert": {"decoder": "vocab_projector.weight"},
}
_IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids")  # buffers of old versions: 0, 1, 2 ... and zeros

TensorNames = dict[str, tuple[str, ...]]


def tensor_names(model: BertConfig, heads: Sequence[str]) -> TensorNames:
    """{our path: its tensors, named as in a model with heads}: one tensor, or query, key and value."""
    family, prefix = model.family, PREFIX[model.family]
    modules: TensorNames = {f"embeddings/{ours}": (f"{prefix}embeddings.{name}",) for ours, name in _EMBEDDINGS.items()}
    if not model.type_vocab_size:
        del modules["embeddings/token_type"]
    for i in range(model.num_hidden_layers):
        for ours, names in _LAYER[family].items():
            modules[f"layers/{i}/{ours}"] = tuple(f"{prefix}{LAYERS[family]}{i}.{name}" for name in names)
    for head, parts in HEADS[family].items():
        if head in heads:
            modules |= {f"heads/{ours}": (name,) for ours, name in parts.items()}
    if family == "bert" and {"nsp", "classifier", "pooler"} & set(heads):
        modules["heads/pooler"] = (f"{prefix}{POOLER}",)
    found = {path: names for ours, theirs in modules.items() for path, names in _leaves(ours, theirs)}
    return found | ({"heads/mlm/bias": (MLM_BIAS[family],)} if "mlm" in heads else {})


def _leaves(ours: str, theirs: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    if ours.split("/")[-1] in ("word", "position", "token_type"):
        return [(f"{ours}/embedding", (f"{theirs[0]}.weight",))]
    names = {"scale" if ours.endswith("norm") else "kernel": "weight", "bias": "bias"}
    return [(f"{ours}/{leaf}", tuple(f"{t}.{name}" for t in theirs)) for leaf, name in names.items()]


def hf_shape(path: str, shape: Sequence[int], parts: int) -> tuple[int, ...]:
    """The shape of each tensor behind our array of this shape."""
    shape = tuple(shape) if parts == 1 else (*shape[:-2], shape[-1])
    return shape[::-1] if path.endswith("kernel") else shape


def from_hf(path: str, tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Their tensors -> our array; the inverse of `to_hf`."""
    parts = [t.T if path.endswith("kernel") else t for t in tensors]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.stack(parts, axis=-2))


def to_hf(path: str, array: np.ndarray, parts: int) -> list[np.ndarray]:
    """Our array -> their tensors."""
    pieces = [array] if parts == 1 else [array[..., i, :] for i in range(parts)]
    return [np.ascontiguousarray(p.T if path.endswith("kernel") else p) for p in pieces]


def normalize_name(name: str, family: str) -> str:
    """A tensor's name as a model with heads saves it today: prefixed, and without TensorFlow's gamma and beta."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    inside = name.startswith(("embeddings.", LAYERS[family])) or name.startswith(POOLER + ".")
    return PREFIX[family] + name if inside else name


def is_ignored(name: str, family: str) -> bool:
    """Whether a tensor of this (modern) name carries nothing."""
    return name.removeprefix(PREFIX[family]) in _IGNORED


def is_encoder(name: str, family: str) -> bool:
    """Whether a tensor of this (modern) name is part of the encoder."""
    return name.startswith((f"{PREFIX[family]}embeddings.", f"{PREFIX[family]}{LAYERS[family].split('.')[0]}."))
