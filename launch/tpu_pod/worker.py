#!/usr/bin/env python3
"""The script of launch/tpu.py on every worker: set up, start training, follow it. Standard library, Python 3.8+.

gcloud repeats a remote command when its connection drops, and a launcher may be restarted, so each command here may run
twice: training is detached from the connection and runs once per attempt; `run` starts it, or follows it where it is
running. Every output line starts with `[s0 w3]` (slice, worker); the first is `launch: VERB begins`, the last
`launch: VERB exit CODE`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

MAX_LINE_BYTES = 3000  # bytes per write: less than a pipe writes atomically
POLL_SECONDS = 0.1
STOP_TIMEOUT = 120.0  # seconds for the current step and its checkpoint
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")
LOST_EXIT_CODE = 137  # the supervisor ended without writing an exit code: the machine went down
_prefix = ""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="worker.py", allow_abbrev=False)
    parser.add_argument("verb", choices=("setup", "run", "stop", "supervise"))
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--code", type=Path)
    parser.add_argument("--slice", default="0")
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--nfs", action="append", default=[])
    parser.add_argument("--cwd", type=Path)
    parser.add_argument("--lock", type=int)
    split = list(argv).index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:split])
    command = list(argv[split + 1 :])
    if arguments.verb == "supervise":
        return supervise(_attempt_dir(arguments), arguments.code, command, arguments.lock, arguments.cwd)
    global _prefix
    _prefix = f"[s{arguments.slice} w{worker()}] "
    print_line(f"launch: {arguments.verb} begins")
    try:
        if arguments.verb == "setup":
            code = setup(arguments.home, arguments.code, arguments.nfs)
        elif arguments.verb == "stop":
            code = stop(arguments.home)
        else:
            code = run(arguments, command)
    except (OSError, subprocess.SubprocessError) as error:
        print_line(f"launch: {error}")
        code = 1
    print_line(f"launch: {arguments.verb} exit {code}")
    return 0 if code == 255 else code  # 255 would look like a lost connection


def worker() -> str:
    """The number of this host in its slice, from the environment (GKE), the metadata server or the host name."""
    found = os.environ.get("TPU_WORKER_ID")
    if found is None:
        host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
        url = f"http://{host}/computeMetadata/v1/instance/attributes/agent-worker-number"
        try:
            request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            with urllib.request.urlopen(request, timeout=5) as reply:
                found = reply.read().decode().strip()
        except OSError:
            named = re.search(r"-w-(\d+)$", socket.gethostname().split(".")[0])
            found = named[1] if named else "0"
    return found


def setup(home: Path, code: Path, nfs: Sequence[str]) -> int:
    """Mounts the shares and installs bertjax for TPU, where that is not done yet -> 0 or 1."""
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "setup.lock"):
        for share in nfs:
            if _mount(share):
                return 1
        stamp = code / ".venv" / ".launched"
        if stamp.exists():
            return 0
        python = _python(code)
        if python is None:
            return 1
        print_line(f"launch: installing bertjax with {python}")
        # The hashed lock first, then JAX's TPU runtime and gs:// support, constrained to the versions of the lock.
        extra = [".tools/bin/uv", "pip", "install", "--quiet", "--python", ".venv/bin/python"]
        extra += ["--constraint", "requirements.lock", "--no-build-isolation", "--editable", ".[tpu,gcs]"]
        for argv in ([".ci/setup", python], extra):
            if _run_logged(argv, code):
                return 1
        stamp.touch()
    return 0


def _mount(share: str) -> int:
    source, _, where = share.rpartition(":")
    if os.path.ismount(where):
        return 0
    print_line(f"launch: mounting {source} at {where}")
    steps = [["sudo", "mkdir", "-p", where], ["sudo", "mount", "-t", "nfs", source, where]]
    if not Path("/sbin/mount.nfs").exists():
        steps.insert(0, ["sudo", "apt-get", "install", "--yes", "--quiet", "nfs-common"])
    return next((code for argv in steps if (code := _run_logged(argv, Path.cwd()))), 0)


def _python(code: Path) -> str | None:
    """A Python of 3.11 or newer; TPU images have 3.10, so uv, pinned by the lock, may have to install it."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for name in PYTHONS:
        with contextlib.suppress(OSError):
            if subprocess.run([name, "-c", check], capture_output=True).returncode == 0:
                return name
    tools, uv = code / ".tools", code / ".tools" / "bin" / "uv"
    if not uv.exists():
        pins = re.search(r"^uv==(?:.*\\\n)*.*\n", (code / "requirements.lock").read_text(), re.MULTILINE)
        tools.mkdir(exist_ok=True)
        (tools / "uv.txt").write_text(pins[0] if pins else "uv\n")
        argv = ["python3", "-m", "pip", "install", "--quiet", "--require-hashes", "--target", ".tools"]
        if _run_logged([*argv, "-r", ".tools/uv.txt"], code):
            return None
    if _run_logged([".tools/bin/uv", "python", "install", "--quiet", "3.11"], code):
        return None
    found = subprocess.run([str(uv.resolve()), "python", "find", "3.11"], capture_output=True, text=True)
    return found.stdout.strip() or None


