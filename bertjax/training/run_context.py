"""Open what the stages of a run share (mesh, tokenizer, fingerprints of sources) and create the run folder."""

import json
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh as JaxMesh

from bertjax.config.loading import plugins
from bertjax.config.loading.load import dump, fingerprint
from bertjax.config.schema.run import Config
from bertjax.data.pipeline import tokenizer_text
from bertjax.data.sources import registry as source_kinds
from bertjax.data.tokenizers import files as tokenizer_files
from bertjax.data.tokenizers import load
from bertjax.errors import StorageError, UserError
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import format_mesh
from bertjax.progress import reporter
from bertjax.storage import remote
from bertjax.storage.atomic import write_json_atomic, write_text_atomic
from bertjax.training.program import TrainProgram

Fingerprint = Callable[[Any], str]
MULTI_LABEL = "multi_label_classification"  # `problem_type` in meta data; other classifiers have none
MIN_COMPILE_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"  # of a program that jax's cache keeps
PACKAGES = "bertjax jax jaxlib flax optax orbax-checkpoint tokenizers sentencepiece numpy".split()


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share."""

    config: Config
    base: Path  # relative data paths start here
    mesh: JaxMesh
    tokenizer: load.AnyTokenizer = None  # type: ignore[assignment]  # None before it is loaded
    fingerprint: Fingerprint = None  # type: ignore[assignment]  # of a source, computed once for each

    def __post_init__(self) -> None:
        if self.fingerprint is None:
            object.__setattr__(self, "fingerprint", source_fingerprints(self.base))

    @property
    def prepared_dir(self) -> Path:
        return prepared_dir(self.config)


def prepared_dir(config: Config) -> Path:
    """The folder of prepared data, by default shared by all runs under one root; may be a remote path.

    For a root in an object store the default is on this machine: `prepared` beside the mirrors of its runs.
    """
    return remote.as_path(config.run.prepared_dir) if config.run.prepared_dir else config.run_dir.parent / "prepared"


def open_run_context(config: Config, base: Path, tokenizer: load.AnyTokenizer | None = None) -> RunContext:
    """The context of a run, with a tokenizer that has been loaded already, if any."""
    mesh, fingerprint = make_mesh(config.mesh), source_fingerprints(base)
    return RunContext(config, base, mesh, tokenizer or load_tokenizer(config, base, fingerprint), fingerprint)


def source_fingerprints(base: Path) -> Fingerprint:
    """A function that gives the fingerprint of a source and reads each source only once."""
    found: dict[str, str] = {}

    def look_up(source: Any) -> str:
        key = source.model_dump_json()
        if key not in found:
            with reporter.task(f"checking {source_kinds.record_of(source).describe(source)}", finish=False):
                found[key] = source_kinds.fingerprint(source, base)
        return found[key]

    return look_up


def load_tokenizer(config: Config, base: Path, source_fingerprint: Fingerprint | None = None) -> load.AnyTokenizer:
    """Load or train the configured tokenizer. Raises UserError when it has more pieces than the model."""
    source_fingerprint = source_fingerprint or source_fingerprints(base)
    settings = config.tokenizer
    wanted: list[tokenizer_text.TokenizerSource] = []
    is_trained = settings.path is None and settings.kind != "bytes"
    if is_trained and settings.train_on is not None:
        wanted = tokenizer_text.of_sources(settings.train_on)
    elif is_trained:
        wanted = tokenizer_text.of_tasks([*config.stage_tasks(config.stages[0]).values()], base)

    def documents() -> Iterator[list[str]]:
        return chain.from_iterable(one.documents(base) for one in wanted)

    size = settings.vocab_size or config.model.vocab_size
    key = "".join(source_fingerprint(one.source) + one.key for one in wanted) if is_trained else None
    cache = prepared_dir(config)
    if remote.is_remote(cache):  # a trained tokenizer is small, and the same wherever it is trained
        cache = config.run_dir.parent / "prepared"
    tokenizer = load.load(
        settings, base, vocab_size=size, train_source_documents=documents, cache=cache, fingerprint=key,
        text_bytes=sum(size for one in wanted for _, size in source_kinds.record_of(one.source).parts(one.source, base))
        if is_trained else 0,
    )  # fmt: skip
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size} pieces; "
            f"set model.vocab_size={tokenizer.vocab_size} or more"
        )
    if (padding := getattr(config.model, "pad_token_id", tokenizer.pad_id)) != tokenizer.pad_id:
        raise UserError(
            f"model.pad_token_id: {padding} is not the id of padding in the tokenizer, above which positions begin; "
            f"set model.pad_token_id={tokenizer.pad_id}"
        )
    return tokenizer


def environment(mesh: JaxMesh) -> dict[str, Any]:
    """Versions and devices, as saved in the run folder and in every checkpoint."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "source"
    devices = [f"{d.id}: {d.device_kind} ({d.platform}, process {d.process_index})" for d in mesh.devices.flat]
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": platform.platform(),
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "devices": devices,
    }


def topology_change(mesh: JaxMesh, meta: Mapping[str, Any]) -> str | None:
    """A line about the processes and devices now and when a checkpoint was saved; None if they are the same."""
    before, now = meta["environment"], environment(mesh)
    if not before or all(before[key] == now[key] for key in ("processes", "mesh")):
        return None
    was, here = _describe_topology(before), _describe_topology(now)
    return f"was on {was}, now on {here}; the batches are the same, sums are rounded in another order"


