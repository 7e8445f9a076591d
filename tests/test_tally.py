"""The table of the reliability tests' figures."""

import pytest
import tally


def test_lines_with_the_same_fault_are_one_row(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tally.jsonl"
    tally.add("killed", "at random", 9, lost=9)  # without the variable nothing is written
    monkeypatch.setenv("BERTJAX_TALLY", str(path))
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/a.py::test_kills[two] (call)")
    tally.add("killed", "at random", 3, recovery=[1.04, 2.0])
    tally.add("killed", "at random", 4, lost=1, detected=2, recovery=[4.0])
    tally.add("killed", "at random", 5, where="gs://")
    tally.main(str(path))
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| killed | disk | at random | 7 | 1 | 2 | 2.0 (at most 4.0) | `pytest tests/a.py::test_kills` |",
        "| killed | gs:// | at random | 5 | 0 |  |  | `pytest tests/a.py::test_kills` |",
    ]


def test_figures_are_of_a_test_that_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTJAX_TALLY", str(tmp_path / "tally.jsonl"))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(KeyError):
        tally.add("killed", "at random", 1)
