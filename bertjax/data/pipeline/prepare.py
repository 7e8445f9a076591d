"""From a task to its store: read, tokenize, make examples, pack and write; done once and kept in a cache."""

import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.schema.data import Task
from bertjax.data.jobs import text_counts
from bertjax.data.jobs.job_plan import JobPlan, PrepareContext, ReportFn
from bertjax.data.jobs.jobs import LocalRunner, Runner
from bertjax.data.jobs.scratch_dir import remove_scratch_dir, scratch_dir
from bertjax.data.jobs.shards import WriteResult, write_shards
from bertjax.data.preprocess import packing, sampling
from bertjax.data.preprocess.registry import record_of
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.sources.registry import fingerprint as source_fingerprint
from bertjax.data.store.manifest import MANIFEST, NotAStoreError
from bertjax.data.store.reader import Store
from bertjax.data.store.row_format import row_lengths
from bertjax.data.store.writer import StoreWriter
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.storage import remote
from bertjax.storage.remote import DamagedError

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer


def prepare(
    task: Task,
    name: str,
    tokenizer: "Tokenizer",
    *,
    seed: int,
    base: Path,
    cache: Path,
    workers: int,
    classes: ClassSpec | None = None,
    report: ReportFn | None = None,
    runner: Runner | None = None,
    fingerprint: Callable[[Any], str] | None = None,
) -> Store:
    """The store of `task`, from `cache` if it is there and complete, else prepared now.

    The rows are a pure function of the sources' bytes, the preprocess section, `task.limit`, the tokenizer, the
    VERSIONs of the code (`versions`), `classes` for a classification and, where the kind uses it, `seed`; `workers` and
    `runner` (default: `workers` processes on this machine) affect only the speed. After a kill the next call keeps
    every part that matches its record. `base` is the folder of relative file names; `cache` a local folder or one in an
    object store (`remote.as_path`); `fingerprint` is that of a source, where the caller has computed it.

    Store.meta: examples, rows, tokens_in_rows, density (share of positions that are not padding), padding,
    sequence_length, made_from (the parts of the fingerprint), text_counts (see that module), and by kind: documents,
    sentences, tokens, pairs (`pair_statistics.pair_metadata`); questions, unanswerable; records, labels (names by id or
    None) and the rest of `labels.label_metadata`.

    Raises UserError when a source is unusable or gives no example.
    """
    report, runner = report or (lambda line: None), runner or LocalRunner()
    parts = _key_parts(task, tokenizer, seed, classes, fingerprint or partial(source_fingerprint, base=base))
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    folder = remote.as_path(cache) / f"{task.preprocess.kind}-{key[:16]}"
    if store := _load_cached(folder, key, report):
        remove_scratch_dir(folder)
        _report_quality(task, name, store, report)
        return store
    start = time.monotonic()
    with scratch_dir(folder, runner.is_distributed) as at:
        if store := _load_cached(folder, key, lambda line: None):  # another process was faster
            _report_quality(task, name, store, report)
            return store
        if parts["sources"] != _source_fingerprints(task, partial(source_fingerprint, base=base)):
            raise UserError(f"task '{name}': its source has changed since this run looked at it; run again")
        context = PrepareContext(task, name, tokenizer, seed, base, at.folder, workers, classes, report, runner)
        about = {"fingerprint": key, "tokenizer_sha256": tokenizer.sha256, "versions": parts["versions"]}
        written = _build(context, partial(StoreWriter, folder, temporary=at.rows, **about), parts)
    store = Store(folder)
    _report_quality(task, name, store, report)
    report(f"{name}: {_throughput(store, written, time.monotonic() - start)}")
    return store


def _report_quality(task: Task, name: str, store: Store, report: ReportFn) -> None:
    """Reports statistics and warnings about the rows, whenever they are used and not only when they are prepared."""
    for line in record_of(task.preprocess).report(name, task.preprocess, store.meta):
        report(line)
    for line in text_counts.report_lines(name, store.meta.get(text_counts.META_KEY), task.preprocess):
        report(line)


def _load_cached(folder: Path, fingerprint: str, report: ReportFn) -> Store | None:
    if remote.file_size(folder / MANIFEST) is None and not (not remote.is_remote(folder) and folder.exists()):
        return None
    try:
        store = Store(folder)
    except (DamagedError, NotAStoreError) as error:
        report(f"{error}: preparing it now")
        if remote.is_remote(folder):
            remote.remove(folder / MANIFEST)  # its shards are about to change
        return None
    return store if store.fingerprint == fingerprint else None


