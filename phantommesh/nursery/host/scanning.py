# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the snapshot of this host that the rules of `hostcheck` judge, and carries out their safe fixes. All
functions block: call them inside ``trio.to_thread.run_sync``.

The snapshot needs no running node and no root; what only root can read is named as not known then.
"""

from __future__ import annotations

import grp
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import time

from phantommesh.client.http import GROUP
from phantommesh.config import reading
from phantommesh.config.sections import Config, NoConfigError
from phantommesh.dimensions import all_names
from phantommesh.errors import PhantomMeshError
from phantommesh.hostcheck import versions
from phantommesh.hostcheck.exposure import ports_of
from phantommesh.hostcheck.seen import FileSeen, HostSeen, KeysSeen
from phantommesh.hostcheck.versions import KnownFault
from phantommesh.nursery.host import scancopies, scanfiles, scannet, scanprocess
from phantommesh.nursery.host.uplinks import read_uplinks
from phantommesh.state import directory
from phantommesh.state.files import read_file
from phantommesh.trust.certificates import describe_mesh, load_root, validity


@dataclass(frozen=True, slots=True)
class Where:
    """What to look at. ``socket``: the API's, if not the configuration's. ``searched``: where copies of keys
    are looked for, beside the state's and the configuration's own directories; none where it is empty.
    ``node``: the process of a node that runs, if that is known; and its configuration ``config``."""

    state_dir: Path
    config_path: Path
    socket: Path | None = None
    searched: tuple[Path, ...] = scancopies.SEARCHED
    node: int | None = None
    config: Config | None = None


def look(where: Where) -> HostSeen:
    """Take the snapshot. Never raises for what cannot be read."""
    unknown: list[str] = []
    config, refused = _config(where)
    socket = where.socket or (None if config is None else Path(config.api.socket))
    node = where.node or scanprocess.find_node(where.state_dir, socket)
    names = all_names("pm" if config is None else config.wireguard.prefix)
    interfaces = tuple(name for name in names if Path("/sys/class/net", name).exists())
    uplinks = _uplinks(names, unknown)
    known = known_faults()
    taken = node is None and not interfaces and config is not None
    ports = (
        {port for protocol, port in ports_of(config) if protocol == "udp"} if config is not None else set()
    )
    container = scanprocess.read_container()
    return HostSeen(
        now=time(),
        uid=_owner(where, node),
        files=tuple(_files(where, config, socket, unknown)),
        socket_group=_group(),
        copies=tuple(scancopies.find_copies(where.state_dir, _places(where))) if where.searched else (),
        config=config,
        config_error="" if refused is None else str(refused),
        config_fix="" if refused is None else refused.fix,
        settings=scannet.read_settings((*uplinks, *interfaces)),
        read_only=scannet.is_read_only(),
        interfaces=interfaces,
        uplinks=uplinks,
        listeners=tuple(scannet.read_listeners()),
        others_ports=tuple(scannet.read_taken(ports)) if taken else (),
        chains=tuple(scannet.read_chains(unknown)),
        keys=_keys(where.state_dir),
        clock_synchronised=scanprocess.clock_synchronised(),
        versions=scanprocess.read_versions(
            {one.component for one in known},
            userspace=config is None or config.wireguard.backend != "kernel",
        ),
        known_faults=known,
        running=node is not None,
        processes=tuple(scanprocess.read_processes(node, interfaces)),
        swaps=tuple(scanprocess.read_swaps()),
        core_pattern=_core_pattern(),
        wireguard_debug=scanprocess.debugs_wireguard(),
        container=container,
        container_sockets=tuple(scanprocess.engine_sockets()) if container else (),
        unknown=tuple(dict.fromkeys(unknown)),
    )


def known_faults() -> tuple[KnownFault, ...]:
    """The list of known faults that is shipped with this version."""
    text = Path(versions.__file__).with_name("known_faults.toml").read_text("utf-8")
    return versions.parse_list(text)[1]


def _config(where: Where) -> tuple[Config | None, PhantomMeshError | None]:
    if where.config is not None:
        return where.config, None
    try:
        return reading.load(where.config_path), None
    except NoConfigError:
        return None, None
    except PhantomMeshError as error:
        return None, error


def _owner(where: Where, node: int | None) -> int:
    """The user who runs the node, or would: root, unless the state is this user's own."""
    try:
        if node is not None:
            return Path(f"/proc/{node}").stat().st_uid
        if where.state_dir.stat().st_uid == os.geteuid():
            return os.geteuid()
    except OSError:
        pass
    return 0


def _uplinks(names: Iterable[str], unknown: list[str]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(one.interface for one in read_uplinks(tuple(names))))
    except PhantomMeshError as error:
        unknown.append(f"uplinks: {error}")
        return ()


def _files(where: Where, config: Config | None, socket: Path | None, unknown: list[str]) -> list[FileSeen]:
    found = scanfiles.read_state(where.state_dir, unknown)
    found += scanfiles.read_file(where.config_path, "config")
    if socket is not None:
        found += scanfiles.read_file(socket, "socket")
    if config is not None and config.dns.mode in ("auto", "hosts"):
        found += scanfiles.read_file(Path(config.dns.hosts), "hosts")
    found += scanfiles.read_programs()
    # A directory above two of them is told once.
    return list({(one.path, one.role.endswith("parent")): one for one in found}.values())


def _places(where: Where) -> tuple[Path, ...]:
    # Beside a device or a pipe as configuration, such as /dev/null, nobody puts a copy.
    beside = (where.config_path.parent,) if os.path.isfile(where.config_path) else ()  # noqa: PTH113 - no raise
    return (*where.searched, where.state_dir.parent, *beside)


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except (KeyError, OSError):
        return None


def _core_pattern() -> str:
    try:
        return Path("/proc/sys/kernel/core_pattern").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _keys(state: Path) -> KeysSeen:
    """The ages of certificates and keys, as far as they can be read."""
    begins = ends = mesh_ends = oldest = None
    try:
        begins, ends = validity(read_file(state / directory.NODE_CERT))
        mesh_ends = describe_mesh(load_root(read_file(state / directory.ROOT_CERT))).not_after
    except PhantomMeshError:
        pass  # who reads the state to run a node says what is wrong with it
    try:
        made = json.loads(read_file(state / directory.WIREGUARD_KEYS))["made"]
        oldest = min((float(one) for one in made if one is not None), default=None)
    except (PhantomMeshError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    return KeysSeen(
        certificate_begins=begins, certificate_ends=ends, mesh_ends=mesh_ends, oldest_wireguard_key=oldest
    )
