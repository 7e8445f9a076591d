"""Errors that end a command, with the exit codes that launchers read (0: done, 70: a bug)."""

import errno
import os
import re
import signal
import traceback
from pathlib import Path

_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
_NETWORK_ERRORS = {errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO}  # of a shared file system
_LIMIT_ERRORS = {
    errno.EMFILE: "open files: raise `ulimit -n`",
    errno.ENFILE: "open files: the machine's limit, fs.file-max, is reached",
    errno.EAGAIN: "processes or threads: raise `ulimit -u`, or set run.prepare_workers lower",
}
_PATH_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENXIO,
}
_DEVICE_REMEDY = (
    "lower batch_size, raise grad_accum, set run.remat=full, split the model with mesh.fsdp, or use larger devices"
)
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


def known_error(error: BaseException) -> BertjaxError | None:
    """Translate an error that Python, the system, jax or a Rust library raised; None for one that only a bug explains.

    Memory that is missing today is missing when the command runs again, hence UserError and not StoppedSafely.
    """
    if isinstance(error, BertjaxError):
        return error
    text, where = brief(error, 160), error_line(error, "bertjax")
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, MemoryError):
        return UserError(f"out of memory on this machine ({text}; {where}); use smaller input or a larger machine")
    if isinstance(error, RecursionError):
        return UserError(f"the input is nested too deeply ({where}); flatten it")
    if isinstance(error, OverflowError):
        return UserError(f"a number in the input is too large ({text}; {where}); correct it")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return UserError(
            f"a name or text holds bytes that are not UTF-8 ({error.object[:100]!a}); rename or correct it"
        )
    if isinstance(error, ModuleNotFoundError) and not (error.name or "bertjax").startswith("bertjax"):
        return UserError(f"the package '{error.name}' is missing; install it with pip")
    if type(error) is ImportError and "cannot import name" not in text and "circular" not in text:
        remedy = "install its package again, or allow the process more memory (`ulimit -v`)"
        return UserError(f"a library cannot be loaded ({text}; {where}); {remedy}")
    if isinstance(error, RuntimeError):
        return _runtime_error(str(error))
    if is_panic(error):
        return UserError(f"a library failed on the input ({text}; {where}); check the files that it reads")
    return None


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust panicked; pyo3's class for it is no Exception, and no module exports it."""
    return type(error).__name__ == "PanicException"


def _system_error(error: OSError) -> BertjaxError | None:
    where = f"{error.filename or 'storage'}: {error.strerror}"
    if error.errno in _STORAGE_ERRORS | _NETWORK_ERRORS:
        return StorageError(where)
    if error.errno is None and "requested and" in str(error):  # NumPy has written a part of an array
        return StorageError(f"{error.filename or 'storage'}: could not be written ({brief(error)}); is the disk full?")
    if error.errno == errno.ENOMEM:
        return UserError(f"out of memory on this machine ({where}); use smaller input or a larger machine")
    if remedy := _LIMIT_ERRORS.get(error.errno or 0):
        return UserError(f"this process may have no more {remedy} ({where})")
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_working_directory():
        return UserError("the working directory was deleted; change to another one")
    return UserError(where) if error.errno in _PATH_ERRORS else None


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _runtime_error(text: str) -> BertjaxError | None:
    line = " ".join(text.split())[:200]
    if line.startswith("RESOURCE_EXHAUSTED"):  # jax, in a step or in the compiler
        return UserError(f"out of memory on the device ({line.partition(': ')[2][:160]}); {_DEVICE_REMEDY}")
    if line.startswith("Unable to initialize backend"):
        return UserError(f"{text.splitlines()[0][:200]}; choose another --device")
    if line.startswith("can't start new thread"):
        return UserError(f"this process may have no more {_LIMIT_ERRORS[errno.EAGAIN]}")
    if line.startswith("Symlink loop"):  # pathlib before Python 3.13
        return UserError(f"{line[:160]}: a link leads back to itself; remove it")
    return None


def exit_code(error: BaseException) -> int:
    """The exit code that an exception deserves; 70 for a bug."""
    if (known := known_error(error)) is not None:
        return known.exit_code
    if not isinstance(error, Exception):  # KeyboardInterrupt and requests to stop
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else StoppedSafely.exit_code
    return BertjaxError.exit_code


def brief(error: BaseException, limit: int = 100) -> str:
    """The text of another library's error, or its class, for one line."""
    return " ".join((str(error) or type(error).__name__).split())[:limit]


def error_line(error: BaseException, package: str = "") -> str:
    """The class of an error and the line of code that raised it: `ZeroDivisionError, my_metrics.py:12`.

    With `package`, the last line of code in a folder of that name, if there is one.
    """
    frames = list(traceback.extract_tb(error.__traceback__))
    frames = [frame for frame in frames if package in Path(frame.filename).parts] or frames if package else frames
    return f"{type(error).__name__}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def escape_unprintable(message: str) -> str:
    """Escape line ends, control characters and lone surrogates in a message that quotes input."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)


def escape_surrogates(text: str) -> str:
    """Escape lone surrogates, the bytes of a file name that are not UTF-8, which no stream takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def escape_controls(text: str) -> str:
    """Escape control characters and line ends, so that a text that a model wrote is one line in a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
