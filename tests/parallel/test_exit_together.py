"""Which errors of a process are due to the end of another one. A fake monitor stands for the others."""

import errno
import os
from types import SimpleNamespace

import jax
import pytest

from bertjax.errors import StoppedSafely, StorageError, UserError, exit_code
from bertjax.interrupts import StopRequested
from bertjax.parallel.multihost import peer_monitor, sigabrt
from bertjax.parallel.multihost.exit_together import exit_together
from bertjax.parallel.multihost.peer_monitor import Departure

GLOO = "UNKNOWN: Gloo all-reduce failed: [pair.cc:553] Connection closed by peer [127.0.0.1]:53130"


@pytest.fixture
def job(monkeypatch) -> SimpleNamespace:
    """A job of two processes; `lost` and `left` are what the monitor knows, `said` what this one said when it left."""
    job = SimpleNamespace(others={1}, lost=None, left={}, said=[], exits=[])
    job.find_lost = lambda limit: job.lost
    job.leave = lambda code, why="": job.said.append((code, why))

    def leave(code: int) -> None:
        job.exits.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(peer_monitor, "current", job)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sigabrt, "_exit_code", [])
    return job


def leaves_with_75(error: BaseException, capfd) -> str:
    with pytest.raises(SystemExit) as left, exit_together():
        raise error
    assert left.value.code == 75
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("another process is gone (") and line.endswith("); run the same command again")
    return line


ERRORS = [
    ValueError("buffer has been deleted"), OSError(errno.ENOSPC, "full"), StorageError("3: could not be written"),
    UserError("bad"), jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes"), KeyError("x"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_after_a_process_is_gone_is_75(job, capfd, error):
    job.lost = "process 1 on host-1"
    assert "(process 1 on host-1)" in leaves_with_75(error, capfd)
    assert job.said == [], "the others find out by themselves"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_while_all_are_there_keeps_its_own_code(job, error):
    with pytest.raises(type(error)) as raised, exit_together():
        raise error
    assert raised.value is error and job.exits == []
    ((code, why),) = job.said
    assert code == exit_code(error) and why.startswith(type(error).__name__)
    assert sigabrt._exit_code == [code], "also if another one is gone before this one has ended"


@pytest.mark.parametrize(
    "error",
    [
        StorageError(GLOO),
        jax.errors.JaxRuntimeError(GLOO), ValueError(GLOO),
        jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses"),
        jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclAllReduce() failed: remote process exited"),
    ],
)  # fmt: skip
def test_broken_communication_is_75_even_if_all_are_there(job, capfd, error):
    assert str(error)[:60] in leaves_with_75(error, capfd)


@pytest.mark.parametrize(
    ("text", "code"),
    [("RESOURCE_EXHAUSTED: Out of memory", 2), ("INVALID_ARGUMENT: Argument does not match", 70)],
)
def test_a_failure_of_the_program_is_not(job, text, code):
    with pytest.raises(jax.errors.JaxRuntimeError), exit_together():
        raise jax.errors.JaxRuntimeError(text)
    assert job.said[0][0] == code


@pytest.mark.parametrize("error", [ValueError("no answer"), StorageError("no answer")])
def test_an_error_after_another_ended_with_one_of_its_own_is_75(job, capfd, error):
    job.left = {1: Departure("process 1 on host-1", 4, "StorageError: full")}
    assert "(process 1 on host-1 ended with exit code 4)" in leaves_with_75(error, capfd)


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (ValueError("the same"), 70, "ValueError: the same"),
        (UserError("the same"), 2, "UserError: the same"),
        (StorageError("the same"), 4, "StorageError: the same"),
        (UserError("another"), 2, "UserError: the same"),
        (ValueError("after the last step"), 0, ""),
    ],
)
def test_an_error_that_all_have_keeps_its_code(job, error, code, why):
    job.left = {1: Departure("process 1 on host-1", code, why)}
    with pytest.raises(type(error)), exit_together():
        raise error
    assert job.exits == []


@pytest.mark.parametrize(
    ("error", "code"), [(StoppedSafely("saved"), 75), (StopRequested(), 75), (KeyboardInterrupt(), 130)]
)
def test_a_stop_asks_nobody(job, error, code):
    job.find_lost = None  # not called
    with pytest.raises(type(error)), exit_together():
        raise error
    assert job.said[0][0] == code


def test_the_end_is_said_too(job):
    with exit_together():
        pass
    assert job.said == [(0, "")] and sigabrt._exit_code == []


def test_a_single_process_asks_nobody(job):
    job.others = set()
    job.find_lost = job.leave = None
    with pytest.raises(ZeroDivisionError), exit_together():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), 4), (OSError(errno.EIO, "broken"), 4), (PermissionError(errno.EACCES, "no"), 2),
        (FileNotFoundError(errno.ENOENT, "none"), 70), (ModuleNotFoundError("x", name="wandb"), 2),
        (ModuleNotFoundError("x", name="bertjax.x"), 70), (RuntimeError("Unable to initialize backend 'tpu'"), 2),
        (RuntimeError("x"), 70), (KeyboardInterrupt(), 130), (StopRequested(), 75), (StoppedSafely("x"), 75),
    ],
)  # fmt: skip
def test_exit_codes(error, code):
    assert exit_code(error) == code
