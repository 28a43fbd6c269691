# SPDX-License-Identifier: GPL-3.0-or-later
"""The roster while it changes: who keeps it on disk, who asks for it, who gives it out.

A node asks each authority it knows for the roster and waits there for the next change; an authority answers,
enrols newcomers and renews certificates. Gossip takes the place of the asking later.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from time import time

import structlog
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh import control, statedir
from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId, format_node_id, node_id_of
from phantommesh.invites import InviteEntry
from phantommesh.nodestate import NodeState
from phantommesh.nursery import streams
from phantommesh.records import Entry, SignedRecord, decode_records_untrusted
from phantommesh.revocation import Revocations
from phantommesh.statedir import StateError
from phantommesh.trust import Authority, Role, TrustError, choose_ip4, parse_csr_untrusted
from phantommesh.wire import Address

# Tuning.
ASK_WAIT = 25.0  # s an unchanged roster is waited for; below control.MAX_WAIT and streams.IDLE
RETRY_FIRST, RETRY_MAX = 0.2, 10.0  # s
WATCH = 1.0  # s between looks at who the authorities are
SAVE_AGAIN = 5.0  # s after the disk refused

log = structlog.get_logger("phantommesh.roster")


class RosterKeeper:
    """This node's roster. ``changed`` is called after every change, which is then also on its way to disk."""

    def __init__(self, node: NodeState, changed: Callable[[], None]) -> None:
        self.roster = node.roster
        self._node, self._changed = node, changed
        self._change = trio.Event()
        self._dirty = trio.Event()
        self._saving = trio.Lock()
        self._digest: bytes | None = None

    def add(self, signed: SignedRecord) -> bool:
        """Keep a record if it is newer. Raises TrustError or RecordError."""
        if not self.roster.add(signed, time()):
            return False
        self._note_change()
        return True

    def _note_change(self) -> None:
        self._digest = None
        self._change.set()
        self._change = trio.Event()
        self._dirty.set()
        self._changed()

    def digest(self) -> bytes:
        """The roster's digest, computed once a change: it reads every record."""
        if self._digest is None:
            self._digest = self.roster.digest()
        return self._digest

    async def wait_for_other(self, digest: bytes, seconds: float) -> bytes:
        """Return the roster's digest as soon as it differs, or after so many seconds."""
        with trio.move_on_after(seconds):
            while self.digest() == digest:
                await self._change.wait()
        return self.digest()

    async def merge(self, records: bytes, revocations: bytes) -> None:
        """Add what an authority gave out: first its revocations, then every record that is new here. One that
        does not hold is logged and left out. Raises TrustError or RecordError where nothing can be read."""
        node, now = self._node, time()
        given = decode_records_untrusted(records)
        revoked = [node.revocations.add(one, now) for one in Revocations.decode(revocations, node.root, now)]
        changed = any(revoked)
        held = {entry.signed.signature for entry in self.roster}
        try:
            for signed in given:
                if signed.signature in held:
                    continue
                await trio.lowlevel.checkpoint()  # each takes about a millisecond to verify
                try:
                    changed |= self.roster.add(signed, time())
                except PhantomMeshError as error:
                    log.warning("record refused", error=str(error))
        finally:
            if changed:  # once for all of them: everything that depends on the roster is computed anew
                self._note_change()

    async def save(self) -> None:
        """Write what has changed since the last time; it is on disk when this returns. Raises StateError."""
        async with self._saving:
            if not self._dirty.is_set():
                return
            self._dirty = trio.Event()
            try:
                for name, encoded in (
                    (statedir.REVOCATIONS, self._node.revocations.encode()),
                    (statedir.ROSTER, self.roster.encode()),
                ):
                    await trio.to_thread.run_sync(self._node.state.write, name, encoded)
            except BaseException:
                self._dirty.set()
                raise

    async def keep(self) -> None:
        """Write the roster whenever it has changed, until cancelled. A full disk does not end the node."""
        while True:
            await self._dirty.wait()
            try:
                await self.save()
            except StateError as error:
                log.error("roster not written", error=str(error), fix=error.fix)
                await trio.sleep(SAVE_AGAIN)


