"""What preparation counts of texts: how many are cut, and how many pieces the tokenizer does not know."""

import json
from pathlib import Path

from preparing import WORDS, bert

from bertjax.config.data_schema import BertPairs, Classify, JsonLines, SpanQa, SquadFiles, Task
from bertjax.data import text_counts
from bertjax.data.prepare import prepare


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
    assert text_counts.lines("text", store.meta["text_counts"], task.preprocess)[0].startswith("text: unknown pieces")


def test_questions_cut_and_unknown_pieces_of_questions_and_contexts_are_counted(tmp_path: Path):
    """Two questions on one context: of 4 pieces, and of 7 with one unknown; the context's 11 hold two of them."""
    context = " ".join(WORDS[:8]) + " ψ Ω ."
    answer = [{"text": WORDS[1], "answer_start": context.index(WORDS[1])}]
    asked = " ".join(WORDS[:3]) + "?", " ".join(WORDS[:5]) + " ψ?"
    qas = [{"id": str(n), "question": question, "answers": answer} for n, question in enumerate(asked)]
    data = [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]
    (tmp_path / "q.json").write_text(json.dumps({"version": "1.1", "data": data}))
    options = SpanQa(sequence_length=32, max_query_length=5)
    task = Task(source=SquadFiles(files=["q.json"]), preprocess=options)
    said: list[str] = []
    store = prepare(task, "qa", bert(), seed=0, base=tmp_path, cache=tmp_path, workers=1, report=said.append)
    assert store.meta["text_counts"] == {
        "questions": {"texts": 2, "cut": 1, "tokens": 11, "tokens_cut": 2, "unknown": 1},
        "contexts": {"texts": 1, "cut": 0, "tokens": 11, "tokens_cut": 0, "unknown": 2},
    }
    assert [line.split(";")[0] for line in said if " cut (" in line or "unknown" in line] == [
        "qa: 1 of 2 questions cut (18.2% of their tokens lost)",
        "qa: unknown pieces in the questions: 1 (9.1%)",
        "qa: unknown pieces in the contexts: 2 (18.2%)",
    ]
