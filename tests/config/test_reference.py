"""The configuration reference is the page that the sections generate, and every option has a description."""

import subprocess
import sys
from pathlib import Path

from bertjax.config import reference
from bertjax.config.schema.base import Section, rebuild
from bertjax.config.schema.sources import SOURCES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration_reference.md"


def test_the_page_is_the_generated_one():
    command = "python -m bertjax.config.reference > docs/configuration_reference.md"
    assert PAGE.read_text(encoding="utf-8") == reference.render(), f"the schema changed: run {command}"


def test_every_option_has_a_description(monkeypatch):
    assert reference.undescribed() == []

    class Silent(Section):
        size: int = 1

    monkeypatch.setitem(SOURCES, "silent", Silent)
    rebuild()
    try:
        assert reference.undescribed() == ["Silent", "Silent.size"]
    finally:
        monkeypatch.undo()
        rebuild()


def test_the_page_is_made_without_jax():
    code = "import sys; from bertjax.config import reference; reference.render(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
