# SPDX-License-Identifier: GPL-3.0-or-later
"""The ``phantommesh`` command.

Exit status: 0 done, 1 failed, 2 usage, 3 the node is not running; of ``proofs --verify`` also 4: nothing is
wrong, but a link shows too little. With ``--json`` stdout has exactly one JSON document, or nothing when
there is no answer to give. Modules that are slow to import are imported inside their verb.
"""

from pathlib import Path

import click

from phantommesh import __version__
from phantommesh.cli.access import audit, token
from phantommesh.cli.acl import acl
from phantommesh.cli.addresses import ip, whois
from phantommesh.cli.agents import agents, decisions, incidents, memory
from phantommesh.cli.backing import backup, restore
from phantommesh.cli.bans import ban, threats, unban
from phantommesh.cli.base import CONFIG, STATE_DIR, Cli, Options, accept_globals
from phantommesh.cli.bugreporting import bugreport
from phantommesh.cli.completing import completion
from phantommesh.cli.configuring import config
from phantommesh.cli.doctor import doctor
from phantommesh.cli.draining import drain, undrain
from phantommesh.cli.ending import down, leave
from phantommesh.cli.events import events
from phantommesh.cli.examples import show_examples
from phantommesh.cli.federation import federation
from phantommesh.cli.inspect import identity, revoke, rotate, status
from phantommesh.cli.inviting import invite
from phantommesh.cli.lab import lab
from phantommesh.cli.lists import links, paths, peers, scatter
from phantommesh.cli.output import flush_streams, prepare_streams
from phantommesh.cli.prefixes import route
from phantommesh.cli.proofs import proofs
from phantommesh.cli.reach import netcheck, ping
from phantommesh.cli.renaming import rename
from phantommesh.cli.service import service, up
from phantommesh.cli.setting import set_keys
from phantommesh.cli.setup import init, join, run
from phantommesh.cli.topology import topology
from phantommesh.cli.upgrading import upgrade_check
from phantommesh.cli.waiting import wait

_FILE = click.Path(path_type=Path, readable=False)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, readable=False),  # verbs that read it say what they need
    default=STATE_DIR,
    envvar="PHANTOMMESH_STATE_DIR",
    show_default=True,
    help="Keys and certificates.",
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path, readable=False),
    envvar="PHANTOMMESH_SOCKET",
    help="The node's API socket. [default: the config's]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    default=CONFIG,
    envvar="PHANTOMMESH_CONFIG",
    show_default=True,
    help="The configuration file.",
)
@click.option("--api", envvar="PHANTOMMESH_API", metavar="URL", help="Ask a node elsewhere, by --token-file.")
@click.option("--token-file", type=_FILE, envvar="PHANTOMMESH_TOKEN_FILE", hidden=True)
@click.option("--ca", type=_FILE, envvar="PHANTOMMESH_CA", hidden=True)
@click.option("--fingerprint", envvar="PHANTOMMESH_FINGERPRINT", hidden=True)
@click.option(
    "--json", is_flag=True, envvar="PHANTOMMESH_JSON", help="One JSON document on stdout, the rest on stderr."
)
@click.version_option(__version__, prog_name="phantommesh")
@click.pass_context
def cli(
    ctx: click.Context,
    state_dir: Path,
    socket_path: Path | None,
    config: Path,
    json: bool,
    api: str | None,
    token_file: Path | None,
    ca: Path | None,
    fingerprint: str | None,
) -> None:
    """A post-quantum mesh VPN over WireGuard. Options may follow VERB."""
    ctx.obj = Options(state_dir, socket_path, config, json, api or None, token_file, ca, fingerprint)


for _verb in (
    init, invite, join, run, up, wait, down, leave, service, status, ip, whois, peers, links, paths, ping,
    netcheck, doctor, topology, scatter, route, acl, federation, proofs, agents, decisions, incidents, memory,
    threats, ban, unban, events, rotate, revoke, rename, drain, undrain, identity, config, set_keys, token,
    audit, completion, backup, restore, bugreport, upgrade_check, lab,
):  # fmt: skip
    cli.add_command(_verb)
accept_globals(cli)
show_examples(cli)


def main() -> None:
    prepare_streams()
    try:
        cli(prog_name="phantommesh")
    finally:
        flush_streams()
