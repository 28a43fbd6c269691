# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs for a node that is about to go: others use it no more as a router, an exit or a relay."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import CliError, Duration, Options, client_of, json_option
from phantommesh.cli.output import emit, say

if TYPE_CHECKING:
    from phantommesh.client.http import NodeClient
    from phantommesh.management.drainview import DrainView

# Tuning.
LOOK_S = 0.5  # between looks at a node that is waited for
ANSWER_S = 30.0

LONGEST_S = 86_400.0  # as node/draining.py has it
EXIT_BUSY = 4  # it drains, and something is still forwarded


@click.command()
@click.option("--wait", is_flag=True, help="Wait for the node's turn, then until nothing is forwarded.")
@click.option(
    "--for",
    "life",
    type=Duration(),
    default=3600.0,
    show_default="1h",
    help="At work again by itself after this.",
)
@click.option(
    "--timeout", type=Duration(), default=300.0, show_default="5m", help="The longest time that --wait waits."
)
@click.option("--force", is_flag=True, help="Also while another node of the region drains; for root.")
@json_option
@click.pass_context
def drain(ctx: click.Context, wait: bool, life: float, timeout: float, force: bool) -> None:
    """Have the mesh use other routers, exits and relays than this node, before it goes.

    The node drains until `phantommesh undrain`, also across a restart, or until the time of --for is over.
    Connections with the node itself go on. It is refused while another node of the same region drains.

    Exit status: 0 it drains (with --wait: and forwards nothing for others any more), 1 refused, 4 with
    --wait: something is still forwarded after --timeout.
    """
    options: Options = ctx.obj
    if life > LONGEST_S:
        raise CliError(
            "a node drains for a day at most, lest it is forgotten",
            fix="give --for 24h or less, and drain it again where that is not enough; for good there is "
            "`phantommesh leave`",
        )
    client = client_of(options, ANSWER_S)
    end = time.monotonic() + timeout
    if wait:
        _await_turn(client, force, end)
    now = client.drain(life, force=force, idempotency_key=str(uuid.uuid4()))
    while wait and now.state == "draining" and time.monotonic() < end:
        time.sleep(LOOK_S)
        now = client.drain_state()
    if wait and now.state == "working":
        raise CliError(
            f"the node does not drain any more: {now.ended or 'somebody took it back'}",
            fix="run `phantommesh drain` again if it should",
        )
    if options.json:
        emit(now)
    else:
        say(told(now))
    if wait and now.state == "draining":
        ctx.exit(EXIT_BUSY)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say how the node stands, and do nothing.")
@click.option("--wait", is_flag=True, help="Wait until the node is ready.")
@click.option(
    "--timeout", type=Duration(), default=60.0, show_default="1m", help="The longest time that --wait waits."
)
@json_option
@click.pass_context
def undrain(ctx: click.Context, dry_run: bool, wait: bool, timeout: float) -> None:
    """Have the mesh use this node again, whoever had it drain. A node that does not drain is left as it is.

    Exit status: 0 done (with --wait: and the node is ready), 1 with --wait: it is not ready after --timeout.
    """
    options: Options = ctx.obj
    client = client_of(options, ANSWER_S)
    end = time.monotonic() + timeout
    now = client.undrain(idempotency_key=str(uuid.uuid4()), dry_run=dry_run)
    while wait and not dry_run and not (status := client.status()).ready:
        if time.monotonic() >= end:
            why = "; ".join(status.degraded[:1]) or f"it is {status.state}"
            raise CliError(f"the node is not ready: {why}", fix="see `phantommesh status`")
        time.sleep(LOOK_S)
    if options.json:
        emit(now)
    else:
        say(told(now))


def _await_turn(client: NodeClient, force: bool, end: float) -> None:
    """Wait until no other node of the region drains. Raises CliError."""
    said = list[str]()
    while not force and (now := client.drain_state()).state == "working" and now.others:
        if now.others != said:
            said = now.others
            say(f"waiting: {', '.join(said)} of the same region drains", err=True)
        if time.monotonic() >= end:
            raise CliError(
                f"it was not this node's turn: {', '.join(said)} still drains",
                fix="see to that node (`phantommesh undrain` there), or give --force",
            )
        time.sleep(LOOK_S)


def told(now: DrainView) -> str:
    """Say how a node stands, in a line."""
    if now.state == "working":
        return "this node does not drain"
    left = [
        *([f"{now.leases} relayed ways"] if now.leases else []),
        *([f"{now.bridges} joined connections"] if now.bridges else []),
    ]
    more = f" ({', '.join(left)} left)" if left else ""
    done = "this node is drained" if now.state == "drained" else f"this node drains{more}"
    if now.by == "nexus":
        done += " by itself, for it is not ready for its own work"
    end = now.until or "a while after it is ready again"
    return f"{done}, until `phantommesh undrain` or {end}"
