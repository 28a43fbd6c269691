# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs on pacts with other meshes."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from phantommesh.cli.base import Duration, Options, client_of, json_option
from phantommesh.cli.output import emit, say
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.federationview import PactView, ServiceView

TIMEOUT_S = 120.0  # the other mesh's authority may be slow to reach


@click.group()
def federation() -> None:
    """Pacts with other meshes: who of two meshes may use which ports of whom.

    Each mesh signs which of its own members take part and what of them is open. An authority of one mesh
    gives out a line, an authority of the other takes it. Either mesh ends a pact alone.
    """


def _offering(func: Callable[..., None]) -> Callable[..., None]:
    """The options that say what this mesh puts into a pact."""
    for option in (
        click.option(
            "--life", type=Duration(), default=365 * 86_400.0, show_default="365d", help="How long it holds."
        ),
        click.option(
            "--gateway", "gateways", multiple=True, metavar="NODE",
            help="Who tells the other mesh of this one; up to 4. [default: this node]",
        ),
        click.option(
            "--service", "services", multiple=True, metavar="MEMBER:PORTS:USERS",
            help="Ports of a member of this mesh, and who of the other may use them: db:tcp/5432:web,app. "
            "May be repeated.",
        ),
        click.option(
            "--member", "members", multiple=True, metavar="NODE",
            help="A member of this mesh that may use services of the other. May be repeated.",
        ),
    ):  # fmt: skip
        func = option(func)
    return func


@federation.command()
@_offering
@click.option("--ttl", type=Duration(), default=3600.0, show_default="1h", help="How long the line is good.")
@json_option
@click.pass_obj
def invite(options: Options, /, ttl: float, **offer: Any) -> None:
    """Print one line for an authority of another mesh. It is a secret until it is used.

    Run this on an authority that runs.
    """
    key = str(uuid.uuid4())
    made = client_of(options, TIMEOUT_S).federate(ttl=ttl, idempotency_key=key, **offer)
    if options.json:
        emit(made)
    else:
        click.echo(made.invite)
    _warn(made.notes)


@federation.command()
@click.argument("line", envvar="PHANTOMMESH_FEDERATION")
@_offering
@json_option
@click.pass_obj
def accept(options: Options, /, line: str, **offer: Any) -> None:
    """Make a pact with the mesh that printed LINE.

    Run this on an authority that runs. `-` reads LINE from stdin, which other users of this machine cannot
    see; so does PHANTOMMESH_FEDERATION.
    """
    if line == "-":
        line = sys.stdin.readline()
    key = str(uuid.uuid4())
    made = client_of(options, TIMEOUT_S).accept_pact(line.strip(), idempotency_key=key, **offer)
    if options.json:
        emit(made)
    else:
        say(f"pact {made.pact} with {made.mesh}")
    _warn(made.notes)


def _warn(notes: list[str]) -> None:
    for note in notes:
        say(f"warning: {note}", err=True, indent=len("warning: "))


@federation.command()
@click.argument("pact")
@json_option
@click.pass_obj
def end(options: Options, pact: str) -> None:
    """End PACT (its id, or the beginning of it) for good, for both meshes.

    Run this on an authority. It takes effect in this mesh at once, and in the other as soon as that hears of
    it, or after ten minutes in which it does not.
    """
    done = client_of(options, TIMEOUT_S).end_pact(pact, idempotency_key=str(uuid.uuid4()))
    if options.json:
        emit(done)
    else:
        say(f"ended pact {done.pact} with {done.mesh or 'a mesh that is not known yet'}")


@federation.command("list")
@json_option
@click.pass_obj
def list_pacts(options: Options) -> None:
    """Show all pacts, and the members of other meshes that this node links with."""
    found = client_of(options).federation()
    if options.json:
        emit(found)
        return
    if not found.pacts:
        say("this mesh has no pact with another")
        return
    for pact in found.pacts:
        say(f"{pact.pact}  {pact.mesh or '?'}: {_state(pact)}, until {pact.expires}")
        for whose, services in (("ours", pact.services), ("theirs", pact.their_services)):
            for one in services:
                say(f"  {whose}: {_service(one)}")
        for why in pact.silent:
            say(f"  no answer from gateway {why}")
    if found.visitors:
        say("")
        table(
            ("MEMBER", "MESH", "ADDRESS", "LINKED", "MAY USE", "MAY BE USED"),
            [
                (
                    one.name, one.mesh, one.ip6, "yes" if one.linked else "no",
                    ", ".join(one.inbound) or "nothing", ", ".join(one.outbound) or "nothing",
                )
                for one in found.visitors
            ],
            ("MEMBER", "MESH", "ADDRESS", "LINKED", "MAY USE", "MAY BE USED"),
        )  # fmt: skip


def _state(pact: PactView) -> str:
    if pact.state == "resting" and not pact.part:
        return "not about this node"
    return pact.state


def _service(one: ServiceView) -> str:
    return f"{one.member} at {', '.join(one.ports)}, for {', '.join(one.users)}"
