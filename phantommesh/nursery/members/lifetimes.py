# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures how long the NATs and firewalls before this node keep what is idle, and does its part where others
measure theirs: gives `routing.echoes` and `node.lifetimes` sockets, a clock and a channel."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from typing import Final, Literal

import structlog
import trio

from phantommesh.config.sections import Config
from phantommesh.control import messages
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.node import lifetimes
from phantommesh.node.lifetimes import (
    ENOUGH,
    FIRST,
    SCOPES,
    Lifetimes,
    Measurement,
    Outcome,
    Scope,
    Voice,
    agree,
    between,
)
from phantommesh.node.peers import Peers
from phantommesh.nursery.due import Due
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.checking import places as places_of
from phantommesh.nursery.members.finding import Finding
from phantommesh.nursery.members.gossip import GossipDriver
from phantommesh.nursery.members.places import Places
from phantommesh.nursery.members.seeing import seen_at
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.sockets.udp import mark_outer
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.nursery.unexpected import left_out
from phantommesh.paths.machine import Paths
from phantommesh.paths.state import PathState
from phantommesh.reachable import IpAddress
from phantommesh.records.record import wg_ports_at
from phantommesh.records.roster import Entry
from phantommesh.routing import echoes
from phantommesh.routing.echoes import MAGIC, Keys, Kind, Send, Witness
from phantommesh.routing.ways import Kind as WayKind
from phantommesh.routing.ways import Ways
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.wireguard.device import DeviceState

# Tuning.
CALM: Final = 15.0  # s after the start until anything is measured
LOOK: Final = 5.0  # s between looks at which network this is
PATIENCE: Final = 8.0  # s that a witness has to agree
WITNESSES: Final = 3  # members that are asked in turn
RETRY: Final = 300.0  # s after a measurement that came to nothing

NO_SOCKET: Final = "this node has no raw socket"
BROKEN: Final = "a measurement was left out after an unexpected error"

log = structlog.get_logger("phantommesh.lifetimes")


