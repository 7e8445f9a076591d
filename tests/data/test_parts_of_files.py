"""CSV files, zstd files, and parts of files by record order."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from bertjax.config.schema.slices import parse_slice, parse_split
from bertjax.config.schema.sources import Csv, HuggingFaceData, Json, JsonLines, Parquet, SquadFiles, TextFiles, Tsv
from bertjax.data.sources import json_items, record_files
from bertjax.data.sources.records import read_records
from bertjax.data.sources.registry import count_records, fingerprint, record_of
from bertjax.data.sources.squad import read_squad
from bertjax.data.sources.text import read_texts
from bertjax.errors import UserError

HARD = [["plain", "1"], ['a "quoted" cell', "2"], ["two\nlines, and a comma", "3"], [" spaces ", ""], ["ünï", "5"]]


def test_csv_is_read_as_the_csv_module_writes_it(tmp_path: Path) -> None:
    expected = [dict(zip(["text", "label"], row, strict=True)) for row in HARD]
    for delimiter, ends, bom in [(",", "\r\n", ""), (";", "\n", "\ufeff"), ("\t", "\r\n", "")]:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, lineterminator=ends)
        writer.writerows([["text", "label"], *HARD])
        (tmp_path / "a.csv").write_bytes((bom + text.getvalue()).encode())
        assert list(read_records(Csv(files=["a.csv"], delimiter=delimiter), tmp_path)) == expected
        named = Csv(files=["a.csv"], delimiter=delimiter, fields=["x", "y"], skip_lines=1)
        assert [record["x"] for record in read_records(named, tmp_path)] == [text for text, _ in HARD]
    for content, says in {
        'text,label\n"a,1\nb,2\n': "line 2: not valid CSV (unexpected end of data)",
        'text,label\n"a"b,1\n': "line 2: not valid CSV",
        "text,label\n\na,1,2\n": "line 3: 3 columns, not the 2 named (text, label)",
        "a,a\n1,2\n": "two columns are called 'a'",
    }.items():
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(UserError) as caught:
            list(read_records(Csv(files=["bad.csv"]), tmp_path))
        assert says in str(caught.value) and "\n" not in str(caught.value)
    for delimiter in ("", ",,", '"', "\n"):
        with pytest.raises(ValidationError, match="one character"):
            Csv(files=["a.csv"], delimiter=delimiter)


def test_zstd_files_of_several_frames(tmp_path: Path) -> None:
    frames = [pa.compress(part, codec="zstd", asbytes=True) for part in (b'{"text": "a"}\n{"te', b'xt": "b"}\n')]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert [record["text"] for record in read_records(JsonLines(files=["a.jsonl.zst"]), tmp_path)] == ["a", "b"]
    found = read_records(HuggingFaceData(name="./a.jsonl.zst"), tmp_path)
    assert [record["text"] for record in found] == ["a", "b"]
    (tmp_path / "a.jsonl.zst").write_bytes(frames[0][:-3])
    with pytest.raises(UserError, match="a.jsonl.zst: after line .*: the .zst data is cut short or damaged"):
        list(read_records(JsonLines(files=["a.jsonl.zst"]), tmp_path))


@pytest.mark.parametrize("pieces", [1, 7, 1 << 20])
def test_a_json_list_is_read_item_by_item(tmp_path: Path, monkeypatch, pieces: int) -> None:
    """Whatever its pieces, values and errors are those of json.loads."""
    monkeypatch.setattr(json_items, "PIECE", pieces)
    monkeypatch.setattr(record_files, "PIECE", pieces)
    items = [{"a": [1.5, -20, {"b": None}], "text": 'x\n"]},\u00e9'}, {}, {"n": 10**20}] * 3
    for indent in (None, 1):
        text = json.dumps(items, indent=indent)
        (tmp_path / "a.json").write_text(text)
        assert list(read_records(Json(files=["a.json"]), tmp_path)) == items
        for at in range(0, len(text), 5):
            (tmp_path / "a.json").write_text(text[:at] + text[at + 1 :])
            try:
                expected = json.loads(text[:at] + text[at + 1 :])
            except json.JSONDecodeError as error:
                with pytest.raises(UserError) as caught:
                    list(read_records(Json(files=["a.json"]), tmp_path))
                reason = f"line {error.lineno}: not valid JSON ({error.msg})"
                assert reason in str(caught.value) or "is a JSON" in str(caught.value)  # an item before it is no object
            else:
                assert list(read_records(Json(files=["a.json"]), tmp_path)) == expected


def _sources(folder: Path) -> list:
    """Sources of every kind with 7 + 4 records in two files, numbered."""
    for name, numbers in {"a": range(7), "b": range(7, 11)}.items():
        rows = [{"text": f"t{n}", "label": n} for n in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        (folder / f"{name}.json").write_text(json.dumps(rows))
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"t{n}\t{n}\n" for n in numbers))
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(f'"t{n}",{n}\n' for n in numbers))
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        (folder / f"{name}.txt").write_text("\n\n".join(row["text"] for row in rows) + "\n")
    kinds = {"jsonl": JsonLines, "json": Json, "tsv": Tsv, "csv": Csv, "parquet": Parquet}
    made = [kind(files=[f"a.{suffix}", f"b.{suffix}"]) for suffix, kind in kinds.items()]
    return [*made, *(TextFiles(files=["a.txt", "b.txt"], layout=layout) for layout in ("paragraphs", "sentences"))]


def test_parts_are_disjoint_complete_and_equal_for_every_kind(tmp_path: Path) -> None:
    everything = [f"t{n}" for n in range(11)]
    for source in _sources(tmp_path):
        assert count_records(source, tmp_path) == 11

        def read(split: str, source=source) -> list[str]:
            part = source.model_copy(update={"split": split})
            texts = list(read_texts(part, tmp_path))
            parts = record_of(part).parts(part, tmp_path)
            assert [text for one, _ in parts for text in read_texts(one, tmp_path)] == texts
            return texts

        for percent in (10, 50, 83):
            first, second = read(f"[:{percent}%]"), read(f"[{percent}%:]")
            assert first + second == everything and len(first) == round(percent * 11 / 100)
        assert read("[:3]") + read("[3:9]") + read("[9:]") == everything
        assert read("[-2:]") == everything[-2:] and read("[:-20%]") == everything[:9]
        with pytest.raises(UserError, match=r"holds 11 records, and split '\[11:\]' takes none of them"):
            read("[11:]")
        assert fingerprint(source, tmp_path) != fingerprint(source.model_copy(update={"split": "[:3]"}), tmp_path)
        assert "split" not in source.model_dump()  # prepared data of earlier versions are found


def test_parts_across_jobs(tmp_path: Path, monkeypatch) -> None:
    from bertjax.data.sources import registry

    monkeypatch.setattr(registry, "PART_BYTES", 1)  # a part for each file
    test_parts_are_disjoint_complete_and_equal_for_every_kind(tmp_path)


def test_parts_of_questions_keep_a_context_together(tmp_path: Path) -> None:
    qas = lambda p: [{"id": f"{p}-{q}", "question": "Who?", "answers": []} for q in range(3)]  # noqa: E731
    articles = [
        {"title": "t", "paragraphs": [{"context": f"c{p}", "qas": qas(p)} for p in range(a, a + 2)]} for a in (0, 2)
    ]
    (tmp_path / "q.json").write_text(json.dumps({"data": articles}))
    read = lambda split: {q.context for q in read_squad(SquadFiles(files=["q.json"], split=split), tmp_path)}  # noqa: E731
    assert read("[:75%]") == {"c0", "c1", "c2"} and read("[75%:]") == {"c3"}
    assert len(read_squad(SquadFiles(files=["q.json"], split="[:2]"), tmp_path)) == 6


def test_parts_of_folders_and_saved_datasets(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"text": f"t{n}"} for n in range(11)])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "many"))
    rows.to_json(tmp_path / "folder" / "train.jsonl")
    for name in ("./one", "./many", "./folder", "./folder/train.jsonl"):
        read = lambda split, name=name: [  # noqa: E731
            record["text"] for record in read_records(HuggingFaceData(name=name, split=split), tmp_path)
        ]
        assert read("train[:80%]") + read("train[80%:]") == read("train") == [f"t{n}" for n in range(11)]
        assert read("train[-1:]") == ["t10"]
        with pytest.raises(UserError, match="takes none of them"):
            read("train[11:]")


@pytest.mark.parametrize("text", ["", "90%", "[90]", "[:]", "[a:b]", "[:101%]", "[5:5]", "[50%:40%]", "[1.5:]", "[:0]"])
def test_slices_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_slice(text)


def test_split_names() -> None:
    assert parse_split("train") == ("train", None) and parse_split("train[:80%]") == ("train", ("", "80%"))
    assert parse_slice("[10%:-5]").bounds(30) == (3, 25)
