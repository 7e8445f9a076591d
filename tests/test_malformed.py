"""Malformed input of every kind: one line on stderr that names the file or the key, exit code 2, nothing left."""

import gzip
import json
import pickle
import shutil
import struct
from functools import partial
from pathlib import Path

import pytest
from refusals import CONFIG, SQUAD, TEXT, VOCABULARY, answer, put, squad

from bertjax.cli.main import main

# ---- configuration --------------------------------------------------------------------------------------------------

BOMB = "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)])
CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "c.yaml: the file is empty"),
    "binary": (b"\x7fELF\x02\x01\x01\x00\x00", "c.yaml:1: the character"),
    "not UTF-8": (b"run: {name: \xe9t\xe9}\n", "c.yaml:1: not UTF-8"),
    "too large": ("# " + "x" * 1_100_000, "c.yaml: larger than 1,000,000 bytes"),
    "tag": (CONFIG + "x: !!python/object/apply:os.system ['touch canary']\n", "the tag"),
    "alias bomb": (BOMB, "aliases expand"),
    "deep": ("a: " + "{a: " * 3000, "levels deep"),
    "not YAML": (CONFIG + "}\n", "c.yaml:12: not valid YAML"),
    "a list": ("- 1\n", "expected sections"),
    "duplicate key": (CONFIG + "stages: []\n", "stages: duplicate key"),
    "unknown key": (CONFIG.replace("batch_size", "batchsize"), "unknown key (got 8); did you mean 'batch_size'?"),
    "wrong type": (CONFIG.replace("steps: 2", "steps: two"), "c.yaml:11: stages.s.steps: must be an integer"),
    "list for a number": (CONFIG.replace("steps: 2", "steps: [2]"), "stages.s.steps: must be an integer (got [2])"),
    "boolean for a number": (CONFIG.replace("steps: 2", "steps: true"), "stages.s.steps: must be an integer (got"),
    "no stages": (CONFIG[: CONFIG.index("stages:")], "stages: required key is missing"),
    "task not there": (CONFIG.replace("data: text", "data: txet"), "uses task 'txet'"),
    "extends itself": ("extends: c.yaml\n", "leads back to itself"),
    "extends nothing": ("extends: d.yaml\n", "extends: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_config_files(refused, case):
    content, mentions = CONFIGS[case]
    put("c.yaml", content)
    refused("train", "c.yaml", mentions=mentions)


@pytest.mark.parametrize(
    ("override", "mentions"),
    [
        ("stages.s.optimizer.learning_rate=-1e-4", "stages.s.optimizer.learning_rate: must be greater than 0"),
        ("stages.s.optimizer.learning_rate=.nan", "stages.s.optimizer.learning_rate: must be"),
        ("stages.s.steps=0", "stages.s.steps: must be greater than 0 (got 0)"),
        ("stages.s.grad_accum=3", "grad_accum (3) must divide batch_size (8)"),
        ("model.num_attention_heads=3", "num_attention_heads (3) must divide hidden_size (16)"),
        ("model.max_position_embeddings=16", "sequence_length (32) is more than"),
        ("model.hidden_sise=3", "did you mean 'hidden_size'?"),
        ("run.name=../x", "command line: run.name: must be"),
        ("run.name=/etc/x", "command line: run.name: must be"),
        ('run.name="a\\0b"', "command line: run.name: "),
        ('run.name="a\\nb"', "command line: run.name: "),
        ('run.root="a\\0b"', "command line: run.root: "),
        ("run.name=" + "x" * 5000, "command line: run.name: must be"),
        ("z" * 5000 + "=1", "unknown key"),
        ("mesh.data=0", "command line: mesh: axis sizes"),
        ("stages.x.steps=3", "must be one of s or its index"),
        ("run.seed=[", "command line: run.seed: not valid YAML"),
        ("model.config_from=vocab.txt", "model.config_from: vocab.txt: no such folder"),
    ],
)
def test_overrides(refused, override, mentions):
    assert refused("train", "c.yaml", override, mentions=mentions)[:-1].isprintable()


# ---- data and tokenizer ---------------------------------------------------------------------------------------------

TWO_TYPES = '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n'
LINES = '{"text": "Two cats sleep. One dog runs."}\n'
DATA: dict[str, tuple[str, dict[str, str | bytes | None], str | tuple[str, ...]]] = {
    "missing": ("text", {"text.txt": None}, "text.txt"),
    "empty": ("text", {"text.txt": ""}, "text.txt"),
    "blank": ("text", {"text.txt": "\n \n\n"}, "text"),
    "not UTF-8": ("text", {"text.txt": b"One dog.\n\xff\xfe\n"}, ("text.txt", "2")),
    "bad line": ("lines", {"data.jsonl": LINES + "{\n"}, ("data.jsonl", "2")),
    "not objects": ("lines", {"data.jsonl": LINES + "[1]\n"}, ("data.jsonl", "2")),
    "no such field": ("lines", {"data.jsonl": '{"txt": "a"}\n'}, ("data.jsonl", "text")),
    "field of another type": ("lines", {"data.jsonl": '{"text": 3}\n'}, ("data.jsonl", "text")),
    "not parquet": ("table", {"data.parquet": "PAR1 but not really PAR1"}, "data.parquet"),
    "not JSON": ("qa", {"squad.json": "{"}, "squad.json"),
    "no data": ("qa", {"squad.json": "{}"}, ("squad.json", "data")),
    "no questions": ("qa", {"squad.json": '{"data": []}'}, "q"),
    "no answers key": ("qa", {"squad.json": squad(answers=None)}, ("squad.json", "answers")),
    "answer out of range": ("qa", {"squad.json": squad(answers=[answer(400)])}, ("squad.json", "q1")),
    "answer before the start": ("qa", {"squad.json": squad(answers=[answer(-4)])}, "squad.json"),
    "answer of another type": ("qa", {"squad.json": squad(answers="cats")}, "squad.json"),
    "one answer, two places": ("qa", {"squad.json": squad(answers={"text": "Tw", "answer_start": [0, 1]})},
                               ("squad.json", "q1", "make both lists")),
    "half a character in a title": ("qa", {"squad.json": json.dumps(SQUAD | {"data": [SQUAD["data"][0] |
                                    {"title": "\ud83d"}]})}, ("squad.json", "q1", "'title' holds a lone surrogate")),
    "half a character in a key": ("lines", {"data.jsonl": LINES + '{"text": "a", "\\ud83d": 1}\n'},
                                  ("data.jsonl: line 2", "lone surrogate")),
    "half a character in a label": ("labels", {"labels.jsonl": '{"text": "a", "label": "\\ud83d"}\n'},
                                    ("labels.jsonl: line 1", "'label' holds a lone surrogate")),
    "a name with line ends": ("lines", {"data.jsonl": '{"te\\nxt": "a"}\n'}, ("data.jsonl: line 1", "te\\nxt")),
    "no label": ("labels", {"labels.jsonl": '{"text": "a"}\n'}, ("tasks.labels.source.0: ", "line 1", "'label'")),
    "labels of two types": ("labels", {"labels.jsonl": TWO_TYPES}, "label"),
    "no vocabulary": ("text", {"vocab.txt": None}, "vocab.txt"),
    "empty vocabulary": ("text", {"vocab.txt": ""}, "vocab.txt"),
    "no [MASK]": ("text", {"vocab.txt": "\n".join(VOCABULARY).replace("[MASK]", "mask")}, ("vocab.txt", "[MASK]")),
    "too many pieces": ("text", {"vocab.txt": "\n".join([*VOCABULARY, "zz"])}, "vocab_size"),
    "vocabulary not UTF-8": ("text", {"vocab.txt": b"[PAD]\n\xff\n"}, "vocab.txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data_and_vocabularies(refused, case):
    task, files, mentions = DATA[case]
    for name, content in files.items():
        Path(name).unlink(missing_ok=True)
        if content is not None:
            put(name, content)
    refused("prepare", "c.yaml", f"stages.s.data={task}", mentions=mentions)


def test_files_and_globs(refused):
    put("cut.txt.gz", gzip.compress(TEXT.encode() * 50)[:60])
    refused("prepare", "c.yaml", "tasks.text.source.files=[cut.txt.gz]", mentions="cut.txt.gz")
    refused("prepare", "c.yaml", "tasks.text.source.files=['*.md']", mentions="*.md")
    Path("nothing").mkdir()
    refused("prepare", "c.yaml", "tasks.text.source.files=[nothing]", mentions="nothing")
    data = "stages.s.data"
    refused(
        "prepare",
        "c.yaml",
        f"{data}={{mixture: [qa]}}",
        "tasks.qa.source.files=[none.json]",
        mentions="none.json",
    )


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        ("{", "tokenizer.json"),
        ("[]", "tokenizer.json"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "WordPiece"),
        ('{"model": {"type": "WordPiece", "vocab": {"a": 7}}}', "tokenizer.json"),
    ],
)
def test_tokenizer_json(refused, content, mentions):
    put("tok/tokenizer.json", content)
    refused("prepare", "c.yaml", "tokenizer.path=tok", mentions=mentions)


# ---- scoring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "predictions", "odds", "mentions"),
    [
        ("{", "{}", None, "gold.json"),
        ('{"date": []}', "{}", None, "gold.json"),
        ('{"data": [{"paragraphs": 3}]}', "{}", None, "gold.json"),
        ('{"data": []}', "{}", None, "gold.json"),
        (json.dumps(SQUAD), "[]", None, "pred.json"),
        (json.dumps(SQUAD), '{"q1": 3}', None, "pred.json"),
        (json.dumps(SQUAD), '{"q1": "cats"', None, "pred.json"),
        (json.dumps(SQUAD), '{"q1": "cats"}', '{"q1": "high"}', "odds.json"),
        (json.dumps(SQUAD), '{"q1": "cats"}', '{"q1": NaN}', "odds.json"),
        (b"\xff\xfe{}", "{}", None, "gold.json"),
        (squad(answers=[{"text": ["cats"], "answer_start": 4}]), '{"q1": "cats"}', None, "gold.json"),
        (squad(id=["q1"]), '{"q1": "cats"}', None, "gold.json"),
        ("", "{}", None, "gold.json"),
    ],
)
def test_scores(refused, gold, predictions, odds, mentions):
    put("gold.json", gold)
    put("pred.json", predictions)
    extra = ["--na-prob-file", "odds.json"] if odds is not None else []
    if odds is not None:
        put("odds.json", odds)
    refused("score", "squad", "gold.json", "pred.json", *extra, "--output", "out.json", mentions=mentions)


