"""The entry point `bertjax`: parse the arguments and run one command.

Exit codes: 0 done, 2 bad input (one line per problem, no traceback), 3 diverged, 4 storage, 75 stopped safely (run the
same command again), 70 a bug (traceback), 130 interrupted.
"""

import argparse
import difflib
import gc
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from bertjax import interrupts
from bertjax.cli import (
    checks,
    compare_mlm,
    completion,
    data,
    evaluate,
    explore,
    glue,
    inspect,
    predict,
    show,
    start,
    train,
)
from bertjax.cli.arguments import Command, load_plugins
from bertjax.errors import BertjaxError, StoppedSafely, UserError, escape_surrogates, escape_unprintable, known_error
from bertjax.interrupts import INTERRUPTED_EXIT_CODE, interruptible
from bertjax.progress import reporter

_ALL = (
    start.demo, start.init, start.configs, start.tasks, train.train, evaluate.evaluate, train.compare, train.ladder,
    glue.glue,
    predict.fill_mask, predict.answer, predict.classify, predict.tag, predict.embed, predict.generate, data.prepare,
    data.mix, show.show, show.tokenize, inspect.inspect, inspect.plan, inspect.import_folder, inspect.export,
    inspect.quantize, evaluate.report, evaluate.qa_report, evaluate.score_squad, evaluate.compare_predictions,
    compare_mlm.compare_mlm, explore.explore, checks.verify, checks.verify_run, checks.doctor, start.schema,
    completion.completion,
)  # fmt: skip
COMMANDS = {command.name: command for command in _ALL}
_EXIT_CODES_HELP = (
    "exit codes: 0 done, 2 bad input, 3 diverged, 4 storage, 75 stopped safely (run the same command again), 70 a bug, "
    "130 Ctrl-C"
)
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\Z")


class _StoreOnce(argparse.Action):
    """Keeps the value of an option, and refuses a second one: argparse would drop the first in silence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string is not None and parser.given.setdefault(self.dest, values) != values:
            parser.error(f"{option_string} is given twice; give it once")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.given: dict[str, Any] = {}  # the value of each option so far
        self.register("action", None, _StoreOnce)

    def error(self, message: str) -> Any:  # type: ignore[override]
        message = message.replace("the following arguments are required", "missing")
        raise UserError(f"{self.prog}: {message[:200]}; try --help")


def run_process() -> NoReturn:
    """Ends the process with the exit code of `main`."""
    # Modules and traced programs are many objects and no garbage: by default the collector takes 8 % of a start.
    gc.set_threshold(20_000, 10, 10)
    code = main()
    # In the interpreter's clean-up, a signal leaves with the code of the command.
    for number in {*interrupts.stop_signals()} - {signal.SIGINT}:
        signal.signal(number, lambda *_: os._exit(code))
    _flush()  # else the interpreter does, and a closed pipe or terminal changes the code
    stopped, distributed = code == StoppedSafely.exit_code, _is_distributed()
    if distributed and not stopped and code != 0:  # jax's own end waits for processes that may never come
        from bertjax.parallel.multihost.exit_together import wait_for_others

        wait_for_others()
    if code == INTERRUPTED_EXIT_CODE or (code and stopped != distributed):
        # The device may still compute or compile: the interpreter's clean-up would crash in it, or wait for it.
        interrupts.kill_children()
        os._exit(code)
    if code and not distributed:
        _end_soon(code)
    sys.exit(code)


def _end_soon(code: int) -> None:
    """Ends the process after a while: after a failed save, threads of a library may wait for ever."""
    ends = threading.Timer(interrupts.GRACE_SECONDS, os._exit, (code,))
    ends.daemon = True
    ends.start()


def _flush() -> None:
    """Flushes both streams; one whose reader is gone goes nowhere from now on."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            reporter.discard(stream)


def _is_distributed() -> bool:
    """Whether jax has to tell other processes that this one ends."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    _open_closed_streams()
    try:
        with interruptible():
            code = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _print_error("interrupted")
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError as error:
        return _broken_pipe(error)
    except Exception as error:
        return _report(error)
    except BaseException as error:  # a panic of a Rust library is no Exception
        if known_error(error) is None:
            raise
        return _report(error)


def _print_error(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")  # at once, not as print does: other threads write too
    except OSError:  # the terminal is closed: the code says enough
        reporter.discard(sys.stderr)


def _open_closed_streams() -> None:
    """Opens what the caller closed (`>&-`): the next file would take its number, and get what is printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _run(argv: list[str]) -> int:
    if argv[:1] == ["help"]:  # `help train` is `train --help`
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        from bertjax import __version__

        print(f"bertjax {__version__}")
        return 0
    if argv[1:2] in (["-h"], ["--help"]) and argv[0] not in COMMANDS and _group(argv[0]):
        print(_usage(_group(argv[0])))
        return 0
    name, rest = _split_command(argv)
    command = COMMANDS[name]
    arguments = _parse(name, command, rest)
    if arguments is None:
        return 0
    arguments.commands = COMMANDS  # for `completion`
    arguments.command = name
    load_plugins(arguments)
    reporter.begin(f"bertjax {name}")
    try:
        return command.run(arguments)
    finally:
        reporter.current.close()


def _group(first: str) -> dict[str, Command]:
    """The two-word commands that start with this word."""
    return {name: command for name, command in COMMANDS.items() if name.startswith(first + " ")}


