# SPDX-License-Identifier: GPL-3.0-or-later
"""Members try a node's control port by TCP, where they have seen the node itself; `netcheck` shows it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from msgspec import structs

from phantommesh.control import messages
from phantommesh.control.sessions import Sessions
from phantommesh.endpoint import Address
from phantommesh.nursery.members.checking import TcpChecks, ask_others, places
from phantommesh.nursery.node import Node
from phantommesh.records.candidate import Candidate, Kind
from tests.support.loopback import join, make_authority, make_invite, serving, until
from tests.support.makemesh import identity, plain_record


def test_only_endpoints_of_the_record_where_the_node_was_seen_are_tried() -> None:
    record = structs.replace(
        plain_record(identity("a")),
        control=("192.0.2.1:51800", "node.example:51800", "192.0.2.2:443"),
        candidates=(Candidate.of(Kind.SEEN, ip_address("203.0.113.7"), 40000),),
    )
    assert list(places(record, [])) == []
    assert list(places(record, [Address("198.51.100.1", 51800)])) == []  # it names another one
    seen = [Address("203.0.113.7", 1), Address("192.0.2.2", 51800), Address("192.0.2.2", 9, "tcp")]
    assert list(places(record, seen)) == [("192.0.2.2", 443), ("203.0.113.7", 40000)]


def linked(node: Node) -> bool:
    parts = node.parts
    return bool(parts.caller.callable()) and all(
        list(parts.finding.heard(entry.member.node_id)) for entry in parts.peers.entries
    )


async def test_a_member_says_whether_tcp_reaches_this_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invite = make_invite(make_authority(tmp_path / "alpha"))
    async with serving(tmp_path / "alpha") as alpha:
        await join(tmp_path / "beta", invite, "beta")
        async with serving(tmp_path / "beta") as beta:
            await until(lambda: linked(alpha) and linked(beta))
            port = beta.parts.config.control.port
            [(asked, word)] = (await ask_others(beta.parts.caller, [])).items()
            assert asked == alpha.parts.state.identity.node_id
            assert word == messages.TcpChecked(True, f"127.0.0.1:{port}")

            found = await beta.reporter.netcheck()
            assert found.node == "beta" and found.hairpin is None
            udp = next(one for one in found.reached if one.transport == "udp")
            assert (udp.reached, udp.by) == (True, ["alpha"])
            tcp = next(one for one in found.reached if one.transport == "tcp")
            assert (tcp.reached, tcp.by, tcp.why) == (True, ["alpha"], f"at 127.0.0.1:{port}")
            assert {feature.name for feature in found.features} >= {"nft", "CAP_NET_RAW"}

            async def none(*_: object) -> dict[object, object]:
                raise AssertionError("members are asked once a minute")

            monkeypatch.setattr("phantommesh.nursery.reporting.netchecking.ask_others", none)
            assert (await beta.reporter.netcheck()).reached == found.reached


async def test_a_member_that_was_not_seen_or_may_not_be_sent_to_is_not_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(host: str, port: int) -> object:
        raise AssertionError(f"connected to {host}")

    invite = make_invite(make_authority(tmp_path / "alpha"))
    async with serving(tmp_path / "alpha") as alpha:
        await join(tmp_path / "beta", invite, "beta")
        async with serving(tmp_path / "beta") as beta:
            await until(lambda: linked(alpha) and linked(beta))
            [entry] = alpha.parts.peers.entries
            monkeypatch.setattr("phantommesh.nursery.sockets.framing.connect", connect)
            seen = [Address("127.0.0.1", beta.parts.config.control.port)]
            sessions = alpha.parts.sessions
            for checks in (
                TcpChecks(sessions, lambda member: [], lambda member, host: True),
                TcpChecks(sessions, lambda member: seen, lambda member, host: False),
                TcpChecks(Sessions(), lambda member: seen, lambda member, host: True),
            ):
                assert (await checks.check(entry)).reached is False
