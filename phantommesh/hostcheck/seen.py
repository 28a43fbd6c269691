# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshot of a host that the rules judge. `nursery/host/scanning.py` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from phantommesh.config.sections import Config
from phantommesh.hostcheck.firewall import Chain
from phantommesh.hostcheck.versions import KnownFault

Role = Literal[
    "state", "state-file", "state-parent", "config", "config-parent", "socket", "socket-parent", "hosts",
    "program",
]  # fmt: skip
"""What a file is to the node. The parents are the directories above, up to the root."""
Kind = Literal["file", "directory", "link", "socket", "other"]


class FileSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One file, as lstat(2) tells of it; a ``program`` as stat(2) does. ``mode`` has the permission bits with
    the sticky bit. ``secret``: whoever reads the file can act as this node, or read its traffic. ``volatile``
    is the kind of file system that it lies on, where that is lost at a reboot or lies on another machine;
    ``room`` the bytes that are free there."""

    path: str
    role: Role
    kind: Kind
    mode: int
    uid: int
    gid: int
    links: int = 1
    modified: float = 0.0  # Unix time, s
    secret: bool = False
    volatile: str = ""
    room: int | None = None


class CopySeen(msgspec.Struct, frozen=True):
    """A copy of a secret outside the state directory that every user of this machine can read: all
    directories above let them through. ``of`` names what it is a copy of."""

    path: str
    of: str
    mode: int


class Listener(msgspec.Struct, frozen=True):
    """A listening TCP socket, or a bound UDP socket. ``program`` is empty where it is not known."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    program: str = ""


class SwapSeen(msgspec.Struct, frozen=True):
    """One swap area. ``encrypted``: what is written there is, or it never leaves the memory (zram)."""

    path: str
    encrypted: bool


class ProcessSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds keys. ``core_limit`` in bytes, -1 for none; None: not known. ``environment`` has
    the variables of `process.WATCHED` alone. ``swappable``: its control group lets it be swapped out."""

    pid: int
    name: str
    core_limit: int | None = None
    environment: Mapping[str, str] = MappingProxyType({})
    tracer: int = 0
    capabilities: int = 0
    swappable: bool = True


class KeysSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The ages of what the state directory holds, in Unix time. None: not known."""

    certificate_begins: float | None = None
    certificate_ends: float | None = None
    mesh_ends: float | None = None
    oldest_wireguard_key: float | None = None


class HostSeen(msgspec.Struct, frozen=True, kw_only=True):
    """All that the rules look at. What could not be read is named in ``unknown``, and no rule judges it.

    ``settings``: numbers of /proc/sys by their path there; ``read_only`` says that they cannot be written.
    ``interfaces`` are those of ours that exist, ``uplinks`` those by which the host reaches others.
    ``running``: a node runs on the state directory; ``processes`` are its own and its children's then, and
    otherwise this process. ``others_ports``: UDP ports of ours that another program has bound while no node
    runs. ``swaps`` and ``core_pattern`` as in proc(5). ``container``: what kind, empty outside one.
    """

    now: float
    uid: int
    files: tuple[FileSeen, ...] = ()
    socket_group: int | None = None  # the gid of the group that may ask the node, where there is one
    copies: tuple[CopySeen, ...] = ()
    config: Config | None = None
    config_error: str = ""
    config_fix: str = ""
    settings: Mapping[str, int] = MappingProxyType({})
    read_only: bool = False
    interfaces: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()
    listeners: tuple[Listener, ...] = ()
    others_ports: tuple[Listener, ...] = ()
    chains: tuple[Chain, ...] = ()
    keys: KeysSeen = KeysSeen()
    clock_synchronised: bool | None = None
    versions: Mapping[str, str] = MappingProxyType({})
    known_faults: tuple[KnownFault, ...] = ()
    running: bool = False
    processes: tuple[ProcessSeen, ...] = ()
    swaps: tuple[SwapSeen, ...] = ()
    core_pattern: str = ""
    wireguard_debug: bool = False
    container: str = ""
    container_sockets: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
