"""Input changed by chance through every parser: it is read, or refused in one line; no hang, under 2 GB.

The fast test tries a few inputs of fixed seeds; the slow ones try many (BERTJAX_FUZZ_COUNT of them for each parser).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tally
from fuzz_targets import TARGETS

KIT = Path(__file__).parent / "kit"


def fuzz(count: int, seed: int, *targets: str, seconds: int) -> list[dict[str, Any]]:
    paths = os.pathsep.join([str(KIT), str(KIT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    command = [sys.executable, str(KIT / "fuzz_child.py"), str(count), str(seed), *targets]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, errors="replace")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]} ended the process ({done.returncode}):\n{done.stderr[-3000:]}"
    return [line for line in lines if "tried" in line]


def check(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["failure"] is None, json.dumps(found, indent=1)
        assert found["peak_mb"] < 2000


def test_a_few_inputs_to_each_parser():
    results = fuzz(4, 0, seconds=500)
    assert [found["target"] for found in results] == [*TARGETS]
    check(results)
    assert sum(found["refused"] for found in results) > len(TARGETS)  # the changes matter


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_many_inputs_to_one_parser(target):
    count = int(os.environ.get("BERTJAX_FUZZ_COUNT", "300"))
    (found,) = fuzz(count, int(os.environ.get("BERTJAX_FUZZ_SEED", "1")), target, seconds=3500)
    check([found])
    assert 0 < found["refused"] <= found["tried"] or target == "report"  # which shows what it can
    tally.add(
        "input changed by chance", "into each parser; else it is still valid", found["tried"], detected=found["refused"]
    )


def test_a_failure_is_seen(tmp_path):
    """The control: parsers that let an error of Python through, that hang, and whose error has two lines."""
    control = tmp_path / "control.py"
    control.write_text(
        "import sys, fuzz_targets, fuzz_child\n"
        "from bertjax.errors import UserError\n"
        "def bad(folder):\n"
        "    (folder / 'x').read_bytes().decode('ascii')\n"
        "def hangs(folder):\n"
        "    while (folder / 'x').read_bytes() != b'abc': pass\n"
        "def long(folder):\n"
        "    if (folder / 'x').read_bytes() != b'abc': raise UserError('a\\nb')\n"
        "fuzz_child.SECONDS = 0.3\n"
        "files = {'x': b'abc'}\n"
        "fuzz_targets.TARGETS.update(bad=(bad, files), hangs=(hangs, files), long=(long, files))\n"
        "fuzz_child.main()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(KIT), str(KIT.parents[1])])}
    command = [sys.executable, str(control), "200", "0", "bad", "hangs", "long"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    failures = [line["failure"] for line in map(json.loads, done.stdout.splitlines()) if "tried" in line]
    assert [failure[0] for failure in failures] == ["UnicodeDecodeError", "Timeout", "AssertionError"], done.stderr
