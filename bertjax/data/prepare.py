"""From a task to its store: read, tokenise, make examples, pack, write; done once and kept in a cache."""

import hashlib
import json
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.data_schema import BertPairs, Task
from bertjax.data import examples as ex
from bertjax.data import pair_statistics, plans, remote, text_counts
from bertjax.data.chunks import KINDS as CHUNKS
from bertjax.data.chunks import plan_chunks
from bertjax.data.jobs import LocalRunner, Runner
from bertjax.data.labels import Classes
from bertjax.data.manifest import MANIFEST, NotAStore
from bertjax.data.masking import MaskingRules
from bertjax.data.packing import SEGMENTS, Assignment, pack_lengths, pack_pairs
from bertjax.data.plans import Plan, pool_pays, shard_tokens
from bertjax.data.remote import DamagedError
from bertjax.data.shards import Written, write_shards
from bertjax.data.store import Store
from bertjax.data.store_writer import StoreWriter
from bertjax.data.work import Report, Work
from bertjax.data.workplace import forget, workplace
from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.data.tokenizers import Tokenizer

# No stored row depends on these.
NO_ROWS_FROM = {
    "tasks.py", "mixing.py", "mix.py", "loader.py", "fuse.py", "__init__.py", "remote.py", "workplace.py", "jobs.py",
    "runners.py", "beam_runner.py", "stopping.py",
}  # fmt: skip


