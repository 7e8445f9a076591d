"""Batches bit for bit: digests of global batches of every kind, which a run that is continued must see again.

`PYTHONPATH=.:tests/kit python tests/data/test_loader_digests.py` records those of the present code. The recorded ones
were made when grain's MapDataset gave the order, one position at a time.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import Numbers, bert, texts, write_texts

from bertjax.config.schema import data
from bertjax.config.schema.data import BertPairs, IidDenoising, Mixture, SpanQa, Task, TextToText
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.pipeline import mixing
from bertjax.data.pipeline.loader import Batches
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.pipeline.row_order import RowOrder
from bertjax.data.pipeline.task_rows import TaskData, make_task_data
from bertjax.data.store.reader import Store
from bertjax.data.store.writer import StoreWriter

GOLDEN = Path(__file__).parents[1] / "golden" / "loader_batches.json"
B = 16
SPANS: dict[str, Any] = {"sequence_length": 64, "doc_stride": 16, "max_query_length": 12}
KINDS: dict[str, Any] = {
    "pairs": BertPairs(sequence_length=32, dupe_factor=2),
    "pairs, packed, whole-word": BertPairs(sequence_length=48, pack=True, whole_word_mask=True),
    "pairs, static": BertPairs(sequence_length=32, masking="static"),
    "sentences without NSP": BertPairs(sequence_length=32, next_sentence=False),
    "squad windows": SpanQa(**SPANS),
    "squad windows, packed": SpanQa(**SPANS, profile="bert", pack=True),
    "text to text": TextToText(prompt="squad", sequence_length=64, target_length=8),
    "text to text, packed": TextToText(prompt="squad", sequence_length=96, target_length=12, pack=True),
    "span corruption": data.SpanCorruption(sequence_length=64),
    "span corruption, short rows": data.SpanCorruption(sequence_length=24),
    "span corruption, rolled": data.SpanCorruption(sequence_length=24, random_roll=True),
    **{f"iid, {style}": IidDenoising(sequence_length=48, style=style) for style in ("bert", "replace_spans", "drop")},
    "deshuffling": data.Deshuffling(sequence_length=24),
    "prefix": data.PrefixLm(sequence_length=24),
    "causal": data.CausalLm(sequence_length=24),
}
COUNTS = (1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 100_000, 262_145, 10**6, 2**20 + 1, 10**9, 2**32 + 5)
SHARES = ((0.5, 0.5), (0.2, 0.7, 0.1), (0.98, 0.001, 0.019), (1 / 3, 1 / 3, 1 / 3), (0.9999, 0.0001))


def digest(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        found.update(f"{name} {values.dtype.newbyteorder('<').str} {values.shape} ".encode() + values.tobytes())
    return found.hexdigest()[:16]


def open_kind(kind: str, base: Path, *, seed: int = 9, limit: int | None = None, joined: bool = False) -> TaskData:
    options = KINDS[kind]
    tokenizer: Any = bert() if isinstance(options, BertPairs | SpanQa) else Numbers()
    asks = isinstance(options, SpanQa | TextToText)
    task = Task(source=SquadFiles(files=["squad.json"]) if asks else texts(), preprocess=options, limit=limit)
    store = prepare(task, "t", tokenizer, seed=5, base=base, cache=base / f"{kind} {limit}", workers=1)
    return make_task_data(task, store, tokenizer, seed, joined)


def plain(base: Path, rows: int, seed: int) -> TaskData:
    """Rows that are their own numbers, of enough rows for a larger block of the order's cipher."""
    folder = base / f"plain {rows}"
    if not folder.exists():
        dtype = np.dtype([("segment_ids", "<i4", (2,)), ("numbers", "<i4", (1,))])
        made = np.ones(rows, dtype)
        made["numbers"][:, 0] = np.arange(rows)
        with StoreWriter(folder, dtype, {"examples": rows}, rows_per_shard=30_000) as writer:
            writer.write(made)
    return TaskData(Store(folder), None, seed)


def mix(tasks: dict[str, TaskData], mixture: Mixture) -> Batches:
    """As `open_batches` mixes."""
    examples = {name: task.store.meta["examples"] for name, task in tasks.items()}
    shares = mixing.rates(examples, mixture)
    shares = mixing.to_row_rates(shares, examples, {name: task.length for name, task in tasks.items()})
    return Batches(tasks, shares, B)


def alone(kind: str, **options: Any) -> Callable[[Path], Batches]:
    return lambda base: Batches({"a": open_kind(kind, base, **options)}, {"a": 1.0}, B)


