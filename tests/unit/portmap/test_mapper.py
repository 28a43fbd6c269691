# SPDX-License-Identifier: GPL-3.0-or-later
"""A mapper and gateways of several kinds: what is asked, how often, and what holds in the end."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.portmap import machine
from phantommesh.portmap.effects import AskUpnp, Changed, Effect, EndUpnp, Send
from phantommesh.portmap.machine import (
    AGAIN,
    HEEDED,
    LIFETIME,
    MAX_WANTED,
    SHORT,
    SOONEST,
    SPREAD,
    TRIES,
    Mapper,
)
from phantommesh.portmap.refusals import explain
from phantommesh.portmap.values import NO_ADDRESS, Granted, Method, Protocol, Refusal, Wanted

OWN, PUBLIC = IPv4Address("192.168.1.5"), IPv4Address("203.0.113.7")
CONTROL, TCP, WG = Wanted(Protocol.UDP, 51800), Wanted(Protocol.TCP, 51800), Wanted(Protocol.UDP, 51820)
ALL = (CONTROL, TCP, WG)


@dataclass
class Gateway:
    """A model of one: ``kind`` is pcp, nat-pmp or none. ``off``: added to the port that is wished for."""

    kind: str = "pcp"
    off: int = 0
    result: int = 0
    lifetime: int = LIFETIME
    started: float = 0.0
    deaf: bool = False
    public: IPv4Address = PUBLIC
    address_result: int = 0
    table: dict[tuple[int, int], int] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)

    def answer(self, data: bytes, now: float) -> bytes | None:
        self.asked.append(data)
        epoch = int(now - self.started)
        if self.deaf or self.kind == "none":
            return None
        if data[0] == 2:
            if self.kind == "nat-pmp":
                return struct.pack("!BBHI", 0, 129, 1, epoch)
            _, _, _, lifetime, _ = struct.unpack_from("!BBHI16s", data)
            nonce, protocol, internal, external, _ = struct.unpack_from("!12sB3xHH16s", data, 24)
            port = self._map(protocol, internal, external, lifetime)
            address = bytes(10) + b"\xff\xff" + self.public.packed
            return struct.pack(
                "!BBBBII12s12sB3xHH16s", 2, 129, 0, self.result, self.lifetime, epoch, bytes(12), nonce,
                protocol, internal, port, address,
            )  # fmt: skip
        if data == b"\0\0":
            return struct.pack("!BBHI4s", 0, 128, self.address_result, epoch, self.public.packed)
        _, opcode, _, internal, external, lifetime = struct.unpack("!BBHHHI", data)
        port = self._map({1: 17, 2: 6}[opcode], internal, external, lifetime)
        return struct.pack("!BBHIHHI", 0, 128 + opcode, self.result, epoch, internal, port, self.lifetime)

    def _map(self, protocol: int, internal: int, external: int, lifetime: int) -> int:
        if self.result:
            return 0
        if not lifetime:
            self.table.pop((protocol, internal), None)
            return 0
        return self.table.setdefault((protocol, internal), external + self.off)


class Rig:
    """A mapper, a gateway and a clock."""

    def __init__(self, gateway: Gateway, *, upnp: bool = False) -> None:
        self.gateway, self.now = gateway, 0.0
        self.mapper = Mapper(OWN, random=Random(1), now=0.0, upnp=upnp)
        self.changes, self.upnp, self.ended = 0, list[AskUpnp](), list[EndUpnp]()

    def carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(datagram):
                    answer = self.gateway.answer(datagram, self.now)
                    if answer is not None:
                        self.carry(self.mapper.receive(answer, self.now))
                case AskUpnp():
                    self.upnp.append(effect)
                case EndUpnp():
                    self.ended.append(effect)
                case Changed():
                    self.changes += 1

    def want(self, *wanted: Wanted) -> None:
        self.carry(self.mapper.want(wanted, self.now))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.mapper.deadline <= end:
            self.now = max(self.now, self.mapper.deadline)
            self.carry(self.mapper.tick(self.now))
        self.now = end

    @property
    def ports(self) -> dict[Wanted, int]:
        return {wanted: one.port for wanted, one in self.mapper.granted(self.now).items()}


@pytest.mark.parametrize("kind", ["pcp", "nat-pmp"])
def test_all_ports_are_mapped_and_stay_so(kind: str) -> None:
    rig = Rig(Gateway(kind))
    rig.want(*ALL)
    assert rig.ports == {one: one.port for one in ALL}
    assert rig.mapper.method is Method(kind)
    assert {one.address for one in rig.mapper.granted(rig.now).values()} == {PUBLIC}
    asked = len(rig.gateway.asked)
    rig.run(LIFETIME * 10)
    assert rig.ports == {one: one.port for one in ALL}
    assert len(rig.gateway.asked) - asked <= 3 * 10 * 3  # at half of their life
    assert rig.changes == 3


@pytest.mark.parametrize("kind", ["pcp", "nat-pmp"])
def test_another_external_port_is_taken_and_kept(kind: str) -> None:
    rig = Rig(Gateway(kind, off=1000))
    rig.want(*ALL)
    rig.run(LIFETIME * 3)
    assert rig.ports[CONTROL] == 52800 and rig.ports[WG] == 52820


@pytest.mark.parametrize("kind", ["pcp", "nat-pmp"])
def test_ports_are_given_back(kind: str) -> None:
    rig = Rig(Gateway(kind))
    rig.want(*ALL)
    rig.want(CONTROL)
    assert rig.gateway.table.keys() == {(17, 51800)}
    rig.carry(rig.mapper.close())
    assert not rig.gateway.table and not rig.ports


def test_a_gateway_that_does_not_answer_is_asked_a_few_times_and_seldom() -> None:
    rig = Rig(Gateway("none"))
    rig.want(*ALL)
    rig.run(AGAIN / 2)
    assert len(rig.gateway.asked) == 2 * TRIES
    rig.run(AGAIN * 10)
    assert len(rig.gateway.asked) <= 12 * 2 * TRIES
    assert not rig.ports and not rig.changes


def test_it_is_found_again_when_it_answers_later() -> None:
    rig = Rig(Gateway("pcp", deaf=True))
    rig.want(*ALL)
    rig.run(AGAIN / 2)
    rig.gateway.deaf = False
    rig.run(AGAIN)
    assert len(rig.ports) == 3


def test_a_gateway_that_was_started_anew_gets_all_again() -> None:
    rig = Rig(Gateway())
    rig.want(*ALL)
    rig.run(100.0)
    rig.gateway.table.clear()
    rig.gateway.started = rig.now
    rig.run(LIFETIME / 2)  # the first renewal shows it
    assert rig.gateway.table.keys() == {(w.protocol, w.port) for w in ALL}


def test_after_a_move_the_next_gateway_is_asked_at_once() -> None:
    rig = Rig(Gateway())
    rig.want(*ALL)
    rig.gateway = Gateway("nat-pmp", off=7)
    rig.run(10.0)
    rig.carry(rig.mapper.again(rig.now))
    assert rig.ports == {one: one.port + 7 for one in ALL}


@pytest.mark.parametrize("kind", ["pcp", "nat-pmp"])
def test_the_gateways_next_address_is_known_with_the_next_renewal(kind: str) -> None:
    """A provider that gives another address each night: the gateway keeps its mappings and its clock."""
    rig = Rig(Gateway(kind))
    rig.want(*ALL)
    rig.run(100.0)
    rig.gateway.public, changes = IPv4Address("203.0.113.99"), rig.changes
    rig.run(LIFETIME)
    assert {one.address for one in rig.mapper.granted(rig.now).values()} == {rig.gateway.public}
    assert len(rig.ports) == 3 and rig.changes > changes


def test_a_mapping_that_is_not_renewed_ends() -> None:
    rig = Rig(Gateway())
    rig.want(*ALL)
    rig.gateway.deaf = True
    rig.run(LIFETIME - 1)
    assert len(rig.ports) == 3
    changes = rig.changes
    rig.run(2.0)
    assert not rig.ports and rig.changes == changes + 3


@pytest.mark.parametrize("kind", ["pcp", "nat-pmp"])
def test_a_refusal_is_not_asked_again_soon(kind: str) -> None:
    rig = Rig(Gateway(kind, result=2))
    rig.want(*ALL)
    asked = len(rig.gateway.asked)
    rig.run(machine.REFUSED - 1)
    assert len(rig.gateway.asked) == asked
    assert rig.mapper.refused == Refusal(Method(kind), 2) and not rig.ports


@pytest.mark.parametrize("kind", ["pcp", "nat-pmp"])
@pytest.mark.parametrize("said", [True, False])
def test_a_gateway_that_is_not_connected_yet_is_asked_again_soon(kind: str, said: bool) -> None:
    """After a power cut the router answers before its provider does. ``said``: it says so, and does not just
    name the address 0.0.0.0."""
    code = {"pcp": 7, "nat-pmp": 3}[kind] if said else 0
    nowhere = IPv4Address("0.0.0.0")
    rig = Rig(Gateway(kind, public=nowhere, result=code, address_result=code), upnp=True)
    rig.want(*ALL)
    rig.run(3 * SHORT)
    assert not rig.ports and not rig.changes and not rig.upnp
    assert len(rig.gateway.asked) <= 4 * len(ALL) + 2
    assert rig.mapper.refused is not None and explain(rig.mapper.refused)[0] == NO_ADDRESS
    rig.gateway.public, rig.gateway.result, rig.gateway.address_result = PUBLIC, 0, 0
    rig.run(SHORT)
    assert {one.address for one in rig.mapper.granted(rig.now).values()} == {PUBLIC} and len(rig.ports) == 3
    assert rig.mapper.refused is None


def test_a_gateway_of_upnp_that_is_not_connected_yet_is_asked_again_soon() -> None:
    rig = Rig(Gateway("none"), upnp=True)
    rig.want(*ALL)
    rig.run(AGAIN / 2)
    rig.carry(rig.mapper.upnp({}, rig.now, refused=NO_ADDRESS))
    assert rig.mapper.refused is not None and "the router's connection" in explain(rig.mapper.refused)[1]
    rig.run(SHORT)
    assert len(rig.upnp) == 2


def test_a_gateway_that_maps_nothing_by_pcp_is_asked_by_the_next_protocol() -> None:
    class Odd(Gateway):
        def answer(self, data: bytes, now: float) -> bytes | None:
            answer = super().answer(data, now)
            return answer if answer is None or data[0] != 2 else answer[:3] + b"\4" + answer[4:]

    rig = Rig(Odd())
    rig.want(*ALL)
    assert rig.mapper.method is Method.NAT_PMP and len(rig.ports) == 3


def test_a_life_of_a_second_makes_no_storm() -> None:
    rig = Rig(Gateway(lifetime=1))
    rig.want(*ALL)
    rig.run(600.0)
    assert len(rig.gateway.asked) <= 3 * (600 / SOONEST + 2)


def test_upnp_is_the_last_resort() -> None:
    rig = Rig(Gateway("none"), upnp=True)
    rig.want(*ALL)
    rig.run(AGAIN / 2)
    assert len(rig.upnp) == 1 and [one for one, _ in rig.upnp[0].wanted] == list(ALL)
    granted = {one: Granted(PUBLIC, one.port, float(LIFETIME)) for one in ALL[:2]}
    rig.carry(rig.mapper.upnp(granted, rig.now))
    assert rig.ports == {CONTROL: 51800, TCP: 51800} and rig.mapper.method is Method.UPNP
    rig.run(LIFETIME / 2)
    assert len(rig.upnp) == 2  # renewed
    rig.carry(rig.mapper.upnp({}, rig.now))
    rig.run(AGAIN / 2)
    assert len(rig.gateway.asked) >= 2 * TRIES


def test_a_gateway_of_upnp_that_refuses_is_no_gateway_that_is_not_there() -> None:
    rig = Rig(Gateway("none"), upnp=True)
    rig.want(*ALL)
    rig.run(AGAIN / 2)
    rig.carry(rig.mapper.upnp({}, rig.now, refused="Action Not Authorized"))
    assert rig.mapper.method is Method.UPNP and not rig.ports
    assert rig.mapper.refused == Refusal(Method.UPNP, text="Action Not Authorized")
    rig.run(machine.REFUSED - 1)
    assert len(rig.upnp) == 1
    rig.run(2.0)
    rig.carry(rig.mapper.upnp({CONTROL: Granted(PUBLIC, 51800, 1800.0)}, rig.now))
    assert rig.ports == {CONTROL: 51800}
    refused = rig.mapper.refused
    assert refused is None


ANNOUNCED = {"pcp": struct.pack("!BBBBII12s", 2, 0x80, 0, 0, 0, 0, b""), "nat-pmp": b"\0\x80" + bytes(10)}


@pytest.mark.parametrize("before", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("kind", ANNOUNCED)
def test_a_gateway_that_announces_itself_gets_all_again_within_seconds(kind: str, before: float) -> None:
    """Its clock was at ``before`` seconds when it was started anew: the clock may not even be behind."""
    rig = Rig(Gateway(kind))
    rig.want(*ALL)
    rig.run(before)
    rig.gateway.table.clear()
    rig.gateway.started = rig.now
    rig.carry(rig.mapper.announced(ANNOUNCED[kind], rig.now))
    rig.run(SPREAD)
    assert rig.gateway.table.keys() == {(w.protocol, w.port) for w in ALL}


@pytest.mark.parametrize("kind", ANNOUNCED)
def test_whatever_a_gateway_says_that_was_started_anew_no_mapping_lacks_its_address(kind: str) -> None:
    """NAT-PMP's address is asked for by itself, and may be slow to come: what is granted goes into the
    node's record, and without an address that fails."""
    rig = Rig(Gateway(kind))
    rig.want(*ALL)
    rig.run(100.0)
    rig.gateway.started = rig.now
    asked = rig.mapper.announced(ANNOUNCED[kind], rig.now)
    rig.now += SPREAD
    asked += rig.mapper.tick(rig.now)
    while asked:  # one datagram after the other, as a socket has them
        effect = asked.pop(0)
        answer = rig.gateway.answer(effect.datagram, rig.now) if isinstance(effect, Send) else None
        asked += [] if answer is None else rig.mapper.receive(answer, rig.now)
        assert {one.address for one in rig.mapper.granted(rig.now).values()} == {PUBLIC}
    assert len(rig.ports) == 3


