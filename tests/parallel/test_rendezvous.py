"""Processes that meet, or do not: every one is told the same, by number and host. Threads stand for processes here."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.errors import BertjaxError, StoppedSafely, UserError
from bertjax.parallel.multihost import addresses, handshake, rendezvous
from bertjax.parallel.multihost.handshake import Hello


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


def call(address: str, said: bytes = b"") -> socket.socket:
    """A connection to process 0, once it listens, on which this was said."""
    until = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection(addresses.parse_address(address), timeout=5)
            connection.sendall(said)
            return connection
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def join(address: str, key: bytes, **said: object) -> socket.socket:
    """A connection that greets as a process with this key would, whatever it says of itself."""
    connection = call(address)
    greeted = handshake.read_greeting(connection.recv(4096))
    assert greeted is not None
    line = {"process": 1, "of": 3, "host": "a", "nonce": "n"} | said
    line |= {"mac": handshake._sign(key, greeted, line)}
    connection.sendall(json.dumps(line).encode() + b"\n")
    return connection


@contextmanager
def waiting(address: str, count: int = 3) -> Iterator[tuple[list, list[str]]]:
    """Process 0 waits in the block -> (what it gets in the end, what it reports)."""
    found: list = []
    lines: list[str] = []

    def wait() -> None:
        try:
            peers = rendezvous.wait_for_all(address, count, 0, 20, report=lines.append)
            for peer in peers.values():
                peer.connection.close()
            found.append(sorted(peers))
        except BertjaxError as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    yield found, lines
    thread.join(30)
    assert not thread.is_alive()


def test_a_process_that_left_is_missing_again_and_may_come_back(address):
    """As a pod that Kubernetes starts a second time, while the others wait."""
    with waiting(address) as (found, lines):
        with join(address, b""):
            time.sleep(0.3)
        time.sleep(0.3)
        assert meet(address, [(2, 3, 0.0), (1, 3, 0.3)]) == [None, None]
    assert found == [[1, 2]] and lines == []


# ---- strangers at the port ------------------------------------------------------------------------------------------

NOISE = [
    b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"\xff\xfe\n", b"{}\n", b"[" * 4000 + b"\n", b"NaN\n", b"1e999\n",
    b"\n\n\n",
    b'{"process": 1, "of": 3, "host": "a"}\n', b'{"process": 99, "of": 3, "host": "a", "nonce": "n", "mac": "00"}\n',
    b'{"process": 1, "of": 4, "host": "a", "nonce": "n", "mac": 7}\n',
    b'{"process": 1, "of": 3, "host": "a", "nonce": "n", "mac": "\\ud800"}\n',
    b'{"process": 1, "of": 3, "host": "a", "nonce": "n", "mac": "\xc3\xa9"}\n',
]  # fmt: skip


@pytest.mark.parametrize("noise", NOISE)
def test_a_stranger_is_ignored_and_reported_once(address, noise):
    with waiting(address) as (found, lines):
        strangers = [call(address, noise) for _ in range(3)]
        assert meet(address, [(1, 3, 0.5), (2, 3, 0.0)]) == [None, None]
        for stranger in strangers:
            stranger.close()
    assert found == [[1, 2]]
    (line,) = lines
    assert line.startswith("note: a connection from ") and "127.0.0.1" in line and "is ignored" in line


def test_one_that_connects_and_goes_is_not_reported(address):
    with waiting(address) as (found, lines):
        call(address).close()
        assert meet(address, [(1, 3, 0.5), (2, 3, 0.0)]) == [None, None]
    assert found == [[1, 2]] and lines == []


def test_a_slow_stranger_is_sent_away(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "HELLO_SECONDS", 0.5)
    with waiting(address) as (found, lines):
        with call(address, b"{") as stranger:
            stranger.settimeout(10)
            assert b"nonce" in stranger.recv(4096) and stranger.recv(4096) == b""
        assert meet(address, [(1, 3, 0.0), (2, 3, 0.0)]) == [None, None]
    assert found == [[1, 2]] and len(lines) == 1


def test_two_hundred_connections_keep_nobody_out(address):
    with waiting(address) as (found, lines):
        strangers = [call(address) for _ in range(200)]
        assert meet(address, [(1, 3, 0.0), (2, 3, 0.0)]) == [None, None]
        for stranger in strangers:
            stranger.close()
    assert found == [[1, 2]] and len(lines) == 1


@pytest.mark.parametrize("said", [{}, {"process": 2}, {"process": 99}, {"of": 7}, {"process": 0}])
def test_a_stranger_that_claims_a_place_without_the_secret_gets_none(address, monkeypatch, said):
    """With the secret of another job, or none; then the processes that have it come and go on."""
    monkeypatch.setenv(handshake.ENV_SECRET, "of this job")
    with waiting(address) as (found, lines):
        with join(address, b"", **said) as one, join(address, b"of another", **said) as other:
            for stranger in (one, other):
                stranger.settimeout(10)
                assert stranger.recv(4096) == b""
            assert meet(address, [(1, 3, 0.0), (2, 3, 0.0)]) == [None, None]
    assert found == [[1, 2]] and len(lines) == 1 and "has another BERTJAX_SECRET" in lines[0]


@pytest.mark.parametrize("said", [{"process": 99}, {"of": 7}, {"process": 0}])
def test_with_the_secret_the_same_is_bad_input(address, monkeypatch, said):
    """The control: what is signed counts."""
    monkeypatch.setenv(handshake.ENV_SECRET, "of this job")
    with waiting(address) as (found, _), join(address, b"of this job", **said) as one:
        one.settimeout(10)
        assert b'"error": "UserError"' in one.recv(4096)
    assert isinstance(found[0], UserError)


@pytest.mark.parametrize(
    "said", [{"process": True}, {"process": 1.0}, {"process": "1"}, {"of": None}, {"host": 3}, {"nonce": 1}]
)
def test_what_is_signed_and_has_other_types_is_ignored(address, said):
    with waiting(address) as (found, lines):
        with join(address, b"", **said) as one:
            one.settimeout(10)
            assert one.recv(4096) == b""
        assert meet(address, [(1, 3, 0.0), (2, 3, 0.0)]) == [None, None]
    assert found == [[1, 2]] and len(lines) == 1


def test_a_process_takes_no_orders_from_another_program_at_the_port(address, monkeypatch):
    """An answer without the job's signature, as of another job at this port: it goes on trying."""
    monkeypatch.setattr(rendezvous, "PORT_RELEASE_SECONDS", 0.5)
    monkeypatch.setenv(handshake.ENV_SECRET, "of this job")

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(handshake.greeting("n"))
                    if not (line := connection.recv(4096)):
                        continue  # the process gave up at the end of its time
                    said = json.loads(line)
                    wrong = {"error": "UserError", "message": "leave"}
                    connection.sendall(handshake.answer(wrong, b"of another", said["nonce"]))

    with socket.create_server(addresses.parse_address(address)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        (error,) = meet(address, [(1, 2, 0.0)], limit=1)
        listener.shutdown(socket.SHUT_RDWR)
        server.join(10)
    assert isinstance(error, StoppedSafely) and "BERTJAX_SECRET is the same for all" in str(error)


def test_the_secret_is_not_sent(address, monkeypatch):
    monkeypatch.setenv(handshake.ENV_SECRET, "hush-hush")
    line = handshake.hello(Hello(1, 2, "host"), handshake.job_key(), "greeted", "nonce")
    assert b"hush" not in line and handshake.read_hello(line, b"hush-hush", "greeted") == (Hello(1, 2, "host"), "nonce")
    assert handshake.read_hello(line, b"hush-hush", "another greeting") is None, "no use for who has overheard it"


def test_hosts_are_printable():
    assert handshake.clean_host("a\x1b[31m\n" + "b" * 200) == "a?[31m?" + "b" * 93


def test_a_port_that_is_taken_is_bad_input(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "PORT_RELEASE_SECONDS", 0.4)
    with socket.create_server(("", int(address.split(":")[1]))), pytest.raises(UserError, match="Address already in u"):
        rendezvous.wait_for_all(address, 2, 0, 5)


@pytest.mark.parametrize(("text", "expected"), [("a:1", ("a", 1)), ("[::1]:80", ("::1", 80)), ("10.0.0.2:8476", None)])
def test_addresses(text, expected):
    assert addresses.parse_address(text) == (expected or ("10.0.0.2", 8476))


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:http", "host:0", "host:70000"])
def test_what_is_no_address_is_bad_input(text):
    with pytest.raises(UserError, match="must be host:port"):
        addresses.parse_address(text)


def resolve(monkeypatch, found: list[str]) -> None:
    monkeypatch.delenv(addresses.ENV_BIND_ADDRESS, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (each, 0)) for each in found])


