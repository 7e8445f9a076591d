"""What the README shows works: its configurations load, its commands and extras exist, its links lead somewhere."""

import re
import tomllib
from pathlib import Path

import pytest

from bertjax.cli.main import COMMANDS
from bertjax.config.loading.load import load

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", CONFIGS)
def test_configuration_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    shown = re.findall(r"^    bertjax train my\.yaml (\S+=.*)$", README, re.MULTILINE)
    overrides = [override for line in shown for override in line.split()]
    assert len(overrides) == 2
    config = load(path, overrides)
    assert [stage.name for stage in config.stages] == ["pretrain", "squad"]
    assert config.stages[0].steps == 5000
    assert config.stages[1].trainable.kind == "gradual"


def test_there_is_a_configuration() -> None:
    assert CONFIGS


def test_commands_exist() -> None:
    shown = re.findall(r"^    bertjax ([a-z-]+)(?: ([a-z-]+))?", README, re.MULTILINE)
    assert len(shown) >= 5
    for first, second in shown:
        assert first in COMMANDS or f"{first} {second}" in COMMANDS, f"bertjax {first} {second}"


def test_extras_are_all_explained() -> None:
    table = README[README.index("| extra |") :].split("\n\n")[0]
    explained = {name for row in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert explained == set(project["optional-dependencies"])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)) <= targets


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links and not missing