class LifetimeDriver:
    """``ports`` are WireGuard's. ``seen`` gives where a member was seen itself, ``may`` whether something may
    be sent to an address of a member, ``public`` at which addresses this node is seen, ``own`` which it has,
    ``beside`` whether an address is in a network of ours. ``witnesses`` gives the members with a direct path
    and the place of their WireGuard port of dimension 0, the best first; ``authority`` says whether one is
    one. ``changed`` is called when keepalives are to be others. ``on`` is False where nothing is to be
    measured."""

    def __init__(
        self,
        state: StateDir,
        ports: WireguardPorts,
        caller: Caller,
        *,
        on: bool,
        configured: int,
        seen: Callable[[NodeId], Iterable[Address]],
        may: Callable[[bytes, str], bool],
        public: Callable[[], frozenset[IpAddress]],
        own: Callable[[], frozenset[IpAddress]],
        beside: Callable[[IpAddress], bool],
        witnesses: Callable[[], Iterable[tuple[NodeId, Address]]],
        authority: Callable[[NodeId], bool],
        changed: Callable[[], None],
    ) -> None:
        self._state, self._ports, self._caller, self._on = state, ports, caller, on
        self._seen, self._may, self._public, self._own = seen, may, public, own
        self._beside, self._witnesses, self._changed = beside, witnesses, changed
        self._authority = authority
        self.lifetimes = Lifetimes(configured, _remembered(state) if on else None)
        self._witness = Witness(may, trio.current_time())
        self._due = Due(lambda: self._witness.deadline)
        self._to_greet, self._greeting = trio.open_memory_channel[tuple[str, tuple[int, ...], Keys]](16)
        self._awaited: tuple[Keys, set[int]] | None = None  # what strangers' datagrams of ours look like
        self._dropped: Counter[str] = Counter()
        ports.listen(MAGIC, self._receive)

    @property
    def dropped(self) -> Counter[str]:
        """Counts of what was dropped, by reason."""
        return self._dropped + self._witness.dropped

    def keepalive(self, host: str) -> int:
        """The seconds between keepalives to a peer at this address; as configured where there is none."""
        scope = self.scope(host)
        return self.lifetimes.configured if scope is None else self.lifetimes.keepalive(scope)

    def scope(self, host: str) -> Scope | None:
        """The scope of an address. None: no NAT is on the way there."""
        try:
            address = ip_address(host)
        except ValueError:
            return None
        return None if address.is_loopback else Scope(address.version, self._beside(address))

    def known(self) -> Iterator[tuple[Scope, lifetimes.Known | None]]:
        """What is known of the networks that this node is in, by scope."""
        for scope in SCOPES:
            yield scope, self.lifetimes.known(scope)

    # As a witness.

    def answer(self, entry: Entry, request: messages.Echo) -> messages.Answer:
        """Answer a member that wants to measure."""
        if not self._ports.able:
            return messages.Refused(NO_SOCKET)
        peer, after = entry.member.node_id, [ms / 1000 for ms in request.after_ms]
        if why := self._witness.grant(peer, request.token, after, trio.current_time()):
            return messages.Refused(why)
        self._settle()
        if request.unasked:
            for host, _ in places_of(entry.record, self._seen(peer)):
                if ip_address(host).version == request.unasked and self._may(peer, host):
                    greeting = host, wg_ports_at(entry.record, host), Keys.of(request.token)
                    try:
                        self._to_greet.send_nowait(greeting)
                    except trio.WouldBlock:
                        self._dropped["echo-rate"] += 1
                    break
        return messages.Done()

    def _settle(self) -> None:
        self._ports.keep("echoes", self._witness.busy or self._awaited is not None)
        self._due.look()

    def _receive(self, dimension: int, source: Address, data: bytes) -> None:
        try:
            echo = echoes.decode_untrusted(data)
        except DecodeError:
            self._dropped["echo-malformed"] += 1
            return
        if echo.kind is Kind.ASK and dimension == 0:
            self._send(self._witness.receive(source, data, trio.current_time()))
        elif echo.kind is Kind.UNASKED and self._awaited is not None:
            keys, came = self._awaited
            if echoes.genuine(data, keys) and echo.number == echoes.TRIALS + dimension:
                came.add(dimension)
        self._settle()

    def _send(self, effects: Iterable[Send]) -> None:
        for effect in effects:
            self._ports.send(0, effect.destination, effect.datagram)

    async def _answer_late(self) -> None:
        while True:
            await self._due.sleep()
            self._send(self._witness.tick(trio.current_time()))
            self._settle()

    async def _greet(self) -> None:
        """Send to WireGuard ports of members from a port that they never sent to."""
        async for host, ports, keys in self._greeting:
            with left_out(self._dropped, "echo-broken", BROKEN):
                await greet(host, ports, keys)

    # Measuring.

    async def run(self) -> None:
        """Answer others, and measure, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_late)
            nursery.start_soon(self._greet)
            if self._on:
                nursery.start_soon(self._follow)
                nursery.start_soon(self._measure)

    async def _follow(self) -> None:
        """Notice which network this is."""
        while True:
            public = self._public()
            known = [self.lifetimes.at(scope, public) for scope in SCOPES]
            if any(known):
                self._changed()
            await trio.sleep(LOOK)

    async def _measure(self) -> None:
        tried: dict[Scope, float] = {}
        await trio.sleep(CALM)
        while True:
            for scope in SCOPES:
                if not self.lifetimes.wanted(scope, time.time()):
                    continue
                if trio.current_time() < tried.get(scope, 0.0):
                    continue
                with left_out(self._dropped, "echo-broken", BROKEN):
                    if await self._find_out(scope):
                        self._changed()
                        await trio.to_thread.run_sync(self._remember)
                    elif any(self.scope(at.host) == scope for _, at in self._witnesses()):
                        tried[scope] = trio.current_time() + RETRY
            await trio.sleep(LOOK)

    def _remember(self) -> None:
        self._state.write(directory.NETWORKS, self.lifetimes.encode())

    async def _find_out(self, scope: Scope) -> bool:
        """Measure with one witness after another until enough of them show something; return whether that is
        believed."""
        voices, heard = list[Voice](), list[NodeId]()
        there = [(member, at) for member, at in self._witnesses() if self.scope(at.host) == scope]
        for witness, at in there[:WITNESSES]:
            if (voice := await self._hear(scope, witness, at)) is None:
                continue
            voices.append(voice)
            heard.append(witness)
            if voice.authority or len(voices) == ENOUGH:
                break
        if (believed := agree(voices, self.lifetimes.configured)) is None:
            return False
        outcome, opened = believed
        self._found(scope, heard, outcome, opened=opened)
        return True

    async def _hear(self, scope: Scope, witness: NodeId, at: Address) -> Voice | None:
        """Measure with one witness; None where nothing comes out."""
        public = {one for one in self._public() if one.version == scope.version}
        if public <= self._own() and self._ports.able:
            outcome, opened = await self._ask(witness, at, (), unasked=4 if scope.version == 4 else 6)
            if opened:  # also by a member that is behind a NAT itself, and answers no ASK
                return Voice(outcome, opened=True, authority=self._authority(witness))
        outcome, _ = await self._ask(witness, at, FIRST)
        if times := between(outcome.good, outcome.bad):
            closer, _ = await self._ask(witness, at, times)
            if closer.good > outcome.good and closer.seen == outcome.seen:
                outcome = Outcome(outcome.seen, closer.good, closer.bad, outcome.hairpin)
        # Else the witness does not answer, or sees another way out of this host, or the node has moved.
        if outcome.seen and outcome.seen <= self._public():
            return Voice(outcome, opened=False, authority=self._authority(witness))
        return None

    def _found(self, scope: Scope, witnesses: Sequence[NodeId], outcome: Outcome, *, opened: bool) -> None:
        good, hairpin = (0.0, None) if opened else (outcome.good, outcome.hairpin)
        hairpin = None if outcome.seen <= self._own() else hairpin  # there is no NAT
        self.lifetimes.found(scope, time.time(), opened=opened, good=good, hairpin=hairpin)
        log.info(
            "what stands before this node was measured", ip=scope.version, beside=scope.beside, open=opened,
            idle_s=good, keepalive_s=self.lifetimes.keepalive(scope),
            with_=", ".join(map(format_node_id, witnesses)),
        )  # fmt: skip

    async def _ask(
        self, witness: NodeId, at: Address, after: Sequence[float], *, unasked: Literal[0, 4, 6] = 0
    ) -> tuple[Outcome, bool]:
        """Measure with one witness. Return what came out, and whether strangers' datagrams came in at all of
        WireGuard's ports, if they were asked for."""
        token, came = os.urandom(16), set[int]()
        keys = Keys.of(token)
        self._awaited = (keys, came) if unasked else None
        self._settle()
        try:
            if not await self._agreed(witness, token, Measurement(keys, after, 0.0).after, unasked):
                return Measurement(keys, (), 0.0).outcome(), False
            measurement = Measurement(keys, after, trio.current_time(), self._public())
            await conduct(measurement, keys, at)
            return measurement.outcome(), len(came) == DIMENSIONS
        finally:
            self._awaited = None
            self._settle()

    async def _agreed(
        self, witness: NodeId, token: bytes, after: Sequence[float], unasked: Literal[0, 4, 6]
    ) -> bool:
        after_ms = tuple(round(each * 1000) for each in after)
        with trio.move_on_after(PATIENCE):
            try:
                async with self._caller.call(witness) as client:
                    answer = await client.ask(messages.Echo(token, after_ms, unasked))
            except StreamError as error:
                log.debug("a member does not measure", peer=format_node_id(witness), error=str(error))
                return False
            return isinstance(answer, messages.Done)
        return False


