"""Errors that Python, the system, jax or a Rust library raises: one line and the right code; a bug has a traceback."""

import argparse
import errno
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from bertjax.cli import main as cli
from bertjax.cli.arguments import Command
from bertjax.errors import StorageError, UserError, known_error

XLA_TPU = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.48G "
    "hbm. Exceeded hbm capacity by 5.02G.\n\nTotal hbm usage >= 21.02G:"
)


def allocate_on_device() -> None:
    import jax.numpy as jnp

    jnp.zeros(1 << 46, jnp.uint8).block_until_ready()


def fail_on_the_gpu() -> None:
    import jax

    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Failed to allocate request for 1.00TiB on device ordinal 0")


def compile_too_large() -> None:
    import jax

    raise jax.errors.JaxRuntimeError(XLA_TPU)


def recurse() -> None:
    recurse()


def overflow() -> None:
    np.zeros(2).fill(10**400)


def panic() -> None:
    tokenizers.Tokenizer.from_str(
        '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "pre_tokenizer": null, '
        '"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}, "post_processor": null, '
        '"decoder": null, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    )


def raises(error: BaseException):
    def run() -> None:
        raise error

    return run


CASES = {
    "device": (allocate_on_device, 2, ("out of memory on the device", "70368744177664", "batch_size", "mesh.fsdp")),
    "gpu": (fail_on_the_gpu, 2, ("out of memory on the device", "1.00TiB", "grad_accum", "run.remat")),
    "compiler": (compile_too_large, 2, ("out of memory on the device", "Used 20.50G of 15.48G")),
    "array": (lambda: np.empty(1 << 60, np.uint8), 2, ("out of memory on this machine", "1.00 EiB")),
    "memory": (raises(MemoryError()), 2, ("out of memory on this machine", "MemoryError")),
    "fork": (raises(OSError(errno.ENOMEM, "Cannot allocate memory")), 2, ("out of memory on this machine",)),
    "recursion": (recurse, 2, ("nested too deeply", "RecursionError, main.py")),
    "overflow": (overflow, 2, ("too large", "OverflowError, main.py")),
    "panic": (panic, 2, ("a library failed on the input", "precompiled_charsmap")),
    "surrogate": (lambda: "a\udcff".encode(), 2, ("not UTF-8", "\\udcff")),
    "link": (raises(RuntimeError("Symlink loop from '/a/b'")), 2, ("/a/b", "remove it")),
    "full": (raises(OSError(errno.ENOSPC, "No space left on device", "/f")), 4, ("/f: No space left",)),
    "denied": (raises(PermissionError(errno.EACCES, "Permission denied", "/f")), 2, ("/f: Permission denied",)),
    "part": (raises(OSError("4096 requested and 0 written")), 4, ("is the disk full?",)),
    "network": (raises(OSError(errno.ESTALE, "Stale file handle", "/f")), 4, ("/f: Stale file handle",)),
    "files": (raises(OSError(errno.EMFILE, "Too many open files", "/f")), 2, ("ulimit -n", "/f: Too many")),
    "processes": (raises(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")), 2, ("ulimit -u",)),
    "threads": (raises(RuntimeError("can't start new thread")), 2, ("threads", "ulimit -u")),
    "library": (raises(ImportError("libx.so: failed to map segment from shared object")), 2, ("libx.so", "ulimit -v")),
    "package": (raises(ModuleNotFoundError("x", name="wandb")), 2, ("'wandb' is missing",)),
}  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    def run(function) -> tuple[int, str]:
        command = Command("fail", lambda arguments: function() or 0, "fails", (), ("bertjax fail",))
        monkeypatch.setitem(cli.COMMANDS, "fail", command)
        code = cli.main(["fail"])
        return code, capsys.readouterr().err

    return run


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
def test_one_line_and_the_code(run, case):
    function, expected, mentions = CASES[case]
    code, err = run(function)
    assert code == expected, err
    assert err.count("\n") == 1 and "Traceback" not in err and len(err) < 400, err
    for word in mentions:
        assert word in err


BUGS = [
    ZeroDivisionError("x"), RuntimeError("INTERNAL: x"), OSError(errno.EBADF, "x"), OSError("x"),
    FileNotFoundError(errno.ENOENT, "x"), ImportError("cannot import name 'a' from 'b'"),
    ModuleNotFoundError("x", name="bertjax.x"),
]  # fmt: skip


@pytest.mark.parametrize("error", BUGS)
def test_a_bug_keeps_its_traceback(run, error):
    code, err = run(raises(error))
    assert code == 70 and "Traceback" in err and type(error).__name__ in err


def test_the_working_directory_was_deleted(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    code, err = run(Path.cwd)
    assert (code, err) == (2, "the working directory was deleted; change to another one\n")


STUCK = """
import sys, threading, time
from bertjax import interrupts
from bertjax.cli import main
from bertjax.cli.arguments import Command
from bertjax.errors import StorageError
interrupts.GRACE_SECONDS = 0.5
def run(arguments):
    threading.Thread(target=time.sleep, args=(float(sys.argv.pop()),)).start()  # not a daemon: Python waits for it
    if sys.argv.pop() == "fail":
        raise StorageError("the disk is full")
    return 0
main.COMMANDS["train"] = Command("train", run, "trains", (), ("bertjax train",))
main._parse = lambda name, command, words: main.argparse.Namespace(plugins=[])
main.load_plugins = lambda arguments: None
main.run_process()
"""


@pytest.mark.parametrize(("ends", "seconds", "code"), [("fail", 60, 4), ("done", 1.2, 0)])
def test_a_thread_that_waits_for_ever_does_not_keep_a_failed_command(ends, seconds, code):
    """A command that succeeds still waits for its threads."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK, "train", ends, str(seconds)], capture_output=True, timeout=50)
    assert done.returncode == code, done.stderr
    assert time.monotonic() - started < 45 and (code or time.monotonic() - started > 1.2)


def test_other_base_exceptions_pass_through(run):
    with pytest.raises(SystemExit):
        run(raises(SystemExit(9)))


def test_known_errors_are_themselves():
    own = UserError("mine")
    assert known_error(own) is own
    assert isinstance(known_error(OSError(errno.EIO, "x")), StorageError) and known_error(KeyError("x")) is None
    assert known_error(argparse.ArgumentError(None, "x")) is None
