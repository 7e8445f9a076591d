"""Detect lost processes by connections between process 0, which sends the name of a lost one, and each other.

The connections of a killed process close at once, while a collective may wait until jax misses its heartbeats.
"""

import json
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

MAX_MESSAGE_BYTES = 4096
GRACE_SECONDS = 3.0  # for this process to find the cause by itself, and for its watchdog to report a hang


class Peer(NamedTuple):
    connection: socket.socket  # to the other process
    host: str


_stopped = threading.Event()


def start(peers: Mapping[int, Peer], on_lost: Callable[[str], None]) -> None:
    """Start a thread that calls on_lost(which process is gone) when a connection to one of `peers` closes."""
    if peers:
        _stopped.clear()
        selector = selectors.DefaultSelector()
        for index, peer in peers.items():
            _keep_alive(peer.connection)
            selector.register(peer.connection, selectors.EVENT_READ, index)
        threading.Thread(target=_watch, args=(selector, dict(peers), on_lost), name="peer_monitor", daemon=True).start()


def stop() -> None:
    """Stop monitoring: this process ends normally, or with an error that all processes have."""
    _stopped.set()


def _keep_alive(connection: socket.socket) -> None:
    """Keep the connection alive in routers and firewalls, which drop idle ones after ten minutes."""
    connection.setblocking(True)
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
        if option := getattr(socket, name, None):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _watch(selector: selectors.BaseSelector, peers: dict[int, Peer], on_lost: Callable[[str], None]) -> None:
    with selector:
        while ready := selector.select():
            for key, _ in ready:
                if who := _lost_peer(key.data, peers[key.data]):
                    selector.unregister(key.fileobj)
                    if not _stopped.is_set():
                        _notify(who, [other for index, other in peers.items() if index != key.data])
                        if not _stopped.wait(GRACE_SECONDS):
                            on_lost(who)


def _lost_peer(index: int, peer: Peer) -> str | None:
    try:
        said = peer.connection.recv(MAX_MESSAGE_BYTES)
    except OSError:
        said = b""
    if not said:
        return f"process {index} on {peer.host}"
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(said)["gone"])[:200]
    return None


def _notify(who: str, others: list[Peer]) -> None:
    for other in others:
        with suppress(OSError):
            other.connection.sendall(json.dumps({"gone": who}).encode() + b"\n")
