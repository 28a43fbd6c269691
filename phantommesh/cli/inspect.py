# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that ask a running node."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import (
    EXIT_FAULTY,
    EXIT_UNREADY,
    CliError,
    Options,
    client_of,
    json_option,
)
from phantommesh.cli.output import age, ago, emit, field, moment, say
from phantommesh.cli.peering import PEER, node_of
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.agentview import AgentsGlance
    from phantommesh.management.views import MemberState, RevocationResult, Status

ROTATE_TIMEOUT_S = 60.0
REVOKE_TIMEOUT_S = 30.0
IDENTITY_TIMEOUT_S = 120.0
_SEERS = 4  # peers that one line names
_NAMED = 8  # peers that one error names


@click.command()
@click.option(
    "--exit-code",
    is_flag=True,
    help="Exit with 4 if something is wrong, and with 5 if the node is not ready.",
)
@json_option
@click.pass_context
def status(ctx: click.Context, exit_code: bool) -> None:
    """Show this node."""
    options: Options = ctx.obj
    now = client_of(options).status()
    if options.json:
        emit(now)
    else:
        _show(now)
    if exit_code and not now.ready:
        ctx.exit(EXIT_UNREADY)
    if exit_code and now.degraded:
        ctx.exit(EXIT_FAULTY)


def _show(now: Status) -> None:
    rows: list[tuple[str, object]] = [
        ("mesh", now.mesh),
        ("node", f"{now.node} ({now.role})"),
        ("node id", now.node_id),
        ("addresses", f"{now.ip4}  {now.ip6}"),
        *([("region", now.region)] if now.region else []),
        *([("exit", ", ".join(now.exit))] if now.exit else []),
        ("peers", f"{now.peers_up} of {now.peers_total} up{_members(now.members, now.partly_reachable)}"),
        *(("reached at", text) for text in _reached(now)),
        *(("routes", at if at == there else f"{at} ({there} there)") for at, there in now.routes.items()),
        ("backend", now.backend),
        ("version", f"{now.version}, up {age(now.uptime_s)}"),
        ("state", now.state if now.ready or now.state != "running" else "not ready"),
        ("certificate", _until(now.certificate_expires)),
        *([("agents", _agents(now.agents))] if now.agents is not None else []),
    ]
    rows += [("advice", text) for text in now.advice]
    for fault in now.faults:
        rows += [("degraded", fault.text), *([("  fix", fault.fix)] if fault.fix else [])]
    if not now.faults:  # a node of an older version says it in one line
        rows += [("degraded", reason) for reason in now.degraded]
    for key, value in rows:
        field(key, value)


def _agents(now: AgentsGlance) -> str:
    """How many agents run, who does not and why, and what they did."""
    aside = {"dry run": now.dry_run, "paused": now.paused, "benched": now.benched}
    named = [f"{state}: {', '.join(names)}" for state, names in aside.items() if names]
    named += ["frozen: nothing new is accepted"] if now.frozen else []
    text = f"{now.running} of {now.total} run" + (f" ({'; '.join(named)})" if named else "")
    return f"{text}, {now.accepted} decisions accepted"


def _reached(now: Status) -> list[str]:
    """Where the node is reached, a line each: as its operator has it or as it found out, and what peers
    see."""
    known = now.whereabouts
    found = {one.endpoint: one for one in known.candidates}
    lines = [f"{one} ({found[one].found if one in found else 'configured'})" for one in known.endpoints]
    lines += [f"{text} ({one.found})" for text, one in found.items() if text not in known.endpoints]
    by = dict[str, list[str]]()
    for witness in known.witnesses:
        by.setdefault(witness.endpoint, []).append(witness.peer)
    for endpoint, peers in by.items():
        more = f" and {len(peers) - _SEERS} more" if len(peers) > _SEERS else ""
        see = "sees" if len(peers) == 1 else "see"
        lines.append(f"{endpoint}, as {', '.join(peers[:_SEERS])}{more} {see} it")
    return lines


def _until(expires: str) -> str:
    """When a certificate ends, and how far off that is by this machine's clock."""
    text = f"until {moment(expires)}"
    try:
        left = datetime.fromisoformat(expires).timestamp() - time.time()
    except ValueError:  # a node of another version
        return text
    return f"{text}, in {age(left)}" if left > 0 else f"{text}: it ran out {ago(-left)}"


def _members(states: Mapping[MemberState, int], partly: int) -> str:
    others = [f"{count} {state}" for state, count in sorted(states.items()) if state != "alive"]
    others += [f"{partly} partly reachable"] if partly else []
    return f" ({', '.join(others)})" if others else ""


