# SPDX-License-Identifier: GPL-3.0-or-later
"""A small mesh of certificates for tests: keys from fixed seeds, a fixed clock."""

import hashlib
import itertools
from dataclasses import dataclass
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.records.record import NodeRecord, SignedRecord, sign_record
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Mesh, Role, describe_mesh
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import Authority, choose_ip4, issue_authority, make_root
from phantommesh.wireguard.keys import WgKey, WgKeys
from phantommesh.wireguard.possession import is_seed

NOW = 1_790_000_000.0  # unix seconds


def identity(label: str) -> Identity:
    return Identity.from_seed(hashlib.sha256(label.encode()).digest())


@dataclass(frozen=True)
class TestMesh:
    root: x509.Certificate
    root_key: Identity
    authority: Authority

    __test__ = False  # not a test class

    @property
    def mesh(self) -> Mesh:
        return describe_mesh(self.root)

    @property
    def root_der(self) -> bytes:
        return self.root.public_bytes(Encoding.DER)

    def certify(self, node: Identity, name: str, role: Role = Role.NODE, now: float = NOW) -> bytes:
        return self.authority.issue(node.spki, name, role, choose_ip4(self.mesh, node.node_id, ()), now)

    def record(self, node: Identity, name: str, seq: int = 1, now: float = NOW) -> SignedRecord:
        cert = self.certify(node, name, now=now)
        return sign_record(node, plain_record(node, seq), cert, self.authority.der)


def make_mesh(label: str = "mesh", now: float = NOW) -> TestMesh:
    root_key, authority_key = identity(f"{label} root"), identity(f"{label} authority")
    root = make_root(root_key, "pm", now)
    certificate = issue_authority(root, root_key, authority_key.spki, identity(f"{label} first").node_id, now)
    return TestMesh(root, root_key, Authority(root, certificate, authority_key))


@cache
def wg_keys(node: Identity) -> WgKeys:
    """A node's WireGuard keys, the same each time."""
    tries = (Secret(hashlib.sha256(node.node_id + i.to_bytes(2)).digest()) for i in itertools.count())
    return WgKeys(tuple(map(WgKey, itertools.islice(filter(is_seed, tries), 7))))


def plain_record(node: Identity, seq: int = 1, keys: WgKeys | None = None) -> NodeRecord:
    keys = wg_keys(node) if keys is None else keys
    return NodeRecord(
        node.node_id, seq, ("192.0.2.1:51800",), keys.public, tuple(range(51820, 51827)), "0.1.0",
        keys.proofs(node.node_id),
    )  # fmt: skip
