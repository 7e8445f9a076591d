"""What the pages in docs/ show is there: commands, configurations, benchmarks, tests and the pages they link to."""

import re
from pathlib import Path

import pytest

from bertjax.cli.arguments import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_it_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"\b((?:configs|benchmarks|tests|bertjax)/[\w/]+\.(?:py|yaml))\b", text)
    assert not [name for name in named if not (ROOT / name).is_file()]
    for first, second in re.findall(r"^    (?:\$ )?bertjax ([a-z-]+)(?: ([a-z-]+)\b)?", text, re.MULTILINE):
        assert first in COMMANDS or f"{first} {second}" in COMMANDS, f"bertjax {first} {second}"
