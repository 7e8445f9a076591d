#!/usr/bin/env python3
"""The script of launch/tpu.py on every worker: set up, start training, follow it, stop it, tell of it.

Standard library, Python 3.8+.

gcloud repeats a remote command when its connection drops, and a launcher may be restarted, so each command here may run
twice: training is detached from the connection and runs once per attempt; `run` starts it, or follows it where it is
running. Every output line starts with `[s0 w3]` (slice, worker); the first is `launch: VERB begins`, the last
`launch: VERB exit CODE`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from run_summary import summary_lines
from worker_output import locked, print_line, set_prefix
from worker_setup import free_tpu, setup

POLL_SECONDS = 0.1
STOP_TIMEOUT = 120.0  # seconds for the current step and its checkpoint
UPLOAD_SECONDS = 60.0  # seconds between uploads of the output, at least
UPLOAD_RATE = 1e6  # bytes per second of uploads, on average: each sends the file from its beginning
UPLOAD_TIMEOUT = 60.0
LOST_EXIT_CODE = 137  # the supervisor ended without writing an exit code: the machine went down


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="worker.py", allow_abbrev=False)
    parser.add_argument("verb", choices=("setup", "run", "doctor", "stop", "status", "supervise"))
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--code", type=Path)
    parser.add_argument("--slice", default="0")
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--env-file", type=Path, help="JSON with variables of the command")
    parser.add_argument("--nfs", action="append", default=[])
    parser.add_argument("--cwd", type=Path)
    parser.add_argument("--logs", help="folder of a bucket; with supervise, the file itself")
    parser.add_argument("--run", help="folder of the run, for status")
    parser.add_argument("--task", default="attempt")
    parser.add_argument("--lock", type=int)
    split = list(argv).index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:split])
    command = list(argv[split + 1 :])
    if arguments.verb == "supervise":
        folder = _attempt_dir(arguments)
        return supervise(folder, arguments.code, command, arguments.lock, arguments.cwd, arguments.logs)
    set_prefix(f"[s{arguments.slice} w{worker()}] ")
    print_line(f"launch: {arguments.verb} begins")
    try:
        if arguments.verb == "setup":
            code = setup(arguments.home, arguments.code, arguments.nfs)
        elif arguments.verb == "stop":
            code = stop(arguments.home)
        elif arguments.verb == "status":
            code = status(arguments.home, arguments.code, arguments.run)
        else:
            arguments.task = "attempt" if arguments.verb == "run" else arguments.verb
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


def run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Starts this attempt (stopping an earlier one) unless it is running, and follows it -> its exit code."""
    folder, home = _attempt_dir(arguments), arguments.home
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "start.lock"):
        if not folder.exists():
            notes: list[str] = []  # in the log, which every connection repeats from its first line
            stop(home, notes.append)
            notes.append(free_tpu())
            _start(folder, arguments, command, [note for note in notes if note])
    return stream_logs(folder)


