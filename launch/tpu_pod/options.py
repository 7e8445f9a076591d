"""The command line of launch/tpu.py. Standard library only."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from tpu_pod.gcloud import RUNTIMES, LaunchError, Pod, generation
from tpu_pod.state import check_name

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{self.prog}: {message}; try --help")


def parse_launch(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a launch. Raises LaunchError."""
    p = _Parser(
        prog="launch/tpu.py", allow_abbrev=False, description="Train on a TPU pod and restart after preemptions.",
        usage="launch/tpu.py --name NAME --type TYPE [options] CONFIG [key.path=value ...]\n"
              "       launch/tpu.py --status NAME [--state-dir DIR]",
        epilog="Remote state: ~/bertjax-NAME on every worker. Output lines start with the worker: [w3] or [s0 w3].",
    )  # fmt: skip
    p.add_argument("config", metavar="CONFIG")
    p.add_argument("overrides", nargs="*", metavar="key.path=value")
    _add_request(p)
    _add_connection(p)
    _add_training(p)
    p.add_argument("--status", metavar="NAME", help="show the state of a pod, its run's last metrics and its goodput")
    p.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    _add_state_dir(p)
    p.set_defaults(capacity="on-demand")
    return p.parse_intermixed_args(argv)


def parse_status(argv: Sequence[str]) -> argparse.Namespace:
    """The options of --status. Raises LaunchError."""
    p = _Parser(prog="launch/tpu.py", allow_abbrev=False, usage="launch/tpu.py --status NAME [--state-dir DIR]")
    p.add_argument("--status", metavar="NAME", required=True)
    _add_state_dir(p)
    return p.parse_args(argv)


def _add_request(p: argparse.ArgumentParser) -> None:
    """Which machines to ask for."""
    p.add_argument("--name", required=True, help="name of the queued resource: lower-case letters, digits, dashes")
    p.add_argument("--type", required=True, help="accelerator type: v5litepod-256, v5p-128, v6e-64, v4-32 ...")
    p.add_argument("--project", help="default: that of gcloud")
    p.add_argument(
        "--zone", type=_zones, default=(None,), metavar="ZONE[,ZONE...]",
        help="zones, tried in this order; default: that of gcloud",
    )  # fmt: skip
    capacity = p.add_mutually_exclusive_group()
    capacity.add_argument("--spot", dest="capacity", action="store_const", const="spot", help="preemptible machines")
    capacity.add_argument("--reserved", dest="capacity", action="store_const", const="reserved", help="any reservation")
    capacity.add_argument("--reservation", type=_reservation, metavar="NAME", help="one reservation (gcloud alpha)")
    p.add_argument(
        "--valid-until-duration", type=_duration, metavar="DURATION",
        help="longest wait in the queue of a zone, such as 90m, 6h or 1d12h; then the next zone is tried",
    )  # fmt: skip
    slices = p.add_mutually_exclusive_group()
    slices.add_argument("--node-id", help="name of the single slice; default: the pod's name")
    slices.add_argument("--node-count", type=_int_from(2), metavar="N", help="number of slices (multislice)")
    p.add_argument("--runtime-version", help="TPU software version; default: by type")
    p.add_argument("--network")
    p.add_argument("--subnetwork")
    p.add_argument("--service-account")
    p.add_argument(
        "--labels", action="append", default=[], type=_label, metavar="KEY=VALUE", help="label of the TPU (repeatable)"
    )
    p.add_argument(
        "--metadata", action="append", default=[], type=_metadata, metavar="KEY=VALUE",
        help="metadata of the TPU VMs (repeatable)",
    )  # fmt: skip


def _add_connection(p: argparse.ArgumentParser) -> None:
    p.add_argument("--internal-ip", action="store_true", help="use internal IP addresses only")
    p.add_argument(
        "--tunnel-through-iap", action="store_true", help="connect through Identity-Aware Proxy (gcloud alpha)"
    )