def _usage(commands: Mapping[str, Command] = COMMANDS) -> str:
    """The help text of all commands, or of a group such as `predict`."""
    width = max(map(len, commands)) + 2
    lines = [f"  {name:<{width}}{command.help}" for name, command in commands.items()]
    first = "train debug/cpu run.name=trial" if commands is COMMANDS else next(iter(commands)) + " --help"
    example = f"example: bertjax {first}\n`bertjax COMMAND --help` shows the options of a command.\n"
    return "usage: bertjax COMMAND ...\n\n" + "\n".join(lines) + f"\n\n{example}{_EXIT_CODES_HELP}"


def _split_command(argv: list[str]) -> tuple[str, list[str]]:
    """-> (command name, remaining arguments). Raises UserError."""
    first = argv[0]
    if first in COMMANDS:
        return first, argv[1:]
    seconds = [name.split()[1] for name in _group(first)]
    if not seconds:
        what = "option" if first.startswith("-") else "command"
        words = ["--help", "--version"] if first.startswith("-") else [name.split()[0] for name in COMMANDS]
        raise UserError(f"bertjax: unknown {what} {first[:80]!a}{_suggest(first, words) or '; try --help'}")
    second = argv[1] if len(argv) > 1 else ""
    if second not in seconds:
        got = f" (got {second[:80]!a}){_suggest(second, seconds)}" if second else ""
        expected = " or ".join(filter(None, [", ".join(seconds[:-1]), seconds[-1]]))
        raise UserError(f"bertjax {first}: expected {expected}{got}")
    return f"{first} {second}", argv[2:]


def _suggest(word: str, words: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, words, 1, 0.5)
    return f"; did you mean '{found[0]}'?" if found else ""


def _parse(name: str, command: Command, words: list[str]) -> argparse.Namespace | None:
    """Parses the arguments of a command, `overrides` included; None after printing its help. Raises UserError."""
    usage = f"bertjax {name}" + (" [options]" if any(names[0][0] == "-" for names, _ in command.options) else "")
    positional = [settings["metavar"] for names, settings in command.options if names[0][0] != "-"]
    usage = " ".join([usage, *positional, *(["[key.path=value ...]"] if command.overrides else [])])
    usage += f" [-- {command.rest} ...]" if command.rest else ""
    parser = _Parser(
        prog=f"bertjax {name}", usage=usage, description=command.help, add_help=False, allow_abbrev=False,
        epilog=f"examples{f' ({command.note})' * bool(command.note)}:\n"
        + "\n".join(f"  {line}" for line in command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for names, settings in command.options:
        parser.add_argument(*names, **settings)
    rest: list[str] = []
    if command.rest and "--" in words:
        words, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    flags = {flag: settings for names, settings in command.options for flag in names if flag.startswith("-")}
    overrides, words = _split_overrides(words, flags) if command.overrides else ([], words)
    own = words[: words.index("--")] if "--" in words else words
    if "-h" in own or "--help" in own:
        print(parser.format_help(), end="")
        return None
    for word in own:
        if word.startswith("-") and not word[1:2].isdigit() and word != "-" and word.split("=")[0] not in flags:
            hint = _near_key(word, command) or _suggest(word.split("=")[0], [*flags, "--help"])
            raise UserError(f"bertjax {name}: unknown option {word[:80]!a}{hint}")
    arguments, extra = parser.parse_known_intermixed_args(words)  # options may appear between RUN and its texts
    if extra:
        what = "expected key.path=value" if command.overrides else "unexpected argument"
        raise UserError(f"bertjax {name}: {what} (got {extra[0][:80]!a})")
    arguments.overrides, arguments.rest = overrides, rest
    return arguments


def _near_key(word: str, command: Command) -> str:
    """Suggests `run.seed` for `--seed`."""
    if not command.overrides:
        return ""
    from bertjax.config.loading.introspect import suggest_key
    from bertjax.config.schema.run import Config

    return suggest_key(word.lstrip("-").split("=")[0].replace("-", "_"), Config, {})


def _split_overrides(words: list[str], flags: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """-> (`a.b=1`, `--a.b=1` and `--a.b 1`, each as `a.b=1`; the other arguments)."""
    overrides, others, waiting = [], [], list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, _ = word.removeprefix("--").partition("=")
        dashed, is_key = word.startswith("--"), _KEY.match(key) is not None
        if word in flags and "action" not in flags[word] and waiting:
            others += [word, waiting.pop(0)]
        elif dashed and is_key and "." in key and not equals and waiting:
            overrides.append(f"{key}={waiting.pop(0)}")
        elif equals and is_key and ("." in key or not dashed):
            overrides.append(word.removeprefix("--"))
        else:
            others.append(word)
    return overrides, others


def _broken_pipe(error: BrokenPipeError) -> int:
    """Silent when the reader of standard output closed it (`| head`); any other broken pipe is a bug."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        gone = any(flags & (select.POLLERR | select.POLLHUP) for _, flags in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # standard output is not a file
        gone = False
    if not gone:
        return _report(error)
    reporter.discard(sys.stdout)  # or the interpreter reports an error at exit
    return 141


def _report(error: BaseException) -> int:
    """Print one line for an error with a known cause, a traceback for a bug; return the exit code."""
    known = known_error(error)
    if known is None:
        traceback.print_exception(error)
        return BertjaxError.exit_code
    _print_error(escape_surrogates(str(known)) if known is error else escape_unprintable(str(known)))
    return known.exit_code
