"""Rules for every field of config.json that transformers 4 and 5 write for BERT, DistilBERT and T5.

`SUPPORTED` fields are read or compared with the weights and the tokenizer; a `RequiredValue` refuses all other values,
which would mean another function; `IGNORED` fields change neither what the weights compute nor how they train.
`unknown_fields` lists all others. Fields that `generate` reads are in generation.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.config.huggingface.generation import CONFIG_JSON_FIELDS as GENERATION
from bertjax.errors import UserError


@dataclass(frozen=True)
class RequiredValue:
    """Allowed values of a field, and why others are refused."""

    values: tuple[Any, ...]
    why: str


SUPPORTED, IGNORED = "supported", "ignored"
FieldRule = str | RequiredValue

_NONE: tuple[Any, ...] = (None, {}, [])
_CAUSAL = "a causal model; bertjax reads encoders and T5"
_COMMON: dict[str, FieldRule] = {
    **dict.fromkeys(
        ("model_type", "architectures", "id2label", "label2id", "num_labels", "tie_word_embeddings"), SUPPORTED
    ),
    "auto_map": RequiredValue(_NONE, "the model needs code from its folder, which bertjax never runs"),
    "problem_type": RequiredValue(
        (None, "regression", "single_label_classification"), "several labels for one text are not supported"
    ),
    "is_decoder": RequiredValue((False, None), _CAUSAL),
    "add_cross_attention": RequiredValue((False, None), _CAUSAL),
    "cross_attention_hidden_size": RequiredValue((None,), _CAUSAL),
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
_ENCODER: dict[str, FieldRule] = {
    "is_encoder_decoder": RequiredValue((False, None), _CAUSAL),
    # padding is masked, whatever its id; an encoder has no decoder and no end
    **dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id", *GENERATION), IGNORED),
}
FIELDS: dict[str, dict[str, FieldRule]] = {
    "bert": _ENCODER | _COMMON | {
        **dict.fromkeys(
            (
                "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
                "type_vocab_size", "initializer_range", "layer_norm_eps", "classifier_dropout",
            ),
            SUPPORTED,
        ),
        "position_embedding_type": RequiredValue(("absolute", None), "must be absolute"),
        "directionality": RequiredValue(("bidi", None), _CAUSAL),
        # in google-research/bert's multilingual models; modeling.py does not read them
        **dict.fromkeys(
            (
                "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
                "pooler_type",
            ),
            IGNORED,
        ),
    },
    "distilbert": _ENCODER | _COMMON | {
        **dict.fromkeys(
            (
                "vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "activation", "dropout", "attention_dropout",
                "max_position_embeddings", "initializer_range", "seq_classif_dropout", "qa_dropout",
            ),
            SUPPORTED,
        ),
        "sinusoidal_pos_embds": IGNORED,  # initial positions; those of the weights are used
        "tie_weights_": IGNORED,  # in the first versions
    },
    "t5": _COMMON | dict.fromkeys(GENERATION, SUPPORTED) | {
        **dict.fromkeys(
            (
                "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
                "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate",
                "layer_norm_epsilon", "feed_forward_proj", "dense_act_fn", "is_gated_act", "scale_decoder_outputs",
                "decoder_start_token_id", "pad_token_id", "eos_token_id",
            ),
            SUPPORTED,
        ),
        "is_encoder_decoder": RequiredValue((True, None), "a T5 encoder without a decoder is not supported"),
        **dict.fromkeys(("initializer_factor", "n_positions", "classifier_dropout"), IGNORED),
    },
}  # fmt: skip

# Names in transformers (activations.py, ACT2FN) -> ours.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python_tanh": "gelu_new", "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
}  # fmt: skip


def check_supported(path: Path, found: Mapping[str, Any]) -> None:
    """Raise UserError for a field of config.json (`path`) with an unsupported value."""
    for name, rule in FIELDS[found["model_type"]].items():
        if isinstance(rule, RequiredValue) and name in found and found[name] not in rule.values:
            raise UserError(f"{path}: {name}: {rule.why} (got {found[name]!a:.60})")


def unknown_fields(found: Mapping[str, Any]) -> list[str]:
    """List the fields without a rule."""
    return sorted(found.keys() - FIELDS[found["model_type"]].keys())


def map_activation(path: Path, field: str, name: Any) -> str:
    """Translate the name of an activation. Raises UserError if it is not supported."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"{path}: {field}: {name!a:.40} is not supported; use one of "
                        f"{', '.join(ACTIVATIONS)}")  # fmt: skip
    return ACTIVATIONS[name]
