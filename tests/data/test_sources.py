"""Every kind of source: what it yields, its fingerprint, and one-line errors for every kind of damage."""

import bz2
import gzip
import importlib.resources.abc
import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bertjax.config.schema.sources import (
    HuggingFaceData,
    JsonLines,
    Parquet,
    SquadFiles,
    StdlibDocs,
    StdlibQa,
    TextFiles,
    TfdsData,
    Tsv,
)
from bertjax.data.sources.records import read_records
from bertjax.data.sources.registry import fingerprint
from bertjax.data.sources.text import read_documents, read_texts
from bertjax.errors import UserError

TEXT = "# Rome\nRome is old. It is a city.\n\nMr. Smith lives there."
SENTENCES = ["Rome", "Rome is old.", "It is a city.", "Mr. Smith lives there."]
ROWS = [{"text": TEXT, "label": 1}, {"text": "Second one. It ends.", "label": 0}, {"text": "", "label": 2}]
DOCUMENTS = [SENTENCES, ["Second one.", "It ends."]]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def fails(source, base: Path, *says: str, records: bool = False) -> str:
    """The message of the UserError that reading ends in: one line, short, with a hint after ';'."""
    with pytest.raises(UserError) as caught:
        list(read_records(source, base) if records else read_documents(source, base))
    message = str(caught.value)
    assert "\n" not in message and ";" in message and len(message) <= 300 + len(str(base)), message
    for text in says:
        assert text in message
    return message


# ---- text -----------------------------------------------------------------------------------------------------------


def test_text_documents(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "Second one. It ends.")
    write(tmp_path / "a.txt", "\ufeff" + TEXT.replace("\n", "\r\n"))
    assert list(read_documents(TextFiles(files=["*.txt"]), tmp_path)) == DOCUMENTS


def test_lines_that_end_with_carriage_returns_alone(tmp_path: Path) -> None:
    """As `open` reads them: a file without any line feed. In one that has some a lone carriage return is a space."""
    write(tmp_path / "a.txt", "One. Two.\rThree\r\r \rFour\r")
    source = TextFiles(files=["a.txt"], layout="sentences")
    assert list(read_documents(source, tmp_path)) == [["One. Two.", "Three"], ["Four"]]
    write(tmp_path / "a.txt", "One\rTwo\n\nFour")
    assert list(read_documents(source, tmp_path)) == [["One Two"], ["Four"]]
    write(tmp_path / "a.tsv", "text\tlabel\ra\t0\rb\t1")
    rows = list(read_records(Tsv(files=["a.tsv"]), tmp_path))
    assert rows == [{"text": "a", "label": "0"}, {"text": "b", "label": "1"}]


def test_text_sentences(tmp_path: Path) -> None:
    """The format of google-research/bert's create_pretraining_data.py; lines are kept as they are written."""
    write(tmp_path / "a.txt", "One. Two.\nThree  \n\n\n \nFour\n")
    write(tmp_path / "b.txt", "Five")
    source = TextFiles(files=["a.txt", str(tmp_path / "b.txt")], layout="sentences")
    assert list(read_documents(source, tmp_path)) == [["One. Two.", "Three"], ["Four"], ["Five"]]


def test_text_paragraphs(tmp_path: Path) -> None:
    """Blank lines separate documents, lines are joined, and the splitter finds the sentences."""
    write(tmp_path / "a.txt", "\n\nOne. Two\ngoes on.\n \n\nthree . four\r\n")
    write(tmp_path / "b.txt", "Five")
    source = TextFiles(files=["*.txt"], layout="paragraphs")
    assert list(read_documents(source, tmp_path)) == [["One.", "Two goes on."], ["three .", "four"], ["Five"]]
    assert list(read_texts(source, tmp_path)) == ["One. Two\ngoes on.", "three . four", "Five"]
    layouts = [fingerprint(TextFiles(files=["*.txt"], layout=kind), tmp_path) for kind in ("paragraphs", "documents")]
    assert layouts[0] != layouts[1]