def _add_training(p: argparse.ArgumentParser) -> None:
    """What runs on the machines, and how long."""
    p.add_argument(
        "--env", action="append", default=[], type=_pair, metavar="KEY[=VALUE]",
        help="environment variable for training (repeatable); KEY alone: as it is set here, for secrets",
    )  # fmt: skip
    p.add_argument(
        "--nfs", action="append", default=[], type=_share, metavar="HOST:/SHARE:/MOUNT",
        help="NFS share to mount (repeatable)",
    )  # fmt: skip
    p.add_argument(
        "--cwd", type=_absolute_path, metavar="DIR", help="working directory of training; relative paths start there"
    )
    p.add_argument("--root-is-shared", action="store_true", help="all workers share run.root without --nfs")
    p.add_argument(
        "--logs", type=_bucket, metavar="gs://BUCKET/FOLDER",
        help="where workers upload their output; default: launch/NAME in run.root if that is in gs://",
    )  # fmt: skip
    p.add_argument("--doctor", action="store_true", help="run bertjax doctor --cluster on new machines before training")
    p.add_argument("--repo", metavar="URL", help="clone the code from URL instead of sending this checkout")
    p.add_argument("--ref", type=_ref, default="HEAD", help="branch, tag or commit of --repo; default: its HEAD")
    p.add_argument(
        "--max-retries", type=_int_from(0), default=50, metavar="N", help="maximum number of retries; default: 50"
    )
    p.add_argument("--keep", action="store_true", help="keep the pod at the end")
    p.add_argument(
        "--poll", type=_seconds, default=15.0, metavar="SECONDS", help="seconds between polls of the pod; default: 15"
    )


def _add_state_dir(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--state-dir",
        type=_local_dir,
        default=Path("runs/launch"),
        help="folder for state and logs; default: runs/launch",
    )


def make_pod(arguments: argparse.Namespace) -> Pod:
    """The pod, in the first zone. Raises LaunchError."""
    kind = arguments.type.lower()
    runtime = arguments.runtime_version or RUNTIMES[generation(kind)]
    name = check_name(arguments.name)
    node_id = None if arguments.node_count else arguments.node_id or name
    return Pod(
        name, kind, runtime, node_id, arguments.node_count,
        "reservation" if arguments.reservation else arguments.capacity, arguments.project, arguments.zone[0],
        arguments.network, arguments.subnetwork, arguments.service_account, arguments.internal_ip,
        arguments.tunnel_through_iap, arguments.reservation, arguments.valid_until_duration,
        tuple(arguments.labels), tuple(arguments.metadata),
    )  # fmt: skip


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


def _duration(word: str) -> str:
    """A duration in seconds, which gcloud reads in one way (its topic datetimes has 1m as a month)."""
    parts = re.findall(r"(\d+)([dhms])", word)
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != word or not seconds:
        raise argparse.ArgumentTypeError(f"must be a duration such as 90m, 6h or 1d12h (got {word!r})")
    return f"{seconds}s"


def _zones(word: str) -> tuple[str, ...]:
    zones = tuple(word.split(","))
    if len(set(zones)) < len(zones):
        raise argparse.ArgumentTypeError(f"names a zone twice (got {word!r})")
    return zones


def _reservation(word: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9-]+|projects/[^/\s]+/(?:locations/[^/\s]+/)?reservations/[^/\s]+", word):
        raise argparse.ArgumentTypeError(f"must be a name or projects/PROJECT/reservations/NAME (got {word!r})")
    return word


def _label(word: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}", word):
        raise argparse.ArgumentTypeError(
            f"must be KEY=VALUE of lower-case letters, digits, dashes and underscores (got {word!r})"
        )
    return word


def _metadata(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}=.*", word, re.DOTALL):
        raise argparse.ArgumentTypeError("must be KEY=VALUE, the key of letters, digits, dashes and underscores")
    return word


def _bucket(word: str) -> str:
    if not re.fullmatch(r"gs://[^/\s]+(?:/[^\s]*)?", word):
        raise argparse.ArgumentTypeError(f"must be gs://BUCKET/FOLDER (got {word!r})")
    return word.rstrip("/")


def _ref(word: str) -> str:
    if not re.fullmatch(r"[^\s:~^?*\[\\-][^\s:~^?*\[\\]*", word):
        raise argparse.ArgumentTypeError(f"must be a branch, tag or commit (got {word!r})")
    return word


def _pair(word: str) -> str:
    key, equals, _ = word.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", key):
        raise argparse.ArgumentTypeError("must be KEY=VALUE or KEY")
    if not equals and key not in os.environ:
        raise argparse.ArgumentTypeError(f"{key} is not set here; give {key}=VALUE")
    return word if equals else f"{key}={os.environ[key]}"


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
