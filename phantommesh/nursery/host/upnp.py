# SPDX-License-Identifier: GPL-3.0-or-later
"""UPnP by miniupnpc, which is the extra ``portmap``. Its calls block, so they are made in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from ipaddress import IPv4Address
from typing import Any, Final

from phantommesh.portmap.values import NO_ADDRESS, Granted, Wanted

LIBRARY: Final = "miniupnpc"
NAME: Final = "phantommesh"  # as the gateway lists the mapping

# Tuning.
DISCOVERY_MS: Final = 1000  # for which answers are waited for
OTHERS: Final = 3  # external ports that are tried where the one beside is taken, each
APART: Final = 16  # further: another node behind the gateway has the fifteen of its own in a row
FOR_GOOD: Final = 0  # the lifetime of a mapping that only its deletion ends

# What a gateway says of a port that is mapped, as the library words it: code 718.
_TAKEN: Final = "ConflictInMappingEntry"
# What a gateway says that knows no other lifetime, as the library words it: code 725, and some say 402.
_NO_LIFETIME: Final = ("OnlyPermanentLeasesSupported", "Invalid Args")


def available() -> bool:
    """Whether the library is installed."""
    return find_spec(LIBRARY) is not None


@dataclass(slots=True)
class Opened:
    """What a gateway does. ``refused``: its word on the last port that it does not forward. Both are empty
    where there is no gateway."""

    granted: dict[Wanted, Granted] = field(default_factory=dict)
    refused: str = ""


def open_ports(own: IPv4Address, wanted: Iterable[tuple[Wanted, int]], lifetime: int) -> Opened:
    """Have the gateway in the network of the host's address ``own`` forward these ports, each from the
    external port beside it or one of a few others. Where it knows no lifetimes the ports stay open until
    `close_ports`."""
    found = Opened()
    try:
        gateway = _gateway(own)
    except Exception as error:
        _said(error)
        return found
    try:
        address = IPv4Address(gateway.externalipaddress() or "0.0.0.0")
    except Exception as error:
        found.refused = _said(error)
        return found
    if address.is_unspecified:
        found.refused = NO_ADDRESS
        return found
    life, answer = lifetime, ""
    for one, external in wanted:
        for port in range(external, min(external + OTHERS * APART, 65535) + 1, APART):
            answer = _ask(gateway, own, one, port, life)
            if answer in _NO_LIFETIME and life != FOR_GOOD:
                life = FOR_GOOD
                answer = _ask(gateway, own, one, port, life)
            if answer == _TAKEN and _end_own(gateway, own, one, port):
                answer = _ask(gateway, own, one, port, life)
            if not answer:
                found.granted[one] = Granted(address, port, float(lifetime))
                break
        else:
            found.refused = answer
    return found


def _ask(gateway: Any, own: IPv4Address, one: Wanted, port: int, life: int) -> str:
    """Have the gateway forward one port. Return why it does not, empty where it does."""
    try:
        gateway.addportmapping(port, one.protocol.name, str(own), one.port, NAME, "", life)
    except Exception as error:  # taken, or it is not allowed
        return _said(error)
    return ""


def _end_own(gateway: Any, own: IPv4Address, one: Wanted, port: int) -> bool:
    """End a mapping if it is this one, of before: some gateways renew none. Return whether it was."""
    try:
        held = gateway.getspecificportmapping(port, one.protocol.name)
        if held is None or held[:2] != (str(own), one.port):
            return False
        gateway.deleteportmapping(port, one.protocol.name, "")
    except Exception as error:
        _said(error)
        return False
    return True


def close_ports(own: IPv4Address, granted: Mapping[Wanted, Granted]) -> None:
    """Have the gateway forward these no more."""
    try:
        gateway = _gateway(own)
    except Exception as error:
        _said(error)
        return  # their lifetime ends them
    for one, at in granted.items():
        try:
            gateway.deleteportmapping(at.port, one.protocol.name, "")
        except Exception as error:  # it has ended, or the gateway has lost it: the others may be there
            _said(error)


def _gateway(own: IPv4Address) -> Any:
    # Both are set here alone: as attributes the first cannot be written.
    gateway = import_module(LIBRARY).UPnP(multicastif=str(own), discoverdelay=DISCOVERY_MS)
    gateway.discover()
    gateway.selectigd()
    return gateway


def _said(error: Exception) -> str:
    """What the library says: it raises bare Exceptions, and of the gateway's texts a ValueError comes too.
    A call that the library does not take is this module's fault, and no word of a gateway."""
    if isinstance(error, TypeError | AttributeError):
        raise error
    return str(error) or "refused"
