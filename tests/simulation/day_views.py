# SPDX-License-Identifier: GPL-3.0-or-later
"""What each agent sees of its machine on the simulated day: the agent's own ``Seen``, built from the world.

Beside the view stands whether it is quiet: nothing in it that the agent would act on. Of a quiet view nobody
has to look again soon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address
from math import exp
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from phantommesh.acl.bans import parse_network
from phantommesh.acl.threats import judge
from phantommesh.agents import cipher, nexus, omniscient, phantom, stream, velocity
from phantommesh.agents.base import AgentName
from phantommesh.agents.fortress import FortressSeen, Source
from phantommesh.agents.genesis import GenesisSeen
from phantommesh.dimensions import DIMENSIONS
from phantommesh.hostcheck.seen import FileSeen, HostSeen
from phantommesh.names.askers import AskerSeen
from phantommesh.paths.quickest import Candidate
from phantommesh.scatter.flows import SAMPLE, FlowKey
from tests.simulation.day_world import MB, SERVICES, Machine, Session, World, private

View: TypeAlias = Callable[[World, Machine], tuple[object, bool]]

Row = TypeVar("Row")

BUCKET: Final = 17
ELEPHANT: Final = 500_000.0  # bytes/s
KEY_LIFE: Final = 86_400.0


def fortress(world: World, one: Machine) -> tuple[object, bool]:
    """Offences as noted, floods in pulses, and who asks the name server too much."""
    now, sources = world.now, list[Source]()
    for seen in one.offences.bound(now):
        if one.book.get(seen.block) is None:
            network = parse_network(seen.block)
            sources.append(
                Source(
                    seen, one.book.times(seen.block, now), world.lowering(one, seen.block),
                    never=world.shield().always(network), member=world.shield().of_member(network),
                )
            )  # fmt: skip
    arrived = 5000.0 if one.flooded(now) else 2.0
    shed = 0.0 if one.shed is None else max(0.0, arrived - one.shed)
    askers = []
    one.asks = {who: when for who, when in one.asks.items() if now < when[1] + 120.0}
    for address, (since, until) in one.asks.items():
        asked = 800.0 * (1.0 - exp((since - min(now, until)) / 10.0)) * exp(min(0.0, until - now) / 10.0)
        kept = one.throttled.get(address)
        missing = asked if kept is None else min(asked, 10.0 * kept)
        askers.append(AskerSeen(address, round(asked, 1), round(missing, 1), 0.0, kept))
    calm = all(judge(source.seen).score < 0.3 and not source.times for source in sources)
    besieged = one.floods[0] <= now < one.floods[1] + 60.0
    quiet = calm and not besieged and not askers
    return FortressSeen(tuple(sources), arrived, shed, 0.0, tuple(askers)), quiet


def aegis(world: World, one: Machine) -> tuple[object, bool]:
    """A clean host, and on some a key that everybody can read."""
    files: tuple[FileSeen, ...] = ()
    if one.open_file:
        key = FileSeen(path="/s/k", role="state-file", kind="file", mode=0o644, uid=0, gid=0, secret=True)
        files = (key,)
    return HostSeen(now=world.now, uid=0, files=files), False  # it looks each ten minutes: never left out


def _links(world: World, one: Machine) -> tuple[list[cipher.LinkSeen], bool]:
    """All links of a machine, and whether all are well. Those that are well look the same."""
    links, quiet = list(_well(world)), True
    for other in world.machines:
        apart = one.apart is not None or other.apart is not None
        if apart or other.number in one.closed or world.signs:
            age = world.psk_age(one, other)
            links[other.number] = cipher.LinkSeen(
                peer=other.id, name=other.name, age=age, failing=apart and age is not None and age > 100.0,
                handshake_age=age, closed=other.number in one.closed,
            )  # fmt: skip
            quiet = quiet and (other is one or age is None or age < 150.0)
    del links[one.number]
    return links, quiet


@cache
def _well(world: World) -> tuple[cipher.LinkSeen, ...]:
    return tuple(
        cipher.LinkSeen(peer=one.id, name=one.name, age=45.0, handshake_age=45.0) for one in world.machines
    )


def cipher_view(world: World, one: Machine) -> tuple[object, bool]:
    """All links, with what is known of copies. A key past its life is replaced, unless it is stuck."""
    now = world.now
    links, quiet = _links(world, one)
    one.keys = [now if now - key > KEY_LIFE and i not in one.stuck else key for i, key in enumerate(one.keys)]
    signs = [
        cipher.SignSeen(
            peer="" if other is one else other.id, name=other.name, kind="copied", age=now - other.copied
        )
        for other in world.machines
        if other.copied is not None
    ]
    signs += [
        cipher.SignSeen(peer=other.id, name=other.name, kind="equivocation")
        for other in world.machines
        if other.twice is not None and other is not one
    ]
    late = now - one.certificate
    ages = tuple(now - key for key in one.keys)
    quiet = quiet and not world.signs and late < 0 and max(ages) < KEY_LIFE
    return cipher.Seen(links=tuple(links), signs=tuple(signs), key_ages=ages, renewal_late=late), quiet


def phantom_view(world: World, one: Machine) -> tuple[object, bool]:
    """The peers with private traffic. Some have one uplink; while such a one moves, it has two hosts. Half of
    the budget of a peer's cover is used."""
    now, session, peers = world.now, one.session, list[phantom.PeerSeen]()
    for other in world.machines:
        if other is one or not private(one, other):
            continue
        hosts = 3 if other.number % 5 else 1 + (now < other.joined + 60.0)
        rate = session.rate if session is not None and session.peer == other.number else 0.0
        cover, since = one.covered.get(other.number, (0.0, now))
        peers.append(phantom.PeerSeen(other.id, True, rate, hosts, int(cover * (now - since) / 2)))
    ages = tuple(now - key for key in one.keys)
    return phantom.Seen(tuple(peers), ages), session is None and not one.covered


