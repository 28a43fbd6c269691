# SPDX-License-Identifier: GPL-3.0-or-later
"""UPnP by miniupnpc, which is the extra ``portmap``. Its calls block, so they are made in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from ipaddress import IPv4Address
from typing import Any, Final

from phantommesh.portmap.values import Granted, Wanted

LIBRARY: Final = "miniupnpc"
NAME: Final = "phantommesh"  # as the gateway lists the mapping

# Tuning.
DISCOVERY_MS: Final = 1000  # for which answers are waited for
OTHERS: Final = 3  # external ports that are tried where the one beside is taken


def available() -> bool:
    """Whether the library is installed."""
    return find_spec(LIBRARY) is not None


def open_ports(
    own: IPv4Address, wanted: Iterable[tuple[Wanted, int]], lifetime: int
) -> dict[Wanted, Granted]:
    """Have the gateway in the network of the host's address ``own`` forward these ports, each from the
    external port beside it or one of the next. Empty where there is none, or where it does not."""
    found = dict[Wanted, Granted]()
    try:
        gateway = _gateway(own)
        address = IPv4Address(gateway.externalipaddress())
    except Exception:  # the library raises bare Exceptions, and AddressValueError is one
        return {}
    for one, external in wanted:
        for port in range(external, min(external + OTHERS, 65535) + 1):
            try:
                gateway.addportmapping(port, one.protocol.name, str(own), one.port, NAME, "", str(lifetime))
            except Exception:  # noqa: S112  # as above: taken, or it is not allowed
                continue
            found[one] = Granted(address, port, float(lifetime))
            break
    return found


def close_ports(own: IPv4Address, granted: Mapping[Wanted, Granted]) -> None:
    """Have the gateway forward these no more."""
    try:
        gateway = _gateway(own)
        for one, at in granted.items():
            gateway.deleteportmapping(at.port, one.protocol.name, "")
    except Exception:
        return  # their lifetime ends them


def _gateway(own: IPv4Address) -> Any:
    gateway = import_module(LIBRARY).UPnP()
    gateway.multicastif, gateway.discoverdelay = str(own), DISCOVERY_MS
    gateway.discover()
    gateway.selectigd()
    return gateway
