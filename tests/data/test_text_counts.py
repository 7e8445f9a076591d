"""What preparation counts of texts: how many are cut, and how many pieces the tokenizer does not know."""

import json
from pathlib import Path

from preparing import WORDS, bert

from bertjax.config.data_schema import BertPairs, Classify, JsonLines, Task
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
