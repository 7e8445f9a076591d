"""Read the sections of BERT and of the encoders derived from it from a Hugging Face config.json."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bertjax.config.huggingface import fields
from bertjax.config.huggingface.fields import COMMON, ENCODER, IGNORED, SUPPORTED, ConfigJson, FieldRule, RequiredValue
from bertjax.config.schema.model import BertConfig
from bertjax.errors import UserError

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
ROBERTA_FIELDS = _BERT_FIELDS | {
    "model_type": ("model_type", "roberta"),
    "vocab_size": ("vocab_size", 50265),
    "max_position_embeddings": ("max_position_embeddings", 512),
    "type_vocab_size": ("type_vocab_size", 2),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "pad_token_id": ("pad_token_id", 1),
}
ELECTRA_FIELDS = _BERT_FIELDS | {
    "embedding_size": ("embedding_size", 128),
    "hidden_size": ("hidden_size", 256),
    "num_attention_heads": ("num_attention_heads", 4),
    "intermediate_size": ("intermediate_size", 1024),
}
ALBERT_FIELDS = _BERT_FIELDS | {
    "vocab_size": ("vocab_size", 30000),
    "embedding_size": ("embedding_size", 128),
    "hidden_size": ("hidden_size", 4096),
    "num_hidden_groups": ("num_hidden_groups", 1),
    "num_attention_heads": ("num_attention_heads", 64),
    "intermediate_size": ("intermediate_size", 16384),
    "inner_group_num": ("inner_group_num", 1),
    "hidden_act": ("hidden_act", "gelu_new"),
    "hidden_dropout_prob": ("hidden_dropout_prob", 0.0),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", 0.0),
    "classifier_dropout": ("classifier_dropout_prob", 0.1),
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


_ABSOLUTE = {"position_embedding_type": _BERT_RULES["position_embedding_type"]}
_ROBERTA_RULES = ENCODER | COMMON | _ABSOLUTE | dict.fromkeys(ROBERTA_FIELDS, SUPPORTED)
_ELECTRA_RULES: dict[str, FieldRule] = ENCODER | COMMON | _ABSOLUTE | {
    **dict.fromkeys(ELECTRA_FIELDS, SUPPORTED),
    # only ElectraForMultipleChoice reads them
    **dict.fromkeys(
        ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout", "summary_first_dropout"),
        IGNORED,
    ),
}  # fmt: skip
_ALBERT_RULES: dict[str, FieldRule] = ENCODER | COMMON | _ABSOLUTE | {
    **dict.fromkeys((name for name, _ in ALBERT_FIELDS.values()), SUPPORTED),
    "classifier_dropout": IGNORED,
    # in Google's files; neither modeling.py of google-research/albert nor transformers reads them
    **dict.fromkeys(("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"), IGNORED),
}  # fmt: skip


def _read(names: Names, fixed: dict[str, Any], path: Path, found: dict[str, Any]) -> dict[str, Any]:
    sizes = {ours: found.get(theirs, default) for ours, (theirs, default) in names.items()}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    if "hidden_act" in sizes:
        sizes["hidden_act"] = fields.map_activation(path, names["hidden_act"][0], sizes["hidden_act"])
    return sizes | fixed


def _read_bert(names: Names, fixed: dict[str, Any], path: Path, found: dict[str, Any]) -> dict[str, Any]:
    sizes = _read(names, fixed, path, found)
    if sizes.get("classifier_dropout") == sizes.get("hidden_dropout_prob", 0.1):
        sizes.pop("classifier_dropout", None)
    return sizes


def _read_roberta(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    # XLMRobertaConfig and CamembertConfig have BERT's vocabulary by default
    small = {} if found["model_type"] == "roberta" else {"vocab_size": 30522}
    if "pad_token_id" in found and found["pad_token_id"] is None:
        raise UserError(f"{path}: pad_token_id: must be an id, since positions begin above it (got None)")
    return _read_bert(ROBERTA_FIELDS, {}, path, small | found)


BERT = ConfigJson(_BERT_RULES, partial(_read_bert, _BERT_FIELDS, {}))
DISTILBERT = ConfigJson(_DISTILBERT_RULES, partial(_read_bert, DISTILBERT_FIELDS, {"type_vocab_size": 0}))
ROBERTA = ConfigJson(_ROBERTA_RULES, _read_roberta)
ELECTRA = ConfigJson(_ELECTRA_RULES, partial(_read_bert, ELECTRA_FIELDS, {}))
ALBERT = ConfigJson(_ALBERT_RULES, partial(_read, ALBERT_FIELDS, {}))
