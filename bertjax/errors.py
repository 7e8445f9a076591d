"""Errors that end a command, with the exit codes that launchers read (0: done, 70: a bug)."""

import re
import traceback
from pathlib import Path

_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # without the tab


class BertjaxError(Exception):
    """A failure reported in one line, without a traceback."""

    exit_code = 70


class UserError(BertjaxError):
    """Invalid input. The message names the file and the key or line, and the remedy."""

    exit_code = 2


class DivergedError(BertjaxError):
    """The loss or the gradients stayed non-finite; nothing non-finite was saved."""

    exit_code = 3


class StorageError(BertjaxError):
    """A checkpoint or a file could not be written or read back."""

    exit_code = 4


class StoppedSafely(BertjaxError):
    """Interrupted after saving; the same command continues the run."""

    exit_code = 75


class CorruptionError(BertjaxError):
    """A device computed or holds other bits than it should; the last checkpoint is from before."""

    exit_code = 75


def brief(error: BaseException, limit: int = 100) -> str:
    """The text of another library's error, or its class, for one line."""
    return " ".join((str(error) or type(error).__name__).split())[:limit]


def error_line(error: BaseException) -> str:
    """The class of an error and the line of code that raised it: `ZeroDivisionError, my_metrics.py:12`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def escape_unprintable(message: str) -> str:
    """Escape line ends, control characters and lone surrogates in a message that quotes input."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)


def escape_controls(text: str) -> str:
    """Escape control characters and line ends, so that a text that a model wrote is one line in a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
