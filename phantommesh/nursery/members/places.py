# SPDX-License-Identifier: GPL-3.0-or-later
"""Places of the members: the addresses of their records that this node may send to.

Every address that comes from another node passes here, each time that it is used: a name may resolve to
something else by then, and the host's networks may have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

import structlog
import trio

from phantommesh.config.sections import Config
from phantommesh.endpoint import Address, format_endpoint, parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Fault, FaultKind
from phantommesh.nursery.host.hostroutes import read_host
from phantommesh.reachable import IpAddress, Reach, Why, all_loopback, of_a_site
from phantommesh.records.candidate import Candidate, Kind
from phantommesh.records.record import NodeRecord, known_by_itself
from phantommesh.records.roster import Entry
from phantommesh.trust.identity import NodeId

ENDPOINT_USELESS = FaultKind("endpoint-useless", "medium")
ADDRESS_FORBIDDEN = FaultKind("address-forbidden", "medium")

# Tuning.
MAX_JUDGED = 8192  # hosts whose verdict is remembered; any stranger can make us judge one
MAX_SEEN = 16  # hosts from which a member is remembered to have been heard
MAX_FORMER = 16  # addresses of its own at which this node is remembered to have been
MAX_FAULTS = 8  # members named in `status`

log = structlog.get_logger("phantommesh.places")


class Places:
    """The filter of `reachable.Reach`, with what this node knows to judge by. ``lookup`` gives a host's
    addresses, none while a name has none. ``public`` gives the addresses at which others see this node."""

    def __init__(
        self,
        config: Config,
        overlay: Sequence[IPv4Network | IPv6Network],
        lookup: Callable[[str], Sequence[str]],
    ) -> None:
        self._port = port = config.control.port
        self._own = [parse_endpoint(e, port) for e in config.node.endpoints]
        self._seeds = [parse_endpoint(e, port) for e in config.gossip.seeds]
        self._found: tuple[IpAddress, ...] = ()
        self._former: dict[IpAddress, None] = {}  # these and those of before, the latest last
        self._lookup = lookup
        self.public: Callable[[], Collection[IpAddress]] = tuple
        self.reach = Reach(tuple(overlay), loopback=all_loopback(host for host, _ in self._own))
        self.dropped: Counter[str] = Counter()
        self._judged: dict[tuple[str, bool], Why | None] = {}
        self._sites: dict[str, bool | None] = {}  # by private address: whether a network of ours holds it
        self._seen: dict[bytes, dict[str, None]] = {}  # by member, the latest heard last
        self._refused: dict[NodeId, dict[tuple[str, str], Why]] = {}  # by member, endpoint and address
        self._names: dict[NodeId, str] = {}
        self._told: set[NodeId] = set()

    def seek(self, seeds: Sequence[str]) -> None:
        """Take these endpoints for the seeds."""
        self._seeds = [parse_endpoint(endpoint, self._port) for endpoint in seeds]
        self.judge_by(self.reach)

    def live_at(self, own: Sequence[str]) -> None:
        """These are addresses of this host by which others reach it, beside the configured ones."""
        self._found = tuple(map(ip_address, own))
        for one in self._found:
            self._former.pop(one, None)
            self._former[one] = None
        for one in list(self._former)[: -max(MAX_FORMER, len(self._found))]:
            del self._former[one]
        self.judge_by(self.reach)

    async def refresh(self) -> None:
        """Read the host's networks. If they cannot be read, those of the last time stand."""
        try:
            host = await trio.to_thread.run_sync(read_host)
        except PhantomMeshError as error:
            log.warning("the host's networks are not known", error=str(error), fix=error.fix)
            return
        self.judge_by(replace(self.reach, host=host))

    def judge_by(self, reach: Reach) -> None:
        """Judge by this from now on, with what the operator's own endpoints and seeds say today."""
        home, told = self._addresses(self._own), self._addresses(self._seeds, names=False)
        reach = replace(reach, home=frozenset(home), found=frozenset(self._former), told=frozenset(told))
        if reach != self.reach:
            self.reach = reach
            self._judged.clear()
            self._sites.clear()

    def _addresses(self, endpoints: Iterable[tuple[str, int]], *, names: bool = True) -> Iterator[IpAddress]:
        for host, _ in endpoints:
            try:
                yield ip_address(host)
            except ValueError:
                yield from map(ip_address, self._lookup(host) if names else ())

    # Verdicts.

    def forbids(self, host: str) -> bool:
        """Whether nothing may be sent to an address, or taken from there, whoever it is said to be."""
        return self._judge(host, seen=True) is not None

    def may(self, member: bytes | None, host: str) -> bool:
        """Whether something may be sent to an address: to a member, or to whoever may be there."""
        return self._judge(host, seen=self._was_seen(member, host)) is None

    def _judge(self, host: str, *, seen: bool) -> Why | None:
        try:
            return self._judged[host, seen]
        except KeyError:
            pass
        if len(self._judged) >= MAX_JUDGED:
            self._judged.clear()
        verdict = self._judged[host, seen] = self.reach.refuses(host, seen=seen)
        return verdict

    def _was_seen(self, member: bytes | None, host: str) -> bool:
        return member is not None and host in self._seen.get(member, ())

    def seen(self, member: bytes, host: str) -> bool:
        """Note that a member finished a handshake with this node from an address. So the member surely gets
        datagrams that are sent there; a datagram's source alone is easily forged. Return whether it was
        another address than the last time."""
        places = self._seen.setdefault(member, {})
        moved = next(reversed(places), None) != host
        places.pop(host, None)
        places[host] = None
        if len(places) > MAX_SEEN:
            del places[next(iter(places))]
        return moved

    def heard(self, member: bytes) -> Collection[str]:
        """The hosts from which a member finished handshakes, the latest last."""
        return self._seen.get(member, {}).keys()

    # Addresses of members.

    def of(self, entry: Entry) -> tuple[Address, ...]:
        """The addresses of a member's control port, as far as they resolve and may be used: those first where
        it was last heard."""
        found = dict.fromkeys(address for _, address, why in self._verdicts(entry) if why is None)
        return tuple(sorted(found, key=self._likely(entry)))

    def uplinks(self, entry: Entry) -> list[tuple[str, ...]]:
        """The hosts of each of a member's endpoints, as far as they may be used: those first where it was
        last heard. The candidates of an interface stand with its endpoint."""
        hosts: dict[str, list[Address]] = {}
        for endpoint, address, why in self._verdicts(entry):
            if why is None:
                hosts.setdefault(self._beside(entry, endpoint), []).append(address)
        likely = self._likely(entry)
        return [
            tuple(dict.fromkeys(address.host for address in sorted(found, key=likely)))
            for found in hosts.values()
        ]

    def _beside(self, entry: Entry, endpoint: str) -> str:
        """The endpoint with which an endpoint or candidate shares an interface: itself, if it is one."""
        control = entry.record.control
        if endpoint in control or not control:
            return endpoint if control else ""
        uplink = next(c.uplink for c in entry.record.candidates if _text(c) == endpoint)
        return control[uplink % len(control)]

    def _likely(self, entry: Entry) -> Callable[[Address], tuple[int, int]]:
        """A key to sort by: first where a member was heard, the latest first; then as its operator has it;
        then, where both are behind one NAT or nothing speaks against it, a private address in a network of
        ours; then public ones; then private ones of other networks."""
        lately, found = self._lately(entry), known_by_itself(entry.record)
        apart = self._apart(_hosts(entry.record, Kind.SEEN))

        def rank(address: Address) -> tuple[int, int]:
            if format_endpoint(address.host, address.port) not in found:
                return lately(address), 0
            near = self._near(address.host)
            if near is None:
                return lately(address), 2
            return lately(address), 1 if near and not apart else 3

        return rank

    def _near(self, host: str) -> bool | None:
        """Whether a private address lies in a network of ours; None of a public one."""
        try:
            return self._sites[host]
        except KeyError:
            pass
        if len(self._sites) >= MAX_JUDGED:
            self._sites.clear()
        one = ip_address(host)
        near = self._sites[host] = self.reach.beside(one) if of_a_site(one) else None
        return near

    def whereabouts(self) -> tuple[object, ...]:
        """What this node knows of its own addresses, to compare with what it knew before."""
        return self._found, frozenset(self.public())

    def targets(self, entry: Entry) -> list[tuple[str, int, bool]]:
        """The addresses at which to knock for a member: each with its rank, 0 for one in a network of ours, 1
        for IPv6, 2 for other public ones, 3 for private ones elsewhere; and whether the member is behind a
        NAT there. Private ones of a member that is surely at another place are left out: they mean somebody
        else here."""
        own, seen = _hosts(entry.record, Kind.OWN), _hosts(entry.record, Kind.SEEN)
        apart, found = self._apart(seen), dict[str, tuple[int, bool]]()
        for host in dict.fromkeys(address.host for address in self.of(entry)):
            one = ip_address(host)
            rank = 1 if one.version == 6 else 2
            if one in own - seen and of_a_site(one):
                if apart:
                    continue
                rank = 0 if self.reach.beside(one) else 3
            found[host] = rank, rank == 2 and one in seen - own
        return [(host, *how) for host, how in sorted(found.items(), key=lambda each: each[1])]

    def hidden_from(self, entry: Entry) -> bool:
        """Whether a member and this node are surely behind different NATs, so that an early packet may spoil
        the member's. What an operator has written down counts as reached. A node that has just started, and
        has private addresses alone, counts as behind a NAT until a member has said where it is seen."""
        seen = _hosts(entry.record, Kind.SEEN)
        if self._own or not seen or set(entry.record.control) - known_by_itself(entry.record):
            return False
        own, mine = _hosts(entry.record, Kind.OWN), frozenset(self.public())
        found = frozenset(self._found)
        here = _behind_nat(found, mine) if mine else bool(found) and all(map(of_a_site, found))
        return here and _behind_nat(own, seen) and seen.isdisjoint(mine)

    def _apart(self, seen: frozenset[IpAddress]) -> bool:
        mine = self.public()
        return bool(seen and mine and seen.isdisjoint(mine))

    def _lately(self, entry: Entry) -> Callable[[Address], int]:
        """A key to sort by: the later a member was heard from a host, the smaller."""
        places = {host: -turn for turn, host in enumerate(self._seen.get(entry.member.node_id, ()), 1)}
        return lambda address: places.get(address.host, 0)

    def _verdicts(self, entry: Entry) -> Iterator[tuple[str, Address, Why | None]]:
        """Judge the addresses of each endpoint. Of a name only those that may be used are given; if there are
        none, the first one with the reason."""
        member = entry.member.node_id
        candidates = map(_text, entry.record.candidates)
        for endpoint in dict.fromkeys((*entry.record.control, *candidates)):
            host, port = parse_endpoint(endpoint)
            judged = [(a, self._judge(a, seen=self._was_seen(member, a))) for a in self._lookup(host)]
            usable = [(address, why) for address, why in judged if why is None]
            for address, why in usable or judged[:1]:
                yield endpoint, Address(address, port), why

    def seeds(self) -> tuple[Address, ...]:
        """The addresses of the operator's seeds: names among them, too, resolve to whatever others say."""
        found = (Address(a, port) for host, port in self._seeds for a in self._lookup(host))
        return tuple(address for address in dict.fromkeys(found) if self.may(None, address.host))

    def look(self, entries: Collection[Entry]) -> None:
        """Note the addresses of these members that may not be used, and forget those of others. Each refusal
        is counted once. The log tells of each member once, whatever the member announces later."""
        self.judge_by(self.reach)  # a name of ours may have been looked up since
        before, self._refused = self._refused, {}
        for entry in entries:
            member = entry.member.node_id
            found = known_by_itself(entry.record)  # nobody can correct these: they are tried or not
            refused = {
                (e, a.host): why for e, a, why in self._verdicts(entry) if why is not None and e not in found
            }
            if not refused:
                continue
            self._refused[member], self._names[member] = refused, entry.member.name
            for key in refused.keys() - before.get(member, {}).keys():
                self.dropped[f"address-{refused[key].label}"] += 1
            if member not in self._told:
                self._told.add(member)
                log.warning("peer announces an address it may not", peer=entry.member.name, **_first(refused))
        kept = {entry.member.node_id for entry in entries}
        self._told &= kept
        self._names = {member: name for member, name in self._names.items() if member in self._refused}
        self._seen = {member: hosts for member, hosts in self._seen.items() if member in kept}

    # Faults, for `status`.

    def faults(self) -> Iterator[Fault]:
        """Return what is wrong with addresses, ours and others'."""
        for key, endpoints in (("node.endpoints", self._own), ("gossip.seeds", self._seeds)):
            for host, port in endpoints:
                why = self._misnamed(host)
                if (
                    why is not None and why is not Why.OWN
                ):  # a list of seeds that all nodes share names this node too
                    shown = format_endpoint(host, port)
                    yield ENDPOINT_USELESS.fault(
                        f"{key}: {shown} is of no use to reach a node, it is {why.text}",
                        "correct the config",
                        subject=shown,
                    )
        for member in sorted(self._refused)[:MAX_FAULTS]:
            name, refused = self._names[member], self._refused[member]
            said, why = _first(refused), next(iter(refused.values()))
            yield ADDRESS_FORBIDDEN.fault(
                f"peer {name} announces an address it may not: {said['endpoint']}, it is {said['why']}; "
                "nothing is sent there",
                _fix(name, why),
                subject=name,
            )
        if len(self._refused) > MAX_FAULTS:
            yield ADDRESS_FORBIDDEN.fault(
                f"and {len(self._refused) - MAX_FAULTS} more peers announce addresses that they may not",
                "correct node.endpoints on each",
            )

    def _misnamed(self, host: str) -> Why | None:
        found = [self.reach.never(address) for address in self._lookup(host)]
        return next(iter(found), None) if all(found) else None


def _fix(name: str, why: Why) -> str:
    if why is Why.HOST_NETWORK:  # so it is where this host has another address than its record says
        return (
            "if this host moved or is a copy, name an address that it has in node.endpoints here, or the "
            f"peer in gossip.seeds; else correct node.endpoints on {name}"
        )
    return f"correct node.endpoints on {name}, and revoke it if it does so on purpose"


def _hosts(record: NodeRecord, kind: Kind) -> frozenset[IpAddress]:
    return frozenset(one.ip for one in record.candidates if one.kind == kind)


def _behind_nat(own: frozenset[IpAddress], seen: frozenset[IpAddress]) -> bool:
    return bool(seen) and own.isdisjoint(seen)


def _text(candidate: Candidate) -> str:
    return format_endpoint(candidate.host, candidate.port)


def _first(refused: dict[tuple[str, str], Why]) -> dict[str, str]:
    (endpoint, host), why = next(iter(refused.items()))
    shown = endpoint if host in endpoint else f"{endpoint} ({host})"
    return {"endpoint": shown[:128], "why": why.text}
