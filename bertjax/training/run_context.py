"""What a run needs before its first step: devices, how the model runs on them, the tokenizer and the run folder."""

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

from bertjax.config.loading.load import build_saved, dump, fingerprint
from bertjax.config.schema.run import Config, Stage
from bertjax.config.schema.training import Trainable
from bertjax.data.sources import registry as source_kinds
from bertjax.data.sources import text as sources_text
from bertjax.data.tokenizers import load
from bertjax.errors import StorageError, UserError
from bertjax.models.compute_options import ComputeOptions
from bertjax.objectives import registry
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.storage import remote
from bertjax.storage.atomic import write_json_atomic, write_text_atomic
from bertjax.training.program import TrainProgram

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
class RunContext:
    """What all stages of a run share."""

    config: Config
    base: Path  # relative data paths start here
    mesh: JaxMesh
    tokenizer: load.AnyTokenizer

    @property
    def prepared_dir(self) -> Path:
        return prepared_dir(self.config)

    def program(
        self, stage: Stage, steps: int, heads: tuple[str, ...] | None = None, num_labels: int | None = None
    ) -> TrainProgram:
        """`heads` and `num_labels` are those a checkpoint has; by default the ones the stage's objective reads."""
        tasks = len(self.config.stage_tasks(stage))
        objective = registry.build(stage.objective, tasks)
        return TrainProgram(
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
            compute=compute_options(self.config, self.mesh),
            mesh=self.mesh,
            rules=merge_rules(self.config.mesh.rules),
        )


def adapter_size(trainable: Trainable) -> int:
    """The inner width of the adapters a model gets in such a stage; 0 if none."""
    return trainable.adapter_size if trainable.kind == "adapters" else 0


def prepared_dir(config: Config) -> Path:
    """Prepared data, by default shared by all runs under one root; a remote path may be named."""
    return remote.as_path(config.run.prepared_dir) if config.run.prepared_dir else config.run_dir.parent / "prepared"


def open_run_context(config: Config, base: Path) -> RunContext:
    mesh = make_mesh(config.mesh)
    tokenizer = load_tokenizer(config, base)
    return RunContext(config, base, mesh, tokenizer)


def load_tokenizer(config: Config, base: Path) -> load.AnyTokenizer:
    """The configured tokenizer; trained first if it has no path. UserError when the model's table is too small."""
    settings = config.tokenizer
    wanted = settings.train_on
    if wanted is None:
        wanted = list(chain.from_iterable(t.source for t in config.stage_tasks(config.stages[0]).values()))

    def documents() -> Iterator[list[str]]:
        return chain.from_iterable(sources_text.read_documents(source, base) for source in wanted)

    size = settings.vocab_size or config.model.vocab_size
    key = "".join(source_kinds.fingerprint(source, base) for source in wanted) if settings.path is None else None
    cache = prepared_dir(config)
    if remote.is_remote(cache):  # a trained tokenizer is small, and the same wherever it is trained
        cache = config.run_dir.parent / "prepared"
    tokenizer = load.load(
        settings, base, vocab_size=size, train_source_documents=documents, cache=cache, fingerprint=key
    )
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size} pieces; "
            f"set model.vocab_size={tokenizer.vocab_size} or more"
        )
    return tokenizer


@lru_cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for it (AMX or AVX-512); without them bfloat16 is slower than float32."""
    try:
        return not {"amx_bf16", "avx512_bf16"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def compute_options(config: Config, mesh: JaxMesh) -> ComputeOptions:
    """How the model runs on these devices."""
    run = config.run
    kind = mesh.devices.flat[0].platform
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(kind, kind)
    fast = kind != "cpu" or cpu_has_bfloat16()
    dtype = {"auto": jnp.bfloat16 if fast else jnp.float32, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
    layers = config.model.num_hidden_layers
    if isinstance(run.segments, list):
        segments = tuple(run.segments)
    else:  # a scan compiles faster and runs slower (1.5x on the CPU); deep stacks and TPU pods scan
        scan = run.segments == "scan" or (run.segments == "auto" and (kind == "tpu" or layers > 24))
        segments = (layers,) if scan else ()
    return ComputeOptions(
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


def enable_compilation_cache(config: Config) -> None:
    """Keep compiled programs between runs: a restart then costs no compilation.

    A path with a scheme (gs://) goes to jax as it is. A folder that cannot be written is told of and done without: a
    slow start is no reason not to start.
    """
    where = config.run.compilation_cache_dir
    if where and "://" not in where:
        folder = Path(where).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder):
                where = str(folder)
        except OSError as error:
            print(f"note: {folder}: compiled programs are not cached ({error.strerror}); set run.compilation_cache_dir to "
                  "null or another folder", file=sys.stderr)  # fmt: skip
            return
    if where:
        jax.config.update("jax_compilation_cache_dir", where)


def create_run_dir(ctx: RunContext) -> None:
    """Create the run folder, or take over the one of an interrupted run; for the primary process.

    Raises UserError when that run has another tokenizer, StorageError when the folder cannot be written.
    """
    folder = ctx.config.run_dir
    kept = folder / "tokenizer"
    if (kept / "tokenizer.json").exists() and load.from_file(kept).sha256 != ctx.tokenizer.sha256:
        raise UserError(
            f"{kept}: this run has another tokenizer; its file or the text it is trained on has changed since: "
            "undo that, or give this run another run.name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(folder / "config.yaml", dump(ctx.config))
        write_json_atomic(folder / "environment.json", environment(ctx.mesh))
        ctx.tokenizer.save(kept)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


def checkpoint_meta(ctx: RunContext, program: TrainProgram, stage_index: int, step: int) -> dict[str, Any]:
    """What makes a checkpoint self-describing."""
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
    }


def config_from_meta(meta: dict[str, Any], where: Path) -> Config:
    """The configuration inside a checkpoint's meta."""
    return build_saved(meta["config"], where=str(where))
