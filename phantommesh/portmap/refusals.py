# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway's refusal means, and what an operator can do about it. Sans-I/O."""

from __future__ import annotations

from typing import Final

from phantommesh.portmap.values import NO_ADDRESS, Method, Refusal

_ALLOW: Final = "allow {method} for this host in the router's settings, or forward the ports there by hand"
_ROOM: Final = "raise the router's limit of mappings, or remove others there"
_OUTSIDE: Final = (
    "see to the router's connection; if another router is in front of it, open the ports there, or have one "
    "of the two pass all traffic on"
)
_WAIT: Final = "nothing: the node asks again every 5 min; if it stays, forward the ports by hand"

# RFC 6887, section 7.4
_PCP: Final = {
    1: ("it does not speak this version", _WAIT),
    2: ("it does not allow this host to", _ALLOW),
    3: ("it could not read the request", _WAIT),
    4: ("it does not map ports", _ALLOW),
    7: (NO_ADDRESS, _OUTSIDE),
    8: ("it has no room for more mappings", _ROOM),
    9: ("it does not map this protocol", _ALLOW),
    10: ("this host has as many mappings as it may have", _ROOM),
    11: ("it has no such port outside", _WAIT),
    12: ("another NAT is between this host and it", _OUTSIDE),
}
# RFC 6886, section 3.5
_NAT_PMP: Final = {
    1: ("it does not speak this version", _WAIT),
    2: ("it does not allow this host to", _ALLOW),
    3: (NO_ADDRESS, _OUTSIDE),
    4: ("it has no room for more mappings", _ROOM),
    5: ("it does not map ports", _ALLOW),
}


def explain(refusal: Refusal) -> tuple[str, str]:
    """Return why the gateway does not map a port, and the fix."""
    known = {Method.PCP: _PCP, Method.NAT_PMP: _NAT_PMP}.get(refusal.method, {})
    text = refusal.text or f"it says {refusal.code}"
    why, fix = known.get(refusal.code, (text, _OUTSIDE if text == NO_ADDRESS else _ALLOW))
    return why, fix.format(method=name(refusal.method))


def name(method: Method) -> str:
    """A protocol's name as people write it."""
    return {Method.PCP: "PCP", Method.NAT_PMP: "NAT-PMP", Method.UPNP: "UPnP"}[method]
