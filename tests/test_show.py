"""`bertjax show` and `bertjax tokenize`: decoded rows say what the arrays of a batch hold."""

import json
from pathlib import Path

import numpy as np
import preparing
import pytest
import tokenizers
import yaml
from report_page import Page
from t5_project import write_project

from bertjax.cli.main import main
from bertjax.data.tokenizers import load
from bertjax.report.pages.rows import rows_page
from bertjax.tools.show.rows import Piece, decode_row, text_pieces
from bertjax.tools.show.text import pieces_text

TEXT_ROLES = ("text", "answer", "masked", "given")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with text, questions, labelled texts, sentences with tags and bert.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    rng = np.random.default_rng(0)
    documents = "\n\n".join("\n".join(preparing.sentence(rng, 6) for _ in range(6)) for _ in range(20))
    (tmp_path / "text.txt").write_text(documents)
    (tmp_path / "questions.json").write_text(preparing.questions(rng, 12, preparing.sentence))
    labelled = [json.dumps({"text": preparing.sentence(rng, 4), "label": ("bad", "good")[n % 2]}) for n in range(16)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(labelled))
    words = preparing.WORDS
    tagged = "\n\n".join(f"{words[n]} O\n{words[n + 1]} B-X\n{words[n + 2]} I-X" for n in range(12))
    (tmp_path / "tagged.conll").write_text(tagged + "\n")
    (tmp_path / "vocab.txt").write_text("\n".join(preparing.PIECES))
    stage = {"steps": 3, "batch_size": 4}
    text = {"kind": "text", "files": ["text.txt"], "layout": "sentences"}
    pairs = {"kind": "bert_pairs", "sequence_length": 48, "max_predictions_per_seq": 8, "pack": True}
    qa = {"kind": "span_qa", "sequence_length": 64, "doc_stride": 24, "max_query_length": 16}
    config = {
        "model": {"family": "bert", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64},
        "tokenizer": {"path": "vocab.txt"},
        "run": {"name": "small", "prepare_workers": 1},
        "stages": [
            {"name": "pretrain", "data": {"source": text, "preprocess": pairs}, "objective": {"kind": "mlm_nsp"},
             **stage},
            {"name": "qa", "data": {"source": {"kind": "squad", "files": ["questions.json"]}, "preprocess": qa},
             "objective": {"kind": "span_qa"}, **stage},
            {"name": "classify", "data": {"source": {"kind": "jsonl", "files": ["labelled.jsonl"]}, "preprocess": {
                "kind": "classify", "sequence_length": 24, "text_a": "text", "label": "label"}},
             "objective": {"kind": "classification", "num_labels": 2}, **stage},
            {"name": "tag", "data": {"source": {"kind": "conll", "files": ["tagged.conll"], "fields": ["tokens",
                "ner_tags"]}, "preprocess": {"kind": "token_labels", "sequence_length": 24}},
             "objective": {"kind": "token_classification", "num_labels": 3}, **stage},
        ],
    }  # fmt: skip
    (tmp_path / "bert.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *line: str, code: int = 0) -> str:
    assert main(list(line)) == code
    out, err = capsys.readouterr()
    return err if code else out


def shown(capsys: pytest.CaptureFixture[str], *line: str) -> list[dict]:
    return json.loads(said(capsys, "show", *line, "--json"))


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def words_of(pieces: list[dict]) -> str:
    """The words of a sequence without special tokens, as the texts were written."""
    return " ".join(p["text"] for p in pieces if p.get("role", "text") in TEXT_ROLES)


def test_masked_tokens_have_their_originals(project, capsys):
    texts = " ".join((project / "text.txt").read_text().split())
    rows = shown(capsys, "bert.yaml", "-n", "8")
    assert len(rows) == 8 and {row["step"] for row in rows} == {0, 1}
    examples = [example for row in rows for example in row["examples"]]
    assert len(examples) > len(rows)  # packed
    masked = [p for example in examples for p in example["inputs"] if p.get("role") == "masked"]
    assert len(masked) > 20 and sum(p["shown"] == "[MASK]" for p in masked) > len(masked) / 2
    for example in examples:
        assert example["facts"]["second sentence"] in ("next", "random")
        at = [i for i, piece in enumerate(example["inputs"]) if piece["text"] == "[SEP]"]
        first, second = example["inputs"][1 : at[0]], example["inputs"][at[0] + 1 : at[1]]
        assert words_of(first) in texts and words_of(second) in texts  # with the masked ones put back


def test_answers_labels_and_tags_are_those_of_the_files(project, capsys):
    paragraphs = json.loads((project / "questions.json").read_text())["data"][0]["paragraphs"]
    answers = {qa["question"]: qa["answers"][0]["text"] for one in paragraphs for qa in one["qas"]}
    for row in shown(capsys, "bert.yaml", "--stage", "qa", "-n", "12"):
        (example,) = row["examples"]
        ends = [i for i, piece in enumerate(example["inputs"]) if piece["text"] == "[SEP]"]
        answer = [piece["text"] for piece in example["inputs"] if piece.get("role") == "answer"]
        if "facts" in example:
            assert example["facts"] == {"answer": "none in this window"} and not answer
        else:
            assert " ".join(answer) == answers[words_of(example["inputs"][1 : ends[0]])]
    labels = {json.loads(line)["text"]: json.loads(line)["label"] for line in read_lines(project / "labelled.jsonl")}
    for row in shown(capsys, "bert.yaml", "--stage", "classify"):
        (example,) = row["examples"]
        assert example["facts"] == {"label": labels[words_of(example["inputs"])]}
    for row in shown(capsys, "bert.yaml", "--stage", "tag"):
        assert [piece.get("label") for piece in row["examples"][0]["inputs"]] == [None, "O", "B-X", "I-X", None]


def test_rows_of_a_task_and_of_a_step(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_project(tmp_path)
    rows = shown(capsys, config.name, "--stage", "tune", "--step", "2", "-n", "2")
    assert [(row["task"], row["step"], row["number"]) for row in rows] == [("places", 2, 0), ("places", 2, 1)]
    pairs = {(p["animal"], p["place"]) for p in map(json.loads, read_lines(tmp_path / "places.jsonl"))}
    for row in rows:
        asked, said_there = (words_of(row["examples"][0][name]) for name in ("inputs", "targets"))
        assert any(animal in asked.replace(" ", "") and place == said_there.replace(" ", "") for animal, place in pairs)
    text = said(capsys, "show", config.name, "-n", "1")
    assert text.startswith("marks: <extra_id_N>") and "inputs: " in text and "targets: <extra_id_0>" in text


def byte_level(tmp_path: Path):
    """A byte-level BPE of single bytes, with RoBERTa's special tokens."""
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = special | {letter: 5 + n for n, letter in enumerate(letters)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    return load.from_pretrained(tmp_path)


def test_characters_of_several_byte_pieces_are_shown_as_characters(tmp_path):
    tokenizer = byte_level(tmp_path)
    text = "é 日 שלום"
    (ids,) = tokenizer.encode_batch([text])
    assert "".join(piece.text for piece in text_pieces(ids, tokenizer)) == text.replace(" ", "")
    assert pieces_text(text_pieces(ids, tokenizer), colors=False) == text
    assert [piece.text for piece in text_pieces(ids[:1], tokenizer)] == ["<0xC3>"]  # of é without its second byte
    fields = {
        "input_ids": np.array([ids[0], tokenizer.mask_id]), "segment_ids": np.ones(2, int),
        "masked_positions": np.array([1]), "masked_ids": np.array([ids[1]]), "masked_weights": np.ones(1),
    }  # fmt: skip
    row = decode_row(fields, tokenizer, None, task="t", step=0, number=0)
    assert pieces_text(row.examples[0].sequences["inputs"], colors=False) == "<0xC3>[<0xA9>|<mask>]"


def test_a_label_follows_all_pieces_of_its_word():
    pieces = [Piece("George", label="B"), Piece("town", joined=True), Piece("", label="O"), Piece("x"), Piece("y")]
    assert pieces_text(pieces, colors=False) == "Georgetown/B x/O y"
    listed = [{"text": p.text, "joined": p.joined, "label": p.label} for p in pieces]
    row = {"task": "t", "step": 0, "number": 0, "used": {"inputs": (5, 5)}, "examples": [{"inputs": listed}]}
    assert 'Georgetown<sub class="muted">B</sub>  x<sub class="muted">O</sub> y' in rows_page("c", "s", [row])


def test_a_run_is_named_with_its_configuration(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("run: {name: one}\n")
    error = said(capsys, "show", str(tmp_path), code=2)
    assert error == f"{tmp_path}: is a run; `show` reads a configuration: bertjax show {tmp_path}/config.yaml\n"


def test_text_and_page(project, capsys):
    text = said(capsys, "show", "bert.yaml", "--stage", "qa", "-n", "3")
    assert "«" in text and "\x1b" not in text and max(map(len, text.splitlines())) <= 120
    assert "|[MASK]]" in said(capsys, "show", "bert.yaml", "-n", "3")
    assert "/B-X" in said(capsys, "show", "bert.yaml", "--stage", "tag", "-n", "1")
    assert said(capsys, "show", "bert.yaml", "--stage", "tag", "--output", "rows.html") == "wrote rows.html\n"
    page = Page((project / "rows.html").read_text())
    assert "Rows of stage tag" in page.text and "B-X" in page.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stage tune", "there is no stage 'tune'; there are: pretrain, qa, classify, tag"),
        ("--task other", "stage 'pretrain' has no task 'other'"),
        ("--step 3", "has 3 steps, 0 to 2 (got 3)"),
        ("-n 0", "must be an integer above 0"),
        ("--output rows.html --json", "leave out --json"),
        ("--output missing/rows.html", "no such file or folder"),
        ("--output bert.yaml", "is read by this command and would be overwritten"),
    ],
)
def test_refusals(project, capsys, options, message):
    error = said(capsys, "show", "bert.yaml", *options.split(), code=2)
    assert message in error and not list(project.glob("*.html"))


def test_an_answer_and_a_masked_piece_keep_their_words():
    pieces = [Piece("see"), Piece("bark", role="answer"), Piece("ing", True, "answer"), Piece("fox", role="masked",
              shown="[MASK]"), Piece("es", True, "masked", "es"), Piece("!", True)]  # fmt: skip
    assert pieces_text(pieces, colors=False) == "see «barking» [fox|[MASK]][es|es]!"
    assert pieces_text(pieces[:2], colors=True) == "see \x1b[1;32m«bark»\x1b[0m"


def test_ids_past_the_vocabulary_are_shown_by_number():
    ids = np.array([2, 5, 4000, 3, 0], np.int32)
    row = decode_row(
        {"input_ids": ids, "segment_ids": np.array([1, 1, 1, 1, 0])}, preparing.bert(), None, task="t", step=0, number=0
    )
    assert [piece.text for piece in row.examples[0].sequences["inputs"]] == ["[CLS]", "ban", "<4000>", "[SEP]"]
    assert row.used == {"inputs": (4, 5)}


def test_tokenize(project, capsys):
    assert said(capsys, "tokenize", "vocab.txt", "Banlo bans .") == (
        "Banlo bans .\n  4 pieces, 1 unknown: [UNK](1) ban(5) ##s(47) .(49)\n  decoded: bans.\n"
    )
    (project / "texts.txt").write_text("kon\nmin tun\n")
    found = json.loads(said(capsys, "tokenize", "vocab.txt", "--file", "texts.txt", "--json"))
    assert [one["pieces"] for one in found] == [["kon"], ["min", "tun"]] and found[1]["decoded"] == "min tun"
    assert "no such" in said(capsys, "tokenize", "missing.txt", "a", code=2)
    assert "tokenizer.json" in said(capsys, "tokenize", "/", "a", code=2)
    assert "TEXT: '\\udcff a' is not UTF-8" in said(capsys, "tokenize", "vocab.txt", "\udcff a", code=2)