@pytest.mark.parametrize(("suffix", "opener"), [("gz", gzip.open), ("xz", lzma.open), ("bz2", bz2.open)])
def test_compressed_files_read_the_same_and_a_cut_one_is_named(tmp_path: Path, suffix: str, opener) -> None:
    rows = [{"text": os.urandom(200).hex() + ". It ends."} for _ in range(50)]
    path = tmp_path / f"a.jsonl.{suffix}"
    with opener(path, "wt") as file:
        file.write(lines(rows))
    source = JsonLines(files=[f"a.*.{suffix}"])
    assert [document[0] for document in read_documents(source, tmp_path)] == [r["text"].split(" ")[0] for r in rows]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(source, tmp_path, f"a.jsonl.{suffix}: after line ", "cut short or damaged")
    path.write_bytes(b"this is not compressed at all")
    fails(source, tmp_path, f"a.jsonl.{suffix}: after line 0", "cut short or damaged")


def test_bad_text_files(tmp_path: Path) -> None:
    write(tmp_path / "latin.txt", b"good\nna\xefve\n")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "blank.txt", "\n \n")
    write(tmp_path / "a.zst", b"x")
    write(tmp_path / "a.zip", b"x")
    (tmp_path / "folder").mkdir()
    for name, says in {
        "latin.txt": "line 2: not UTF-8 (0xef at byte 3)",
        "empty.txt": "empty.txt: the file is empty",
        "blank.txt": "holds no text at all",
        "none.txt": "none.txt: no such file",
        "none*.txt": "none*.txt: no file matches",
        "folder": "folder: the folder is empty",
        "a.zst": "the .zst data is cut short or damaged",
        "a.zip": ".zip files are not read",
    }.items():
        fails(TextFiles(files=[name]), tmp_path, says)
    with gzip.open(tmp_path / "empty.gz", "wb"):
        pass
    fails(TextFiles(files=["empty.gz"]), tmp_path, "empty.gz: the file is empty")
    fails(TextFiles(files=["."]), tmp_path, "is a folder; name its files")


def test_globs_are_sorted_and_files_read_once(tmp_path: Path) -> None:
    for name in ("10", "2", "1"):
        write(tmp_path / "d" / f"{name}.txt", f"Number {name}.")
    found = read_documents(TextFiles(files=["d/2.txt", "d/*.txt", "**/1.txt"]), tmp_path)
    assert [document[0] for document in found] == ["Number 2.", "Number 1.", "Number 10."]


# ---- jsonl ----------------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines(ROWS) + "\n" + lines([{"text": None}]))
    source = JsonLines(files=["a.jsonl"])
    assert list(read_documents(source, tmp_path)) == DOCUMENTS
    assert list(read_records(source, tmp_path)) == [*ROWS, {"text": None}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"text": "b"', "line 2: not valid JSON"),
        ('{"text": "a"}\n{"txt": "b", "id": 3}', "line 2: no field 'text'; the fields are: txt, id;"),
        ('{"text": 3}', "line 1: field 'text' holds a int, not text"),
        ('["a"]', "line 1: is a JSON list, not an object"),
        ('[\n{"text": "a"}\n]', "looks like one JSON array"),
        ("[" * 100000, "line 1: nested too deeply"),
        (b'{"text": "a"}\n{"text": "\xe9"}', "line 2: not UTF-8"),
    ],
)
def test_bad_json_lines(tmp_path: Path, content: str | bytes, says: str) -> None:
    write(tmp_path / "a.jsonl", content)
    fails(JsonLines(files=["a.jsonl"]), tmp_path, "a.jsonl: ", says)


def test_reading_streams(tmp_path: Path) -> None:
    """Damage at the end is met at the end: everything before it has been handed out by then."""
    write(tmp_path / "a.jsonl", lines(ROWS[:2] * 500) + "{broken")
    found = read_documents(JsonLines(files=["a.jsonl"]), tmp_path)
    assert [next(found) for _ in range(1000)] == DOCUMENTS * 500
    with pytest.raises(UserError, match="line 1001"):
        next(found)


# ---- parquet --------------------------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    return tmp_path / "a.parquet"


def test_parquet(parquet: Path, tmp_path: Path) -> None:
    source = Parquet(files=["*.parquet"])
    assert list(read_documents(source, tmp_path)) == DOCUMENTS
    assert list(read_records(source, tmp_path)) == ROWS
    fails(Parquet(files=["a.parquet"], text_field="body"), tmp_path, "no field 'body'; the fields are: text, label;")