def prepare(
    task: Task,
    name: str,
    tokenizer: "Tokenizer",
    *,
    seed: int,
    base: Path,
    cache: Path,
    workers: int,
    classes: Classes | None = None,
    report: Report | None = None,
    runner: Runner | None = None,
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
        cache: a folder, which may lie in an object store (`remote.place`).
        report: told about progress, one line at a time, and about the throughput at the end.
        runner: of the jobs (default: `workers` processes on this machine).

    Store.meta: examples, rows, tokens_in_rows, density (share of positions that are not padding), padding,
    sequence_length, made_from (what the fingerprint is of), text_counts (see that module), and by kind: documents,
    sentences, tokens, pairs (`pair_statistics.facts`); questions, unanswerable; records, labels (names by id, None
    where there are none) and what else `labels.facts` has.

    Raises UserError when a source is unusable or nothing is left of it.
    """
    report, runner = report or (lambda line: None), runner or LocalRunner()
    parts = _fingerprint_parts(task, tokenizer, seed, base, classes)
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    folder = remote.place(cache) / f"{task.preprocess.kind}-{fingerprint[:16]}"
    if store := _cached(folder, fingerprint, report):
        forget(folder)
        _tell(task, name, store, report)
        return store
    start = time.monotonic()
    with workplace(folder, runner.apart) as at:
        if store := _cached(folder, fingerprint, lambda line: None):  # another process was faster
            _tell(task, name, store, report)
            return store
        work = Work(task, name, tokenizer, seed, base, at.folder, workers, classes, report, runner)
        writer = partial(
            StoreWriter, fingerprint=fingerprint, tokenizer_sha256=tokenizer.sha256, code_version=code_version()
        )
        written = _build(work, partial(writer, folder, temporary=at.rows), writer, parts)
    store = Store(folder)
    _tell(task, name, store, report)
    report(f"{name}: {_throughput(store, written, time.monotonic() - start)}")
    return store


def _tell(task: Task, name: str, store: Store, report: Report) -> None:
    """What is known of the quality of a task's rows; said whenever they are used, not only when they are made."""
    if isinstance(task.preprocess, BertPairs):
        for line in pair_statistics.lines(name, task.preprocess, store.meta):
            report(line)
    for line in text_counts.lines(name, store.meta.get(text_counts.KEY), task.preprocess):
        report(line)


def _cached(folder: Path, fingerprint: str, report: Report) -> Store | None:
    if remote.size_of(folder / MANIFEST) is None and not (not remote.is_remote(folder) and folder.exists()):
        return None
    try:
        store = Store(folder)
    except (DamagedError, NotAStore) as error:
        report(f"{error}: doing that now")
        if remote.is_remote(folder):
            remote.remove(folder / MANIFEST)  # its shards are about to change
        return None
    return store if store.fingerprint == fingerprint else None


def _throughput(store: Store, written: Written, seconds: float) -> str:
    rows, tokens, size = store.meta["rows"], store.meta["tokens_in_rows"], store.bytes
    rates = f"{rows / seconds:,.0f} rows/s, {tokens / seconds:,.0f} tokens/s, {size / seconds / 1e6:.2f} MB/s"
    found = f"; {written.found} of {written.shards} shards were finished before" if written.found else ""
    return f"{rows:,} rows, {tokens:,} tokens, {size / 1e6:.1f} MB in {seconds:.1f} s: {rates}{found}"


def _fingerprint_parts(
    task: Task, tokenizer: "Tokenizer", seed: int, base: Path, classes: Classes | None
) -> dict[str, Any]:
    from bertjax.data.sources import fingerprint

    return {
        "sources": [fingerprint(source, base) for source in task.source],
        "preprocess": task.preprocess.model_dump(mode="json"),
        "limit": task.limit,
        "tokenizer": tokenizer.sha256,
        "seed": seed if task.preprocess.kind in ("bert_pairs", *CHUNKS) or task.limit else None,
        "classes": (classes or Classes()).as_json() if task.preprocess.kind == "classify" else None,
        "code": code_version(),
    }


@lru_cache(maxsize=1)
def code_version() -> str:
    """sha256 over the modules that decide what a row holds: after any change of theirs, data is prepared again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in NO_ROWS_FROM:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _build(
    work: Work, writer: Callable[..., StoreWriter], anywhere: Callable[..., StoreWriter], parts: dict[str, Any]
) -> Written:
    """Writes the store by `writer` (dtype, meta); what lies in between by `anywhere` (folder, dtype, meta)."""
    options = work.task.preprocess
    packed: bool = getattr(options, "pack", False)
    masker = None
    if isinstance(options, BertPairs) and options.masking == "static":
        masker = ex.Masker(MaskingRules.of(options, work.tokenizer), work.seed)
    plan = _plan(work, None if packed else masker)  # the unpacked rows of a packed task are masked after packing
    meta: dict[str, Any] = {}
    examples = work.folder / "examples"
    first = partial(anywhere, examples, temporary=examples) if packed else writer
    with first(plan.dtype, meta) as unpacked:
        written = write_shards(
            plan.make, plan.shared, plan.arguments, unpacked, records=work.folder / "examples-done",
            workers=work.workers if plan.big else 1, runner=work.runner, shuffle=plan.shuffle,
            progress=work.progress("examples made"),
        )  # fmt: skip
        lengths = written.lengths
        if not len(lengths):
            raise UserError(f"task '{work.name}': its source gives no example at all; check the source and its fields")
        if not packed:
            meta.update(_facts(work, plan, lengths, len(lengths), parts, written))
            return written
    segments = options.max_segments if packed else 1
    assignment = _assignment(lengths, _places(plan.dtype), segments, packed)
    dtype = ex.with_masks(ex.packed_dtype(plan.dtype, segments), masker.rules if masker else None)
    with writer(dtype, _facts(work, plan, lengths, assignment.rows, parts, written)) as final:
        return _repack(work, Store(examples), assignment, segments, masker, final)


def _plan(work: Work, masker: ex.Masker | None) -> Plan:
    kind = work.task.preprocess.kind
    if kind in CHUNKS:
        return plan_chunks(work)
    makers: dict[str, Callable[[Work, Any], Plan]] = {
        "bert_pairs": plans.plan_pairs, "span_qa": plans.plan_qa, "classify": plans.plan_classify,
        "text_to_text": plans.plan_text_to_text,
    }  # fmt: skip
    return makers[kind](work, masker)


def _facts(
    work: Work, plan: Plan, lengths: np.ndarray, rows: int, parts: dict[str, Any], written: Written
) -> dict[str, Any]:
    length, places = work.task.preprocess.sequence_length, _places(plan.dtype)
    density = int(lengths.sum(dtype=np.int64)) / (rows * sum(places))
    facts = plan.facts | {
        "examples": len(lengths), "rows": rows, "tokens_in_rows": int(lengths.sum(dtype=np.int64)),
        "density": density, "padding": 1.0 - density, "sequence_length": length, "made_from": parts,
        text_counts.KEY: text_counts.added(plan.facts.get(text_counts.KEY, {}), written.text_counts),
    }  # fmt: skip
    if isinstance(work.task.preprocess, BertPairs):
        facts["pairs"] = pair_statistics.facts(work.task.preprocess, plan.facts, lengths, written.sums)
    if len(places) > 1:
        facts["target_length"] = places[1]
    work.report(f"{work.name}: {len(lengths):,} examples in {rows:,} rows, {density:.1%} of the positions used")
    return facts


# ---- packing --------------------------------------------------------------------------------------------------------


def _places(dtype: np.dtype) -> list[int]:
    """How many tokens a row holds: of its one sequence, or of its inputs and of its targets."""
    return [dtype[name].shape[0] for name in ("tokens", *SEGMENTS) if name in (dtype.names or ())]


def _assignment(lengths: np.ndarray, places: list[int], segments: int, packed: bool) -> Assignment:
    if packed and len(places) > 1:
        return pack_pairs(lengths, (places[0], places[1]), segments)
    if packed:
        return pack_lengths(lengths, places[0], segments)
    return Assignment(np.arange(len(lengths)), np.arange(len(lengths) + 1))


def _repack(
    work: Work, store: Store, assignment: Assignment, segments: int, masker: ex.Masker | None, final: StoreWriter
) -> Written:
    length = sum(_places(final.dtype))
    tokens = assignment.rows * length
    step = shard_tokens(tokens) // length + 1
    parts = (
        (first, assignment.part(first, min(first + step, assignment.rows))) for first in range(0, assignment.rows, step)
    )
    shared = ex.PackingWork(store, segments, work.tokenizer.pad_id, final.dtype, masker)
    return write_shards(
        ex.packing_blocks, shared, parts, final, records=work.folder / "rows-done",
        workers=work.workers if pool_pays(tokens) else 1, runner=work.runner, progress=work.progress("rows packed"),
    )  # fmt: skip
