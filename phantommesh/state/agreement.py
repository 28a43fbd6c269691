# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's configuration beside its state: whether the two agree, and what the state knows where the former
is lost.

What certificates decide is not changed by editing.
"""

import os
from pathlib import Path

from phantommesh.config import environment, reading
from phantommesh.config.sections import (
    Config,
    ConfigError,
    ControlSection,
    NoConfigError,
    NodeSection,
    OverlaySection,
    WireguardSection,
)
from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.overlay.prefixes import check_range
from phantommesh.records.roster import is_settled_name
from phantommesh.state.directory import FORMAT_FILE
from phantommesh.state.files import StateError
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import Member, Mesh
from phantommesh.wireguard.keys import port


def load_config(path: Path, state_dir: Path) -> Config:
    """Read the configuration of the node that has this state. Raises ConfigError; for one that is lost, it
    says how to get it back."""
    try:
        return reading.load(path)
    except NoConfigError as error:
        if not (state_dir / FORMAT_FILE).exists():
            raise
        raise NoConfigError(
            f"{error}, though {state_dir} holds a node's state",
            fix=f"have it written anew: phantommesh --state-dir {state_dir} --config {path} config write",
        ) from None


def need_state(config_path: Path, state_dir: Path) -> None:
    """Raise StateError where a configuration is there and its state is not, saying how to get out."""
    if config_path.exists() and not state_dir.exists():
        raise StateError(
            f"there is no state directory {state_dir}, though the configuration {config_path} is there",
            fix="put the state directory back from a backup, or give the right --state-dir; if it is lost, "
            f"move {config_path} away and run `phantommesh join` with a new invite (or `phantommesh init`)",
        )


def remake_config(node: NodeState) -> Config:
    """Return a configuration for this node: what its certificate and its last record say, and defaults. Ports
    are those that its endpoints name, and of WireGuard those with the default number of choices."""
    member, defaults = node.member_at_issue(), WireguardSection()
    held = node.roster.get(member.node_id)
    endpoints = () if held is None else held.record.control
    ports = {parse_endpoint(endpoint)[1] for endpoint in endpoints}
    control = ControlSection(port=ports.pop()) if len(ports) == 1 else ControlSection()
    wireguard = defaults
    if held is not None:
        moved = port(0, 0, node.wg_keys.keys[0].slot % defaults.port_choices)
        wireguard = WireguardSection(base_port=max(1, held.record.wg_ports[0] - moved))
    return Config(
        node=NodeSection(name=member.name, mesh=node.mesh.name, endpoints=endpoints),
        control=control,
        wireguard=wireguard,
        overlay=OverlaySection(cidr4=str(node.mesh.network4)),
    )


def check_agreement(config: Config, mesh: Mesh, member: Member) -> None:
    """Raise ConfigError or OverlapError where the configuration names another mesh, node or network than the
    certificates do, and say by which command a change is made. ``member`` is this node, as its certificate
    describes it."""
    try:
        _check(config, mesh, member)
    except PhantomMeshError as error:
        raise environment.explain(error, environment.read(os.environ)) from None


def _check(config: Config, mesh: Mesh, member: Member) -> None:
    wanted = config.node
    if wanted.mesh != mesh.name:
        raise ConfigError(
            f'node.mesh = "{wanted.mesh}", and this node is in the mesh "{mesh.name}"',
            fix=f'set node.mesh to "{mesh.name}" again; to go to another mesh, run `phantommesh leave`, then '
            "`phantommesh join` with an invite of that mesh",
        )
    if wanted.name != member.name and not is_settled_name(member, wanted.name):
        raise ConfigError(
            f'node.name = "{wanted.name}", and this node\'s certificate says "{member.name}"',
            fix=f'set node.name to "{member.name}" again; while the node runs, `phantommesh rename '
            f"{wanted.name}` gives it that name",
        )
    check_range(config.overlay.cidr4, mesh.network4)