def temperature(base: Path) -> Batches:
    tasks = {
        "all": open_kind("span corruption", base, seed=1),
        "forty": open_kind("span corruption", base, seed=2, limit=40),
        "nine": open_kind("span corruption", base, seed=2**32 - 1, limit=9),
    }
    return mix(tasks, Mixture(mixture=list(tasks), temperature=2.0, limit=60))


def explicit(base: Path) -> Batches:
    tasks = {name: open_kind("pairs", base, seed=seed) for seed, name in enumerate("xy")}
    return mix(tasks, Mixture(mixture={"x": 0.75, "y": 0.25}, rate="explicit"))


def equal_packed(base: Path) -> Batches:
    tasks = {f"t{limit}": open_kind("text to text, packed", base, seed=limit or 0, limit=limit) for limit in (None, 30)}
    return mix(tasks, Mixture(mixture=list(tasks), rate="equal"))


def large_and_small(base: Path) -> Batches:
    tasks = {"large": plain(base, 70_000, 2**32 - 2), "small": plain(base, 3, 4), "middle": plain(base, 300, 5)}
    return mix(tasks, Mixture(mixture=list(tasks), temperature=3.0))


CASES: dict[str, Callable[[Path], Batches]] = {
    **{kind: alone(kind) for kind in KINDS},
    "prefix, decoder only": alone("prefix", joined=True),
    "text to text, decoder only": alone("text to text, packed", joined=True),
    "a few rows": alone("pairs", limit=9),
    "large": lambda base: Batches({"a": plain(base, 70_000, 12)}, {"a": 1.0}, B),
    "mixture, temperature": temperature,
    "mixture, explicit": explicit,
    "mixture, equal, packed": equal_packed,
    "mixture, large and small": large_and_small,
}


def measure(case: str, base: Path) -> dict[str, str]:
    """Digests: the first batches, those at the end of an epoch, far ones, parts of one, and a finite pass."""
    batches = CASES[case](base)
    last = batches.batches_per_epoch - 1
    found = {f"batch {k}": digest(batches.batch(k)) for k in (0, 1, 2, 1000, 10**9)}
    ending = {f"{k} {name}": values for k in (last, last + 1) for name, values in batches.batch(k).items()}
    found["end of an epoch"] = digest(ending)
    found["a part"] = digest(batches.batch(7, slice(4, 12)))
    found["some rows"] = digest(batches.batch(7, np.array([0, 3, 4, 9, 15])))
    finite = [batches.epoch_batch(k) for k in (0, last)]
    found["finite pass"] = digest({f"{n} {name}": v for n, batch in enumerate(finite) for name, v in batch.items()})
    return found


def positions() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate(
        [np.arange(600), 10**5 + np.arange(50), rng.integers(0, 2**40, 25), rng.integers(0, 2**52, 10)]
    )


def places(counts: Sequence[int], shares: Sequence[float], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """(task, epoch, index) at each of `positions`: int64 [n, 3]."""
    return {"": np.stack(RowOrder(counts, shares, seeds).at(positions()), axis=1)}


def measure_orders() -> dict[str, str]:
    found = {
        f"{count} rows, seed {seed}": digest(places([count], [1.0], [seed]))
        for count in COUNTS
        for seed in (0, 7, 2**32 - 1)
    }
    for shares in SHARES:
        counts, seeds = [300, 100_000, 5][: len(shares)], [3, 2**32 - 1, 11][: len(shares)]
        found[f"shares {shares}"] = digest(places(counts, shares, seeds))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digests")
    write_texts(folder)
    return folder


HOW = "a run that is continued would read other data; if that is intended, say so in CHANGELOG.md and record them"


@pytest.mark.parametrize("case", CASES)
def test_batches_keep_their_bits(case: str, base: Path):
    assert measure(case, base) == json.loads(GOLDEN.read_text())["batches"][case], HOW


def test_orders_keep_their_places():
    assert measure_orders() == json.loads(GOLDEN.read_text())["orders"], HOW


def test_every_recorded_case_is_measured():
    assert json.loads(GOLDEN.read_text())["batches"].keys() == CASES.keys()


def test_another_seed_has_other_digests(base: Path):
    """So a digest does depend on the order and on the masks."""
    found = [measure_with_seed(seed, base) for seed in (9, 10)]
    assert found[0] == json.loads(GOLDEN.read_text())["batches"]["pairs"]["batch 0"] != found[1]


def measure_with_seed(seed: int, base: Path) -> str:
    return digest(alone("pairs", seed=seed)(base).batch(0))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        write_texts(Path(home))
        recorded = {"batches": {case: measure(case, Path(home)) for case in CASES}, "orders": measure_orders()}
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
