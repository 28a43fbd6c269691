# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes are revoked, as a node judges from all the statements that it holds; and what it tells of them.

Every node holds the same statements in the end (`statements`). Which of them count is computed from them and
from the order in which they came here. A statement counts only if its authority stood when it came: what a
rogue signs once it is revoked is nothing. If several statements come at one time, the revocations of
authorities are taken first. Two nodes that heard of an authority's revocation and of its own last statements
in different orders may differ on those, until the root decides. An authority that revokes another signs anew
what the other had rightly signed, so that those statements do not depend on it.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.idtree import IdTree
from phantommesh.trust.certificates import (
    EARLY,
    TrustError,
    verify_authority,
)
from phantommesh.trust.identity import NodeId
from phantommesh.trust.issuing import Authority
from phantommesh.trust.revocation import (
    CONTEXT,
    MAX_REVOCATIONS,
    SIGNATURE_BYTES,
    Revocation,
    _check,
    _decode_untrusted,
    _encode,
    _hash,
    _signed,
    _signer,
    revoke,
)
from phantommesh.trust.rootword import RootWord, verify_word
from phantommesh.trust.statements import Held, Statements

SLICE: Final = 256  # statements that are held at a time: some milliseconds
MAX_ALIKE: Final = 1_024  # digests of sets that are remembered to be as good as the present one
MAX_PART: Final = 60_000  # bytes of statements and certificates in one answer, unless one alone is larger
MAX_STANDING: Final = 65_536  # bytes: what a node is told of its own standing
MAX_SNAPSHOT: Final = 8 * 1024 * 1024  # bytes of them that a joiner is given; it fetches the rest
MAX_PLEA: Final = 8_192  # bytes of the root's words that a node shows with the question how it stands


@dataclass(frozen=True, slots=True)
class Revoked:
    """Why a node is out: since when (unix seconds), and by whose statement."""

    at: int
    statement: Revocation | RootWord


