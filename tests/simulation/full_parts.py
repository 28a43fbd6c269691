# SPDX-License-Identifier: GPL-3.0-or-later
"""The ground that simulated nodes stand on: a certified mesh, records, rosters that share a start."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from ipaddress import IPv4Network
from itertools import count, islice
from typing import Any

from cryptography import x509

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address, parse_endpoint
from phantommesh.records import record
from phantommesh.records.record import NodeRecord, SignedRecord
from phantommesh.records.roster import Roster
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Member, describe_mesh
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import NETWORK4, Authority, issue_authority, make_root
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.desired import OwnSide
from phantommesh.wireguard.keys import WgKey, WgKeys
from phantommesh.wireguard.possession import is_seed

BASE = 1_790_000_000.0  # unix time at the virtual clock's zero
MADE = BASE - 86_400.0  # when the mesh was made
ADMISSION = Secret(b"a" * 32)
PORTS = tuple(range(51820, 51827))


@cache
def identity(label: str) -> Identity:
    """An identity from a fixed seed."""
    return Identity.from_seed(hashlib.sha256(label.encode()).digest())


def wg_keys(node: Identity) -> tuple[bytes, ...]:
    """A node's seven public WireGuard keys."""
    return _keys_and_proofs(node)[0]


def own_side(node: Identity, member: Member, mesh: Mesh) -> OwnSide:
    """A node's own end of the seven interfaces."""
    networks = mesh.described.network4, mesh.described.network6
    return OwnSide(_private_keys(node), PORTS, member, networks)


def owner(wg_key: bytes) -> bytes:
    """The node whose public WireGuard key this is."""
    return _owners[wg_key]


_owners: dict[bytes, bytes] = {}


@cache
def generated(node: Identity) -> WgKeys:
    """The WireGuard keys of a new node: always the same ones."""
    tries = (Secret(hashlib.sha256(node.node_id + i.to_bytes(2)).digest()) for i in count())
    return WgKeys(tuple(map(WgKey, islice(filter(is_seed, tries), DIMENSIONS))))


@cache
def _private_keys(node: Identity) -> tuple[Secret, ...]:
    return generated(node).private


@cache
def _keys_and_proofs(node: Identity) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    keys = generated(node)
    public = keys.public
    _owners.update(dict.fromkeys(public, node.node_id))
    return public, keys.proofs(node.node_id)


def agree(node: Identity, dimension: int, theirs: bytes) -> bytes:
    """In place of X25519: the value that the owners of both keys would get."""
    return hashlib.sha256(b"".join(sorted((wg_keys(node)[dimension], theirs)))).digest()


def plain_record(
    node: Identity, seq: int, address: Address, version: str = "sim", *also: Address
) -> NodeRecord:
    """A node's record, unsigned. It names the addresses ``also`` first."""
    control = tuple(map(str, (*also, address)))
    keys, proofs = _keys_and_proofs(node)
    return NodeRecord(node.node_id, seq, control, keys, PORTS, version, proofs)


@cache
def addresses(control: tuple[str, ...]) -> tuple[Address, ...]:
    """The addresses that a record names."""
    return tuple(Address(*parse_endpoint(text)) for text in control)


class Mesh:
    """The root, and the authorities that may certify."""

    def __init__(self, network4: IPv4Network = NETWORK4) -> None:
        self.root_key = identity("root")
        self.root = make_root(self.root_key, "sim", MADE, network4)
        self.described = describe_mesh(self.root)

    def authority(self, label: str, holder: Identity) -> Authority:
        """An authority key for this node, certified by the root."""
        key = identity(f"{label} authority")
        certificate = issue_authority(self.root, self.root_key, key.spki, holder.node_id, MADE)
        return Authority(self.root, certificate, key)


class Layered(dict[Any, Any]):
    """A dict over another that it never changes; lists in that one are copied when they are looked up."""

    def __init__(self, base: dict[Any, Any]) -> None:
        super().__init__()
        self._base = base
        self._gone: set[Any] = set()

    def __missing__(self, key: Any) -> Any:
        if key in self._gone:
            raise KeyError(key)
        value = self._base[key]
        if isinstance(value, list):
            value = copy(value)
            self[key] = value
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dict does."""
        return self[key] if key in self else default  # noqa: SIM401

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key in self._base and key not in self._gone)

    def __delitem__(self, key: Any) -> None:
        if super().__contains__(key):
            super().__delitem__(key)
        if key in self._base:
            self._gone.add(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self._gone.discard(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As a dict does."""
        if key not in self:
            self[key] = default
        return self[key]

    def _merged(self) -> dict[Any, Any]:
        own = dict(super().items())
        if not own and not self._gone:
            return self._base
        merged = {**self._base, **own}
        for key in self._gone:
            merged.pop(key, None)
        return merged

    def items(self) -> Any:
        """As a dict does."""
        return self._merged().items()

    def values(self) -> Any:
        """As a dict does."""
        return self._merged().values()

    def __len__(self) -> int:
        return len(self._merged())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._merged())


def sharing(template: Roster, root: x509.Certificate, revocations: Revocations) -> Roster:
    """A roster that holds what the template does, and shares it: a thousand of a thousand fit in memory."""
    roster = Roster(root, revocations)
    roster._entries = Layered(template._entries)
    roster._claims = Layered(template._claims)
    return roster


_opened: dict[bytes, tuple[Member, NodeRecord]] = {}


@contextmanager
def verified_once() -> Iterator[None]:
    """Within this context each distinct record is really verified once a process: the certificates' times are
    looked at every time, the signatures the first time. Failures are not remembered."""
    really = record.open_record

    def open_record(
        root: x509.Certificate, signed: SignedRecord, now: float, **how: bool
    ) -> tuple[Member, NodeRecord]:
        parts = (signed.body, signed.signature, signed.node_cert, signed.authority_cert)
        name = hashlib.blake2b(b"".join(parts), digest_size=16).digest()
        known = _opened.get(name)
        if known is None or not known[0].not_before <= now <= known[0].not_after:
            known = _opened[name] = really(root, signed, now, **how)
        return known

    record.open_record = open_record
    try:
        yield
    finally:
        record.open_record = really