# ---- Hugging Face folders -------------------------------------------------------------------------------------------

BERT = {
    "model_type": "bert", "vocab_size": 57, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 32, "max_position_embeddings": 64,
}  # fmt: skip


def safetensors(tensors: dict[str, list[int]]) -> bytes:
    header, start = {}, 0
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(start)


class Canary:
    def __reduce__(self) -> tuple:
        return open, ("canary", "w")


CONFIG_JSON = {"config.json": json.dumps(BERT)}
WORDS = "embeddings.word_embeddings.weight"
HUGGING_FACE: dict[str, tuple[dict[str, str | bytes], str]] = {
    "empty folder": ({}, "hf"),
    "no weights": (CONFIG_JSON, "hf"),
    "config not JSON": ({"config.json": "{", "model.safetensors": safetensors({})}, "config.json"),
    "another family": ({"config.json": json.dumps(BERT | {"model_type": "gpt2"})}, "gpt2"),
    "no family": ({"config.json": "{}"}, "config.json"),
    "heads do not divide": ({"config.json": json.dumps(BERT | {"num_attention_heads": 3})}, "num_attention_heads"),
    "pickle only": (CONFIG_JSON | {"pytorch_model.bin": pickle.dumps(Canary())}, "pytorch_model.bin"),
    "empty weights": (CONFIG_JSON | {"model.safetensors": ""}, "model.safetensors"),
    "header too long": (CONFIG_JSON | {"model.safetensors": b"\xff" * 7 + b"\x7f{}"}, "model.safetensors"),
    "cut weights": (CONFIG_JSON | {"model.safetensors": safetensors({WORDS: [57, 16]})[:-9]}, "model.safetensors"),
    "missing tensors": (CONFIG_JSON | {"model.safetensors": safetensors({WORDS: [57, 16]})}, "hf"),
    "wrong shape": (CONFIG_JSON | {"model.safetensors": safetensors({WORDS: [9, 16]})}, "hf"),
}


