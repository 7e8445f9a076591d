"""Start bertjax commands as forks of one process that has imported everything: each starts in tenths of a second.

`ForkServer` is what tests use. As a program, this module answers lines of JSON on standard input:
{"argv", "environment", "cwd", "out", "faults"} starts a command -> its process id; {"wait": id} -> its status or null.

A fault is [where, call, what]: `where` names a function, `module:function` or `module:Class.method`; at its call number
`call` the process does `what`:

    kill             ends by SIGKILL                     raise TEXT       raises a ValueError
    disk full        raises the OSError of a full disk   hold FILE        writes the file and waits until it is gone
    signals N ...    gets these signals                  ignored N        the same, started with that signal ignored
    close FD ...     these lose their readers            set VALUE        (at the start) replaces the object
    wrap FUNCTION    (at the start) replaces `where` by FUNCTION(where), FUNCTION being MODULE:NAME
"""

import ctypes
import errno
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# The programs are small: compiling them takes far longer than running them.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SIGNAL_PAUSE = 0.7  # seconds between two signals
Fault = tuple[str, int, str]


class ForkedProcess:
    """A process that a ForkServer has started; standard output and error go to `out` and `err`."""

    def __init__(self, server: "ForkServer", pid: int, out: Path) -> None:
        self._server, self.pid, self.returncode = server, pid, None
        self.out, self.err = out.with_suffix(".out"), out.with_suffix(".err")

    def poll(self) -> int | None:
        """The return code as subprocess has it (negative: signal); None while the process runs."""
        if self.returncode is None:
            status = self._server.ask({"wait": self.pid})
            self.returncode = None if status is None else os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s:\n{self.err.read_text()}")
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """Starts processes; those that still run are killed at the end."""

    def __enter__(self) -> "ForkServer":
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "kit"), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_COMPILATION,
                              "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )  # fmt: skip
        self.running: list[ForkedProcess] = []
        return self

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, argv: Sequence[str], cwd: Path, out: Path, environment: Mapping[str, str], faults: Sequence[Fault] = ()
    ) -> ForkedProcess:
        about = {"cwd": str(cwd), "out": str(out), "environment": dict(environment), "faults": list(faults)}
        self.running.append(ForkedProcess(self, self.ask({"argv": list(argv), **about}), out))
        return self.running[-1]

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(10)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


# ---- the server -----------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer until standard input ends."""
    import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = status if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return run_command(request)
        print(json.dumps(answer), flush=True)


def import_everything() -> None:
    """What a training run needs; no device is touched, which a fork could not use."""
    import orbax.checkpoint  # noqa: F401
    import small_run  # noqa: F401

    import bertjax.cli.main
    import bertjax.evaluation.evaluators.build
    import bertjax.evaluation.evaluators.loss
    import bertjax.evaluation.evaluators.span_qa
    import bertjax.training.loop  # noqa: F401


def run_command(request: Mapping[str, Any]) -> None:
    """Become the command."""
    from bertjax.cli.main import run_process
    from bertjax.interrupts import install_process_handlers

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no process outlives the server
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, suffix in ((1, ".out"), (2, ".err")):
        if not (number == 1 and "stdout" in request):
            os.dup2(os.open(request["out"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv[1:] = request["argv"]
    for fault in request["faults"]:
        install(*fault)
        if fault[2].startswith("ignored "):
            signal.signal(int(fault[2].split()[1]), signal.SIG_IGN)
    install_process_handlers()
    run_process()


def install(where: str, call: int, what: str) -> None:
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    action, _, text = what.partition(" ")
    if action == "set":
        value = json.loads(text)
        kept = getattr(owner, name)
        if isinstance(kept, dict):
            kept.update(value)
        else:
            setattr(owner, name, value)
        return
    real: Callable[..., Any] = getattr(owner, name)
    if action == "wrap":
        maker, _, function = text.partition(":")
        setattr(owner, name, getattr(importlib.import_module(maker), function)(real))
        return
    calls = [0]

    @functools.wraps(real)
    def faulty(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            ACTIONS[action](text)
        return real(*arguments, **options)

    setattr(owner, name, faulty)


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _raise(text: str) -> None:
    raise ValueError(text)


def _disk_full(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk")


def _hold(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while Path(path).exists():
        time.sleep(0.01)


def _signals(numbers: str) -> None:
    """From a thread, as from outside: the main thread may handle the first one before the second comes."""

    def send() -> None:
        for number in numbers.split():
            os.kill(os.getpid(), int(number))
            time.sleep(SIGNAL_PAUSE)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    sending.join()


def _close(descriptors: str) -> None:
    for descriptor in descriptors.split():
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, int(descriptor))


ACTIONS = {
    "kill": _kill, "raise": _raise, "disk": _disk_full, "hold": _hold, "signals": _signals,
    "ignored": _signals, "close": _close,
}  # fmt: skip

if __name__ == "__main__":
    serve()
