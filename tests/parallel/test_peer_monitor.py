"""Whoever loses a process learns which, at once; whoever is done is left alone. Socket pairs stand for connections."""

import queue
import socket
import threading

import pytest

from bertjax.parallel.multihost import peer_monitor
from bertjax.parallel.multihost.peer_monitor import Peer, start

SOON = 5.0  # seconds


@pytest.fixture(autouse=True)
def on_duty(monkeypatch):
    """Every test ends with nobody waiting for anybody, so that closing its sockets ends no process."""
    monkeypatch.setattr(peer_monitor, "GRACE_SECONDS", 0.1)
    yield
    peer_monitor.stop()


@pytest.fixture
def star():
    """star(n): process 0's peers, what each other has of process 0, and the queues in which they say who is gone."""
    made: list[socket.socket] = []

    def make(count: int) -> tuple[list[dict[int, Peer]], list[queue.Queue]]:
        pairs = [socket.create_server(("127.0.0.1", 0)) for _ in range(count - 1)]
        near, far = {}, []
        for index, door in enumerate(pairs, 1):
            far.append({0: Peer(socket.create_connection(door.getsockname()), "host-0")})
            near[index] = Peer(door.accept()[0], f"host-{index}")
        made.extend([*pairs, *(p.connection for p in near.values()), *(p[0].connection for p in far)])
        return [near, *far], [queue.Queue() for _ in range(count)]

    yield make
    peer_monitor.stop()
    for each in made:
        each.close()


def test_all_others_are_told_who_is_gone(star):
    (zero, one, two), said = star(3)
    for peers, told in zip((zero, one), said, strict=False):
        start(peers, told.put)
    two[0].connection.close()  # process 2 is killed
    assert said[0].get(timeout=SOON) == "process 2 on host-2"
    assert said[1].get(timeout=SOON) == "process 2 on host-2"


def test_process_0_may_be_the_one(star):
    (zero, one, two), said = star(3)
    start(one, said[1].put)
    start(two, said[2].put)
    for peer in zero.values():
        peer.connection.close()
    assert [told.get(timeout=SOON) for told in said[1:]] == ["process 0 on host-0"] * 2


def test_who_is_done_waits_for_nobody(star):
    (zero, one), said = star(2)
    start(zero, said[0].put)
    peer_monitor.stop()
    one[0].connection.close()
    with pytest.raises(queue.Empty):
        said[0].get(timeout=0.5)


def test_noise_on_a_connection_is_no_loss(star):
    (zero, one, two), said = star(3)
    start(one, said[1].put)
    zero[1].connection.sendall(b"\xff[] {\n")
    with pytest.raises(queue.Empty):
        said[1].get(timeout=0.3)
    zero[1].connection.close()
    assert said[1].get(timeout=SOON) == "process 0 on host-0"


def test_connections_are_kept_alive(star):
    (zero, _), said = star(2)
    start(zero, said[0].put)
    connection = zero[1].connection
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and connection.gettimeout() is None


def test_a_process_alone_watches_nobody():
    before = threading.active_count()
    start({}, print)
    assert threading.active_count() == before
