"""Files of predictions: what is written is read back as it was, and tables of spreadsheets are read."""

import csv

import pytest

from bertjax.errors import UserError
from bertjax.tools.prediction_files import read_records, write_predictions

ROWS = [{"text": 'a "quoted" word', "note": '"', "label": "x"}, {"text": "", "note": "a, b; c", "label": "y"}]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_tables_are_read_as_they_were_written(tmp_path, name):
    assert write_predictions(tmp_path / name, iter(ROWS)) == 2
    assert list(read_records(tmp_path / name, ["text"])) == ROWS


@pytest.mark.parametrize("text", ["two\nlines", "a\ttab", "a\rreturn"])
def test_a_tsv_file_has_one_line_a_record(tmp_path, text):
    with pytest.raises(UserError, match=r"a.tsv: record 2 has a tab or a line end in a field; write a .csv or .jsonl"):
        write_predictions(tmp_path / "a.tsv", iter([ROWS[0], ROWS[1] | {"text": text}]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_file_is_found(tmp_path, delimiter):
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
        writer.writerows([["text", "note", "label"], *(row.values() for row in ROWS)])
    assert list(read_records(tmp_path / "a.csv", ["text"])) == ROWS
