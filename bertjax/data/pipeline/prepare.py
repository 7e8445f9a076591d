"""From a task to its store: read, tokenise, make examples, pack, write; done once and kept in a cache."""

import hashlib
import json
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.schema.data import BertPairs, Task
from bertjax.data.jobs import text_counts
from bertjax.data.jobs.context import PrepareContext, ReportFn
from bertjax.data.jobs.jobs import LocalRunner, Runner
from bertjax.data.jobs.plan import JobPlan, needs_worker_pool, shard_tokens
from bertjax.data.jobs.scratch_dir import remove_scratch_dir, scratch_dir
from bertjax.data.jobs.shards import WriteResult, write_shards
from bertjax.data.preprocess import bert_pairs, classify, masking, packing, pair_statistics, span_qa, text_to_text
from bertjax.data.preprocess.denoising.chunks import DENOISING_KINDS as CHUNKS
from bertjax.data.preprocess.denoising.chunks import plan_chunks
from bertjax.data.preprocess.masking import MaskingRules
from bertjax.data.preprocess.packing import Assignment, pack_lengths, pack_pairs
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.store.manifest import MANIFEST, NotAStoreError
from bertjax.data.store.reader import Store
from bertjax.data.store.row_format import SEGMENTS, packed_dtype
from bertjax.data.store.writer import StoreWriter
from bertjax.errors import UserError
from bertjax.storage import remote
from bertjax.storage.remote import DamagedError

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

# No stored row depends on these.
NO_ROWS_FROM = {"jobs/jobs.py", "jobs/runners.py", "jobs/beam_runner.py", "jobs/scratch_dir.py"}


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
    """The store of `task`, out of `cache` when it is there and whole.

    The rows are a pure function of the sources' bytes, the preprocess section, `task.limit`, the tokenizer, this code,
    `classes` and, for sentence pairs, chunks of text and samples, `seed`; `workers` and `runner` only say how fast.
    `name` is for messages. `task.limit` keeps a sample of the source's documents, questions or records (`sampling`).
    Killed, it goes on where it was when it is called again: every part that is finished is compared with its record
    and kept.

    Args:
        base: where relative file names start.
        classes: what the rows of a classification are for.
        cache: a folder, which may lie in an object store (`remote.as_path`).
        report: told about progress, one line at a time, and about the throughput at the end.
        runner: of the jobs (default: `workers` processes on this machine).
        fingerprint: of a source, where the caller has computed it.

    Store.meta: examples, rows, tokens_in_rows, density (share of positions that are not padding), padding,
    sequence_length, made_from (what the fingerprint is of), text_counts (see that module), and by kind: documents,
    sentences, tokens, pairs (`pair_statistics.pair_metadata`); questions, unanswerable; records, labels (names by id, None
    where there are none) and what else `labels.label_metadata` has.

    Raises UserError when a source is unusable or nothing is left of it.
    """
    report, runner = report or (lambda line: None), runner or LocalRunner()
    parts = _fingerprint_parts(task, tokenizer, seed, base, classes, fingerprint)
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
        context = PrepareContext(task, name, tokenizer, seed, base, at.folder, workers, classes, report, runner)
        writer = partial(
            StoreWriter, fingerprint=key, tokenizer_sha256=tokenizer.sha256, code_version=code_version()
        )
        written = _build(context, partial(writer, folder, temporary=at.rows), writer, parts)
    store = Store(folder)
    _report_quality(task, name, store, report)
    report(f"{name}: {_throughput(store, written, time.monotonic() - start)}")
    return store


def _report_quality(task: Task, name: str, store: Store, report: ReportFn) -> None:
    """What is known of the quality of a task's rows; said whenever they are used, not only when they are made."""
    if isinstance(task.preprocess, BertPairs):
        for line in pair_statistics.report_lines(name, task.preprocess, store.meta):
            report(line)
    for line in text_counts.report_lines(name, store.meta.get(text_counts.META_KEY), task.preprocess):
        report(line)


def _load_cached(folder: Path, fingerprint: str, report: ReportFn) -> Store | None:
    if remote.file_size(folder / MANIFEST) is None and not (not remote.is_remote(folder) and folder.exists()):
        return None
    try:
        store = Store(folder)
    except (DamagedError, NotAStoreError) as error:
        report(f"{error}: doing that now")
        if remote.is_remote(folder):
            remote.remove(folder / MANIFEST)  # its shards are about to change
        return None
    return store if store.fingerprint == fingerprint else None


def _throughput(store: Store, written: WriteResult, seconds: float) -> str:
    rows, tokens, size = store.meta["rows"], store.meta["tokens_in_rows"], store.num_bytes
    rates = f"{rows / seconds:,.0f} rows/s, {tokens / seconds:,.0f} tokens/s, {size / seconds / 1e6:.2f} MB/s"
    found = f"; {written.reused} of {written.shards} shards were finished before" if written.reused else ""
    return f"{rows:,} rows, {tokens:,} tokens, {size / 1e6:.1f} MB in {seconds:.1f} s: {rates}{found}"


def _fingerprint_parts(
    task: Task, tokenizer: "Tokenizer", seed: int, base: Path, classes: ClassSpec | None,
    source_fingerprint: Callable[[Any], str] | None,
) -> dict[str, Any]:  # fmt: skip
    from bertjax.data.sources.registry import fingerprint

    source_fingerprint = source_fingerprint or partial(fingerprint, base=base)
    return {
        "sources": [source_fingerprint(source) for source in task.source],
        "preprocess": task.preprocess.model_dump(mode="json"),
        "limit": task.limit,
        "tokenizer": tokenizer.sha256,
        "seed": seed if task.preprocess.kind in ("bert_pairs", *CHUNKS) or task.limit else None,
        "classes": (classes or ClassSpec()).as_json() if task.preprocess.kind == "classify" else None,
        "code": code_version(),
    }


