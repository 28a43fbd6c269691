# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node knows to judge addresses by; `test_reachable` has the rule, `tests/attacks` the attack."""

from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network
from typing import cast

import pytest
from structlog.testing import capture_logs

from phantommesh.config.sections import Config, GossipSection, NodeSection
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.hostroutes import read_host
from phantommesh.nursery.members import places
from phantommesh.nursery.members.places import MAX_FORMER, MAX_JUDGED, MAX_SEEN, Places
from phantommesh.reachable import HostAddress, HostNetworks
from phantommesh.records.candidate import Candidate, Kind
from phantommesh.records.record import callable_at, wg_ports_at
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
    return [host] if ":" in host or host.replace(".", "").isdigit() else []


def test_the_kernel_says_what_is_the_hosts_own() -> None:
    host = read_host()
    assert ip_network("127.0.0.0/8") in host.own
    assert not any(network.prefixlen == 0 for network, _ in host.connected)


def test_an_uplink_that_comes_back_is_one_by_which_this_node_is_reached() -> None:
    """Without a default route, the addresses at which a node was found say which uplinks are its own."""
    it, both = make(), {"10.8.0.2": 3, "192.168.7.2": 4}

    def host(*there: str) -> HostNetworks:
        return HostNetworks(
            own=frozenset(ip_network(f"{one}/32") for one in there),
            connected=frozenset((ip_network(f"{one}/24", strict=False), both[one]) for one in there),
        )

    it.judge_by(replace(it.reach, host=host(*both)))
    it.live_at([*both])
    it.judge_by(replace(it.reach, host=host("10.8.0.2")))
    it.live_at(["10.8.0.2"])
    assert not it.reach.beside(ip_address("192.168.7.9"))
    it.judge_by(replace(it.reach, host=host(*both)))
    offered = [HostAddress(ip_address(one), index, f"up{index}") for one, index in both.items()]
    assert it.reach.beside(ip_address("192.168.7.9"))
    assert it.reach.offers(offered) == offered


def test_no_more_former_addresses_are_remembered_than_a_host_has() -> None:
    it = make()
    for number in range(3 * MAX_FORMER):
        it.live_at([f"10.8.0.{number + 1}"])
    assert len(it.reach.found) == MAX_FORMER
    assert ip_address(f"10.8.0.{3 * MAX_FORMER}") in it.reach.found


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

    def __init__(self, *control: str, candidates: tuple[Candidate, ...] = ()) -> None:
        self.member = self.record = self
        self.candidates, self.wg_ports = candidates, tuple(range(51820, 51827))
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


PORTS = tuple(range(40_001, 40_008))
BESIDE = HostNetworks(
    own=frozenset({ip_network("192.168.1.2/32")}),
    connected=frozenset({(ip_network("192.168.1.0/24"), 3)}),
    uplinks=frozenset({3}),
)


def behind_nat(*control: str) -> Entry:
    """A member that found by itself where it is: behind a NAT, and with an address of IPv6."""
    found = (
        Candidate.of(Kind.SEEN, ip_address("203.0.113.7"), 40_000, PORTS),
        Candidate.of(Kind.OWN, ip_address("192.168.1.5"), 51_800),
        Candidate.of(Kind.OWN, ip_address("2a00::5"), 51_800),
        Candidate.of(Kind.OWN, ip_address("10.9.9.9"), 51_800, uplink=1),
    )
    return cast("Entry", _Record(*(control or ("192.168.1.5:51800", "10.9.9.9:51800")), candidates=found))


def at(host: HostNetworks = BESIDE, *, public: str = "") -> Places:
    it = make()
    it.judge_by(replace(it.reach, host=host))
    it.public = lambda: {ip_address(public)} if public else set()
    return it


@pytest.mark.parametrize("public", ["", "203.0.113.7"])
def test_a_private_address_comes_first_where_both_may_be_behind_one_nat(public: str) -> None:
    hosts = [(address.host, address.port) for address in at(public=public).of(behind_nat())]
    assert hosts == [
        ("192.168.1.5", 51_800), ("203.0.113.7", 40_000), ("2a00::5", 51_800), ("10.9.9.9", 51_800),
    ]  # fmt: skip


def test_it_comes_last_where_each_is_seen_at_another_address() -> None:
    hosts = [address.host for address in at(public="198.51.100.1").of(behind_nat())]
    assert hosts == ["203.0.113.7", "2a00::5", "192.168.1.5", "10.9.9.9"]


def test_it_comes_last_for_a_node_in_another_network() -> None:
    hosts = [address.host for address in at(HostNetworks()).of(behind_nat())]
    assert hosts == ["203.0.113.7", "2a00::5", "192.168.1.5", "10.9.9.9"]


def test_what_an_operator_wrote_comes_before_all_and_what_was_heard_before_that() -> None:
    it, entry = at(public="203.0.113.7"), behind_nat("vpn.example:51800")
    it._lookup = lambda host: ["192.0.2.9"] if host == "vpn.example" else [host]
    assert [address.host for address in it.of(entry)][:2] == ["192.0.2.9", "192.168.1.5"]
    it.seen(entry.member.node_id, "203.0.113.7")
    assert [address.host for address in it.of(entry)][:2] == ["203.0.113.7", "192.0.2.9"]


