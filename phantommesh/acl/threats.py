# SPDX-License-Identifier: GPL-3.0-or-later
"""Offences by source: what this node could not use, from where, and what is evidence for a ban. Pure.

A UDP source is easily forged. So an offence is **bound** only where it comes with a proof that its sender
gets what is sent to the address: the datagram itself has a cookie of ours in its MAC, or it came on a TCP
connection, or it came from a neighbour's own MAC address, as this host's neighbour table has it (then a
cookie sent there would reach the sender). Every other offence is **loose**, and is evidence for nothing, also
beside a bound one: else anybody could have a host banned that has just done one small thing wrong, by forging
its address. What is loose is shown, and shed by rate.

Counts fade with `FADE`. The tables are bounded: bound offences take a proof each, so nobody can crowd others
out of theirs from addresses that are not his; loose ones have a table of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from phantommesh.acl.bans import block_of
from phantommesh.faults import Severity
from phantommesh.rates import FADE, Faded

Kind = Literal["flood", "scan", "bad-mac", "replay", "guessing", "slow-tcp", "dns"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Proof = Literal["cookie", "tcp", "neighbour"]
_Key: TypeAlias = tuple[str, Kind, bool]  # a source block, and whether its offences of the kind are proved

SEVERITIES: Final[Mapping[Kind, Severity]] = {
    "flood": "medium",
    "scan": "low",
    "bad-mac": "medium",
    "replay": "medium",
    "guessing": "high",
    "slow-tcp": "medium",
    "dns": "low",
}

# Tuning. All by what honest nodes were seen to cause, with a margin (docs/decisions/0077-bans.md).
ENOUGH: Final[Mapping[Kind, float]] = {
    "flood": 400.0,  # fifty members that restart behind one NAT have some 150 datagrams turned away
    "scan": 4.0,  # ports of WireGuard's, with datagrams that WireGuard never sends; nobody honest does
    "bad-mac": 30.0,  # with a cookie; a member that missed a new secret tries once a second
    "replay": 30.0,  # with a cookie; a network that repeats datagrams repeats one or two
    "guessing": 20.0,  # of invites; a person who mistypes one tries a few times
    "slow-tcp": 16.0,  # connections that said nothing for 30 s, or were one too many
    "dns": float("inf"),  # only members can ask, and by the overlay: shown, never banned
}
LEAST_SHARE: Final = 0.5  # of `ENOUGH`, from which a kind of offence is told and counts as one
LATELY: Final = 0.5  # of a bound offence that has not faded: an offender of before is banned for that
MOST_BOUND: Final = 4096  # sources
MOST_LOOSE: Final = 1024
MOST_THREATS: Final = 256

_BY_REASON: Final[Mapping[str, tuple[Kind, Kind]]] = {
    # reason: (bound, loose)
    "mac": ("bad-mac", "flood"),
    "cookie": ("flood", "flood"),
    "malformed": ("flood", "flood"),
    "session": ("flood", "flood"),
    "rate": ("flood", "flood"),
    "budget": ("flood", "flood"),
    "half-open": ("flood", "flood"),
    "quota": ("flood", "flood"),
    "replay": ("replay", "replay"),
    "invite": ("guessing", "flood"),
    "invite-proof": ("guessing", "flood"),
    "gossip": ("flood", "flood"),
    "dns-rate": ("dns", "dns"),
    "dns-shed": ("dns", "dns"),
    "stream-overdue": ("slow-tcp", "slow-tcp"),
    "stream-limit": ("slow-tcp", "slow-tcp"),
    "stream-displaced": ("slow-tcp", "slow-tcp"),
    "stream-refused": ("bad-mac", "bad-mac"),
}


@dataclass(slots=True)
class _Source:
    bound: dict[Kind, Faded] = field(default_factory=dict)
    loose: dict[Kind, Faded] = field(default_factory=dict)
    proofs: set[Proof] = field(default_factory=set)
    touched: float = 0.0


class SourceSeen(msgspec.Struct, frozen=True):
    """What one source block did of late: faded counts by kind."""

    block: str
    proofs: tuple[Proof, ...]
    bound: tuple[tuple[Kind, float], ...]
    loose: tuple[tuple[Kind, float], ...]


class Judgement(msgspec.Struct, frozen=True):
    """``score``: 1 is enough for a ban. ``kinds`` are those that weigh."""

    score: float
    kinds: tuple[Kind, ...]


class Threat(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of offence from one source block; no block: from addresses that proved nothing. ``count`` is
    the most at a time, faded; times are Unix seconds."""

    kind: Kind
    severity: Severity
    source: str
    proofs: tuple[Proof, ...]
    count: float
    first: float
    last: float


def judge(source: SourceSeen) -> Judgement:
    """Weigh what a source did against `ENOUGH`. Loose offences never count."""
    shares = {kind: count / ENOUGH[kind] for kind, count in source.bound}
    return Judgement(
        sum(shares.values()), tuple(kind for kind in KINDS if shares.get(kind, 0.0) >= LEAST_SHARE)
    )


