"""What is compared before the first computation, and how a difference is told; processes are tests of their own."""

import json
from pathlib import Path

import pytest

from bertjax.config.loading.load import load
from bertjax.errors import UserError
from bertjax.training import consistency
from bertjax.training.consistency import raise_on_difference


def said(host: str, **facts: str) -> str:
    return json.dumps({"host": host, "facts": {name.replace("_", " "): value for name, value in facts.items()}})


def test_equal_processes_agree():
    raise_on_difference([said("a", the_seed="1"), said("b", the_seed="1")])
    raise_on_difference([said("a")])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"the_seed": "2", "the_rate": "9"}, "process 2 (c) and process 0 (a) differ in the seed: 2 instead of 1; "),
        ({"the_rate": "9"}, "process 2 (c) and process 0 (a) differ in the seed: nothing instead of 1; "),
        ({"the_seed": "1", "the_rate": "x" * 99}, "process 2 (c) and process 0 (a) differ in the rate; "),
    ],
)
def test_the_first_difference_is_named(other, expected):
    facts = {"the_seed": "1", "the_rate": "9"}
    with pytest.raises(UserError) as error:
        raise_on_difference([said("a", **facts), said("b", **facts), said("c", **other)])
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def facts(project: Path, *overrides: str) -> dict[str, str]:
    return consistency._facts(load(project / "tiny.yaml", overrides), project)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.seed=3", "the configuration, run.seed"),
        ("mesh.fsdp=2", "the configuration, mesh.fsdp"),
        ("stages.qa.batch_size=16", "the configuration, stages.1.batch_size"),
        ("run.log_every=7", "the configuration, run.log_every"),
    ],
)
def test_any_setting_is_compared_by_its_key(tiny_project, override, key):
    before, after = facts(tiny_project), facts(tiny_project, override)
    assert [name for name in before if before[name] != after[name]] == [key]


def test_versions_and_code_are_compared(tiny_project):
    found = facts(tiny_project)
    assert {"the version of jax", "the version of bertjax", "the code of bertjax", "the version of Python"} <= set(
        found
    )
    assert len(consistency.package_hash()) == 64


def test_files_are_compared_by_name_and_size(tiny_project, tmp_path):
    config = load(tiny_project / "tiny.yaml")
    names = ("text.txt", "more.txt", "train.json", "heldout.json")
    for name in names:
        (tmp_path / name).write_bytes((tiny_project / name).read_bytes())
    same = consistency.data_file_digests(config, tiny_project)
    assert same == consistency.data_file_digests(config, tmp_path) and len(same) == 4
    (tmp_path / "more.txt").write_text("one line more")
    (tmp_path / "train.json").unlink()
    changed = consistency.data_file_digests(config, tmp_path)
    differing = {name for name in same if same[name] != changed[name]}
    assert differing == {"the files of evaluation 'mlm' of 'pretrain'", "the files of task 'questions'"}
    assert changed["the files of task 'questions'"] == "missing, or no use"
