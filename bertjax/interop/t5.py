"""Folders of transformers' T5 (v1.0, v1.1, ByT5, UL2), mT5 and umT5: read into our parameters, and written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bertjax.config.huggingface.generation import FILENAME
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.model import T5Config
from bertjax.data.tokenizers.byte_level import ByteTokenizer
from bertjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bertjax.data.tokenizers.unigram import UnigramTokenizer
from bertjax.errors import UserError
from bertjax.interop import bert_names, safetensors_folder
from bertjax.interop.hf_folder import FolderFormat
from bertjax.interop.safetensors_folder import StoredTensor
from bertjax.models import registry

Tokenizer: TypeAlias = SentencePieceTokenizer | UnigramTokenizer | ByteTokenizer
_PREFIX = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}  # of the names of classes, by model_type
CLASSES = (
    *(f"{prefix}{kind}" for prefix in _PREFIX.values() for kind in ("ForConditionalGeneration", "Model")),
    "T5WithLMHeadModel",  # what T5ForConditionalGeneration was once called
)
# Fields that change the function of equal parameters; the others show in shapes.
_COMPUTE_FIELDS = (
    "family", "model_type", "architecture", "num_layers", "num_decoder_layers", "num_heads", "feed_forward_proj",
    "relative_attention_max_distance", "layer_norm_epsilon", "tie_word_embeddings", "scale_decoder_outputs",
    "decoder_start_token_id",
)  # fmt: skip
_TABLE_NAMES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # one table
_OUTPUT = "lm_head.weight"
# In old files; transformers ignores it (`_keys_to_ignore_on_load_unexpected`).
_IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
_MLP = {False: {"intermediate": "wi"}, True: {"gate": "wi_0", "intermediate": "wi_1"}}


def _load_params(folder: Path, model: T5Config) -> dict[str, np.ndarray]:
    theirs, ours = dict(T5Config()) | read_model_fields(folder), dict(model)
    safetensors_folder.check_fields(folder, _compute_fields(theirs), _compute_fields(ours), _COMPUTE_FIELDS)
    table = t5_tensor_names(model)
    found = _drop_tied_copies(safetensors_folder.open_folder(folder), model)
    safetensors_folder.check_complete(folder, found, table.values(), "T5")
    for name, stored in found.items():
        if name not in table.values() and name not in _IGNORED:
            raise UserError(f"{stored.path}: tensor '{stored.name}' has no place in a T5 of this size and version")
    shapes = {path: x.shape for path, x in registry.abstract_params(model, ("lm",)).items()}
    for path, shape in shapes.items():
        safetensors_folder.check_tensor(found[table[path]], bert_names.hf_shape(path, shape, 1))
    return {path: bert_names.from_hf(path, [found[table[path]].read()]) for path in shapes}


def t5_tensor_names(model: T5Config) -> dict[str, str]:
    """{our path: its tensor} of an encoder-decoder, as T5ForConditionalGeneration saves it."""
    found = {"embeddings/word/embedding": _TABLE_NAMES[0]}
    attention, cross = ("SelfAttention", _ATTENTION), ("EncDecAttention", _ATTENTION)
    mlp = ("DenseReluDense", _MLP[model.gated] | {"output": "wo"})
    sublayers = {
        "encoder": {"attention": attention, "mlp": mlp},
        "decoder": {"attention": attention, "cross_attention": cross, "mlp": mlp},
    }
    for stack, depth in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        bias = f"{stack}.block.{{}}.layer.0.SelfAttention.relative_attention_bias.weight"
        found[f"{stack}/norm/scale"] = f"{stack}.final_layer_norm.weight"
        if not model.has_layer_bias:
            found[f"{stack}/position/embedding"] = bias.format(0)
        for i in range(depth):
            if model.has_layer_bias:
                found[f"{stack}/layers/{i}/position/embedding"] = bias.format(i)
            for number, (ours, (theirs, kernels)) in enumerate(sublayers[stack].items()):
                here, there = f"{stack}/layers/{i}/{ours}", f"{stack}.block.{i}.layer.{number}"
                found[f"{here}/norm/scale"] = f"{there}.layer_norm.weight"
                found |= {f"{here}/{a}/kernel": f"{there}.{theirs}.{b}.weight" for a, b in kernels.items()}
    return found if model.tie_word_embeddings else found | {"heads/lm/kernel": _OUTPUT}


def _check_files(folder: Path, files: Mapping[str, Any], model: T5Config, tokenizer: Tokenizer) -> None:
    """Raises UserError unless both JSON files start and end a text as model and tokenizer do."""
    config, generation = files["config"], files["generation_config"]
    start = ("decoder_start_token_id", model.decoder_start_token_id, "config.json says")
    for name, wanted, whose in (("eos_token_id", tokenizer.eos_id, "the tokenizer's </s> is"), start):
        for file, found in (("config.json", config), (FILENAME, generation)):
            said = found.get(name)
            if said is not None and said not in (wanted, [wanted]):
                raise UserError(
                    f"{folder / file}: {name} is {said!a:.40}, {whose} {wanted}; a text can start and end in one way "
                    "only: make them agree"
                )


def _compute_fields(sizes: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: sizes[name] for name in _COMPUTE_FIELDS}
    if found["num_decoder_layers"] is None:
        found["num_decoder_layers"] = sizes["num_layers"]
    if found["scale_decoder_outputs"] is None:
        found["scale_decoder_outputs"] = sizes["tie_word_embeddings"] and sizes["model_type"] != "mt5"
    if found["model_type"] == "mt5":  # the same function under another name
        found["model_type"] = "t5"
    return found


def _drop_tied_copies(found: dict[str, StoredTensor], model: T5Config) -> dict[str, StoredTensor]:
    """Keep one of the names of the embeddings. Raises UserError if the file holds different tensors under them."""
    names = [*_TABLE_NAMES, *([_OUTPUT] if model.tie_word_embeddings else [])]
    if not (copies := [found[name] for name in names if name in found]):
        return found
    for copy in copies[1:]:
        safetensors_folder.check_tensor(copy, copies[0].shape)
        if not np.array_equal(copy.read(), copies[0].read()):
            raise UserError(f"{copy.path}: tensor '{copy.name}' is not tied to '{copies[0].name}'; T5 ties them")
    return {name: x for name, x in found.items() if name not in names} | {_TABLE_NAMES[0]: copies[0]}


def _save_folder(
    out: Path, params: Mapping[str, np.ndarray], model: T5Config, heads: Sequence[str], *,
    tokenizer: Tokenizer, labels: Sequence[str] | None = None,
    imported: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a folder that T5ForConditionalGeneration and AutoTokenizer of transformers load."""
    if model.architecture != "encoder_decoder":
        raise UserError(f"{out}: transformers has no class for a decoder-only T5")
    if tokenizer.kind not in (T5Config.tokenizer, ByteTokenizer.kind):
        raise UserError(f"{out}: transformers' T5 reads SentencePiece; this model reads WordPiece with sentinels")
    table = t5_tensor_names(model)
    if extra := [path for path in params if path not in table]:
        what = "adapters" if "/adapter/" in extra[0] else f"'{extra[0]}'"
        raise UserError(f"{out}: transformers' T5 has no place for {what}; export a checkpoint without")
    weights = {
        theirs: bert_names.to_hf(ours, np.asarray(params[ours], np.float32), 1)[0] for ours, theirs in table.items()
    }
    config = safetensors_folder.merge_config(imported, _config_json(model, tokenizer))
    generation = (imported or {}).get("generation_config")

    def add(work: Path) -> None:
        tokenizer.save(work)
        if generation:
            ids = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
            safetensors_folder.write_json(work / FILENAME, generation | {name: config[name] for name in ids})

    safetensors_folder.write_folder(out, weights, config, add)