@pytest.mark.parametrize("case", HUGGING_FACE)
def test_hugging_face_folders(refused, case):
    files, mentions = HUGGING_FACE[case]
    Path("hf").mkdir()
    put("hf/vocab.txt", "\n".join(VOCABULARY))
    for name, content in files.items():
        put(f"hf/{name}", content)
    refused("import", "hf", "out", mentions=mentions)
    assert not Path("canary").exists()


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_folders_that_are_no_checkpoints(refused):
    Path("empty").mkdir()
    put("numbered/checkpoints/00-s/99/.keep", "")
    put("file", "x")
    damaged = {"numbered": 4, "numbered/checkpoints/00-s": 4}  # only a step that is named is bad input
    for name in ("empty", "file", "nowhere", "numbered/checkpoints/00-s/99", *damaged):
        code = damaged.get(name, 2)
        refused("evaluate", name, mentions=name, code=code)
        refused("export", name, "out", mentions=name, code=code)
        refused("predict", "fill-mask", name, "a [MASK]", mentions=name, code=code)
    refused("report", "empty", mentions="empty")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps, made once; every test takes a copy."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        put("c.yaml", CONFIG)
        put("vocab.txt", "\n".join(VOCABULARY) + "\n")
        put("text.txt", TEXT * 8)
        assert main(["train", "c.yaml"]) == 0
    return home / "runs" / "run"


