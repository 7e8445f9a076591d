"""The blocks of docs/python.md run in order, as the cells of a notebook."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
CELLS = "import json, sys\nfor cell in json.load(sys.stdin):\n    exec(compile(cell, 'cell', 'exec'), globals())\n"


def test_every_block_compiles() -> None:
    assert len(BLOCKS) >= 9
    for number, block in enumerate(BLOCKS):
        compile(block, f"block {number} of {PAGE.name}", "exec")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_runs(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(PAGE.parents[1]), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    cells = [
        *BLOCKS,
        "assert params['layers']['1']['mlp']['output']['kernel'].shape == (128, 64)\nprint('all cells ran')",
    ]
    done = subprocess.run(
        [sys.executable, "-c", CELLS], input=json.dumps(cells), cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "all cells ran" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    assert "balanced_accuracy" in done.stdout and "lowest loss" in done.stdout
