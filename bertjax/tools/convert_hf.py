"""`bertjax import` and `export`: convert models of other libraries to run folders, and runs to Hugging Face folders."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config.loading.load import dump
from bertjax.config.loading.pretrained import locate_model
from bertjax.config.schema.model import ModelConfig
from bertjax.config.schema.run import CheckpointPolicy, Config
from bertjax.config.schema.training import SentenceEmbeddingObjective
from bertjax.data.tokenizers import load
from bertjax.errors import StorageError, UserError
from bertjax.evaluation import fitted, hf_model
from bertjax.evaluation.restore import best_step, better_step, remote_step
from bertjax.interop import hf_folder, sentence_folder
from bertjax.interop.foreign import convert
from bertjax.models import param_paths, registry
from bertjax.models.layers import lora
from bertjax.progress import reporter
from bertjax.progress.text import size
from bertjax.storage import atomic, hub_upload, pretrained, remote
from bertjax.storage.hub_upload import Destination
from bertjax.storage.pretrained import Pretrained, hub_name
from bertjax.tools.hub.model_card import model_card
from bertjax.training import run_context
from bertjax.training.checkpoint import adapters, fits
from bertjax.training.checkpoint.locate import find, stage_folder
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor.param_summary import model_summary
from bertjax.training.untrained_heads import all_heads


def import_folder(source: str | Path, out: Path, tokenizer: Path | None = None) -> list[str]:
    """Write a run folder with the weights as step 0 of a stage called import -> notes for the user, one line each.

    `evaluate`, `predict`, `export` and `init_from` read it like any run. The objective of the stage is that of its
    heads; heads missing in the folder stay absent. `out` is written atomically. Raises UserError for a folder that
    cannot be read, StorageError when `out` cannot be written. source: a folder of Hugging Face or one that
    `interop.foreign` knows, or the name of a pretrained model. tokenizer: the file of a T5 checkpoint without one.
    """
    out = Path(out)
    place = None if remote.is_remote(source) or hub_name(source) else pretrained.locate(source).path
    if place is not None:
        with reporter.task(f"reading {place}"):
            found = convert.read(place, tokenizer)
        if found is not None:
            with convert.as_folder(found, out.parent) as copy:
                notes = _import(Pretrained(str(place), copy, is_converted=True), out)
            return [*notes, *found.notes]
    elif tokenizer is not None:
        raise UserError(f"--tokenizer is for a T5 checkpoint on this machine; {source} has its own: leave it out")
    return _import(locate_model(source), out)


def _import(place: Pretrained, out: Path) -> list[str]:
    with pretrained.name_in_errors(place):
        model = hf_model.open_model(place, out)
    try:
        _write(model, out)
    except OSError as error:
        raise StorageError(f"{out}: could not be written: {error.strerror}") from error
    return [note.replace(str(place.path), str(place)) for note in model.notes]


def _write(model: hf_model.HuggingFaceModel, out: Path) -> None:
    work = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        ctx, program = model.ctx, model.program
        arrays = model.to_devices(program)
        meta = run_context.checkpoint_meta(ctx, program, 0, 0) | {"hugging_face": model.files}
        meta |= {"labels": model.labels} if model.labels else {}
        meta |= {"pretrained": model.place.record} if model.place.record else {}
        with CheckpointManager(stage_folder(work, 0, hf_model.STAGE), CheckpointPolicy()) as checkpoints:
            checkpoints.save(0, {"params": param_paths.unflatten(arrays)}, meta)
        if kept := fits.read_fits(model.place.path):
            fits.write_fits(stage_folder(work, 0, hf_model.STAGE) / "0", {n: f | {"step": 0} for n, f in kept.items()})
        about = {"pretrained": {"import": str(model.place)}} if model.place.record else {}
        ctx.tokenizer.save(work / "tokenizer")
        atomic.write_json_atomic(work / "environment.json", run_context.environment(ctx.mesh) | about)
        atomic.write_text_atomic(work / "model.txt", model_summary(arrays, program.param_shardings(), ()))
        atomic.write_text_atomic(work / "config.yaml", dump(ctx.config))
        os.replace(work, out)  # all of its files in one piece
    finally:
        shutil.rmtree(work, ignore_errors=True)


def export_checkpoint(
    source: str | Path, out: Path, *, name: str | None = None, license: str | None = None, best: str | None = None,
    base: str | Path | None = None, head: str | None = None,
) -> list[str]:  # fmt: skip
    """Write a checkpoint as a Hugging Face folder: weights, config.json, tokenizer files and a model card.

    The class is that of the heads that the stage trained; -> the arrays of carried heads, which it has no place for.
    source: a run folder, a stage's checkpoint folder, a step, or the name of a pretrained model. Raises UserError for
    no checkpoint, or none that transformers has a class for, StorageError when `out` cannot be written. name, license:
    of the model, for its card (default: the name of `out`, no licence). A Hugging Face model gets no card. best: the
    score whose best step is taken, instead of the last one. base: where the weights below LoRA are, if they moved.
    head: the only head to write, also a carried one.
    """
    place = locate_model(source, step=remote_step(source, best=best))
    with pretrained.name_in_errors(place):
        if (place.path / "config.json").is_file():
            if best is not None:
                raise UserError(f"{place}: is a Hugging Face model, without steps; leave out --best {best}")
            if base is not None:
                raise UserError(f"{place}: holds all its weights and needs no base; leave out --base {base}")
            if head is not None:
                raise UserError(f"{place}: is a Hugging Face model and is written with all its heads; leave out --head")
            return _export_hugging_face(place, out)
        named = None if base is None else remote.as_path(base)
        return _export_checkpoint(place.path, out, name or out.name, license, best, named, head)


def check_family(source: str | Path) -> None:
    """Raise UserError for a checkpoint of a family that transformers does not have, before anything is restored."""
    place = locate_model(source)
    with pretrained.name_in_errors(place):
        if not (place.path / "config.json").is_file():
            _check_family(find(place.path).path, CheckpointReader(find(place.path)).config().model)


def _check_family(place: Path, model: ModelConfig) -> None:
    try:
        hf_folder.format_of(model)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def push_checkpoint(source: str | Path, out: Path | None, to: Destination, **options: Any) -> tuple[str, list[str]]:
    """Export a checkpoint to `out` (default: a temporary folder) and upload it -> (its address, as above).

    options: of `export_checkpoint`. Raises like `export_checkpoint`, and UserError if the Hub refuses the upload.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch) / "model"
        left_out = export_checkpoint(source, folder, name=to.name, **options)
        return hub_upload.upload(folder, to, f"Export of {Path(str(source)).name} by bertjax"), left_out


