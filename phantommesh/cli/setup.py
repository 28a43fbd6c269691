# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that make a node and run it: init, invite, join, run."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from phantommesh.cli.base import (
    CliError,
    Duration,
    Options,
    default_name,
    endpoints_option,
    json_option,
    need_access,
    need_root,
)
from phantommesh.cli.output import emit


@click.command()
@click.option("--mesh", required=True, help="The mesh's name.")
@click.option("--name", help="This node's name. [default: the host name]")
@click.option(
    "--cidr",
    metavar="NETWORK",
    help="The mesh's IPv4 network, /8 to /30, for good. [default: 100.64.0.0/10]",
)
@click.option(
    "--grace",
    type=Duration(),
    default=90 * 86_400.0,
    show_default="90d",
    help="How long after its certificate's end a member comes back by itself, for good.",
)
@endpoints_option
@json_option
@click.pass_obj
def init(
    options: Options,
    mesh: str,
    name: str | None,
    cidr: str | None,
    grace: float,
    endpoints: tuple[str, ...],
) -> None:
    """Make a mesh: its authority, this node's identity and config."""
    need_access("init", options.state_dir, options.config)
    from phantommesh.config.sections import WireguardSection
    from phantommesh.dimensions import all_names
    from phantommesh.nursery.overlay import hostview
    from phantommesh.overlay.prefixes import Address
    from phantommesh.state.making import init_mesh
    from phantommesh.wireguard.device import Network

    def check(networks: Sequence[Network], members: Mapping[Address, str]) -> None:
        found = hostview.check(networks, members, names=all_names(WireguardSection().prefix))
        for own in found.avoided:
            click.echo(
                f"note: this host's {own} lies in the mesh's network and stays the host's; --cidr chooses "
                "another network",
                err=True,
            )

    with _naming_options():
        summary = init_mesh(
            options.state_dir,
            options.config,
            mesh=mesh,
            name=name or default_name(),
            endpoints=endpoints,
            now=datetime.now(UTC).timestamp(),
            cidr4=cidr,
            grace=grace,
            check=check,
        )
    _report(options, summary, "phantommesh run")


# The options that become settings of a new configuration.
_SETTINGS = {"overlay.cidr4": "--cidr", "node.endpoints": "--endpoint"}


@contextmanager
def _naming_options() -> Iterator[None]:
    """Name the option in an error about a setting that the operator gave by it."""
    from phantommesh.config.sections import ConfigError

    try:
        yield
    except ConfigError as error:
        for setting, option in _SETTINGS.items():
            if str(error).startswith(setting):
                raise CliError(f"{option}: {error}", fix=error.fix.replace(setting, option)) from None
        raise


def _report(options: Options, summary: Any, then: str) -> None:
    from phantommesh.trust.identity import format_node_id

    shown = {
        "mesh": summary.mesh,
        "node": summary.name,
        "node_id": format_node_id(summary.node_id),
        "role": str(summary.role),
        "ip4": str(summary.ip4),
        "ip6": str(summary.ip6),
        "state_dir": str(summary.state_dir),
        "config": str(summary.config),
    }
    if options.json:
        emit(shown)
        return
    for key, value in shown.items():
        click.echo(f"{key.replace('_', ' '):10} {value}")
    click.echo(f"next: {then}", err=True)


@click.command()
@click.option("--ttl", type=Duration(), default=3600.0, show_default="1h", help="How long it may be used.")
@click.option("--name", help="Only a node of this name may use it.")
@click.option("--role", type=click.Choice(["node", "relay", "authority"]), default="node", show_default=True)
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--replace",
    "lost",
    metavar="NODE",
    help="For a machine that takes the place of a lost one: its name, role and IPv4 address. Its use revokes "
    "the lost one.",
)
@json_option
@click.pass_obj
def invite(options: Options, ttl: float, name: str | None, role: str, uses: int, lost: str | None) -> None:
    """Print one line that lets a machine join. It is a secret until it is used."""
    need_access("invite", options.state_dir)
    from phantommesh.config import reading
    from phantommesh.endpoint import format_endpoint, parse_endpoint
    from phantommesh.moments import rfc3339
    from phantommesh.node.desk import place_of
    from phantommesh.state.start import load_node
    from phantommesh.trust.certificates import Role
    from phantommesh.trust.invites import MAX_ENDPOINTS

    config = reading.load(options.config)
    now = datetime.now(UTC).timestamp()
    node = load_node(options.state_dir, now)
    if node.authority is None:
        raise CliError(
            "this node is no authority and cannot invite", fix="run `phantommesh invite` on an authority"
        )
    replaces, ip4 = None, ""
    if lost is not None:
        if name is not None or role != "node" or uses != 1:
            raise CliError("--replace says name, role and uses", fix="leave out --name, --role and --uses")
        place = place_of(node, lost)
        name, role, replaces, ip4 = place.name, place.role.value, place.replaces, str(place.ip4)
    if Role(role) is Role.AUTHORITY:
        node.root_key()  # else the joiner would find out
    node.invites.expire(now)
    made = node.invites.create(
        root_hash=node.mesh.root_hash,
        authority=node.identity.node_id,
        mesh=node.mesh.name,
        endpoints=tuple(
            format_endpoint(*parse_endpoint(endpoint, config.control.port))
            for endpoint in config.node.endpoints[:MAX_ENDPOINTS]
        ),
        expires=int(now + ttl),
        role=Role(role),
        name=name,
        uses=uses,
        replaces=replaces,
        ip4=ip4,
    )
    if replaces is not None:
        click.echo(f"note: the use of this invite revokes the present {name} for ever", err=True)
    if options.json:
        expires = rfc3339(made.expires)
        emit({"invite": made.encode(), "expires": expires, "role": role, "name": name, "uses": uses})
    else:
        click.echo(made.encode())


@click.command()
@click.argument("token", envvar="PHANTOMMESH_INVITE")
@click.option("--name", help="This node's name. [default: the host name]")
@endpoints_option
@json_option
@click.pass_obj
def join(options: Options, token: str, name: str | None, endpoints: tuple[str, ...]) -> None:
    """Enrol this machine with an invite.

    TOKEN is the line that `phantommesh invite` printed. `-` reads it from stdin, which other users of this
    machine cannot see; so does PHANTOMMESH_INVITE.
    """
    need_access("join", options.state_dir, options.config)
    import trio

    from phantommesh.nursery.members import enrolment

    if token == "-":  # noqa: S105  # the conventional name of stdin
        token = sys.stdin.readline()
    with _naming_options():
        summary = trio.run(
            partial(
                enrolment.join,
                options.state_dir,
                options.config,
                token=token.strip(),
                name=name or default_name(),
                endpoints=endpoints,
            )
        )
    _report(options, summary, "phantommesh run")


@click.command()
@click.pass_obj
def run(options: Options) -> None:
    """Run the node in the foreground. SIGTERM leaves cleanly."""
    need_root("run")
    import gc

    gc.disable()  # while all is made that stays: a tenth of the time to start
    import trio

    from phantommesh.config import reading
    from phantommesh.nursery import logs, process

    gc.freeze()
    gc.enable()
    config = reading.load(options.config)
    logs.configure(config.log.level, config.log.format)
    trio.run(partial(process.run, options.state_dir, options.config, socket_path=options.socket))
