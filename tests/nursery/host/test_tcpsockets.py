# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's TCP sockets, as the kernel that runs this test lists them."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from phantommesh.acl.standing import Connection
from phantommesh.nlattr import NetlinkFormatError
from phantommesh.nursery.host import tcpsockets


@pytest.mark.parametrize(
    ("listen", "call"), [("127.0.0.1", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")]
)
def test_a_connection_is_listed_with_both_ends(listen: str, call: str) -> None:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((listen, 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection((call, port)) as client, server.accept()[0]:
            mine, here = client.getsockname()[1], ip_address(call)
            found = tcpsockets.read(connections=True)
            assert port in found.listening and mine not in found.listening
            assert {Connection(here, mine, here, port), Connection(here, port, here, mine)} <= found.connected
            assert tcpsockets.read(connections=False).connected == frozenset()


def test_an_answer_that_is_cut_short_is_an_error() -> None:
    with pytest.raises(NetlinkFormatError):
        tcpsockets.decode([(socket.AF_INET, bytes(20))])
