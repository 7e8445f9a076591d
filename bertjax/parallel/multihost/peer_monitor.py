"""A connection between process 0 and each of the others, open while both live: where it breaks, one of them is gone.

A killed process loses its connections at once, but a collective need not notice: of two devices of one process one
fails and the other waits for it, until jax misses the heartbeats of the lost one. Where process 0 loses somebody it
tells the others who it was.
"""

import json
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

MAX_MESSAGE_BYTES = 4096  # bytes of a message, at most
GRACE_SECONDS = (
    3.0  # seconds in which this process may find out more by itself, and its watchdog write down where it hangs
)


class Peer(NamedTuple):
    """Another process, and the connection to it."""

    connection: socket.socket
    host: str


_stopped = threading.Event()


def start(peers: Mapping[int, Peer], on_lost: Callable[[str], None]) -> None:
    """Starts a thread that calls on_lost(who is gone), in that thread, when a connection to one of `peers` breaks.

    Of process 0 the peers are all others, of these process 0 alone. To be called once in a process.
    """
    if peers:
        _stopped.clear()
        selector = selectors.DefaultSelector()
        for index, peer in peers.items():
            _keep_alive(peer.connection)
            selector.register(peer.connection, selectors.EVENT_READ, index)
        threading.Thread(target=_watch, args=(selector, dict(peers), on_lost), name="peer_monitor", daemon=True).start()


def stop() -> None:
    """From here on nobody need wait for anybody: this process ends in good order, or for a reason that all have."""
    _stopped.set()


def _keep_alive(connection: socket.socket) -> None:
    """Routers and firewalls forget connections on which nothing is said for ten minutes."""
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
    """Who is gone, by what this connection says; None when it says nothing of that."""
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
