"""The loader, rows a CPU second: batches made row by row, as until 2026-12-01, and at once. Prints one JSON object.

    python benchmarks/loader.py
    python benchmarks/loader.py --output benchmarks/results/loader.json

Both sides load the same batches (which is checked) of rows on a disk, in this one process and thread, by turns; CPU
seconds are `time.process_time`. `before` asks grain for one position at a time and reads uncoded rows, compressed by
zstd, into a structured array; masking and corruption are the same code on both sides. `parts` says what the time of
each side is made of.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from platform import python_version
from types import SimpleNamespace
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from bertjax.config.schema.data import BertPairs, SpanCorruption, Task
from bertjax.config.schema.sources import TextFiles
from bertjax.data.pipeline.loader import Batches
from bertjax.data.pipeline.task_rows import TaskData, make_task_data
from bertjax.data.preprocess.bert_pairs import pairs_dtype
from bertjax.data.preprocess.denoising.concat_and_split import chunk_dtype
from bertjax.data.preprocess.denoising.rules import span_corruption_lengths
from bertjax.data.store.reader import READ_OPTIONS, Store
from bertjax.data.store.writer import StoreWriter

VOCAB, SEED, SHARDS = 30_522, 7, 4
Batch = dict[str, np.ndarray]


def token_ids(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Ids with the frequencies of words: the rank's reciprocal."""
    return np.exp(rng.random(shape) * np.log(VOCAB - 1000)).astype(np.int32) + 999


def mlm_rows(count: int, length: int) -> tuple[Any, Any, np.ndarray]:
    """(preprocess, tokenizer, rows) of sentence pairs; a tenth are short, as `short_seq_prob` makes them."""
    rng, places = np.random.default_rng(0), np.arange(length)
    pairs = BertPairs(sequence_length=length)
    end = np.where(rng.random((count, 1)) < 0.1, rng.integers(8, length, (count, 1)), length)
    middle, real = end // 2, places < end
    rows = np.zeros(count, pairs_dtype(pairs))
    ids = token_ids(rng, (count, length))
    ids[:, 0] = 2
    ids[(places == middle - 1) | (places == end - 1)] = 3
    rows["input_ids"], rows["segment_ids"], rows["positions"] = ids * real, real, places * real
    rows["token_type_ids"] = real & (places >= middle)
    rows["nsp_labels"][:, 0], rows["nsp_weights"] = rng.integers(0, 2, count), 1
    tokenizer = SimpleNamespace(
        vocab_size=VOCAB, pad_id=0, cls_id=2, sep_id=3, mask_id=4, is_continuation=np.arange(VOCAB) % 5 == 0
    )
    return pairs, tokenizer, rows


def t5_rows(count: int, length: int) -> tuple[Any, Any, np.ndarray]:
    """(preprocess, tokenizer, rows) of span corruption: chunks of 568 tokens for inputs of 512 and targets of 114."""
    options = SpanCorruption(sequence_length=length)
    tokens = span_corruption_lengths(options)[0]
    rows = np.zeros(count, chunk_dtype(tokens))
    rows["tokens"], rows["length"] = token_ids(np.random.default_rng(0), (count, tokens)), tokens
    tokenizer = SimpleNamespace(
        vocab_size=VOCAB + 100, pad_id=0, eos_id=1, unk_id=2, extra_ids=100,
        sentinel_id=lambda number: VOCAB + 99 - number, encode_batch=lambda texts: [[] for _ in texts],
    )  # fmt: skip
    return options, tokenizer, rows


