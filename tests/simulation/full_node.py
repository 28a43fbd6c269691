# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's process in `full_sim`: the real protocol code, wired as the modules of nursery/ wire it.

Real: `Gossip` with its envelope and membership, `Keyring` and group keys signed by an authority, `Roster`,
`Revocations`, anti-entropy and all that is asked over channels (`asking`, sealed by `channel.Channel` under
the session of a finished handshake), `Links` with `Newcomer` for whoever joins. Modelled: sockets, disks (of
bytes that the real code encodes and reads back), WireGuard, and the invites' book.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh import antientropy, asking, control
from phantommesh.envelope import FORMAT, REQUEST, Envelope, EnvelopeError
from phantommesh.errors import PhantomMeshError
from phantommesh.gossip import AskKeys, Datagram, Gossip
from phantommesh.gossip import Effect as GossipEffect
from phantommesh.groupkey import (
    NO_KEY,
    Keyring,
    Turn,
    encode_keys,
    gossip_digest,
    make_group_key,
    next_epoch,
    take_keys,
)
from phantommesh.identity import NodeId, node_id_of
from phantommesh.issuing import choose_ip4, make_csr, parse_csr_untrusted
from phantommesh.link.effects import Alarm, Enrolment, Install, Opened, PeerAuth, Send, Sign
from phantommesh.link.effects import Effect as LinkEffect
from phantommesh.link.machine import Links
from phantommesh.membership.effects import Changed, FetchRecord, Persist, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import EVENT_SIZE
from phantommesh.membership.table import EMPTY, Snapshot
from phantommesh.nursery.calling import STANDING_ASKED, STANDING_FIRST, STANDING_MAX
from phantommesh.nursery.gossip import (
    ASK_QUEUE,
    ASKERS,
    FETCHERS,
    QUIET,
    SYNC_QUEUE,
    SYNCERS,
)
from phantommesh.nursery.node import REFRESH
from phantommesh.nursery.own import AGAIN
from phantommesh.nursery.streams import Session, Sessions
from phantommesh.records import HASH_BYTES, Entry, Roster, SignedRecord, settle, sign_record
from phantommesh.revocation import Revocation, Revocations, revoke
from phantommesh.secret import Secret
from phantommesh.sizes import DIMENSIONS
from phantommesh.trust import Role, TrustError, authority_node, verify_chain
from phantommesh.wire import Address
from tests.simulation.full_parts import ADMISSION, addresses, plain_record, sharing, wg_keys

if TYPE_CHECKING:
    from tests.simulation.full_sim import Machine, Simulation


class Ask(NamedTuple):
    """A task wants this conversation held with a member; it is sent the result, or None where it failed."""

    member: NodeId
    talk: asking.Talk[Any]


Task = Generator[Ask | asking.Pause | asking.CallUnlinked, object, None]


