"""Prepared data are keyed by VERSIONs: rows of fixed inputs beside the VERSIONs that they belong to.

`PYTHONPATH=.:tests/kit python tests/data/test_versions.py` records those of the present code.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from preparing import WORDS, Numbers, bert, small_jobs

from bertjax.config.schema import data
from bertjax.config.schema.data import (
    PREPROCESS,
    BertPairs,
    Classify,
    IidDenoising,
    SpanQa,
    Task,
    TextPairs,
    TextRows,
    TextToText,
    TokenLabels,
)
from bertjax.config.schema.sources import JsonLines
from bertjax.data.jobs.scratch_dir import JOBS_FORMAT
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.pipeline.task_rows import make_task_data
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.store import manifest
from bertjax.data.store.reader import Store
from bertjax.data.store.writer import StoreWriter
from bertjax.errors import StorageError

PAIRS: dict[str, Any] = {"sequence_length": 24}
SPANS: dict[str, Any] = {"sequence_length": 32, "doc_stride": 8, "max_query_length": 8}
TEXTS: dict[str, Any] = {"sequence_length": 24, "target_length": 8}
TEMPLATE = {"inputs": "{question} {context}", "targets": "{answers}"}
CASES: dict[str, Any] = {
    "pairs": BertPairs(**PAIRS),
    "pairs, twice": BertPairs(**PAIRS, dupe_factor=2, short_seq_prob=0.5),
    "pairs, packed": BertPairs(**PAIRS, pack=True),
    "pairs, whole-word": BertPairs(**PAIRS, whole_word_mask=True),
    "pairs, static": BertPairs(**PAIRS, masking="static"),
    "pairs, static, whole-word": BertPairs(**PAIRS, masking="static", whole_word_mask=True),
    "pairs, static, packed": BertPairs(**PAIRS, masking="static", pack=True),
    "sentences without NSP": BertPairs(**PAIRS, next_sentence=False),
    "text": TextRows(sequence_length=24),
    "text, packed": TextRows(sequence_length=24, short_seq_prob=0.5, pack=True),
    "spans, hf": SpanQa(**SPANS),
    "spans, bert": SpanQa(**SPANS, profile="bert"),
    "spans, overlap, packed": SpanQa(**SPANS, doc_stride_mode="overlap", pack=True),
    "classes": Classify(sequence_length=16, text_b="question"),
    "numbers": Classify(sequence_length=16, label="score"),
    "words": TokenLabels(sequence_length=12),
    "words, all pieces, packed": TokenLabels(sequence_length=16, stride=2, label_all_tokens=True, pack=True),
    "entities": TokenLabels(sequence_length=16, text="context", spans="entities"),
    "two texts": TextPairs(sequence_length=12, text_a="question", text_b="context"),
    "three texts": TextPairs(
        sequence_length=10, text_a="question", text_b="context", negative="text", score="score", score_range=[0, 3]
    ),
    "template": TextToText(**TEXTS, **TEMPLATE),
    "template, packed": TextToText(**TEXTS, **TEMPLATE, pack=True),
    "prompt": TextToText(**TEXTS, prompt="squad"),
    "span corruption": data.SpanCorruption(sequence_length=24),
    "span corruption, rolled": data.SpanCorruption(sequence_length=24, random_roll=True),
    **{
        f"iid, {style}": IidDenoising(sequence_length=24, style=style)
        for style in ("bert", "mass", "replace_spans", "drop")
    },
    "deshuffling": data.Deshuffling(sequence_length=24),
    "prefix": data.PrefixLm(sequence_length=24),
    "causal": data.CausalLm(sequence_length=24),
}
# {case: [VERSIONs, stored rows, keys of Store.meta, rows loaded in epoch 1, [JOBS_FORMAT, rows of each job ...]]}
GOLDEN = Path(__file__).parents[1] / "golden" / "prepared_rows.json"


def write_input(folder: Path) -> None:
    """Records with texts, questions and labels, of one to four sentences."""
    with (folder / "a.jsonl").open("w") as file:
        for n in range(24):
            words = [WORDS[(7 * n + k * k) % len(WORDS)] + "s" * (k % 3 == 0) for k in range(8 + 4 * (n % 4))]
            words = [word + "." * (k % 7 == 6) for k, word in enumerate(words)]
            context, answer = " ".join(words), words[n % 5].rstrip(".")
            record = {"id": f"q{n}", "text": context, "context": context, "question": f"{words[1]} {words[2]}?"}
            space = "\u200b" * (n % 6 == 0)  # of zero width: profile hf finds the answer all the same
            record["answers"] = {"text": [answer + space], "answer_start": [context.index(answer)]}
            record |= {
                "tokens": words,
                "ner_tags": ["BIO"[(n + k) % 3] + "-X" * ((n + k) % 3 < 2) for k in range(len(words))],
            }
            record["entities"] = [{"start": 0, "end": len(words[0]) - n % 2, "label": "X"}]
            file.write(json.dumps(record | {"label": n % 3, "score": n / 8}) + "\n")


def digest(rows: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name, values in rows.items():
        found.update(f"{name} {values.dtype.newbyteorder('<').str} {values.shape} ".encode() + values.tobytes())
    return found.hexdigest()[:16]


def measure(case: str, folder: Path) -> list[Any]:
    options = CASES[case]
    tokenizer: Any = (
        bert() if isinstance(options, BertPairs | TextRows | SpanQa | Classify | TokenLabels | TextPairs) else Numbers()
    )
    task = Task(source=JsonLines(files=["a.jsonl"]), preprocess=options)
    classes = ClassSpec(1 if case == "numbers" else 3)
    store = prepare(task, "t", tokenizer, seed=5, base=folder, cache=folder / case, workers=1, classes=classes)
    return [store.versions, *describe(store, make_task_data(task, store, tokenizer, 9).rows)]


def describe(store: Store, load: Any) -> list[Any]:
    numbers = np.arange(len(store))
    stored = store.rows(numbers)
    rows = {name: np.ascontiguousarray(stored[name]) for name in stored.dtype.names or ()}
    keys = hashlib.sha256(json.dumps(sorted(store.meta)).encode()).hexdigest()[:8]
    loaded = digest(load(np.ones(len(store), np.int64), numbers))
    return [digest(rows), keys, loaded, [JOBS_FORMAT, *(shard["records"] for shard in store.shards)]]


@pytest.fixture
def many_jobs(monkeypatch):
    small_jobs(monkeypatch)


def test_every_kind_has_a_case():
    assert {section.kind for section in CASES.values()} == PREPROCESS.keys() == set(PREPROCESS)
    assert json.loads(GOLDEN.read_text()).keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_rows_belong_to_their_versions(case, many_jobs, tmp_path):
    write_input(tmp_path)
    versions, rows, keys, loaded, jobs = json.loads(GOLDEN.read_text())[case]
    now_versions, now_rows, now_keys, now_loaded, now_jobs = measure(case, tmp_path)
    record = "then record the new state (see the docstring of this module)"
    if (now_rows, now_keys) != (rows, keys):
        which = " or ".join(now_versions)
        changed = "rows" if now_rows != rows else "keys of Store.meta"
        assert now_versions != versions, f"{changed} changed: raise VERSION of {which}, {record}"
    if now_jobs != jobs:
        assert now_jobs[0] != jobs[0] or now_versions != versions, f"jobs changed: raise JOBS_FORMAT, {record}"
    assert now_loaded == loaded or now_versions != versions, (
        "rows change when they are loaded: a run that is continued would read other data; if that is intended, say so "
        f"in CHANGELOG.md, {record}"
    )
    assert [now_versions, now_jobs] == [versions, jobs], f"a VERSION or JOBS_FORMAT is new: {record}"


def test_a_store_of_earlier_code_opens(tmp_path, monkeypatch):
    """Format 1: rows as they are in memory, no codec in the manifest, a hash of that code in place of the VERSIONs."""
    rows = np.zeros(5, [("segment_ids", "<i4", (40,))])
    rows["segment_ids"] = np.arange(5)[:, None] + 1
    with StoreWriter(tmp_path / "s", rows.dtype, {"examples": 5}, rows_per_shard=3, versions={"kind": 1}) as writer:
        writer.write(rows)
    written, shards = manifest.read(tmp_path / "s"), []
    assert (written["format"], Store(tmp_path / "s").versions) == (2, {"kind": 1})
    for part, shard in zip((rows[:3], rows[3:]), written["shards"], strict=True):
        path = tmp_path / "s" / shard["file"]
        plain = ArrayRecordWriter(str(path), "group_size:1,max_parallelism:1")
        for row in part:
            plain.write(row.tobytes())
        plain.close()
        data = path.read_bytes()
        size = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        shards.append({"file": shard["file"], "records": len(part), **size})
    about = {name: written[name] for name in ("fingerprint", "tokenizer_sha256")} | {"code_version": "0" * 64}

    def reopened(shards: list[dict[str, Any]]) -> Store:
        data = manifest.to_bytes(about, rows.dtype, shards, written["meta"])
        (tmp_path / "s" / manifest.MANIFEST).write_bytes(data)
        return Store(tmp_path / "s")

    monkeypatch.setattr(manifest, "FORMAT", 1)
    store = reopened(shards)
    assert store.versions == {} and store.rows([4, 0, 3, 2]).tobytes() == rows[[4, 0, 3, 2]].tobytes()
    mislabelled = reopened([shards[0], shards[1] | {"codec": 1}])
    assert mislabelled.rows([2, 0]).tobytes() == rows[[2, 0]].tobytes()
    with pytest.raises(StorageError, match=r"rows-00001.array_record: holds rows of another kind") as caught:
        mislabelled.rows([2, 4])
    assert "\n" not in str(caught.value)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        small_jobs(patch)
        write_input(Path(home))
        lines = [f"{json.dumps(one)}: {json.dumps(measure(one, Path(home)))}" for one in CASES]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
