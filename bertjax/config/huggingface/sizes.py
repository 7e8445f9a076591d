"""Read the model section of a Hugging Face config.json."""

import json
from pathlib import Path
from typing import Any

from bertjax.config.huggingface import fields, t5
from bertjax.config.schema.run import BertConfig
from bertjax.errors import UserError
from bertjax.storage import text

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


def fields_from_hf(path: Path) -> dict[str, Any]:
    """Translate a config.json to the fields of a model section. Raises UserError."""
    try:
        found = json.loads(text.read_text(path, text.MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({str(error)[:80]})") from None
    family = found.get("model_type") if isinstance(found, dict) else None
    if family not in ("bert", "distilbert", "t5"):
        raise UserError(f"{path}: model_type must be bert, distilbert or t5 (got {family!a:.60})")
    fields.check_supported(path, found)
    if family == "t5":
        return t5.t5_fields_from_hf(path, found)
    names = _BERT_FIELDS if family == "bert" else DISTILBERT_FIELDS
    sizes = {ours: found.get(theirs, default) for ours, (theirs, default) in names.items()}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    if "hidden_act" in sizes:
        sizes["hidden_act"] = fields.map_activation(path, names["hidden_act"][0], sizes["hidden_act"])
    if sizes.get("classifier_dropout") == sizes.get("hidden_dropout_prob", 0.1):
        sizes.pop("classifier_dropout", None)
    return {"family": family, **sizes} | ({"type_vocab_size": 0} if family == "distilbert" else {})
