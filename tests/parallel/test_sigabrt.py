"""What becomes of SIGABRT in a process of a job: 75 when the coordination service is gone, an abort otherwise."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ABORT = """
import os, signal, sys, threading
import jax
from bertjax.parallel.multihost import sigabrt

if len(sys.argv) > 1:
    jax.distributed.initialize(sys.argv[1], 1, 0)
sigabrt.install_handler()
if sys.argv[2:] == ["thread"]:  # as jax does it: not from the main thread
    threading.Thread(target=os.abort).start()
    threading.Event().wait()
os.abort()
"""


def ended(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ABORT, *words], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2], env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_without_a_service_an_abort_is_75():
    done = ended()
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == (
        "another process is gone (jax's coordination service ended this process); run the same command again"
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("thread",)])
def test_an_abort_while_the_service_answers_stays_one(how):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = ended(address, *how)
    assert done.returncode == -signal.SIGABRT and "another process" not in done.stderr