def _throughput(store: Store, written: WriteResult, seconds: float) -> str:
    rows, tokens, size = store.meta["rows"], store.meta["tokens_in_rows"], store.num_bytes
    rates = f"{rows / seconds:,.0f} rows/s, {tokens / seconds:,.0f} tokens/s, {size / seconds / 1e6:.2f} MB/s"
    found = f"; {written.reused} of {written.shards} shards were finished before" if written.reused else ""
    return f"{rows:,} rows, {tokens:,} tokens, {size / 1e6:.1f} MB in {seconds:.1f} s: {rates}{found}"


def _source_fingerprints(task: Task, fingerprint: Callable[[Any], str]) -> list[str]:
    return [fingerprint(source) for source in task.source]


def _key_parts(
    task: Task, tokenizer: "Tokenizer", seed: int, classes: ClassSpec | None, fingerprint: Callable[[Any], str]
) -> dict[str, Any]:
    kind = record_of(task.preprocess)
    return {
        "sources": _source_fingerprints(task, fingerprint),
        "preprocess": task.preprocess.model_dump(mode="json"),
        "limit": task.limit,
        "tokenizer": tokenizer.sha256,
        "seed": seed if kind.uses_seed or task.limit else None,
        "classes": (classes or ClassSpec()).as_json() if kind.uses_classes else None,
        "versions": versions(task),
    }


def versions(task: Task) -> dict[str, int]:
    """VERSIONs of the kind of `task` and of each shared stage that it uses; those of sources are in fingerprints."""
    options = task.preprocess
    kind = record_of(options)
    found = {options.kind: kind.version, **kind.stages(options)}
    if getattr(options, "pack", False):
        found["packing"] = packing.VERSION
    if task.limit:
        found["sampling"] = sampling.VERSION
    return found


def _build(context: PrepareContext, writer: Callable[..., StoreWriter], parts: dict[str, Any]) -> WriteResult:
    """Writes the store by `writer` (dtype, meta); unpacked rows of a packed task are a store in the scratch folder."""
    options = context.task.preprocess
    kind = record_of(options)
    with reporter.task(f"{context.name}: reading the source", finish=False):
        plan = kind.plan(context)
    packed: bool = getattr(options, "pack", False)
    examples = context.folder / "examples"
    with StoreWriter(examples, plan.dtype, {}, temporary=examples) if packed else writer(plan.dtype, {}) as unpacked:
        written = write_shards(context, plan, unpacked, "examples")
        count = len(written.lengths)
        if not count:
            raise UserError(f"task '{context.name}': its source gives no example; check the source and its fields")
        if not packed:
            unpacked.meta.update(_metadata(context, plan, written, count, parts))
            return written
    masker = kind.masker(options, context.tokenizer, context.seed)
    pad_id = context.tokenizer.pad_id
    with reporter.task(f"{context.name}: packing", finish=False):
        packed_plan = packing.plan_packing(Store(examples), written.lengths, options.max_segments, pad_id, masker)
    meta = _metadata(context, plan, written, packed_plan.facts["rows"], parts)
    with writer(packed_plan.dtype, meta) as final:
        return write_shards(context, packed_plan, final, "rows")


def _metadata(
    context: PrepareContext, plan: JobPlan, written: WriteResult, rows: int, parts: dict[str, Any]
) -> dict[str, Any]:
    options, lengths = context.task.preprocess, written.lengths
    places, tokens = row_lengths(plan.dtype), int(lengths.sum(dtype=np.int64))
    density = tokens / (rows * sum(places))
    meta = plan.facts | {
        "examples": len(lengths), "rows": rows, "tokens_in_rows": tokens,
        "density": density, "padding": 1.0 - density, "sequence_length": options.sequence_length, "made_from": parts,
        text_counts.META_KEY: text_counts.merge_counts(plan.facts.get(text_counts.META_KEY, {}), written.text_counts),
    }  # fmt: skip
    meta |= record_of(options).metadata(options, plan.facts, lengths, written.sums)
    if len(places) > 1:
        meta["target_length"] = places[1]
    context.report(f"{context.name}: {len(lengths):,} examples in {rows:,} rows, {density:.1%} of the positions used")
    return meta
