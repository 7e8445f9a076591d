"""Rules for the fields of config.json that transformers 4 and 5 write, and the record of a family's config.json.

`SUPPORTED` fields are read or compared with the weights and the tokenizer; a `RequiredValue` refuses all other values,
which would mean another function; `IGNORED` fields change neither what the weights compute nor how they train.
`unknown_fields` lists all others. Fields that `generate` reads are in generation.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.config.huggingface.generation import CONFIG_JSON_FIELDS as GENERATION
from bertjax.config.schema.base import record_at
from bertjax.config.schema.model import FAMILIES
from bertjax.errors import UserError
from bertjax.storage import text


@dataclass(frozen=True)
class RequiredValue:
    """Allowed values of a field, and why others are refused."""

    values: tuple[Any, ...]
    why: str


SUPPORTED, IGNORED = "supported", "ignored"
FieldRule = str | RequiredValue

_NONE: tuple[Any, ...] = (None, {}, [])
CAUSAL = "a causal model; bertjax reads encoders and T5"
COMMON: dict[str, FieldRule] = {
    **dict.fromkeys(
        ("model_type", "architectures", "id2label", "label2id", "num_labels", "tie_word_embeddings"), SUPPORTED
    ),
    "auto_map": RequiredValue(_NONE, "the model needs code from its folder, which bertjax never runs"),
    "problem_type": RequiredValue(
        (None, "regression", "single_label_classification", "multi_label_classification"), "is not known"
    ),
    "is_decoder": RequiredValue((False, None), CAUSAL),
    "add_cross_attention": RequiredValue((False, None), CAUSAL),
    "cross_attention_hidden_size": RequiredValue((None,), CAUSAL),
    "tie_encoder_decoder": RequiredValue((False, None), "stacks with shared weights are not supported"),
    "pruned_heads": RequiredValue(_NONE, "pruned models are not supported; save it with all its heads"),
    "quantization_config": RequiredValue(_NONE, "quantized weights are not read; save it in float32 or bfloat16"),
    "per_layer_config": RequiredValue(_NONE, "layers that differ are not supported"),
    **dict.fromkeys(
        (
            "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype",
            "use_bfloat16", "torchscript", "tf_legacy_loss", "return_dict", "use_return_dict", "output_hidden_states",
            "output_attentions", "output_past", "use_cache", "gradient_checkpointing", "chunk_size_feed_forward",
            "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
            "attn_implementation", "_experts_implementation", "finetuning_task", "task_specific_params", "prefix",
            "tokenizer_class", "bos_token_id", "sep_token_id", "_output_attentions", "_num_labels",
            "_from_model_config",
        ),
        IGNORED,
    ),
}  # fmt: skip
ENCODER: dict[str, FieldRule] = {
    "is_encoder_decoder": RequiredValue((False, None), CAUSAL),
    # padding is masked, whatever its id; an encoder has no decoder and no end
    **dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id", *GENERATION), IGNORED),
}
# Names in transformers (activations.py, ACT2FN) -> ours.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python_tanh": "gelu_new", "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
}  # fmt: skip


@dataclass(frozen=True)
class ConfigJson:
    """config.json of one family, which the family's section names (`config_json`)."""

    rules: Mapping[str, FieldRule]  # of all fields that transformers writes
    read: Callable[[Path, dict[str, Any]], dict[str, Any]]  # (path, content) -> fields of our section, or UserError


def families_by_type() -> dict[str, str]:
    """{model_type of a config.json: our family}."""
    known = {name: section for name, section in FAMILIES.items() if getattr(section, "config_json", None)}
    return {kind: name for name, section in known.items() for kind in getattr(section, "model_types", (name,))}


def config_json_of(family: str) -> ConfigJson:
    return record_at(FAMILIES[family].config_json, ConfigJson)


def read_fields(path: Path) -> dict[str, Any]:
    """Translate a config.json to the fields of a model section. Raises UserError."""
    found = text.read_json(path)
    kind = found.get("model_type") if isinstance(found, dict) else None
    families = families_by_type()
    if not isinstance(kind, str) or kind not in families:
        *most, last = families
        raise UserError(f"{path}: model_type must be {', '.join(most)} or {last} (got {kind!a:.60})")
    family = families[kind]
    record = config_json_of(family)
    for name, rule in record.rules.items():
        if isinstance(rule, RequiredValue) and name in found and found[name] not in rule.values:
            raise UserError(f"{path}: {name}: {rule.why} (got {found[name]!a:.60})")
    return {"family": family} | record.read(path, found)


def unknown_fields(found: Mapping[str, Any]) -> list[str]:
    """List the fields of a config.json without a rule."""
    return sorted(found.keys() - config_json_of(families_by_type()[found["model_type"]]).rules.keys())


def map_activation(path: Path, field: str, name: Any) -> str:
    """Translate the name of an activation. Raises UserError if it is not supported."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"{path}: {field}: {name!a:.40} is not supported; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