def _candidates(session: Session, one: Machine, world: World) -> list[Candidate]:
    paths, now, noise = list[Candidate](), world.now, world.noise
    for dimension in range(DIMENSIONS):
        trip = 0.010 + 0.005 * ((session.peer * 31 + one.number * 17 + dimension * 7) % 9)
        late, lossy, usable, fresh = 0.0, False, True, True
        for ill in session.ills:
            if ill.dimension != dimension or not ill.since <= now < ill.until + 20.0:
                continue
            stands = now < ill.until
            match ill.bad:
                case "late" if stands:
                    late = 0.080
                case "own" if stands and (session.peer, dimension) not in one.left:
                    late = 0.120
                case "lossy":  # sure after two seconds, and believed again after twenty
                    lossy = lossy or now >= ill.since + 2.0
                    fresh = fresh and (not stands or noise.random() > 0.05)
                case "dark" if stands:
                    fresh = False
                    usable = now < ill.since + 4 * one.probe_seconds
        rtt = trip * (1.0 + abs(noise.gauss(0.0, 0.1))) + late
        paths.append(
            Candidate(
                usable, rtt, trip / 10, 0.05 if lossy else 0.0, trip + late, late, lossy, fresh, not fresh
            )
        )  # fmt: skip
    return paths


def _held(session: Session, now: float) -> bool:
    """Whether the session's elephant holds its path up now."""
    return session.elephant and not session.in_order and session.held <= now < session.held + 30.0


def velocity_view(world: World, one: Machine) -> tuple[object, bool]:
    """The paths of the peer that this machine has traffic with."""
    session, now = one.session, world.now
    if session is None:
        return velocity.Seen(), True
    dealt = frozenset(bucket for peer, bucket in one.dealt if peer == session.peer)
    nominee = velocity.Nominee(BUCKET, ELEPHANT, 3, 0.05, 0.0) if _held(session, now) and not dealt else None
    if now >= session.held + 60.0:
        dealt = frozenset()  # the splitter needs it no more
    seen = velocity.PeerSeen(
        world.machines[session.peer].id, session.in_order, session.rate, _candidates(session, one, world),
        nominee, dealt,
    )  # fmt: skip
    ill = any(ill.since <= now < ill.until + 25.0 for ill in session.ills)
    return velocity.Seen((seen,)), not (ill or nominee or dealt)


@cache
def _address(number: int) -> IPv6Address:
    return IPv6Address(f"fd00::{number + 1:x}")


@cache
def _scanned(number: int) -> tuple[FlowKey, ...]:
    return tuple(FlowKey(_address(number), _address(0), 6, 0, 1000 + port) for port in range(200))


