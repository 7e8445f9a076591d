"""Folders of Hugging Face transformers: read into our parameters, and written from them. T5's are in `t5`."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from bertjax.config.huggingface import generation
from bertjax.config.huggingface.sizes import DISTILBERT_FIELDS
from bertjax.config.loading.load import read_model_fields
from bertjax.config.schema.model import BertConfig, ModelConfig, T5Config
from bertjax.data.tokenizers.files import write
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.interop import bert_names, safetensors_folder, t5
from bertjax.interop.safetensors_folder import StoredTensor
from bertjax.models import param_paths, registry

# The transformers classes whose tensors the tables know, by the heads they have.
_CLASSES: dict[str, dict[frozenset[str], str]] = {
    "bert": {
        frozenset(): "BertModel",
        frozenset({"mlm", "nsp"}): "BertForPreTraining",
        frozenset({"mlm"}): "BertForMaskedLM",
        frozenset({"nsp"}): "BertForNextSentencePrediction",
        frozenset({"qa"}): "BertForQuestionAnswering",
        frozenset({"classifier"}): "BertForSequenceClassification",
    },
    "distilbert": {
        frozenset(): "DistilBertModel",
        frozenset({"mlm"}): "DistilBertForMaskedLM",
        frozenset({"qa"}): "DistilBertForQuestionAnswering",
        frozenset({"classifier"}): "DistilBertForSequenceClassification",
    },
}
# What must be equal for the same parameters to be the same function; shapes tell the rest.
_COMPUTE_FIELDS = ("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")


# ---- reading --------------------------------------------------------------------------------------------------------


def load_params(folder: Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """{our path: float32 array} of everything in the folder that `model` has a place for, heads included.

    Shapes as in `bertjax.models`. `present_heads` and `num_labels` tell what was found. Raises UserError, naming the
    file and the tensor, when the folder is no BERT, DistilBERT or T5, is damaged, or does not agree with `model`.
    """
    folder = Path(folder)
    if isinstance(model, T5Config):
        read_config(folder)
        return t5.load_params(folder, model)
    _check_agrees(folder, model)
    found = safetensors_folder.open_folder(folder, lambda name: bert_names.normalize_name(name, model.family))
    heads = _heads_in(found, model.family)
    table = bert_names.tensor_names(model, heads)
    if "mlm" in heads and bert_names.MLM_BIAS[model.family] not in found and "bias" in bert_names.TIED[model.family]:
        table["heads/mlm/bias"] = (bert_names.TIED[model.family]["bias"],)
    _check_names(folder, found, table, model.family)
    params = {}
    for path, shape in _shapes(model, heads, found).items():
        for name in table[path]:
            safetensors_folder.check_tensor(found[name], bert_names.hf_shape(path, shape, len(table[path])))
        params[path] = bert_names.from_hf(path, [found[name].read() for name in table[path]])
    _check_tied(found, params, model.family)
    return params


def unused_tensors(folder: Path, model: ModelConfig) -> list[str]:
    """Names of the tensors in a folder that `load_params` reads and that it has no place for (other heads, mostly)."""
    if isinstance(model, T5Config):
        return []  # it refuses them
    found = safetensors_folder.open_folder(Path(folder), lambda name: bert_names.normalize_name(name, model.family))
    table = bert_names.tensor_names(model, _heads_in(found, model.family))
    known = {name for names in table.values() for name in names} | {*bert_names.TIED[model.family].values()}
    return sorted(
        x.name for name, x in found.items() if name not in known and not bert_names.is_ignored(name, model.family)
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder that the tables can read. Raises UserError for code, other models and decoders."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: holds no config.json; give a folder that transformers' save_pretrained wrote")
    read_model_fields(folder)  # refuses what is not JSON, and other model types
    config = json.loads(path.read_text(encoding="utf-8"))
    family = config["model_type"]
    known = set(t5.CLASSES if family == "t5" else _CLASSES[family].values())
    asked = config.get("architectures") or []
    unknown = [name for name in asked if name not in known] if isinstance(asked, list) else [asked]
    if config.get("auto_map"):
        raise UserError(f"{path}: auto_map: the model is defined by code of its own, which is never run here")
    if unknown:
        raise UserError(f"{path}: architectures: {unknown[0]!a:.60} is not known; known: {', '.join(sorted(known))}")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UserError(f"{path}: is_decoder: a causal model; bertjax reads encoders and T5")
    return config


class Classifier(NamedTuple):
    """The classifier in a folder: its outputs, their names by id (None: none), and notes for the user."""

    outputs: int
    names: tuple[str, ...] | None
    notes: tuple[str, ...]


def read_classifier(folder: Path) -> Classifier | None:
    """The classifier in a folder, by its tensors and config.json; None where it has none.

    Raises UserError where config.json describes another classifier than the tensors hold, or one of several labels.
    """
    config = read_config(folder)
    family = config["model_type"]
    if family == "t5":
        return None
    found = safetensors_folder.open_folder(Path(folder), lambda name: bert_names.normalize_name(name, family))
    if "classifier" not in _heads_in(found, family) or "classifier.bias" not in found:
        return None
    return _classifier(Path(folder) / "config.json", config, found["classifier.bias"].shape[0])


def _classifier(path: Path, config: Mapping[str, Any], count: int) -> Classifier:
    kind = config.get("problem_type")
    fitting = (None, "regression") if count == 1 else (None, "single_label_classification")
    if kind not in fitting:
        raise UserError(f"{path}: problem_type {kind!a:.40} with {count} outputs: bertjax has one label or one number")
    listed = config.get("id2label")
    if listed is None:
        if config.get("num_labels", count) != count:
            raise UserError(f"{path}: num_labels is {config['num_labels']!a:.20}, the classifier has {count} outputs")
        return Classifier(count, None, ())
    names = _labels_by_id(listed)
    if names is None or len(names) != count:
        raise UserError(f"{path}: id2label does not name the ids 0 to {count - 1} of the classifier; correct it")
    if count == 1 or names == [f"LABEL_{number}" for number in range(count)]:
        return Classifier(count, None, ())
    if len({name.strip().casefold() for name in names}) < count:
        return Classifier(count, None, (f"{path}: id2label gives two classes one name, so labels can only be ids",))
    theirs = config.get("label2id")
    other = theirs is not None and theirs != {name: number for number, name in enumerate(names)}
    notes = (f"{path}: label2id is not the inverse of id2label: id2label decides",) if other else ()
    return Classifier(count, tuple(names), notes)


def _labels_by_id(listed: Any) -> list[str] | None:
    """id2label as a list; None where its keys are not 0, 1, 2, ..."""
    try:
        by_id = {int(number): str(name) for number, name in listed.items()}
    except (AttributeError, TypeError, ValueError):
        return None
    return [by_id[number] for number in range(len(by_id))] if by_id.keys() == set(range(len(by_id))) else None


def read_config_files(folder: Path) -> dict[str, Any]:
    """{"config", "generation_config"}: what the two JSON files of a folder say; empty where the latter is missing.

    A checkpoint of imported weights keeps them, for generating and for export. Raises UserError.
    """
    return {"config": read_config(folder), "generation_config": generation.read_generation_config(Path(folder))}


def stored_dtype(folder: Path) -> str:
    """What the weights are to be computed in: bfloat16 where all are stored so, else float32."""
    kinds = {stored.dtype for stored in safetensors_folder.open_folder(Path(folder), lambda name: name).values()}
    return "bfloat16" if kinds & {"BF16", "F16", "F32", "F64"} == {"BF16"} else "float32"


def present_heads(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that flat parameters hold: mlm, nsp, qa, classifier, and pooler where no other head brings it; lm."""
    if "decoder/norm/scale" in params:
        return ("lm",)
    heads = tuple(head for head in ("mlm", "nsp", "qa", "classifier") if any(_in_head(p, head) for p in params))
    alone = "heads/pooler/kernel" in params and not {"nsp", "classifier"} & set(heads)
    return (*heads, "pooler") if alone else heads