def _config_json(model: T5Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Transformers 4 ties and scales by tie_word_embeddings; 5 scales T5 by scale_decoder_outputs, mT5 never and umT5
    always, and ties a model without lm_head.weight. A model that is tied but not scaled, or the reverse, computes our
    function only in 5, a umT5 that is not scaled only in 4.
    """
    return {
        "architectures": [f"{_PREFIX[model.model_type]}ForConditionalGeneration"],
        "model_type": model.model_type,
        **model.model_dump(exclude={"family", "model_type", "config_from", "architecture"}),
        **({"tie_word_embeddings": model.scales_outputs} if model.has_layer_bias else {}),
        "num_decoder_layers": model.decoder_layers,
        "scale_decoder_outputs": model.scales_outputs,
        "dense_act_fn": model.activation,
        "is_gated_act": model.gated,
        "is_encoder_decoder": True,
        "initializer_factor": 1.0,
        "decoder_start_token_id": model.decoder_start_token_id,
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": "float32",
    }


def _export_note(model: T5Config) -> str | None:
    if not model.has_layer_bias or model.scales_outputs:
        return None
    return (
        "transformers 5 multiplies the decoder outputs of every umT5 by 1/sqrt(d_model), which this one is computed "
        "without: its greedy answers are the same there, its losses and beams are not"
    )


T5_FORMAT = FolderFormat(
    CLASSES,
    _load_params,
    _save_folder,
    check_files=_check_files,
    export_note=_export_note,
    tensor_names=lambda model, heads: {ours: (theirs,) for ours, theirs in t5_tensor_names(model).items()},
)
