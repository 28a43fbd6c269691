# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb that shows the whole mesh: `topology`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import CliError, Options, client_of, json_option
from phantommesh.cli.output import ago, emit, field, say
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.topoview import TopologyView

TIMEOUT_S = 30.0  # members are asked: the node waits 12 s for them


@click.command()
@click.option("--dot", is_flag=True, help="Print a graph for Graphviz.")
@json_option
@click.pass_obj
def topology(options: Options, dot: bool) -> None:
    """Show the mesh as its members measure it, and what is weak about it.

    The members are asked for their links, which takes some seconds.
    """
    if dot and options.json:
        raise click.UsageError("give --dot or --json, not both")
    found = client_of(options, TIMEOUT_S).topology()
    if options.json:
        emit(found)
    elif found.age_s is None:
        raise CliError(
            "too few members have told their links yet",
            fix="ask again in a minute; see `phantommesh peers` for who answers",
        )
    elif dot:
        for line in _dot(found):
            say(line)
    else:
        _show(found)


def _show(found: TopologyView) -> None:
    relays = sum(one.relay for one in found.members)
    relayed = sum(link.way == "relayed" for link in found.links)
    field("members", f"{len(found.members)}, {found.heard} of {found.asked} others told their links")
    offers = "1 member relays" if relays == 1 else f"{relays} members relay"
    field("links", f"{found.links_total} measured, {relayed} of them relayed; {offers}")
    field("surveyed", f"{ago(found.age_s)}, in {found.sweep_s:.1f} s; analysed in {found.analysis_s:.2f} s")
    for one in found.advice:
        field(one.kind, one.text, 20)
        field("  fix", one.fix, 20)
    if not found.advice:
        field("advice", "none: no one member, link or address holds the mesh together alone")
    say("")
    table(
        ("MEMBER", "REGION", "LINKS", "BETWEEN", "RELAY", "NAT"),
        [
            (
                one.name,
                one.region or None,
                one.links,
                f"{100 * one.between:.1f}%",
                "yes" if one.relay else "no",
                "yes" if one.nat else "no",
            )
            for one in sorted(found.members, key=lambda one: (-one.between, one.name))
        ],
        ("MEMBER", "LINKS", "BETWEEN", "REGION"),
    )


def _dot(found: TopologyView) -> list[str]:
    """A graph in Graphviz's language. Names and regions are labels, so nothing in them needs escaping."""
    weak = {name for one in found.advice for name in one.members}
    lines = ["graph mesh {", "  overlap = false;", "  node [shape = ellipse];"]
    regions: dict[str, list[str]] = {}
    for member in found.members:
        shape = ", shape = box" if member.relay else ""
        colour = ", color = red" if member.name in weak else ""
        regions.setdefault(member.region, []).append(
            f'"{member.node_id}" [label = "{member.name}"{shape}{colour}];'
        )
    for region, nodes in sorted(regions.items()):
        if region:
            lines += [f'  subgraph "cluster_{region}" {{', f'    label = "{region}";']
        lines += [f"    {node}" if region else f"  {node}" for node in nodes]
        lines += ["  }"] if region else []
    ids = {member.name: member.node_id for member in found.members}
    styles = {"relayed": ", style = dashed", "tcp": ", style = dotted"}
    for link in found.links:
        style = styles.get(link.way, "")
        one, two = ids.get(link.one, link.one), ids.get(link.two, link.two)
        lines.append(f'  "{one}" -- "{two}" [label = "{1000 * link.rtt_s:.0f} ms"{style}];')
    return [*lines, "}"]
