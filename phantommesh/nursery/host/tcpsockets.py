# SPDX-License-Identifier: GPL-3.0-or-later
"""The TCP sockets of this network namespace, as the kernel lists them: sock_diag(7), linux/inet_diag.h."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from phantommesh.acl.rules import IpAddress
from phantommesh.acl.standing import Connection, TcpSockets
from phantommesh.nlattr import DUMP, REQUEST, NetlinkFormatError, pack_message
from phantommesh.nursery.host.netlink import NetlinkSocket

_SOCK_DIAG, _BY_FAMILY = 4, 20  # linux/netlink.h, linux/sock_diag.h
_LISTEN: Final = 10  # include/net/tcp_states.h
_CONNECTED: Final = (1, 2, 4, 5, 8, 9, 11)  # all between SYN_SENT and LAST_ACK but what still comes in
_REQUEST: Final = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_ANSWER: Final = struct.Struct("!xB2xHH16s16s")  # the head of struct inet_diag_msg


def read(*, connections: bool) -> TcpSockets:
    """Read the sockets, without the connections unless they are asked for. Raises OSError. It blocks."""
    states = [_LISTEN, *(_CONNECTED if connections else ())]
    mask = sum(1 << state for state in states)
    answers = list[tuple[int, bytes]]()
    with NetlinkSocket(_SOCK_DIAG) as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            asked = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, mask)
            found = diag.exchange(pack_message(_BY_FAMILY, REQUEST | DUMP, 1, asked))
            answers += [(family, payload) for _, _, payload in found]
    return decode(answers)


def decode(answers: Iterable[tuple[int, bytes]]) -> TcpSockets:
    """Read the kernel's answers, each with the family that was asked for. Raises NetlinkFormatError."""
    listening, connected = set[int](), set[Connection]()
    for family, payload in answers:
        if len(payload) < _ANSWER.size:
            raise NetlinkFormatError("a socket that is cut short")
        state, port, their_port, here, there = _ANSWER.unpack_from(payload)
        if state == _LISTEN:
            listening.add(port)
        else:
            connected.add(Connection(_address(family, here), port, _address(family, there), their_port))
    return TcpSockets(frozenset(listening), frozenset(connected))


def _address(family: int, data: bytes) -> IpAddress:
    """An address; a socket of IPv6 that speaks IPv4 has one inside."""
    if family == socket.AF_INET:
        return IPv4Address(data[:4])
    address = IPv6Address(data)
    return address.ipv4_mapped or address