class ControlServer:
    """Answers what others ask over a channel."""

    def __init__(self, node: NodeState, keeper: RosterKeeper) -> None:
        self._node, self._keeper = node, keeper
        self._enrolling = trio.Lock()  # two newcomers must not be given one address

    async def serve(
        self, session: streams.Session, request: control.Request, source: Address
    ) -> control.Answer:
        """Answer one request. What an operator or a member did wrong is a `Refused` answer."""
        try:
            match request:
                case control.Enrol():
                    return await self._enrol(session, request)
                case control.Renew(csr):
                    return await self._renew(self._member(session), csr)
                case control.Announce(record):
                    self._member(session)
                    self._keeper.add(SignedRecord.decode_untrusted(record))
                    return control.Done()
                case control.AskRoster(digest, wait):
                    self._member(session)
                    now = await self._keeper.wait_for_other(digest, wait)
                    self._member(session)  # it may have been revoked meanwhile
                    if now == digest:
                        return control.RosterIs(now, b"", b"")
                    return control.RosterIs(
                        now, self._keeper.roster.encode(), self._node.revocations.encode()
                    )
        except PhantomMeshError as error:
            log.warning(
                "request refused", request=type(request).__name__, source=str(source), error=str(error)
            )
            return control.Refused(str(error), error.fix)

    def _member(self, session: streams.Session) -> Entry:
        entry = self._keeper.roster.get(NodeId(session.peer))
        if entry is None or session.invite:
            raise TrustError("only a member may ask this", fix="join the mesh first")
        if entry.member.not_after < time():
            raise TrustError(
                f"the certificate of {entry.member.name} has expired", fix="join again with a new invite"
            )
        return entry

    def _authority(self) -> Authority:
        if self._node.authority is None:
            raise TrustError("this node is not an authority", fix="ask one")
        return self._node.authority

    async def _enrol(self, session: streams.Session, request: control.Enrol) -> control.Answer:
        authority = self._authority()
        if not session.invite:
            raise TrustError(
                "an enrolment needs an invite", fix="use the line that `phantommesh invite` prints"
            )
        spki, name = await trio.to_thread.run_sync(parse_csr_untrusted, request.csr)
        node_id = NodeId(session.peer)
        if spki != session.spki:
            raise TrustError("the certificate request is for another key than the handshake's")
        async with self._enrolling:
            entry = await trio.to_thread.run_sync(self._check_invite, session.invite, node_id, name)
            others = [e.member for e in self._keeper.roster if e.member.node_id != node_id]
            taken = {member.ip4 for member in others}
            # An expired member has to join again, as a new node, and wants its name back.
            if any(member.name == name and member.not_after >= time() for member in others):
                raise TrustError(f"the mesh has a node named {name} already", fix="join with another --name")
            ip4 = choose_ip4(self._node.mesh, node_id, taken)
            issue = partial(authority.issue, spki, name, entry.role, ip4, time())
            node_cert = await trio.to_thread.run_sync(issue)
            signed = SignedRecord(request.record, request.signature, node_cert, authority.der)
            # Before the invite is spent, so that a bad record costs it nothing; on disk before the newcomer
            # hears of it, so that a crash cannot leave it with a mesh that does not know it.
            self._keeper.add(SignedRecord.decode_untrusted(signed.encode()))
            await self._keeper.save()
            await trio.to_thread.run_sync(self._node.invites.consume, session.invite, node_id, time())
        log.info(
            "node enrolled", name=name, node_id=format_node_id(node_id), role=entry.role.value, ip4=str(ip4)
        )
        return control.Enrolled(
            node_cert=node_cert,
            authority_cert=authority.der,
            root_cert=self._node.root.public_bytes(Encoding.DER),
            admission=self._node.admission_key.reveal(),
            roster=self._keeper.roster.encode(),
            revocations=self._node.revocations.encode(),
        )

    def _check_invite(self, invite: bytes, node_id: NodeId, name: str) -> InviteEntry:
        entry = self._node.invites.find(invite, time(), node_id)
        if entry.name is not None and entry.name != name:
            raise TrustError(
                f"the invite is for a node named {entry.name}", fix=f"join with --name {entry.name}"
            )
        if entry.role is Role.AUTHORITY:
            raise TrustError("a second authority cannot be enrolled yet", fix="invite it as a node or relay")
        return entry

    async def _renew(self, entry: Entry, csr: bytes) -> control.Renewed:
        authority = self._authority()
        spki, _ = await trio.to_thread.run_sync(parse_csr_untrusted, csr)
        member = entry.member
        if node_id_of(spki) != member.node_id:
            raise TrustError("a certificate is renewed for its own key only")
        issue = partial(authority.issue, spki, member.name, member.role, member.ip4, time())
        node_cert = await trio.to_thread.run_sync(issue)
        log.info("certificate renewed", name=member.name)
        return control.Renewed(node_cert, authority.der)


