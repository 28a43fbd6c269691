# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses that this host's interfaces have, as far as others could use them for long."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address
from typing import Final

from phantommesh.nlattr import DUMP, REQUEST, attribute, attributes, number, pack_message
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.netlink import ALIAS, NetlinkSocket
from phantommesh.reachable import HostAddress

# linux/rtnetlink.h, if_link.h, if_addr.h, if.h
_GET_LINK, _GET_ADDRESS = 18, 22
_IFLA_NAME, _IFLA_INFO, _IFLA_ALIAS, _IFLA_EXT_MASK, _IFLA_INFO_KIND, _SKIP_STATISTICS = 3, 18, 20, 29, 1, 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_UP, _LOWER_UP = 0x1, 0x10000  # IFF_*: switched on; has a carrier
# IFA_F_*: temporary (of IPv6; the same bit is "secondary" of IPv4), failed its check for duplicates,
# deprecated, still being checked.
_TEMPORARY, _FAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40
_UNUSABLE: Final = _FAILED | _DEPRECATED | _TENTATIVE


def read_addresses(leave_out: Collection[str] = ()) -> list[HostAddress]:
    """Read the addresses of all interfaces that are up and have a carrier, but for our own and for those of
    these names. Addresses that are still checked, that failed, or that go soon are left out: so are temporary
    ones (RFC 8981), which change daily. Raises BackendError."""
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            links = rtnl.exchange(_request(_GET_LINK, bytes(16) + _NO_STATISTICS))
            addresses = rtnl.exchange(_request(_GET_ADDRESS, bytes(8)))
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return []
        raise failed("(all)", "reading the addresses", error) from error
    return list(parse([p for _, _, p in links], [p for _, _, p in addresses], leave_out))


def parse(
    links: Iterable[bytes], addresses: Iterable[bytes], leave_out: Collection[str]
) -> Iterator[HostAddress]:
    """Yield the addresses from the payloads of RTM_NEWLINK and RTM_NEWADDR messages. Raises OSError where one
    cannot be read."""
    there: dict[int, tuple[str, str]] = {}
    try:
        for payload in links:
            _, _, index, flags = struct.unpack_from("=HHiI", payload)
            fields = dict(attributes(payload[16:]))
            name = fields.get(_IFLA_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
            ours = fields.get(_IFLA_ALIAS, b"").rstrip(b"\0") == ALIAS.encode() or name in leave_out
            if flags & _UP and flags & _LOWER_UP and not ours:
                info = dict(attributes(fields.get(_IFLA_INFO, b"")))
                there[index] = name, info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("utf-8", "replace")
        for payload in addresses:
            family, _, low_flags, _, index = struct.unpack_from("=BBBBI", payload)
            fields = dict(attributes(payload[8:]))
            flags = number(fields[_IFA_FLAGS]) if _IFA_FLAGS in fields else low_flags
            packed = fields.get(_IFA_LOCAL) or fields.get(_IFA_ADDRESS)
            temporary = family == socket.AF_INET6 and flags & _TEMPORARY
            if packed and index in there and not flags & _UNUSABLE and not temporary:
                name, kind = there[index]
                yield HostAddress(ip_address(packed), index, name, kind)
    except (struct.error, ValueError) as error:
        raise OSError(errno.EBADMSG, f"an address or a link that cannot be read ({error})") from error


_NO_STATISTICS: Final = attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))


def _request(kind: int, body: bytes) -> bytes:
    return pack_message(kind, REQUEST | DUMP, 1, body)
