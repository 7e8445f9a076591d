"""Files that would exhaust memory or the stack: long lines, archives that expand, deep JSON, hostile tokenizers."""

import contextlib
import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz_targets import META, TOKENIZER
from refusals import SQUAD, VOCABULARY, put

from bertjax.config.loading.step_meta import find_meta_problem, read_meta
from bertjax.data.sources import json_items, record_files
from bertjax.data.tokenizers.load import from_file, from_json
from bertjax.errors import StorageError, UserError, known_error
from bertjax.storage import files
from bertjax.training.monitor import tracking

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_lines(monkeypatch) -> None:
    for module in (files, json_items):
        monkeypatch.setattr(module, "MAX_LINE", 100)
    monkeypatch.setattr(record_files, "_MAX_CELL", 100)
    monkeypatch.setattr(json_items, "PIECE", 40)


@pytest.mark.parametrize(
    ("name", "content", "mentions"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "' + "x" * 100 + '"}\n', "a.jsonl: line 2: longer than 100 bytes"),
        ("a.jsonl", '{"text": "' + "x" * 300 + '"}', "a.jsonl: line 1: longer than 100 bytes"),
        ("a.txt", "a\rb\r" + "x" * 300 + "\rc\r", "a.txt: line 3: longer than 100 bytes"),
        ("a.csv", 'text,label\n"' + "a\n" * 100, "a.csv: line "),
        ("a.json", "[\n" + "[1,\n" * 100, "a.json: line 2: not valid JSON (no end of the item within 100 characters)"),
        ("a.json", "[" + '{"text": "a"},\n' * 50 + '{"text": \n"' + "xx\n" * 100, "a.json: line "),
    ],
)
def test_long_lines(short_lines, name, content, mentions):
    put(name, content)
    with pytest.raises(UserError) as raised:
        list(record_files.read_by_suffix(Path(name)))
    assert mentions in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb", ["a", "b"]),
        (b"a\rb\r\r", ["a", "b"]),
        (b"a\r\rb", ["a", "", "b"]),
        (b"\n\na\n", ["", "", "a"]),
        (b"x" * 100, ["x" * 100]),
        (b"\r".join([b"y" * 90] * 5), ["y" * 90] * 5),
        (b"y" * 99 + b"\nz", ["y" * 99, "z"]),
    ],
)
def test_lines_of_the_longest_size_are_read(short_lines, content, lines):
    put("a.txt", content)
    assert [line for _, line in files.read_lines(Path("a.txt"))] == lines


def test_archives_that_expand_too_far(monkeypatch):
    monkeypatch.setattr(files, "_EXPANSION_START", 1 << 20)
    put("bomb.txt.gz", gzip.compress(b"a\n" * (1 << 21)))
    with pytest.raises(UserError, match=r"bomb.txt.gz: expands to more than 200 times its size; unpack it"):
        list(files.read_lines(Path("bomb.txt.gz")))
    plain = b"".join(b"line %d of a log\n" % number for number in range(100_000))
    put("log.txt.gz", gzip.compress(plain))  # the control: an ordinary file of more than a megabyte
    assert sum(1 for _ in files.read_lines(Path("log.txt.gz"))) == 100_000


