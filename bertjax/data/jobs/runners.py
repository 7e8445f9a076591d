"""How `bertjax prepare` runs its jobs: in processes of this machine or Beam pipelines, ended safely by signals."""

import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bertjax.data.jobs.jobs import LocalRunner, Runner
from bertjax.data.jobs.scratch_dir import KEPT_MESSAGE
from bertjax.errors import StoppedSafely, UserError
from bertjax.interrupts import GRACE_SECONDS, INTERRUPTED_EXIT_CODE, CtrlCCounter, exit_now, handle_signals


def beam_options(joined: str | None, separate: Sequence[str]) -> list[str]:
    """Beam's options from one string (`--beam-args`) and from the arguments after `--`."""
    try:
        return [*shlex.split(joined or ""), *separate]
    except ValueError as error:
        raise UserError(f"--beam-args: {error} in {joined!a:.80}; close the quotes") from None


def make_runner(name: str, beam_args: Sequence[str] = (), workers: int = 1) -> Runner:
    """The runner called `name`; `beam_args` are Beam's own pipeline options (`--runner=DataflowRunner` ...).
    Without them Beam runs on this machine, in `workers` processes.

    Raises UserError when Beam is not installed or does not know one of the options.
    """
    if name == "local":
        if beam_args:
            raise UserError(f"options for Beam ({beam_args[0][:60]} ...) need --runner beam")
        return LocalRunner()
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError(
            "--runner beam: Apache Beam is missing; in an environment of its own: pip install 'bertjax[beam,gcs]'"
        ) from None

    from bertjax.data.jobs.beam_runner import BeamRunner

    return BeamRunner(beam_args, workers)


class _Stop(BaseException):
    """Not an Exception, which code in between might handle as a failure of its own."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Inside the block SIGTERM or Ctrl-C raises StoppedSafely (exit code 75), and finished parts are kept; a second
    Ctrl-C exits at once."""
    presses, over, raised = CtrlCCounter(), threading.Event(), list[int]()

    def stop(number: int) -> None:
        if not raised:  # a second one would interrupt the cleanup
            raised.append(number)
            raise _Stop

    def wait() -> None:
        if not over.wait(GRACE_SECONDS):
            exit_now(StoppedSafely.exit_code, f"stopped; {KEPT_MESSAGE}")

    def on_signal(received: bytes) -> None:
        if signal.SIGINT in received and presses.is_repeated():
            exit_now(INTERRUPTED_EXIT_CODE, f"interrupted; {KEPT_MESSAGE}")
        threading.Thread(target=wait, name="stopped", daemon=True).start()

    try:
        signals = [signal.SIGTERM, signal.SIGINT]
        with handle_signals(signals, stop, on_signal, retry_on=(_Stop,), on_retry=raised.clear):
            yield
    except _Stop:
        raise StoppedSafely(f"stopped; {KEPT_MESSAGE}") from None
    finally:
        over.set()
