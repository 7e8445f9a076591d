"""The parsers of input as functions of a folder, with valid input to change.

A target writes nothing and reads what `FILES` holds, one file of which was changed by chance.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from refusals import CONFIG, SQUAD, TEXT, VOCABULARY

RECORDS = [{"text": "Two cats sleep. One dog runs.", "label": 1, "tokens": ["a", "b"]}, {"text": "b", "n": 0.5}]
METRICS = [
    {"kind": "event", "stage": "s", "step": 0, "event": "start", "time": "2026-01-01T00:00:00"},
    {"kind": "train", "stage": "s", "step": 1, "loss": 2.5, "mlm_loss": 2.0, "mlm_accuracy": 0.5, "learning_rate": 1e-4,
     "grad_norm": 2.5, "tokens_per_second": 61900, "step_seconds": 0.125, "data_wait": 0.031, "mfu": 0.503,
     "memory_bytes": 3000, "elapsed": 3.7, "trainable_parameters": 1000, "episode": 1},
    {"kind": "train", "stage": "s", "step": 2, "loss": 2.25, "elapsed": 4.0, "episode": 2},
    {"kind": "eval", "stage": "s", "name": "mlm", "step": 2, "scores": {"loss": 0.5, "mlm_accuracy": 0.25}},
    {"kind": "event", "stage": "s", "step": 1, "event": "episode", "episode": 1, "trainable_parameters": 1000},
    {"kind": "event", "stage": "s", "step": 2, "event": "stage_end"},
]  # fmt: skip
GOODPUT = [
    {"life": 1, "started": 1.0, "time": 9.0, "stage": 0, "step": 2, "resumed": 0,
     "seconds": dict.fromkeys(("startup", "prepare", "compile", "step", "evaluation", "save"), 1.0)},
]  # fmt: skip
EVALUATION = {"stage": "s", "name": "mlm", "step": 2, "scores": {"loss": 0.5}, "samples": [{"text": "a", "guess": "b"}]}
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 4, "content": "[MASK]", "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True}],
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                   "lowercase": True},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": " "}, "behavior": "Isolated", "invert": False},
    "post_processor": {"type": "TemplateProcessing",
                       "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                                  {"Sequence": {"id": "A", "type_id": 0}}],
                       "pair": [], "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100, "vocab": {piece: number for number, piece in enumerate(VOCABULARY)}},
}  # fmt: skip
UNIGRAM = {
    "version": "1.0", "truncation": None, "padding": None, "decoder": None, "post_processor": None,
    "normalizer": None, "added_tokens": [
        {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for number, content in enumerate(("<pad>", "</s>", "<unk>"))],
    "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
    "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": False,
              "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581a", -1.0], ["b", -2.0]]},
}  # fmt: skip
META = {
    "config": {"model": {"family": "bert", "vocab_size": 57, "hidden_size": 16, "num_attention_heads": 2,
                         "num_hidden_layers": 1, "intermediate_size": 32},
               "stages": [{"name": "s", "data": {"source": [{"kind": "text", "files": ["a.txt"]}]}, "steps": 2}]},
    "stage": 0, "stage_name": "s", "step": 2, "heads": ["mlm"], "num_labels": 0, "tokenizer_sha256": "0",
    "tokenizer_json": json.dumps(TOKENIZER), "environment": {}, "labels": None, "steps": 2, "carried": [], "base": None,
}  # fmt: skip


def lines_of(records: Iterable[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"] * 20, "label": list(range(40))}), out)
    return out.getvalue()


def spiece() -> bytes:
    """A small SentencePiece model, field by field of its protocol buffer: pieces and a trainer section."""
    pieces = [("<pad>", 3), ("</s>", 3), ("<unk>", 2), ("\u2581a", 1), ("b", 1)]
    made = b""
    for text, kind in pieces:
        body = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15\x00\x00\x80\xbf" + b"\x18" + bytes([kind])
        made += b"\x0a" + bytes([len(body)]) + body
    return made


# ---- what reads -----------------------------------------------------------------------------------------------------


def load_config(folder: Path) -> None:
    from bertjax.config.loading.load import dump, fingerprint, load

    config = load(folder / "c.yaml")
    dump(config), fingerprint(config)
    for stage in config.stages:
        config.stage_tasks(stage)


def load_overrides(folder: Path) -> None:
    from bertjax.config.loading.load import load

    words = (folder / "overrides.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    load(folder / "fixed.yaml", [word.replace("\0", "") for word in words])


def read_records(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from bertjax.data.sources.record_files import read_by_suffix

        found = read_by_suffix(folder / name)
        assert found is not None
        for where, record in found:
            assert isinstance(where, str) and isinstance(record, dict)

    return read


def read_squad(folder: Path) -> None:
    from bertjax.config.schema.sources import SquadFiles
    from bertjax.data.sources import squad

    for example in squad.read_squad(SquadFiles(files=["squad.json"]), folder):
        assert example.context.encode() is not None
    list(squad.read_unanswered(folder / "squad.json"))


def read_conll(folder: Path) -> None:
    from bertjax.config.schema.sources import Conll
    from bertjax.data.sources.records import read_located

    list(read_located(Conll(files=["words.conll"]), folder))


def read_texts(folder: Path) -> None:
    from bertjax.config.schema.sources import TextFiles
    from bertjax.data.sources.text import read_documents

    for layout in ("documents", "paragraphs", "sentences"):
        for document in read_documents(TextFiles(files=["text.txt"], layout=layout), folder):
            assert all(document)


def read_tokenizer(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from bertjax.data.tokenizers.load import from_file

        tokenizer = from_file(folder / name)
        ids = tokenizer.encode_batch(["Two cats sleep.", "", "\u00e9 \u4e2d a" * 20])
        tokenizer.decode(ids[0])

    return read


def read_metadata(folder: Path) -> None:
    from bertjax.config.loading.load import build_saved
    from bertjax.config.loading.step_meta import read_meta
    from bertjax.data.tokenizers.load import from_json

    meta = read_meta(folder / "step")
    config = build_saved(meta["config"], where=str(folder / "step"))
    config.stages[meta.get("stage", 0)]
    from_json(meta.get("tokenizer_json", "{}"), str(folder / "step"))


def read_report(folder: Path) -> None:
    from bertjax.report.page import write_report

    write_report(folder / "run", folder / "report.html")


def score(folder: Path) -> None:
    from bertjax.evaluation.metrics.squad import score_command

    score_command(folder / "gold.json", folder / "predictions.json", folder / "odds.json")


def read_predictions(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from bertjax.tools.compare_predictions.read import read_answers

        read_answers(folder / name)

    return read


def read_questions(folder: Path) -> None:
    from bertjax.tools.answer_files import read_questions as read

    list(read(folder / "questions.json", True, True))


OVERRIDES = "run.seed=3\nstages.s.optimizer.learning_rate=1e-4\nmesh.rules.batch=[data]\ntasks.text.source.0.files=[a]"
QUESTIONS = [{"id": "a", "question": "who", "context": "Two cats"}, {"id": "b", "question": "what", "context": "a dog"}]
_RUN = {
    "run/config.yaml": CONFIG.encode(), "run/metrics.jsonl": lines_of(METRICS), "run/goodput.jsonl": lines_of(GOODPUT),
    "run/environment.json": json.dumps({"started": "2026-01-01", "devices": {"count": 1}}).encode(),
    "run/evaluations/00-s/mlm.json": json.dumps(EVALUATION).encode(),
}  # fmt: skip
_SCORES = {"gold.json": json.dumps(SQUAD).encode(), "predictions.json": b'{"q1": "cats"}', "odds.json": b'{"q1": 0.5}'}
# name: (what reads, the files, those that are changed)
Target = tuple[Callable[[Path], None], dict[str, bytes]]
TARGETS: dict[str, Target] = {
    "config": (load_config, {"c.yaml": CONFIG.encode()}),
    "overrides": (load_overrides, {"overrides.txt": OVERRIDES.encode(), "fixed.yaml": CONFIG.encode()}),
    "jsonl": (read_records("a.jsonl"), {"a.jsonl": lines_of(RECORDS)}),
    "json": (read_records("a.json"), {"a.json": json.dumps(RECORDS).encode()}),
    "tsv": (read_records("a.tsv"), {"a.tsv": b"text\tlabel\na\t1\nb\t2\n"}),
    "csv": (read_records("a.csv"), {"a.csv": b'text,label\n"a, b",1\n"c ""d""",2\n'}),
    "parquet": (read_records("a.parquet"), {"a.parquet": parquet()}),
    "squad": (read_squad, {"squad.json": json.dumps(SQUAD).encode()}),
    "conll": (read_conll, {"words.conll": b"EU B-ORG\nrejects O\n\nPeter B-PER\n"}),
    "text": (read_texts, {"text.txt": TEXT.encode()}),
    "vocab.txt": (read_tokenizer("vocab.txt"), {"vocab.txt": "\n".join(VOCABULARY).encode()}),
    "tokenizer.json": (read_tokenizer("tokenizer.json"), {"tokenizer.json": json.dumps(TOKENIZER).encode()}),
    "unigram.json": (read_tokenizer("tokenizer.json"), {"tokenizer.json": json.dumps(UNIGRAM).encode()}),
    "spiece.model": (read_tokenizer("spiece.model"), {"spiece.model": spiece()}),
    "metadata": (read_metadata, {"step/meta/metadata": json.dumps({"meta": META, "digest_sha256": "0"}).encode()}),
    "report": (read_report, _RUN),
    "scores": (score, _SCORES),
    "predictions.json": (read_predictions("p.json"), {"p.json": b'{"q1": "cats", "q2": ""}'}),
    "predictions.jsonl": (read_predictions("p.jsonl"), {"p.jsonl": b'{"id": "a", "answer": "x"}\n'}),
    "predictions.csv": (read_predictions("p.csv"), {"p.csv": b"id,answer\na,x\nb,y\n"}),
    "questions": (read_questions, {"questions.json": json.dumps(QUESTIONS).encode()}),
}
