# SPDX-License-Identifier: GPL-3.0-or-later
"""A member says that it is where it may not be: at an overlay address, on the victim's loopback, at a
metadata service, on a container bridge. Nobody sends anything there.

The member signs with its real keys. Its announcements go through all of a node's own code: links, gossip,
channels, the WireGuard devices. `test_forbidden_addresses_lab` plays the worst of it between machines.
"""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from time import time
from typing import Any

import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.control import sessions
from phantommesh.endpoint import Address, format_endpoint
from phantommesh.gossip.envelope import Envelope
from phantommesh.gossip.machine import KIND
from phantommesh.link.effects import Opened, Send
from phantommesh.membership.effects import FetchRecord
from phantommesh.nursery.members.calling import ask_standing
from phantommesh.nursery.names import resolve
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets import framing
from phantommesh.reachable import HostNetworks, Network
from phantommesh.records.record import MAX_CONTROL_ENDPOINTS, sign_record
from phantommesh.secret import Secret
from phantommesh.state.making import init_mesh
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import choose_ip4
from tests.support.loopback import free_port, serving, settings
from tests.support.makemesh import identity, plain_record

ETH, BRIDGE = 2, 4  # interfaces of the victim: its uplink, a container bridge
PORT = 51800
GOOD = "198.51.100.8"  # where a member may be


def net(*texts: str) -> frozenset[Network]:
    return frozenset(ip_network(text) for text in texts)


HOST = HostNetworks(
    own=net("127.0.0.0/8", "::1", "10.9.0.2", "172.17.0.1", "2001:db8:9::2"),
    broadcast=frozenset({IPv4Address("10.9.0.255"), IPv4Address("172.17.255.255")}),
    connected=frozenset(
        {(ip_network("10.9.0.0/24"), ETH), (ip_network("172.17.0.0/16"), BRIDGE)}
        | {(ip_network("2001:db8:9::/64"), ETH), (ip_network("fd17::/64"), BRIDGE)}
    ),
    uplinks=frozenset({ETH}),
)

FORBIDDEN = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1"),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.0.192", "168.63.129.16"),
    *("10.9.0.2", "10.9.0.255", "172.17.0.1", "172.17.0.2", "172.17.255.255", "100.64.0.1", "100.127.9.9"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::127.0.0.1", "64:ff9b::172.17.0.2"),
    *("2002:7f00:1::1", "2002:a9fe:a9fe::1", "2001:0:7f00:1::1", "2001:0:808:808:0:0:80ff:fffe"),
    *("2001:db8::5efe:7f00:1", "fe80::1", "ff02::1", "ff0e::1", "2001:db8:9::2", "fd17::2"),
    *("fd00:ec2::254", "fd20:ce::254", "::ffff:100.64.0.1", "64:ff9b::100.64.0.1", "2002:6440:1::1"),
)
NAMES = {
    "loopback.example": "127.0.0.1",
    "overlay.example": "100.64.0.1",
    "metadata.example": "169.254.169.254",
    "bridge.example": "172.17.0.2",
    "six.example": "::1 fe80::1%eth0",
    "localhost": "127.0.0.1",
    "0x7f000001": "127.0.0.1",  # inet_aton's form, which the system's resolver reads as an address
    "rebinding.example": "198.51.100.7",
}