@lru_cache(maxsize=1)
def code_version() -> str:
    """sha256 over the modules that decide what a row holds: after any change of theirs, data is prepared again."""
    digest = hashlib.sha256()
    home = Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        name = path.relative_to(home).as_posix()
        if name not in NO_ROWS_FROM and not name.startswith("pipeline/"):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _build(
    context: PrepareContext,
    writer: Callable[..., StoreWriter],
    anywhere: Callable[..., StoreWriter],
    parts: dict[str, Any],
) -> WriteResult:
    """Writes the store by `writer` (dtype, meta); what lies in between by `anywhere` (folder, dtype, meta)."""
    options = context.task.preprocess
    packed: bool = getattr(options, "pack", False)
    masker = None
    if isinstance(options, BertPairs) and options.masking == "static":
        masker = masking.StaticMasker(MaskingRules.from_options(options, context.tokenizer), context.seed)
    plan = _plan(context, None if packed else masker)  # the unpacked rows of a packed task are masked after packing
    meta: dict[str, Any] = {}
    examples = context.folder / "examples"
    first = partial(anywhere, examples, temporary=examples) if packed else writer
    with first(plan.dtype, meta) as unpacked:
        written = write_shards(
            plan.make, plan.shared, plan.arguments, unpacked, records=context.folder / "examples-done",
            workers=context.workers if plan.use_pool else 1, runner=context.runner, shuffle=plan.shuffle, row_sums=plan.row_sums,
            progress=context.progress("examples made"),
        )  # fmt: skip
        lengths = written.lengths
        if not len(lengths):
            raise UserError(
                f"task '{context.name}': its source gives no example at all; check the source and its fields"
            )
        if not packed:
            meta.update(_facts(context, plan, lengths, len(lengths), parts, written))
            return written
    segments = options.max_segments if packed else 1
    assignment = _assignment(lengths, _row_lengths(plan.dtype), segments, packed)
    dtype = masking.with_mask_fields(packed_dtype(plan.dtype, segments), masker.rules if masker else None)
    with writer(dtype, _facts(context, plan, lengths, assignment.rows, parts, written)) as final:
        return _repack(context, Store(examples), assignment, segments, masker, final)


def _plan(context: PrepareContext, masker: masking.StaticMasker | None) -> JobPlan:
    kind = context.task.preprocess.kind
    if kind in CHUNKS:
        return plan_chunks(context)
    makers: dict[str, Callable[[PrepareContext, Any], JobPlan]] = {
        "bert_pairs": bert_pairs.plan_pairs, "span_qa": span_qa.plan_qa, "classify": classify.plan_classify,
        "text_to_text": text_to_text.plan_text_to_text,
    }  # fmt: skip
    return makers[kind](context, masker)


def _facts(
    context: PrepareContext, plan: JobPlan, lengths: np.ndarray, rows: int, parts: dict[str, Any], written: WriteResult
) -> dict[str, Any]:
    length, places = context.task.preprocess.sequence_length, _row_lengths(plan.dtype)
    density = int(lengths.sum(dtype=np.int64)) / (rows * sum(places))
    facts = plan.facts | {
        "examples": len(lengths), "rows": rows, "tokens_in_rows": int(lengths.sum(dtype=np.int64)),
        "density": density, "padding": 1.0 - density, "sequence_length": length, "made_from": parts,
        text_counts.META_KEY: text_counts.merge_counts(plan.facts.get(text_counts.META_KEY, {}), written.text_counts),
    }  # fmt: skip
    if isinstance(context.task.preprocess, BertPairs):
        facts["pairs"] = pair_statistics.pair_metadata(context.task.preprocess, plan.facts, lengths, written.sums)
    if len(places) > 1:
        facts["target_length"] = places[1]
    context.report(f"{context.name}: {len(lengths):,} examples in {rows:,} rows, {density:.1%} of the positions used")
    return facts


# ---- packing --------------------------------------------------------------------------------------------------------


def _row_lengths(dtype: np.dtype) -> list[int]:
    """How many tokens a row holds: of its one sequence, or of its inputs and of its targets."""
    return [dtype[name].shape[0] for name in ("tokens", *SEGMENTS) if name in (dtype.names or ())]


def _assignment(lengths: np.ndarray, places: list[int], segments: int, packed: bool) -> Assignment:
    if packed and len(places) > 1:
        return pack_pairs(lengths, (places[0], places[1]), segments)
    if packed:
        return pack_lengths(lengths, places[0], segments)
    return Assignment(np.arange(len(lengths)), np.arange(len(lengths) + 1))


def _repack(
    context: PrepareContext,
    store: Store,
    assignment: Assignment,
    segments: int,
    masker: masking.StaticMasker | None,
    final: StoreWriter,
) -> WriteResult:
    length = sum(_row_lengths(final.dtype))
    tokens = assignment.rows * length
    step = shard_tokens(tokens) // length + 1
    parts = (
        (first, assignment.part(first, min(first + step, assignment.rows))) for first in range(0, assignment.rows, step)
    )
    shared = packing.PackingContext(store, segments, context.tokenizer.pad_id, final.dtype, masker)
    return write_shards(
        packing.packing_blocks, shared, parts, final, records=context.folder / "rows-done",
        workers=context.workers if needs_worker_pool(tokens) else 1, runner=context.runner, progress=context.progress("rows packed"),
    )  # fmt: skip
