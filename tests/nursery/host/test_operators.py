# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom an operator depends on, and which neighbour has which MAC address."""

from __future__ import annotations

import sys
from ipaddress import ip_address

import pytest

from phantommesh.nursery.host.neighbours import Neighbours
from phantommesh.nursery.host.operators import session_of

LITTLE = pytest.mark.skipif(sys.byteorder != "little", reason="the lines are of a little-endian machine")


@LITTLE
@pytest.mark.parametrize(
    ("line", "peer"),
    [
        ("   1: 0100000A:0016 0200000A:D431 01 00000000:00000000", "10.0.0.2"),
        ("   1: 0100000A:0016 0200000A:D431 06 00000000:00000000", None),  # TIME_WAIT
        ("   1: 0100000A:0050 0200000A:D431 01 00000000:00000000", None),  # another port
        (
            "   1: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:D431 01",
            "2001:db8::2",
        ),
        ("   1: 0000000000000000FFFF00000100000A:0016 0000000000000000FFFF00000200000A:D431 01", "10.0.0.2"),
        ("  sl  local_address rem_address   st tx_queue", None),
        ("", None),
        ("1: x:0016 y:1 01", None),
        ("1: 0100000A:0016 02:1 01", None),
    ],
)
def test_the_other_end_of_a_session(line: str, peer: str | None) -> None:
    assert session_of(line, {22}) == (None if peer is None else ip_address(peer))


def test_a_neighbour_is_sole_where_no_other_address_has_its_mac() -> None:
    one, two = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
    table = Neighbours(
        {
            (1, "10.0.0.7"): one, (1, "10.0.0.8"): two, (1, "10.0.0.9"): two, (2, "10.0.0.8"): one,
            (1, "fe80::1"): one, (1, "2001:db8::1"): one,
        }
    )  # fmt: skip
    assert table.sole(1, "10.0.0.7") == one
    assert table.sole(1, "10.0.0.8") is None  # a router, or one that answers for others
    assert table.sole(2, "10.0.0.8") == one
    assert table.sole(1, "10.0.0.99") is None and table.sole(1, "fe80::1") is None
