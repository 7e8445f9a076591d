"""Folders of transformers' BERT and of encoders derived from it: read into our parameters, and written from them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config.huggingface.bert import ALBERT_FIELDS, DISTILBERT_FIELDS, Names
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.model import BertConfig
from bertjax.data.tokenizers.files import write
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.interop import bert_names, encoder_names, safetensors_folder
from bertjax.interop.bert_names import EncoderNames
from bertjax.interop.hf_folder import FolderFormat, InnerModel
from bertjax.interop.safetensors_folder import StoredTensor
from bertjax.models import registry
from bertjax.models.bert.generator import standalone_paths

# Fields that change the function of equal parameters; the others show in shapes.
_COMPUTE_FIELDS = (
    "family", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id",
    "num_hidden_groups", "inner_group_num",
)  # fmt: skip
LABELLED = ("classifier", "token_classifier")  # heads with class names; a folder has one of them


def _load_params(names: EncoderNames, folder: Path, model: BertConfig) -> dict[str, np.ndarray]:
    safetensors_folder.check_fields(folder, read_model_fields(folder), dict(model), _COMPUTE_FIELDS)
    found = _with_embeddings(names, folder, safetensors_folder.open_folder(folder, names.normalize))
    heads = _heads_in(names, folder, found)
    table = names.tensors(model, heads)
    if "mlm" in heads and names.mlm_bias not in found and "bias" in names.tied:
        table["heads/mlm/bias"] = (names.tied["bias"],)
    _check_names(names, folder, found, table, model.family)
    params = {}
    for path, shape in _shapes(names, model, heads, found).items():
        for name in table[path]:
            safetensors_folder.check_tensor(found[name], bert_names.hf_shape(path, shape, len(table[path])))
        params[path] = bert_names.from_hf(path, [found[name].read() for name in table[path]])
    _check_tied(names, found, params)
    return params


def _with_embeddings(
    names: EncoderNames, folder: Path, found: Mapping[str, StoredTensor]
) -> Mapping[str, StoredTensor]:
    """`found`, with the word embeddings also where the file has them only as the output matrix that is tied to them.

    safetensors stores a shared matrix once, and not every converter chose the name that transformers saves.
    """
    word, decoder = f"{names.prefix}embeddings.word_embeddings.weight", names.tied["decoder"]
    if word in found or decoder not in found:
        return found
    tied = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    return found if tied is False else {**found, word: found[decoder]}


def _unused_tensors(names: EncoderNames, folder: Path, model: BertConfig) -> list[str]:
    """Tensors without a place here (other heads, mostly)."""
    found = safetensors_folder.open_folder(folder, names.normalize)
    table = names.tensors(model, _heads_in(names, folder, found))
    known = {name for tensors in table.values() for name in tensors} | {*names.tied.values()}
    return sorted(x.name for name, x in found.items() if name not in known and not names.is_ignored(name))


def _find_classifier(names: EncoderNames, folder: Path) -> tuple[str, int] | None:
    found = safetensors_folder.open_folder(folder, names.normalize)
    head = next((head for head in _heads_in(names, folder, found) if head in LABELLED), None)
    bias = found.get(_classifier_bias(names, head)) if head else None
    return None if head is None or bias is None else (head, bias.shape[0])


def _classifier_bias(names: EncoderNames, head: str) -> str:
    return f"{names.heads[head][head]}.bias"


def _heads_in(names: EncoderNames, folder: Path, found: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    first = {head: next(iter(modules.values())) for head, modules in names.heads.items()}
    pooler = f"{names.prefix}{names.pooler}.weight" in found
    heads = tuple(head for head, module in first.items() if f"{module}.weight" in found)
    if set(LABELLED) <= set(heads):  # they have one name
        other = "classifier" if _labels_tokens(folder, found, pooler) else "token_classifier"
        heads = tuple(head for head in heads if head != other)
    return (*heads, "pooler") if pooler and not names.pooler_readers & set(heads) else heads


def _labels_tokens(folder: Path, found: Mapping[str, StoredTensor], pooler: bool) -> bool:
    """Whether `classifier.weight` labels tokens: two classes of BERT, DistilBERT and ALBERT have a layer of this name.

    `architectures` decides. Without it, a layer before the classifier (a pooler, DistilBERT's pre_classifier), which
    only the class for sequences has, tells them apart.
    """
    asked = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures"))
    if ("ForTokenClassification" in asked) != ("ForSequenceClassification" in asked):
        return "ForTokenClassification" in asked
    return not pooler and "pre_classifier.weight" not in found


def _check_names(
    names: EncoderNames, folder: Path, found: Mapping[str, StoredTensor], table: bert_names.TensorNames, family: str
) -> None:
    wanted = [name for tensors in table.values() for name in tensors]
    safetensors_folder.check_complete(folder, found, wanted, f"{family} model")
    for name, stored in found.items():
        if name not in wanted and names.is_encoder(name) and not names.is_ignored(name):
            raise UserError(f"{stored.path}: tensor '{stored.name}' has no place in a {family} encoder of this size")


def _shapes(
    names: EncoderNames, model: BertConfig, heads: Sequence[str], found: Mapping[str, StoredTensor]
) -> dict[str, tuple[int, ...]]:
    """{our path: the shape the model wants}."""
    head = next((head for head in heads if head in LABELLED), None)
    bias = found[_classifier_bias(names, head)].shape if head else ()
    labels = bias[0] if bias else 2
    return {path: x.shape for path, x in registry.abstract_params(model, tuple(heads), labels).items()}


def _check_tied(names: EncoderNames, found: Mapping[str, StoredTensor], params: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if a file holds another output matrix than the word embeddings, which bertjax uses."""
    ours = {"decoder": "embeddings/word/embedding", "bias": "heads/mlm/bias"}
    for what, name in names.tied.items():
        twin = params.get(ours[what])
        if name not in found or twin is None:
            continue
        safetensors_folder.check_tensor(found[name], twin.shape)
        if not np.array_equal(found[name].read(), twin):
            raise UserError(
                f"{found[name].path}: tensor '{found[name].name}' is not tied to the word "
                "embeddings, and bertjax ties them; to use the encoder alone, save it without that head (AutoModel)"
            )


def _save_folder(
    names: EncoderNames, config_fields: Callable[[Path, BertConfig], dict[str, Any]], out: Path,
    params: Mapping[str, np.ndarray], model: BertConfig, heads: Sequence[str], *, tokenizer: Tokenizer,
    labels: Sequence[str] | None = None, imported: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a folder that transformers' AutoModelFor... and AutoTokenizer load.

    A pooler that no head of the written class reads (a QA model's, say) is left out: transformers has no place for it.
    """
    if (kind := frozenset(heads) - {"pooler"}) not in names.classes:
        raise UserError(f"{out}: transformers has no {model.family} class with the heads {', '.join(sorted(kind))}")
    model_type = getattr(model, "model_type", model.family)
    if (padding := getattr(model, "pad_token_id", tokenizer.pad_id)) != tokenizer.pad_id:
        raise UserError(f"{out}: padding is {tokenizer.pad_id} in the tokenizer and {padding} in model.pad_token_id")
    config = {
        "architectures": [names.class_name(kind, model_type)],
        "model_type": model_type,
        **config_fields(out, model),
        "pad_token_id": tokenizer.pad_id,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    if set(LABELLED) & kind:
        config |= _label_fields(labels or [f"LABEL_{i}" for i in range(registry.num_labels(params))])
    if "token_classifier" in kind:
        config.pop("problem_type", None)
    config = safetensors_folder.merge_config(imported, config)
    # without them transformers' tokenizer makes none, and the model takes 0: a single row has no index 1
    typed = names.token_types and model.type_vocab_size != 1
    inputs = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
    files = tokenizer.files({"model_input_names": inputs, "model_max_length": model.max_length})
    weights = _to_tensors(names, params, model, heads)
    safetensors_folder.write_folder(out, weights, config, partial(write, files=files))


def _to_tensors(
    names: EncoderNames, params: Mapping[str, np.ndarray], model: BertConfig, heads: Sequence[str]
) -> dict[str, np.ndarray]:
    bare = not set(heads) - {"pooler"}
    written = [head for head in heads if bare or head != "pooler"]
    found: dict[str, np.ndarray] = {}
    for path, tensors in names.tensors(model, written).items():
        pieces = bert_names.to_hf(path, np.asarray(params[path], np.float32), len(tensors))
        found |= dict(zip(tensors, pieces, strict=True))
    if names.token_types and not model.type_vocab_size:  # transformers always has segment embeddings: zeros
        zeros = np.zeros((2, model.embedding_width), np.float32)
        found[f"{names.prefix}embeddings.token_type_embeddings.weight"] = zeros
    return {name.removeprefix(names.prefix): t for name, t in found.items()} if bare else found


def _label_fields(names: Sequence[str]) -> dict[str, Any]:
    by_id = {str(i): name for i, name in enumerate(names)}
    fields: dict[str, Any] = {"id2label": by_id, "label2id": {name: i for i, name in enumerate(names)}}
    return fields | ({"problem_type": "regression"} if len(names) == 1 else {})


def _bert_fields(out: Path, model: BertConfig) -> dict[str, Any]:
    ours = {"family", "config_from", "position_init", "qa_dropout", "generator_hidden_size", "generator_layers"}
    return model.model_dump(exclude=ours) | {"type_vocab_size": model.type_vocab_size or 2}


def _albert_fields(out: Path, model: BertConfig) -> dict[str, Any]:
    return _rename(ALBERT_FIELDS, model) | {"type_vocab_size": model.type_vocab_size or 2}


def _distilbert_fields(out: Path, model: BertConfig) -> dict[str, Any]:
    if model.layer_norm_eps != 1e-12:
        raise UserError(f"{out}: distilbert in transformers has layer_norm_eps 1e-12, not {model.layer_norm_eps}")
    return _rename(DISTILBERT_FIELDS, model)


def _rename(names: Names, model: BertConfig) -> dict[str, Any]:
    """The fields of config.json under other names than ours."""
    sizes = dict(model)
    if sizes["classifier_dropout"] is None:
        sizes["classifier_dropout"] = model.hidden_dropout_prob
    return {theirs: sizes[ours] for ours, (theirs, _) in names.items()}


def _format(names: EncoderNames, config_fields: Callable[[Path, BertConfig], dict[str, Any]]) -> FolderFormat:
    return FolderFormat(
        classes=names.all_classes,
        load_params=partial(_load_params, names),
        save_folder=partial(_save_folder, names, config_fields),
        unused_tensors=partial(_unused_tensors, names),
        find_classifier=partial(_find_classifier, names),
        tensor_names=names.tensors,
    )


BERT = _format(bert_names.BERT, _bert_fields)
DISTILBERT = _format(bert_names.DISTILBERT, _distilbert_fields)
ROBERTA = _format(encoder_names.ROBERTA, _bert_fields)
GENERATOR = InnerModel(model=lambda model: model.generator, head="mlm", paths=standalone_paths)
ELECTRA = replace(_format(encoder_names.ELECTRA, _bert_fields), inner_models={"generator": GENERATOR})
ALBERT = _format(encoder_names.ALBERT, _albert_fields)
