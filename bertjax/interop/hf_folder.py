"""Folders of Hugging Face transformers of any model family: configuration files, parameters, classifier, dtype."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertjax.config.huggingface import fields, generation
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.base import Section, record_at
from bertjax.config.schema.model import FAMILIES, ModelConfig
from bertjax.errors import UserError
from bertjax.interop import safetensors_folder
from bertjax.models import families, registry

MULTI_LABEL = "multi_label_classification"


@dataclass(frozen=True)
class InnerModel:
    """A model inside another one, such as ELECTRA's generator, which transformers has a class for."""

    model: Callable[[Any], Any]  # model section -> its own
    head: str  # of the model alone
    paths: Callable[[Iterable[str]], Mapping[str, str]]  # all our paths -> {path in the model alone: path here}


@dataclass(frozen=True)
class FolderFormat:
    """How transformers stores a family of models; the family's record names it.

    `check_files` gets what `read_config_files` returns, and raises UserError where it disagrees with the others.
    `tensor_names`: (model, heads) -> {our path: its tensors}, where adapter folders of peft can be written.
    `inner_models`: {head that is a model of its own: how to take it out}. `export_note`: what a user should know of the
    folder that a model is written to.
    """

    classes: Collection[str]  # the transformers classes whose tensors are known
    load_params: Callable[[Path, Any], dict[str, np.ndarray]]  # as the function of this name below
    save_folder: Callable[..., None]
    unused_tensors: Callable[[Path, Any], list[str]] = lambda folder, model: []
    # (the head, classifier or token_classifier, its outputs); None without one
    find_classifier: Callable[[Path], tuple[str, int] | None] = lambda folder: None
    check_files: Callable[[Path, Mapping[str, Any], Any, Any], None] = lambda folder, files, model, tokenizer: None
    tensor_names: Callable[[Any, Sequence[str]], Mapping[str, tuple[str, ...]]] | None = None
    inner_models: Mapping[str, InnerModel] = field(default_factory=dict)
    export_note: Callable[[Any], str | None] = lambda model: None


def format_of(model: Section | type[Section]) -> FolderFormat:
    """The folder format of a model's family. Raises UserError for a family that transformers does not have."""
    if (place := families.record_of(model).interop) is None:
        family = model.model_fields["family"].default if isinstance(model, type) else getattr(model, "family", "this")
        place = "neither read from Hugging Face folders nor written to them"
        raise UserError(f"models of family {family} are {place}; use the run itself")
    return record_at(place, FolderFormat)


def load_params(folder: str | Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """{our path: float32 array} of everything in the folder that `model` has a place for, heads included.

    Raises UserError with file and tensor: no model of the family, damaged, or not in agreement with `model`.
    """
    read_config(Path(folder))
    return format_of(model).load_params(Path(folder), model)


def unused_tensors(folder: str | Path, model: ModelConfig) -> list[str]:
    """Names of the tensors in a folder that `load_params` leaves out (other heads, mostly)."""
    return format_of(model).unused_tensors(Path(folder), model)


def save_folder(
    out: str | Path, params: Mapping[str, np.ndarray], model: ModelConfig, heads: Sequence[str], *, tokenizer: Any,
    labels: Sequence[str] | None = None, imported: Mapping[str, Any] | None = None, multi_label: bool = False,
) -> None:  # fmt: skip
    """Writes a folder that transformers' AutoModelFor... and AutoTokenizer load; `out` appears atomically.

    params: {our path: float32 array}, unsharded. labels: names of the classes. imported: `read_config_files` of an
    imported folder. multi_label: whether a text may have several labels. Raises UserError for a model that transformers
    has no class for, OSError if writing fails.
    """
    about = {"labels": labels, "imported": _with_problem_type(imported, params, multi_label)}
    format_of(model).save_folder(Path(out), params, model, heads, tokenizer=tokenizer, **about)


def _with_problem_type(
    imported: Mapping[str, Any] | None, params: Mapping[str, np.ndarray], multi_label: bool
) -> Mapping[str, Any] | None:
    """`imported` with the problem type of this classifier, where the imported one was of another."""
    before = dict((imported or {}).get("config", {}))
    one = registry.num_labels(params) == 1
    own = MULTI_LABEL if multi_label else "regression" if one else "single_label_classification"
    if before.get("problem_type") == own or (not multi_label and before.get("problem_type") is None):
        return imported
    return {**(imported or {}), "config": before | {"problem_type": own}}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder. Raises UserError for custom code, unknown models and causal encoders."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: holds no config.json; give a folder that transformers' save_pretrained wrote")
    family = read_model_fields(folder)["family"]  # raises for invalid JSON and unknown model types
    config = json.loads(path.read_text(encoding="utf-8"))
    known = format_of(FAMILIES[family]).classes
    asked = config.get("architectures") or []
    if unknown := [name for name in asked if name not in known] if isinstance(asked, list) else [asked]:
        raise UserError(f"{path}: architectures: {unknown[0]!a:.60} is not known; known: {', '.join(sorted(known))}")
    return config


def read_config_files(folder: Path) -> dict[str, Any]:
    """{"config", "generation_config"}: what the two JSON files of a folder say; empty where the latter is missing.

    A checkpoint of imported weights keeps them, for generating and for export. Raises UserError.
    """
    return {"config": read_config(folder), "generation_config": generation.read_generation_config(Path(folder))}


def stored_dtype(folder: Path) -> str:
    """What the weights are to be computed in: bfloat16 where all are stored so, else float32."""
    kinds = {stored.dtype for stored in safetensors_folder.open_folder(Path(folder)).values()}
    return "bfloat16" if kinds & {"BF16", "F16", "F32", "F64"} == {"BF16"} else "float32"


class Classifier(NamedTuple):
    """The classifier in a folder: its outputs, their names by id (None: none), notes for the user, and its head."""

    outputs: int
    names: tuple[str, ...] | None
    notes: tuple[str, ...]
    multi_label: bool = False  # whether a text may have several of the labels
    head: str = "classifier"


def read_classifier(folder: Path) -> Classifier | None:
    """The classifier in a folder; None without one.

    Raises UserError where config.json describes another classifier than the tensors hold.
    """
    config = read_config(folder)
    family = FAMILIES[fields.families_by_type()[config["model_type"]]]
    if (classifier := format_of(family).find_classifier(Path(folder))) is None:
        return None
    head, outputs = classifier
    config = config if head == "classifier" else {**config, "problem_type": None}  # which is for texts
    found = _classifier(Path(folder) / "config.json", config, outputs)
    return found._replace(multi_label=config.get("problem_type") == MULTI_LABEL, head=head)


def _classifier(path: Path, config: Mapping[str, Any], count: int) -> Classifier:
    kind = config.get("problem_type")
    fitting = (None, "regression") if count == 1 else (None, "single_label_classification", MULTI_LABEL)
    if kind not in fitting:
        raise UserError(
            f"{path}: problem_type {kind!a:.40} with {count} outputs is not supported: one output is the number of a "
            "regression, several are classes"
        )
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
