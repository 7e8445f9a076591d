"""Report a run on the terminal and in train.log of its folder: lines, warnings of libraries, and what ended it."""

import logging
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bertjax
from bertjax.errors import BertjaxError
from bertjax.interrupts import StopRequested
from bertjax.progress import reporter as progress
from bertjax.progress.reporter import Reporter, terminal


@contextmanager
def report_run() -> Iterator[Reporter]:
    """The reporter of a run: progress on the terminal of standard output; warnings as lines; all of it in the log.

    The log is opened by `open_run_log` once the run folder exists; of a run that fails before, there is none.
    """
    handler = _WarningLines()
    root, before = logging.getLogger(), warnings.showwarning
    with progress.use(Reporter(display=lambda: terminal(sys.stdout))) as reporter:
        words = shlex.join(["bertjax", *sys.argv[1:]])
        reporter.outlives_streams = True  # `| head` or a closed terminal must not end a training run
        reporter.log(f"bertjax {bertjax.__version__}: {words}")
        root.addHandler(handler)
        warnings.showwarning = _say_warning  # type: ignore[assignment]
        try:
            yield reporter
        except BertjaxError as error:  # the command prints it
            reporter.log(str(error))
            raise
        except StopRequested:
            raise
        except BaseException as error:
            reporter.log("".join(traceback.format_exception(error)))
            raise
        finally:
            warnings.showwarning = before
            root.removeHandler(handler)


def open_run_log(reporter: Reporter, run_dir: Path, process: int) -> None:
    """Open train.log, or train.PROCESS.log of another process than the primary, which has only its own warnings."""
    name = f"train.{process}.log" if process else "train.log"
    if process:
        reporter.forget()
    reporter.open_log(run_dir / name)


class _WarningLines(logging.Handler):
    """Warnings and errors that libraries log, as lines of the reporter."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            own = record.name.split(".")[0] == "bertjax"
            text = record.getMessage() if own else f"{record.levelname.lower()}: {record.getMessage()}"
            (progress.current.log if self._is_printed(record) else progress.say)(text)
        except Exception:  # a message that does not format, a closed stream
            self.handleError(record)

    def _is_printed(self, record: logging.LogRecord) -> bool:
        """Whether another handler, such as one of jax or of the program around the run, gets the record too."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self and handler.level <= record.levelno for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def _say_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    text = " ".join(str(message).split())
    progress.say(f"warning: {text} ({category.__name__}, {Path(filename).name}:{lineno})")