def _start(folder: Path, arguments: argparse.Namespace, command: Sequence[str], notes: Sequence[str]) -> None:
    new = folder.with_name(f"{folder.name}.new")
    new.mkdir(exist_ok=True)
    (new / "log").write_text("".join(f"{note}\n" for note in notes))
    lock = os.open(new / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # inherited by the supervisor; released when it ends in any way
    new.rename(folder)
    argv = [sys.executable, str(Path(__file__).resolve()), "supervise", "--home", str(arguments.home)]
    argv += ["--code", str(arguments.code), "--attempt", str(arguments.attempt), "--lock", str(lock)]
    argv += ["--task", arguments.task]
    argv += ["--cwd", str(arguments.cwd)] if arguments.cwd else []
    if arguments.logs:
        name = f"{folder.name}/{arguments.verb}-s{arguments.slice}-w{worker()}.log"
        argv += ["--logs", f"{arguments.logs}/{name}"]
    given = _read_environment(arguments.env_file, keep=arguments.verb == "doctor")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **given}
    subprocess.Popen(
        [*argv, "--", *command], env=environment, pass_fds=(lock,), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(lock)


def _read_environment(path: Path | None, *, keep: bool) -> dict[str, str]:
    """The variables that the launcher sent; the file is removed once training has them."""
    if path is None:
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not keep:
        path.unlink()
    return dict(found)


def supervise(
    folder: Path, code: Path, command: Sequence[str], lock: int, cwd: Path | None = None, url: str | None = None
) -> int:
    """Runs the command in the code or `cwd`; writes output to `log`, the exit code to `exit`; forwards SIGTERM.

    `url`: where the output is uploaded, every minute or less often and at the end.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if cwd:  # make the paths of files in the code absolute
        code = code.absolute()
        command = [str(code / word) if "=" not in word and (code / word).is_file() else word for word in command]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    upload = Upload(folder / "log", url)
    with open(folder / "log", "ab") as log:
        try:
            child = subprocess.Popen(command, cwd=cwd or code, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            log.write(f"launch: {error}\n".encode())
            returncode = 127
        else:
            signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
            (folder / "pid").write_text(str(os.getpid()))
            while url and child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(upload.pause())
                    break
                upload.run()
            returncode = child.wait()
    (folder / "exit.new").write_text(str(128 - returncode if returncode < 0 else returncode))
    (folder / "exit.new").rename(folder / "exit")
    upload.run()  # before the lock goes, after which the machine may be deleted
    os.close(lock)
    return 0


class Upload:
    """Copies a growing file to a bucket; without a URL it does nothing."""

    def __init__(self, file: Path, url: str | None) -> None:
        self._file, self._url = file, url
        self._sent, self._failed = 0, False

    def pause(self) -> float:
        """Seconds until the next copy."""
        return max(UPLOAD_SECONDS, self._sent / UPLOAD_RATE)

    def run(self) -> None:
        """Copies the file if it has grown; the first failure is noted in it."""
        size = self._file.stat().st_size
        if self._url is None or size == self._sent:
            return
        try:
            argv = ["gcloud", "storage", "cp", str(self._file), self._url, "--quiet"]
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=UPLOAD_TIMEOUT,
            )
            failure = done.stderr.decode(errors="replace").strip() if done.returncode else ""
        except (OSError, subprocess.SubprocessError) as error:
            failure = str(error)
        self._sent = size
        if failure and not self._failed:
            self._failed = True
            with open(self._file, "a") as log:
                log.write(f"launch: the output is not in {self._url}: {failure.splitlines()[-1][:300]}\n")


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


def stop(home: Path, say: Callable[[str], object] = print_line) -> int:
    """Asks the running attempt (or doctor), if any, to save and exit; kills it when it does not -> 0."""
    for folder in _started(home):
        if not _alive(folder):
            continue
        say(f"launch: stopping {folder.name}")
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


def status(home: Path, code: Path, run: str | None) -> int:
    """Prints the last attempt and whether it runs, and the metrics and goodput of the run -> 0."""
    started = _started(home)
    for folder in started[-1:]:
        ended = folder / "exit"
        last = (
            "is running" if _alive(folder) else f"ended with {ended.read_text() if ended.exists() else 'no exit code'}"
        )
        print_line(f"{folder.name} {last}")
    if not started:
        print_line("nothing has been started here")
    for line in summary_lines(run, code, ".venv/bin/python") if run else ():
        print_line(line)
    return 0


def _started(home: Path) -> list[Path]:
    """The folders of attempts and doctors, the last one last."""
    found = [path for path in home.glob("*-[0-9]*") if re.fullmatch(r"(?:attempt|doctor)-\d+", path.name)]
    return sorted(found, key=lambda path: (path / "alive").stat().st_mtime)


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


def _attempt_dir(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.home / f"{arguments.task}-{arguments.attempt:03d}"
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
