"""What preparation counts of texts: how many are cut, and how many pieces the tokenizer does not know."""

import json
from pathlib import Path
from typing import Any

from preparing import WORDS, Numbers, bert

from bertjax.config.schema.data import BertPairs, Classify, SpanQa, Task, TextToText
from bertjax.config.schema.sources import JsonLines, SquadFiles
from bertjax.data.jobs import text_counts
from bertjax.data.pipeline.prepare import prepare


def test_a_share_that_is_not_zero_is_not_called_zero():
    shares = [text_counts.share(part, 10_000) for part in (1, 4, 5, 14, 10_000)]
    assert shares == ["less than 0.1%", "less than 0.1%", "0.1%", "0.1%", "100.0%"]


def test_pairs_cut_and_pieces_unknown_are_counted(tmp_path: Path):
    """Rows of 8: [CLS] a [SEP] b [SEP] leaves 5 pieces for a pair; the second has 1 + 8, one of them unknown."""
    lines = [{"a": WORDS[0], "b": " ".join(WORDS[:4]), "label": 0}]
    lines.append({"a": WORDS[0], "b": " ".join(WORDS[:7]) + " ψ", "label": 1})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = Classify(sequence_length=8, text_a="a", text_b="b")
    task = Task(source=JsonLines(files=["pairs.jsonl"]), preprocess=options)
    for _ in ("made", "out of the cache"):
        said: list[str] = []
        store = prepare(task, "pairs", bert(), seed=0, base=tmp_path, cache=tmp_path, workers=1, report=said.append)
        expected = {"texts": 2, "cut": 1, "tokens": 14, "tokens_cut": 4, "unknown": 1}
        assert store.meta["text_counts"] == {"texts": expected}
        assert [line for line in said if " cut (" in line or "unknown" in line] == [
            "pairs: 1 of 2 texts cut (28.6% of their tokens lost); raise sequence_length (now 8) to keep them",
            "pairs: unknown pieces in the texts: 1 (7.1%); the tokenizer has none for their characters, take one that "
            "was trained on such text",
        ]


def test_unknown_pieces_of_running_text_are_counted(tmp_path: Path):
    texts = [" ".join(WORDS) + ". ψ ψ Ω.", " ".join(WORDS[::-1]) + "."]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = Task(source=JsonLines(files=["t.jsonl"]), preprocess=BertPairs(sequence_length=32, next_sentence=False))
    store = prepare(task, "text", bert(), seed=0, base=tmp_path, cache=tmp_path, workers=1)
    counts = store.meta["text_counts"]["texts"]
    assert (counts["texts"], counts["cut"], counts["unknown"]) == (2, 0, 3)
    assert text_counts.report_lines("text", store.meta["text_counts"], task.preprocess)[0].startswith(
        "text: unknown pieces"
    )


def test_questions_cut_and_unknown_pieces_of_questions_and_contexts_are_counted(tmp_path: Path):
    """Two questions on one context: of 4 pieces, and of 7 with one unknown; the context's 11 hold two of them. A third
    one's answer is not in the text."""
    context = " ".join(WORDS[:8]) + " ψ Ω ."
    answer = [{"text": WORDS[1], "answer_start": context.index(WORDS[1])}]
    asked = " ".join(WORDS[:3]) + "?", " ".join(WORDS[:5]) + " ψ?"
    qas = [{"id": str(n), "question": question, "answers": answer} for n, question in enumerate(asked)]
    lost = [{"text": "nowhere", "answer_start": 0}]
    qas.append({"id": "lost", "question": WORDS[0], "answers": lost})
    data = [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]
    (tmp_path / "q.json").write_text(json.dumps({"version": "1.1", "data": data}))
    options = SpanQa(sequence_length=32, max_query_length=5)
    task = Task(source=SquadFiles(files=["q.json"]), preprocess=options)
    said: list[str] = []
    store = prepare(task, "qa", bert(), seed=0, base=tmp_path, cache=tmp_path, workers=1, report=said.append)
    assert store.meta["text_counts"] == {
        "questions": {"texts": 3, "cut": 1, "tokens": 12, "tokens_cut": 2, "unknown": 1, "left_out": 1},
        "contexts": {"texts": 1, "cut": 0, "tokens": 11, "tokens_cut": 0, "unknown": 2},
    }
    assert [line.split(";")[0] for line in said if any(word in line for word in (" cut (", "unknown", "left out"))] == [
        "qa: 1 of 3 questions left out: their answer's text is not where answer_start says",
        "qa: 1 of 3 questions cut (16.7% of their tokens lost)",
        "qa: unknown pieces in the questions: 1 (8.3%)",
        "qa: unknown pieces in the contexts: 2 (18.2%)",
    ]


def test_records_without_a_right_referent_are_counted(tmp_path: Path):
    """T5 trains on the right referents of WNLI alone."""
    records = [
        {"sentence1": "The pin made the carrot round because it had a hole.", "sentence2": f"{said} had a hole."}
        for said in ("The carrot", "The pin", "Nobody")
    ]
    for record, label in zip(records, (1, 0, 1), strict=True):
        record["label"] = label
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = TextToText(prompt="glue_wnli", sequence_length=32, target_length=8)
    task = Task(source=JsonLines(files=["w.jsonl"]), preprocess=options)
    for _ in ("made", "out of the cache"):
        said: list[str] = []
        numbers: Any = Numbers()
        store = prepare(task, "wnli", numbers, seed=0, base=tmp_path, cache=tmp_path, workers=1, report=said.append)
        left_out = 3 - store.meta["examples"]
        assert left_out in (1, 2) and store.meta["text_counts"]["records"] == {"texts": 3, "left_out": left_out}
        assert sum(line.startswith(f"wnli: {left_out} of 3 records left out: only right") for line in said) == 1
