# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's process in `full_sim`: the real protocol code, wired as the modules of nursery/ wire it.

Real: `Gossip` with its envelope and membership, `Keyring` and group keys signed by an authority, `Roster`,
`Revocations`, anti-entropy and all that is asked over channels (`asking`, sealed by `channel.Channel` under
the session of a finished handshake), `Links` with `Newcomer` for machines that join. Modelled: sockets, disks
(of bytes that the real code encodes and reads back), WireGuard, and the invites' book.

This module puts the parts together, and has the roster, the links and the group keys. `full_own` drives
`node.own` (the node's own record), `full_desk` drives `node.desk` and `node.serving` (its answers to others),
both by `full_working`; `full_asker` has its questions to others, `full_runs` its watch for copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from phantommesh.config.sections import ScatterSection, WireguardSection
from phantommesh.control.messages import Sighting
from phantommesh.control.sessions import Sessions
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.gossip.acquaintance import LastAddresses
from phantommesh.gossip.envelope import FORMAT, REQUEST, Envelope
from phantommesh.gossip.machine import AskKeys, Datagram, Gossip, Hinted
from phantommesh.gossip.machine import Effect as GossipEffect
from phantommesh.link.copies import Copies
from phantommesh.link.effects import Alarm, Enrolment, Install, Opened, Send, Sign
from phantommesh.link.effects import Effect as LinkEffect
from phantommesh.link.machine import Links
from phantommesh.membership.effects import Changed, FetchRecord, Persist, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import EVENT_SIZE
from phantommesh.membership.table import EMPTY, Snapshot
from phantommesh.node.groupkeys import Change, HeldKeys
from phantommesh.node.news import News, Take, agreement
from phantommesh.node.peers import Peers, generation_of
from phantommesh.node.whereabouts import Whereabouts, sighting
from phantommesh.node.wiring import Wiring
from phantommesh.nursery.node import REFRESH
from phantommesh.records.roster import Entry, Roster
from phantommesh.state import rosterlog
from phantommesh.trust.groupkey import make_group_key
from phantommesh.trust.identity import NodeId
from phantommesh.trust.meshsecret import MeshSecrets
from phantommesh.trust.revocations import Revocations
from tests.simulation.full_asker import Asker
from tests.simulation.full_carry import Carrying
from tests.simulation.full_desk import Desk
from tests.simulation.full_keeper import Keeper, at_once
from tests.simulation.full_own import OwnRecord
from tests.simulation.full_parts import ADMISSION, addresses, agree, own_side, sharing, wg_keys
from tests.simulation.full_runs import RunWatch

if TYPE_CHECKING:
    from tests.simulation.full_machines import Machine
    from tests.simulation.full_sim import Simulation


class Process:
    """A node's process, which runs on a `Machine` until it crashes. ``linked`` are the members that links are
    kept with; None: with all, as a real node does."""

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
            self.roster = rosterlog.decode(disk["roster"], root, self.revocations, self.wall).roster
        else:
            self.roster = Roster(root, self.revocations)
        if shared is None and "members" in disk:
            data = disk["members"]
            claims = (data[i : i + EVENT_SIZE] for i in range(0, len(data), EVENT_SIZE))
            known = Snapshot(c for c in claims if self.roster.get(NodeId(c[:16])) is not None)
        self.secrets = MeshSecrets.decode(disk.get("admission", ADMISSION.reveal()))
        self.keys = HeldKeys(self.me, root, self.revocations, self.secrets)
        if "keyring" in disk:
            self.keys.restore(disk["keyring"], self.now, self.wall)
        self.ring = self.keys.ring
        self.sessions = Sessions()
        self.whereabouts = Whereabouts(51_800)
        self.hints: list[tuple[float, str]] = []  # places at which members say it is, worth asking about
        self.keeper = Keeper(self)
        self.linked: set[bytes] | None = set() if sim.large else None
        me = self.roster.get(self.me)
        self.own, self.asker, self.desk = OwnRecord(self, me), Asker(self), Desk(self)
        self.received: Counter[NodeId] = Counter()  # bytes over the interfaces
        self.alarms: list[tuple[float, Alarm]] = []
        self._refreshed = self.now
        machine.generation = max(machine.generation + 1, int(self.wall))
        self.membership = Membership(
            node=self.me, generation=machine.generation + machine.leap,
            record_seq=0 if me is None else me.record.seq,
            record_hash=bytes(16) if me is None else me.hash, rng=Random(self.rng.getrandbits(64)),
            now=self.now, params=sim.params, known=known, agree=self._agree,
        )  # fmt: skip
        told = {} if me is None else {self.me: me.hash}
        if shared is not None:
            told = {entry.member.node_id: entry.hash for entry in shared[0]}
        self.lost = LastAddresses(Random(self.rng.getrandbits(64)))
        if "lastaddresses" in disk:
            self.lost.restore(disk["lastaddresses"])
        self.membership._merging._synced = shared is not None  # a mesh that has long been running
        envelope = Envelope(
            self.me, self.ring, start=machine.generation, revoked=self.revocations, digest=self.keys.digest,
        )  # fmt: skip
        self.requests = Envelope(
            self.me, self.ring, start=machine.generation, revoked=self.revocations, digest=self.keys.digest,
            label=REQUEST,
        )  # fmt: skip
        self.gossip = Gossip(
            self.membership, envelope, where=self.where, digest=self.keys.digest, in_use=self.in_use
        )
        self.news = News(
            self.me, self.roster, self.revocations, self.gossip, self.requests, told=told, where=self.where,
            reachable=self.asker.callable,
            linked=lambda member: sim.large or self.sessions.newest(member) is not None,
            carry_out=self.carry_gossip,
        )  # fmt: skip
        enrolment = None
        if machine.authority is not None:
            enrolment = Enrolment(
                sim.mesh.described.root_hash, machine.identity.spki, self.desk.find_invite,
                lambda node_id: self.where(NodeId(node_id)),
            )  # fmt: skip
        self.copies = Copies()
        self.runs = RunWatch(self)
        self.links = Links(
            node_id=self.me, wg_keys=wg_keys(machine.identity), kem=sim.kem,
            admission=self.secrets.newest, random=self.rng.randbytes, now=self.now, enrolment=enrolment,
            agree=partial(agree, machine.identity),
        )  # fmt: skip
        self.links.set_admission(self.secrets.current, self.secrets.replaced)
        self.carrying = Carrying(self)
        self.links.look_elsewhere(self.membership.heard_at)
        self.links.carry_by(self.carrying.ways)
        self.peers = Peers(
            self.me, self.links, WireguardSection(), ScatterSection(),
            where=lambda entry: addresses(entry.record.control),
        )  # fmt: skip
        self.wiring = Wiring(
            self.keeper, self.peers, self.links, self.copies, self.sessions, self.generation_of,
            lives=lambda peer, when: self.news.lives(peer, when, self.now),
        )  # fmt: skip

    def start(self) -> None:
        """Tell the parts of each other (`Node.serve`)."""
        self.own.start()
        self.peers_changed()
        self.runs.start()

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
        return self.keeper.is_revoked()

    def where(self, node_id: NodeId) -> tuple[Address, ...]:
        """The addresses in a member's record."""
        entry = self.roster.get(node_id)
        return () if entry is None else addresses(entry.record.control)

    def sight(self, node_id: NodeId) -> Sighting:
        """Where a member is seen from here: by gossip, as no WireGuard is simulated."""
        return sighting(self.gossip.seen(node_id, self.now), (), self.now, self.wall)

    def save(self, *names: str) -> None:
        """Write some files, a little later."""
        self.sim.later(0.005, lambda: self.write(*names) if self.machine.life == self.life else None)

    def write(self, *names: str) -> None:
        """Write some files now."""
        if self.sim.large:
            return  # the process's own objects stand for its disk
        disk = self.machine.disk
        for name in () if self.machine.disk_full else names:
            match name:
                case "roster":
                    disk[name] = rosterlog.encode(self.roster.in_order(revoked=True))
                case "revocations":
                    disk[name] = self.revocations.encode()
                case "keyring":
                    disk[name] = self.ring.encode()
                    disk["admission"] = self.secrets.encode()
                case "members":
                    disk[name] = b"".join(self.membership.snapshot())
                    disk["lastaddresses"] = self.lost.encode()

    # Datagrams and timers.

    def receive(self, datagram: bytes, source: Address) -> None:
        """Take a datagram that comes to the control port."""
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
                    if self.lost.heard(effect, self.where):
                        self.set_seeds()
                    self.wiring.changed(effect, self.now)
                    self.carrying.look()
                    self.sim.changed(self.machine, effect)
                case FetchRecord() | Sync() | AskKeys():
                    if self.news.wish(effect, self.now, self.wall):
                        self.sim.later(0.0, self.asker.pump)
                case Hinted(_, place):
                    if self.whereabouts.hinted(place, self.now):
                        self.hints.append((self.now, place))
                case Persist(generation):
                    self.machine.leap = generation - self.machine.generation

    def _agree(self, node: bytes, draw: int) -> bytes | None:
        return agreement(self.roster, node, draw, partial(agree, self.machine.identity))

    def carry_links(self, wanted: Sequence[LinkEffect]) -> None:
        """`LinkDriver.carry_out`."""
        for effect in wanted:
            match effect:
                case Send(datagram, destination):
                    if destination.transport == "via":
                        self.carrying.send(datagram, destination)
                    else:
                        self.sim.transmit(self.machine, datagram, destination)
                case Sign(token, request):
                    signature = self.machine.identity.sign(request.data, request.context)
                    self.sim.at_process(self, 0.002, lambda t=token, s=signature: self._signed(t, s))  # type: ignore[misc]
                case Install(peer):
                    self.peers.keyed(peer)
                    self.sim.at_process(self, 0.003, lambda p=peer: self.reconcile(p))  # type: ignore[misc]
                case Opened():
                    self.wiring.opened(effect, self.now)
                    self.carrying.look()
                case Alarm():
                    self.alarms.append((self.sim.now, effect))
                    self.wiring.alarmed(effect, self.now)

    def generation_of(self, peer: bytes) -> int | None:
        """How often a member has started, as gossip counts it."""
        return generation_of(self.membership, peer)

    def _signed(self, token: bytes, signature: bytes) -> None:
        self.carry_links(self.links.signed(token, signature, self.now))

    # Links and interfaces follow the roster (`Weaving`).

    def peers_changed(self) -> None:
        """Find out anew who the peers are: the roster, the revocations or the time may have changed it."""
        self.set_links()
        self.news.roster_changed(self.now, self.wall)
        self.set_seeds()
        self.carrying.look()

    def set_seeds(self) -> None:
        """Tell gossip the addresses at which the mesh is found again."""
        self.membership.set_seeds([*self.peers.seeds(), *self.lost.addresses()])

    def set_links(self) -> None:
        """Keep links and interfaces with those of the peers that are wanted."""
        now, wall, machine = self.now, self.wall, self.machine
        self.wiring.look(wall, self.linked)
        auths, effects = self.wiring.link(now, wall)
        self.carry_links(effects)
        self.peers.arrange(own_side(machine.identity, self.own.member, self.sim.mesh))
        machine.kernel.keep(self.peers.devices)
        for peer in auths:
            self.reconcile(peer)

    def reconcile(self, peer: bytes) -> None:
        """Make one peer of the interfaces as desired, and report what they hold."""
        entry = self.peers.get(peer)
        if entry is None:
            return
        kernel, devices, keys = self.machine.kernel, self.peers.devices, entry.record.wg_keys
        kernel.set(peer, keys, devices)
        actual = kernel.states(peer, keys, devices)
        self.carry_links(self.wiring.read_back(entry, actual, self.now, self.wall)[1])

    def poll(self) -> None:
        """The reconciler's pass."""
        for entry in list(self.peers.entries):
            assert self._follows(entry), "a link changed its keys without an Install"
            self.reconcile(entry.member.node_id)

    def _follows(self, entry: Entry) -> bool:
        """Whether the interfaces are to have what the link says. Only the `Install` of a peer changes it."""
        peer, keys = entry.member.node_id, self.peers.wg_keys_of(entry)
        psks, dials = self.links.psks(peer), self.links.dials(peer)
        held = [device.peers.get(key) for device, key in zip(self.peers.devices.values(), keys, strict=True)]
        return all(
            found is None or (found.psk == psks[i] and (found.endpoint is not None) == dials >> i & 1)
            for i, found in enumerate(held)
        )

    def take_told(self, told: Take) -> bool | None:
        """Take in a member's revocations and group keys; None where they cannot be read."""
        try:
            news = at_once(self.keeper.hearing(told.member, told.told.statements))
            return self.merge(told.told.keys.keys, told.told.keys.active_key) or news
        except PhantomMeshError:
            return None

    def note_change(self) -> None:
        """Roster or revocations have changed."""
        self.save("revocations", "roster")
        self.peers_changed()

    # Group keys.

    def in_use(self, key_id: bytes) -> None:
        """A member sends with this key."""
        self.note_keys(self.keys.in_use(key_id, self.now, self.wall))

    def note_keys(self, change: Change) -> None:
        """Save the keys, and tell the links, where they have changed."""
        if change.keys:
            self.save("keyring")
        if change.secrets:
            self.links.set_admission(self.secrets.current, self.secrets.replaced)

    def make_key(self) -> None:
        """Make the key that is due, on disk before anybody hears of it."""
        authority, epoch = self.machine.authority, self.keys.due(self.wall)
        if authority is None or epoch is None:
            return
        key = make_group_key(authority, epoch, self.revocations, self.wall, self.rng.randbytes)
        self.machine.disk["keyring"] = self.ring.encode(key)
        self.note_keys(self.keys.install(key, self.now, self.wall))

    def merge(self, keys: bytes, active: bytes) -> bool:
        """Take in the keys that a member gave out."""
        merged = self.keys.merge(keys, active, self.now, self.wall)
        self.sim.tally["key-refused"] += len(merged.refused)
        self.note_keys(merged.change)
        return merged.new

    # Once a second.

    def housekeeping(self) -> None:
        """`OwnRecord.renew`, `ask_standing`, the group keys, saving, the reconciler's pass."""
        if self.roster.waiting:
            self.keeper.let_in()
        self.note_keys(self.keys.tick(self.now, self.wall))
        if self.machine.authority is not None and self.keys.ours(self.roster, self.now, self.wall):
            self.make_key()
        if not self.sim.large:
            self.poll()
            self.save("members")
        if self.now >= self._refreshed + REFRESH:
            self._refreshed = self.now
            self.own.publish()
            self.peers_changed()
        self.copies.look(self.generation_of, self.now)
        self.note_suspicions()
        self.own.look()
        self.carrying.look()
        self.asker.ask_standing()

    def note_suspicions(self) -> None:
        """Say which identities seem to be in use on two machines (`Recorder.tell_copies`)."""
        for suspicion in self.copies.suspicions:
            self.sim.suspected.setdefault((self.machine.index, suspicion.node), suspicion)