class Offences:
    """The offences of the last seconds, by source block. ``now`` is a clock that does not go back."""

    def __init__(self) -> None:
        self._bound: OrderedDict[str, _Source] = OrderedDict()
        self._loose: OrderedDict[str, _Source] = OrderedDict()
        self._open: dict[str, dict[Kind, float]] = {}  # loose ones since the last look
        self._settled: dict[str, dict[Kind, float]] = {}  # and those of the look that is under way
        self.unproven = Faded()  # datagrams that proved nothing

    def note(self, reason: str, host: str, proof: Proof | None, now: float) -> None:
        """Something from this host could not be used, for a reason of `phantommesh_dropped_total`; other
        reasons than those that speak against its sender are left out."""
        kinds = _BY_REASON.get(reason)
        if kinds is None:
            return
        block, kind = block_of(host), kinds[0 if proof else 1]
        self.add(block, kind, 1.0, proof, now)
        if proof is None and (block in self._open or len(self._open) < MOST_LOOSE):
            noted = self._open.setdefault(block, {})
            noted[kind] = noted.get(kind, 0.0) + 1.0

    def add(self, block: str, kind: Kind, count: float, proof: Proof | None, now: float) -> None:
        """Count offences of one kind."""
        source = self._source(block, proof, now)
        if proof is not None:
            source.proofs.add(proof)
            source.bound.setdefault(kind, Faded()).add(count, now)
            return
        self.unproven.add(count, now)
        source.loose.setdefault(kind, Faded()).add(count, now)

    def settle(self) -> None:
        """A look at who sends begins: it may prove what was noted since the last one, and nothing else."""
        self._settled, self._open = self._open, {}

    def unsettle(self) -> None:
        """Nothing proves what was noted up to now: nobody saw who sent that."""
        self._settled, self._open = {}, {}

    def neighbour(self, block: str, came: int, now: float) -> None:
        """All that was seen to come from this source up to `settle`, ``came`` datagrams, came from the
        neighbour's own MAC address. So as many of those that are noted since the look before did; what is
        noted beyond that came unseen, and is another's for all one knows."""
        for kind, noted in self._settled.pop(block, {}).items():
            count = min(noted, float(came))
            came -= int(count)
            if count <= 0:
                continue
            self.add(block, kind, count, "neighbour", now)
            source = self._bound[block]
            source.loose.setdefault(kind, Faded()).add(-min(count, source.loose[kind].at(now)), now)

    def _source(self, block: str, proof: Proof | None, now: float) -> _Source:
        source = self._bound.get(block)
        if source is None and proof is None:
            source = self._loose.get(block)
            if source is None:
                source = self._loose[block] = _Source()
                if len(self._loose) > MOST_LOOSE:
                    self._loose.popitem(last=False)
            self._loose.move_to_end(block)
        elif source is None:
            source = self._loose.pop(block) if block in self._loose else _Source()
            self._bound[block] = source
            if len(self._bound) > MOST_BOUND:
                self._bound.popitem(last=False)
        else:
            self._bound.move_to_end(block)
        source.touched = now
        return source

    def forget(self, block: str) -> None:
        """Begin anew with one source."""
        self._bound.pop(block, None)
        self._loose.pop(block, None)

    def bound(self, now: float) -> Iterator[SourceSeen]:
        """The sources that have bound offences of late, the latest first."""
        return self._seen(self._bound, now)

    def loose(self, now: float) -> Iterator[SourceSeen]:
        """The others, the latest first."""
        return self._seen(self._loose, now)

    def _seen(self, table: OrderedDict[str, _Source], now: float) -> Iterator[SourceSeen]:
        for block in reversed(table):
            source = table[block]
            if now - source.touched > 5 * FADE:
                return
            yield SourceSeen(
                block, tuple(sorted(source.proofs)), _counts(source.bound, now), _counts(source.loose, now)
            )


def _counts(counts: Mapping[Kind, Faded], now: float) -> tuple[tuple[Kind, float], ...]:
    found = ((kind, counts[kind].at(now)) for kind in KINDS if kind in counts)
    return tuple((kind, round(count, 3)) for kind, count in found if count >= 0.01)


class ThreatLog:
    """The threats of late, for people; bounded. Repeated sightings within `AGAIN` are one threat."""

    AGAIN: Final = 600.0  # s

    def __init__(self) -> None:
        self._threats: OrderedDict[_Key, Threat] = OrderedDict()

    def __iter__(self) -> Iterator[Threat]:
        """All, the latest last."""
        return iter(self._threats.values())

    def see(self, sources: Iterable[SourceSeen], wall: float) -> list[Threat]:
        """Take note of what these do; return the threats that are new."""
        fresh = []
        for source in sources:
            # What may be forged is not shown beside the proof of something else.
            for counts, proofs in ((source.bound, source.proofs), (source.loose, ())):
                for kind, count in counts:
                    key = source.block, kind, bool(proofs)
                    if count >= LEAST_SHARE * min(ENOUGH[kind], 400.0) and self._note(
                        key, proofs, count, wall
                    ):
                        fresh.append(self._threats[key])
        return fresh

    def _note(self, key: _Key, proofs: tuple[Proof, ...], count: float, wall: float) -> bool:
        block, kind, _ = key
        before = self._threats.pop(key, None)
        new = before is None or wall - before.last > self.AGAIN
        most, first = (count, wall) if new or before is None else (max(count, before.count), before.first)
        self._threats[key] = Threat(
            kind=kind, severity=SEVERITIES[kind], source=block, proofs=proofs,
            count=round(most, 1), first=first, last=wall,
        )  # fmt: skip
        if len(self._threats) > MOST_THREATS:
            self._threats.popitem(last=False)
        return new
