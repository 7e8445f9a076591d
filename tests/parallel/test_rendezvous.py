"""Processes that meet, or do not: every one is told the same, by number and host. Threads stand for processes here."""

import json
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.errors import BertjaxError, StoppedSafely, UserError
from bertjax.parallel.multihost import rendezvous


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def meet(address: str, seats: list[tuple[int, int, float]], limit: float = 10) -> list[BertjaxError | None]:
    """What each (index, count, seconds late) got."""
    results: list[BertjaxError | None] = [None] * len(seats)

    def one(place: int, index: int, count: int, late: float) -> None:
        time.sleep(late)
        try:
            peers = rendezvous.wait_for_all(address, count, index, limit, report=lambda line: None)
            assert set(peers) == (set(range(1, count)) if index == 0 else {0})
            assert {peer.host for peer in peers.values()} == {socket.gethostname()}
            for peer in peers.values():
                peer.connection.sendall(b"x")  # it is open
                peer.connection.close()
        except BertjaxError as error:
            results[place] = error

    threads = [threading.Thread(target=one, args=(place, *seat)) for place, seat in enumerate(seats)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def test_all_go_on_whoever_comes_first(address):
    assert meet(address, [(0, 4, 0.3), (1, 4, 0.0), (2, 4, 0.6), (3, 4, 0.1)]) == [None] * 4
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):
        pass  # the port is free again for jax


def test_one_process_meets_nobody(address):
    assert rendezvous.wait_for_all(address, 1, 0, 1) == {}


def test_all_are_told_who_is_missing(address):
    found = meet(address, [(0, 6, 0.0), (2, 6, 0.0), (5, 6, 0.0)], limit=1)
    assert all(isinstance(error, StoppedSafely) and error.exit_code == 75 for error in found)
    (said,) = {str(error) for error in found}
    host = socket.gethostname()
    assert said == (
        f"processes 1, 3-4 of 6 never arrived (there: 0 ({host}), 2 ({host}), 5 ({host})) within 1 s; "
        "run the same command again"
    )


def test_without_process_0_the_others_say_where_they_looked(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "PORT_RELEASE_SECONDS", 0.5)
    (error,) = meet(address, [(1, 2, 0.0)], limit=0.5)
    assert isinstance(error, StoppedSafely) and f"process 0 did not answer at {address} within 0.5 s" in str(error)


@pytest.mark.parametrize(
    ("seats", "words"),
    [
        ([(0, 3, 0), (1, 3, 0), (1, 3, 0)], "two processes say they are process 1"),
        ([(0, 3, 0), (1, 4, 0)], "process 1 .* was started for 4 processes, process 0 .* for 3"),
    ],
)
def test_numbers_that_do_not_go_together_are_bad_input(address, seats, words):
    found = meet(address, seats)
    assert all(isinstance(error, UserError) for error in found)
    for error in found:
        with pytest.raises(UserError, match=words):
            raise error


def call(address: str, said: bytes) -> socket.socket:
    """A connection to process 0, once it listens, on which this was said."""
    until = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection(rendezvous.parse_address(address), timeout=1)
            connection.sendall(said)
            return connection
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_process_that_left_is_missing_again_and_may_come_back(address):
    """As a pod that Kubernetes starts a second time, while the others wait."""
    found: list = []
    waiting = threading.Thread(target=lambda: found.extend(meet(address, [(0, 3, 0.0)])))
    waiting.start()
    with call(address, json.dumps({"process": 1, "of": 3, "host": "a"}).encode() + b"\n"):
        time.sleep(0.3)
    time.sleep(0.3)
    assert meet(address, [(2, 3, 0.0), (1, 3, 0.3)]) == [None, None]
    waiting.join(10)
    assert found == [None]


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"{}\n", b'{"process": "x", "of": 2, "host": 1}\n', b""]
)
def test_strangers_at_the_port_are_sent_away(address, noise):
    found: list = []
    seats = threading.Thread(target=lambda: found.extend(meet(address, [(0, 2, 0.0), (1, 2, 1.0)])))
    seats.start()
    with call(address, noise):
        seats.join(30)
    assert found == [None, None]


def test_a_port_that_is_taken_is_bad_input(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "PORT_RELEASE_SECONDS", 0.4)
    with socket.create_server(("", int(address.split(":")[1]))), pytest.raises(UserError, match="Address already in u"):
        rendezvous.wait_for_all(address, 2, 0, 5)


@pytest.mark.parametrize(("text", "expected"), [("a:1", ("a", 1)), ("[::1]:80", ("::1", 80)), ("10.0.0.2:8476", None)])
def test_addresses(text, expected):
    assert rendezvous.parse_address(text) == (expected or ("10.0.0.2", 8476))


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:http", "host:0", "host:70000"])
def test_what_is_no_address_is_bad_input(text):
    with pytest.raises(UserError, match="must be host:port"):
        rendezvous.parse_address(text)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_runs_of_numbers_name_each_once(found):
    ranges = [part.split("-") for part in rendezvous.format_ranges(found).split(", ")]
    listed = [n for part in ranges for n in range(int(part[0]), int(part[-1]) + 1)]
    assert listed == sorted(found)
