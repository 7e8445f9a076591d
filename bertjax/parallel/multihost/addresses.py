"""Addresses and numbers of processes as text; where process 0 listens."""

import ipaddress
import os
import socket
from collections.abc import Iterable
from contextlib import suppress

from bertjax.errors import UserError

ENV_BIND_ADDRESS = "JAX_COORDINATOR_BIND_ADDRESS"  # jax's own name


def parse_address(address: str) -> tuple[str, int]:
    """host:port, an IPv6 host in brackets -> (host, port). Raises UserError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator address '{address[:100]}': must be host:port, such as 10.0.0.2:8476")
    return host.strip("[]"), int(port)


def bind_host(host: str) -> str:
    """The address of this host to listen at, for the name or address by which the others find it; "" for all of them.

    All, if `host` is an address of another machine (of a router in front of this one), and if it is a name that only on
    this machine means the loopback interface, as Debian's 127.0.1.1.
    JAX_COORDINATOR_BIND_ADDRESS, jax's own variable, overrides it.
    """
    if own := os.environ.get(ENV_BIND_ADDRESS):
        named = parse_address(own)[0]
        return "" if named in ("::", "0.0.0.0") else named  # noqa: S104
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return ""
    named_loopback = host == "localhost" or host in found
    for address in found:
        if ipaddress.ip_address(address.partition("%")[0]).is_loopback and not named_loopback:
            continue
        with suppress(OSError), socket.create_server((address, 0), family=family_of(address)):
            return address
    return ""


def bind_address(address: str) -> str | None:
    """`bind_host` for the coordinator's host:port, as host:port; None for all addresses."""
    name, port = parse_address(address)
    host = bind_host(name)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else None


def family_of(address: str) -> socket.AddressFamily:
    """Of a numeric address; IPv4 for an empty one."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def format_ranges(found: Iterable[int]) -> str:
    """Numbers as ranges: 1, 4-7, 12."""
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