def _in_head(path: str, head: str) -> bool:
    return path.startswith(f"heads/{head}/")


def num_labels(params: Mapping[str, Any]) -> int:
    """Outputs of the classifier; 2 where there is none."""
    bias = params.get("heads/classifier/bias")
    return 2 if bias is None else int(bias.shape[0])


def _check_agrees(folder: Path, model: BertConfig) -> None:
    read_config(folder)
    theirs = read_model_fields(folder)
    ours = dict(model)
    for name in ("family", *_COMPUTE_FIELDS):
        if name in theirs and theirs[name] != ours[name]:
            raise UserError(
                f"{folder / 'config.json'}: {name} is {theirs[name]!a:.40}, the model here has {ours[name]!r}; "
                "make the model section agree (or use model.config_from)"
            )


def _heads_in(found: Mapping[str, StoredTensor], family: str) -> tuple[str, ...]:
    first = {head: next(iter(parts.values())) for head, parts in bert_names.HEADS[family].items()}
    heads = tuple(head for head, module in first.items() if f"{module}.weight" in found)
    pooler = f"{bert_names.PREFIX[family]}{bert_names.POOLER}.weight" in found
    return (*heads, "pooler") if pooler and not {"nsp", "classifier"} & set(heads) else heads


def _check_names(folder: Path, found: Mapping[str, StoredTensor], table: bert_names.TensorNames, family: str) -> None:
    wanted = {name for names in table.values() for name in names}
    missing = [name for names in table.values() for name in names if name not in found]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{folder}: has no tensor '{missing[0]}'{more}; give a whole {family} model")
    for name, stored in found.items():
        if name not in wanted and bert_names.is_encoder(name, family) and not bert_names.is_ignored(name, family):
            raise UserError(f"{stored.path}: tensor '{stored.name}' has no place in a {family} encoder of this size")


