"""The configuration reference is the page that the sections generate, and every option has a description."""

import subprocess
import sys
from pathlib import Path

from bertjax.config import reference
from bertjax.config.schema.base import Section, rebuild
from bertjax.config.schema.run import Config
from bertjax.config.schema.sources import SOURCES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration_reference.md"


def test_the_page_is_the_generated_one():
    command = "python -m bertjax.config.reference > docs/configuration_reference.md"
    assert PAGE.read_text(encoding="utf-8") == reference.render(), f"the schema changed: run {command}"


def undescribed() -> list[str]:
    """`Section` and `Section.option` of all that have no description; a kind with one value needs none."""
    root = Config.model_json_schema()
    found = [name for name, section in root["$defs"].items() if not section.get("description")]
    for name, section in {"Config": root, **root["$defs"]}.items():
        options = section["properties"].items()
        found += [f"{name}.{key}" for key, option in options if not option.get("description") and "const" not in option]
    return found


def test_every_option_has_a_description(monkeypatch):
    assert undescribed() == []

    class Silent(Section):
        size: int = 1

    monkeypatch.setitem(SOURCES, "silent", Silent)
    rebuild()
    try:
        assert undescribed() == ["Silent", "Silent.size"]
    finally:
        monkeypatch.undo()
        rebuild()


def test_the_page_is_made_without_jax():
    code = "import sys; from bertjax.config import reference; reference.render(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
