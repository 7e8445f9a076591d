"""What a run needs before its first step: devices, how the model runs on them, the tokenizer and the run folder."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh as JaxMesh

from bertjax import objectives
from bertjax.config.load import build_kept, dump, fingerprint
from bertjax.config.schema import Config, Stage
from bertjax.config.training_schema import Trainable
from bertjax.data import remote, sources, tokenizers
from bertjax.errors import StorageError, UserError
from bertjax.models.execution import Execution
from bertjax.parallel import mesh as meshes
from bertjax.training.step import Program

PACKAGES = (
    "bertjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tokenizers",
    "sentencepiece",
    "numpy",
)


@dataclass(frozen=True)
class Job:
    """What all stages of a run share."""

    config: Config
    base: Path  # relative data paths start here
    mesh: JaxMesh
    tokenizer: tokenizers.AnyTokenizer

    @property
    def cache(self) -> Path:
        return cache_of(self.config)

    def program(
        self, stage: Stage, steps: int, heads: tuple[str, ...] | None = None, num_labels: int | None = None
    ) -> Program:
        """`heads` and `num_labels` are those a checkpoint has; by default the ones the stage's objective reads."""
        tasks = len(self.config.stage_tasks(stage))
        objective = objectives.build(stage.objective, tasks)
        return Program(
            model=self.config.model,
            objective=objective,
            heads=objective.heads if heads is None else heads,
            num_labels=num_labels,
            optimizer=stage.optimizer,
            steps=steps,
            tasks=tasks,
            adapter_size=adapter_size(stage.trainable),
            adapter_init=stage.trainable.adapter_init,
            grad_accum=stage.grad_accum,
            execution=execution(self.config, self.mesh),
            mesh=self.mesh,
            rules=meshes.rules(self.config.mesh.rules),
        )


def adapter_size(trainable: Trainable) -> int:
    """The inner width of the adapters a model gets in such a stage; 0 if none."""
    return trainable.adapter_size if trainable.kind == "adapters" else 0


def cache_of(config: Config) -> Path:
    """Prepared data, by default shared by all runs under one root; a remote path may be named."""
    return remote.place(config.run.prepared) if config.run.prepared else config.run_dir.parent / "prepared"


def open_job(config: Config, base: Path) -> Job:
    mesh = meshes.make_mesh(config.mesh)
    tokenizer = load_tokenizer(config, base)
    return Job(config, base, mesh, tokenizer)


def load_tokenizer(config: Config, base: Path) -> tokenizers.AnyTokenizer:
    """The configured tokenizer; trained first if it has no path. UserError when the model's table is too small."""
    settings = config.tokenizer
    wanted = settings.train_on
    if wanted is None:
        wanted = list(chain.from_iterable(t.source for t in config.stage_tasks(config.stages[0]).values()))

    def documents() -> Iterator[list[str]]:
        return chain.from_iterable(sources.read_documents(source, base) for source in wanted)

    size = settings.vocab_size or config.model.vocab_size
    key = "".join(sources.fingerprint(source, base) for source in wanted) if settings.path is None else None
    cache = cache_of(config)
    if remote.is_remote(cache):  # a trained tokenizer is small, and the same wherever it is trained
        cache = config.run_dir.parent / "prepared"
    tokenizer = tokenizers.load(
        settings, base, vocab_size=size, train_source_documents=documents, cache=cache, fingerprint=key
    )
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size} pieces; "
            f"set model.vocab_size={tokenizer.vocab_size} or more"
        )
    return tokenizer


@lru_cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it (AMX or AVX-512); without them bfloat16 is slower than float32."""
    try:
        return not {"amx_bf16", "avx512_bf16"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def execution(config: Config, mesh: JaxMesh) -> Execution:
    """How the model runs on these devices."""
    run = config.run
    kind = mesh.devices.flat[0].platform
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(kind, kind)
    fast = kind != "cpu" or cpu_multiplies_bfloat16()
    dtype = {"auto": jnp.bfloat16 if fast else jnp.float32, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
    layers = config.model.num_hidden_layers
    if isinstance(run.segments, list):
        segments = tuple(run.segments)
    else:  # a scan compiles faster and runs slower (1.5x on the CPU); deep stacks and TPU pods scan
        scan = run.segments == "scan" or (run.segments == "auto" and (kind == "tpu" or layers > 24))
        segments = (layers,) if scan else ()
    return Execution(
        platform=kind,
        dtype=jnp.dtype(dtype[run.compute_dtype]),
        attention=run.attention,
        dropout_rng=run.dropout_rng,
        segments=segments,
        remat=run.remat,
    )


def environment(mesh: JaxMesh) -> dict[str, Any]:
    """Versions and the device table, as kept in the run folder and in every checkpoint."""
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


def use_compile_cache(config: Config) -> None:
    """Keep compiled programs between runs: a restart then costs no compilation.

    A path with a scheme (gs://) goes to jax as it is. A folder that cannot be written is told of and done without: a
    slow start is no reason not to start.
    """
    where = config.run.compile_cache
    if where and "://" not in where:
        folder = Path(where).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder):
                where = str(folder)
        except OSError as error:
            print(f"note: {folder}: no compiled programs are kept ({error.strerror}); run.compile_cache=null, or name "
                  "another folder", file=sys.stderr)  # fmt: skip
            return
    if where:
        jax.config.update("jax_compilation_cache_dir", where)


def open_run_folder(job: Job) -> None:
    """Create the run folder, or take over the one of an interrupted run; for the lead process.

    Raises UserError when that run has another tokenizer, StorageError when the folder cannot be written.
    """
    folder = job.config.run_dir
    kept = folder / "tokenizer"
    if (kept / "tokenizer.json").exists() and tokenizers.from_file(kept).sha256 != job.tokenizer.sha256:
        raise UserError(
            f"{kept}: this run has another tokenizer; its file or the text it is trained on has changed since: "
            "undo that, or give this run another run.name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "config.yaml", dump(job.config))
        write(folder / "environment.json", json.dumps(environment(job.mesh), indent=1))
        job.tokenizer.save(kept)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


def write(path: Path, text: str) -> None:
    """Replace a file in one move."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def checkpoint_meta(job: Job, program: Program, stage_index: int, step: int) -> dict[str, Any]:
    """What makes a checkpoint self-describing."""
    return {
        "config": job.config.model_dump(mode="json"),
        "fingerprint": fingerprint(job.config),
        "stage": stage_index,
        "stage_name": job.config.stages[stage_index].name,
        "step": step,
        "heads": list(program.heads),
        "num_labels": program.classes,
        "tokenizer_sha256": job.tokenizer.sha256,
        "tokenizer_json": job.tokenizer.json,
        "environment": environment(job.mesh),
    }


def config_of(meta: dict[str, Any], where: Path) -> Config:
    """The configuration inside a checkpoint's meta."""
    return build_kept(meta["config"], where=str(where))
