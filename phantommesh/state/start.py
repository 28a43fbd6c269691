# SPDX-License-Identifier: GPL-3.0-or-later
"""The state that a node starts from: its keys, certificates, roster and book of invites, read from its
directory."""

import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography import x509

from phantommesh import __version__
from phantommesh.acl.signedpolicy import Policies
from phantommesh.acl.signedpolicy import decode as decode_policies
from phantommesh.config.sections import Config
from phantommesh.endpoint import format_endpoint, parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.gossip.acquaintance import LastAddresses
from phantommesh.membership.messages import EVENT_SIZE, MAX_GENERATION, STATE, State
from phantommesh.membership.table import EMPTY, Snapshot
from phantommesh.records.candidate import Candidate
from phantommesh.records.record import Condition, NodeRecord, RelayOffer
from phantommesh.records.roster import Roster
from phantommesh.state import directory, rosterlog
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError, cannot
from phantommesh.state.invitebook import InviteBook
from phantommesh.state.rosterlog import RosterLog
from phantommesh.state.routebook import Approval, read_approvals
from phantommesh.trust.certificates import (
    EARLY,
    Member,
    Mesh,
    TrustError,
    describe_mesh,
    load_certificate,
    load_root,
    validity,
    verify_chain,
)
from phantommesh.trust.groupkey import Keyring, greatest_epoch
from phantommesh.trust.identity import NODE_ID_BYTES, Identity, NodeId
from phantommesh.trust.issuing import Authority
from phantommesh.trust.meshsecret import MeshSecrets
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.keys import WgKeys


@dataclass(frozen=True, slots=True, repr=False)
class NodeState:
    """All that a node starts from. Roster, revocations and admission secrets are live objects; the node
    writes them back."""

    state: StateDir
    identity: Identity
    root: x509.Certificate
    mesh: Mesh
    authority_cert: bytes
    node_cert: bytes
    wg_keys: WgKeys
    admission: MeshSecrets
    roster: Roster
    roster_log: RosterLog
    revocations: Revocations
    authority: Authority | None
    invites: InviteBook
    approvals: tuple[Approval, ...] = ()  # of routes, as they were at the start
    pacts: bytes = b""  # with other meshes, as they were at the start
    policies: Policies = field(default_factory=Policies)  # of access; live, too
    keyring: bytes = b""  # as `Keyring.encode` gave it; empty before the first key

    def root_key(self, what: str = "make another an authority") -> Identity:
        """Read the mesh's root key, to do ``what``. Raises TrustError where this machine does not hold it, or
        StateError."""
        if not self.state.has(directory.ROOT_KEY):
            raise TrustError(
                f"only the machine that holds the mesh's root key can {what}",
                fix=f"run it where `phantommesh init` ran, or put its {directory.ROOT_KEY} back",
            )
        with _blame(self.state, directory.ROOT_KEY):
            key = Identity.from_pem(self.state.read_secret(directory.ROOT_KEY).reveal())
            if key.spki != self.mesh.root_spki:
                raise TrustError("it is another mesh's root key")
        return key

    @property
    def name(self) -> str:
        """The certified name, expired or not."""
        return self.member_at_issue().name

    def member(self, now: float) -> Member:
        """Verify our own chain at `now`. Raises TrustError, e.g. when our certificate has run out."""
        return verify_chain(self.root, self.authority_cert, self.node_cert, now)

    def member_at_issue(self) -> Member:
        """Return what our certificate says, judged by the time it was issued for: a node that slept still
        starts."""
        return self.member(validity(self.node_cert)[1])

    def __repr__(self) -> str:
        return f"NodeState({self.state.path})"


def make_record(
    identity: Identity,
    wg_keys: WgKeys,
    config: Config,
    seq: int,
    *,
    found: Sequence[str] = (),
    candidates: tuple[Candidate, ...] = (),
    relay: RelayOffer | None = None,
    tcp_ports: tuple[int, ...] = (),
    routes: tuple[str, ...] = (),
    condition: Condition = Condition(),
) -> NodeRecord:
    """Return our record, unsigned, from the keys and the configuration. ``found`` are control endpoints for
    where the configuration names none; ``relay`` says that this node relays; ``tcp_ports`` are further ports
    at which it takes TCP; ``routes`` the prefixes that it offers to route; ``condition`` how it stands."""
    return NodeRecord(
        node_id=identity.node_id,
        seq=seq,
        control=tuple(
            format_endpoint(*parse_endpoint(e, config.control.port)) for e in config.node.endpoints or found
        ),
        wg_keys=wg_keys.public,
        wg_ports=wg_keys.ports(config.wireguard.base_port, config.wireguard.port_choices),
        version=__version__,
        wg_proofs=wg_keys.proofs(identity.node_id),
        candidates=candidates,
        relay=relay,
        tcp_ports=tcp_ports,
        region=config.node.region,
        routes=routes,
        condition=condition,
    )