async def conduct(measurement: Measurement, keys: Keys, at: Address) -> None:
    """Carry out a measurement with the witness at this place, by sockets of its own."""
    with ExitStack() as held:
        socks = [held.enter_context(_socket(ip_address(at.host).version)) for _ in measurement.after]
        due = Due(lambda: measurement.deadline)
        async with trio.open_nursery() as nursery:
            for number, sock in enumerate(socks):
                nursery.start_soon(_listen, measurement, number, sock, keys, at, due)
            while not measurement.over:
                await due.sleep()
                for number, there, data in measurement.tick(trio.current_time()):
                    await _send_to(socks[number], there or at, data)
            nursery.cancel_scope.cancel()


async def _listen(
    measurement: Measurement, number: int, sock: trio.socket.SocketType, keys: Keys, at: Address, due: Due
) -> None:
    while True:
        try:
            data, source = await sock.recvfrom(2048)
            echo = echoes.decode_untrusted(data)
        except (OSError, DecodeError):
            continue
        if echoes.genuine(data, keys):
            place = Address(str(source[0]).partition("%")[0], source[1])
            measurement.receive(number, place, echo, at, trio.current_time())
            due.look()


async def greet(host: str, ports: Sequence[int], keys: Keys) -> None:
    """Send to WireGuard ports of a member, by dimension, from a port that it never sent to."""
    with _socket(ip_address(host).version) as sock:
        for _ in range(2):
            for dimension, port in enumerate(ports):
                number = echoes.TRIALS + dimension
                await _send_to(sock, Address(host, port), echoes.encode(Kind.UNASKED, number, keys))
            await trio.sleep(echoes.AGAIN)