def test_damaged_parquet(parquet: Path, tmp_path: Path) -> None:
    whole = parquet.read_bytes()
    for damage in (whole[:-20], b"PAR1" + b"\x00" * 100, whole[:4] + b"\xff" * 60 + whole[64:]):
        parquet.write_bytes(damage)
        fails(Parquet(files=["a.parquet"]), tmp_path, "a.parquet: not a readable parquet file")


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [f"Text {i}. " + "x" * 2000 for i in range(4000)]})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=200, compression="none", use_dictionary=False)
    del table
    before = pa.total_allocated_bytes()
    most = 0
    for _ in read_documents(Parquet(files=["big.parquet"]), tmp_path):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 3_000_000  # the file has 8 MB, a row group 0.4 MB


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


def test_saved_datasets(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "many"))
    for name in ("one", "many", str(tmp_path / "many")):
        source = HuggingFaceData(name=name)
        assert list(read_documents(source, tmp_path)) == DOCUMENTS
        assert list(read_records(source, tmp_path)) == ROWS
    assert list(read_documents(HuggingFaceData(name="many", split="test"), tmp_path)) == DOCUMENTS[1:]
    fails(HuggingFaceData(name="many", split="dev"), tmp_path, "has no split 'dev'; it has: train, test")
    fails(
        HuggingFaceData(name="one", text_field="body"), tmp_path, "row 1: no field 'body'; the fields are: text, label"
    )
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"garbage")
    fails(HuggingFaceData(name="one"), tmp_path, "cannot be loaded")


def test_local_dataset_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", lines(ROWS))
    write(tmp_path / "data" / "test.jsonl", lines(ROWS[1:2]))
    for source, expected in [
        (HuggingFaceData(name="data"), DOCUMENTS),
        (HuggingFaceData(name="data", split="test"), DOCUMENTS[1:]),
        (HuggingFaceData(name="data/train.jsonl"), DOCUMENTS),
    ]:
        assert list(read_documents(source, tmp_path)) == expected
    fails(HuggingFaceData(name="data", split="dev"), tmp_path, "cannot be loaded")
    fails(HuggingFaceData(name="data/none.jsonl"), tmp_path, "no such file or folder")
    write(tmp_path / "data.xyz", "a")
    fails(HuggingFaceData(name="data.xyz"), tmp_path, "cannot tell its format")
    (tmp_path / "hollow").mkdir()
    fails(HuggingFaceData(name="hollow"), tmp_path, "the folder is empty")
    write(tmp_path / "bad" / "train.jsonl", '{"text": "a"}\n{"text"')
    fails(HuggingFaceData(name="bad"), tmp_path, "bad")


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_a_hub_name_without_a_network_fails_at_once(tmp_path: Path, monkeypatch, how: str) -> None:
    """The library alone retries for 23 seconds."""
    import datasets  # noqa: F401  (its import takes seconds of its own)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")  # what the variable sets at import
    if how == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    fails(HuggingFaceData(name="nobody/no-such-dataset"), tmp_path, "out of reach", "save_to_disk")
    assert time.monotonic() - start < 8
    assert constants.HF_HUB_OFFLINE is (how == "offline")


