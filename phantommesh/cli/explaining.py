# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb that says why traffic goes where it goes: `route explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import Options, client_of, json_option
from phantommesh.cli.lists import via
from phantommesh.cli.output import age, emit, field, say
from phantommesh.cli.peering import PEER, address_in, node_of
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.explainview import ExplainedClass, Explanation


@click.command()
@click.argument("dest", type=PEER)
@json_option
@click.pass_obj
def explain(options: Options, dest: str) -> None:
    """Say which way traffic to DEST goes, why, and what would change it.

    DEST is a member's name, node id, overlay address or DNS name, or any IPv4 or IPv6 address.
    """
    if not dest.strip():
        raise click.UsageError("DEST is empty: give a member's name or node id, or an address")
    client = client_of(options)
    found = client.explain(node_of(client, dest) if address_in(dest) is None else dest)
    if options.json:
        emit(found)
        return
    say(f"{dest}: {found.answer}")
    if found.peer is not None:
        field("member", f"{found.peer} ({found.node_id})")
    if found.prefix is not None:
        field("prefix", found.prefix)
    _show_routers(found)
    _show_classes(found)
    _show_ways(found)
    _show_relays(found)
    for line in found.constraints:
        field("constraint", line)
    if found.refused:
        field("may not", f"pass packets on: {_refused(found)}")
    for one in found.classes:
        _show_constraints(one)
    if found.would_change:
        say("")
        say("What would change it:")
        for line in found.would_change:
            say(f"- {line}", indent=2)


def _show_routers(found: Explanation) -> None:
    if not found.routers:
        return
    say("")
    table(
        ("ROUTER", "ANSWERS", "ROUTE WORKS", "CARRIES", "BACK IN"),
        [
            (
                one.name,
                "yes" if one.answers else "no",
                "yes" if one.works else "no",
                "yes" if one.carries else "no",
                None if one.back_in_s is None else f"{one.back_in_s:.0f} s",
            )
            for one in found.routers
        ],
        ("ROUTER", "CARRIES", "ROUTE WORKS", "ANSWERS"),
    )


def _show_classes(found: Explanation) -> None:
    if not found.classes:
        return
    say("")
    table(
        ("CLASS", "MATCHES", "GOAL", "SET BY", "SCHEDULER", "SHARES", "CHOICE"),
        [
            (
                one.name,
                one.matches,
                one.goal,
                one.key,
                one.scheduler,
                " ".join(f"{100 * share:.0f}%" for share in one.shares) or None,
                one.choice,
            )
            for one in found.classes
        ],
        ("CLASS", "GOAL", "SCHEDULER", "SET BY"),
    )
    if (quickest := found.quickest) is not None:
        say("")
        chosen = "none yet" if quickest.dimension is None else f"dimension {quickest.dimension}"
        since = "" if quickest.since_s is None else f", for {age(quickest.since_s)}"
        choices = f"{quickest.changes} choice{'' if quickest.changes == 1 else 's'}"
        field("quickest", f"{chosen}: {quickest.reason}{since}; {choices} so far")


def _show_relays(found: Explanation) -> None:
    if not found.relays:
        return
    say("")
    table(
        ("RELAY", "TO IT", "FROM IT", "COST", "TAKEN FOR", "LEFT ASIDE"),
        [
            (
                one.name,
                _ms(one.near_s),
                _ms(one.far_s),
                _ms(one.cost_s),
                f"dimensions {', '.join(map(str, one.dimensions))}" if one.dimensions else "none",
                f"{one.aside_s:.0f} s: nothing came through" if one.aside_s else None,
            )
            for one in found.relays
        ],
        ("RELAY", "COST", "TAKEN FOR"),
    )


def _show_constraints(one: ExplainedClass) -> None:
    if not one.constraints:
        return
    for line in one.constraints:
        field("constraint", line)
    ways = ", ".join(map(str, one.allowed))
    field("may take", f"class {one.name}: {f'dimensions {ways}' if ways else 'no dimension of now'}")
    if one.refused:
        field("may not", f"pass packets of class {one.name} on: {_refused(one)}")


def _refused(found: Explanation | ExplainedClass) -> str:
    """The members that constraints refuse, with the keys."""
    more = found.refused_total - len(found.refused)
    named = ", ".join(f"{one.name} ({one.key})" for one in found.refused)
    return f"{named} and {more} more" if more else named


def _show_ways(found: Explanation) -> None:
    if not found.ways:
        return
    say("")
    rows = [
        (
            one.dimension,
            one.state,
            via(one.way, one.via),
            _ms(one.rtt_s),
            None if one.rtt_s is None else _ms(one.jitter_s),
            None if one.state == "closed" else f"{100 * one.loss:.1f}%",
            _ms(one.cost_s),
            _ms(one.smoothed_s),
            f"{one.weight:g}",
            one.endpoint,
            one.why or None,
        )
        for one in found.ways
    ]
    table(
        (
            "DIMENSION", "STATE", "WAY", "RTT", "JITTER", "LOSS", "COST", "SMOOTHED", "WEIGHT", "ENDPOINT",
            "WHY",
        ),
        rows,
        ("DIMENSION", "STATE", "WAY", "RTT", "JITTER", "LOSS", "COST", "SMOOTHED"),
    )  # fmt: skip


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1000 * seconds:.1f} ms"