@pytest.mark.slow
def test_damaged_and_unsuitable_checkpoints(refused, trained, small_project):
    shutil.copytree(trained, "runs/run")
    step = next(Path("runs/run/checkpoints/00-s").glob("[0-9]*"))
    refused("evaluate", "runs/run", "--step", "77", mentions="77")
    refused("evaluate", "runs/run", "--stage", "qa", mentions=("qa", "s"))
    refused("evaluate", "runs/run", "--name", "squad", mentions="squad")
    refused("evaluate", "runs/run", "run.sed=1", mentions="run.sed: unknown key")
    refused("predict", "answer", "runs/run", "--question", "q", "--context", "c", mentions="qa")
    refused("predict", "fill-mask", "runs/run", "no mask", mentions="[MASK]")
    train = partial(refused, "train", "c.yaml", keeps="prepared")  # the data is prepared by then, and it is good
    train("stages.s.optimizer.b1=0.5", mentions=("config.yaml", "stages.0.optimizer.b1: 0.9 -> 0.5"))
    train("run.name=other", "stages.s.init_from=nowhere", mentions="nowhere")
    train("run.name=wider", "stages.s.init_from=runs/run", "model.hidden_size=32", mentions="shape")
    put("vocab.txt", "\n".join(sorted(VOCABULARY)))
    train("run.name=sorted", "stages.s.init_from=runs/run", mentions="tokenizer")
    arrays = [path for path in step.rglob("d/*") if path.is_file()]  # some hold slots alone, which nobody reads here
    for path in arrays:
        content = bytearray(path.read_bytes())
        content[::64] = bytes(byte ^ 1 for byte in content[::64])
        path.write_bytes(content)
    refused("evaluate", "runs/run", "--step", step.name, mentions=f"{step.name}: damaged")
    for path in arrays:
        path.unlink()
    refused("evaluate", "runs/run", "--step", step.name, mentions=step.name)
