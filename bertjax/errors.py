"""Errors that end a command, with the exit codes that launchers read (0: done, 70: a bug)."""


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


def brief(error: BaseException, limit: int = 100) -> str:
    """The text of another library's error, or its class, for one line."""
    return " ".join((str(error) or type(error).__name__).split())[:limit]


def escape_unprintable(message: str) -> str:
    """Escape line ends, control characters and lone surrogates in a message that quotes input."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)
