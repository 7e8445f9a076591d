"""Rows of pairs and triplets of texts: their ids, weights and scores, and records that cannot be used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import WORDS, bert

from bertjax.config.schema.data import Task, TextPairs
from bertjax.config.schema.sources import JsonLines
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.pipeline.preview import preview_task
from bertjax.data.store.reader import Store
from bertjax.errors import UserError
from bertjax.tools.show.rows import decode_row

A, B, C = WORDS[:3]
PAD, CLS, SEP = 0, 2, 3


def ids(*words: str) -> list[int]:
    return [5 + WORDS.index(word) for word in words]


def make(folder: Path, records: list[dict[str, Any]], report: list[str] | None = None, **options: Any) -> Store:
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    task = Task(source=JsonLines(files=["a.jsonl"]), preprocess=TextPairs(sequence_length=8, **options))
    lines = (report if report is not None else []).append
    return prepare(task, "t", bert(), seed=0, base=folder, cache=folder / "cache", workers=1, report=lines)


def test_a_row_holds_each_text_alone(tmp_path):
    record = {"anchor": f"{A} {B}", "positive": " ".join([C] * 9), "other": B, "similarity": "4"}
    lines: list[str] = []
    store = make(tmp_path, [record], lines, negative="other", score="similarity", score_range=[0, 5])
    (row,) = store.rows(np.array([0]))
    expected = [
        [CLS, *ids(A, B), SEP] + [PAD] * 4,
        [CLS, *ids(*[C] * 6), SEP],
        [CLS, *ids(B), SEP] + [PAD] * 5,
    ]
    assert row["input_ids"].reshape(3, 8).tolist() == expected
    real = np.array(expected) > PAD
    assert row["segment_ids"].reshape(3, 8).tolist() == (real * [[1], [2], [3]]).tolist()
    assert row["positions"].reshape(3, 8).tolist() == (real * np.arange(8)).tolist()
    assert row["text_starts"].tolist() == [0, 8, 16] and not row["token_type_ids"].any()
    assert row["pair_weights"].tolist() == [1] and row["scores"].tolist() == pytest.approx([0.8])
    assert store.meta["text_counts"]["texts"] | {"unknown": 0} == {
        "texts": 3, "cut": 1, "tokens": 12, "tokens_cut": 3, "unknown": 0,
    }  # fmt: skip
    assert any("1 of 3 texts cut" in line for line in lines)
    fields = {name: row[name] for name in row.dtype.names}
    shown = decode_row(fields, bert(), None, task="t", step=0, number=0)
    assert [one.facts["text"] for one in shown.examples] == ["text_a", "text_b", "negative"]
    assert shown.examples[0].facts["score"] == "0.8"
    assert [piece.text for piece in shown.examples[2].sequences["inputs"]] == ["[CLS]", B, "[SEP]"]


def test_records_that_are_all_empty_are_refused_with_their_number(tmp_path):
    with pytest.raises(UserError, match="task 't': all 2 records have an empty text; check preprocess.text_a"):
        make(tmp_path, [{"anchor": "", "positive": A}, {"anchor": A, "positive": " "}])


def test_empty_texts_are_left_out_and_counted(tmp_path):
    lines: list[str] = []
    store = make(tmp_path, [{"q": A, "a": B}, {"q": " ", "a": B}, {"q": C, "a": A}], lines, text_a="q", text_b="a")
    assert store.rows(np.arange(2))["input_ids"][:, 1].tolist() == ids(A, C)
    assert (len(store), store.meta["records"], store.meta["empty"]) == (2, 3, 1)
    assert any("1 of 3 records have an empty text and are left out" in line for line in lines)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"anchor": A}, "'positive' is missing; it has: anchor"),
        ({"anchor": A, "positive": None}, "'positive' is not a text but nothing (null)"),
        ({"anchor": A, "positive": B}, "'score' is missing"),
        ({"anchor": A, "positive": B, "score": "high"}, "'score' is not a number but 'high'"),
        ({"anchor": A, "positive": B, "score": True}, "'score' is not a number"),
        ({"anchor": A, "positive": B, "score": 3.6}, "'score' is 3.6, outside of -1 to 1; name it: score_range"),
    ],
)
def test_a_record_that_lacks_something_is_named(tmp_path, record, said):
    good = {"anchor": A, "positive": B, "score": 0.5}
    with pytest.raises(UserError, match="a.jsonl") as caught:
        make(tmp_path, [good, record], score="score")
    assert said in str(caught.value) and "line 2" in str(caught.value)
    task = Task(source=JsonLines(files=["a.jsonl"]), preprocess=TextPairs(score="score"))
    (problem,) = preview_task("tasks.a", task, tmp_path).problems
    assert said in problem


def test_a_range_needs_a_score_and_an_order():
    for options, said in (({"score_range": [0, 5]}, "needs score"), ({"score": "s", "score_range": [5, 0]}, "below")):
        with pytest.raises(ValueError, match=said):
            TextPairs(**options)
