#!/usr/bin/env python3
"""Train on a TPU pod: create it, send the code, train on all workers, restart after preemptions, delete it.

    launch/tpu.py --name my-pod --type v5litepod-256 configs/bert/pretrain_large.yaml --dry-run
    launch/tpu.py --status my-pod

Needs only Python 3.9, git and gcloud. Running the same command again continues an interrupted launch. Exit codes:
bertjax's (0 done, 2 bad input, 3 diverged, 4 storage, 70 a bug), 75 after the last retry, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tpu_pod import checks, status
from tpu_pod.gcloud import LaunchError, Pod
from tpu_pod.launcher import Launcher, LaunchOptions, RemoteCommands
from tpu_pod.options import make_pod, parse_launch, parse_status
from tpu_pod.redact import redact, redact_command
from tpu_pod.state import StateDir, archive_command, checkout_path, clone_url, head_revision, load_or_create


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a job to its end -> one of the exit codes listed above."""
    launcher = None
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        if any(word.split("=", 1)[0] == "--status" for word in words):
            asked = parse_status(words)
            return status.show(StateDir(asked.state_dir, asked.status))
        arguments = parse_launch(words)
        pod = make_pod(arguments)
        command = _command(arguments)
        found = _check(pod, command, arguments)
        options = LaunchOptions(
            arguments.env, arguments.nfs, arguments.max_retries, arguments.keep, arguments.poll, arguments.cwd,
            arguments.zone, arguments.logs or checks.log_folder(found.root, pod.name), arguments.doctor,
        )  # fmt: skip
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
            state.run = found.run_folder(arguments.cwd)
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


def _command(arguments: argparse.Namespace) -> list[str]:
    """-> [path of the configuration in the code, overrides...]."""
    for word in arguments.overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", word):
            raise LaunchError(f"{word}: expected key.path=value")
    name = arguments.config if arguments.repo else checkout_path(arguments.config)
    return [name, *arguments.overrides]


def _check(pod: Pod, command: list[str], arguments: argparse.Namespace) -> checks.Findings:
    """Checks the job before waiting for machines: raises LaunchError for problems, prints notes about doubts."""
    for zone in arguments.zone:
        checks.check_pod(replace(pod, zone=zone), arguments.runtime_version is not None)
    mounts = [share.rpartition(":")[2] for share in arguments.nfs]
    place = checks.WorkerPaths(mounts, arguments.cwd, arguments.root_is_shared, arguments.keep)
    if arguments.repo:
        checks.check_repo(arguments.repo, place)
    found = checks.check_command(pod, command, place, bool(arguments.repo))
    if len(arguments.zone) > 1 and not pod.valid_until:
        found.notes.append(
            f"--zone: a request may wait in {pod.zone} for ever; give --valid-until-duration to try the next zone"
        )
    for note in found.notes:
        print(f"launch: note: {redact(note)}", file=sys.stderr, flush=True)
    found.stop()
    return found


def _dry_run(pod: Pod, options: LaunchOptions, command: list[str], arguments: argparse.Namespace) -> None:
    folder = arguments.state_dir / pod.name
    revision = arguments.ref if arguments.repo else head_revision()
    remote = RemoteCommands(pod.name, command, revision, arguments.repo, options)
    nodes, archive = pod.planned_nodes(), folder / f"code-{revision}.tar.gz"

    def show(title: str, *commands: Sequence[str]) -> None:
        print(f"# {title}", *map(redact_command, commands), sep="\n")

    slices = [f"mesh.dcn={pod.node_count}"] if "mesh.dcn=-1" in command and pod.node_count else []
    plan = ["bertjax", "plan", command[0], "--topology", pod.type, *command[1:], *slices]
    show("run it yourself first: memory fit and roofline speed", plan)
    if not arguments.repo:
        show("pack the code", ["git", *archive_command(archive, revision)])
    pods = [replace(pod, zone=zone) for zone in options.zones]
    several = len(pods) > 1
    show("does it exist?", *(there.describe() for there in pods))
    show(f"create it{', in the first zone that accepts it' * several}", *(there.create() for there in pods))
    if several:
        print(f"# the rest in that zone, shown for {pod.zone}")
    show(f"every {options.poll:g} s until it is ACTIVE, and while training", pod.describe())
    show("count the workers", *(pod.describe_node(node) for node in nodes))
    if not arguments.repo:
        show("send the code", *(pod.copy(archive, node) for node in nodes))
    sent = "send the variables of training, a secret by which its processes recognize each other among them"
    show(sent, *(pod.copy(Path(remote.env_file), node) for node in nodes))
    show("install, on all workers", *(pod.ssh(node, remote.setup(i)) for i, node in enumerate(nodes)))
    if options.doctor:
        show(
            "check the machines, on all workers", *(pod.ssh(node, remote.doctor(i, 1)) for i, node in enumerate(nodes))
        )
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
