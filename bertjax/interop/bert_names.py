"""Names of the tensors that transformers' BertFor* and DistilBertFor* save, and conversion to and from our parameters.

encoder_names.py has the names of RoBERTa, ELECTRA and ALBERT.

A torch Linear keeps its weight as [out, in], ours is [in, out]; our query, key and value are one array with an axis of
three.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bertjax.config.schema.model import BertConfig

TensorNames = dict[str, tuple[str, ...]]
_IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids")  # buffers of old versions: 0, 1, 2 ... and zeros
_EMBEDDINGS = {name: f"{name}_embeddings" for name in ("word", "position", "token_type")} | {"norm": "LayerNorm"}


@dataclass(frozen=True)
class EncoderNames:
    """The names of one family."""

    prefix: str  # the name of the encoder inside a model with heads; the bare encoder is saved without it
    layers: str  # where the layers are inside the encoder
    layer: Mapping[str, tuple[str, ...]]  # {our module: theirs}; query, key and value are one module of ours
    heads: Mapping[str, Mapping[str, str]]  # {head: {our module: theirs}}; files with the head have the first module
    mlm_bias: str
    tied: Mapping[str, str]  # {"decoder", "bias": another name of the output matrix or its bias in old files}
    classes: Mapping[frozenset[str], str]  # {heads: the transformers class with just these}
    pooler: str | None  # its module
    token_types: bool  # whether transformers always has segment embeddings
    inner: str = ""  # where the layers are inside a group of layers
    project: str | None = None  # the module that projects factorized embeddings
    class_prefixes: Mapping[str, str] = field(default_factory=dict)  # {model_type: what its classes begin with}

    def tensors(self, model: BertConfig, heads: Sequence[str]) -> TensorNames:
        """{our path: its tensors, named as in a model with heads}: one tensor, or query, key and value."""
        embeddings = {ours: name for ours, name in _EMBEDDINGS.items() if model.type_vocab_size or ours != "token_type"}
        modules: TensorNames = {f"embeddings/{a}": (f"{self.prefix}embeddings.{b}",) for a, b in embeddings.items()}
        if self.project and model.projects_embeddings:
            modules["embeddings/project"] = (f"{self.prefix}{self.project}",)
        for here, there in self._layers(model):
            modules |= {
                f"{here}/{a}": tuple(f"{self.prefix}{there}.{name}" for name in b) for a, b in self.layer.items()
            }
        for head, parts in self.heads.items():
            if head in heads:
                modules |= {f"heads/{ours}": (name,) for ours, name in parts.items()}
        if self.pooler and self.pooler_readers & set(heads):
            modules["heads/pooler"] = (f"{self.prefix}{self.pooler}",)
        found = {path: names for ours, theirs in modules.items() for path, names in _leaves(ours, theirs)}
        return found | ({"heads/mlm/bias": (self.mlm_bias,)} if "mlm" in heads else {})

    def _layers(self, model: BertConfig) -> Iterator[tuple[str, str]]:
        """(Our module, theirs) of each layer that has its own parameters."""
        inner = getattr(model, "inner_group_num", 1)
        for i in range(max(model.layer_order) + 1):
            for k in range(inner):
                here = f"layers/{i}" if inner == 1 else f"layers/{i}/inner/{k}"
                yield here, f"{self.layers}{i}.{self.inner}{k}" if self.inner else f"{self.layers}{i}"

    @property
    def pooler_readers(self) -> set[str]:
        """The heads that come with a pooler: "pooler" and those that read it."""
        own = "pre_classifier" in self.heads["classifier"]
        return {"nsp", "sop", "pooler"} | (set() if own else {"classifier"})

    def class_name(self, heads: frozenset[str], model_type: str) -> str:
        """The transformers class with just these heads. Raises KeyError if there is none."""
        prefixes = self.class_prefixes
        default = next(iter(prefixes.values()), "")
        return prefixes.get(model_type, default) + self.classes[heads].removeprefix(default)

    @property
    def all_classes(self) -> tuple[str, ...]:
        return tuple(self.class_name(heads, kind) for kind in self.class_prefixes or [""] for heads in self.classes)

    def normalize(self, name: str) -> str:
        """A tensor's name as a model with heads saves it today: prefixed, and without TensorFlow's gamma and beta."""
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        modules = [f"{module}." for module in (self.pooler, self.project) if module]
        inside = name.startswith(("embeddings.", self.layers, *modules))
        return self.prefix + name if inside else name

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor of this (normalized) name holds no weights to load."""
        return name.removeprefix(self.prefix) in _IGNORED

    def is_encoder(self, name: str) -> bool:
        """Whether a tensor of this (normalized) name is part of the encoder."""
        modules = ("embeddings", self.layers.split(".")[0], *([self.project] if self.project else []))
        return name.startswith(tuple(f"{self.prefix}{module}." for module in modules))


BERT = EncoderNames(
    prefix="bert.",
    layers="encoder.layer.",
    layer={
        "attention/qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention/output": ("attention.output.dense",),
        "attention/norm": ("attention.output.LayerNorm",),
        "mlp/intermediate": ("intermediate.dense",),
        "mlp/output": ("output.dense",),
        "mlp/norm": ("output.LayerNorm",),
    },
    heads={
        "mlm": {"mlm/transform": "cls.predictions.transform.dense", "mlm/norm": "cls.predictions.transform.LayerNorm"},
        "nsp": {"nsp": "cls.seq_relationship"},
        "qa": {"qa": "qa_outputs"},
        "classifier": {"classifier": "classifier"},
        "token_classifier": {"token_classifier": "classifier"},
    },
    mlm_bias="cls.predictions.bias",
    tied={"decoder": "cls.predictions.decoder.weight", "bias": "cls.predictions.decoder.bias"},
    classes={
        frozenset(): "BertModel",
        frozenset({"mlm", "nsp"}): "BertForPreTraining",
        frozenset({"mlm"}): "BertForMaskedLM",
        frozenset({"nsp"}): "BertForNextSentencePrediction",
        frozenset({"qa"}): "BertForQuestionAnswering",
        frozenset({"classifier"}): "BertForSequenceClassification",
        frozenset({"token_classifier"}): "BertForTokenClassification",
    },
    pooler="pooler.dense",
    token_types=True,
)
DISTILBERT = EncoderNames(
    prefix="distilbert.",
    layers="transformer.layer.",
    layer={
        "attention/qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention/output": ("attention.out_lin",),
        "attention/norm": ("sa_layer_norm",),
        "mlp/intermediate": ("ffn.lin1",),
        "mlp/output": ("ffn.lin2",),
        "mlp/norm": ("output_layer_norm",),
    },
    heads={
        "mlm": {"mlm/transform": "vocab_transform", "mlm/norm": "vocab_layer_norm"},
        "qa": {"qa": "qa_outputs"},
        "classifier": {"classifier": "classifier", "pre_classifier": "pre_classifier"},
        "token_classifier": {"token_classifier": "classifier"},
    },
    mlm_bias="vocab_projector.bias",
    tied={"decoder": "vocab_projector.weight"},
    classes={
        frozenset(): "DistilBertModel",
        frozenset({"mlm"}): "DistilBertForMaskedLM",
        frozenset({"qa"}): "DistilBertForQuestionAnswering",
        frozenset({"classifier"}): "DistilBertForSequenceClassification",
        frozenset({"token_classifier"}): "DistilBertForTokenClassification",
    },
    pooler=None,
    token_types=False,
)


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
