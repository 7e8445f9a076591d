"""The gcloud commands of launch/tpu.py as argument lists, and parsers of their output. Standard library only."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# TPU software versions for JAX by generation, from the Cloud TPU documentation.
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
# Without these a connection to a preempted machine stays open for hours.
_SSH_FLAGS = ("-oServerAliveInterval=15", "-oServerAliveCountMax=4", "-oConnectTimeout=30")
_TRANSIENT = re.compile(
    r"RESOURCE_EXHAUSTED|[Qq]uota|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL\b|ABORTED|capacity|Internal error|"
    r"\b(?:429|500|502|503|504)\b|[Tt]imed? ?out|Connection (?:reset|refused|aborted)|Could not reach|"
    r"Network is unreach|Unable to find the server"
)


class LaunchError(Exception):
    """Ends the launcher with a message and an exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Node:
    """One slice: the name of its TPU VM and its number of workers."""

    name: str
    index: int
    workers: int


@dataclass(frozen=True)
class Pod:
    """A queued resource, and the commands for it and its machines."""

    name: str
    type: str
    runtime: str
    node_id: str | None  # one slice, or
    node_count: int | None  # several
    capacity: str = "on-demand"  # spot | reserved | reservation | on-demand
    project: str | None = None
    zone: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    service_account: str | None = None
    internal_ip: bool = False  # no external addresses, and connections by internal ones
    tunnel: bool = False  # connections through IAP
    reservation: str | None = None  # name of a reservation, with capacity "reservation"
    valid_until: str | None = None  # how long the request may wait, as a duration of gcloud
    labels: tuple[str, ...] = ()  # KEY=VALUE
    metadata: tuple[str, ...] = ()  # KEY=VALUE

    @property
    def request(self) -> str:
        """The type and capacity in words, such as `v5litepod-16, spot`."""
        return f"{self.type}, {f'reservation {self.reservation}' if self.reservation else self.capacity}"

    def create(self) -> list[str]:
        words = [self.name, f"--accelerator-type={self.type}", f"--runtime-version={self.runtime}"]
        argv = self._queued("create", *words, alpha=bool(self.reservation))
        if self.node_count:
            argv += [f"--node-count={self.node_count}", f"--node-prefix={self.name}"]
        else:
            argv += [f"--node-id={self.node_id}"]
        argv += [f"--{self.capacity}"] if self.capacity in ("spot", "reserved") else []
        given = {
            "reservation": self.reservation,
            "valid-until-duration": self.valid_until,
            "labels": join_pairs(self.labels),
            "metadata": join_pairs(self.metadata),
            "network": self.network,
            "subnetwork": self.subnetwork,
            "service-account": self.service_account,
        }
        argv += [f"--{flag}={value}" for flag, value in given.items() if value]
        return argv + (["--internal-ips"] if self.internal_ip else [])

    def describe(self) -> list[str]:
        return self._queued("describe", self.name, "--format=json")

    def delete(self) -> list[str]:
        return self._queued("delete", self.name, "--force")

    def describe_node(self, node: str) -> list[str]:
        return [*self._start("tpu-vm", "describe"), node, *self._where(), "--format=json"]

    def copy(self, source: Path, node: str) -> list[str]:
        """Copies a file to the home folder of every worker of a slice."""
        flags = [f"--scp-flag={flag}" for flag in _SSH_FLAGS]
        return [
            *self._start("tpu-vm", "scp", alpha=self.tunnel),
            str(source),
            f"{node}:",
            *self._where(),
            "--worker=all",
            *self._via(),
            *flags,
        ]

    def ssh(self, node: str, remote: Sequence[str], worker: str = "all") -> list[str]:
        """Runs a command on all workers of a slice at once, or on one.

        Not `queued-resources ssh`: that runs at most 64 workers at a time, and training waits for all of them.
        """
        flags = [f"--ssh-flag={flag}" for flag in _SSH_FLAGS]
        argv = [*self._start("tpu-vm", "ssh", alpha=self.tunnel), node, *self._where(), f"--worker={worker}"]
        return [*argv, *self._via(), *flags, f"--command={shlex.join(remote)}"]

    def planned_nodes(self) -> list[str]:
        """The names that the slices will have."""
        return [f"{self.name}-{i}" for i in range(self.node_count)] if self.node_count else [str(self.node_id)]

    def planned_workers(self) -> int:
        """Workers of a slice: four chips per worker, eight on single hosts of v5e and v6e."""
        generation, _, size = self.type.partition("-")
        number = int(size)
        if generation in ("v5litepod", "v6e"):
            return 1 if number <= 8 else number // 4
        return max(1, number // 8)  # the number counts cores, two per chip

    def _queued(self, verb: str, *words: str, alpha: bool = False) -> list[str]:
        return [*self._start("queued-resources", verb, alpha), *words[:1], *self._where(), *words[1:]]

    def _start(self, kind: str, verb: str, alpha: bool = False) -> list[str]:
        """`alpha`: for --reservation and --tunnel-through-iap, which gcloud 528 has in its alpha commands only."""
        return ["gcloud", *(["alpha"] if alpha else []), "compute", "tpus", kind, verb]

    def _where(self) -> list[str]:
        given = {"project": self.project, "zone": self.zone}
        return ["--quiet", *(f"--{flag}={value}" for flag, value in given.items() if value)]

    def _via(self) -> list[str]:
        if self.tunnel:
            return ["--tunnel-through-iap"]
        return ["--internal-ip"] if self.internal_ip else []


def join_pairs(pairs: Sequence[str]) -> str:
    """KEY=VALUE pairs as one value of a gcloud flag; with a delimiter of its own if a value has commas."""
    if not any("," in pair for pair in pairs):
        return ",".join(pairs)
    delimiter = next(mark for mark in (":", ";", "|", "@@", "#@#", "@#@#") if not any(mark in pair for pair in pairs))
    return f"^{delimiter}^{delimiter.join(pairs)}"


def generation(accelerator: str) -> str:
    """`v5litepod` of `v5litepod-256`. Raises LaunchError for anything but an accelerator type."""
    found = re.fullmatch(r"(\w+)-([1-9]\d*)", accelerator)
    if not found or found[1] not in RUNTIMES:
        near = {"v5e": "v5litepod", "v5lite": "v5litepod", "v6": "v6e", "v5": "v5p"}.get(accelerator.split("-")[0])
        hint = f"; did you mean {near}-{accelerator.partition('-')[2] or 8}?" if near else ""
        raise LaunchError(f"--type: {accelerator} must be one of {', '.join(f'{name}-N' for name in RUNTIMES)}{hint}")
    return found[1]


def run_command(argv: Sequence[str]) -> tuple[int, str, str]:
    """-> (exit code, standard output, standard error). The command has its own session and does not receive Ctrl-C."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise LaunchError(f"{argv[0]} is not installed: see https://cloud.google.com/sdk/docs/install") from None
    out, err = process.communicate()
    return process.returncode, out, err


def error_line(err: str) -> str:
    """The line of gcloud's standard error that describes the error."""
    lines = [" ".join(line.split()) for line in err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors[0] if errors else lines[-1] if lines else "gcloud failed without a message")[:300]


def is_transient(err: str) -> bool:
    """Whether the error may go away: quota, capacity, service or network."""
    return bool(_TRANSIENT.search(err))


def is_not_found(err: str) -> bool:
    return "NOT_FOUND" in err or "was not found" in err


def parse_state(reply: str) -> str:
    return str(json.loads(reply).get("state", {}).get("state", "STATE_UNSPECIFIED"))


def parse_node_names(reply: str) -> list[str]:
    """The names of the slices of a queued resource, in order."""
    names = []
    for spec in _specs(reply):
        several = spec.get("multisliceParams", {})
        prefix = several.get("nodeIdPrefix") or json.loads(reply)["name"].split("/")[-1]
        names += [spec["nodeId"]] if spec.get("nodeId") else [f"{prefix}-{i}" for i in range(several["nodeCount"])]
    return names


def _specs(reply: str) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = json.loads(reply).get("tpu", {}).get("nodeSpec", [])
    return specs


def parse_type(reply: str) -> str | None:
    """The accelerator type of a queued resource."""
    specs = _specs(reply)
    found = specs[0].get("node", {}).get("acceleratorType") if specs else None
    return str(found) if found else None


def parse_worker_count(reply: str) -> int:
    """The number of workers of a TPU VM, from its description."""
    node = json.loads(reply)
    networks = max(1, len(node.get("networkConfigs") or []))  # each worker has an endpoint in every network
    return max(1, len(node.get("networkEndpoints", [])) // networks)