# ---- TensorFlow Datasets --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory) -> Path:
    """A data set prepared as array_record, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    with pytest.MonkeyPatch.context() as patch:
        # writing (not reading) wants a package that tfds 4.9 does not declare; the standard library has the same
        patch.setitem(sys.modules, "importlib_resources", importlib.resources)
        return _prepare_tea(tfds, tmp_path_factory.mktemp("tfds"))


def _prepare_tea(tfds, folder: Path) -> Path:
    class Tea(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(ROWS)

    Tea(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_tfds(tfds_folder: Path, tmp_path: Path) -> None:
    (prepared,) = (tfds_folder / "tea").iterdir()
    for data_dir in (str(tfds_folder), str(prepared)):
        source = TfdsData(name="tea", data_dir=data_dir)
        records = list(read_records(source, tmp_path))
        assert sorted(records, key=lambda r: r["label"]) == sorted(ROWS, key=lambda r: r["label"])
        assert all(type(r["text"]) is str and type(r["label"]) is int for r in records)
        assert sorted(read_documents(source, tmp_path)) == sorted(DOCUMENTS)
    fails(TfdsData(name="tea", data_dir=str(prepared), split="dev"), tmp_path, "has no split 'dev'; it has: train")
    fails(TfdsData(name="nosuchdata_x", data_dir=str(tfds_folder)), tmp_path, "finds no such dataset", "data_dir")
    fails(TfdsData(name="tea", data_dir="nowhere"), tmp_path, "nowhere: tfds data_dir: no such folder")
    assert "tensorflow" not in sys.modules
    assert len(fingerprint(source, tmp_path)) == 64


# ---- built-in and SQuAD ---------------------------------------------------------------------------------------------


def test_standard_library_sources(tmp_path: Path) -> None:
    documents = list(read_documents(StdlibDocs(split="heldout"), tmp_path))
    contexts = list(read_documents(StdlibQa(split="heldout"), tmp_path))
    assert len(documents) > 40 and len(contexts) > 10
    assert {sentence for document in documents for sentence in document} & {s for d in contexts for s in d}


def test_squad_contexts_are_documents(tmp_path: Path) -> None:
    def qa(number: int) -> dict:
        return {"id": str(number), "question": "Q?", "answers": [{"text": "Rome", "answer_start": 0}]}

    paragraphs = [{"context": "Rome is old. It is.", "qas": [qa(1), qa(2)]}, {"context": "Rome fell.", "qas": [qa(3)]}]
    squad = {"version": "1.1", "data": [{"title": "Rome", "paragraphs": paragraphs}]}
    with gzip.open(tmp_path / "a.json.gz", "wt") as file:
        json.dump(squad, file)
    source = SquadFiles(files=["a.json.gz"])
    assert list(read_documents(source, tmp_path)) == [["Rome is old.", "It is.", "Rome fell."]]
    write(tmp_path / "b.json", '{"data": [')
    fails(SquadFiles(files=["b.json"]), tmp_path, "b.json")


def test_real_squad_and_text(shared_data: Path) -> None:
    (first, *rest) = read_documents(SquadFiles(files=["squad/dev-v1.1.first-half.json.gz"]), shared_data)
    assert len(rest) == 23 and first[0].startswith("Super Bowl 50 was an American football game")
    documents = list(read_documents(JsonLines(files=["text/eltec-eng.valid.jsonl.xz"]), shared_data))
    assert len(documents) == 133 and 20_000 < sum(map(len, documents)) < 30_000


def test_records_only_where_there_are_fields(tmp_path: Path) -> None:
    fails(StdlibDocs(), tmp_path, "source of kind 'stdlib_docs'", records=True)


# ---- fingerprints ---------------------------------------------------------------------------------------------------


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write(tmp_path / folder / "a.jsonl", lines(ROWS))
    source = JsonLines(files=["a.jsonl"])
    first = fingerprint(source, tmp_path / "x")
    os.utime(tmp_path / "x" / "a.jsonl", (1, 1))
    assert first == fingerprint(source, tmp_path / "x") == fingerprint(source, tmp_path / "y")
    assert first == fingerprint(JsonLines(files=["y/*.jsonl"]), tmp_path)
    others = {
        fingerprint(JsonLines(files=["a.jsonl"], text_field="body"), tmp_path / "x"),
        fingerprint(TextFiles(files=["a.jsonl"]), tmp_path / "x"),
        fingerprint(TextFiles(files=["a.jsonl"], layout="sentences"), tmp_path / "x"),
        fingerprint(StdlibDocs(split="train"), tmp_path),
        fingerprint(StdlibDocs(split="heldout"), tmp_path),
        fingerprint(StdlibQa(split="heldout"), tmp_path),
    }
    write(tmp_path / "y" / "a.jsonl", lines(ROWS)[:-2] + " \n")
    assert len(others | {first, fingerprint(source, tmp_path / "y")}) == 8
    with pytest.raises(UserError, match="no such file"):
        fingerprint(JsonLines(files=["none.jsonl"]), tmp_path)


def test_fingerprint_of_a_saved_dataset(tmp_path: Path) -> None:
    import datasets

    for name, rows in (("a", ROWS), ("b", ROWS[:2])):
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / name / "set"))
    found = [fingerprint(HuggingFaceData(name="set"), tmp_path / name) for name in "ab"]
    assert found[0] != found[1] and found[0] == fingerprint(HuggingFaceData(name="set"), tmp_path / "a")


def test_importing_sources_is_light() -> None:
    heavy = {"jax", "datasets", "pyarrow", "tensorflow_datasets"}
    code = f"import sys, bertjax.data.sources.text; print({heavy!r} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