def _remembered(state: StateDir) -> dict[str, lifetimes.Known]:
    """What an earlier run measured. Damage costs only that: it is measured anew."""
    if not state.has(directory.NETWORKS):
        return {}
    try:
        return lifetimes.decode(state.read(directory.NETWORKS))
    except (DecodeError, StateError) as error:
        log.warning("what was measured of NATs cannot be read, and is measured anew", error=str(error))
        return {}


def _socket(version: int) -> trio.socket.SocketType:
    """A UDP socket at a port of its own."""
    sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    mark_outer(sock)
    sock.bind(("", 0))
    return trio.socket.from_stdlib_socket(sock)


async def _send_to(sock: trio.socket.SocketType, to: Address, data: bytes) -> None:
    try:
        await sock.sendto(data, (to.host, to.port))
    except OSError as error:
        log.debug("a datagram was not sent", to=str(to), error=str(error))


def make_lifetimes(
    config: Config, state: NodeState, ports: WireguardPorts, caller: Caller, peers: Peers, places: Places,
    finding: Finding, gossip: GossipDriver, ways: Ways, paths: Callable[[], Paths], names: Sequence[str],
    actual: Callable[[], Mapping[str, DeviceState]], *, changed: Callable[[], None],
) -> LifetimeDriver:  # fmt: skip
    """Make a node's part. ``actual`` gives the interfaces, by ``names``, as read last."""

    def witnesses() -> Iterator[tuple[NodeId, Address]]:
        device = actual().get(names[0])
        there = caller.callable([entry.member.node_id for entry in peers.authorities])
        for entry in map(peers.get, there):
            if entry is None or device is None:
                continue
            peer = entry.member.node_id
            path, way = paths().path(peer, 0), ways.chosen(peer, 0)
            state = device.peers.get(peers.wg_keys_of(entry)[0])
            direct = way is None or way.kind is WayKind.DIRECT
            up = path is not None and path.state is PathState.UP
            if direct and up and state is not None and state.endpoint is not None:
                yield peer, Address(state.endpoint.host, state.endpoint.port)

    return LifetimeDriver(
        state.state, ports, caller,
        on=config.nat.measure and finding.on,
        configured=config.wireguard.keepalive,
        seen=partial(seen_at, finding, gossip),
        may=places.may,
        public=finding.public,
        own=lambda: frozenset(one.address for one in finding.whereabouts.own),
        beside=lambda address: places.reach.beside(address),
        witnesses=witnesses,
        authority=lambda member: any(entry.member.node_id == member for entry in peers.authorities),
        changed=changed,
    )  # fmt: skip