def _run_logged(argv: Sequence[str], cwd: Path) -> int:
    """Runs a command and prints its output -> its exit code."""
    process = subprocess.Popen(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        print_line(line.rstrip())
    code = process.wait()
    if code:
        print_line(f"launch: {argv[0]} failed with {code}")
    return code


def run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Starts this attempt (stopping an earlier one) unless it is running, and follows it -> its exit code."""
    folder, home = _attempt_dir(arguments), arguments.home
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "start.lock"):
        if not folder.exists():
            stop(home)
            _start(folder, arguments, command)
    return stream_logs(folder)


def _start(folder: Path, arguments: argparse.Namespace, command: Sequence[str]) -> None:
    new = folder.with_name(f"{folder.name}.new")
    new.mkdir(exist_ok=True)
    (new / "log").touch()
    lock = os.open(new / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # inherited by the supervisor; released when it ends in any way
    new.rename(folder)
    argv = [sys.executable, str(Path(__file__).resolve()), "supervise", "--home", str(arguments.home)]
    argv += ["--code", str(arguments.code), "--attempt", str(arguments.attempt), "--lock", str(lock)]
    argv += ["--cwd", str(arguments.cwd)] if arguments.cwd else []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(pair.split("=", 1) for pair in arguments.env)}
    subprocess.Popen(
        [*argv, "--", *command], env=environment, pass_fds=(lock,), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(lock)


def supervise(folder: Path, code: Path, command: Sequence[str], lock: int, cwd: Path | None = None) -> int:
    """Runs the command in the code or `cwd`; writes output to `log`, the exit code to `exit`; forwards SIGTERM."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if cwd:  # make the paths of files in the code absolute
        code = code.absolute()
        command = [str(code / word) if "=" not in word and (code / word).is_file() else word for word in command]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    with open(folder / "log", "ab") as log:
        try:
            child = subprocess.Popen(command, cwd=cwd or code, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            log.write(f"launch: {error}\n".encode())
            returncode = 127
        else:
            signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
            (folder / "pid").write_text(str(os.getpid()))
            returncode = child.wait()
    (folder / "exit.new").write_text(str(128 - returncode if returncode < 0 else returncode))
    (folder / "exit.new").rename(folder / "exit")
    os.close(lock)
    return 0


def stream_logs(folder: Path) -> int:
    """Prints the output of an attempt from its first line until it ends -> its exit code.

    Exits when standard output is closed.
    """
    reader = select.poll()
    reader.register(sys.stdout.fileno(), select.POLLERR | select.POLLHUP)
    rest = b""
    with open(folder / "log", "rb") as log:
        while True:
            ended = not _alive(folder)  # before the read, or the last lines could be missed
            chunk = log.read(1 << 20)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                print_line(line.decode(errors="replace"))
            if ended and not chunk:
                if rest:
                    print_line(rest.decode(errors="replace"))
                break
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(0)):
                sys.exit(1)
            if not chunk:
                time.sleep(POLL_SECONDS)
    try:
        return int((folder / "exit").read_text())
    except FileNotFoundError:
        return LOST_EXIT_CODE


def stop(home: Path) -> int:
    """Asks the running attempt, if any, to save and exit; kills it when it does not -> 0."""
    for folder in sorted(home.glob("attempt-[0-9]*")):
        if not _alive(folder):
            continue
        print_line(f"launch: stopping {folder.name}")
        pid, until = _pid(folder), time.monotonic() + STOP_TIMEOUT
        if pid:
            os.kill(pid, signal.SIGTERM)
        while _alive(folder) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        if _alive(folder) and pid:
            os.killpg(pid, signal.SIGKILL)  # the supervisor leads the session of the trainer
            while _alive(folder):
                time.sleep(POLL_SECONDS)
    return 0


def _pid(folder: Path) -> int | None:
    until = time.monotonic() + 10
    while _alive(folder) and time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            return int((folder / "pid").read_text())
        time.sleep(POLL_SECONDS)
    return None


def _alive(folder: Path) -> bool:
    """Whether the supervisor of an attempt is running."""
    try:
        lock = os.open(folder / "alive", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time: after a dropped connection there may be two."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _attempt_dir(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.home / f"attempt-{arguments.attempt:03d}"
    return folder


def print_line(line: str) -> None:
    """Writes a line at once: the lines of all workers share one stream."""
    data = f"{_prefix}{line}".encode()[:MAX_LINE_BYTES] + b"\n"
    try:
        os.write(sys.stdout.fileno(), data)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
