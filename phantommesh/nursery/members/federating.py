# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives `node.federation` its disk, its channels to gateways of other meshes, and a thread to sign in."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Generator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv6Network
from time import time
from typing import Any, TypeVar

import structlog
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.control import asking, messages, pactmessages
from phantommesh.endpoint import Address, format_endpoint, parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.link.effects import Enrolment
from phantommesh.node.federation import Asked, Federation, door_of
from phantommesh.node.pactmaking import (
    Draft,
    Drafts,
    Offer,
    decode_kept,
    encode_kept,
    make_terms,
    networks_of,
)
from phantommesh.node.peers import Visitor
from phantommesh.node.steps import Party
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.roster import RosterKeeper, in_turns
from phantommesh.nursery.keeping.saver import Patience, Saver
from phantommesh.nursery.members.enrolment import shake_hands
from phantommesh.nursery.names.resolve import find_all
from phantommesh.nursery.sockets import channels, framing
from phantommesh.nursery.unexpected import left_out
from phantommesh.overlay import guard
from phantommesh.overlay.guard import Visited
from phantommesh.rates import Bucket
from phantommesh.records.record import callable_at
from phantommesh.secret import Secret
from phantommesh.state import directory
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import Member, TrustError, describe_mesh, load_root
from phantommesh.trust.federation import MAX_ENDPOINTS, FederationInvite, Half, Ports, Terms, sign
from phantommesh.trust.identity import NodeId
from phantommesh.trust.issuing import Authority
from phantommesh.trust.pacts import agree

# Tuning.
PATIENCE: float = 20.0  # s that a question waits for news; less than `framing.IDLE`
AGAIN_FIRST, AGAIN_MOST = 0.5, 20.0  # s until a gateway that does not answer is tried again
EXCHANGE: float = 30.0  # s that the exchange of halves may take at one address
LOOK: float = 5.0  # s between looks at whether time alone has put a pact to rest
# Questions to one gateway, a second and at once: it may answer each at once, and have news each time.
ASK_RATE, ASK_BURST = 1.0, 10.0

BROKEN = "what a gateway of another mesh said was left out after an unexpected error"

T = TypeVar("T")

_RNG = random.Random()  # noqa: S311  # spreads timers, keys nothing

log = structlog.get_logger("phantommesh.federation")


