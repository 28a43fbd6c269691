# SPDX-License-Identifier: GPL-3.0-or-later
"""WireGuard devices and peers as values. Nothing here does I/O.

``DeviceConfig`` says what a device should be, ``DeviceState`` what the kernel or a userspace WireGuard
reports.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from phantommesh.secret import Secret

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

KEY_SIZE = 32
"""Bytes in a WireGuard private, public or preshared key (WireGuard paper, section 5.4)."""

NO_KEY = bytes(KEY_SIZE)
"""The key that WireGuard reports for "no key set": 32 zero bytes. As a PSK it means no post-quantum secret at
all."""

MAX_NAME = 15
"""Longest interface name, from IFNAMSIZ in linux/if.h less the final NUL."""

OUTER_MARK: Final = 0x50000000
OUTER_MASK: Final = 0xFF000000
"""The mark of what this node and its WireGuard send over the underlay: one byte, not of those that kube-proxy
and Tailscale use. Calico and Cilium may use any, so no rule drops by the mark alone."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address that a peer's packets go to: an IP address literal (made canonical) and a UDP port, 1 to
    65535.

    Raises ValueError for anything else; names are resolved before they get here.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", str(ip_address(self.host)))
        if not 0 < self.port < 65536:
            raise ValueError(f"endpoint port {self.port} is not in 1..65535")

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read ``192.0.2.1:51820`` or ``[2001:db8::1]:51820``; raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or (":" in host) != (host.startswith("[") and host.endswith("]")):
            raise ValueError(f"endpoint {text!r} is not ADDRESS:PORT")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Route:
    """An overlay network reached through a device. If there are two routes, the lower metric (1 to 2**32 - 1)
    wins. ``mtu``: no longer packets are to be sent there, in bytes; ``advmss``: nor longer TCP segments be
    asked for. 0: as the interface has it."""

    network: Network
    metric: int
    mtu: int = 0
    advmss: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.metric < 1 << 32:  # the kernel turns IPv6 metric 0 into 1024
            raise ValueError(f"route metric {self.metric} is not in 1..{(1 << 32) - 1}")


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """A peer as it should be. ``keepalive`` is in seconds, 0 for none, at most 65535. ``keyed``: the PSK is
    one that the peer has too; else it is random, and no WireGuard handshake comes to its end.

    Raises ValueError for a PSK of zero bytes: WireGuard takes it for "no PSK", and a link without a finished
    handshake must hold a random one instead.
    """

    public_key: bytes
    psk: Secret
    endpoint: Endpoint | None
    allowed_ips: frozenset[Network]
    keepalive: int = 0
    keyed: bool = True

    def __post_init__(self) -> None:
        if len(self.public_key) != KEY_SIZE or self.public_key == NO_KEY:
            raise ValueError("a peer's public key is 32 bytes and not all zero")
        if len(self.psk) != KEY_SIZE:
            raise ValueError("a preshared key is 32 bytes")
        if self.psk == Secret(NO_KEY):
            raise ValueError("an all-zero preshared key is no key; refused")
        if not 0 <= self.keepalive < 65536:
            raise ValueError(f"keepalive {self.keepalive} is not in 0..65535 seconds")


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device as it should be. ``peers`` is keyed by public key; ``mtu`` in bytes; ``fwmark`` 0 for none.

    Raises ValueError for a bad name, key or port, and when two peers claim the same allowed network:
    WireGuard gives each network to one peer only, so such a device could never become as desired.
    """

    name: str
    private_key: Secret
    listen_port: int
    mtu: int
    addresses: frozenset[Interface]
    routes: frozenset[Route]
    peers: Mapping[bytes, PeerConfig]
    fwmark: int = 0

    def __post_init__(self) -> None:
        plain = "/" not in self.name and self.name.split() == [self.name] and self.name not in (".", "..")
        if not plain or len(self.name.encode()) > MAX_NAME:
            raise ValueError(f"interface name {self.name!r} is not 1 to {MAX_NAME} plain characters")
        if len(self.private_key) != KEY_SIZE or self.private_key == Secret(NO_KEY):
            raise ValueError("a device's private key is 32 bytes and not all zero")
        if not 0 < self.listen_port < 65536:
            raise ValueError(f"listen port {self.listen_port} is not in 1..65535")
        if not 1280 <= self.mtu < 65536:  # RFC 8200, section 5: IPv6 needs 1280
            raise ValueError(f"MTU {self.mtu} is not in 1280..65535")
        if not 0 <= self.fwmark < 1 << 32:
            raise ValueError(f"fwmark {self.fwmark} is not in 0..{(1 << 32) - 1}")
        claimed: set[Network] = set()
        for key, peer in self.peers.items():
            if key != peer.public_key:
                raise ValueError("peers are keyed by their public key")
            if not claimed.isdisjoint(peer.allowed_ips):
                raise ValueError(f"two peers of {self.name} claim the same allowed network")
            claimed |= peer.allowed_ips


ROUNDING: Final = 1.0  # s by which a handshake's time may be ahead of a clock that was read a moment before


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer as reported. ``psk`` is NO_KEY when none is set; ``last_handshake`` in Unix seconds or 0.0."""

    public_key: bytes
    psk: Secret
    endpoint: Endpoint | None
    allowed_ips: frozenset[Network]
    keepalive: int = 0
    last_handshake: float = 0.0
    rx_bytes: int = 0
    tx_bytes: int = 0

    def age(self, now: float) -> float | None:
        """The seconds since the newest handshake; None where there was none. None also where the handshake
        has a time in the future: the clock was ahead when the kernel noted it, and the true age is not known.
        ``now`` is in Unix seconds."""
        if not self.last_handshake or self.last_handshake > now + ROUNDING:
            return None
        return max(0.0, now - self.last_handshake)


@dataclass(frozen=True, slots=True)
class Report:
    """WireGuard's report of a device, without its link. ``public_key`` is None while no key is set."""

    public_key: bytes | None
    listen_port: int
    fwmark: int
    peers: Mapping[bytes, PeerState]

    @property
    def blank(self) -> bool:
        """Whether nobody has configured the device yet."""
        return self.public_key is None and not self.peers


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device as reported, with its public key in place of the private one (None while no key is set).

    ``routes`` are those PhantomMesh installed; ``loose_rp`` says that reverse-path filtering lets a packet in
    although the route back prefers another dimension.
    """

    name: str
    index: int
    up: bool
    public_key: bytes | None
    listen_port: int
    mtu: int
    addresses: frozenset[Interface]
    routes: frozenset[Route]
    peers: Mapping[bytes, PeerState]
    fwmark: int = 0
    loose_rp: bool = True


def public_key_of(private_key: Secret) -> bytes:
    """Return the 32-byte X25519 public key (RFC 7748) of a raw private key, clamped or not."""
    return _public_key(private_key.reveal())


@lru_cache(maxsize=64)  # each reading of seven devices asks for the same seven, at 0.1 ms each
def _public_key(private_key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def without_ipv6(config: DeviceConfig) -> DeviceConfig:
    """Drop the IPv6 addresses and routes, for a host whose IPv6 is off. AllowedIPs need no IPv6 and stay."""
    return replace(
        config,
        addresses=frozenset(address for address in config.addresses if address.version == 4),
        routes=frozenset(route for route in config.routes if route.network.version == 4),
    )


def peers_by_key(peers: Iterable[PeerConfig]) -> dict[bytes, PeerConfig]:
    """Key peers by their public key, as DeviceConfig takes them."""
    return {peer.public_key: peer for peer in peers}
