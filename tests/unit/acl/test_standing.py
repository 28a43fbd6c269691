# SPDX-License-Identifier: GPL-3.0-or-later
"""Which TCP connections this host is taken to have begun, by its sockets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from phantommesh.acl import standing
from phantommesh.acl.standing import Connection, Standing, TcpSockets

OWN = IPv4Address("100.64.0.1"), IPv6Address("fd00::1")
PEER = IPv4Address("100.64.0.2")


def connection(port: int, here: IPv4Address | IPv6Address = OWN[0]) -> Connection:
    return Connection(here, port, PEER, 1000)


def sockets(*connected: Connection, listening: tuple[int, ...] = ()) -> TcpSockets:
    return TcpSockets(frozenset(listening), frozenset(connected))


def test_a_connection_at_a_port_that_is_served_was_begun_by_the_other_side() -> None:
    seen = sockets(connection(22), connection(40000), listening=(22,))
    assert Standing().look(seen, OWN, fresh=True) == Standing(frozenset({22}), frozenset({connection(40000)}))


def test_connections_of_other_addresses_are_not_the_meshs() -> None:
    seen = sockets(connection(40000, IPv4Address("192.0.2.7")))
    assert Standing().look(seen, OWN, fresh=True).begun == frozenset()


def test_a_port_goes_on_to_be_served_when_its_program_has_ended() -> None:
    first = Standing().look(sockets(listening=(22,)), OWN, fresh=True)
    later = first.look(sockets(connection(22)), OWN, fresh=True)
    assert later == Standing(frozenset({22}))


def test_later_looks_only_take_connections_out() -> None:
    """The kernel has seen how a later one began."""
    first = Standing().look(sockets(connection(40000), connection(40001)), OWN, fresh=True)
    later = first.look(sockets(connection(40001), connection(40002)), OWN, fresh=False)
    assert later.begun == frozenset({connection(40001)})
    assert later.look(sockets(connection(40002)), OWN, fresh=True).begun == frozenset({connection(40002)})


def test_the_kernel_is_told_of_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "MAX_STANDING", 3)
    seen = sockets(*(connection(port) for port in range(40000, 40010)))
    assert Standing().look(seen, OWN, fresh=True).begun == {connection(40000 + i) for i in range(3)}
