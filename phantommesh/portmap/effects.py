# SPDX-License-Identifier: GPL-3.0-or-later
"""Effects that a mapper asks its driver to carry out."""

from __future__ import annotations

from dataclasses import dataclass

from phantommesh.portmap.values import Granted, Wanted


@dataclass(frozen=True, slots=True)
class Send:
    """Send this to the gateway's `values.SERVER_PORT`."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class AskUpnp:
    """Map these ports by UPnP for so many seconds, each to the external port beside it if it is free. Answer
    with `Mapper.upnp`."""

    wanted: tuple[tuple[Wanted, int], ...]
    lifetime: int


@dataclass(frozen=True, slots=True)
class EndUpnp:
    """End a mapping that was made by UPnP."""

    wanted: Wanted
    granted: Granted


@dataclass(frozen=True, slots=True)
class Changed:
    """Other ports are mapped than before."""


Effect = Send | AskUpnp | EndUpnp | Changed