@click.command()
@click.argument("peer", type=PEER, required=False)
@click.option("--dry-run", is_flag=True, help="Show what would be rotated.")
@json_option
@click.pass_context
def rotate(ctx: click.Context, peer: str | None, dry_run: bool) -> None:
    """Rotate the PSKs shared with PEER (a name, node id, address or DNS name), or with every peer.

    \b
    Example:
      phantommesh rotate nas
    """
    options: Options = ctx.obj
    client = client_of(options, ROTATE_TIMEOUT_S)
    wanted = None if peer is None else node_of(client, peer)
    result = client.rotate(wanted, dry_run=dry_run, idempotency_key=str(uuid.uuid4()))
    if options.json:
        emit(result)
    elif not result.rotations:
        say("there is no peer yet to rotate a key with: see `phantommesh peers`", err=True)
    else:
        table(
            ["PEER", "RESULT", "EPOCH", "DETAIL"],
            [(each.peer, each.result, each.epoch, each.detail) for each in result.rotations],
        )
    left = [each.peer for each in result.rotations if each.result in ("started", "failed")]
    if left:
        named = ", ".join(left[:_NAMED]) + (f" and {len(left) - _NAMED} more" if len(left) > _NAMED else "")
        raise CliError(
            f"{len(left)} of {len(result.rotations)} rotations are not finished: {named}",
            fix="see that those nodes run and are reachable (`phantommesh status` says what is in the way); "
            "a rotation that has started goes on by itself",
        )


@click.command()
@click.argument("node", type=PEER)
@click.option("--force", is_flag=True, help="Even if it is the authority that this is run on.")
@click.option("--undo", is_flag=True, help="Take NODE back instead. Needs the mesh's root key.")
@click.option(
    "--undo-all",
    is_flag=True,
    help="Cast the authority NODE out, and take back all that it revoked. Needs the mesh's root key.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@json_option
@click.pass_obj
def revoke(options: Options, node: str, force: bool, undo: bool, undo_all: bool, dry_run: bool) -> None:
    """Put NODE (a name, node id, address or DNS name) out of the mesh. Run it on an authority.

    Only the root takes a node back: run --undo where `phantommesh init` ran.

    \b
    Example:
      phantommesh revoke nas --dry-run
    """
    if undo and undo_all:
        raise click.UsageError("give --undo or --undo-all, not both")
    if force and (undo or undo_all):
        raise click.UsageError("--force has no meaning with --undo and --undo-all")
    client = client_of(options, REVOKE_TIMEOUT_S)
    result = client.revoke(
        node_of(client, node),
        force=force,
        undo=undo,
        undo_all=undo_all,
        dry_run=dry_run,
        idempotency_key=str(uuid.uuid4()),
    )
    if options.json:
        emit(result)
        return
    say(_revoked(result, undo, undo_all, dry_run))


def _revoked(result: RevocationResult, undo: bool, undo_all: bool, dry_run: bool) -> str:
    named = result.node_id if result.name is None else f"{result.name} ({result.node_id})"
    would = "would be" if dry_run else "is"
    if undo_all:
        return f"{named} {would} cast out, and {result.taken_back} that it revoked taken back"
    if undo and result.already:
        return f"{named} is not revoked: there is nothing to undo"
    if undo:
        return f"{named} {would} taken back; every member links with it again as it hears of it"
    if result.already:
        return f"{named} was revoked already, at {result.revoked_at}"
    if dry_run:
        return f"{named} would be revoked"
    return f"{named} is revoked; every member drops it as it hears of it"


@click.group()
def identity() -> None:
    """This node's identity."""


@identity.command("new")
@json_option
@click.pass_obj
def identity_new(options: Options) -> None:
    """Give this node a new identity under its name, and have the old one revoked.

    For when the old one may be in use elsewhere. The node must run, and be linked with an authority. It gets
    new keys and keeps its name, and its IPv4 address if nobody else has it; its IPv6 address changes. It then
    starts again by itself.
    """
    result = client_of(options, IDENTITY_TIMEOUT_S).new_identity(idempotency_key=str(uuid.uuid4()))
    if options.json:
        emit(result)
        return
    say(f"{result.name} has a new identity: {result.node_id}")
    say(f"addresses: {result.ip4}  {result.ip6}")
    say(f"revoked: {result.old_node_id}")
    say("the node starts again with the new identity now", err=True)
