# SPDX-License-Identifier: GPL-3.0-or-later
"""The blocks that are many hosts': they are never banned."""

from __future__ import annotations

from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from phantommesh.acl.bans import block_of
from phantommesh.nursery.dataplane.shielding import Shielding


@pytest.mark.parametrize(
    ("host", "shared"),
    [
        ("64:ff9b::198.51.100.66", True),
        ("64:ff9b:1:2::c633:6442", True),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", True),
        ("64:ff9c::1", False),
        ("2001:db8::7", False),
        ("198.51.100.66", False),
    ],
)
def test_a_block_in_which_a_translator_has_many_hosts_is_never_banned(host: str, shared: bool) -> None:
    around: Any = SimpleNamespace(
        reach=SimpleNamespace(host=SimpleNamespace(own=(), connected=())), seeds=lambda: ()
    )
    unused: Any = None
    shielding = Shielding(
        unused, unused, around, unused, unused, entries=lambda: (), actual=dict, overlay=lambda: ()
    )
    assert ("translator" in shielding.shield().why(ip_network(block_of(host)))) is shared