class Federating:
    """The pacts of one node. ``own`` is what its certificate says; ``may`` whether somebody may be spoken to
    at an address; ``changed`` is called when who may link with it may have changed; ``guarded`` gives the
    networks of other meshes that the guard keeps to what is allowed: nobody of another is a visitor.
    ``problems`` says why a gateway does not answer."""

    def __init__(
        self,
        node: NodeState,
        keeper: RosterKeeper,
        *,
        own: Callable[[], Member],
        may: Callable[[bytes | None, str], bool],
        changed: Callable[[], None],
        guarded: Callable[[], Container[IPv6Network]],
    ) -> None:
        self.guarded = guarded
        self.federation = Federation(
            node.identity.node_id, node.root, node.roster, node.revocations, moment,
            authority=node.authority is not None,
        )  # fmt: skip
        self.drafts = Drafts()
        self.problems: dict[Asked, str] = {}
        self.dropped = Counter[str]()
        self.disk = Patience(log, "pacts")
        self._node, self._keeper, self._own, self._may, self._changed = node, keeper, own, may, changed
        self.visitors = list[Visitor]()
        self.networks: tuple[IPv6Network, ...] = ()
        self.former: tuple[IPv6Network, ...] = ()  # those that an earlier run may have closed
        self._in_force = frozenset[bytes]()  # at the last look
        self._saver, self._news, self._looked = Saver(self._write), Bell(), Bell()
        self._restore()
        self.federation.look()

    def _restore(self) -> None:
        if not self._node.pacts:
            return
        try:
            bundles, drafts = decode_kept(self._node.pacts)
            self.former = networks_of(self._node.pacts)
        except TrustError as error:
            path = str(self._node.state.path / directory.PACTS)
            log.error(
                "the pacts' file is damaged: other members give the pacts again", file=path, error=str(error)
            )
            return
        self.federation.take(bundles, kept=True)
        self.drafts = Drafts(drafts)

    # For the node's other parts.

    def look(self) -> list[Visitor]:
        """The time, the roster, a revocation or a pact may have changed: return who of other meshes there is
        a pact with now."""
        self.federation.look()
        guarded, found = self.guarded(), self.federation.visitors(self._own())
        self.visitors = [visitor for visitor in found if visitor.mesh.network6 in guarded]
        self.networks = self.federation.networks(self._own())
        self._in_force = self._those_in_force()
        self._news.ring()
        self._looked.ring()
        return self.visitors

    def _those_in_force(self) -> frozenset[bytes]:
        return frozenset(pact.ours.pact for pact in self.federation.in_force())

    def visited(self) -> Visited:
        """The same for the guard: the networks of other meshes, and who of them may send what here."""
        found = (
            guard.Visitor(one.entry.member.ip6, _ranges(one.allowed.inbound), _ranges(one.allowed.outbound))
            for one in self.visitors
        )
        return self.networks, tuple(sorted(found))

    @staticmethod
    def gates(visitors: Sequence[Visitor]) -> list[tuple[Secret, frozenset[bytes]]]:
        """The secrets that links with these are opened by, each with the node ids that it is for."""
        secrets = {visitor.pact: visitor.secret for visitor in visitors}
        return [
            (secret, frozenset(v.entry.member.node_id for v in visitors if v.pact == pact))
            for pact, secret in secrets.items()
        ]

    def enrolment(self, of_authority: Enrolment) -> Enrolment | None:
        """The means by which handshakes of nodes of no mesh, or of another, are taken: None on a node that
        takes none."""
        serves = self._node.authority is not None or self.federation.is_gateway()
        return of_authority if serves else None

    def secret_of(self, door: bytes) -> Secret | None:
        """The secret of those who come with this id: with that of a line, or to ask this gateway."""
        draft = self.drafts.get(door, time()) if self._node.authority is not None else None
        return self.federation.secret_of(door) if draft is None else Secret(draft.secret)

    async def take(self, bundles: Sequence[bytes], member: NodeId) -> bool:
        """Hold what a member of this mesh says of pacts; return whether any of it is news."""
        news, refused = await in_turns(self.federation.taking(bundles, member))
        if refused:
            self.dropped["pact"] += len(refused)
            log.warning("a pact was refused", peer=self._name(member), error=str(refused[0]))
        if news:
            self._note()
        return news

    def _name(self, member: NodeId) -> str:
        entry = self._keeper.roster.get(member)
        return member.hex() if entry is None else entry.member.name

    def _note(self) -> None:
        self._saver.mark()
        self._changed()

    async def _write(self) -> None:
        kept = encode_kept(self.federation.pacts.bundles(), tuple(self.drafts))
        await trio.to_thread.run_sync(self._node.state.write, directory.PACTS, kept)

    # What others ask.

    async def answer(self, party: Party, request: messages.Request) -> messages.Answer:
        """Answer a member's or another mesh's question about pacts. Raises PhantomMeshError to refuse."""
        match request:
            case pactmessages.AskPacts():
                return pactmessages.PactsAre(self.federation.pacts.bundles())
            case pactmessages.MakePact():
                return await self._make(party, request)
            case pactmessages.AskPact():
                return await self._tell(party, request)
            case messages.CompareRevocations(prefix, parts) if self.federation.comes_by(party.invite):
                return messages.RevocationsDiffer(self._node.revocations.tree.differing(prefix, parts))
            case messages.FetchRevocations(ids, certs) if self.federation.comes_by(party.invite):
                return messages.SomeRevocations(self._node.revocations.pack(ids, certs))
            case _:
                raise TrustError("only a member may ask this", fix="join the mesh first")

    async def _tell(self, party: Party, request: pactmessages.AskPact) -> messages.Answer:
        until = trio.current_time() + PATIENCE
        while True:
            told = self.federation.tell(party.peer, party.invite, request)
            if told is not None:
                return told
            with trio.move_on_at(until) as over:
                await self._news.wait()
            if over.cancelled_caught:
                return messages.Done()

    # What operators ask.

    async def invite(self, offer: Offer, life: float) -> FederationInvite:
        """Make a line, good for ``life`` seconds and one answer. Raises TrustError or StateError."""
        self._authority()
        expires, me = int(time() + life), self._keeper.roster.get(self._node.identity.node_id)
        endpoints = () if me is None else callable_at(me.record)[:MAX_ENDPOINTS]
        if not endpoints:
            raise TrustError(
                "this authority has no endpoint that a line could name", fix="set node.endpoints"
            )
        draft = Draft(os.urandom(16), os.urandom(32), offer, expires)
        make_terms(self._node, offer, draft.pact, bytes(32), Secret(draft.secret), time())  # raises early
        self.drafts.add(draft, time())
        await self._save()
        mesh = self._node.mesh
        return FederationInvite(
            mesh.root_hash, draft.pact, Secret(draft.secret), self._node.identity.node_id, mesh.name,
            expires, endpoints,
        )  # fmt: skip

    async def _make(self, party: Party, request: pactmessages.MakePact) -> messages.Answer:
        """Another mesh answers a line of ours."""
        draft, authority, now = self.drafts.get(party.invite, time()), self._authority(), time()
        if draft is None:
            raise TrustError("the line has expired, or was given out by another", fix="ask for a new line")
        node, pacts = self._node, self.federation.pacts
        came = self.drafts.check(draft, request, node.mesh.root_hash, now)
        before = pacts.ours(draft.pact)
        if pacts.ended(draft.pact):
            raise TrustError("that pact was ended", fix="ask the other mesh for a new line")
        last = 0 if before is None else before.number
        terms = make_terms(node, draft.offer, draft.pact, came.root_hash, came.secret, now, last)
        half = await self._sign(authority, terms)
        agree(
            node.root, half, request.root, came.half, now, revoked=node.revocations, their_revoked=frozenset()
        )
        pacts.take_ours(half, now)
        pacts.take_theirs(came.half, request.root, now, revoked=frozenset())
        pacts.unlock(draft.pact, came.secret)
        self.drafts.note(draft.pact, came.root_hash)
        await self._save()
        self._changed()
        log.info("pact made", mesh=describe_mesh(load_root(request.root)).name, pact=draft.pact.hex())
        return pactmessages.PactMade(node.root.public_bytes(Encoding.DER), half.encode())

    async def accept(self, line: FederationInvite, offer: Offer) -> bytes:
        """Answer another mesh's line; return the pact's id. Raises PhantomMeshError."""
        authority, node, now = self._authority(), self._node, time()
        line.check_expiry(now)
        secret = Secret(os.urandom(32))
        half = await self._sign(authority, make_terms(node, offer, line.pact, line.root_hash, secret, now))
        request = pactmessages.MakePact(node.root.public_bytes(Encoding.DER), half.encode(), secret.reveal())
        made = await self._exchange(line, request)
        load_root(made.root, line.root_hash)
        theirs = Half.decode_untrusted(made.half)
        agree(node.root, half, made.root, theirs, now, revoked=node.revocations, their_revoked=frozenset())
        pacts = self.federation.pacts
        pacts.take_ours(half, now)
        pacts.take_theirs(theirs, made.root, now, revoked=frozenset())
        pacts.unlock(line.pact, secret)
        await self._save()
        self._changed()
        log.info("pact made", mesh=line.mesh, pact=line.pact.hex())
        return line.pact

    async def _exchange(
        self, line: FederationInvite, request: pactmessages.MakePact
    ) -> pactmessages.PactMade:
        failures = list[str]()
        for endpoint in line.endpoints:
            try:
                with trio.fail_after(EXCHANGE):
                    async with self._reach(
                        endpoint, line.authority, line.root_hash, (line.pact, line.secret)
                    ) as client:
                        answer = await client.ask(request)
            except (framing.StreamError, trio.TooSlowError) as error:
                failures.append(f"{endpoint}: {str(error) or 'no answer in time'}")
                continue
            if isinstance(answer, pactmessages.PactMade):
                return answer
            if isinstance(answer, messages.Refused):
                raise TrustError(f"the other mesh refused: {answer.message[:512]}", fix=answer.fix[:512])
            failures.append(f"{endpoint}: another answer")
        raise TrustError(
            "the other mesh's authority could not be reached: " + "; ".join(failures),
            fix="check that it runs and that its control port is open for TCP from here, and that the line "
            "has not expired there",
        )

    async def end(self, pact: bytes) -> None:
        """End a pact for good, alone. Raises TrustError where there is none."""
        authority, pacts = self._authority(), self.federation.pacts
        terms = pacts.ours(pact)
        if terms is None:
            raise TrustError("there is no such pact", fix="see `phantommesh federation list`")
        ending = Terms.ending(pact, terms.mesh, terms.other, time())
        pacts.take_ours(await self._sign(authority, ending), time())
        self._changed()  # at once, also where the disk is full
        await self._save()

    def _authority(self) -> Authority:
        if self._node.authority is None or self._keeper.is_revoked():
            raise TrustError("only an authority makes and ends pacts", fix="run this on an authority")
        return self._node.authority

    @staticmethod
    async def _sign(authority: Authority, terms: Terms) -> Half:
        return await trio.to_thread.run_sync(sign, authority, terms)

    async def _save(self) -> None:
        """Write all now. Raises StateError."""
        self._saver.mark()
        await self._saver.save()

    # Asking gateways.

    async def run(self) -> None:
        """Ask the gateways of other meshes, and save what has changed, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            nursery.start_soon(self._watch)
            under_way = dict[Asked, trio.CancelScope]()
            while True:
                wanted = set(self.federation.asked(self._own())) if not self._keeper.is_revoked() else set()
                for gone in under_way.keys() - wanted:
                    under_way.pop(gone).cancel()
                    self.problems.pop(gone, None)
                for asked in wanted - under_way.keys():
                    scope = under_way[asked] = trio.CancelScope()
                    nursery.start_soon(self._follow, asked, scope)
                await self._looked.wait()

    async def _keep(self) -> None:
        while True:
            await self._saver.marked()
            async with self.disk.patiently():
                await self._saver.save()

    async def _watch(self) -> None:
        """A pact runs out, and rests where no gateway answers, though nothing else happens."""
        while True:
            await trio.sleep(LOOK)
            if self._those_in_force() != self._in_force:
                self._changed()

    async def _follow(self, asked: Asked, scope: trio.CancelScope) -> None:
        """Ask one gateway again and again: it answers when there is news."""
        with scope:
            pause = AGAIN_FIRST
            while True:
                began = trio.current_time()
                with left_out(self.dropped, "gateway-broken", BROKEN, pact=asked.pact.hex()):
                    try:
                        await self._ask(asked)
                    except (framing.StreamError, PhantomMeshError, asking.AskingError) as error:
                        if self.problems.get(asked) != str(error):
                            log.info("a gateway does not answer", pact=asked.pact.hex(), error=str(error))
                        self.problems[asked] = str(error)
                if trio.current_time() - began > PATIENCE:
                    pause = AGAIN_FIRST
                await trio.sleep(pause * _RNG.uniform(0.75, 1.25))
                pause = min(2 * pause, AGAIN_MOST)

    async def _ask(self, asked: Asked) -> None:
        pact, gateway = asked
        other, secret = self.federation.other(pact), self.federation.pacts.secret(pact)
        if other is None or secret is None:
            return
        failures = list[str]()
        for endpoint in gateway.endpoints:
            try:
                async with self._reach(
                    endpoint, NodeId(gateway.node_id), other.mesh.root_hash, (door_of(pact), secret)
                ) as client:
                    await self._listen(client, asked)
            except framing.StreamError as error:
                failures.append(f"{endpoint}: {error}")
        raise framing.StreamError("; ".join(failures))

    async def _listen(self, client: channels.Client, asked: Asked) -> None:
        """Hear what the gateway has to tell, for ever. Raises StreamError, TrustError or AskingError."""
        seen, pact = b"", asked.pact
        pace = Bucket(ASK_RATE, ASK_BURST, trio.current_time())
        while (other := self.federation.other(pact)) is not None:
            me = self._keeper.roster.get(self._node.identity.node_id)
            if me is None:
                raise framing.StreamError("this node has no record of its own yet")
            await trio.sleep(pace.owe(trio.current_time()))
            answer = await client.ask(pactmessages.AskPact(pact, me.signed.encode(), seen))
            new = False
            match answer:
                case pactmessages.PactIs():
                    new = await in_turns(self.federation.hearing(pact, answer, self._own()))
                    if answer.revoked != other.revocations.digest():
                        parts = await _converse(client, asking.revocations(other.revocations))
                        new |= await in_turns(self.federation.take_revocations(pact, parts))
                    seen = answer.digest
                case messages.Done():
                    pass
                case messages.Refused(message):
                    raise framing.StreamError(f"it refused: {message[:512]}")
                case _:
                    raise framing.StreamError("another answer")
            self.problems.pop(asked, None)
            if self.federation.heard(pact) or new:
                self._note()

    @asynccontextmanager
    async def _reach(
        self, endpoint: str, node: NodeId, root_hash: bytes, terms: tuple[bytes, Secret]
    ) -> AsyncIterator[channels.Client]:
        """Open a channel to a node of another mesh, which shows that it is that node. Raises StreamError."""
        host, port = parse_endpoint(endpoint)
        found = [Address(one, port, "tcp") for one in await find_all(host)]
        usable = [address for address in found if self._may(None, address.host)]
        if not usable:
            raise framing.StreamError("it has no address that may be used")
        async with framing.connect_first(usable, ()) as framed:
            session = await shake_hands(framed, self._node.identity, node, root_hash, terms)
            if session is None:
                raise framing.StreamError(
                    f"{format_endpoint(host, port)} does not know this pact, or the line has expired"
                )
            yield await channels.Client.open(framed, session)


def _ranges(ports: Sequence[Ports]) -> tuple[guard.Range, ...]:
    return tuple((one.protocol, one.first, one.last) for one in ports)


async def _converse(client: channels.Client, talk: Generator[Any, Any, T]) -> T:
    """Hold a conversation in which no records are asked for. Raises StreamError or AskingError."""
    try:
        step = next(talk)
        while True:
            step = talk.send(await client.ask(step))
    except StopIteration as end:
        found: T = end.value
        return found