class NameServer(trio.abc.HostnameResolver):
    def __init__(self) -> None:
        self.table = dict(NAMES)

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        await trio.lowlevel.checkpoint()
        if name not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (a, port or 0)) for a in self.table[name].split()]

    async def getnameinfo(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class Tap:
    """In place of a UDP socket: notes where something is sent."""

    def __init__(self, sent: Counter[str]) -> None:
        self.sent = sent

    def sendto(self, _: bytes, to: tuple[str, int]) -> None:
        self.sent[to[0]] += 1

    def close(self) -> None:
        pass


@dataclass
class Attack:
    """One insider, with its real keys, and the node that it attacks."""

    victim: Node
    insider: Identity
    cert: bytes
    names: NameServer
    sent: Counter[str] = field(default_factory=Counter)
    dialled: Counter[str] = field(default_factory=Counter)
    seq: int = 1

    def announce(self, endpoints: Sequence[str]) -> None:
        """Sign a record that names these, and have the victim take it."""
        authority = self.victim.parts.state.authority
        assert authority is not None
        self.seq += 1
        record = structs.replace(plain_record(self.insider, self.seq), control=tuple(endpoints))
        self.victim.parts.keeper.add(sign_record(self.insider, record, self.cert, authority.der))

    async def use(self) -> None:
        """Everything by which a node sends something to a member."""
        node, member = self.victim, self.insider.node_id
        node._weaving.peers_changed()
        node._weaving._arrange()
        node.parts.gossip.membership.set_seeds(node.parts.gossip._seeds())
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
        node.parts.sessions.add(sessions.Session(member, b"s" * 16, Secret(b"o" * 32), Secret(b"i" * 32)))
        with suppress(framing.StreamError):
            async with node.parts.caller.call(member):
                pass
        for auth in [peer.auth for peer in node.parts.links._context.peers.values()]:
            for address in auth.endpoints:
                node.parts.driver.carry_out([Send(b"\x01init", address)])
        with trio.move_on_after(0.05):
            await ask_standing(node.parts.state, node.parts.keeper, lambda: True, node.parts.places.of)
        for _ in range(12):
            node.parts.gossip._carry_out(node.parts.gossip.gossip.tick(trio.current_time()))
            await trio.sleep(0.01)

    def everywhere(self) -> set[str]:
        """Every host that something was sent to or would be."""
        node = self.victim
        found = set(self.sent) | set(self.dialled)
        found |= {a.host for p in node.parts.links._context.peers.values() for a in p.auth.endpoints}
        found |= {a.host for a in node.parts.tcp.callable}
        found |= {a.host for a in node.parts.gossip._where(self.insider.node_id)} | {
            a.host for a in node.parts.gossip._seeds()
        }
        for device in node.parts.reconciler.desired.values():
            found |= {peer.endpoint.host for peer in device.peers.values() if peer.endpoint is not None}
        return found


@pytest.fixture
async def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Attack]:
    async with attacking(tmp_path, monkeypatch) as made:
        yield made


@asynccontextmanager
async def attacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Attack]:
    port = free_port()
    init_mesh(
        tmp_path / "state", tmp_path / "pm.toml", mesh="pm", name="alpha", endpoints=(f"10.9.0.2:{port}",),
        now=time(), config=settings(port),
    )  # fmt: skip
    state = load_node(tmp_path / "state", time())
    assert state.authority is not None
    monkeypatch.setattr(resolve, "TELL", 0.01)  # else a name is judged when it is announced no more
    insider, names = identity("insider"), NameServer()
    ip4 = choose_ip4(state.mesh, insider.node_id, ())
    # Authorities are tried as seeds for ever, so an insider that is one gets the most out of its addresses.
    cert = state.authority.issue(insider.spki, "mallory", Role.AUTHORITY, ip4, time())
    sent, dialled = Counter[str](), Counter[str]()
    monkeypatch.setattr(resolve, "FRESH", 0.05)
    monkeypatch.setattr("phantommesh.nursery.members.calling.STANDING_FIRST", 0.01)
    monkeypatch.setattr("phantommesh.node.news.STANDING_FIRST", 0.01)

    async def dial(host: str, _: int) -> None:
        await trio.lowlevel.checkpoint()
        dialled[host] += 1
        raise OSError("not here")

    def change(node: Node) -> None:
        async def deaf(_: object) -> None:
            await trio.sleep_forever()

        for sock in node.parts.udp._sockets.values():
            sock.close()
        tap: Any = Tap(sent)
        node.parts.udp._sockets = {socket.AF_INET: tap, socket.AF_INET6: tap}
        node.parts.udp.receive = deaf  # type: ignore[method-assign,assignment]
        # Records have a rate, which makes the insider slow, and is not what this is about.
        node.parts.keeper._too_soon = lambda node_id: False  # type: ignore[method-assign]
        node.parts.places.judge_by(
            replace(node.parts.places.reach, host=HOST, home=frozenset({ip_address("10.9.0.2")}))
        )
        node.parts.links.dials = lambda peer: 127  # type: ignore[method-assign]  # as after a finished handshake

    monkeypatch.setattr(trio, "open_tcp_stream", dial)
    monkeypatch.setattr("phantommesh.nursery.members.places.read_host", lambda: HOST)
    trio.socket.set_custom_hostname_resolver(names)
    with capture_logs():
        async with serving(tmp_path, change) as node:
            made = Attack(node, insider, cert, names, sent, dialled)
            with suppress(trio.ClosedResourceError, ValueError):
                yield made


