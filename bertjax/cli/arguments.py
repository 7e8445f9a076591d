"""What commands are made of: the `command` decorator, argument types, shared options, first and last steps."""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.config.limits import MAX_COUNT, MAX_SIZE
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.storage.locations import local_path, path_problem

if TYPE_CHECKING:
    from bertjax.config.schema.run import Config

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
Option = tuple[tuple[str, ...], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    name: str  # one word or two
    run: Callable[[argparse.Namespace], int]  # -> exit code
    help: str
    options: tuple[Option, ...]
    examples: tuple[str, ...]
    overrides: bool = False  # takes key.path=value
    rest: str = ""  # what may follow `--`
    note: str = ""  # what the examples assume, such as a run


def command(
    name: str,
    help: str,
    *options: Option,
    examples: tuple[str, ...],
    overrides: bool = False,
    rest: str = "",
    note: str = "",
) -> Callable[[Callable[[argparse.Namespace], int]], Command]:
    """Makes a Command of the function below it. One that restores a checkpoint gets --plugins; a report does not."""
    if {"run", "checkpoint", "target"} & {names[0] for names, _ in options} and RUN not in options:
        options = (*options, PLUGINS)
    return lambda run: Command(name, run, help, options, examples, overrides, rest, note)


def option(*names: str, **settings: Any) -> Option:
    """The arguments of `ArgumentParser.add_argument`."""
    return names, settings


# ---- argument types -------------------------------------------------------------------------------------------------


def positive_int(text: str) -> int:
    return _integer(text, 1, "an integer above 0")


def non_negative_int(text: str) -> int:
    return _integer(text, 0, "an integer, 0 or above")


def size(text: str) -> int:
    """The length of an axis of an array."""
    return _integer(text, 1, "an integer above 0", MAX_SIZE)


def positive_ints(text: str) -> list[int]:
    return [positive_int(part) for part in text.split(",")]


def positive_float(text: str) -> float:
    number = _float(text)
    return number if 0 < number < math.inf else _reject("a number above 0", text)


def positive_floats(text: str) -> list[float]:
    return [positive_float(part) for part in text.split(",")]


def length_penalty(text: str) -> float:
    number = _float(text)
    return number if -2 <= number <= 100 else _reject("a number from -2 to 100", text)


def fraction(text: str) -> float:
    number = _float(text)
    return number if 0 < number <= 1 else _reject("above 0 and at most 1", text)


def finite_float(text: str) -> float:
    number = _float(text)
    return number if math.isfinite(number) else _reject("a finite number", text)


def _integer(text: str, least: int, what: str, most: int = MAX_COUNT) -> int:
    if not text.isdecimal() or len(text) > 18 or not least <= int(text) <= most:
        _reject(f"{what} and at most {most}" if text.isdecimal() and text.strip("0") else what, text)
    return int(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _reject(what: str, text: str) -> Any:
    raise argparse.ArgumentTypeError(f"must be {what} (got {text[:60]!a})")


# ---- options of several commands ------------------------------------------------------------------------------------

CONFIG = option("config", metavar="CONFIG", help="a YAML file, or the name of a shipped one (`bertjax configs`)")
MODEL = option(
    "checkpoint",
    metavar="MODEL",
    help="a run, one of its checkpoints, a Hugging Face folder, or a model on the Hub: org/name, org/name@revision",
)
RUN = option("run", metavar="RUN", help="a run folder")
BEST = option("--best", metavar="SCORE", help="the checkpoint with the best value of a score, such as squad/f1")
DEVICE = option("--device", choices=("cpu", "gpu", "tpu"), help="compute device (default: the best one available)")
DTYPE = option("--dtype", choices=("float32", "bfloat16"), help="compute dtype (default: run.compute_dtype of the run)")
STEP = option("--step", type=positive_int, help="step of the checkpoint (default: the latest)")
BASE = option("--base", metavar="MODEL", help="model below adapters or LoRA (default: the one they were trained on)")
OUTPUT = option("--output", metavar="FILE", help="output file")
JSON = option("--json", action="store_true", help="print JSON")


PLUGINS = option(
    "--plugins",
    metavar="FILE",
    action="append",
    help="Python file or module that the run was trained with; may be given more than once",
)


def load_plugins(arguments: argparse.Namespace) -> None:
    """Imports --plugins, after --device has chosen the platform: a plugin may import jax."""
    if getattr(arguments, "plugins", None):
        from bertjax.config.loading import plugins

        if hasattr(arguments, "device"):
            select_platform(arguments)
        for name in arguments.plugins:
            try:
                plugins.load_plugins(name)
            except UserError as error:
                raise UserError(f"--plugins: {error}") from error.__cause__


def dtype_override(arguments: argparse.Namespace) -> list[str]:
    """--dtype as an override of the checkpoint's configuration."""
    return [f"run.compute_dtype={arguments.dtype}"] if arguments.dtype else []


def base_model_argument(arguments: argparse.Namespace) -> dict[str, Any]:
    """--base as a keyword argument."""
    return {"base_model": pretrained_model(arguments.base)} if arguments.base else {}


# ---- paths ----------------------------------------------------------------------------------------------------------


def existing_path(path: str) -> Path:
    found = local_path(path)
    try:
        if found.exists():
            return found
    except (OSError, ValueError):  # a name too long, or one with a NUL in it
        pass
    raise UserError(f"{path[:200]!a}: no such file or folder")


def _check_url(name: str) -> None:
    """Raise UserError for a name that is meant as a URL of an object store and is none."""
    if problem := path_problem(name, remote=True):
        raise UserError(problem)


def pretrained_model(name: str) -> str | Path:
    """A run, checkpoint, Hugging Face folder or model on the Hub.

    Raises UserError if there is none. A model on the Hub is fetched now if it is not here. Of a folder in an object
    store only small files are: which weights are needed is known when they are read.
    """
    from bertjax.storage import pretrained, remote

    _check_url(name)
    if not remote.is_remote(name) and pretrained.hub_name(name) is None:
        return existing_path(name)
    from bertjax.config.loading.pretrained import locate_model, read_model_fields

    (read_model_fields if remote.is_remote(name) else locate_model)(name)
    return name


def run_folder(name: str, *, weights: bool = False) -> Path:
    """A run folder; of one in an object store a copy, which is made now: of its small files, or with its last step."""
    from bertjax.storage import remote, remote_folder

    _check_url(name)
    return remote_folder.fetch(name, weights=weights) if remote.is_remote(name) else existing_path(name)


def config_or_model(target: str) -> str | Path:
    """A configuration file (a path or a shipped name), else what `pretrained_model` finds."""
    from bertjax.config.loading.shipped import find_shipped
    from bertjax.storage.remote import is_remote

    _check_url(target)
    if is_remote(target):
        return pretrained_model(target)
    found = local_path(target)
    try:
        if found.is_file():
            return found
        shipped = None if found.exists() else find_shipped(target)
    except (OSError, ValueError):  # a name too long, or one with a NUL in it
        shipped = None
    return shipped or pretrained_model(target)


def output_path(path: str | None, inputs: Sequence[Path | None] = (), beside: Sequence[str] = ()) -> Path | None:
    """A file to write, and files `beside` it of the same name with these suffixes.

    Raises UserError, before any work, where its folder does not exist or cannot be written, or where one of them is a
    file that the command reads, which would be lost.
    """
    if path is None:
        return None
    out = local_path(path)
    existing_path(str(out.parent))
    if out.is_dir():
        raise UserError(f"{path[:200]!a}: is a folder; name a file")
    require_writable(out.parent)
    for written in [out.with_suffix(suffix) for suffix in beside] or [out]:
        if any(one is not None and _is_same_file(one, written) for one in inputs):
            raise UserError(f"{str(written)[:200]!a}: is read by this command and would be overwritten; name another")
    return out


def require_writable(folder: Path) -> None:
    """Raise UserError for a folder in which no file can be made, also by root."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = f"no file can be written here ({error.strerror}); name another"
        raise UserError(f"{str(folder)[:200]!a}: {why}") from None


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.is_file() and one.samefile(other)
    except OSError:  # there is none yet
        return False


def new_dir(path: str) -> Path:
    out = local_path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{path[:200]!a}: already exists; name a new folder")
    if out.name in ("", ".."):
        raise UserError(f"{path[:200]!a}: the current folder, or one above it; name a new folder")
    return out


# ---- texts ----------------------------------------------------------------------------------------------------------


def given_texts(arguments: argparse.Namespace) -> list[str]:
    """The texts on the command line, else the lines of --file or of standard input."""
    if arguments.text and arguments.file:
        raise UserError(f"bertjax {arguments.command}: give either TEXT or --file")
    if arguments.text:
        check_utf8(arguments.text)
        return list(arguments.text)
    if arguments.file:
        from bertjax.storage.text import read_text

        return split_lines(read_text(local_path(arguments.file), 100_000_000), arguments.file)
    return standard_input(f"bertjax {arguments.command}")


def check_utf8(texts: Sequence[str]) -> None:
    for text in texts:
        if not is_utf8(text):
            raise UserError(f"TEXT: {text[:60]!a} is not UTF-8 text; convert it first")


def is_utf8(text: str) -> bool:
    """Whether an argument is text; Python keeps its other bytes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def standard_input(command: str) -> list[str]:
    reporter.current.close()  # someone may be typing
    if sys.stdin is None:
        raise UserError(f"{command}: standard input is closed; give TEXT or --file")
    if sys.stdin.isatty():
        print(f"{command}: reading texts, one a line, from standard input; end with Ctrl-D", file=sys.stderr)
    try:
        content = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not UTF-8 text (byte {error.start}); convert it first") from None
    return split_lines(content, "standard input")


def split_lines(content: str, where: str) -> list[str]:
    if not content.strip():
        raise UserError(f"{where}: contains no text; give one text per line")
    return [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]


# ---- start and end of a command --------------------------------------------------------------------------------------


def select_platform(arguments: argparse.Namespace) -> None:
    """Applies --device. Call it before importing a module that imports jax, which reads JAX_PLATFORMS then."""
    reporter.begin(f"bertjax {getattr(arguments, 'command', '')}")
    from bertjax.parallel.host_allocator import cpu_only, keep_freed_memory

    if arguments.device:
        os.environ["JAX_PLATFORMS"] = _PLATFORMS[arguments.device]
    if cpu_only():
        keep_freed_memory()


def require_device(arguments: argparse.Namespace) -> None:
    """`select_platform` for single-process commands; raises UserError at once when the device does not exist.

    Training looks for its devices itself, after `jax.distributed` is initialized. Commands without --device use
    JAX_PLATFORMS.
    """
    if hasattr(arguments, "device"):
        select_platform(arguments)
    from bertjax.parallel.mesh import all_devices

    all_devices()


def load_config(arguments: argparse.Namespace) -> "Config":
    from bertjax.config.loading.load import load

    if hasattr(arguments, "device"):
        select_platform(arguments)  # before the configuration's plugins, which may import jax
    return load(arguments.config, arguments.overrides)


def print_result(result: Any) -> int:
    """Prints text as it is and anything else as JSON -> exit code 0."""
    reporter.current.close()
    print(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
    return 0
