"""Whoever loses a process learns which, at once; whoever is done is left alone. Socket pairs stand for connections."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bertjax.parallel.multihost import peer_monitor
from bertjax.parallel.multihost.peer_monitor import Departure, Peer, PeerMonitor

SOON = 5.0  # seconds


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(peer_monitor, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(peer_monitor, "LEAVE_SECONDS", 0.3)


class Star:
    """`count` processes, of which those in `watching` have a monitor; `lost[i]` gets what process i is told of."""

    def __init__(self, count: int, watching: list[int]) -> None:
        self.count, self.made = count, []
        self.peers: list[dict[int, Peer]] = [{}]
        for index in range(1, count):
            with socket.create_server(("127.0.0.1", 0)) as door:
                self.peers.append({0: Peer(socket.create_connection(door.getsockname()), "host-0")})
                self.peers[0][index] = Peer(door.accept()[0], f"host-{index}")
        self.lost: list[queue.Queue] = [queue.Queue() for _ in range(count)]
        self.monitors = {i: PeerMonitor(self.peers[i], i, count, self.lost[i].put) for i in watching}

    def end(self, index: int) -> None:
        """As the kernel does with the connections of a process that ends."""
        for peer in self.peers[index].values():
            peer.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for monitor in self.monitors.values():
            monitor.leave(0)
        for index in range(self.count):
            for peer in self.peers[index].values():
                peer.connection.close()


@pytest.fixture
def star() -> Iterator[Callable[..., Star]]:
    made: list[Star] = []

    def make(count: int, watching: list[int] | None = None) -> Star:
        made.append(Star(count, [*range(count)] if watching is None else watching))
        return made[-1]

    yield make
    for each in made:
        each.close()


# ---- a lost process -------------------------------------------------------------------------------------------------


def test_all_others_are_told_who_is_gone(star):
    job = star(3, [0, 1])
    job.end(2)
    assert [job.lost[i].get(timeout=SOON) for i in (0, 1)] == ["process 2 on host-2"] * 2
    assert [job.monitors[i].find_lost(SOON) for i in (0, 1)] == ["process 2 on host-2"] * 2


def test_process_0_may_be_the_one(star):
    job = star(3, [1, 2])
    job.end(0)
    assert [lost.get(timeout=SOON) for lost in job.lost[1:]] == ["process 0 on host-0"] * 2


def test_who_has_left_waits_for_nobody(star):
    job = star(2, [0])
    job.monitors[0].leave(0)
    job.end(1)
    with pytest.raises(queue.Empty):
        job.lost[0].get(timeout=0.5)


def test_noise_on_a_connection_is_no_loss(star):
    job = star(3, [1])
    for noise in (b"\xff[] {\n", b"[[" * 4000 + b"\n", b'{"left": 1e999, "code": 1, "why": 0}\n', b"[]\n{}\n''\n"):
        job.peers[0][1].connection.sendall(noise)
    with pytest.raises(queue.Empty):
        job.lost[1].get(timeout=0.3)
    job.end(0)
    assert job.lost[1].get(timeout=SOON) == "process 0 on host-0"


def test_messages_may_come_in_pieces(star):
    job = star(2, [1])
    for piece in (b'{"gone": "process 7 on h', b'7", "index"', b": 7}\n"):
        job.peers[0][1].connection.sendall(piece)
        time.sleep(0.05)
    assert job.lost[1].get(timeout=SOON) == "process 7 on h7"


def test_connections_are_kept_alive(star):
    job = star(2, [0])
    assert job.peers[0][1].connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_process_alone_watches_nobody():
    before = threading.active_count()
    alone = PeerMonitor({}, 0, 1)
    assert threading.active_count() == before and alone.find_lost(SOON) is None


# ---- who is there, and who has left ---------------------------------------------------------------------------------


@pytest.mark.parametrize("asking", [0, 2])
def test_all_that_are_there_answer_at_once(star, asking):
    job = star(4)
    began = time.monotonic()
    assert [job.monitors[asking].find_lost(60), job.monitors[asking].find_lost(60)] == [None, None]
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize(("asking", "name"), [(0, "process 2 on host-2"), (1, "process 2")])
def test_a_process_that_does_not_answer_is_gone(star, asking, name):
    job = star(4, [0, 1, 3])
    assert job.monitors[asking].find_lost(0.3) == f"{name}, which does not answer"


def test_a_process_that_is_lost_while_it_is_asked(star):
    job = star(3, [0, 1])
    threading.Timer(0.2, job.end, (2,)).start()
    assert job.monitors[1].find_lost(60) == "process 2 on host-2"


@pytest.mark.parametrize("by", [0, 1])
def test_a_process_that_ends_in_order_is_not_lost(star, by):
    """Its code and its reason reach all others; who goes on without it is told after a while."""
    job = star(3)
    job.monitors[by].leave(4, "StorageError: full")
    job.end(by)
    for other in {0, 1, 2} - {by}:
        name = f"process {by}" + (f" on host-{by}" if 0 in (by, other) else "")
        assert job.lost[other].get(timeout=SOON) == f"{name}, which ended with exit code 4"
        assert job.monitors[other].left == {by: Departure(name, 4, "StorageError: full")}
        assert job.monitors[other].find_lost(SOON) is None and job.monitors[other].lost == {}


def test_the_end_of_a_finished_process_ends_no_other(star):
    job = star(2)
    job.monitors[1].leave(0)
    job.end(1)
    with pytest.raises(queue.Empty):
        job.lost[0].get(timeout=1.0)


def test_process_0_waits_for_the_others(star):
    job = star(3)
    assert job.monitors[1].wait_for_departures(60) is None, "another one does not"
    began = time.monotonic()
    job.monitors[0].wait_for_departures(0.3)
    assert 0.3 <= time.monotonic() - began < SOON
    for index in (1, 2):
        job.monitors[index].leave(2)
        job.end(index)
    job.monitors[0].wait_for_departures(60)
    assert time.monotonic() - began < 2 * SOON
