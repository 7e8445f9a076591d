#!/usr/bin/env python3
"""Train on a TPU pod: create it, send the code, train on all workers, start again after preemptions, delete it.

    launch/tpu.py --name my-pod --type v5litepod-256 configs/bert/pretrain_large.yaml --dry-run

Needs Python 3.9, git and gcloud; nothing else. The same command goes on where an earlier one was stopped. Exit codes:
bertjax's (0 done, 2 bad input, 3 diverged, 4 storage, 70 a bug), 75 when retries ran out, 130 when interrupted.
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

import tpu_checks
import tpu_state
from redact import redact, redact_command
from tpu_commands import RUNTIMES, Pod, Stop, generation
from tpu_launch import Launcher, Options, Remote


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Stop(f"{self.prog}: {message}; try --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Carries a job through; returns the exit code of the module's first lines."""
    launcher = None
    try:
        arguments = _arguments(argv)
        pod = _pod(arguments)
        retries, keep, cwd = arguments.max_retries, arguments.keep, arguments.cwd
        options = Options(arguments.env, arguments.nfs, retries, keep, arguments.poll, cwd)
        command = _command(arguments)
        _check(pod, command, arguments)
        if arguments.dry_run:
            try:
                _dry_run(pod, options, command, arguments)
                sys.stdout.flush()
            except BrokenPipeError:  # `| head` has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        signal.signal(signal.SIGTERM, _interrupt)
        folder = tpu_state.Folder(arguments.state_dir, pod.name)
        with folder.locked():
            state = tpu_state.begin(folder, command, arguments.repo, arguments.ref)
            repo = tpu_state.repo_of(state, arguments.repo)
            launcher = Launcher(pod, folder, state, options, command, repo)
            return _carry_through(launcher)
    except Stop as stop:
        for line in redact(str(stop)).splitlines():
            print(f"launch: {line}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("launch: interrupted", file=sys.stderr, flush=True)
        if launcher is not None:
            _tell_what_runs(launcher)
        return 130


def _carry_through(launcher: Launcher) -> int:
    if launcher.state.status == "finished":
        again = launcher.state_dir.state_file
        launcher.state_dir.note(f"{launcher.pod.name}: finished before; remove {again} to run it again")
        launcher.finish()
        return 0
    try:
        return launcher.run()
    except Stop as stop:
        if stop.code == 75 and launcher.state.retries > launcher.options.max_retries:
            launcher.state.retries = 0  # the next call has retries of its own
            launcher.state_dir.save(launcher.state)
            launcher.finish()
        else:
            _tell_what_runs(launcher)
        raise


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    p = _Parser(
        prog="launch/tpu.py", allow_abbrev=False, description="Train on a TPU pod, through preemptions.",
        usage="launch/tpu.py --name NAME --type TYPE [options] CONFIG [key.path=value ...]",
        epilog="Remote state: ~/bertjax-NAME on every worker. A worker's lines begin with its number: [w3] or [s0 w3].",
    )  # fmt: skip
    p.add_argument("config", metavar="CONFIG")
    p.add_argument("overrides", nargs="*", metavar="key.path=value")
    p.add_argument("--name", required=True, help="of the queued resource; small letters, digits, dashes")
    p.add_argument("--type", required=True, help="accelerator type: v5litepod-256, v5p-128, v6e-64, v4-32 ...")
    p.add_argument("--project", help="default: gcloud's")
    p.add_argument("--zone", help="default: gcloud's")
    capacity = p.add_mutually_exclusive_group()
    capacity.add_argument("--spot", dest="capacity", action="store_const", const="spot", help="preemptible machines")
    capacity.add_argument("--reserved", dest="capacity", action="store_const", const="reserved")
    slices = p.add_mutually_exclusive_group()
    slices.add_argument("--node-id", help="name of the single slice; default: the pod's name")
    slices.add_argument("--node-count", type=_number(2), metavar="N", help="several slices")
    p.add_argument("--runtime-version", help="TPU software version; default: by type")
    p.add_argument("--network")
    p.add_argument("--subnetwork")
    p.add_argument("--service-account")
    p.add_argument("--internal-ip", action="store_true", help="no external addresses; connect through internal ones")
    p.add_argument("--env", action="append", default=[], type=_pair, metavar="KEY=VALUE", help="for training; repeat")
    p.add_argument(
        "--nfs", action="append", default=[], type=_share, metavar="HOST:/SHARE:/MOUNT", help="mount; repeat"
    )
    p.add_argument("--cwd", type=_absolute, metavar="DIR", help="start training there: relative names begin in it")
    p.add_argument("--root-is-shared", action="store_true", help="workers share run.root though no --nfs mounts it")
    p.add_argument("--repo", metavar="URL", help="clone the code from there instead of sending this checkout's")
    p.add_argument("--ref", type=_ref, default="HEAD", help="branch, tag or commit of --repo; default: its HEAD")
    p.add_argument("--max-retries", type=_number(0), default=50, metavar="N", help="default: 50")
    p.add_argument("--keep", action="store_true", help="do not delete the pod at the end")
    p.add_argument(
        "--state-dir", type=_folder, default=Path("runs/launch"), help="state and logs; default: runs/launch"
    )
    p.add_argument(
        "--poll", type=_seconds, default=15.0, metavar="SECONDS", help="between looks at the pod; default: 15"
    )
    p.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    p.set_defaults(capacity="on-demand")
    return p.parse_intermixed_args(argv)


def _number(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"a number from {least} up is wanted (got {word!r})")
        return int(word)

    return parse


def _seconds(word: str) -> float:
    try:
        found = float(word)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"a number above zero is wanted (got {word!r})")
    return found