class Revocations:
    """The statements held, and which nodes are revoked by those that count (`in`, `len`, `get`)."""

    def __init__(self, root: x509.Certificate) -> None:
        self.root = root
        self._held = Statements()
        self._alike: dict[bytes, None] = {}  # digests before and after what could not count
        self._news = 0  # grows with each change that may count
        self._revoked: dict[NodeId, Revoked] = {}
        self._authorities: dict[bytes, tuple[MLDSA65PublicKey, NodeId, bytes]] = {}  # by certificate

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._revoked

    def __len__(self) -> int:
        return len(self._revoked)

    def __iter__(self) -> Iterator[Revocation]:
        """Every statement held, whether it counts or not."""
        return (held.statement for held in self._held)

    @property
    def tree(self) -> IdTree:
        """The ids of all that is held."""
        return self._held.tree

    @property
    def nodes(self) -> frozenset[NodeId]:
        """The nodes that are revoked."""
        return frozenset(self._revoked)

    @property
    def words(self) -> list[RootWord]:
        """The root's words, the newest first."""
        return sorted(self._held.words.values(), key=lambda word: word.order, reverse=True)

    @property
    def newest_word(self) -> RootWord | None:
        """The root's last word, which a new revocation has to name."""
        return max(self._held.words.values(), key=lambda word: word.order, default=None)

    def get(self, node_id: NodeId) -> Revoked | None:
        """Since when and why a node is out, or None while it is not."""
        return self._revoked.get(node_id)

    def by(self, authority: NodeId) -> list[Revocation]:
        """The statements that this node's authority signed, or another took over from it, and that count."""
        return [
            held.statement
            for held in self._held
            if authority in (held.signer, held.statement.origin)
            and (counts := self._revoked.get(NodeId(held.statement.node_id))) is not None
            and isinstance(counts.statement, Revocation)
        ]

    @property
    def moot(self) -> frozenset[NodeId]:
        """The nodes that stand here although a statement against them is held: a revoked authority's, which
        came late. They may be out for nodes that heard of it in another order."""
        against = (NodeId(h.statement.node_id) for h in self._held if h.signer in self._revoked)
        return frozenset(node for node in against if node not in self._revoked)

    def sign(self, authority: Authority, node_id: NodeId, now: float) -> list[Revocation]:
        """Sign what revokes a node, given all that is held: that itself last; before it, where the node is an
        authority, what that one revoked, so that it stands without its word. Raises TrustError as
        `prepare`."""
        return [held.statement for held in self.prepare(authority, node_id, now)()]

    def prepare(self, authority: Authority, node_id: NodeId, now: float) -> Callable[[], list[Held]]:
        """Return what signs as `sign` does, for a thread: what it gives is as good as verified.

        Raises TrustError where there is no room for all of it: then nothing of it may be held, since of too
        many those go whose hash is greatest, and a rogue chooses whom it revokes by that.
        """
        newest, signer = self.newest_word, _signer(authority.der)
        after = b"" if newest is None else newest.id
        took = {NodeId(one.node_id): one.at for one in self.by(node_id) if one.node_id != node_id}
        wanted = [Revocation(gone, at, b"", authority.der, after, node_id) for gone, at in took.items()]
        wanted = [one for one in wanted if not self._held.is_said(signer, one)]
        wanted.append(Revocation(node_id, int(now), b"", authority.der, after))
        new = self._held.unsaid(signer, wanted)
        if len(self._held) + len(new) > MAX_REVOCATIONS or not self._held.has_room_for_all(signer, new):
            raise TrustError(
                f"there is no room for this revocation and the {len(wanted) - 1} that it takes over",
                fix="cast a rogue authority out with all that it revoked, on the machine with the root's "
                "key: `phantommesh revoke NAME --undo-all`",
            )

        def signed() -> list[Held]:
            made = [revoke(authority, NodeId(o.node_id), o.at, after=after, origin=o.origin) for o in wanted]
            return [Held(one, signer, one.id) for one in made]

        return signed

    def add(self, statement: Revocation | RootWord, now: float) -> bool:
        """Verify a statement and hold it; say whether it is new here. Raises TrustError."""
        return self.take([statement], now)

    def take(self, statements: Iterable[Revocation | RootWord], now: float) -> bool:
        """Verify statements that came at one time and hold them; say whether any is new here. Raises
        TrustError; then nothing has changed. A statement that is known already costs no signature check.

        If two by one authority for one node name the same word, the earlier is held.
        """
        return self.hold(self.verify(statements, now))

    def verify(
        self,
        statements: Iterable[Revocation | RootWord],
        now: float,
        late: Callable[[NodeId], bool] = lambda signer: True,
    ) -> Sequence[RootWord | Held]:
        """Verify statements, for `hold`, a third of a millisecond each. Raises TrustError where one does not
        hold.

        Left out, unverified, are those that would not be held: known ones, void ones, those that name a word
        which is neither known nor among them, those that a full authority has no room for. ``late`` says
        whether one more is looked at of an authority that is revoked.
        """
        words, others = dict[bytes, RootWord](), list[Revocation]()
        for one in statements:
            _check(one)
            if not isinstance(one, RootWord):
                others.append(one)
            elif one.id not in self._held.words and one.id not in words:
                verify_word(one, self.root)
                words[one.id] = one
        verified: list[RootWord | Held] = [*words.values()]
        for other in others:
            if other.after and other.after not in self._held.words and other.after not in words:
                continue
            if other.id in self._held:
                continue
            _, signer, _ = self._authority(other, now)
            if self._held.is_void(signer, other) or not self._held.has_room(signer, other):
                continue
            if signer not in self._revoked or late(signer):
                verified.append(self._verify(other, now))
        return verified

    def hold(self, verified: Iterable[RootWord | Held]) -> bool:
        """Hold what came at one time and was verified here; say whether any is new. Raises TrustError where
        there is no room for it."""
        before = self.tree.digest()
        for _ in self.holding(verified):
            pass
        return self.tree.digest() != before

    def holding(self, verified: Iterable[RootWord | Held]) -> Generator[None]:
        """`hold` in slices: the caller lets others have their turn at each step, and closes this in any
        case."""
        words, came = list[RootWord](), list[Held]()
        for one in verified:
            if isinstance(one, RootWord):
                words.append(one)
            else:
                came.append(one)
        before, old, news = self.tree.digest(), self._revoked, self._news
        again, counts = bool(words), bool(words) or any(held.signer not in old for held in came)
        try:
            for word in words:
                self._held.hear(word)
            if len(self._held) + len(came) > MAX_REVOCATIONS:
                raise TrustError(
                    "there are too many revocations",
                    fix="cast a rogue authority out with `phantommesh revoke NAME --undo-all`",
                )
            # A statement that an authority makes once it is out must not count for having come in one parcel
            # with its revocation.
            signers = self._held.signers | {held.signer for held in came}
            for number, held in enumerate(sorted(came, key=lambda one: one.statement.node_id not in signers)):
                again |= not self._hold(held)
                if number % SLICE == SLICE - 1:
                    yield
        finally:
            if again:
                self._judge()
            if (after := self.tree.digest()) != before:
                counts |= news != self._news or not self._revoked.keys() <= old.keys()
                self._note(before, after, counts=counts)

    def _note(self, before: bytes, after: bytes, *, counts: bool) -> None:
        if counts:
            self._news += 1
            self._alike.clear()
            return
        self._alike |= {before: None, after: None}
        while len(self._alike) > MAX_ALIKE:
            del self._alike[next(iter(self._alike))]

    def covered(self, digest: bytes) -> bool:
        """Whether a group key that was made under the set with this digest shuts out all that the present set
        does: it is the same, or what came since is of authorities that were revoked already."""
        return digest == self.tree.digest() or digest in self._alike

    def copy(self) -> Self:
        """The same set, to try something with."""
        made = type(self)(self.root)
        made._held = self._held.copy()
        made._revoked, made._authorities = dict(self._revoked), dict(self._authorities)
        return made

    def about(self, node_id: NodeId, data: bytes) -> Sequence[Revocation | RootWord]:
        """Return, from the answer to a node that asked how it stands, the root's words and what is about that
        node. Raises TrustError only."""
        return [one for one in self.unpack(data) if isinstance(one, RootWord) or one.node_id == node_id]

    def digest(self) -> bytes:
        """SHA3-256, 32 bytes: equal for nodes that hold the same, in whatever order it came."""
        return self.tree.digest()

    def pack(self, ids: Iterable[bytes], known: Iterable[bytes] = ()) -> bytes:
        """The statements and words of these ids, as many as one answer takes; unknown ones are left out. The
        certificates whose SHA3-256 is ``known`` are left empty."""
        skip, found, size = frozenset(known), list[Revocation | RootWord](), 0
        certs = set[bytes]()
        for one in dict.fromkeys(ids):
            statement = self._held.get(one)
            if statement is None:
                continue
            size += SIGNATURE_BYTES + 128
            if isinstance(statement, RootWord):
                size += 18 * (len(statement.pardoned) + len(statement.cast_out))
            elif statement.authority_cert not in certs and _hash(statement.authority_cert) not in skip:
                certs.add(statement.authority_cert)
                size += len(statement.authority_cert)
            if found and size > MAX_PART:
                break
            found.append(statement)
        return _encode(found, skip)

    def known_certs(self, limit: int) -> tuple[bytes, ...]:
        """The SHA3-256 of the authorities' certificates that are known here."""
        return tuple(digest for _, _, digest in list(self._authorities.values())[:limit])

    def unpack(self, data: bytes) -> Sequence[Revocation | RootWord]:
        """Read what `pack` or `encode` wrote; nothing is verified yet. Raises TrustError only."""
        known = {digest: der for der, (_, _, digest) in self._authorities.items()}
        return _decode_untrusted(data, known)

    def standing(self, node_id: NodeId) -> bytes:
        """Return what that node should know of its standing, for anybody: the root's newest words, and the
        statement that puts it out. Empty if there is neither."""
        revoked = self._revoked.get(node_id)
        told, words = list[Revocation](), list[RootWord]()
        if revoked is not None and isinstance(revoked.statement, Revocation):
            told = [revoked.statement]
            words = [word for word in [self._held.words.get(revoked.statement.after)] if word is not None]
        room = MAX_STANDING - 32_768  # for that statement, its certificate and the word that it names
        words += [word for word in self._newest(room) if word not in words]
        return _encode([*words, *told]) if words or told else b""

    def plea(self) -> bytes:
        """The root's newest words, as a node shows them to those who take it for revoked. Empty for none."""
        words = self._newest(MAX_PLEA)
        return _encode(words) if words else b""

    def encoder(self) -> Callable[[], bytes]:
        """`encode` of what is held now, to be called in a thread: a full set is 400 MB."""
        words, held = list(self._held.words.values()), list(self)
        return lambda: _encode([*words, *held])

    def encode(self, limit: int | None = None) -> bytes:
        """Return all that is held, in the order it came, for the state directory. With a ``limit`` in bytes,
        for a joiner: the root's words, the revocations of authorities, and the newest others that have
        room."""
        kept, authorities = list(self._held), self._held.signers
        if limit is not None:
            size = SIGNATURE_BYTES + 128
            room = max(0, limit - size * len(self._held.words) - 8_192 * len(authorities)) // size
            first = [held for held in kept if held.statement.node_id in authorities][-room or len(kept) :]
            chosen = {held.id for held in first}
            others = [held for held in kept if held.id not in chosen]
            left = room - len(first)
            chosen |= {held.id for held in (others[-left:] if left > 0 else ())}
            kept = [held for held in kept if held.id in chosen]
        return _encode([*self._held.words.values(), *(held.statement for held in kept)])

    @classmethod
    def decode(cls, data: bytes, root: x509.Certificate, now: float) -> Self:
        """Read what `encode` wrote, verifying each entry. Raises TrustError."""
        revocations = cls(root)
        came = _decode_untrusted(data, {})
        revocations.take([one for one in came if isinstance(one, RootWord)], now)
        for one in came:  # one after the other: their order says which of them count
            if not isinstance(one, RootWord):
                revocations.add(one, max(now, one.at))  # it was taken in once, by a clock that was right
        return revocations

    def _authority(self, one: Revocation, now: float) -> tuple[MLDSA65PublicKey, NodeId, bytes]:
        """The signer's key, node and certificate hash. Raises TrustError where the signer is no authority."""
        der = one.authority_cert
        if der not in self._authorities:
            self._authorities[der] = verify_authority(self.root, der, now), _signer(der), _hash(der)
        return self._authorities[der]

    def _verify(self, one: Revocation, now: float) -> Held:
        key, signer, _ = self._authority(one, now)
        if one.at > now + EARLY:
            raise TrustError("the revocation is dated ahead of its time")
        try:
            key.verify(one.signature, _signed(one.node_id, one.at, one.after, one.origin), CONTEXT)
        except (InvalidSignature, ValueError) as error:
            raise TrustError("the revocation's signature is wrong") from error
        return Held(one, signer, one.id)

    def _hold(self, held: Held) -> bool:
        """Keep a verified statement. Return False where all have to be judged again."""
        change = self._held.hold(held)
        if change is None:
            return True
        if change.place is not None:
            return False
        self._count(held)
        gone = None if change.room is None else change.room.statement
        counted = None if gone is None else self._revoked.get(NodeId(gone.node_id))
        return counted is None or counted.statement is not gone

    def _judge(self) -> None:
        """Compute anew who is revoked."""
        self._revoked = {}
        for node, word in self._held.cast_out():
            self._revoked[node] = Revoked(word.order.number, word)
        count = self._count
        for held in self._held:
            count(held)

    def _count(self, held: Held) -> None:
        one, revoked = held.statement, self._revoked
        if held.signer in revoked:
            return
        node_id = NodeId(one.node_id)
        before = revoked.get(node_id)
        if before is None or one.at < before.at:
            revoked[node_id] = Revoked(one.at, one)

    def _newest(self, room: int) -> list[RootWord]:
        chosen = []
        for word in self.words:
            room -= SIGNATURE_BYTES + 64 + 18 * (len(word.pardoned) + len(word.cast_out))
            if room < 0:
                break
            chosen.append(word)
        return chosen
