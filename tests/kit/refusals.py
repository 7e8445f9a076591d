"""A small project, and a check that a command refuses malformed input: one line, the exit code, nothing left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bertjax.cli.main import main

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = SPECIALS + list("abcdefghijklmnopqrstuvwxyz") + [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
MODEL = "{vocab_size: 57, hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 32}"
CONFIG = f"""\
model: {MODEL}
tokenizer: {{path: vocab.txt}}
run: {{compilation_cache_dir: null, tensorboard: false, compute_dtype: float32}}
tasks:
  text: {{source: {{kind: text, files: [text.txt]}}, preprocess: {{sequence_length: 32}}}}
  lines: {{source: {{kind: jsonl, files: [data.jsonl]}}, preprocess: {{sequence_length: 32}}}}
  table: {{source: {{kind: parquet, files: [data.parquet]}}, preprocess: {{sequence_length: 32}}}}
  qa: {{source: {{kind: squad, files: [squad.json]}}, preprocess: {{kind: span_qa, sequence_length: 64}}}}
  labels: {{source: {{kind: jsonl, files: [labels.jsonl]}}, preprocess: {{kind: classify, sequence_length: 32}}}}
stages:
  - {{name: s, data: text, steps: 2, batch_size: 8}}
"""
TEXT = "One dog runs. Two cats sleep. Three birds sing.\n\nA tree is green. The sky is blue. Water is wet.\n"


def answer(start: int) -> dict[str, object]:
    return {"text": "cats", "answer_start": start}


QUESTION = {"id": "q1", "question": "who", "answers": [answer(4)]}
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "Two cats sleep.", "qas": [QUESTION]}]}]}


def squad(**changes: object) -> str:
    question = {key: value for key, value in (QUESTION | changes).items() if value is not None}
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Two cats sleep.", "qas": [question]}]}]})


@pytest.fixture
def small_project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def refused(small_project, capsys) -> Callable[..., str]:
    """Runs a command that must be refused, and checks how."""

    def run(*argv: str, mentions: str | tuple[str, ...], code: int = 2, keeps: str = "-") -> str:
        before = sorted(small_project.rglob("*"))
        capsys.readouterr()
        returned = main(list(argv))
        out, err = capsys.readouterr()
        assert returned == code, f"{out}\n{err}"
        assert err.endswith("\n") and err.count("\n") == 1, err
        assert len(err) <= 301 + len(str(small_project)) and "Traceback" not in err
        for word in (mentions,) if isinstance(mentions, str) else mentions:
            assert word in err, f"{word!r} is not in: {err}"
        left = [
            path for path in small_project.rglob("*") if path not in before and path.name not in ("runs", "prepared")
        ]
        left = [path for path in left if keeps not in path.parts]
        assert not left, f"left behind: {left}"
        return err

    return run


def put(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
