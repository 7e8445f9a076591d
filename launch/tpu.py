#!/usr/bin/env python3
"""Train on a TPU pod: create it, send the code, train on all workers, restart after preemptions, delete it.

    launch/tpu.py --name my-pod --type v5litepod-256 configs/bert/pretrain_large.yaml --dry-run

Needs only Python 3.9, git and gcloud. Running the same command again continues an interrupted launch. Exit codes:
bertjax's (0 done, 2 bad input, 3 diverged, 4 storage, 70 a bug), 75 after the last retry, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tpu_pod import checks
from tpu_pod.gcloud import RUNTIMES, LaunchError, Pod, generation
from tpu_pod.launcher import Launcher, LaunchOptions, RemoteCommands
from tpu_pod.redact import redact, redact_command
from tpu_pod.state import StateDir, archive_command, check_name, checkout_path, clone_url, head_revision, load_or_create


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{self.prog}: {message}; try --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a job to its end -> one of the exit codes listed above."""
    launcher = None
    try:
        arguments = _arguments(argv)
        pod = _pod(arguments)
        retries, keep, cwd = arguments.max_retries, arguments.keep, arguments.cwd
        options = LaunchOptions(arguments.env, arguments.nfs, retries, keep, arguments.poll, cwd)
        command = _command(arguments)
        _check(pod, command, arguments)
        if arguments.dry_run:
            try:
                _dry_run(pod, options, command, arguments)
                sys.stdout.flush()
            except BrokenPipeError:  # `| head` closed the pipe
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        signal.signal(signal.SIGTERM, _interrupt)
        folder = StateDir(arguments.state_dir, pod.name)
        with folder.locked():
            state = load_or_create(folder, command, arguments.repo, arguments.ref)
            repo = clone_url(state, arguments.repo)
            launcher = Launcher(pod, folder, state, options, command, repo)
            return _carry_through(launcher)
    except LaunchError as stop:
        for line in redact(str(stop)).splitlines():
            print(f"launch: {line}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("launch: interrupted", file=sys.stderr, flush=True)
        if launcher is not None:
            _print_what_runs(launcher)
        return 130


def _carry_through(launcher: Launcher) -> int:
    if launcher.state.status == "finished":
        again = launcher.state_dir.state_file
        launcher.state_dir.note(f"{launcher.pod.name}: already finished; remove {again} to run it again")
        launcher.finish()
        return 0
    try:
        return launcher.run()
    except LaunchError as stop:
        if stop.code == 75 and launcher.state.retries > launcher.options.max_retries:
            launcher.state.retries = 0  # the next call starts with all retries
            launcher.state_dir.save(launcher.state)
            launcher.finish()
        else:
            _print_what_runs(launcher)
        raise


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    p = _Parser(
        prog="launch/tpu.py", allow_abbrev=False, description="Train on a TPU pod and restart after preemptions.",
        usage="launch/tpu.py --name NAME --type TYPE [options] CONFIG [key.path=value ...]",
        epilog="Remote state: ~/bertjax-NAME on every worker. Output lines start with the worker: [w3] or [s0 w3].",
    )  # fmt: skip
    p.add_argument("config", metavar="CONFIG")
    p.add_argument("overrides", nargs="*", metavar="key.path=value")
    p.add_argument("--name", required=True, help="name of the queued resource: lower-case letters, digits, dashes")
    p.add_argument("--type", required=True, help="accelerator type: v5litepod-256, v5p-128, v6e-64, v4-32 ...")
    p.add_argument("--project", help="default: that of gcloud")
    p.add_argument("--zone", help="default: that of gcloud")
    capacity = p.add_mutually_exclusive_group()
    capacity.add_argument("--spot", dest="capacity", action="store_const", const="spot", help="preemptible machines")
    capacity.add_argument("--reserved", dest="capacity", action="store_const", const="reserved")
    slices = p.add_mutually_exclusive_group()
    slices.add_argument("--node-id", help="name of the single slice; default: the pod's name")
    slices.add_argument("--node-count", type=_int_from(2), metavar="N", help="number of slices (multislice)")
    p.add_argument("--runtime-version", help="TPU software version; default: by type")
    p.add_argument("--network")
    p.add_argument("--subnetwork")
    p.add_argument("--service-account")
    p.add_argument("--internal-ip", action="store_true", help="use internal IP addresses only")
    p.add_argument(
        "--env",
        action="append",
        default=[],
        type=_pair,
        metavar="KEY=VALUE",
        help="environment variable for training (repeatable)",
    )
    p.add_argument(
        "--nfs",
        action="append",
        default=[],
        type=_share,
        metavar="HOST:/SHARE:/MOUNT",
        help="NFS share to mount (repeatable)",
    )
    p.add_argument(
        "--cwd", type=_absolute_path, metavar="DIR", help="working directory of training; relative paths start there"
    )
    p.add_argument("--root-is-shared", action="store_true", help="all workers share run.root without --nfs")
    p.add_argument("--repo", metavar="URL", help="clone the code from URL instead of sending this checkout")
    p.add_argument("--ref", type=_ref, default="HEAD", help="branch, tag or commit of --repo; default: its HEAD")
    p.add_argument(
        "--max-retries", type=_int_from(0), default=50, metavar="N", help="maximum number of retries; default: 50"
    )
    p.add_argument("--keep", action="store_true", help="keep the pod at the end")
    p.add_argument(
        "--state-dir",
        type=_local_dir,
        default=Path("runs/launch"),
        help="folder for state and logs; default: runs/launch",
    )
    p.add_argument(
        "--poll", type=_seconds, default=15.0, metavar="SECONDS", help="seconds between polls of the pod; default: 15"
    )
    p.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    p.set_defaults(capacity="on-demand")
    return p.parse_intermixed_args(argv)


def _int_from(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least} (got {word!r})")
        return int(word)

    return parse


def _seconds(word: str) -> float:
    try:
        found = float(word)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0 (got {word!r})")
    return found


def _ref(word: str) -> str:
    if not re.fullmatch(r"[^\s:~^?*\[\\-][^\s:~^?*\[\\]*", word):
        raise argparse.ArgumentTypeError(f"must be a branch, tag or commit (got {word!r})")
    return word


def _pair(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*=.*", word):
        raise argparse.ArgumentTypeError("must be KEY=VALUE")
    return word


def _share(word: str) -> str:
    if not re.fullmatch(r"[\w.-]+:/[^:\s]*:/[^:\s]+", word):
        raise argparse.ArgumentTypeError(f"must be HOST:/SHARE:/MOUNT (got {word!r})")
    return word


def _local_dir(word: str) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", word):
        raise argparse.ArgumentTypeError(f"must be a local folder (got {word!r})")
    return Path(word)


def _absolute_path(word: str) -> str:
    if not word.startswith("/"):
        raise argparse.ArgumentTypeError(f"must be an absolute path on the workers (got {word!r})")
    return word.rstrip("/") or "/"


def _pod(arguments: argparse.Namespace) -> Pod:
    kind = arguments.type.lower()
    runtime = arguments.runtime_version or RUNTIMES[generation(kind)]
    name = check_name(arguments.name)
    node_id = None if arguments.node_count else arguments.node_id or name
    return Pod(
        name, kind, runtime, node_id, arguments.node_count, arguments.capacity, arguments.project, arguments.zone,
        arguments.network, arguments.subnetwork, arguments.service_account, arguments.internal_ip,
    )  # fmt: skip


def _command(arguments: argparse.Namespace) -> list[str]:
    """-> [path of the configuration in the code, overrides...]."""
    for word in arguments.overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", word):
            raise LaunchError(f"{word}: expected key.path=value")
    name = arguments.config if arguments.repo else checkout_path(arguments.config)
    return [name, *arguments.overrides]


def _check(pod: Pod, command: list[str], arguments: argparse.Namespace) -> None:
    """Checks the job before waiting for machines: raises LaunchError for problems, prints notes about doubts."""
    checks.check_pod(pod, arguments.runtime_version is not None)
    mounts = [share.rpartition(":")[2] for share in arguments.nfs]
    place = checks.WorkerPaths(mounts, arguments.cwd, arguments.root_is_shared, arguments.keep)
    if arguments.repo:
        checks.check_repo(arguments.repo, place)
    found = checks.check_command(pod, command, place, bool(arguments.repo))
    for note in found.notes:
        print(f"launch: note: {redact(note)}", file=sys.stderr, flush=True)
    found.stop()


def _dry_run(pod: Pod, options: LaunchOptions, command: list[str], arguments: argparse.Namespace) -> None:
    folder = arguments.state_dir / pod.name
    revision = arguments.ref if arguments.repo else head_revision()
    remote = RemoteCommands(pod.name, command, revision, arguments.repo, options)
    nodes, archive = pod.planned_nodes(), folder / f"code-{revision}.tar.gz"

    def show(title: str, *commands: Sequence[str]) -> None:
        print(f"# {title}", *map(redact_command, commands), sep="\n")

    plan = ["bertjax", "plan", command[0], "--topology", pod.type, *command[1:]]
    show("run it yourself first: memory fit and roofline speed", plan)
    if not arguments.repo:
        show("pack the code", ["git", *archive_command(archive, revision)])
    show("does it exist?", pod.describe())
    show("create it", pod.create())
    show(f"every {options.poll:g} s until it is ACTIVE, and while training", pod.describe())
    show("count the workers", *(pod.describe_node(node) for node in nodes))
    if not arguments.repo:
        show("send the code", *(pod.copy(archive, node) for node in nodes))
    show("install, on all workers", *(pod.ssh(node, remote.setup(i)) for i, node in enumerate(nodes)))
    show("train, on all workers", *(pod.ssh(node, remote.run(i, 1)) for i, node in enumerate(nodes)))
    if not options.keep:
        show("at the end, and before recreating it after a preemption", pod.delete())


def _print_what_runs(launcher: Launcher) -> None:
    pod = launcher.pod
    if not launcher.pod_seen:
        return
    print(f"launch: {pod.name} may still exist and cost money; training continues if it was started.", file=sys.stderr)
    print("launch: run the same command to follow it again. To stop training after a checkpoint:", file=sys.stderr)
    for node in pod.planned_nodes():
        print(f"    {redact_command(pod.ssh(node, launcher.remote.stop()))}", file=sys.stderr)
    print(f"launch: to delete it:\n    {redact_command(pod.delete())}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