def _export_hugging_face(place: Pretrained, out: Path) -> list[str]:
    """Write a Hugging Face model again, as bertjax reads it."""
    model = hf_model.open_model(place)
    config, tokenizer = model.ctx.config.model, model.ctx.tokenizer
    kept = fits.read_fits(place.path)
    try:
        hf_folder.save_folder(
            out, model.arrays, config, model.heads, tokenizer=tokenizer, labels=model.labels, imported=model.files,
            multi_label=model.program.is_multi_label,
        )  # fmt: skip
        _say_note(out, config)
        fitted.write_export(Path(out), kept)
        _write_sentence_modules(Path(out), model.ctx.config, 0)
    except OSError as error:
        raise StorageError(f"{out}: could not be written: {error.strerror}") from error
    return []


def _say_note(out: Path, model: ModelConfig) -> None:
    if note := hf_folder.format_of(model).export_note(model):
        reporter.say(f"note: {out}: {note}")


def _write_sentence_modules(out: Path, config: Config, stage: int) -> None:
    """Add the files of sentence-transformers where the stage trained sentence embeddings."""
    if not isinstance(objective := config.stages[stage].objective, SentenceEmbeddingObjective):
        return
    tasks = config.stage_tasks(config.stages[stage]).values()
    length = max(task.preprocess.sequence_length for task in tasks)
    modules = sentence_folder.SentenceModules(objective.pooling, objective.normalize, length)
    sentence_folder.write_modules(out, modules, config.model.hidden_size)