def overlay_of(node: Node, insider: Identity) -> list[str]:
    """The victim's own overlay addresses, and the attacker's."""
    entry = node.parts.keeper.roster.get(insider.node_id)
    assert entry is not None
    me, other = node.parts.own.member, entry.member
    return [str(a) for a in (me.ip4, me.ip6, other.ip4, other.ip6)]


def test_there_are_enough() -> None:
    assert len(set(FORBIDDEN)) == len(FORBIDDEN)
    assert len(FORBIDDEN) + len(NAMES) >= 40
    assert {ip_address(host).version for host in FORBIDDEN} == {4, 6}


async def test_nothing_is_sent_to_a_forbidden_address(attack: Attack) -> None:
    attack.announce([f"{GOOD}:{PORT}"])
    hosts = [*FORBIDDEN, *overlay_of(attack.victim, attack.insider), *(n for n in NAMES if "rebind" not in n)]
    allowed = {GOOD}
    for start in range(0, len(hosts), MAX_CONTROL_ENDPOINTS - 1):
        chosen = hosts[start : start + MAX_CONTROL_ENDPOINTS - 1]
        attack.announce([f"{GOOD}:{PORT}", *(format_endpoint(host, PORT) for host in chosen)])
        await attack.use()
        assert attack.everywhere() == allowed, chosen
    assert attack.sent[GOOD] and attack.dialled[GOOD]  # what may be used is used, so that this says something
    counted = attack.victim.parts.places.dropped
    assert sum(counted.values()) >= len(hosts)
    assert len(counted) < 16  # labels, whatever is announced


async def test_a_name_that_is_bound_anew_is_judged_anew(attack: Attack) -> None:
    attack.announce([f"rebinding.example:{PORT}"])
    await attack.use()
    assert "198.51.100.7" in attack.everywhere()
    for bad in ("127.0.0.1", "100.64.0.1", "172.17.0.2", "64:ff9b::169.254.169.254"):
        attack.names.table["rebinding.example"] = bad
        with trio.fail_after(30):
            while attack.victim.parts.resolver.lookup("rebinding.example") != (str(ip_address(bad)),):
                await trio.sleep(0.02)
        await attack.use()
        # A handshake that was under way still repeats itself to where the name pointed before.
        assert attack.everywhere() == {"198.51.100.7"}, bad
        assert not attack.victim.parts.gossip._where(attack.insider.node_id)
    attack.names.table["rebinding.example"] = f"127.0.0.1 {GOOD}"
    with trio.fail_after(30):
        while GOOD not in attack.victim.parts.resolver.lookup("rebinding.example"):
            await trio.sleep(0.02)
    await attack.use()
    assert attack.everywhere() == {GOOD, "198.51.100.7"}