def stream_view(world: World, one: Machine) -> tuple[object, bool]:
    """A session's flows, and what calls regularly or everybody."""
    now, session, flows, ways = world.now, one.session, list[stream.FlowSeen](), dict[str, stream.Ways]()
    if session is not None:
        peer, to = world.machines[session.peer].id, _address(session.peer)
        rate = ELEPHANT if session.elephant else 20_000.0
        size = int(rate * (now - session.began) / SAMPLE)
        key = FlowKey(_address(one.number), to, 6, 40_000 + session.peer, 443)
        flows.append(stream.FlowSeen(key, size // 1200, size, peer, BUCKET))
        left = {dimension for who, dimension in one.left if who == session.peer}
        used = frozenset(range(DIMENSIONS)) - left
        dealt = frozenset(bucket for who, bucket in one.dealt if who == session.peer)
        homes = [(int(now // 60) + bucket) % DIMENSIONS for bucket in range(BUCKET + 1)]  # anew each epoch
        if not session.in_order:
            named = BUCKET if _held(session, now) and not dealt else None
            ways[peer] = stream.Ways(used, [0.0] * DIMENSIONS, homes, dealt, named)
    calls = dict[FlowKey, int]()
    one.calls = {what: until for what, until in one.calls.items() if now < until + 600.0}
    for what, until in one.calls.items():
        began, at = until - 1800.0, min(now, until)
        if what == "beacon":
            key = FlowKey(_address(one.number), IPv4Address("100.64.0.9"), 6, 0, 4444)
            calls[key] = int((at - began) / 30)
        else:
            calls |= dict.fromkeys(_scanned(one.number)[: int((at - began) * 2) % 200], 1)
    return stream.Seen(flows, calls if one.calls else None, ways), not (flows or calls)


def genesis(world: World, one: Machine) -> tuple[object, bool]:
    """The counters of traffic."""
    world.count(one)
    seen = GenesisSeen(one.sent, one.lost, one.probes, {"paths.probe_seconds": 0.1})
    return seen, one.session is None


@lru_cache(maxsize=1)
def _records(world: World, _stamp: int) -> tuple[nexus.Member, ...]:
    return tuple(
        nexus.Member(one.name, one.region, one.version, one.drains, one.apart is None, one.policy)
        for one in world.machines
    )


@lru_cache(maxsize=1)
def _states(world: World, _stamp: int) -> tuple[omniscient.Member, ...]:
    return tuple(
        omniscient.Member(one.name, one.apart is None, int(one.unready is not None), one.drains)
        for one in world.machines
    )


def _without(members: tuple[Row, ...], one: Machine) -> tuple[Row, ...]:
    return members[: one.number] + members[one.number + 1 :]


def nexus_view(world: World, one: Machine) -> tuple[object, bool]:
    """This node's readiness, and the members' records."""
    members = _without(_records(world, world.stamp), one)
    ready = one.unready is None
    seen = nexus.Seen(
        one.region, one.version, ready, "nexus" if one.drains else "", one.policy, members,
        ("log.level",) if one.drift else (),
    )  # fmt: skip
    return seen, ready and not one.drains and not one.drift


def omniscient_view(world: World, one: Machine) -> tuple[object, bool]:
    """Pulses, vital signs, members."""
    now = world.now
    services = tuple(omniscient.Service(name, one.wedged.get(name, now + 1.0), 0.05) for name in SERVICES)
    lag = one.lag[0] if now < one.lag[1] else 0.01
    memory = 100 * MB
    if now < one.much_memory:  # it goes up and down about the bound, 512 MB
        memory = int((512 + 40 * (now % 120.0 - 60.0) / 60.0) * MB)
    free = 900 * MB if now >= one.low_disk else int((64 + 10 * (now % 90.0 - 45.0) / 45.0) * MB)
    jump, one.jump = one.jump, 0.0
    vitals = omniscient.Vitals(lag, 200, jump, memory, 100, 1024, free)
    members = _without(_states(world, world.stamp), one)
    unwell = one.wedged or now < max(one.much_memory, one.low_disk) or jump or lag > 0.1
    return omniscient.Seen(services, vitals, members), not unwell


VIEWS: Final[Mapping[AgentName, View]] = MappingProxyType(
    {
        "fortress": fortress,
        "aegis": aegis,
        "cipher": cipher_view,
        "phantom": phantom_view,
        "velocity": velocity_view,
        "stream": stream_view,
        "genesis": genesis,
        "nexus": nexus_view,
        "omniscient": omniscient_view,
    }
)
"""A further agent is one line here."""
