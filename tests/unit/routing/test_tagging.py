# SPDX-License-Identifier: GPL-3.0-or-later
"""A tag is written so that UDP's checksum stays as it is. tests/lab/test_relay.py sends such packets."""

from __future__ import annotations

import pytest

from phantommesh.endpoint import Address
from phantommesh.routing.tagging import Tagged, render

RELAY = Address("192.0.2.1", 51700)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_no_tag_changes_the_checksum(kind: int) -> None:
    for tag in range(1, 256):
        text = render("pm", [Tagged(40001, RELAY, tag, 20001)])
        written = next(line for line in text.splitlines() if "daddr" in line)
        value = int(written.split("@th,72,24 set ")[1].split()[0], 16)
        tagged = bytes((kind,)) + value.to_bytes(3, "big")
        assert tagged[1] == tag
        assert checksum(tagged) == checksum(bytes((kind, 0, 0, 0)))


def test_a_lease_without_a_tag_has_no_rules() -> None:
    with pytest.raises(ValueError, match="a tag is 1 to 255"):
        Tagged(40001, RELAY, 0, 20001)
    with pytest.raises(ValueError, match="an alias is another port"):
        Tagged(40001, RELAY, 1, RELAY.port)