def _export_checkpoint(
    source: Path, out: Path, name: str, license: str | None, best: str | None, base: Path | None, head: str | None
) -> list[str]:
    found = find(source)
    checkpoints = CheckpointReader(found)
    if best is not None:
        checkpoints.ref = found = replace(found, step=best_step(checkpoints, best))
    meta, config = checkpoints.meta(), checkpoints.config()
    _check_family(found.path, config.model)
    if found.step is None and (better := better_step(checkpoints, config, meta["stage"], meta["step"])):
        reporter.say(f"note: {better}")
    heads = _chosen_heads(found.path, meta, config.model, head)
    peft = adapters.checkpoint_peft(checkpoints)
    if peft.adapter_size:
        raise UserError(f"{found.path}: has adapters, for which transformers has no place; export its base")
    if peft.mixes_layers:
        raise UserError(
            f"{found.path}: its heads read a mixture of layers (feature_layers: {peft.feature_layers}), for which "
            "transformers has no class; use the checkpoint itself, or train with feature_layers: last"
        )
    own = registry.abstract_params(config.model, heads, meta["num_labels"])
    tokenizer = load.from_json(meta["tokenizer_json"], str(found.path))
    if peft.lora_rank:
        ctx = adapters.lone_context(checkpoints)
        every = lora.merge(adapters.restore_params(checkpoints, ctx, meta["step"], base)[1], peft.lora_scale)
    elif meta.get("base"):
        every = adapters.restore_params(checkpoints, adapters.lone_context(checkpoints), meta["step"], base)[1]
    elif base is not None:
        raise UserError(f"{found.path}: holds all its weights and needs no base; leave out --base {base}")
    else:
        stored = registry.abstract_params(config.model, all_heads(meta), meta["num_labels"])
        every = param_paths.flatten(checkpoints.restore_params(param_paths.unflatten(stored), meta["step"])[1])
    model, heads, taken = _inner_model(config.model, heads, {path: path for path in own})
    arrays = {path: np.asarray(every[here]) for path, here in taken.items()}
    labels = meta.get("labels")
    about = {"tokenizer": tokenizer, "imported": meta.get("hugging_face")}
    about["labels"] = labels if labels and len(labels) == meta["num_labels"] else None
    about["multi_label"] = run_context.is_multi_label(meta)
    kept = fits.read_fits(checkpoints.step_path(meta["step"]), meta["step"]) if "qa" in heads else {}
    try:
        with reporter.task(f"writing {out} ({size(sum(array.nbytes for array in arrays.values()))} of weights)"):
            hf_folder.save_folder(out, arrays, model, heads, **about)
            _say_note(out, model)
            if meta["stage_name"] != hf_model.STAGE or meta["step"]:  # others were trained elsewhere
                card = _card(checkpoints, arrays, heads, name, about["labels"], license)
                atomic.write_text_atomic(out / hub_upload.CARD, card)
            _write_sentence_modules(out, checkpoints.config(), meta["stage"])
        fitted.write_export(Path(out), kept)
    except OSError as error:
        raise StorageError(f"{out}: could not be written: {error.strerror}") from error
    return [path for path in every if path not in taken.values()]


def _chosen_heads(place: Path, meta: Mapping[str, Any], model: ModelConfig, head: str | None) -> tuple[str, ...]:
    """The heads to write: `head`, or those that the stage trained, without models inside this one."""
    if head is None:
        inner = hf_folder.format_of(model).inner_models
        return tuple(name for name in meta["heads"] if name not in inner)
    if head not in (there := all_heads(meta)):
        raise UserError(f"{place}: has no head '{head}'; --head can be {', '.join(there) or 'left out only'}")
    return (head,)


def _inner_model(
    model: ModelConfig, heads: tuple[str, ...], paths: Mapping[str, str]
) -> tuple[ModelConfig, tuple[str, ...], Mapping[str, str]]:
    """-> (model, heads, {path in it: path in the checkpoint}) of the model that `heads` is, if it is one inside."""
    inner = hf_folder.format_of(model).inner_models.get(heads[0]) if len(heads) == 1 else None
    return (model, heads, paths) if inner is None else (inner.model(model), (inner.head,), inner.paths(paths))


def _card(
    checkpoints: CheckpointReader, arrays: Mapping[str, np.ndarray], heads: Sequence[str], name: str,
    labels: Sequence[str] | None, license: str | None,
) -> str:  # fmt: skip
    meta = checkpoints.meta()
    return model_card(
        checkpoints.config(), meta["stage"], meta["step"], name=name, heads=heads, labels=labels,
        params=sum(array.size for array in arrays.values()), scores=checkpoints.scores_of(meta["step"]),
        versions=meta.get("environment", {}).get("versions", {}), license=license,
    )  # fmt: skip