class Process:
    """What runs on a `Machine` until it crashes. ``linked`` are the members that links are kept with; None:
    with all, as a real node does."""

    def __init__(self, sim: Simulation, machine: Machine, *, shared: tuple[Roster, Snapshot] | None) -> None:
        self.sim, self.machine, self.me = sim, machine, machine.identity.node_id
        self.life = machine.life
        self.rng = Random(sim.rng.getrandbits(64))
        disk, root = machine.disk, sim.mesh.root
        self.revocations = Revocations(root)
        if "revocations" in disk:
            self.revocations = Revocations.decode(disk["revocations"], root, self.wall)
        known = EMPTY
        if shared is not None:
            self.roster, known = sharing(shared[0], root, self.revocations), shared[1]
        elif "roster" in disk:
            self.roster = Roster.decode_untrusted(disk["roster"], root, self.revocations, self.wall)
        else:
            self.roster = Roster(root, self.revocations)
        if shared is None and "members" in disk:
            data = disk["members"]
            claims = (data[i : i + EVENT_SIZE] for i in range(0, len(data), EVENT_SIZE))
            known = Snapshot(c for c in claims if self.roster.get(NodeId(c[:16])) is not None)
        self.ring, self.turn = Keyring(), Turn()
        if "keyring" in disk:
            self.ring.restore(disk["keyring"], self.now)
        self.sessions = Sessions()
        self.linked: set[bytes] | None = set() if sim.large else None
        me = self.roster.get(self.me)
        if me is not None and me.signed.node_cert == machine.node_cert:
            self.member = me.member
        else:
            self.member = verify_chain(root, machine.authority_cert, machine.node_cert, self.wall)
        self.fetching = asking.Fetching()
        self.busy = {"fetch": 0, "sync": 0, "ask": 0}
        self.to_sync: list[bytes | Address] = []
        self.to_ask: list[AskKeys] = []
        self.alarms: list[tuple[float, Alarm]] = []
        self.enrolled: dict[bytes, NodeId] = {}  # by invite, who used it
        self._spread_new = False
        self.authorities: list[NodeId] = []
        self._renewing = False
        self._renew_after = self._standing_at = self._refreshed = self.now
        self._standing_pause = STANDING_FIRST
        machine.generation = max(machine.generation + 1, int(self.wall))
        self.told: dict[NodeId, bytes] = {} if me is None else {self.me: me.hash}
        if shared is not None:
            self.told = {entry.member.node_id: entry.hash for entry in shared[0]}
        self.membership = Membership(
            node=self.me, generation=machine.generation + machine.leap,
            record_seq=0 if me is None else me.record.seq,
            record_hash=bytes(16) if me is None else me.hash, rng=Random(self.rng.getrandbits(64)),
            now=self.now, params=sim.params, known=known,
        )  # fmt: skip
        self.membership._merging._synced = shared is not None  # a mesh that has long been running
        envelope = Envelope(
            self.me, self.ring, start=machine.generation, revoked=self.revocations, digest=self.digest,
            at_home=lambda sender, source: source in self.where(sender),
        )  # fmt: skip
        self.requests = Envelope(
            self.me, self.ring, start=machine.generation, revoked=self.revocations, digest=self.digest,
            label=REQUEST,
        )  # fmt: skip
        self.gossip = Gossip(
            self.membership, envelope, where=self.where, digest=self.digest, in_use=self.in_use
        )
        enrolment = None
        if machine.authority is not None:
            enrolment = Enrolment(sim.mesh.described.root_hash, machine.identity.spki, self.find_invite)
        self.links = Links(
            node_id=self.me, wg_keys=wg_keys(machine.identity), admission=ADMISSION, kem=sim.kem,
            random=self.rng.randbytes, now=self.now, enrolment=enrolment,
        )  # fmt: skip

    def start(self) -> None:
        """Tell the parts of each other (`Node.serve`)."""
        self.publish()
        self.peers_changed()

    # Clocks, and what the parts ask of each other.

    @property
    def now(self) -> float:
        """The node's monotonic clock."""
        return self.sim.now + self.machine.offset

    @property
    def wall(self) -> float:
        """The node's idea of unix time."""
        return self.sim.wall + self.machine.wall_offset

    @property
    def deadline(self) -> float:
        """When `tick` is due, in the simulation's time."""
        due = min(self.gossip.deadline, self.links.deadline if self.links._peers else float("inf"))
        return due - self.machine.offset

    @property
    def revoked(self) -> bool:
        """Whether this node knows that it was revoked."""
        return self.me in self.revocations

    def digest(self) -> bytes:
        """See `groupkey.gossip_digest`."""
        return gossip_digest(self.revocations, self.ring)

    def in_use(self, key_id: bytes) -> None:
        """A member sends with this key."""
        if self.ring.promote(key_id, self.now):
            self.save("keyring")

    def where(self, node_id: NodeId) -> tuple[Address, ...]:
        """The addresses in a member's record."""
        entry = self.roster.get(node_id)
        return () if entry is None else addresses(entry.record.control)

    def save(self, *names: str) -> None:
        """Write some files, a little later."""
        self.sim.later(0.005, lambda: self.write(*names) if self.machine.life == self.life else None)

    def write(self, *names: str) -> None:
        """Write some files now."""
        if self.sim.large:
            return  # the process's own objects are what is kept
        disk = self.machine.disk
        for name in names:
            match name:
                case "roster":
                    disk[name] = self.roster.encode()
                case "revocations":
                    disk[name] = self.revocations.encode()
                case "keyring":
                    disk[name] = self.ring.encode()
                case "members":
                    disk[name] = b"".join(self.membership.snapshot())

    # Datagrams and timers.

    def receive(self, datagram: bytes, source: Address) -> None:
        """What comes to the control port."""
        if datagram[0] == FORMAT:
            self.carry_gossip(self.gossip.receive(datagram, source, self.now))
        else:
            self.carry_links(self.links.receive(datagram, source, self.now))

    def tick(self) -> None:
        """Do what is due."""
        now = self.now + 1e-9
        if now >= self.gossip.deadline:
            self.carry_gossip(self.gossip.tick(now))
        if self.links._peers and now >= self.links.deadline:
            self.carry_links(self.links.tick(now))

    def carry_gossip(self, wanted: Sequence[GossipEffect]) -> None:
        """`GossipDriver._carry_out`."""
        for effect in wanted:
            match effect:
                case Datagram(data, to):
                    self.sim.transmit(self.machine, data, to)
                case Changed():
                    self.sim.changed(self.machine, effect)
                case FetchRecord():
                    if self.fetching.want(effect, self.now):
                        self.sim.later(0.0, self.pump)
                case Sync(peer):
                    if len(self.to_sync) < SYNC_QUEUE:
                        self.to_sync.append(peer)
                        self.sim.later(0.0, self.pump)
                case AskKeys():
                    if len(self.to_ask) < ASK_QUEUE:
                        self.to_ask.append(effect)
                        self.sim.later(0.0, self.pump)
                case Persist(generation):
                    self.machine.leap = generation - self.machine.generation

    def carry_links(self, wanted: Sequence[LinkEffect]) -> None:
        """`LinkDriver.carry_out`."""
        for effect in wanted:
            match effect:
                case Send(datagram, destination):
                    self.sim.transmit(self.machine, datagram, destination)
                case Sign(token, request):
                    signature = self.machine.identity.sign(request.data, request.context)
                    self.sim.at_process(self, 0.002, lambda t=token, s=signature: self._signed(t, s))  # type: ignore[misc]
                case Install(peer):
                    self.sim.at_process(self, 0.003, lambda p=peer: self.reconcile(p))  # type: ignore[misc]
                case Opened():
                    self.sessions.add(Session.of(effect))
                case Alarm():
                    self.alarms.append((self.sim.now, effect))

    def _signed(self, token: bytes, signature: bytes) -> None:
        self.carry_links(self.links.signed(token, signature, self.now))

    # Roster, links, interfaces (`Node._peers_changed`, `RosterKeeper`, `GossipDriver.roster_changed`).

    def peers_changed(self) -> None:
        """The roster, or the revocations, or the time, changed who the peers are."""
        now, wall, everyone = self.now, self.wall, list(self.roster)
        valid = [entry for entry in everyone if entry.valid(wall)]
        entries = [] if self.revoked else [entry for entry in valid if entry.member.node_id != self.me]
        if not self.revoked:
            self.sessions.retain({entry.member.node_id for entry in entries})
        self.set_links(entries)
        for entry in valid:
            node_id = entry.member.node_id
            if self.told.get(node_id) == entry.hash:
                continue
            self.told[node_id] = entry.hash
            self.fetching.came(entry.hash)
            if node_id == self.me:
                effects = self.membership.publish(entry.record.seq, entry.hash, now)
            else:
                effects = self.membership.verified(
                    node_id, entry.record.seq, entry.hash, now, spread=self._spread_new
                )
            self.carry_gossip(self.gossip.seal(effects, now))
        for node_id in [n for n in self.told if n != self.me and n in self.revocations]:
            del self.told[node_id]
            self.carry_gossip(self.gossip.seal(self.membership.expel(node_id, now), now))
        self._spread_new = True
        self.gossip.forget(set(self.told))
        self.authorities = [e.member.node_id for e in everyone if e.member.role is Role.AUTHORITY]
        self.membership.set_seeds(
            address for node_id in self.authorities if node_id != self.me for address in self.where(node_id)
        )

    def set_links(self, entries: Sequence[Entry]) -> None:
        """Keep links and interfaces with these members, those that are wanted."""
        peers: dict[bytes, PeerAuth] = {}
        for entry in entries:
            member, found = entry.member, addresses(entry.record.control)
            if self.linked is None or member.node_id in self.linked:
                until = self.now + member.not_after - self.wall
                peers[member.node_id] = PeerAuth(
                    member.node_id, member.public_key, until, entry.record.wg_keys, found
                )
        self.carry_links(self.links.set_peers(peers, self.now))
        kernel, left_out = self.machine.kernel, self.disputed()
        kernel.keep(peer for peer in peers if peer not in left_out)
        for peer in peers:
            self.reconcile(peer)

    def disputed(self) -> set[NodeId]:
        """`Node._disputed`: who is kept out of the interfaces."""
        disputes = [d for d in self.roster.disputes(self.wall) if d.over != "name"]
        return {d.winner if d.loser == self.me else d.loser for d in disputes}

    def reconcile(self, peer: bytes) -> None:
        """Make one peer of the interfaces as desired, and report what they hold."""
        if peer not in self.links._peers:
            return
        kernel, wanted = self.machine.kernel, self.links.psks(peer)
        bitmap, seen = 0, list[float | None]([None] * DIMENSIONS)
        if peer not in self.disputed():
            kernel.set(peer, tuple(psk.reveal() for psk in wanted), self.links.dials(peer) != 0)
            held = kernel.psks[peer]
            bitmap = sum(1 << i for i in range(DIMENSIONS) if held[i] == wanted[i].reveal())
            seen = [
                None if moment is None else self.now - (self.wall - moment)
                for moment in kernel.handshakes[peer]
            ]
        self.carry_links(self.links.read_back(peer, bitmap, seen, self.now))

    def poll(self) -> None:
        """The reconciler's pass."""
        for peer in list(self.links._peers):
            self.reconcile(peer)

    def add(self, signed: SignedRecord) -> bool:
        """`RosterKeeper.add`."""
        if not self.roster.add(signed, self.wall):
            return False
        self.note_change()
        return True

    def take(self, records: Sequence[bytes]) -> int:
        """`RosterKeeper.take`."""
        came = 0
        for data in records:
            try:
                came += self.roster.add(SignedRecord.decode_untrusted(data), self.wall)
            except PhantomMeshError:
                self.sim.tally["record-refused"] += 1
        if came:
            self.note_change()
        return came

    def take_revocations(self, encoded: bytes) -> bool:
        """`RosterKeeper.take_revocations`."""
        if not self.revocations.take(encoded, self.wall):
            return False
        self.note_change()
        return True

    def note_change(self) -> None:
        """`RosterKeeper._note_change`."""
        self.save("revocations", "roster")
        self.peers_changed()

    # Our own record (`OwnRecord`).

    def publish(self, version: str | None = None) -> None:
        """Put our record into the roster if it says anything new."""
        machine, held = self.machine, self.roster.get(self.me)
        if self.revoked:
            return
        machine.version = machine.version if version is None else version
        seq = 1 if held is None else held.record.seq + 1
        record = plain_record(machine.identity, seq, machine.address, machine.version)
        said = None if held is None else msgspec.structs.replace(held.record, seq=seq)
        if held is not None and said == record and held.signed.node_cert == machine.node_cert:
            return
        try:
            self.add(sign_record(machine.identity, record, machine.node_cert, machine.authority_cert))
        except PhantomMeshError:
            self.sim.tally["own-record-refused"] += 1

    def disputes_own(self) -> bool:
        """Whether another member keeps our address or name."""
        return any(
            d.loser == self.me and d.over in ("address", "name") for d in self.roster.disputes(self.wall)
        )

    def renew(self) -> Task:
        """Get another certificate, without what another member keeps."""
        machine, wall = self.machine, self.wall
        try:
            if machine.authority is not None:
                name, ip4 = settle(self.roster, self.sim.mesh.described, self.member, wall)
                spki = machine.identity.spki
                machine.node_cert = machine.authority.issue(spki, name, self.member.role, ip4, wall)
                machine.authority_cert = machine.authority.der
            else:
                lost = [d for d in self.roster.disputes(wall) if d.loser == self.me]
                winner = self.roster.get(lost[0].winner) if lost else None
                evidence = b"" if winner is None else winner.signed.encode()
                for member in self.callable(()):
                    entry, mine = self.roster.get(member), self.roster.get(self.me)
                    if entry is None or mine is None or entry.member.role is not Role.AUTHORITY:
                        continue
                    csr = make_csr(machine.identity, self.member.name)
                    answer = yield Ask(member, _renew(mine.signed.encode(), csr, evidence))
                    if isinstance(answer, control.Renewed):
                        machine.node_cert, machine.authority_cert = answer.node_cert, answer.authority_cert
                        break
            self.member = verify_chain(
                self.sim.mesh.root, machine.authority_cert, machine.node_cert, self.wall
            )
            self.publish()
        finally:
            self._renewing = False

    # What others ask (`ControlServer`, `AuthorityDesk`).

    def serve(self, session: Session, request: control.Request) -> control.Answer:
        """Answer one request."""
        try:
            if isinstance(request, control.Enrol):
                return self.enrol(session, request)
            entry = self.roster.get(NodeId(session.peer))
            if entry is None or session.invite or entry.member.not_after < self.wall:
                raise TrustError("only a member may ask this")
            match request:
                case control.Renew():
                    return self.certify_again(entry, request)
                case control.Announce(record):
                    self.add(SignedRecord.decode_untrusted(record))
                    return control.Done()
                case control.AskKeys():
                    keys = encode_keys(self.ring.keys)
                    active = NO_KEY if self.ring.active is None else self.ring.active.id
                    return control.KeysAre(self.revocations.encode(), keys, active)
                case control.Compare(buckets):
                    return control.Differs(antientropy.differing(self.roster, buckets, self.wall))
                case control.Fetch(hashes):
                    return control.Records(tuple(antientropy.records(self.roster, hashes, self.wall)))
                case control.SyncOpen(opening):
                    answer, effects = self.membership.sync_answer(opening, self.now)
                    self.carry_gossip(self.gossip.seal(effects, self.now))
                    return control.SyncAnswer(answer)
                case control.SyncClose(rest):
                    effects = self.membership.sync_finish(rest, self.now)
                    self.carry_gossip(self.gossip.seal(effects, self.now))
                    return control.Done()
                case control.Turn() | control.Prove():
                    return control.Refused("no traffic is simulated, so there is nothing to prove")
        except PhantomMeshError as error:
            return control.Refused(str(error), error.fix)

    def answer_records(self, sealed: bytes, host: str) -> bytes:
        """`GossipDriver.answer_records`."""
        try:
            asked = self.requests.open(sealed, Address(host, 0, "tcp")).payload
        except EnvelopeError:
            return b""
        hashes = [asked[i : i + HASH_BYTES] for i in range(0, len(asked), HASH_BYTES)][: asking.MAX_UNLINKED]
        found = antientropy.records(self.roster, hashes, self.wall)
        return self.requests.seal_answer(sealed, control.encode(control.Records(tuple(found))))

    def take_unlinked(self, request: bytes, answer: bytes) -> None:
        """The end of `GossipDriver._fetch_unlinked`."""
        try:
            records = control.decode_answer_untrusted(self.requests.open_answer(request, answer))
        except (EnvelopeError, control.ControlError):
            return
        if isinstance(records, control.Records):
            self.take(records.records)

    def find_invite(self, invite: bytes, node_id: bytes) -> Secret | None:
        """The secret of an invite; it is good for one node."""
        if self.enrolled.get(invite, node_id) != node_id:
            return None
        return self.sim.invites.get(invite)

    def enrol(self, session: Session, request: control.Enrol) -> control.Answer:
        """`AuthorityDesk.enrol`, without its locks and threads."""
        machine, sim, wall = self.machine, self.sim, self.wall
        authority, (spki, name) = machine.authority, parse_csr_untrusted(request.csr)
        if authority is None or self.revoked or not session.invite or spki != session.spki:
            raise TrustError("not an enrolment")
        node_id = NodeId(session.peer)
        taken = {e.member.ip4 for e in self.roster if e.member.node_id != node_id}
        ip4 = choose_ip4(sim.mesh.described, node_id, taken)
        node_cert = authority.issue(spki, name, Role.NODE, ip4, wall)
        self.add(SignedRecord(request.record, request.signature, node_cert, authority.der))
        self.write("roster", "revocations")
        self.enrolled[session.invite] = node_id
        self.make_key()
        return control.Enrolled(
            node_cert, authority.der, sim.mesh.root.public_bytes(Encoding.DER), ADMISSION.reveal(),
            self.roster.encode(), self.revocations.encode(), encode_keys(self.ring.keys),
            NO_KEY if self.ring.active is None else self.ring.active.id,
        )  # fmt: skip

    def certify_again(self, entry: Entry, request: control.Renew) -> control.Renewed:
        """`AuthorityDesk.renew`."""
        authority, member = self.machine.authority, entry.member
        spki, _ = parse_csr_untrusted(request.csr)
        if authority is None or self.revoked or node_id_of(spki) != member.node_id:
            raise TrustError("not an authority, or another's key")
        if request.evidence:
            self.add(SignedRecord.decode_untrusted(request.evidence))
        name, ip4 = settle(self.roster, self.sim.mesh.described, member, self.wall)
        return control.Renewed(authority.issue(spki, name, member.role, ip4, self.wall), authority.der)

    def revoke(self, node_id: NodeId) -> Revocation:
        """`AuthorityDesk.revoke`."""
        assert self.machine.authority is not None
        made = revoke(self.machine.authority, node_id, self.wall)
        if self.revocations.add(made, self.wall):
            self.note_change()
        self.write("revocations", "roster")
        self.make_key()
        return made

    def make_key(self) -> None:
        """`GroupKeys.rotate`: the key that is due, on disk before anybody hears of it."""
        authority = self.machine.authority
        epoch = next_epoch(self.ring, self.revocations, self.wall)
        if authority is None or epoch is None or self.revoked:
            return
        key = make_group_key(authority, epoch, self.revocations, self.wall, self.rng.randbytes)
        self.machine.disk["keyring"] = self.ring.encode(key)
        self.ring.install(key, self.now)

    # What is asked of others (`GossipDriver`'s services).

    def callable(self, first: Sequence[bytes]) -> list[NodeId]:
        """`Caller.callable`. In a large mesh those that are named, and the authorities, can all be called."""
        if self.sim.large and first:
            named = dict.fromkeys(NodeId(node_id) for node_id in (*first, *self.authorities))
            return [n for n in named if n != self.me and self.roster.get(n) is not None]
        ordered = asking.whom(self.roster, self.me, first, self.rng)
        return [m for m in ordered if self.sim.large or self.sessions.newest(m) is not None]

    def member_at(self, peer: bytes | Address) -> NodeId | None:
        """`GossipDriver._member_at`."""
        if not isinstance(peer, Address):
            return NodeId(peer)
        return next((node_id for node_id in self.told if peer in self.where(node_id)), None)

    def pump(self) -> None:
        """Start what waits, as far as there are workers for it."""
        if self.machine.life != self.life:
            return
        while self.busy["fetch"] < FETCHERS and (batch := self.fetching.batch()):
            self.sim.spawn(self, "fetch", self._fetch(batch))
        while self.busy["sync"] < SYNCERS and self.to_sync:
            self.sim.spawn(self, "sync", self._sync(self.to_sync.pop(0)))
        while self.busy["ask"] < ASKERS and self.to_ask:
            self.sim.spawn(self, "ask", self._ask(self.to_ask.pop(0)))

    def _fetch(self, batch: Sequence[FetchRecord]) -> Task:
        looking = asking.look_for(
            batch, self.roster, member_at=self.member_at, callable=self.callable, where=self.where
        )
        try:
            for step in looking:
                yield Ask(*step) if isinstance(step, asking.Call) else step
            self.sim.tally["record-not-found"] += len(asking.missing(batch, self.roster))
        finally:
            self.fetching.over(batch)

    def _sync(self, peer: bytes | Address) -> Task:
        member = self.member_at(peer)
        if member is None or (not self.sim.large and self.sessions.newest(member) is None):
            self.sim.tally["sync-unlinked"] += 1
            return

        def close(answer: bytes) -> bytes:
            rest, effects = self.membership.sync_close(answer, self.now)
            self.carry_gossip(self.gossip.seal(effects, self.now))
            return rest

        yield Ask(
            member,
            asking.compare(
                lambda: self.membership.sync_open(self.now), close, self.roster, lambda: self.wall
            ),
        )
        self.sim.tally["syncs"] += 1

    def _ask(self, wanted: AskKeys) -> Task:
        if self.gossip.moot(wanted):
            return
        members = self.callable(()) if wanted.member is None else [wanted.member]
        if not members or (not self.sim.large and self.sessions.newest(members[0]) is None):
            return
        answer = yield Ask(members[0], asking.keys())
        if isinstance(answer, control.KeysAre):
            news = self.take_revocations(answer.revocations)
            news |= self.merge(answer.keys, answer.active_key)
            self.gossip.asked(wanted.digest, news=news)

    def merge(self, keys: bytes, active: bytes) -> bool:
        """`GroupKeys.merge`."""
        root, revocations = self.sim.mesh.root, self.revocations
        came, refused = take_keys(self.ring, keys, root, revocations, self.now, self.wall)
        self.sim.tally["key-refused"] += len(refused)
        self.in_use(active)
        if came:
            self.save("keyring")
        return came

    # Once a second.

    def housekeeping(self) -> None:
        """`GroupKeys.run`, `OwnRecord.renew`, `ask_standing`, saving, the reconciler's pass."""
        if self.ring.tick(self.now):
            self.save("keyring")
        if self.machine.authority is not None:
            due = next_epoch(self.ring, self.revocations, self.wall) is not None
            held = [e for n in self.authorities if (e := self.roster.get(n)) is not None]
            authorities = [e.member.node_id for e in held if e.valid(self.wall)]
            if self.turn.ours(due, self.me, authorities, self.now):
                self.make_key()
        if not self.sim.large:
            self.poll()
            self.save("members")
        if self.now >= self._refreshed + REFRESH:
            self._refreshed = self.now
            self.publish()
            self.peers_changed()
        if not self._renewing and not self.revoked and self.now >= self._renew_after:
            issuer = authority_node(self.machine.authority_cert)
            if self.disputes_own() or (issuer is not None and issuer in self.revocations):
                self._renew_after, self._renewing = self.now + AGAIN, True
                self.sim.spawn(self, "renew", self.renew())
        self._ask_standing()

    def _ask_standing(self) -> None:
        if self.revoked or self.now < self._standing_at:
            return
        if self.now - self.gossip.heard_at <= QUIET:
            self._standing_pause = STANDING_FIRST
        else:
            self._standing_pause = min(STANDING_MAX, self._standing_pause * 1.5)
            entries = [e for e in self.roster if e.member.node_id != self.me]
            for entry in self.rng.sample(entries, min(len(entries), STANDING_ASKED)):
                self.sim.ask_revoked(self, entry.member.node_id)
        self._standing_at = self.now + self._standing_pause * self.rng.uniform(0.75, 1.25)


def _renew(mine: bytes, csr: bytes, evidence: bytes) -> asking.Talk[Any]:
    yield control.Announce(mine)
    return (yield control.Renew(csr, evidence))