def load_node(state_dir: Path, now: float) -> NodeState:
    """Read a node's state. Raises StateError naming the file and the fix.

    An expired certificate of our own is no error here: `NodeState.member` says so.
    """
    state = StateDir.open(state_dir)
    with _blame(state, directory.ROOT_CERT):
        root = load_root(state.read(directory.ROOT_CERT))
        mesh = describe_mesh(root)
    with _blame(state, directory.NODE_KEY):
        identity = Identity.from_pem(state.read_secret(directory.NODE_KEY).reveal())
    if now < root.not_valid_before_utc.timestamp() - EARLY:
        raise StateError(
            f"this machine's clock is wrong: the mesh was made on {root.not_valid_before_utc:%Y-%m-%d}",
            fix="set the clock",
        )
    with _blame(state, directory.NODE_CERT):
        authority_cert, node_cert = _load_certificates(state, root, identity)
    with _blame(state, directory.WIREGUARD_KEYS):
        wg_keys = WgKeys.decode(json.loads(state.read_secret(directory.WIREGUARD_KEYS).reveal()))
    with _blame(state, directory.ADMISSION_KEY):
        admission = MeshSecrets.decode(state.read_secret(directory.ADMISSION_KEY).reveal())
    with _blame(state, directory.REVOCATIONS):
        revocations = Revocations.decode(state.read(directory.REVOCATIONS), root, now)
    with _blame(state, directory.ROSTER):
        known = authority_cert, node_cert
        roster, roster_log = rosterlog.load(state, root, revocations, identity.node_id, now, known)
    keyring = b""
    if state.has(directory.KEYRING):
        with _blame(state, directory.KEYRING):
            keyring = state.read_secret(directory.KEYRING).reveal()
            ring = Keyring()
            ring.shun(revocations)
            ring.restore(keyring, 0.0, greatest_epoch(root, now))
            admission.follow(ring.keys, ring.active, now)
    authority = None
    if state.has(directory.AUTHORITY_KEY):
        with _blame(state, directory.AUTHORITY_KEY):
            key = Identity.from_pem(state.read_secret(directory.AUTHORITY_KEY).reveal())
            authority = Authority(root, load_certificate(authority_cert, "authority"), key)
    with _blame(state, directory.APPROVALS):
        approvals = read_approvals(state)
    policies = Policies()
    if state.has(directory.POLICIES):
        with _blame(state, directory.POLICIES):  # what they deny would be open
            policies = decode_policies(state.read(directory.POLICIES), root, now)
    pacts = state.read_secret(directory.PACTS).reveal() if state.has(directory.PACTS) else b""
    return NodeState(
        state=state,
        identity=identity,
        root=root,
        mesh=mesh,
        authority_cert=authority_cert,
        node_cert=node_cert,
        wg_keys=wg_keys,
        admission=admission,
        roster=roster,
        roster_log=roster_log,
        revocations=revocations,
        authority=authority,
        invites=InviteBook(state),
        approvals=approvals,
        keyring=keyring,
        pacts=pacts,
        policies=policies,
    )


def install_successor(state_dir: Path) -> bool:
    """Put a new identity in place that is whole in the directory, if there is one; say whether there was.

    Hold the state directory's lock. A crash at any moment is made good by calling this again: the new state
    stays where it is until all of it is in place. Raises StateError.
    """
    state = StateDir.open(state_dir)
    made = state.path / directory.SUCCESSOR
    if not made.is_dir():
        return False
    successor = StateDir.open(made)
    for name in (*directory.REQUIRED, directory.KEYRING):
        if successor.has(name):
            state.write(name, successor.read(name))
    try:
        # Remove what was the old identity's alone. Its proofs would break off the new one's chain.
        for name in (directory.RENEWAL, directory.LEAP, directory.SUCCESSION):
            (state.path / name).unlink(missing_ok=True)
        shutil.rmtree(state.path / directory.PROOFS, ignore_errors=True)
        over = made.with_name(f".{made.name}.over")
        shutil.rmtree(over, ignore_errors=True)
        made.rename(over)
        shutil.rmtree(over, ignore_errors=True)
    except OSError as error:
        raise cannot(f"clear {made}", error) from error
    return True


def load_mesh(state: StateDir) -> Mesh:
    """Read which mesh a state directory is of, though all else in it be damaged. Raises StateError."""
    with _blame(state, directory.ROOT_CERT):
        return describe_mesh(load_root(state.read(directory.ROOT_CERT)))


