# SPDX-License-Identifier: GPL-3.0-or-later
"""The text protocol of userspace WireGuards (https://www.wireguard.com/xplatform/), without I/O.

``wireguard-go`` is the reference; ``boringtun`` (0.7.1, src/device/api.rs) differs where the code says so.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_network

from phantommesh.secret import Secret
from phantommesh.wireguard.device import NO_KEY, Endpoint, Network, PeerState, Report, public_key_of
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff

GET = b"get=1\n\n"
"""The request for everything about the device."""

MAX_RESPONSE = 16 << 20
"""Bytes of an answer to read at most: far beyond a device with ten thousand peers."""

_OLDEST_TIME = 1_000_000_000.0  # 2001: a "time" before it is boringtun's seconds since the handshake


class UapiError(Exception):
    """An answer that is malformed, or whose errno is not 0: then ``code`` is that errno."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def encode_set(change: DeviceDiff) -> bytes:
    """Turn the WireGuard part of a change into one set operation. The result holds secrets in hex."""
    return _operation(
        [*_device_lines(change), *(line for peer in change.peers for line in _peer_lines(peer))]
    )


def encode_set_boringtun(change: DeviceDiff) -> list[bytes]:
    """The same for boringtun, as several operations.

    boringtun panics when told to change a peer (0.7.1, `Device::update_peer`), and has no other way to give
    it a new PSK. So a changed one is removed and added again, which costs its sessions. Nor does boringtun
    know ``update_only``, and within one operation a peer inherits what the one before it was given: hence an
    operation for each.
    """
    operations = [_operation(lines)] if (lines := list(_device_lines(change))) else []
    for peer in change.peers:
        if peer.remove or not peer.create:
            operations.append(_operation([f"public_key={peer.public_key.hex()}", "remove=true"]))
        if peer.config is not None:
            whole = PeerDiff(
                peer.public_key,
                create=True,
                psk=peer.config.psk,
                endpoint=peer.config.endpoint,
                keepalive=peer.config.keepalive,
                allowed_ips=peer.config.allowed_ips,
            )
            operations.append(_operation(list(_peer_lines(whole))))
    return operations


def _operation(lines: list[str]) -> bytes:
    return "\n".join(["set=1", *lines, "", ""]).encode("ascii")


def _device_lines(change: DeviceDiff) -> Iterator[str]:
    if change.private_key is not None:
        yield f"private_key={change.private_key.reveal().hex()}"
    if change.listen_port is not None:
        yield f"listen_port={change.listen_port}"
    if change.fwmark is not None:
        yield f"fwmark={change.fwmark}"


def _peer_lines(peer: PeerDiff) -> Iterator[str]:
    yield f"public_key={peer.public_key.hex()}"
    if not peer.create:
        yield "update_only=true"
    if peer.remove:
        yield "remove=true"
        return
    # The PSK comes first: until this line a new peer of wireguard-go has none.
    if peer.psk is not None:
        yield f"preshared_key={peer.psk.reveal().hex()}"
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}"
    if peer.keepalive is not None:
        yield f"persistent_keepalive_interval={peer.keepalive}"
    if peer.replace_allowed_ips:
        yield "replace_allowed_ips=true"
    for network in sorted(peer.allowed_ips or (), key=str):
        yield f"allowed_ip={network}"


def is_whole(response: bytes | bytearray) -> bool:
    """Whether an answer has come to its end, an empty line."""
    return response.endswith(b"\n\n") or response == b"\n"


def check_set(response: bytes) -> None:
    """Raise UapiError unless a set operation succeeded."""
    for _ in _lines(response):
        pass


def parse_get(response: bytes, now: float) -> Report:
    """Read the answer to GET; ``now`` in Unix seconds. Unknown keys are skipped. Raises UapiError only."""
    device: dict[str, str] = {}
    peers: list[tuple[dict[str, str], list[str]]] = []
    for key, value in _lines(response):
        if key == "public_key":
            peers.append(({key: value}, []))
        elif not peers:
            device[key] = value
        elif key == "allowed_ip":
            peers[-1][1].append(value)
        else:
            peers[-1][0][key] = value
    try:
        states = [_peer(fields, networks, now) for fields, networks in peers]
        return Report(
            public_key=_own_public_key(device),
            listen_port=int(device.get("listen_port", "0")),
            fwmark=int(device.get("fwmark", "0")),
            peers={state.public_key: state for state in states},
        )
    except (ValueError, OverflowError):
        # Not chained: the error of a conversion quotes what it was given, which could be a key.
        raise UapiError("a value that does not parse") from None


def _lines(response: bytes) -> Iterator[tuple[str, str]]:
    """Yield the key and value of each line but the last, ``errno``, which has to be there and be 0."""
    code: int | None = None
    try:
        text = response.decode("ascii").rstrip("\n")
    except UnicodeDecodeError:
        raise UapiError("an answer that is not ASCII") from None
    for line in text.split("\n"):
        key, equals, value = line.partition("=")
        if not equals:
            raise UapiError("a line without =")
        if key == "errno":
            if not value.removeprefix("-").isdecimal() or len(value) > 9:
                raise UapiError("an errno that is no number")
            code = abs(int(value))
        else:
            yield key, value
    if code is None:
        raise UapiError("no errno at the end")
    if code:
        raise UapiError(f"errno {code}", code)


def _own_public_key(device: Mapping[str, str]) -> bytes | None:
    if "own_public_key" in device:  # boringtun tells this one only
        return _key(device["own_public_key"])
    private = _key(device.get("private_key", NO_KEY.hex()))
    return None if private == NO_KEY else public_key_of(Secret(private))


# Every read brings the same few addresses again.
_endpoint = lru_cache(4096)(Endpoint.parse)


@lru_cache(4096)
def _network(text: str) -> Network:
    return ip_network(text, strict=False)


def _key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != len(NO_KEY):
        raise ValueError("a key of the wrong length")
    return key


def _peer(fields: Mapping[str, str], networks: list[str], now: float) -> PeerState:
    handshake = int(fields.get("last_handshake_time_nsec", "0")) / 1e9
    handshake += int(fields.get("last_handshake_time_sec", "0"))
    if 0 < handshake < _OLDEST_TIME:
        handshake = now - handshake
    return PeerState(
        public_key=_key(fields["public_key"]),
        psk=Secret(_key(fields.get("preshared_key", NO_KEY.hex()))),
        endpoint=_endpoint(fields["endpoint"]) if "endpoint" in fields else None,
        allowed_ips=frozenset(map(_network, networks)),
        keepalive=int(fields.get("persistent_keepalive_interval", "0")),
        last_handshake=handshake,
        rx_bytes=int(fields.get("rx_bytes", "0")),
        tx_bytes=int(fields.get("tx_bytes", "0")),
    )