def _describe_topology(about: Mapping[str, Any]) -> str:
    processes, devices = about["processes"], len(about["devices"])
    held = f"{processes} process{'es' * (processes > 1)} with {devices} device{'s' * (devices > 1)}"
    return f"{held} ({format_mesh(about['mesh'])})" if devices > 1 else held


def enable_compilation_cache(config: Config) -> None:
    """Keep compiled programs between runs. A folder that cannot be written is reported and not used."""
    where = config.run.compilation_cache_dir
    if where and "://" not in where:  # jax itself opens gs:// and others
        folder = Path(where).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            problem = _find_other_writers(folder)
            with tempfile.TemporaryFile(dir=folder):
                where = str(folder)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            reporter.say(f"note: {folder}: compiled programs are not cached ({problem}); set "
                         "run.compilation_cache_dir to null or another folder")  # fmt: skip
            return
    if where:
        jax.config.update("jax_compilation_cache_dir", where)
        if MIN_COMPILE_SECONDS not in os.environ:  # jax's default keeps none that took less than a second
            jax.config.update(MIN_COMPILE_SECONDS.lower(), 0.0)


def _find_other_writers(folder: Path) -> str:
    """Why others than this user could put native code into a folder, which this process would run; "" if none can."""
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user, {found.st_uid}"
    return "others can write there: chmod go-w" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def create_run_dir(
    ctx: RunContext, models: Mapping[str, str] | None = None, meta: Mapping[str, Any] | None = None
) -> None:
    """Create the run folder on the primary process. Raises UserError if it holds a run with another tokenizer.

    models: the models on the Hub that the run reads, {key of the configuration: name@commit}, for environment.json.
    meta: the meta data of the run's newest checkpoint.
    """
    folder = ctx.config.run_dir
    kept = folder / "tokenizer"
    is_kept = _keeps_tokenizer(ctx, kept, meta)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(folder / "config.yaml", dump(ctx.config))
        used = dict(models or {}) | _recorded_models(folder / "environment.json")  # it began with those recorded
        about = {"pretrained": used} if used else {}
        write_json_atomic(folder / "environment.json", environment(ctx.mesh) | about)
        if not is_kept:
            ctx.tokenizer.save(kept)
            tokenizer_files.write_digests(kept, ctx.tokenizer.sha256)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


def _keeps_tokenizer(ctx: RunContext, kept: Path, meta: Mapping[str, Any] | None) -> bool:
    """Whether the run's folder has this tokenizer and is intact; a damaged one is to be replaced, with a note.

    Raises UserError if the run began with another tokenizer, by its newest checkpoint, else by its folder.
    """
    place, ours = ctx.config.run_place / "tokenizer", ctx.tokenizer.sha256
    is_kept = bool(tokenizer_files.is_intact(kept, ours))
    found = ours if is_kept else None
    is_there = (kept / "tokenizer_config.json").exists() or (kept / "tokenizer.json").exists()
    if is_there and not is_kept:
        with suppress(UserError):
            found = load.from_file(kept).sha256 if tokenizer_files.is_intact(kept) is not False else None
    before = meta["tokenizer_sha256"] if meta else found
    if before not in (None, ours):
        raise UserError(
            f"{place}: this run has another tokenizer; its file or the text it is trained on has changed "
            "since: undo that, or give this run another run.name"
        )
    if is_there and found != ours:
        reporter.say(f"note: {place}: incomplete or damaged; it is written again")
    return is_kept


def _recorded_models(path: Path) -> dict[str, str]:
    """The entry `pretrained` of an environment.json; empty without one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("pretrained", {}))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def checkpoint_meta(ctx: RunContext, program: TrainProgram, stage_index: int, step: int) -> dict[str, Any]:
    """The meta data of a checkpoint that describe its program, configuration and tokenizer."""
    return {
        "config": ctx.config.model_dump(mode="json"),
        "fingerprint": fingerprint(ctx.config),
        "stage": stage_index,
        "stage_name": ctx.config.stages[stage_index].name,
        "step": step,
        "heads": list(program.heads),
        "num_labels": program.num_classes,
        "tokenizer_sha256": ctx.tokenizer.sha256,
        "tokenizer_json": ctx.tokenizer.json,
        "environment": environment(ctx.mesh),
        **({"problem_type": MULTI_LABEL} if program.is_multi_label else {}),
    } | ({"plugins": plugins.digests(ctx.config.plugins)} if ctx.config.plugins else {})


def is_multi_label(meta: Mapping[str, Any]) -> bool:
    """Whether the classifier of a checkpoint with these meta data gives a text any number of labels."""
    return meta.get("problem_type") == MULTI_LABEL


def plugin_changes(config: Config, meta: Mapping[str, Any]) -> list[str]:
    """A note for each plugin whose code has changed since the checkpoint with these meta data."""
    before, now = meta.get("plugins", {}), plugins.digests(config.plugins)
    changed = [name for name in before if name in now and now[name] != before[name]]
    gone = [name for name in before if name not in now]
    notes = [f"note: plugin {name} has changed since step {meta['step']} was saved; the run continues with it as it is"
             for name in changed]  # fmt: skip
    return notes + [f"note: plugin {name}, which step {meta['step']} was saved with, is not used now" for name in gone]