@pytest.mark.parametrize(
    ("host", "found", "expected"),
    [
        ("127.0.0.1", ["127.0.0.1"], "127.0.0.1"),
        ("localhost", ["127.0.0.1"], "127.0.0.1"),
        ("node-0", ["127.0.1.1"], ""),  # Debian's name for itself, which other hosts resolve to another address
        ("203.0.113.7", ["203.0.113.7"], ""),  # of a router in front of this host
        ("node-0", [], ""),
    ],
)
def test_process_0_listens_at_the_address_that_is_its_own(monkeypatch, host, found, expected):
    resolve(monkeypatch, found)
    assert addresses.bind_host(host) == expected
    assert addresses.bind_address(f"{host}:80") == (f"{expected}:80" if expected else None)


@pytest.mark.parametrize(("text", "expected"), [("[::]:1", ""), ("0.0.0.0:1", ""), ("10.0.0.3:1", "10.0.0.3")])
def test_jax_own_variable_says_where_to_listen(monkeypatch, text, expected):
    monkeypatch.setenv(addresses.ENV_BIND_ADDRESS, text)
    assert addresses.bind_host("127.0.0.1") == expected


def test_nobody_listens_elsewhere(address):
    """A port of 127.0.0.1 is not open at this host's other addresses."""
    port = int(address.split(":")[1])
    with waiting(address, 2) as (found, _):
        call(address).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        assert meet(address, [(1, 2, 0.0)]) == [None]
    assert found == [[1]]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_runs_of_numbers_name_each_once(found):
    ranges = [part.split("-") for part in addresses.format_ranges(found).split(", ")]
    listed = [n for part in ranges for n in range(int(part[0]), int(part[-1]) + 1)]
    assert listed == sorted(found)