def next_generation(state: StateDir, now: float) -> int:
    """Return a number of 32 bits that is greater than at any start before, and on disk when this returns.

    The clock keeps it so where the state came back from a backup. No other node has a say in it: what rumours
    add to a claim's generation is the leap. Raises StateError.
    """
    last = 0
    if state.has(directory.GENERATION):
        with _blame(state, directory.GENERATION):
            last = int(state.read(directory.GENERATION))
    generation = max(last + 1, int(now))
    if not 0 < generation < 2**32:
        raise StateError(
            f"{state.path / directory.GENERATION} says {last}, which is no number of a start",
            fix="set the clock, and delete the file if it is damaged",
        )
    state.write(directory.GENERATION, str(generation).encode("ascii"))
    return generation


def keep_generation(state: StateDir, number: int) -> None:
    """Have the next start's number be greater than this one, too. Raises StateError."""
    with _blame(state, directory.GENERATION):
        last = int(state.read(directory.GENERATION)) if state.has(directory.GENERATION) else 0
    if number > last:
        state.write(directory.GENERATION, str(number).encode("ascii"))


def load_leap(state: StateDir) -> int:
    """Read how far past the number of a start our claims are. Damage costs only that: we leap again."""
    try:
        leap = int(state.read(directory.LEAP)) if state.has(directory.LEAP) else 0
    except (StateError, ValueError):
        return 0
    return leap if 0 <= leap <= MAX_GENERATION else 0


def renewal_files(authority_cert: bytes, node_cert: bytes) -> dict[str, bytes]:
    """Return what a renewal writes, in this order: a node that dies in between starts again all the same."""
    return {
        directory.RENEWAL: msgspec.msgpack.encode((authority_cert, node_cert)),
        directory.AUTHORITY_CERT: authority_cert,
        directory.NODE_CERT: node_cert,
    }


def _load_certificates(state: StateDir, root: x509.Certificate, identity: Identity) -> tuple[bytes, bytes]:
    """Read the authority's certificate and ours. Raises StateError, or TrustError where they do not hold."""
    authority_cert, node_cert = state.read(directory.AUTHORITY_CERT), state.read(directory.NODE_CERT)
    try:
        _check_certificates(root, identity, authority_cert, node_cert)
    except TrustError:
        renewed = _load_renewal(state, root, identity)
        if renewed is None:
            raise
        return renewed
    return authority_cert, node_cert


def _load_renewal(state: StateDir, root: x509.Certificate, identity: Identity) -> tuple[bytes, bytes] | None:
    """Read the certificates of a renewal cut short. None where there are none that hold."""
    if not state.has(directory.RENEWAL):
        return None
    try:
        pair = msgspec.msgpack.decode(state.read(directory.RENEWAL), type=tuple[bytes, bytes])
        _check_certificates(root, identity, *pair)
    except (PhantomMeshError, ValueError, RecursionError):
        return None
    return pair


def _check_certificates(
    root: x509.Certificate, identity: Identity, authority_cert: bytes, node_cert: bytes
) -> None:
    member = verify_chain(root, authority_cert, node_cert, validity(node_cert)[1])
    if member.node_id != identity.node_id:
        raise TrustError(f"it is not the certificate of {directory.NODE_KEY}")


def encode_members(claims: Iterable[bytes]) -> bytes:
    """Return what members said of themselves (`Membership.snapshot`) for the state directory."""
    return b"".join(claims)


def load_members(node: NodeState) -> Snapshot:
    """Read what members last said of themselves: those that are members still, and had not said goodbye.
    Damage costs only that."""
    try:
        return Snapshot(raw for raw in _last_words(node) if raw[STATE] != State.LEFT)
    except (StateError, ValueError, IndexError):
        return EMPTY


def load_goodbyes(node: NodeState) -> list[bytes]:
    """Read which members had said goodbye. Damage costs only that."""
    try:
        return [raw for raw in _last_words(node) if len(raw) == EVENT_SIZE and raw[STATE] == State.LEFT]
    except (StateError, IndexError):
        return []


def _last_words(node: NodeState) -> list[bytes]:
    data = node.state.read(directory.MEMBERS) if node.state.has(directory.MEMBERS) else b""
    claims = [data[i : i + EVENT_SIZE] for i in range(0, len(data), EVENT_SIZE)]
    me = node.identity.node_id
    others = ((c, NodeId(c[:NODE_ID_BYTES])) for c in claims)
    return [c for c, who in others if who != me and node.roster.get(who) is not None]


def load_last_addresses(node: NodeState) -> LastAddresses:
    """Read the last addresses of members that were forgotten. Damage costs only that."""
    lost = LastAddresses(random.SystemRandom())
    try:
        if node.state.has(directory.LAST_ADDRESSES):
            lost.restore(node.state.read(directory.LAST_ADDRESSES))
    except (StateError, ValueError):
        return LastAddresses(random.SystemRandom())
    return lost


@contextmanager
def _blame(state: StateDir, name: str) -> Iterator[None]:
    """Turn what is wrong with a file's content into a StateError that names the file."""
    try:
        yield
    except StateError:
        raise
    except (PhantomMeshError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{state.path / name} is damaged: {error}", fix=directory.RESTORE) from error
