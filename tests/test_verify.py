"""The golden semantics: the table that `bertjax verify` runs, and the command itself."""

import json

import pytest

from bertjax.cli import main
from bertjax.verify import checks, runner, t5


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.name)
def test_as_the_reference(check):
    result = runner.run_check(check)
    assert result.compared and not result.mismatches


def test_the_command(capsys):
    assert main.main(["verify"]) == 0
    out = capsys.readouterr().out
    assert out.count("pass  ") == len(checks.CHECKS) and "all passed" in out


@pytest.mark.slow
def test_what_differs_is_shown_and_ends_with_one(monkeypatch, capsys):
    monkeypatch.setitem(t5.GLUE_RATES, "T=1", ({"temperature": 1.5}, t5.GLUE_RATES["T=1"][1]))
    assert main.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  t5.mixing_rates" in out and "T=1 cola: " in out and "should be 0.00901" in out and "1 FAILED" in out
    assert main.main(["verify", "--json"]) == 1
    found = {row["check"]: row["passed"] for row in json.loads(capsys.readouterr().out)}
    assert [name for name, passed in found.items() if not passed] == ["t5.mixing_rates"]


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [(1, 1.0, True), (1.0001, 1.0, False), ([1.0], (1.0,), True), ({"a": 1.0}, {"a": 2.0}, False), ("1.0", 1.0, False),
     ({"a": 1.0}, {"b": 1.0}, False), ([1, 2], [1], False), ("x", "x", True)],
)  # fmt: skip
def test_agrees(found, expected, same):
    assert runner.matches(found, expected) is same


def test_what_cannot_be_compared_is_skipped_and_does_not_pass(monkeypatch):
    monkeypatch.setattr("bertjax.verify.metrics.find_spec", lambda name: None)
    result = runner.run_check(next(check for check in checks.CHECKS if check.name == "text.generated"))
    assert not result.passed and not result.compared and not result.mismatches and len(result.skipped) == 2
    assert result.as_lines()[0].startswith("skip  text.generated") and "pip install" in result.as_lines()[1]
    assert result.as_dict()["passed"] is False
