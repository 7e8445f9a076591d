"""T5 folders of Hugging Face transformers, v1.0 and v1.1: read into our parameters, and written from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config.huggingface.generation import FILENAME
from bertjax.config.loading.load import read_model_fields
from bertjax.config.schema.model import T5Config
from bertjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bertjax.data.tokenizers.unigram import UnigramTokenizer
from bertjax.errors import UserError
from bertjax.interop import bert_names, safetensors_folder, t5_names
from bertjax.interop.hf_folder import FolderFormat
from bertjax.interop.safetensors_folder import StoredTensor
from bertjax.models import registry

CLASSES = ("T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel")  # the last is what the first was once called
# Fields that change the function of equal parameters; the others show in shapes.
_COMPUTE_FIELDS = (
    "family", "architecture", "num_layers", "num_decoder_layers", "num_heads", "feed_forward_proj",
    "relative_attention_max_distance", "layer_norm_epsilon", "tie_word_embeddings", "scale_decoder_outputs",
    "decoder_start_token_id",
)  # fmt: skip


def _load_params(folder: Path, model: T5Config) -> dict[str, np.ndarray]:
    _check_agrees(folder, model)
    table = t5_names.t5_tensor_names(model)
    found = _drop_tied_copies(safetensors_folder.open_folder(folder, lambda name: name), model)
    missing = [name for name in table.values() if name not in found]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{folder}: has no tensor '{missing[0]}'{more}; give a complete T5")
    for name, stored in found.items():
        if name not in table.values() and name not in t5_names.IGNORED_NAMES:
            raise UserError(f"{stored.path}: tensor '{stored.name}' has no place in a T5 of this size and version")
    shapes = {path: x.shape for path, x in registry.abstract_params(model, ("lm",)).items()}
    for path, shape in shapes.items():
        safetensors_folder.check_tensor(found[table[path]], bert_names.hf_shape(path, shape, 1))
    return {path: bert_names.from_hf(path, [found[table[path]].read()]) for path in shapes}


def _check_files(
    folder: Path, files: Mapping[str, Any], model: T5Config, tokenizer: SentencePieceTokenizer | UnigramTokenizer
) -> None:
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


def _check_agrees(folder: Path, model: T5Config) -> None:
    theirs, ours = _compute_fields(dict(T5Config()) | read_model_fields(folder)), _compute_fields(dict(model))
    for name in _COMPUTE_FIELDS:
        if theirs[name] != ours[name]:
            raise UserError(
                f"{folder / 'config.json'}: {name} is {theirs[name]!a:.40}, the model here has {ours[name]!r}; "
                "make the model section agree (or use model.config_from)"
            )


def _compute_fields(sizes: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: sizes[name] for name in _COMPUTE_FIELDS}
    if found["num_decoder_layers"] is None:
        found["num_decoder_layers"] = sizes["num_layers"]
    if found["scale_decoder_outputs"] is None:
        found["scale_decoder_outputs"] = sizes["tie_word_embeddings"]
    return found


def _drop_tied_copies(found: dict[str, StoredTensor], model: T5Config) -> dict[str, StoredTensor]:
    """Keep one of the names of the embeddings. Raises UserError if the file holds different tensors under them."""
    names = [*t5_names.EMBEDDING_NAMES, *([t5_names.OUTPUT_NAME] if model.tie_word_embeddings else [])]
    copies = [found[name] for name in names if name in found]
    if not copies:
        return found
    for copy in copies[1:]:
        safetensors_folder.check_tensor(copy, copies[0].shape)
        if not np.array_equal(copy.read(), copies[0].read()):
            raise UserError(f"{copy.path}: tensor '{copy.name}' is not tied to '{copies[0].name}'; T5 ties them")
    return {name: x for name, x in found.items() if name not in names} | {t5_names.EMBEDDING_NAMES[0]: copies[0]}


def _save_folder(
    out: Path, params: Mapping[str, np.ndarray], model: T5Config, heads: Sequence[str], *,
    tokenizer: SentencePieceTokenizer | UnigramTokenizer, labels: Sequence[str] | None = None,
    imported: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a folder that T5ForConditionalGeneration and AutoTokenizer of transformers load."""
    if model.architecture != "encoder_decoder":
        raise UserError(f"{out}: transformers has no class for a decoder-only T5")
    table = t5_names.t5_tensor_names(model)
    extra = [path for path in params if path not in table]
    if extra:
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


def _config_json(model: T5Config, tokenizer: SentencePieceTokenizer | UnigramTokenizer) -> dict[str, Any]:
    """Transformers 4 ties and scales by tie_word_embeddings; 5 scales by scale_decoder_outputs and ties a model without
    lm_head.weight. A model that is tied but not scaled, or the reverse, computes our function only in 5.
    """
    tied, scale = model.tie_word_embeddings, model.scale_decoder_outputs
    return {
        "architectures": [CLASSES[0]],
        "model_type": "t5",
        **model.model_dump(exclude={"family", "config_from", "architecture"}),
        "num_decoder_layers": model.decoder_layers,
        "scale_decoder_outputs": tied if scale is None else scale,
        "dense_act_fn": model.activation,
        "is_gated_act": model.gated,
        "is_encoder_decoder": True,
        "initializer_factor": 1.0,
        "decoder_start_token_id": model.decoder_start_token_id,
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": "float32",
    }


T5_FORMAT = FolderFormat(CLASSES, _load_params, _save_folder, check_files=_check_files)
