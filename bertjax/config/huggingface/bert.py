"""Read BertConfig and DistilBertConfig from a Hugging Face config.json."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bertjax.config.huggingface import fields
from bertjax.config.huggingface.fields import COMMON, ENCODER, IGNORED, SUPPORTED, ConfigJson, FieldRule, RequiredValue
from bertjax.config.schema.model import BertConfig

Names = Mapping[str, tuple[str, Any]]
# Our name -> (name in config.json, default in transformers).
_BERT_FIELDS = {
    name: (name, None) for name in BertConfig.model_fields
    if name not in ("family", "config_from", "position_init", "qa_dropout")
}  # fmt: skip
DISTILBERT_FIELDS = {
    "vocab_size": ("vocab_size", 30522),
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("n_layers", 6),
    "num_attention_heads": ("n_heads", 12),
    "intermediate_size": ("hidden_dim", 3072),
    "max_position_embeddings": ("max_position_embeddings", 512),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "initializer_range": ("initializer_range", 0.02),
    "classifier_dropout": ("seq_classif_dropout", 0.2),
    "qa_dropout": ("qa_dropout", 0.1),
}
_POOLER = ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")
_BERT_RULES: dict[str, FieldRule] = ENCODER | COMMON | {
    **dict.fromkeys(_BERT_FIELDS, SUPPORTED),
    "position_embedding_type": RequiredValue(("absolute", None), "must be absolute"),
    "directionality": RequiredValue(("bidi", None), fields.CAUSAL),
    # in google-research/bert's multilingual models; modeling.py does not read them
    **dict.fromkeys((f"pooler_{name}" for name in _POOLER), IGNORED),
}  # fmt: skip
_DISTILBERT_RULES: dict[str, FieldRule] = ENCODER | COMMON | {
    **dict.fromkeys((name for name, _ in DISTILBERT_FIELDS.values()), SUPPORTED),
    "sinusoidal_pos_embds": IGNORED,  # initial positions; those of the weights are used
    "tie_weights_": IGNORED,  # in the first versions
}  # fmt: skip


def _read(names: Names, fixed: dict[str, Any], path: Path, found: dict[str, Any]) -> dict[str, Any]:
    sizes = {ours: found.get(theirs, default) for ours, (theirs, default) in names.items()}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    if "hidden_act" in sizes:
        sizes["hidden_act"] = fields.map_activation(path, names["hidden_act"][0], sizes["hidden_act"])
    if sizes.get("classifier_dropout") == sizes.get("hidden_dropout_prob", 0.1):
        sizes.pop("classifier_dropout", None)
    return sizes | fixed


BERT = ConfigJson(_BERT_RULES, partial(_read, _BERT_FIELDS, {}))
DISTILBERT = ConfigJson(_DISTILBERT_RULES, partial(_read, DISTILBERT_FIELDS, {"type_vocab_size": 0}))