@pytest.mark.parametrize("kind", ANNOUNCED)
def test_a_forged_announcement_costs_one_question(kind: str) -> None:
    rig = Rig(Gateway(kind))
    rig.want(*ALL)
    rig.run(100.0)
    asked, changes = len(rig.gateway.asked), rig.changes
    for _ in range(1000):
        rig.carry(rig.mapper.announced(ANNOUNCED[kind], rig.now))
        rig.run(10 * HEEDED / 1000)
    assert len(rig.gateway.asked) - asked <= 10 + 1 and rig.changes == changes


def test_a_gateway_that_was_silent_is_asked_once_it_announces_itself() -> None:
    rig = Rig(Gateway("nat-pmp", deaf=True))
    rig.want(*ALL)
    rig.run(AGAIN / 2)
    rig.gateway.deaf = False
    rig.carry(rig.mapper.announced(ANNOUNCED["nat-pmp"], rig.now))
    assert len(rig.ports) == 3


def test_a_port_by_upnp_that_is_of_no_more_use_is_given_back() -> None:
    """Some gateways know no lifetimes: each key that takes WireGuard's other port would leave one open."""
    rig = Rig(Gateway("none"), upnp=True)
    rig.want(*ALL)
    rig.run(AGAIN / 2)
    granted = {one: Granted(PUBLIC, one.port + 16, float(LIFETIME)) for one in ALL}
    rig.carry(rig.mapper.upnp(granted, rig.now))
    rig.want(CONTROL, TCP)
    assert rig.ended == [EndUpnp(WG, granted[WG])]
    rig.carry(rig.mapper.close())
    assert {one.wanted for one in rig.ended} == set(ALL)


def test_no_more_ports_than_a_node_has_are_asked_for() -> None:
    rig = Rig(Gateway())
    rig.want(*(Wanted(Protocol.UDP, port) for port in range(1, 100)))
    assert len(rig.ports) == MAX_WANTED


@given(st.lists(st.tuples(st.binary(max_size=80), st.floats(0.0, 400.0)), max_size=20), st.booleans())
def test_whatever_comes_from_a_gateway(said: list[tuple[bytes, float]], genuine: bool) -> None:
    rig = Rig(Gateway("pcp" if genuine else "none"))
    rig.want(*ALL)
    for data, pause in said:
        for form in (data, b"\x02\x81\0\0" + data, b"\0\x80\0\0" + data, b"\0\x81\0\0" + data):
            rig.carry(rig.mapper.receive(form, rig.now))
            rig.carry(rig.mapper.announced(form, rig.now))
        rig.run(pause)
    assert len(rig.gateway.asked) <= 60 + 30 * len(said)
    assert rig.mapper.deadline > rig.now or rig.mapper.deadline == inf
