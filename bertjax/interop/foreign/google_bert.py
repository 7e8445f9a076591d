"""BERT checkpoints of google-research/bert: `bert_model.ckpt.*` or a fine-tuned `model.ckpt-N.*`.

Variables are named as in modeling.py, run_pretraining.py, run_classifier.py and run_squad.py of that repository. Dense
kernels are [in, out], the output weights of the heads [out, in]. Sizes are those of bert_config.json.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.config.schema.model import BertConfig
from bertjax.errors import UserError
from bertjax.interop import bert_names
from bertjax.interop.foreign import tf_bundle
from bertjax.interop.foreign.checkpoint import ForeignCheckpoint, check_names
from bertjax.interop.foreign.tf_bundle import BundleTensor
from bertjax.storage import text

CONFIG = "bert_config.json"
_VOCABULARY = "vocab.txt"
_HEADS = {
    "mlm": ("cls.predictions.bias", "cls/predictions/output_bias"),
    "nsp": ("cls.seq_relationship", "cls/seq_relationship/output"),
    "qa": ("qa_outputs", "cls/squad/output"),
    "classifier": ("classifier", "output"),
}
_OPTIMIZER = re.compile(r"global_step|.*/(adam_m|adam_v)|(?:adam_m|adam_v|beta1_power|beta2_power)", re.ASCII)


def read(folder: Path, index: Path, tensors: Mapping[str, BundleTensor]) -> ForeignCheckpoint:
    """The weights, a config.json and the vocabulary of a folder. Raises UserError."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: holds a BERT checkpoint and no {CONFIG}; put the one of the model beside it")
    if not (folder / _VOCABULARY).is_file():
        raise UserError(f"{folder}: holds a BERT checkpoint and no {_VOCABULARY}; put the one of the model beside it")
    config, model = _read_config(folder / CONFIG)
    heads = [head for head, (_, name) in _HEADS.items() if f"{name}_bias" in tensors or name in tensors]
    pooler = ["pooler"] if "bert/pooler/dense/kernel" in tensors else []
    table = bert_names.BERT.tensors(model, (*heads, *pooler))
    wanted = {hf: _variable(hf) for names in table.values() for hf in names}
    state = {name: found[1] or name for name in tensors if (found := _OPTIMIZER.fullmatch(name))}
    check_names(index, tensors, wanted.values(), "BERT of this size", state)
    shapes = {hf: tensors[name].shape for hf, name in wanted.items()}
    _check_layers(folder / CONFIG, model, shapes)
    weights = {}
    for hf, name in wanted.items():
        array = tensors[name].read()
        weights[hf] = array.T if name.endswith("/kernel") else array
    class_name = bert_names.BERT.classes.get(frozenset(heads))
    made = {"config.json": config | ({"architectures": [class_name]} if class_name else {})}
    notes = []
    if config.get("hidden_act") == "gelu_new":
        notes.append(f"{folder / CONFIG}: gelu is the tanh approximation in google-research/bert: hidden_act: gelu_new")
    if state:
        notes.append(f"{index}: the optimizer's state is not read: {tf_bundle.count_by_kind(state)}")
    files = {_VOCABULARY: folder / _VOCABULARY}
    if (own := folder / "tokenizer_config.json").is_file():
        files[own.name] = own
    else:
        lowercase = _is_lowercase(folder / _VOCABULARY)
        made["tokenizer_config.json"] = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}
        case = (
            "no piece has a capital letter: texts are lowercased"
            if lowercase
            else "pieces have capital letters: case is kept"
        )
        notes.append(f"{folder / _VOCABULARY}: {case}; a tokenizer_config.json with do_lower_case decides otherwise")
    return ForeignCheckpoint(weights, files, made, tuple(notes))


def _read_config(path: Path) -> tuple[dict[str, Any], BertConfig]:
    """bert_config.json as a config.json of transformers, and the sizes in it as a section."""
    config = text.read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object; download it again")
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for name in names:
        if not isinstance(config.get(name), int) or isinstance(config[name], bool) or config[name] < 1:
            raise UserError(f"{path}: {name} must be a positive number (got {config.get(name)!a:.40})")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise UserError(f"{path}: num_attention_heads must divide hidden_size")
    config = {**config, "model_type": "bert"}
    if config.get("hidden_act") == "gelu":
        config["hidden_act"] = "gelu_new"
    return config, BertConfig(**{name: config[name] for name in names})


def _variable(name: str) -> str:
    """The variable of a tensor that transformers names `name`."""
    for ours, theirs in _HEADS.values():
        if name == ours:  # the bias of the output over the vocabulary
            return theirs
        if name in (f"{ours}.weight", f"{ours}.bias"):
            return f"{theirs}_weights" if name.endswith(".weight") else f"{theirs}_bias"
    module, _, leaf = name.rpartition(".")
    module = re.sub(r"\.layer\.(\d+)", r"/layer_\1", module).replace(".", "/")
    if module.endswith("_embeddings"):
        return module
    if module.endswith("LayerNorm"):
        return f"{module}/{'gamma' if leaf == 'weight' else 'beta'}"
    return f"{module}/{'kernel' if leaf == 'weight' else 'bias'}"


def _check_layers(path: Path, model: BertConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    found = shapes["bert.embeddings.word_embeddings.weight"]
    if found != (model.vocab_size, model.hidden_size):
        raise UserError(
            f"{path}: vocab_size and hidden_size are {model.vocab_size} and {model.hidden_size}, the checkpoint's word "
            f"embeddings are {list(found)}; give it the {CONFIG} of its model"
        )


def _is_lowercase(path: Path) -> bool:
    """Whether no piece but the special tokens has a capital letter, as in the uncased vocabularies."""
    pieces = text.read_text(path, 100_000_000).splitlines()
    return all(piece == piece.lower() for piece in pieces if not (piece.startswith("[") and piece.endswith("]")))
