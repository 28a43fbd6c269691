# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of other programs that check the reverse path strictly, as nf_tables tells of them over netlink.

Such a rule drops what comes by another interface than that by which an answer would leave. The mesh's traffic
always does: it is scattered from one interface and comes in by the seven of the dimensions. Of IPv4 the
kernel itself checks that, by ``rp_filter`` of each interface; of IPv6 only rules do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from phantommesh.nlattr import attributes

# linux/netfilter/nf_tables.h: NFTA_RULE_*, NFTA_EXPR_*, NFTA_FIB_FLAGS and its NFTA_FIB_F_*
_TABLE, _CHAIN, _EXPRESSIONS = 1, 2, 4
_NAME, _DATA = 1, 2
_FLAGS: Final = 3
_SOURCE, _INCOMING = 0x1, 0x8


def is_strict(payloads: Iterable[bytes], table: str) -> bool:
    """Whether a rule of this table looks up, where packets come in, a route to their source by the interface
    that they came by. ``payloads`` are a dump of rules. Raises NetlinkFormatError."""
    for payload in payloads:
        fields = dict(attributes(payload[4:]))  # struct nfgenmsg
        named = fields.get(_TABLE, b"").rstrip(b"\0") == table.encode("ascii")
        if named and b"PREROUTING" in fields.get(_CHAIN, b"").upper():
            for _, expression in attributes(fields.get(_EXPRESSIONS, b"")):
                parts = dict(attributes(expression))
                if parts.get(_NAME) == b"fib\0":
                    flags = int.from_bytes(dict(attributes(parts.get(_DATA, b""))).get(_FLAGS, b""), "big")
                    if flags & _SOURCE and flags & _INCOMING:
                        return True
    return False
