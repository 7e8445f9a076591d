"""The pages in docs/ name only commands, configurations, benchmarks, tests and pages that exist; the site builds."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bertjax.cli.main import COMMANDS
from bertjax.config.loading.load import build

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITHDRAWN = r"\b(rollcall|lifelines|workplace|whole|anew|mend|lies|stands)\b"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_what_it_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"\b((?:configs|benchmarks|tests|bertjax|launch)/[\w/]+\.(?:py|yaml|sh|sbatch))\b", text)
    assert not [name for name in named if not (ROOT / name).is_file()]
    for first, second in re.findall(r"^    (?:\$ )?bertjax ([a-z-]+)(?: ([a-z-]+)\b)?", text, re.MULTILINE):
        assert first in COMMANDS or f"{first} {second}" in COMMANDS, f"bertjax {first} {second}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_plain_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("whole-word masking", "")
    assert not re.findall(WITHDRAWN, text, re.IGNORECASE)


def test_architecture_lists_the_layers_that_are_checked() -> None:
    tree = ast.parse((ROOT / "tests" / "test_floors.py").read_text(encoding="utf-8"))
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    checked = [set(line.split()) for line in ast.literal_eval(values["FLOORS"])[""]]
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)
    assert [set(re.findall(r"\w+", row)) for row in rows] == checked[::-1]


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Strict: a broken link or anchor, a page outside the navigation and an unknown identifier are errors."""
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("the docs group is not installed: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {page.relative_to(tmp_path).with_suffix("").as_posix() for page in tmp_path.rglob("*.html")}
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} < built
    assert {"api/models", "api/training", "api/data"} < built, "pages of the API reference"


@pytest.mark.parametrize("name", ["toy_source", "toy_objective"])
def test_the_kinds_shown_are_those_that_the_tests_train_with(name):
    code = (ROOT / "tests" / "kit" / f"{name}.py").read_text(encoding="utf-8").split('"""\n\n', 1)[1]
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fragments_of_the_machine_and_the_run_are_valid(page):
    """Fragments with tasks and stages belong to the configurations in configs/ (tests/test_configs.py)."""
    stage = {"name": "s", "steps": 1, "data": {"source": {"files": ["a.txt"]}}}
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        fragment = yaml.safe_load(text)
        if isinstance(fragment, dict) and fragment.keys() <= {"mesh", "run"}:
            build({"stages": [stage], **fragment})
