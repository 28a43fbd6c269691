# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that make a node and run it: init, join, run."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

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
from phantommesh.cli.output import emit, field, say

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    from phantommesh.config.sections import Config


def tags_option(text: str) -> Callable[[F], F]:
    """The option ``--tag``, whose values a certificate can have."""

    def check(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
        from phantommesh.trust.tags import TagError, check_tags

        try:
            return check_tags(given)
        except TagError as error:
            raise click.BadParameter(f"{error}: {error.fix}") from None

    return click.option("--tag", "tags", multiple=True, metavar="TAG", callback=check, help=text)


@click.command()
@click.option("--mesh", help="The mesh's name.")
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
@tags_option("This node has the tag, for access rules; may be given several times.")
@click.option(
    "--one-machine", is_flag=True, help="All nodes are to run on this machine: allow loopback endpoints."
)
@json_option
@click.pass_context
def init(
    ctx: click.Context,
    mesh: str | None,
    name: str | None,
    cidr: str | None,
    grace: float,
    endpoints: tuple[str, ...],
    tags: tuple[str, ...],
    one_machine: bool,
) -> None:
    """Make a mesh: its authority, this node's identity and config.

    Variables of the environment (PHANTOMMESH_NODE_MESH and so on, one for each key of the configuration)
    count where no option is given.
    """
    options: Options = ctx.obj
    need_access("init", options.state_dir, options.config)
    from phantommesh.nursery.overlay import hostview
    from phantommesh.overlay.prefixes import Address
    from phantommesh.state.directory import ROOT_KEY
    from phantommesh.state.making import init_mesh
    from phantommesh.wireguard.device import Network

    def check(networks: Sequence[Network], members: Mapping[Address, str]) -> None:
        found = hostview.check(networks, members, prefix=prefix)
        for own in found.avoided:
            say(
                f"note: this host's {own} lies in the mesh's network and stays the host's; --cidr chooses "
                "another network",
                err=True,
            )

    with naming_options():
        config = _settings(options, name=name, mesh=mesh, cidr=cidr, endpoints=endpoints)
        if config is None:
            raise click.UsageError("Missing option '--mesh'.", ctx)
        prefix = config.wireguard.prefix
        if not one_machine:
            _refuse_loopback(config)
        summary = init_mesh(
            options.state_dir,
            options.config,
            mesh=config.node.mesh,
            name=config.node.name,
            endpoints=config.node.endpoints,
            now=datetime.now(UTC).timestamp(),
            config=config,
            grace=grace,
            tags=tags,
            check=check,
        )
    _report(options, summary)
    say(
        f"keep: copy {options.state_dir / ROOT_KEY} to a safe place off this machine. It alone makes "
        "authorities and undoes revocations; nobody can make it again",
        err=True,
    )


def _settings(
    options: Options, *, name: str | None, mesh: str | None, cidr: str | None, endpoints: tuple[str, ...]
) -> "Config | None":
    """Return the settings of a new node: the options', else the environment's, else the defaults. None where
    neither names the mesh. Raises ConfigError."""
    from phantommesh.config import environment
    from phantommesh.config.reading import parse

    given = environment.read(os.environ)
    merged = {section: dict(values) for section, values in given.items()}
    node = merged.setdefault("node", {})
    if "name" not in node:
        node["name"] = name or default_name()
    for section, key, value in (
        ("node", "name", name),
        ("node", "mesh", mesh),
        ("node", "endpoints", list(endpoints) or None),
        ("overlay", "cidr4", cidr),
        ("api", "socket", None if options.socket is None else str(options.socket.absolute())),
    ):
        if value is not None:
            merged.setdefault(section, {})[key] = value
    if "mesh" not in node:
        return None
    from phantommesh.config.sections import ConfigError

    try:
        return parse("", merged)
    except ConfigError as error:
        raise environment.explain(error, given) from None


def _refuse_loopback(config: "Config") -> None:
    """Refuse endpoints by which no other machine can join."""
    from phantommesh.endpoint import parse_endpoint
    from phantommesh.reachable import is_loopback

    for endpoint in config.node.endpoints:
        if is_loopback(parse_endpoint(endpoint, config.control.port)[0]):
            raise CliError(
                f"--endpoint {endpoint} is a loopback address: no other machine reaches it",
                fix="give an address or a name by which other machines reach this one; for a mesh within "
                "this machine add --one-machine",
            )


# The options that become settings of a new configuration.
_SETTINGS = {
    "overlay.cidr4": "--cidr",
    "node.endpoints": "--endpoint",
    "node.name": "--name",
    "node.mesh": "--mesh",
    "api.socket": "--socket",
}


@contextmanager
def naming_options() -> Iterator[None]:
    """Name the option in an error about a setting that the operator gave by it."""
    from phantommesh.config.sections import ConfigError

    try:
        yield
    except ConfigError as error:
        for setting, option in _SETTINGS.items():
            if str(error).startswith(setting):
                raise CliError(f"{option}: {error}", fix=error.fix.replace(setting, option)) from None
        raise


def _report(options: Options, summary: Any) -> None:
    from phantommesh.cli.service import starting  # it imports `run` from here
    from phantommesh.trust.identity import format_node_id

    shown = {
        "mesh": summary.mesh,
        "node": summary.name,
        "node_id": format_node_id(summary.node_id),
        "role": str(summary.role),
        "ip4": str(summary.ip4),
        "ip6": str(summary.ip6),
        **({"tags": ", ".join(summary.tags)} if summary.tags else {}),
        "state_dir": str(summary.state_dir),
        "config": str(summary.config),
    }
    if options.json:
        emit(shown)
        return
    for key, value in shown.items():
        field(key.replace("_", " "), value, 10)
    say(f"next: {starting(options)}", err=True)


@click.command()
@click.argument("token", envvar="PHANTOMMESH_INVITE")
@click.option("--name", help="This node's name. [default: the host name]")
@endpoints_option
@tags_option("Ask for this one of the invite's tags only; may be given several times. [default: all]")
@json_option
@click.pass_obj
def join(
    options: Options, token: str, name: str | None, endpoints: tuple[str, ...], tags: tuple[str, ...]
) -> None:
    """Enrol this machine with an invite.

    TOKEN is the line that `phantommesh invite` printed. `-` reads it from stdin, which other users of this
    machine cannot see; so does PHANTOMMESH_INVITE.
    """
    need_access("join", options.state_dir, options.config)
    import trio

    from phantommesh.nursery.members import enrolment
    from phantommesh.trust.invites import Invite

    if token == "-":  # noqa: S105  # the conventional name of stdin
        token = sys.stdin.readline()
    invite = Invite.parse_untrusted(token.strip())
    with naming_options():
        config = _settings(options, name=name, mesh=None, cidr=None, endpoints=endpoints)
        if config is None:
            config = _settings(options, name=name, mesh=invite.mesh, cidr=None, endpoints=endpoints)
            assert config is not None
        elif config.node.mesh != invite.mesh:
            raise CliError(
                f"PHANTOMMESH_NODE_MESH is {config.node.mesh}, and the invite is of mesh {invite.mesh}",
                fix="unset PHANTOMMESH_NODE_MESH, or use an invite of that mesh",
            )
        summary = trio.run(
            partial(
                enrolment.join,
                options.state_dir,
                options.config,
                token=token.strip(),
                name=config.node.name,
                endpoints=config.node.endpoints,
                config=config,
                tags=tags,
            )
        )
    _report(options, summary)


@click.command()
@click.pass_obj
def run(options: Options) -> None:
    """Run the node in the foreground. SIGTERM leaves cleanly."""
    need_root("run")
    import gc

    gc.disable()  # while all is made that stays: a tenth of the time to start
    import trio

    from phantommesh.nursery import logs, process
    from phantommesh.state.agreement import load_config

    gc.freeze()
    gc.enable()
    config = load_config(options.config, options.state_dir)
    logs.configure(config.log.level, config.log.format)
    trio.run(partial(process.run, options.state_dir, options.config, socket_path=options.socket))