class RosterClient:
    """Keeps one channel to each authority, announces this node's record there and follows the roster."""

    def __init__(self, node: NodeState, keeper: RosterKeeper, sessions: streams.Sessions) -> None:
        self._node, self._keeper, self._sessions = node, keeper, sessions
        self._mine = node.identity.node_id

    async def run(self) -> None:
        """Follow every authority in the roster, until cancelled."""
        followed: set[NodeId] = set()
        async with trio.open_nursery() as nursery:
            while True:
                for entry in self._keeper.roster:
                    member = entry.member
                    if member.role is Role.AUTHORITY and member.node_id not in followed | {self._mine}:
                        followed.add(member.node_id)
                        nursery.start_soon(self._follow, member.node_id)
                await trio.sleep(WATCH)

    async def _follow(self, authority: NodeId) -> None:
        pause = RETRY_FIRST
        while True:
            session = self._sessions.newest(authority)
            entry = self._keeper.roster.get(authority)
            if session is not None and entry is not None:
                for endpoint in entry.record.control:
                    try:
                        async with streams.connect(*parse_endpoint(endpoint)) as framed:
                            client = await streams.Client.open(framed, session)
                            pause = RETRY_FIRST
                            await self._converse(client)
                    except streams.StreamError as error:
                        log.debug("authority unreachable", endpoint=endpoint, error=str(error))
                pause = min(RETRY_MAX, pause * 2)
            await trio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311  # spreads retries, keys nothing

    async def _converse(self, client: streams.Client) -> None:
        announced, digest = b"", bytes(32)
        while True:
            mine = self._keeper.roster.get(self._mine)
            if mine is not None and mine.signed.signature != announced:
                told = await client.ask(control.Announce(mine.signed.encode()))
                announced = mine.signed.signature
                if isinstance(told, control.Refused):
                    log.warning("an authority refused our record", error=told.message, fix=told.fix)
            answer = await client.ask(control.AskRoster(digest, 0.0 if digest == bytes(32) else ASK_WAIT))
            match answer:
                case control.RosterIs(digest=theirs, roster=records, revocations=revoked):
                    digest = theirs
                    if records:
                        try:
                            await self._keeper.merge(records, revoked)
                        except PhantomMeshError as error:
                            raise streams.StreamError(f"the roster is not usable: {error}") from error
                case control.Refused(message):
                    raise streams.StreamError(message)
                case _:
                    raise streams.StreamError("not an answer to a roster request")

    async def renew(self, csr: bytes) -> control.Renewed:
        """Ask the authorities for a new certificate, one after the other. Raises `TrustError`."""
        reasons = []
        for entry in self._keeper.roster:
            session = self._sessions.newest(entry.member.node_id)
            if entry.member.role is not Role.AUTHORITY or session is None:
                continue
            for endpoint in entry.record.control:
                try:
                    with trio.fail_after(ASK_WAIT):
                        async with streams.connect(*parse_endpoint(endpoint)) as framed:
                            answer = await (await streams.Client.open(framed, session)).ask(
                                control.Renew(csr)
                            )
                except (streams.StreamError, trio.TooSlowError) as error:
                    reasons.append(f"{endpoint}: {error}")
                    continue
                if isinstance(answer, control.Renewed):
                    return answer
                reasons.append(
                    answer.message if isinstance(answer, control.Refused) else "no certificate in the answer"
                )
        raise TrustError(
            "no authority renewed the certificate: " + ("; ".join(reasons) or "there is no link to any yet"),
            fix="start an authority, and check that its control port is open for TCP from here",
        )