def _ref(word: str) -> str:
    if not re.fullmatch(r"[^\s:~^?*\[\\-][^\s:~^?*\[\\]*", word):
        raise argparse.ArgumentTypeError(f"a branch, tag or commit is wanted (got {word!r})")
    return word


def _pair(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*=.*", word):
        raise argparse.ArgumentTypeError("KEY=VALUE is wanted")
    return word


def _share(word: str) -> str:
    if not re.fullmatch(r"[\w.-]+:/[^:\s]*:/[^:\s]+", word):
        raise argparse.ArgumentTypeError(f"HOST:/SHARE:/MOUNT is wanted (got {word!r})")
    return word


def _folder(word: str) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", word):
        raise argparse.ArgumentTypeError(f"a folder of this machine is wanted (got {word!r})")
    return Path(word)


def _absolute(word: str) -> str:
    if not word.startswith("/"):
        raise argparse.ArgumentTypeError(f"a full path on the workers is wanted (got {word!r})")
    return word.rstrip("/") or "/"


def _pod(arguments: argparse.Namespace) -> Pod:
    kind = arguments.type.lower()
    runtime = arguments.runtime_version or RUNTIMES[generation(kind)]
    name = tpu_state.valid_name(arguments.name)
    node_id = None if arguments.node_count else arguments.node_id or name
    return Pod(
        name, kind, runtime, node_id, arguments.node_count, arguments.capacity, arguments.project, arguments.zone,
        arguments.network, arguments.subnetwork, arguments.service_account, arguments.internal_ip,
    )  # fmt: skip


def _command(arguments: argparse.Namespace) -> list[str]:
    """The configuration's path in the code, and the overrides."""
    for word in arguments.overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", word):
            raise Stop(f"{word}: expected key.path=value")
    name = arguments.config if arguments.repo else tpu_state.in_checkout(arguments.config)
    return [name, *arguments.overrides]


def _check(pod: Pod, command: list[str], arguments: argparse.Namespace) -> None:
    """Before hours of waiting for machines: can this work at all? Stop when it cannot; what is doubtful is told."""
    tpu_checks.check_pod(pod, arguments.runtime_version is not None)
    mounts = [share.rpartition(":")[2] for share in arguments.nfs]
    place = tpu_checks.Place(mounts, arguments.cwd, arguments.root_is_shared, arguments.keep)
    if arguments.repo:
        tpu_checks.check_repo(arguments.repo, place)
    found = tpu_checks.check_command(pod, command, place, bool(arguments.repo))
    for note in found.notes:
        print(f"launch: note: {redact(note)}", file=sys.stderr, flush=True)
    found.stop()


def _dry_run(pod: Pod, options: Options, command: list[str], arguments: argparse.Namespace) -> None:
    folder = arguments.state_dir / pod.name
    revision = arguments.ref if arguments.repo else tpu_state.head()
    remote = Remote(pod.name, command, revision, arguments.repo, options)
    nodes, archive = pod.planned_nodes(), folder / f"code-{revision}.tar.gz"

    def show(title: str, *commands: Sequence[str]) -> None:
        print(f"# {title}", *map(redact_command, commands), sep="\n")

    plan = ["bertjax", "plan", command[0], "--topology", pod.type, *command[1:]]
    show("for you to run: does the model fit, and how fast could it be?", plan)
    if not arguments.repo:
        show("pack the code", ["git", *tpu_state.archive_words(archive, revision)])
    show("is it there?", pod.describe())
    show("create it", pod.create())
    show(f"every {options.poll:g} s until it is ACTIVE, and while training", pod.describe())
    show("how many workers", *(pod.describe_node(node) for node in nodes))
    if not arguments.repo:
        show("send the code", *(pod.copy(archive, node) for node in nodes))
    show("install, on all workers", *(pod.ssh(node, remote.setup(i)) for i, node in enumerate(nodes)))
    show("train, on all workers", *(pod.ssh(node, remote.run(i, 1)) for i, node in enumerate(nodes)))
    if not options.keep:
        show("at the end, and before it is created again after a preemption", pod.delete())


def _tell_what_runs(launcher: Launcher) -> None:
    pod = launcher.pod
    if not launcher.pod_seen:
        return
    print(
        f"launch: {pod.name} may still be there, and cost money; if training was started, it goes on.", file=sys.stderr
    )
    print("launch: to follow it again, run the same command. To stop training after a checkpoint:", file=sys.stderr)
    for node in pod.planned_nodes():
        print(f"    {redact_command(pod.ssh(node, launcher.remote.stop()))}", file=sys.stderr)
    print(f"launch: to delete it:\n    {redact_command(pod.delete())}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