async def test_an_operator_is_told_who_it_is_and_the_log_once(attack: Attack) -> None:
    with capture_logs() as logs:
        for i in range(50):
            attack.announce([f"127.0.0.{i + 1}:{PORT}"])
    told = [line for line in logs if line["event"] == "peer announces an address it may not"]
    assert [line["peer"] for line in told] == ["mallory"]
    assert attack.victim.parts.places.dropped["address-loopback"] == 50
    faults = [f for f in attack.victim.reporter.degraded() if "announces an address it may not" in f]
    assert len(faults) == 1 and "mallory" in faults[0] and "127.0.0.50" in faults[0]
    attack.announce([f"{GOOD}:{PORT}"])
    assert not [f for f in attack.victim.reporter.degraded() if "may not" in f]


async def test_a_member_in_a_container_is_reached_once_it_was_heard_there(attack: Attack) -> None:
    attack.announce([f"172.17.0.2:{PORT}"])
    await attack.use()
    assert attack.everywhere() == set()
    keys = Secret(b"k" * 32)
    at = Address("172.17.0.2", 40000)
    attack.victim._weaving.react(
        Opened(attack.insider.node_id, "responder", b"t" * 16, keys, keys, 1, 0.1, at=at)
    )
    attack.announce([f"172.17.0.2:{PORT}", f"172.17.0.3:{PORT}"])
    await attack.use()
    assert attack.everywhere() == {"172.17.0.2"}


async def test_what_seems_to_come_from_a_forbidden_address_is_not_answered(attack: Attack) -> None:
    """The source of a datagram is forged, or it came through the tunnel; what is in it is genuine."""
    victim, insider = attack.victim, attack.insider
    attack.announce([])
    with trio.fail_after(60):
        while victim.parts.keys.ring.active is None:
            await trio.sleep(0.02)
    sealed = Envelope(
        insider.node_id, victim.parts.keys.ring, start=1, revoked=victim.parts.state.revocations,
        digest=victim.parts.keys.digest,
    )  # fmt: skip
    heard: list[str] = []
    for number, host in enumerate(hosts := [*FORBIDDEN, *overlay_of(victim, insider)]):
        source = Address(host, 40000 + number)
        if victim.parts.udp.forbids(host):
            continue  # as `UdpPort` does, below
        heard.append(host)
        victim._weaving.receive(sealed.seal(KIND, b"\0" * 60), source)
        victim.parts.gossip.gossip._heard(insider.node_id, source, trio.current_time())
        fetch = FetchRecord(insider.node_id, 99, bytes([number]) * 16, source)
        await victim.parts.gossip.work_on("fetch", victim.parts.gossip.news.fetch([fetch], trio.current_time))
    assert heard == ["172.17.0.2", "64:ff9b::172.17.0.2", "fd17::2"]
    assert attack.everywhere() == set()
    assert victim.parts.gossip.dropped["gossip-record-forbidden"] == 2 * len(heard)  # at once, and once more
    assert len(hosts) > 40


async def test_the_socket_and_the_devices_refuse_where_a_check_before_was_missed(attack: Attack) -> None:
    victim = attack.victim
    attack.announce([f"{GOOD}:{PORT}"])
    never = [h for h in FORBIDDEN if "172.17.0.2" not in h and h != "fd17::2"]
    never += overlay_of(victim, attack.insider)
    before = victim.parts.udp.dropped["datagram-forbidden"]
    for host in never:
        victim.parts.udp.send(b"x", Address(host, PORT))
    assert victim.parts.udp.dropped["datagram-forbidden"] - before == len(never)
    assert not set(attack.sent) & set(never)
    entry = victim.parts.keeper.roster.get(attack.insider.node_id)
    assert entry is not None
    for host in never:
        victim.parts.peers._where = lambda _, host=host: (Address(host, PORT),)  # type: ignore[misc]
        victim.parts.peers._uplinks = lambda _, host=host: [(host,)]
        victim._weaving._arrange()
        endpoints = [p.endpoint for d in victim.parts.reconciler.desired.values() for p in d.peers.values()]
        assert endpoints == [None] * 7, host
