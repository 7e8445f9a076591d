"""`bertjax import` and `export`: convert a Hugging Face folder to a run folder with a checkpoint, and back."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertjax.config.huggingface import fields
from bertjax.config.huggingface.generation import generation_settings, to_decoding_fields, unsupported_settings
from bertjax.config.loading.load import build, dump
from bertjax.config.schema.data import TOKENIZERS
from bertjax.config.schema.model import FAMILIES, ModelConfig
from bertjax.config.schema.run import CheckpointPolicy, Config
from bertjax.data.tokenizers import load
from bertjax.errors import StorageError, UserError
from bertjax.interop import hf_folder
from bertjax.models import families, param_paths, registry
from bertjax.parallel.mesh import make_mesh
from bertjax.storage import atomic
from bertjax.training import run_context
from bertjax.training.checkpoint.locate import find, stage_folder
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor.param_summary import model_summary
from bertjax.training.program import adapter_size, stage_program
from bertjax.training.run_context import RunContext
from bertjax.training.untrained_heads import all_heads

STAGE = "import"


def import_folder(source: Path, out: Path) -> list[str]:
    """Write a run folder with the weights as step 0 of a stage called import -> notes for the user, one line each.

    `evaluate`, `predict`, `export` and `init_from` read it like any run. The objective of the stage is that of its
    heads; heads missing in the folder stay absent. `out` is written atomically. Raises UserError for a folder that
    cannot be read, StorageError when `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    files = hf_folder.read_config_files(source)
    tokenizer = load.from_file(source)
    model = _model(source, FAMILIES[files["config"]["model_type"]])
    if tokenizer.kind != model.tokenizer:
        raise UserError(
            f"{source}: its tokenizer does not fit a {model.family} model; replace it by the tokenizer of the model"
        )
    if tokenizer.vocab_size > model.vocab_size:
        late = tokenizer.pieces[model.vocab_size :]
        more = f" and {len(late) - 3} more" if len(late) > 3 else ""
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} pieces, vocab_size is {model.vocab_size}: no weights "
            f"for {', '.join(late[:3])}{more}; give the folder the tokenizer it was trained with"
        )
    if not hasattr(tokenizer, "special") or tokenizer.special.is_native:
        note = (
            "a special token spelled in a text is characters here, as in the reference; in transformers it is the token"
        )
        print(f"note: {source}: {note}", file=sys.stderr)
    hf_folder.format_of(model).check_files(source, files, model, tokenizer)
    params = hf_folder.load_params(source, model)
    heads = families.record_of(model).find_heads(params)
    config = _config(model, heads, registry.num_labels(params), tokenizer, out, hf_folder.stored_dtype(source))
    ctx = RunContext(config, Path.cwd(), make_mesh(config.mesh), tokenizer)
    classifier = hf_folder.read_classifier(source)
    for note in classifier.notes if classifier else ():
        print(f"note: {note}", file=sys.stderr)
    names = list(classifier.names) if classifier and classifier.names else None
    try:
        _write(ctx, heads, params, files, names, out)
    except OSError as error:
        raise StorageError(f"{out}: could not be written: {error.strerror}") from error
    notes = _notes(source, files, config)
    if unused := hf_folder.unused_tensors(source, model):
        notes.append(f"{source}: tensors without a place in bertjax, left out: {', '.join(unused)}")
    return notes


def _notes(source: Path, files: Mapping[str, Any], config: Config) -> list[str]:
    dtype = config.run.compute_dtype
    notes = [f"computes in {dtype}, as the weights are stored; --dtype of evaluate and predict chooses another"]
    if unknown := fields.unknown_fields(files["config"]):
        notes.append(f"{source / 'config.json'}: not known and not used: {', '.join(unknown)[:200]}")
    if "lm" in config.model.heads:
        generation = generation_settings(files)
        if made := to_decoding_fields(generation):
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


def _write(
    ctx: RunContext, heads: tuple[str, ...], params: Mapping[str, np.ndarray], files: dict[str, Any],
    labels: list[str] | None, out: Path,
) -> None:  # fmt: skip
    work = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        program = stage_program(ctx.config, ctx.config.stages[0], ctx.mesh, 1, heads=heads)
        param_shardings = program.param_shardings()
        arrays = {path: jax.device_put(array, param_shardings[path]) for path, array in params.items()}
        meta = run_context.checkpoint_meta(ctx, program, 0, 0) | {"hugging_face": files}
        meta |= {"labels": labels} if labels else {}
        with CheckpointManager(stage_folder(work, 0, STAGE), CheckpointPolicy()) as checkpoints:
            checkpoints.save(0, {"params": param_paths.unflatten(arrays)}, meta)
        ctx.tokenizer.save(work / "tokenizer")
        atomic.write_json_atomic(work / "environment.json", run_context.environment(ctx.mesh))
        atomic.write_text_atomic(work / "model.txt", model_summary(arrays, param_shardings, ()))
        atomic.write_text_atomic(work / "config.yaml", dump(ctx.config))
        os.replace(work, out)  # all of its files in one piece
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _config(
    model: ModelConfig, heads: tuple[str, ...], num_labels: int, tokenizer: load.AnyTokenizer, out: Path, dtype: str
) -> Config:
    """The configuration of the run folder: the objective of its heads, and data available on every machine."""
    stage = _stage(heads, num_labels, getattr(model, "max_position_embeddings", 128))
    fields = TOKENIZERS[model.tokenizer].model_fields
    about = {name: getattr(tokenizer, name) for name in ("extra_ids", "lowercase") if name in fields}
    described: dict[str, Any] = {
        "model": model.model_dump(exclude={"config_from"}),
        "tokenizer": {"kind": model.tokenizer, "path": str(out / "tokenizer"), **about},
        "run": {"root": str(out.parent), "name": out.name, "compute_dtype": dtype},
        "stages": [stage],
    }
    return build(described, where=str(out))


def _stage(heads: Sequence[str], num_labels: int, positions: int) -> dict[str, Any]:
    length = min(128, positions)
    objective: dict[str, Any]
    if "qa" in heads:
        length = min(384, positions)
        objective, kind, evaluation = {"kind": "span_qa"}, "stdlib_qa", "squad"
        preprocess = {"kind": "span_qa", "doc_stride": min(128, length // 3), "max_query_length": min(64, length // 4)}
    elif "classifier" in heads:  # there are no labels that every machine has: the file is named when it is scored
        objective = {"kind": "classification", "num_labels": num_labels}
        source = {"kind": "jsonl", "files": ["examples.jsonl"]}
        data = {"source": source, "preprocess": {"kind": "classify", "sequence_length": length}}
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


def export_checkpoint(source: Path, out: Path) -> list[str]:
    """Write a checkpoint as a Hugging Face folder: weights, config.json and tokenizer files.

    The class is that of the heads that the stage trained; -> the arrays of carried heads, which it has no place for.
    source: a run folder, a stage's checkpoint folder or a step. Raises UserError for no checkpoint, or none that
    transformers has a class for, StorageError when `out` cannot be written.
    """
    found = find(source)
    checkpoints = CheckpointReader(found)
    meta, config = checkpoints.meta(), checkpoints.config()
    heads = tuple(meta["heads"])
    if adapter_size(config.stages[meta["stage"]].trainable):
        raise UserError(f"{found.path}: has adapters, for which transformers' T5 has no place; export its base")
    own = registry.abstract_params(config.model, heads, meta["num_labels"])
    stored = registry.abstract_params(config.model, all_heads(meta), meta["num_labels"])
    _, params, _ = checkpoints.restore_params(param_paths.unflatten(stored), meta["step"])
    tokenizer = load.from_json(meta["tokenizer_json"], str(found.path))
    every = param_paths.flatten(params)
    arrays = {path: np.asarray(every[path]) for path in own}
    labels = meta.get("labels")
    about = {"tokenizer": tokenizer, "imported": meta.get("hugging_face")}
    about["labels"] = labels if labels and len(labels) == meta["num_labels"] else None
    try:
        hf_folder.save_folder(out, arrays, config.model, heads, **about)
    except OSError as error:
        raise StorageError(f"{out}: could not be written: {error.strerror}") from error
    return [path for path in every if path not in own]
