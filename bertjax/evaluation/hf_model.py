"""Open a Hugging Face folder as a model that can be scored, asked and saved, for `restore` and `bertjax import`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertjax.config.huggingface import fields
from bertjax.config.huggingface.generation import (
    generation_settings,
    num_return_sequences,
    to_decoding_fields,
    unsupported_settings,
)
from bertjax.config.loading.load import build
from bertjax.config.schema.data import TOKENIZERS
from bertjax.config.schema.model import FAMILIES, ModelConfig
from bertjax.config.schema.run import Config
from bertjax.config.schema.training import SentenceEmbeddingObjective
from bertjax.data.tokenizers import load
from bertjax.errors import UserError
from bertjax.interop import hf_folder, sentence_folder
from bertjax.interop.sentence_folder import SentenceModules
from bertjax.models import families, registry
from bertjax.parallel.mesh import make_mesh
from bertjax.progress import reporter
from bertjax.storage.pretrained import Pretrained
from bertjax.training.checkpoint.locate import lone_results_folder
from bertjax.training.program import TrainProgram, stage_program
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params

STAGE = "import"  # the only stage of its configuration


@dataclass(frozen=True)
class HuggingFaceModel:
    """A Hugging Face folder with the configuration of a run that has one stage, `import`, at step 0.

    The objective of the stage is that of the heads in the folder; heads missing there stay absent.
    """

    place: Pretrained
    ctx: RunContext
    saved_config: Config  # without overrides
    heads: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]  # float32
    files: dict[str, Any]  # what config.json and generation_config.json say
    labels: list[str] | None  # names of the classes by id
    notes: tuple[str, ...]  # for a user who converts it, one line each

    @property
    def program(self) -> TrainProgram:
        config = self.ctx.config
        return stage_program(
            config, config.stages[0], self.ctx.mesh, 1, heads=self.heads, num_labels=registry.num_labels(self.arrays)
        )

    def to_devices(self, program: TrainProgram) -> Params:
        """The parameters on the devices."""
        shardings = program.param_shardings()
        return {path: jax.device_put(array, shardings[path]) for path, array in self.arrays.items()}


def open_model(
    place: Pretrained,
    run_dir: Path | None = None,
    overrides: Sequence[str] = (),
    devices: Sequence[Any] | None = None,
) -> HuggingFaceModel:
    """Read a folder with its own tokenizer, as the run `run_dir` (default: a new folder for results of evaluations).

    Prints notes about special tokens and labels on stderr. Raises UserError for a folder that cannot be read.
    """
    source, name = place.path, str(place)
    files = hf_folder.read_config_files(source)
    tokenizer = load.from_file(source)
    model = _model(source, FAMILIES[fields.families_by_type()[files["config"]["model_type"]]])
    _check_tokenizer(place, tokenizer, model)
    hf_folder.format_of(model).check_files(source, files, model, tokenizer)
    with reporter.task(f"reading the weights of {name}"):
        params = hf_folder.load_params(source, model)
    heads = families.record_of(model).find_heads(params)
    dtype = hf_folder.stored_dtype(source)
    classifier = hf_folder.read_classifier(source)
    several = classifier is not None and classifier.multi_label
    sentences = sentence_folder.read_modules(source) if _makes_vectors(model, heads) else None
    described = _describe(model, heads, registry.num_labels(params), tokenizer, several, sentences)
    described["run"] = {"compute_dtype": dtype} | _run_dir(place, run_dir)
    described["tokenizer"]["path"] = name if run_dir is None else str(run_dir / "tokenizer")
    saved_config = config = build(described, where=name)
    if overrides:
        config = build(described, overrides, where=name)
    ctx = RunContext(config, Path.cwd(), make_mesh(config.mesh, devices), tokenizer)
    for note in (*(classifier.notes if classifier else ()), *(sentences.notes if sentences else ())):
        reporter.say(f"note: {note}".replace(str(source), name))
    names = list(classifier.names) if classifier and classifier.names else None
    notes = _notes(name, files, config)
    if unused := hf_folder.unused_tensors(source, model):
        notes.append(f"{name}: tensors without a place in bertjax, left out: {', '.join(unused)}")
    return HuggingFaceModel(place, ctx, saved_config, heads, params, files, names, tuple(notes))


def _makes_vectors(model: ModelConfig, heads: Sequence[str]) -> bool:
    """Whether a model can be one of sentence-transformers: of a family that has vectors, without a head for a task."""
    return model.family in SentenceEmbeddingObjective.families and set(heads) <= {"pooler"}


def _run_dir(place: Pretrained, run_dir: Path | None) -> dict[str, Any]:
    """Options of `run` that name its folder; results of a model that has none go beside it, or here for a copy."""
    if run_dir is not None:
        return {"root": str(run_dir.parent), "name": run_dir.name}
    if place.is_local:
        home = lone_results_folder(place.path.absolute())
    else:
        home = lone_results_folder(Path(place.name.rstrip("/").replace("/", "_")), Path.cwd())
    return {"root": str(home.parent), "name": home.name, "prepared_dir": str(home / "prepared")}


def _check_tokenizer(place: Pretrained, tokenizer: load.AnyTokenizer, model: ModelConfig) -> None:
    if getattr(TOKENIZERS[tokenizer.kind], "stands_for", tokenizer.kind) != model.tokenizer:
        raise UserError(
            f"{place}: its tokenizer does not fit a {model.family} model; replace it by the tokenizer of the model"
        )
    if tokenizer.vocab_size > model.vocab_size:
        late = tokenizer.pieces[model.vocab_size :]
        more = f" and {len(late) - 3} more" if len(late) > 3 else ""
        raise UserError(
            f"{place}: the tokenizer has {tokenizer.vocab_size} pieces, vocab_size is {model.vocab_size}: no weights "
            f"for {', '.join(late[:3])}{more}; give the folder the tokenizer it was trained with"
        )
    if (padding := getattr(model, "pad_token_id", tokenizer.pad_id)) != tokenizer.pad_id:
        raise UserError(
            f"{place}: padding is {tokenizer.pad_id} in the tokenizer and pad_token_id is {padding} in config.json; "
            "give the folder the tokenizer it was trained with"
        )
    if not hasattr(tokenizer, "special") or tokenizer.special.is_native:
        note = (
            "a special token spelled in a text is characters here, as in the reference; in transformers it is the token"
        )
        reporter.say(f"note: {place}: {note}")


def _notes(name: str, files: Mapping[str, Any], config: Config) -> list[str]:
    dtype = config.run.compute_dtype
    notes = [f"computes in {dtype}, as the weights are stored; --dtype of evaluate and predict chooses another"]
    if unknown := fields.unknown_fields(files["config"]):
        notes.append(f"{name}/config.json: not known and not used: {', '.join(unknown)[:200]}")
    if "lm" in config.model.heads:
        generation = generation_settings(files)
        made = to_decoding_fields(generation)
        if (count := num_return_sequences(generation)) > 1:
            made["num_return_sequences"] = count
        if made:
            said = ", ".join(f"{name} {value}" for name, value in made.items() if value is not None)
            notes.append(f"predict generate decodes as the folder says: {said}")
        if left := unsupported_settings(generation):
            notes.append(f"predict generate does not do what the folder's generation settings say: {', '.join(left)}")
    return notes


def _model(source: Path, family: type[ModelConfig]) -> ModelConfig:
    """The model section of a folder, validated like a configuration."""
    described: dict[str, Any] = {"model": {"config_from": str(source)}, "tokenizer": {"kind": family.tokenizer}}
    described["stages"] = [_stage(family.heads[:1], 2, 8)]
    return build(described, where=str(source)).model


def _describe(
    model: ModelConfig, heads: tuple[str, ...], num_labels: int, tokenizer: load.AnyTokenizer, multi_label: bool,
    sentences: SentenceModules | None,
) -> dict[str, Any]:  # fmt: skip
    """The configuration of the run: the objective of its heads, and data available on every machine."""
    options = TOKENIZERS[tokenizer.kind].model_fields
    about = {
        name: getattr(tokenizer, name)
        for name in ("extra_ids", "lowercase")
        if name in options and hasattr(tokenizer, name)
    }
    stage = _stage(heads, num_labels, model.max_length or 128, multi_label)
    return {
        "model": model.model_dump(exclude={"config_from"}),
        "tokenizer": {"kind": tokenizer.kind, **about},
        "stages": [stage if sentences is None else _sentence_stage(sentences, model.max_length or 128)],
    }


def _sentence_stage(sentences: SentenceModules, positions: int) -> dict[str, Any]:
    """The stage of a sentence-transformers folder; the file of pairs is named when it is scored."""
    objective = {"kind": "sentence_embedding", "pooling": sentences.pooling, "normalize": sentences.normalize}
    length = min(sentences.max_length or positions, positions)
    source = {"kind": "jsonl", "files": ["pairs.jsonl"]}
    data = {"source": source, "preprocess": {"kind": "text_pairs", "sequence_length": max(length, 8)}}
    return {"name": STAGE, "steps": 1, "objective": objective, "data": data}


def _stage(heads: Sequence[str], num_labels: int, positions: int, multi_label: bool = False) -> dict[str, Any]:
    length = min(128, positions)
    objective: dict[str, Any]
    if "qa" in heads:
        length = min(384, positions)
        objective, kind, evaluation = {"kind": "span_qa"}, "stdlib_qa", "squad"
        preprocess = {"kind": "span_qa", "doc_stride": min(128, length // 3), "max_query_length": min(64, length // 4)}
    elif "classifier" in heads:  # there are no labels that every machine has: the file is named when it is scored
        objective = {"kind": "classification", "num_labels": num_labels}
        objective |= {"problem_type": hf_folder.MULTI_LABEL} if multi_label else {}
        source = {"kind": "jsonl", "files": ["examples.jsonl"]}
        data = {"source": source, "preprocess": {"kind": "classify", "sequence_length": length}}
        return {"name": STAGE, "steps": 1, "objective": objective, "data": data}
    elif "token_classifier" in heads:
        objective = {"kind": "token_classification", "num_labels": num_labels}
        source = {"kind": "conll", "files": ["examples.conll"]}
        data = {"source": source, "preprocess": {"kind": "token_labels", "sequence_length": length}}
        return {"name": STAGE, "steps": 1, "objective": objective, "data": data}
    elif "lm" in heads:
        objective, kind, evaluation = {"kind": "text_to_text"}, "stdlib_docs", "loss"
        preprocess = {"kind": "span_corruption"}
    else:
        weights = {"mlm_weight": float("mlm" in heads), "nsp_weight": float("nsp" in heads)}
        objective, kind, evaluation = {"kind": "mlm_nsp", **weights}, "stdlib_docs", "mlm"
        preprocess = {"kind": "bert_pairs", "next_sentence": "nsp" in heads}
    preprocess["sequence_length"] = length
    train = {"source": {"kind": kind, "split": "train"}, "preprocess": preprocess}
    heldout = train | {"source": {"kind": kind, "split": "heldout"}}
    scored = [{"kind": evaluation, "data": heldout}] if {"mlm", "nsp", "qa", "lm"} & set(heads) else []
    return {"name": STAGE, "steps": 1, "objective": objective, "data": train, "evaluate": scored}
