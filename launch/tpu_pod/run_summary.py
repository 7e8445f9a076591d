"""The last metrics and the goodput of a run, read on a worker or from a bucket. Standard library, Python 3.8+."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

TAIL_BYTES = 1 << 16
TIMEOUT = 120.0
# goodput.jsonl on standard input; the package's own sum, of which only this module needs no accelerator.
GOODPUT = (
    "import json, sys\n"
    "from bertjax.training.monitor.goodput import summarize\n"
    "lines = [json.loads(line) for line in sys.stdin if line.endswith('\\n')]\n"
    "print(summarize(lines) or 'goodput: nothing yet')\n"
)


def summary_lines(run: str, code: Path, python: str) -> Iterator[str]:
    """Lines for people. `run`: a folder, from `code` if relative, or a gs:// URL; `python` has bertjax's packages."""
    metrics = _read(run, "metrics.jsonl", code, tail=True)
    lines = [line for line in (metrics or b"").decode(errors="replace").splitlines() if _is_object(line)]
    yield f"last metrics: {lines[-1]}" if lines else f"no metrics in {run} yet"
    goodput = _read(run, "goodput.jsonl", code, tail=False)
    if goodput is None:
        yield "no goodput yet"
        return
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            [python, "-c", GOODPUT], cwd=code, env=environment, input=goodput, capture_output=True, timeout=TIMEOUT
        )
        said = (done.stderr if done.returncode else done.stdout).decode(errors="replace").strip().splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        said = [f"goodput: {error}"]
    yield said[-1] if said else "goodput: no answer"


def _read(run: str, name: str, code: Path, *, tail: bool) -> bytes | None:
    """A file of the run, or its last bytes; None where there is none."""
    if run.startswith("gs://"):
        argv = ["gcloud", "storage", "cat", f"{run}/{name}", *([f"--range=-{TAIL_BYTES}"] if tail else [])]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout if done.returncode == 0 else None
    try:
        with open(code / run / name, "rb") as file:
            if tail:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read()
    except OSError:
        return None


def _is_object(line: str) -> bool:
    """Whether a line is complete: the first may be cut by the range, the last by the writer."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