def _shapes(model: BertConfig, heads: Sequence[str], found: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    """{our path: the shape the model wants}."""
    labels = found["classifier.bias"].shape[0] if "classifier" in heads and found["classifier.bias"].shape else 2
    abstract = registry.abstract_model(model, tuple(heads), labels)[1]
    return {path: x.shape for path, x in param_paths.flatten(nnx.as_pure(abstract)).items()}


def _check_tied(found: Mapping[str, StoredTensor], params: Mapping[str, np.ndarray], family: str) -> None:
    """The output matrix is the word embeddings: a file may hold it twice, but not differently."""
    ours = {"decoder": "embeddings/word/embedding", "bias": "heads/mlm/bias"}
    for what, name in bert_names.TIED[family].items():
        twin = params.get(ours[what])
        if name not in found or twin is None:
            continue
        safetensors_folder.check_tensor(found[name], twin.shape)
        if not np.array_equal(found[name].read(), twin):
            raise UserError(f"{found[name].path}: tensor '{found[name].name}' is not tied; bertjax ties outputs")


# ---- writing --------------------------------------------------------------------------------------------------------


def save_folder(
    out: Path, params: Mapping[str, np.ndarray], model: BertConfig, heads: Sequence[str], *,
    tokenizer: Tokenizer, labels: Sequence[str] | None = None, imported: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a folder that transformers' AutoModelFor... and AutoTokenizer load, in one piece.

    params: {our path: float32 array}, whole arrays. labels: names of the classes. imported: of an
    imported folder, see read_config_files. A pooler that no head of the written
    class reads (a QA model's, say) is left out, as transformers has no place for it. Raises UserError for a model that
    transformers has no class for, OSError when the folder cannot be written.
    """
    out = Path(out)
    config = safetensors_folder.merge_config(
        imported, _config_json(out, params, model, heads, tokenizer.pad_id, labels)
    )
    inputs = ["input_ids", *(["token_type_ids"] if model.family == "bert" else []), "attention_mask"]
    files = tokenizer.files({"model_input_names": inputs, "model_max_length": model.max_position_embeddings})
    add = partial(write, files=files)
    safetensors_folder.write_folder(out, _their_tensors(params, model, heads), config, add)


def _their_tensors(params: Mapping[str, np.ndarray], model: BertConfig, heads: Sequence[str]) -> dict[str, np.ndarray]:
    bare = not set(heads) - {"pooler"}
    written = [head for head in heads if bare or head != "pooler"]
    found: dict[str, np.ndarray] = {}
    for path, names in bert_names.tensor_names(model, written).items():
        pieces = bert_names.to_hf(path, np.asarray(params[path], np.float32), len(names))
        found |= dict(zip(names, pieces, strict=True))
    prefix = bert_names.PREFIX[model.family]
    if model.family == "bert" and not model.type_vocab_size:  # transformers always adds one: zeros change nothing
        found[f"{prefix}embeddings.token_type_embeddings.weight"] = np.zeros((2, model.hidden_size), np.float32)
    return {name.removeprefix(prefix): t for name, t in found.items()} if bare else found


def _config_json(
    out: Path, params: Mapping[str, np.ndarray], model: BertConfig, heads: Sequence[str], pad_id: int,
    labels: Sequence[str] | None,
) -> dict[str, Any]:  # fmt: skip
    kind = frozenset(heads) - {"pooler"}
    if kind not in _CLASSES[model.family]:
        raise UserError(f"{out}: transformers has no {model.family} class with the heads {', '.join(sorted(kind))}")
    sizes = {name: value for name, value in model if name not in ("family", "config_from", "position_init")}
    if model.family == "bert":
        del sizes["qa_dropout"]
        sizes["type_vocab_size"] = model.type_vocab_size or 2
    else:
        if model.layer_norm_eps != 1e-12:
            raise UserError(f"{out}: distilbert in transformers has layer_norm_eps 1e-12, not {model.layer_norm_eps}")
        if sizes["classifier_dropout"] is None:
            sizes["classifier_dropout"] = model.hidden_dropout_prob
        sizes = {theirs: sizes[ours] for ours, (theirs, _) in DISTILBERT_FIELDS.items()}
    config = {
        "architectures": [_CLASSES[model.family][kind]],
        "model_type": model.family,
        **sizes,
        "pad_token_id": pad_id,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    if "classifier" in kind:
        names = labels or [f"LABEL_{i}" for i in range(num_labels(params))]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
        if len(names) == 1:
            config["problem_type"] = "regression"
    return config