def test_the_candidates_of_an_interface_stand_with_its_endpoint() -> None:
    assert at(HostNetworks()).uplinks(behind_nat()) == [
        ("203.0.113.7", "2a00::5", "192.168.1.5"), ("10.9.9.9",)
    ]  # fmt: skip


def test_a_node_without_any_endpoint_is_tried_at_its_candidates() -> None:
    entry = behind_nat()
    entry.record.control = ()  # type: ignore[misc]
    assert len(at().of(entry)) == 4
    assert [len(hosts) for hosts in at().uplinks(entry)] == [4]


def test_a_candidate_that_may_not_be_used_is_nobodys_fault() -> None:
    """A bridge of this host has the same network as the member's."""
    bridge = HostNetworks(
        own=frozenset({ip_network("192.168.1.1/32")}),
        connected=frozenset({(ip_network("192.168.1.0/24"), 7)}),
    )
    it, entry = at(bridge), behind_nat()
    it.look([entry])
    assert "192.168.1.5" not in [address.host for address in it.of(entry)]
    assert not list(it.faults())
    it.look([cast("Entry", _Record("192.168.1.5:51800"))])  # an operator wrote this one
    assert [fault.code for fault in it.faults()] == ["address-forbidden"]


def test_the_overlay_is_refused_among_candidates_too() -> None:
    lie = Candidate.of(Kind.SEEN, ip_address("100.64.0.9"), 51_800)
    assert at().of(cast("Entry", _Record(candidates=(lie,)))) == ()


def test_own_addresses_that_were_found_open_their_network() -> None:
    it = make()
    it.judge_by(replace(it.reach, host=LAN))
    assert not it.may(None, "10.8.0.7")
    it.live_at(["10.8.0.2"])
    assert it.may(None, "10.8.0.7")


@pytest.mark.parametrize(
    ("host", "ports"),
    [
        ("203.0.113.7", PORTS),
        ("192.168.1.5", tuple(range(51820, 51827))),
        ("192.0.2.9", tuple(range(51820, 51827))),
    ],
)
def test_each_address_has_its_ports(host: str, ports: tuple[int, ...]) -> None:
    assert wg_ports_at(behind_nat().record, host) == ports


def test_a_newcomer_is_sent_where_others_see_the_node_and_then_to_its_endpoints() -> None:
    assert callable_at(behind_nat().record) == ("203.0.113.7:40000", "192.168.1.5:51800", "10.9.9.9:51800")


def test_an_endpoint_that_an_operator_wrote_has_the_records_ports() -> None:
    """Its ports are forwarded; what this node sends comes from others."""
    assert wg_ports_at(behind_nat("203.0.113.7:51800").record, "203.0.113.7") == tuple(range(51820, 51827))


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


def test_what_is_knocked_at_has_its_rank_and_says_who_is_behind_a_nat() -> None:
    assert at(public="203.0.113.7").targets(behind_nat()) == [
        ("192.168.1.5", 0, False), ("2a00::5", 1, False), ("203.0.113.7", 2, True), ("10.9.9.9", 3, False),
    ]  # fmt: skip
    # Seen elsewhere: 192.168.1.5 is somebody else here.
    assert at(public="198.51.100.1").targets(behind_nat()) == [
        ("2a00::5", 1, False),
        ("203.0.113.7", 2, True),
    ]
    lie = Candidate.of(Kind.SEEN, ip_address("100.64.0.9"), 51_800)
    assert at().targets(cast("Entry", _Record(candidates=(lie,)))) == []


def test_wireguard_is_held_back_where_both_are_surely_behind_nats_of_their_own() -> None:
    home, away = at(public="203.0.113.7"), at(public="198.51.100.1")
    for it in (home, away):
        it.live_at(["192.168.1.2"])
    assert away.hidden_from(behind_nat())
    assert not home.hidden_from(behind_nat())  # one NAT
    assert not at().hidden_from(behind_nat())  # nothing is known of this node
    fresh = at()
    fresh.live_at(["192.168.1.2"])
    assert fresh.hidden_from(behind_nat())  # it has just started: its first packet may be the early one
    fresh.live_at(["192.168.1.2", "2a00::2"])
    assert not fresh.hidden_from(behind_nat())
    assert not away.hidden_from(behind_nat("vpn.example:51800"))  # an operator's word
    away.live_at(["198.51.100.1"])
    assert not away.hidden_from(behind_nat())  # this node is in the open
    away.live_at(["192.168.1.2"])
    open_to_all = Candidate.of(Kind.OWN, ip_address("203.0.113.7"), 51_800)
    seen = Candidate.of(Kind.SEEN, ip_address("203.0.113.7"), 51_800, PORTS)
    assert not away.hidden_from(cast("Entry", _Record(candidates=(seen, open_to_all))))
    assert not away.hidden_from(cast("Entry", _Record(candidates=(open_to_all,))))
