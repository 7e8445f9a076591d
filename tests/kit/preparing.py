"""Small texts, tasks and a tokenizer for tests of preparing data, and limits that make many small jobs of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertjax.config.schema.data import BertPairs, SpanCorruption, SpanQa, Task, TextToText
from bertjax.config.schema.sources import JsonLines, SquadFiles
from bertjax.data.jobs import job_plan, tokenize
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.preprocess.denoising import concat_and_split
from bertjax.data.preprocess.span_qa import qa_blocks
from bertjax.data.sources import registry
from bertjax.data.store.reader import Store
from bertjax.data.tokenizers.load import AnyTokenizer, Tokenizer, build_wordpiece

WORDS = [a + b for a in ("ba", "ko", "mi", "tu", "ra", "se") for b in ("n", "lo", "di", "pe", "sh", "gu", "x")]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing", ".", "?"]
FILES = 5


class Numbers:
    """A stand-in for SentencePiece: each known word has an id of its own, from 3 on."""

    def __init__(self) -> None:
        self.vocab_size, self.extra_ids, self.eos_id, self.pad_id, self.sha256 = 1000, 100, 1, 0, "numbers"
        self.unk_id = 2

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[3 + WORDS.index(word) for word in text.split() if word in WORDS] for text in texts]

    def sentinel_id(self, number: int) -> int:
        return self.vocab_size - 1 - number


def bert() -> Tokenizer:
    return Tokenizer(build_wordpiece({piece: n for n, piece in enumerate(PIECES)}, lowercase=True), "test")


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[n] for n in rng.integers(len(WORDS), size=words)) + " ."


def questions(rng: np.random.Generator, paragraphs: int, say: Callable[[np.random.Generator, int], str]) -> str:
    """A SQuAD file with two questions a paragraph, of sentences say(rng, words); answers are single words."""
    found = []
    for n in range(paragraphs):
        context = " ".join(say(rng, 8) for _ in range(4))
        word = context.split()[5]
        answer = {"text": word, "answer_start": context.index(f" {word} ") + 1}
        qas = [{"id": f"q{n}-{m}", "question": say(rng, 4), "answers": [answer]} for m in range(2)]
        found.append({"context": context, "qas": qas})
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": found}]})


def write_texts(folder: Path, documents: int = 300) -> None:
    """FILES files of documents, the third without any text, and questions in SQuAD form."""
    rng = np.random.default_rng(0)
    texts = [
        "\n\n".join(sentence(rng, rng.integers(2, 14)) for _ in range(rng.integers(1, 9))) for _ in range(documents)
    ]
    for number in range(FILES):
        lines = ["", " "] if number == 2 else texts[number::FILES]
        (folder / f"part-{number}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (folder / "squad.json").write_text(questions(rng, 40, sentence))


def texts(where: str = ".") -> JsonLines:
    return JsonLines(files=[f"{where}/part-*.jsonl"])


TASKS = {
    "pairs": lambda: (BertPairs(sequence_length=32, dupe_factor=2), bert()),
    "pairs packed, static": lambda: (BertPairs(sequence_length=32, pack=True, masking="static"), bert()),
    "no nsp": lambda: (BertPairs(sequence_length=32, next_sentence=False), bert()),
    "chunks": lambda: (SpanCorruption(sequence_length=64), Numbers()),
    "questions": lambda: (SpanQa(sequence_length=64, doc_stride=16, max_query_length=12, pack=True), bert()),
    "text to text": lambda: (TextToText(prompt="squad", sequence_length=64, target_length=8), Numbers()),
}


def task_of(kind: str, where: str = ".", **options: Any) -> tuple[Task, AnyTokenizer]:
    preprocess, tokenizer = TASKS[kind]()
    asked = kind in ("questions", "text to text")
    source = SquadFiles(files=[f"{where}/squad.json"]) if asked else texts(where)
    return Task(source=source, preprocess=preprocess, **options), tokenizer


def prepared(
    kind: str, base: Path, cache: Any = "cache", where: str = ".", limit: int | None = None, **options: Any
) -> Store:
    task, tokenizer = task_of(kind, where, limit=limit)
    cache = base / cache if isinstance(cache, str) and "://" not in cache else cache
    return prepare(task, kind, tokenizer, base=base, cache=cache, **({"seed": 3, "workers": 1} | options))


def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards and parts, and a pool even for little work."""
    limits = {
        "MIN_SHARD_TOKENS": 400,
        "MAX_SHARD_TOKENS": 400,
        "MIN_POOL_TOKENS": 0,
        "EXAMPLES_PER_JOB": 16,
        "MIN_POOL_EXAMPLES": 0,
    }
    for name, value in limits.items():
        monkeypatch.setattr(job_plan, name, value)
    monkeypatch.setattr(concat_and_split, "CONCAT_DOCUMENTS", 16)
    monkeypatch.setattr(registry, "PART_BYTES", 1)
    monkeypatch.setattr(tokenize, "MIN_POOL_BYTES", 0)


def rows_and_counts(examples: Any, tokenizer: Any, options: SpanQa) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """The rows of questions, and what is counted of their texts."""
    blocks = qa_blocks((tokenizer, options), examples)
    rows = next(blocks)
    with pytest.raises(StopIteration) as end:
        next(blocks)
    return rows, end.value.value


def contents(store: Store) -> dict[str, bytes]:
    """The bytes of every file of a store."""
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}