CHILD = """
import sys
from pathlib import Path
from bertjax.data.sources.record_files import read_by_suffix
from bertjax.data.sources.squad import read_unanswered
from bertjax.errors import UserError
path = Path(sys.argv[1])
try:
    for _ in read_unanswered(path) if sys.argv[2] == "squad" else read_by_suffix(path): pass
except UserError as error:
    print(error)
from peak_memory import peak_mb
print(peak_mb())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unit", "times", "kind"),
    [
        ("a.jsonl", b'{"text": "' + b"x" * (1 << 20), 400, "records"),
        ("a.jsonl", b"[[],[]," * (1 << 17), 400, "records"),
        ("a.jsonl.gz", b"\0" * (1 << 20), 2000, "records"),
        ("a.jsonl.gz", b"\n" * (1 << 20), 2000, "records"),
        ("a.csv", b'"' + b"a\n" * (1 << 19), 400, "records"),
        ("a.json", b"[" + b"[[1,2]," * (1 << 17), 400, "records"),
        ("a.json.gz", b"{" + b" " * (1 << 20), 2000, "squad"),
    ],
)
def test_memory_is_bounded(name, unit, times, kind):
    with gzip.open(name, "wb", 6) if name.endswith(".gz") else open(name, "wb") as file:
        for number in range(times):
            file.write(unit if number == 0 else unit[1:] or unit)
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{Path(__file__).parent / 'kit'}"}
    command = [sys.executable, "-c", CHILD, name, kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    message, peak = done.stdout.splitlines()
    assert name in message and done.returncode == 0 and int(peak) < 2000, (done.stdout, done.stderr)


# ---- deep JSON ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("score", "squad", "deep.json", "p.json"), ["deep.json"]),
        (("score", "squad", "gold.json", "deep.json"), ["deep.json"]),
        (("score", "squad", "gold.json", "p.json", "--na-prob-file", "deep.json"), ["deep.json"]),
        (("score", "squad", "gold.json", "p.json", "--na-prob-file", "huge.json"), ["huge.json", "a number is needed"]),
        (("score", "squad", "gold.json", "lines.json"), ["lines.json", "a\\nb"]),
        (("compare-predictions", "deep.json", "p.json", "--data", "gold.json"), ["deep.json"]),
        (("import", "hf", "out"), ["config.json"]),
    ],
)
def test_deep_json(refused, words, names):
    put("gold.json", json.dumps(SQUAD))
    put("p.json", '{"q1": "cats"}')
    put("deep.json", DEEP)
    put("huge.json", json.dumps({"q1": 10**400}))
    put("lines.json", json.dumps({"a\nb": 1}))
    put("hf/config.json", DEEP)
    refused(*words, mentions=tuple(names))


def test_deep_lines_are_left_out_of_reports():
    from bertjax.report.record import read_run

    step = json.dumps({"kind": "train", "stage": "s", "step": 1, "loss": 1.0})
    put("run/metrics.jsonl", f"{DEEP}\n{step}\n{'9' * 5000}\n")
    put("run/goodput.jsonl", DEEP)
    put("run/environment.json", DEEP)
    put("run/config.yaml", "a: " + DEEP)
    found = read_run(Path("run"))
    assert found.unreadable == 2 and [stage.name for stage in found.stages] == ["s"] and found.environment == {}
    assert [line["step"] for line in tracking.read_lines(Path("run/metrics.jsonl"))] == [1]


# ---- tokenizers -----------------------------------------------------------------------------------------------------

SLOW_REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": SLOW_REGEX},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
        {"pre_tokenizer": {**SLOW_REGEX, "pattern": {"Regex": "(("}}},
        {"pre_tokenizer": {**SLOW_REGEX, "pattern": {"Regex": "(" * 5000 + ")" * 5000}}},
    ],
)
def test_hostile_tokenizers(change):
    put("tokenizer.json", json.dumps({**TOKENIZER, "normalizer": None, **change}))
    with pytest.raises(UserError) as raised:
        from_file(Path("tokenizer.json")).encode_batch(["a" * 40 + "!"])
    assert "tokenizer.json: the tokenizers library" in str(raised.value) and "\n" not in str(raised.value)
    kept = json.dumps({**TOKENIZER, "normalizer": None, **change})
    with pytest.raises(UserError, match="the checkpoint: "):
        from_json(kept, "the checkpoint").encode_batch(["a" * 40 + "!"])


def test_a_panic_in_a_worker_process_is_an_error_of_the_input():
    from bertjax.data.jobs.worker_pool import _for_parent

    panic = type("PanicException", (BaseException,), {})("Onig: Regex search error: retry-limit-in-match over")
    assert isinstance(_for_parent(panic), UserError) and "retry-limit" in str(_for_parent(panic))
    with pytest.raises(SystemExit):
        _for_parent(SystemExit(1))


def test_an_ordinary_tokenizer_is_read():
    put("tokenizer.json", json.dumps(TOKENIZER))
    assert from_file(Path("tokenizer.json")).vocab_size == len(VOCABULARY)


# ---- metadata whose sha256 is right ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"step": "2"}, "'step'"), ({"step": 10**400}, "out of range"), ({"step": True}, "'step'"),
        ({"stage": 7}, "'stage'"),
        ({"stage": -1}, "out of range"), ({"heads": "mlm"}, "'heads'"), ({"heads": [["mlm"]]}, "'heads'"),
        ({"num_labels": 1e9}, "'num_labels'"), ({"num_labels": 10**12}, "out of range"),
        ({"labels": {"a": 1}}, "'labels'"),
        ({"labels": [1]}, "'labels'"), ({"carried": None}, "'carried'"), ({"tokenizer_json": {}}, "'tokenizer_json'"),
        ({"config": []}, "'config'"), ({"base": "x"}, "'base'"), ({"environment": []}, "'environment'"),
        ({"steps": -5}, "out of range"),
    ],
)  # fmt: skip
def test_resealed_metadata(change, mentions):
    assert mentions in (find_meta_problem({**META, **change}) or "nothing")
    put("step/meta/metadata", json.dumps({"meta": {**META, **change}, "digest_sha256": "0"}))
    with pytest.raises(UserError, match="step/meta/metadata: damaged"):
        read_meta(Path("step"))


def test_resealed_digest_items():
    from bertjax.training.checkpoint import integrity

    record = {"format": integrity.FORMAT, "step": 2, "leaves": {"a": [[1], "float32", "00000000"]}, "scores": {}}
    item = {"meta": META}
    for change, mentions in (
        ({}, None), ({"leaves": [1]}, "arrays"), ({"leaves": {"a": 1}}, "arrays"), ({"scores": {"a": "b"}}, "numbers"),
        ({"leaves": {"a": [1, 2, 3]}}, "arrays"), ({"leaves": {"a": [[-1], "float32", "0"]}}, "arrays"),
        ({"leaves": {"a": [["1"], "float32", "0"]}}, "arrays"), ({"leaves": {"a": [[1], "x", "0"]}}, "arrays"),
        ({"leaves": {"a": [[1], "\ud83d", "0"]}}, "arrays"), ({"leaves": {"a": [[1], "object", "0"]}}, "arrays"),
        ({"leaves": {"a": [[2**40, 2**40], "float32", "0"]}}, "arrays"), ({"step": 3}, "it holds step 3"),
    ):  # fmt: skip
        one = {**record, **change, "meta_sha256": integrity.json_sha256(META)}
        made = {**item, "digest_sha256": integrity.json_sha256(one)}
        if mentions is None:
            assert integrity.verify("here", 2, made, one) == (one, META)
            continue
        with pytest.raises(integrity.CorruptStepError, match=mentions):
            integrity.verify("here", 2, made, one)
    with pytest.raises(integrity.CorruptStepError, match="another form"):
        integrity.verify("here", 2, [], {})
    for known in ("key<fry>", "bfloat16", "uint32"):
        assert integrity._is_array([2, 0], known)


def test_a_key_that_resealed_metadata_lack():
    from bertjax.training.checkpoint import integrity

    meta = {key: value for key, value in META.items() if key != "heads"}
    record = {"format": integrity.FORMAT, "step": 2, "leaves": {}, "scores": {}}
    record |= {"meta_sha256": integrity.json_sha256(meta)}
    _, read = integrity.verify("here", 2, {"meta": meta, "digest_sha256": integrity.json_sha256(record)}, record)
    assert read["step"] == 2 and read.get("heads") is None and "heads" not in read
    with pytest.raises(UserError, match="here: its metadata have no 'heads'"):
        read["heads"]


def test_a_head_that_no_model_has():
    from bertjax.config.schema.model import BertConfig, Word2VecConfig
    from bertjax.models import registry

    for config in (BertConfig(**META["config"]["model"]), Word2VecConfig(vocab_size=57, hidden_size=8)):
        with pytest.raises(UserError, match="model has no head 'x'; it can have"):
            registry.abstract_params(config, ("x",), 2)


def test_a_special_token_that_the_vocabulary_lacks():
    from bertjax.data.tokenizers.encoder import _check_special
    from bertjax.data.tokenizers.files import SpecialTokens

    roles = {"pad": "[PAD]", "cls": "[CLS]", "sep": "\ud83d"}
    special = SpecialTokens(roles=roles)
    with pytest.raises(UserError, match=r"f: the sep_token '\\ud83d' is not in the vocabulary"):
        _check_special({"[PAD]": 0, "[CLS]": 1}, special, "f")
    _check_special({"[PAD]": 0, "[CLS]": 1, "\ud83d": 2}, special, "f")


# ---- a full disk ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_files():
    """No file can be larger than 1,000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_json(path: Path, size: int) -> None:
    from bertjax.storage.atomic import write_text_atomic

    write_text_atomic(path, "x" * size)


def write_tensors(path: Path, size: int) -> None:
    from bertjax.interop.safetensors_folder import write_tensors

    write_tensors(path, {"a": np.zeros(size, np.uint8)})


def write_vectors(path: Path, size: int) -> None:
    from bertjax.tools.prediction_files import write_vectors

    write_vectors(path, [np.zeros(size // 4, np.float32)])


def write_parts(path: Path, size: int) -> None:
    from bertjax.tools.init.heldout import write_parts

    write_parts([("x" * size, False), ("y", True)], (path, path.with_suffix(".other")))


@pytest.mark.parametrize("write", [write_json, write_tensors, write_vectors, write_parts])
def test_a_full_disk_is_4_and_names_the_file(tmp_path, write):
    with small_files(), contextlib.chdir(tmp_path):
        write(Path("f.small"), 100)
        with pytest.raises((OSError, StorageError)) as raised:
            write(Path("f.large"), 100_000)
    known = known_error(raised.value)
    assert isinstance(known, StorageError) and "f.large" in str(known) and "\n" not in str(known)