class RowByRow:
    """The loader's way until 2026-12-01: grain maps one position at a time, and rows are uncoded."""

    def __init__(self, folder: Path, rows: np.ndarray, data: TaskData, batch_size: int):
        self._dtype, self._data, self._size = rows.dtype, data, batch_size
        self._per_shard = -(-len(rows) // SHARDS)
        self._readers = []
        for at in range(0, len(rows), self._per_shard):
            path = str(folder / f"{at}.array_record")
            writer = ArrayRecordWriter(path, "group_size:1,max_parallelism:1")
            for row in rows[at : at + self._per_shard]:
                writer.write(row.tobytes())
            writer.close()
            self._readers.append(ArrayRecordReader(path, READ_OPTIONS))
        count = len(rows)
        stream = grain.MapDataset.range(count).shuffle(seed=SEED).repeat()
        self._order = stream.map_with_index(lambda at, row: (0, at // count, int(row)))

    def places(self, k: int) -> np.ndarray:
        found = [self._order[k * self._size + row] for row in range(self._size)]
        return np.array(found, np.int64).T

    def stored(self, indices: np.ndarray) -> np.ndarray:
        rows, shard_of = np.empty(len(indices), self._dtype), indices // self._per_shard
        for shard in np.unique(shard_of).tolist():
            where, records, reader = np.flatnonzero(shard_of == shard), [], self._readers[shard]
            for position in (indices[where] - shard * self._per_shard).tolist():
                reader.seek(position)
                records.append(reader.read())
            rows[where] = np.frombuffer(b"".join(records), self._dtype)
        return rows

    def batch(self, k: int) -> Batch:
        _, epochs, indices = self.places(k)
        rows = self.stored(indices)
        fields = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
        assert self._data.transform
        return self._data.transform(fields, seed=SEED, epoch=epochs, indices=indices)


def cpu_microseconds(turns: dict[str, Callable[[int], Any]], rounds: int, batches: int, rows: int) -> dict[str, Any]:
    """{name: {median, min, max}} of CPU microseconds a row. They take turns; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name in list(turns)[:: 1 if number % 2 else -1]:
            began = time.process_time()
            for k in range(number * batches, (number + 1) * batches):
                turns[name](k)
            if number:
                times[name].append((time.process_time() - began) / batches / rows * 1e6)
    return {
        name: {"median": round(statistics.median(t), 3), "min": round(min(t), 3), "max": round(max(t), 3)}
        for name, t in times.items()
    }


def measure(name: str, made: tuple[Any, Any, np.ndarray], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    preprocess, tokenizer, rows = made
    with StoreWriter(folder / "store", rows.dtype, {}, rows_per_shard=-(-len(rows) // SHARDS)) as writer:
        writer.write(rows)
    store = Store(folder / "store")
    data = make_task_data(Task(source=TextFiles(files=["none"]), preprocess=preprocess), store, tokenizer, SEED)
    after, before = Batches({name: data}, {name: 1.0}, options.batch), RowByRow(folder, rows, data, options.batch)
    for k in (0, 1, len(rows) // options.batch):  # the last one runs over the end of an epoch
        ours, theirs = after.batch(k), before.batch(k)
        assert ours.keys() == theirs.keys() and all(ours[n].tobytes() == theirs[n].tobytes() for n in ours), k
    numbers = [before.places(k)[2] for k in range(options.batches)]
    columns = store.columns(numbers[0])
    epoch = np.zeros(options.batch, np.int64)
    assert data.transform
    transform = data.transform
    turns: dict[str, Callable[[int], Any]] = {
        "before": before.batch,
        "after": after.batch,
        "before: order": before.places,
        "after: order": lambda k: after._order.at(k * options.batch + np.arange(options.batch)),
        "before: reading": lambda k: before.stored(numbers[k % options.batches]),
        "after: reading": lambda k: store.columns(numbers[k % options.batches]),
        "masking": lambda k: transform(columns, seed=SEED, epoch=epoch, indices=numbers[k % options.batches]),
    }
    found = cpu_microseconds(turns, options.rounds, options.batches, options.batch)
    uncoded = sum(path.stat().st_size for path in folder.glob("*.array_record"))
    return {
        "rows": len(rows),
        "batch": options.batch,
        "rows_per_cpu_second": {side: round(1e6 / found[side]["median"]) for side in ("before", "after")},
        "times_faster": round(found["before"]["median"] / found["after"]["median"], 2),
        "microseconds_per_row": {side: found.pop(side) for side in ("before", "after")},
        "parts": {part: took["median"] for part, took in found.items()},
        "bytes_per_row_on_disk": {"before": round(uncoded / len(rows)), "after": round(store.num_bytes / len(rows))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="of MLM; a quarter of them for T5")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=40, help="of a sample")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cases = {
        "mlm_128": lambda: mlm_rows(options.rows, 128),
        "mlm_512": lambda: mlm_rows(options.rows // 4, 512),
        "t5_568_to_512_114": lambda: t5_rows(options.rows // 4, 512),
    }
    found: dict[str, Any] = {}
    for name, make in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, make(), options, Path(folder))
    versions = {package: metadata.version(package) for package in ("numpy", "grain", "array-record")}
    found |= {
        "machine": processor(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "versions": versions,
        "python": python_version(), "date": date.today().isoformat(),
    }  # fmt: skip
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


def processor() -> str:
    """The name of the CPU, as far as the machine tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
