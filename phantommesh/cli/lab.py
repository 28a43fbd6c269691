# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs of the lab: a mesh of network namespaces on this machine."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from phantommesh.cli.base import CliError, Options, json_option, need_root
from phantommesh.cli.output import emit, say
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from rich.console import Console

    from phantommesh.config.sections import ScatterSection
    from phantommesh.nursery.lab.mesh import LabLink
    from phantommesh.nursery.lab.net import LabSpec

_name_option = click.option("--name", default="pm", show_default=True, help="The lab's name.")


def _spec_options(func: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--backend",
            type=click.Choice(["auto", "kernel", "userspace"]),
            default="auto",
            show_default=True,
            help="Which WireGuard.",
        ),
        click.option(
            "--regions",
            metavar="2x40",
            help="Groups of nodes, ms between them: 3, 2x40, or east:3,west:2,delay=40.",
        ),
        click.option(
            "--block", metavar="udp[:NODE+...]", help="Drop UDP: that of all nodes but 1, or of these nodes."
        ),
        click.option(
            "--mtu",
            metavar="BYTES[:silent]",
            help="Of the segments; silent: hops say nothing when they drop.",
        ),
        click.option(
            "--nat",
            metavar="KIND[,KIND...]",
            help="What nodes 2, 3, ... are behind: public, firewall, preserve, preserve-drop, random, "
            "random-drop, double; A/B is A behind B, KIND+2 has two nodes behind it.",
        ),
        click.option("--uplinks", type=click.IntRange(1), default=3, show_default=True),
        click.option("--nodes", type=click.IntRange(2), help="3, or as --nat and --regions have."),
    ):
        func = option(func)
    return func


def _spec(
    *,
    name: str,
    nodes: int | None,
    uplinks: int,
    backend: str,
    nat: str | None,
    mtu: str | None,
    block: str | None,
    regions: str | None,
    scatter: "ScatterSection | None" = None,
) -> "LabSpec":
    from phantommesh.nursery.lab import underlay as words
    from phantommesh.nursery.lab.net import LabSpec

    size, silent = (words.PLAIN_MTU, False) if mtu is None else words.parse_mtu(mtu)
    underlay = words.Underlay(
        nat=() if nat is None else words.parse_nat(nat),
        mtu=size,
        silent=silent,
        no_udp=None if block is None else words.parse_block(block),
        regions=None if regions is None else words.parse_regions(regions),
    )
    return LabSpec(
        name=name,
        nodes=underlay.wanted_nodes() if nodes is None else nodes,
        uplinks=uplinks,
        backend=backend,
        scatter=scatter,
        underlay=underlay,
    )


@click.group()
def lab() -> None:
    """A mesh on this machine, in network namespaces."""


@lab.command()
@_spec_options
@_name_option
@json_option
@click.pass_obj
def up(options: Options, /, **given: Any) -> None:
    """Build a lab, wait until every pair is keyed and answers, and leave it running."""
    need_root("lab up")
    import trio

    from phantommesh.nursery.lab import up as labs

    console = _console(options)
    spec = _spec(**given)
    result = trio.run(labs.up, spec, console.log)
    if options.json:
        emit(result)
        return
    _show_pairs(result.links)
    if spec.underlay.hinders:
        table(["NODE", "BEHIND"], list(result.behind.items()), ("NODE", "BEHIND"))
    for a, b in result.apart:
        say(f"{a} and {b} do not answer each other yet", err=True)
    say(f"{result.nodes} nodes up in {result.converged_s:.1f} s over {result.backend} WireGuard")


@lab.command()
@_name_option
@json_option
@click.pass_obj
def down(options: Options, name: str) -> None:
    """Remove a lab, also what a crash has left of one."""
    need_root("lab down")
    import trio

    from phantommesh.nursery.lab import up as labs

    removed = trio.run(labs.down, name)
    if options.json:
        emit({"name": name, "removed": removed})
    else:
        say(f"lab {name} is down" if removed else f"there is no lab {name}")


@lab.command()
@_name_option
@json_option
@click.pass_obj
def status(options: Options, name: str) -> None:
    """Show a lab's nodes and links."""
    need_root("lab status")
    import trio

    from phantommesh.nursery.lab import up as labs

    found = trio.run(labs.status, name)
    if options.json:
        emit(found)
        return
    say(f"lab {found.name}: {found.phase}")
    table(
        ["NODE", "BEHIND", "ROLE", "IPV4", "PEERS UP", "BACKEND", "PROBLEM"],
        [
            (
                node.name,
                node.behind,
                *(
                    (now.role, now.ip4, f"{now.peers_up} of {now.peers_total}", now.backend)
                    if now
                    else (None,) * 4
                ),
                node.problem,
            )
            for node in found.nodes
            for now in (node.status,)
        ],
        ("NODE", "PEERS UP", "PROBLEM"),
    )
    _show_pairs(found.links)


def _show_pairs(links: "Sequence[LabLink]") -> None:
    from phantommesh.nursery.lab.run import PAIR, link_rows

    if links:
        table([column.upper() for column in PAIR], link_rows(links), ("PAIR", "STATE"))
    else:
        say("no pair of nodes is linked yet", err=True)


# Options after NODE belong to the command.
@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_name_option
@click.argument("node", type=click.IntRange(1))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, node: int, command: tuple[str, ...]) -> None:
    """Run COMMAND in the namespace of node number NODE."""
    need_root("lab exec")
    from phantommesh.nursery.lab import up as labs

    # click leaves the -- that separates the two where it follows an argument.
    labs.exec_(name, node, command[1:] if command[0] == "--" else command)


@lab.command()
@_spec_options
@_name_option
@json_option
@click.pass_obj
def run(options: Options, /, **given: Any) -> None:
    """Show a mesh live: up, traffic, one node killed and back, down again."""
    need_root("lab run")
    import trio

    from phantommesh.config.sections import ScatterSection
    from phantommesh.nursery.lab import run as labrun

    spec = _spec(**given, scatter=ScatterSection(goal="throughput", epoch_seconds=labrun.EPOCH_S))
    report = trio.run(partial(labrun.run, spec, _console(options)))
    if options.json:
        emit(report)
    else:
        say(
            f"{report.nodes} nodes, {len(report.links)} post-quantum links over {report.backend} WireGuard: "
            f"converged in {report.converged_s:.1f} s, {report.ping.received} of {report.ping.sent} pings "
            f"answered, healed {report.failover_s:.1f} s after a kill"
        )
    if report.ping.received < report.ping.sent:
        raise CliError(
            f"{report.ping.sent - report.ping.received} pings were lost",
            fix="run it again on an idle machine; if it happens again, report it",
        )


def _console(options: Options) -> "Console":
    """Progress and tables for people: on stdout, but on stderr when stdout is for JSON."""
    from rich.console import Console

    stderr = options.json
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal else 120
    # Names and addresses in brackets are no markup.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, log_path=False, width=width)
