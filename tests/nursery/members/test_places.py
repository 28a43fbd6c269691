# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node knows to judge addresses by; `test_reachable` has the rule, `tests/attacks` the attack."""

from dataclasses import replace
from ipaddress import IPv4Network, ip_network
from typing import cast

import pytest
from structlog.testing import capture_logs

from phantommesh.config.sections import Config, GossipSection, NodeSection
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.hostroutes import read_host
from phantommesh.nursery.members import places
from phantommesh.nursery.members.places import MAX_JUDGED, MAX_SEEN, Places
from phantommesh.reachable import HostNetworks
from phantommesh.records.roster import Entry
from phantommesh.trust.identity import NodeId

OVERLAY = (IPv4Network("100.64.0.0/10"),)
LAN = HostNetworks(
    own=frozenset({ip_network("10.8.0.2/32")}), connected=frozenset({(ip_network("10.8.0.0/24"), 3)})
)


def make(endpoints: tuple[str, ...] = (), seeds: tuple[str, ...] = (), **names: str) -> Places:
    config = Config(NodeSection("a", "m", endpoints), gossip=GossipSection(seeds=seeds))
    return Places(
        config, OVERLAY, lambda host: names.get(host.partition(".")[0], "").split() or _literal(host)
    )


def _literal(host: str) -> list[str]:
    return [host] if host.replace(".", "").isdigit() else []


def test_the_kernel_says_what_is_the_hosts_own() -> None:
    host = read_host()
    assert ip_network("127.0.0.0/8") in host.own
    assert not any(network.prefixlen == 0 for network, _ in host.connected)


def test_a_name_of_ours_opens_the_network_that_it_is_in_once_it_is_known() -> None:
    names: dict[str, str] = {}
    config = Config(NodeSection("a", "m", ("alpha.example",)))
    it = Places(config, OVERLAY, lambda host: names.get(host, "").split())
    it.judge_by(replace(it.reach, host=LAN))
    assert not it.may(None, "10.8.0.7")
    names["alpha.example"] = "10.8.0.2"
    it.look([])
    assert it.may(None, "10.8.0.7")


def test_seeds_are_judged_too_and_what_is_wrong_with_them_said() -> None:
    it = make(seeds=("inside.example", "172.16.0.9", "10.8.0.2"), inside="100.64.0.9")
    it.judge_by(replace(it.reach, host=LAN))
    assert [a.host for a in it.seeds()] == ["172.16.0.9"]
    [fault] = it.faults()  # that one of a list of seeds is this node itself is none
    assert "gossip.seeds: inside.example:51800" in fault.text and "overlay" in fault.text


def test_what_strangers_make_us_judge_is_bounded() -> None:
    it = make()
    for i in range(MAX_JUDGED + 10):
        it.forbids(f"192.0.{i >> 8}.{i & 255}")
    assert len(it._judged) <= MAX_JUDGED
    for i in range(MAX_SEEN + 10):
        it.seen(b"m", f"192.0.2.{i}")
    assert len(it._seen[b"m"]) == MAX_SEEN


async def test_networks_that_cannot_be_read_stand_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> HostNetworks:
        raise BackendError("no netlink", fix="mend it")

    it = make()
    it.judge_by(replace(it.reach, host=LAN))
    monkeypatch.setattr(places, "read_host", fail)
    with capture_logs() as logs:
        await it.refresh()
    assert it.reach.host == LAN
    assert [line["event"] for line in logs] == ["the host's networks are not known"]
    monkeypatch.setattr(places, "read_host", HostNetworks)
    await it.refresh()
    assert it.reach.host == HostNetworks()


class _Record:
    """The part of an entry of the roster that is looked at."""

    def __init__(self, *control: str) -> None:
        self.member = self.record = self
        self.node_id, self.control, self.name = NodeId(b"m" * 16), control, "m"


def test_all_addresses_of_a_name_are_candidates_the_one_heard_first() -> None:
    it = make(both="2001:db8::7 192.0.2.7 127.0.0.1", none="127.0.0.1")
    entry = cast("Entry", _Record("both.example:51800", "192.0.2.8:51800", "none.example:51800"))
    assert [address.host for address in it.of(entry)] == ["2001:db8::7", "192.0.2.7", "192.0.2.8"]
    assert it.uplinks(entry) == [("2001:db8::7", "192.0.2.7"), ("192.0.2.8",)]
    assert it.seen(entry.member.node_id, "192.0.2.7")
    assert not it.seen(entry.member.node_id, "192.0.2.7")
    assert [address.host for address in it.of(entry)] == ["192.0.2.7", "2001:db8::7", "192.0.2.8"]
    assert it.uplinks(entry) == [("192.0.2.7", "2001:db8::7"), ("192.0.2.8",)]
    it.look([entry])
    assert [fault.subject for fault in it.faults()] == ["m"]  # of the name that has no other address


def test_all_addresses_of_a_seed_are_tried() -> None:
    it = make(seeds=("both.example",), both="2001:db8::7 192.0.2.7 127.0.0.1")
    assert [address.host for address in it.seeds()] == ["2001:db8::7", "192.0.2.7"]
    assert not list(it.faults())


def test_a_host_that_moved_is_told_of_its_own_configuration_and_not_to_revoke_its_peers() -> None:
    it = make(endpoints=("192.0.2.9",))  # an address that this host has no more
    it.judge_by(replace(it.reach, host=LAN))
    it.look([cast("Entry", _Record("10.8.0.7:51800"))])
    [fault] = it.faults()
    assert "only this host has" in fault.text and "revoke" not in fault.fix
    assert "node.endpoints here" in fault.fix and "gossip.seeds" in fault.fix
    it.look([cast("Entry", _Record("127.0.0.1:51800"))])
    [fault] = it.faults()
    assert "revoke" in fault.fix
