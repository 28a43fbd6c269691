# SPDX-License-Identifier: GPL-3.0-or-later
"""What the links of members were like yesterday, kept on disk: to be told what has become worse. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Annotated, Final

import msgspec

from phantommesh.routing.neighbours import Link, Pair
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId

# Tuning.
DAY: Final = 86_400.0  # s
OLD_ENOUGH: Final = DAY / 2  # s from which on a summary counts as yesterday's
MOST: Final = 4_096  # members of one summary
MAX_BYTES: Final = 2**20  # of the file
SLOWER, SLOWER_S = 1.5, 0.02  # times as long, and s more
LOSSIER: Final = 0.02  # more than before, of 1
FEWER: Final = 0.5  # times as many links


class Had(msgspec.Struct, frozen=True, array_like=True):
    """One member's links: the medians of round trip in seconds and of loss, and the share of the members that
    it reaches from end to end, of those it could have told of."""

    rtt: float
    loss: float
    links: float


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """All members at one time, in Unix seconds."""

    at: float
    members: Annotated[dict[bytes, Had], msgspec.Meta(max_length=MOST)]


class Days(msgspec.Struct, frozen=True, array_like=True):
    """The summary of now and that of a day before, as far as there are."""

    newer: Summary | None = None
    older: Summary | None = None


def summary(edges: Mapping[Pair, Link], possible: float, at: float) -> Summary:
    """Sum up. ``possible`` is how many links a member would have told of on average if it had all."""
    each: dict[NodeId, list[Link]] = {}
    for (one, two), link in edges.items():
        if link.kind is not Kind.RELAYED:
            each.setdefault(one, []).append(link)
            each.setdefault(two, []).append(link)
    return Summary(
        at,
        {
            member: Had(
                median(link.rtt for link in links),
                median(link.loss for link in links),
                min(1.0, len(links) / max(1.0, possible)),
            )
            for member, links in sorted(each.items())[:MOST]
        },
    )


def yesterday(days: Days, now: float) -> Summary | None:
    """Return what to compare with: the youngest summary that is half a day old at least."""
    for one in (days.newer, days.older):
        if one is not None and now - one.at >= OLD_ENOUGH:
            return one
    return None


def follow(days: Days, current: Summary) -> Days:
    """Return what to keep. A summary in the future is of another clock, and is not kept."""
    newer, older = days.newer, days.older
    if newer is None or newer.at > current.at:
        return Days(current, older if older is not None and older.at <= current.at else None)
    return Days(current, newer) if current.at - newer.at >= DAY else days


def drifted(before: Summary, after: Summary) -> Iterator[tuple[NodeId, str]]:
    """Yield the members whose links have become worse, and how."""
    for member, now in after.members.items():
        had = before.members.get(member)
        if had is None:
            continue
        if now.rtt > SLOWER * had.rtt and now.rtt - had.rtt > SLOWER_S:
            yield (
                NodeId(member),
                f"{1000 * had.rtt:.0f} ms of round trip then, {1000 * now.rtt:.0f} ms now",
            )
        if now.loss - had.loss > LOSSIER:
            yield NodeId(member), f"{100 * had.loss:.1f} % lost then, {100 * now.loss:.1f} % now"
        if now.links < FEWER * had.links:
            yield NodeId(member), f"{had.links:.0%} of the members reached then, {now.links:.0%} now"


def encode(days: Days) -> bytes:
    """Return what is written to disk."""
    return msgspec.msgpack.encode(days)


def decode(data: bytes) -> Days:
    """Read what `encode` wrote; whatever else it is counts as nothing."""
    if len(data) > MAX_BYTES:
        return Days()
    try:
        return msgspec.msgpack.decode(data, type=Days)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Days()
