"""From a task to its store: read, tokenise, make examples, pack, write; done once and kept in a cache."""

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.data_schema import BertPairs, Task
from bertjax.data import examples as ex
from bertjax.data import plans
from bertjax.data.chunks import KINDS as CHUNKS
from bertjax.data.chunks import plan_chunks
from bertjax.data.masking import MaskingRules
from bertjax.data.packing import SEGMENTS, Assignment, pack_lengths, pack_pairs
from bertjax.data.plans import Plan, Report, Work, pool_pays, shard_tokens
from bertjax.data.shards import write_shards
from bertjax.data.store import Store, StoreWriter
from bertjax.errors import BertjaxError, StorageError, UserError

if TYPE_CHECKING:
    from bertjax.data.tokenizers import Tokenizer

# No stored row depends on these.
NO_ROWS_FROM = {"tasks.py", "mixing.py", "mix.py", "loader.py", "fuse.py", "__init__.py"}


def prepare(
    task: Task,
    name: str,
    tokenizer: "Tokenizer",
    *,
    seed: int,
    base: Path,
    cache: Path,
    workers: int,
    labels: Sequence[str] | None = None,
    report: Report | None = None,
) -> Store:
    """The store of `task`, out of `cache` when it is there and whole.

    The rows are a pure function of the sources' bytes, the preprocess section, `task.limit`, the tokenizer, this code
    and, for sentence pairs and chunks of text, `seed`; `workers` only says how fast. `name` is for messages.
    `task.limit` counts sentence pairs, questions, records or chunks.

    Args:
        base: where relative file names start.
        labels: label names in the order of their ids (classification only), instead of those the source holds.
        report: told about progress, one line at a time.

    Store.meta: examples, rows, tokens_in_rows, density (share of positions that are not padding), padding,
    sequence_length, made_from (what the fingerprint is of), and by kind: documents, sentences, tokens; questions,
    unanswerable; records, labels (names by id, None when the source has numbers).

    Raises UserError when a source is unusable or nothing is left of it.
    """
    report = report or (lambda line: None)
    parts = _fingerprint_parts(task, tokenizer, seed, base, labels)
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    folder = Path(cache) / f"{task.preprocess.kind}-{fingerprint[:16]}"
    if store := _cached(folder, fingerprint, report):
        return store
    with _scratch(folder) as scratch:
        work = Work(task, name, tokenizer, seed, base, scratch, workers, labels, report)
        _build(work, folder, fingerprint, parts)
    return Store(folder)


def _cached(folder: Path, fingerprint: str, report: Report) -> Store | None:
    if not folder.exists():
        return None
    try:
        store = Store(folder)
    except BertjaxError as error:
        report(f"{error}: doing that now")
        return None
    return store if store.fingerprint == fingerprint else None


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for what lies between the source and the store; named so that StoreWriter clears it after a crash.

    An error also removes the folders above that were made for it, where nothing else is in them.
    """
    made = [path for path in (folder.parent, *folder.parent.parents) if not path.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder.parent}: no data can be kept here ({error.strerror}); choose another cache") from None
    try:
        yield scratch
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StorageError(f"{folder.parent}: no room for prepared data ({error.strerror}); free some space") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not folder.exists():
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def _fingerprint_parts(
    task: Task, tokenizer: "Tokenizer", seed: int, base: Path, labels: Sequence[str] | None
) -> dict[str, Any]:
    from bertjax.data.sources import fingerprint

    return {
        "sources": [fingerprint(source, base) for source in task.source],
        "preprocess": task.preprocess.model_dump(mode="json"),
        "limit": task.limit,
        "tokenizer": tokenizer.sha256,
        "seed": seed if task.preprocess.kind in ("bert_pairs", *CHUNKS) else None,
        "labels": list(labels) if labels is not None else None,
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


def _build(work: Work, folder: Path, fingerprint: str, parts: dict[str, Any]) -> None:
    task, options = work.task, work.task.preprocess
    writer = partial(
        StoreWriter, fingerprint=fingerprint, tokenizer_sha256=work.tokenizer.sha256, code_version=code_version()
    )
    packed: bool = getattr(options, "pack", False)
    cut = task.limit if isinstance(options, BertPairs) else None  # the others read no more than they need
    masker = None
    if isinstance(options, BertPairs) and options.masking == "static":
        masker = ex.Masker(MaskingRules.of(options, work.tokenizer), work.seed)
    again = packed or cut is not None  # then unpacked rows are a step on the way, masked after it
    plan = _plan(work, None if again else masker)
    meta: dict[str, Any] = {}
    with writer(work.folder / "examples" if again else folder, plan.dtype, meta) as unpacked:
        lengths = write_shards(
            plan.make, plan.shared, plan.arguments, unpacked, workers=work.workers if plan.big else 1, enough=cut,
            progress=work.progress("examples made"),
        )  # fmt: skip
        lengths = lengths[:cut]
        if not len(lengths):
            raise UserError(f"task '{work.name}': its source gives no example at all; check the source and its fields")
        rows = len(lengths)
        if not again:
            meta.update(_facts(work, plan, lengths, rows, parts))
    if again:
        segments = options.max_segments if packed else 1
        assignment = _assignment(lengths, _places(plan.dtype), segments, packed)
        dtype = ex.with_masks(ex.packed_dtype(plan.dtype, segments), masker.rules if masker else None)
        meta = _facts(work, plan, lengths, assignment.rows, parts)
        with writer(folder, dtype, meta) as final:
            _repack(work, Store(work.folder / "examples"), assignment, segments, masker, final)


def _plan(work: Work, masker: ex.Masker | None) -> Plan:
    kind = work.task.preprocess.kind
    if kind in CHUNKS:
        return plan_chunks(work)
    makers: dict[str, Callable[[Work, Any], Plan]] = {
        "bert_pairs": plans.plan_pairs, "span_qa": plans.plan_qa, "classify": plans.plan_classify,
        "text_to_text": plans.plan_text_to_text,
    }  # fmt: skip
    return makers[kind](work, masker)


def _facts(work: Work, plan: Plan, lengths: np.ndarray, rows: int, parts: dict[str, Any]) -> dict[str, Any]:
    length, places = work.task.preprocess.sequence_length, _places(plan.dtype)
    density = int(lengths.sum(dtype=np.int64)) / (rows * sum(places))
    facts = plan.facts | {
        "examples": len(lengths), "rows": rows, "tokens_in_rows": int(lengths.sum(dtype=np.int64)),
        "density": density, "padding": 1.0 - density, "sequence_length": length, "made_from": parts,
    }  # fmt: skip
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
) -> None:
    length = sum(_places(final.dtype))
    tokens = assignment.rows * length
    step = shard_tokens(tokens) // length + 1
    parts = (
        (first, assignment.part(first, min(first + step, assignment.rows))) for first in range(0, assignment.rows, step)
    )
    shared = ex.PackingWork(store, segments, work.tokenizer.pad_id, final.dtype, masker)
    write_shards(
        ex.packing_blocks, shared, parts, final, workers=work.workers if pool_pays(tokens) else 1,
        progress=work.progress("rows packed"),
    )  # fmt: skip
