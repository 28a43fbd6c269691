# SPDX-License-Identifier: GPL-3.0-or-later
"""The responder's side of all links, and of enrolments: from INIT to the ACK that follows the read-back."""

from __future__ import annotations

from hmac import compare_digest

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from phantommesh.dimensions import ALL
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.link import keys, wire
from phantommesh.link.admission import (
    INIT_BURST,
    INIT_RATE,
    MAX_SOURCES,
    SHARES,
    Cookies,
    Standing,
    source_of,
)
from phantommesh.link.attempt import Stage
from phantommesh.link.context import Context, Gate, Peer, sends
from phantommesh.link.effects import Alarm, Effect, Install, Opened, ResetSign, Send, Sign
from phantommesh.link.fragments import Missing, Pool
from phantommesh.link.halfopen import LIFE, Response, Responses
from phantommesh.link.handshake import HandshakeError, Responder, pick_chain, proven
from phantommesh.link.psk import PskState
from phantommesh.link.wire import Fragment, Kind, Mode
from phantommesh.rates import Bucket, Rates
from phantommesh.trust.identity import node_id_of

# Tuning.
PARTIAL_ACK_AFTER = 1.0  # s to wait for all seven interfaces before acknowledging fewer


class Answerer:
    """Handshakes that others started with this node."""

    def __init__(self, context: Context, now: float) -> None:
        self._context = context
        self._cookies = Cookies(context.random, now)
        # By source block, and apart for senders without a current admission secret: the two kinds may share
        # an address.
        self._rates = {current: Rates[str](INIT_RATE, INIT_BURST, MAX_SOURCES) for current in (True, False)}
        self._budgets = {
            standing: Rates[bytes](share.rate, share.burst, MAX_SOURCES) for standing, share in SHARES.items()
        }
        self._in_all = {
            standing: Bucket(share.in_all, 2 * share.in_all, now)
            for standing, share in SHARES.items()
            if share.in_all is not None
        }
        self.responses = Responses()

    def on_cookie_request(
        self, request: wire.CookieRequest, datagram: bytes, source: Address, now: float
    ) -> list[Effect]:
        """Give a cookie to whoever belongs here: statelessly, and never more bytes than were sent."""
        gate = self._context.passed(datagram, request.mode, with_cookie=False)
        if gate is None or not self._may_enter(gate, request.node_id):
            return self._context.drop("mac")
        reply = wire.CookieReply(request.mode, request.nonce, self._cookies.current(source, now))
        return [Send(reply.encode(gate.mac_out(request.node_id)), source)]

    def _may_enter(self, gate: Gate, node_id: bytes) -> bool:
        """Whether a node id may be claimed under this secret: under one that was replaced only a member's,
        under a pact's only that of a member of the other mesh, who may be claimed as a peer under no other.
        Whoever holds an invite may be anybody."""
        if gate.mode is Mode.ENROL:
            return True
        if gate.only is not None:
            return node_id in gate.only
        if any(node_id in pact.only for pact in self._context.pact_gates if pact.only):
            return False
        return gate.current or node_id in self._context.peers

    def receive(self, fragment: Fragment, datagram: bytes, source: Address, now: float) -> list[Effect]:
        """Take a fragment that is meant for a responder. Raises what `machine.Links.receive` counts."""
        if not any(wire.cookie_mac_ok(datagram, c) for c in self._cookies.accepted(source, now)):
            return self._context.drop("cookie")
        self._context.proved = True
        gate = self._context.passed(datagram, fragment.mode, with_cookie=True)
        if gate is None:
            return self._context.drop("mac")
        if fragment.kind is Kind.RESEND:
            return self._on_resend(fragment, source, now)
        if fragment.kind is Kind.INIT:
            return self._on_init_fragment(fragment, gate, source, now)
        response = self.responses.by_own(fragment.session)
        if response is None or response.source != source:
            return self._context.drop("session")
        if response.verified_at is not None:
            self._context.drop("duplicate")
            return sends(response.repeat(now) if response.ack is not None else [], source)
        body = self._context.reassembler.add(source, fragment, now, Pool.SESSIONS)
        if body is None:
            return []
        auth = wire.decode_auth_untrusted(body)
        if auth.session != fragment.session:
            raise DecodeError("session")
        return self._on_auth(response, auth, now)

    def ask_again(self, missing: Missing) -> list[Effect]:
        """Ask for the rest of an INIT or AUTH."""
        response = self.responses.by_own(missing.session)
        if response is None or missing.kind is not Kind.AUTH:
            return []  # of a first INIT too little is known to answer it: its sender repeats it
        body = wire.Resend(missing.kind, missing.bitmap).encode()
        session = response.handshake.init.session
        return sends(
            response.encode(wire.fragments(Kind.RESEND, missing.mode, session, body)), missing.source
        )

    def _on_resend(self, fragment: Fragment, source: Address, now: float) -> list[Effect]:
        resend = wire.decode_resend_untrusted(fragment.chunk)
        response = self.responses.by_initiator(source, fragment.session)
        if response is None:
            return self._context.drop("session")
        return sends(response.resent(resend.missing, now), source)

    def _on_init_fragment(self, fragment: Fragment, gate: Gate, source: Address, now: float) -> list[Effect]:
        response = self.responses.by_initiator(source, fragment.session)
        if response is not None:
            self._context.drop("duplicate")
            return sends(response.repeat(now) if response.fragments else [], source)
        if fragment.index == 0 and not self._may_enter(gate, fragment.chunk[wire.INIT_NODE_ID]):
            return self._context.drop("mac")
        started = self._context.reassembler.started(source, fragment)
        if not started and not self._rates[gate.current].allow(source_of(source), now):
            return self._context.drop("rate")
        pool = Pool.CURRENT if gate.current else Pool.OUTDATED
        body = self._context.reassembler.add(source, fragment, now, pool)
        if body is None:
            return []
        init = wire.decode_init_untrusted(body, fragment.mode)
        if init.session != fragment.session:
            raise DecodeError("session")
        if init.mode is Mode.ENROL:
            return self._on_enrol(init, gate, source, now)
        return self._on_init(init, gate, source, now)

    def _on_init(self, init: wire.Init, gate: Gate, source: Address, now: float) -> list[Effect]:
        peer = self._context.peers.get(init.node_id)
        if peer is None:
            return self._context.drop("unknown-node")
        if now >= peer.auth.valid_until:
            return self._context.drop("expired")
        ours = peer.initiation
        if ours is not None and self._context.starts_with(init.node_id) and not ours.in_vain(now):
            return self._context.drop("glare")
        standing = self._standing(init, peer, gate, source, now)
        if not self._admit(init, standing, init.node_id, source, now):
            return []
        chain_id, chain_key = pick_chain(_offered(init), peer.psk.held_chains())
        in_flight = peer.initiation.handshake.init.epoch if peer.initiation is not None else 0
        epoch = max(init.epoch, peer.psk.epoch + 1, in_flight + 1)
        handshake = Responder(
            init,
            kem=self._context.kem,
            random=self._context.random,
            node_id=self._context.node_id,
            epoch=epoch,
            chain_id=chain_id,
            chain_key=chain_key,
            interface_hash=self._context.interface_hash(peer.auth),
        )
        mac_out = gate.mac_out(init.node_id)
        response = Response(handshake, source, standing, init.node_id, mac_out, now)
        response.sign = _sign(_offered(init)[0], chain_id, peer.psk)
        response.judged_by = None if peer.psk.committed is None else peer.psk.committed.chain_id
        return self._respond(response)

    def _standing(self, init: wire.Init, peer: Peer, gate: Gate, source: Address, now: float) -> Standing:
        """Return what the sender of a member's INIT has shown. An old secret is no flaw of a sender that has
        shown more."""
        key = self._context.pair_key(peer, init.dimension, starts=False)
        if key is not None and proven(init, key, self._cookies.accepted(source, now)):
            return Standing.PROVEN
        if source.transport == "via":  # its carrier reads the chains' ids, and has every cookie
            return Standing.CARRIED
        at_home = source.host == peer.seen_at or any(source.host == a.host for a in peer.auth.endpoints)
        # A chain's id was in the clear once, on the path between the two; nobody else can name it.
        if at_home or pick_chain(_offered(init), peer.psk.held_chains())[0] != wire.NO_CHAIN:
            return Standing.KNOWN
        return Standing.STRANGER if gate.current else Standing.OUTDATED

    def _on_enrol(self, init: wire.Init, gate: Gate, source: Address, now: float) -> list[Effect]:
        enrolment = self._context.enrolment
        assert enrolment is not None  # the first MAC has no key without one
        invite = init.credential[:16]
        secret = enrolment.find(invite, init.node_id)
        if secret is None:
            return self._context.drop("invite")
        if not proven(init, keys.invite_proof_key(secret), self._cookies.accepted(source, now)):
            return self._context.drop("invite-proof")
        standing, name = Standing.NEWCOMER, invite
        if invite == keys.RETURNING:
            name, home = init.node_id, enrolment.where(init.node_id)
            at_home = any(source.host == address.host for address in home)
            standing = Standing.RETURNING_HOME if at_home else Standing.RETURNING
        if not self._admit(init, standing, name, source, now):
            return []
        handshake = Responder(
            init,
            kem=self._context.kem,
            random=self._context.random,
            node_id=self._context.node_id,
            epoch=init.epoch,
            chain_id=wire.NO_CHAIN,
            chain_key=keys.invite_chain(secret),
            interface_hash=init.interface_hash,
        )
        mac_out = gate.mac_out(init.node_id)
        return self._respond(Response(handshake, source, standing, name, mac_out, now, invite=invite))

    def _admit(self, init: wire.Init, standing: Standing, name: bytes, source: Address, now: float) -> bool:
        """The last checks before anything dear is computed: a replay, the budget, a place."""
        if self.responses.replayed(init.nonce):
            self._context.drop("replay")
            return False
        own = self._budgets[standing].of(name if SHARES[standing].each else b"", now)
        in_all = self._in_all.get(standing)
        if own.wait(now) or not (in_all is None or in_all.take(now)) or not own.take(now):
            self._context.drop("budget")
            return False
        if not self.responses.room_for(standing, init.node_id, name, source):
            self._context.drop("half-open")
            return False
        self.responses.remember(init.nonce, proven=standing is Standing.PROVEN)
        return True

    def _respond(self, response: Response) -> list[Effect]:
        self.responses.add(response)
        return [Sign(response.handshake.own, response.handshake.signing_request())]

    def signed(self, token: bytes, signature: bytes, now: float) -> list[Effect]:
        """Send RESP."""
        response = self.responses.by_own(token)
        if response is None or response.fragments:
            return []
        enrolment = self._context.enrolment
        credential = enrolment.spki if response.mode is Mode.ENROL and enrolment is not None else b""
        resp = response.handshake.resp(signature, credential)
        response.fragments = response.to_initiator(Kind.RESP, resp.encode(), now)
        return sends(response.encode(response.fragments), response.source)

    def _on_auth(self, response: Response, auth: wire.Auth, now: float) -> list[Effect]:
        if response.mode is Mode.ENROL:
            return self._on_enrol_auth(response, auth, now)
        peer = self._context.peers.get(response.peer)
        if peer is None:
            return self._context.drop("unknown-node")
        response.handshake.on_auth(auth, lambda *_: peer.auth.public_key)
        session = response.handshake.session
        assert session is not None
        agreement = self._context.agreement(
            peer,
            session,
            response.handshake.epoch,
            response.handshake.common,
            by_lower_id=peer.node_id < self._context.node_id,
            now=now,
        )
        response.verified_at = now
        self.responses.verified(response)
        if response.source.transport != "via":
            peer.seen_at = response.source.host
        replaced = None if peer.psk.committed is None else peer.psk.committed.chain_id
        if not peer.psk.commit(agreement, now, responder=True):
            self.responses.drop(response)
            return self._context.drop("overtaken")
        if peer.initiation is not None and peer.initiation.stage in (Stage.COOKIE, Stage.INIT):
            self._context.end_initiation(peer)  # glare: the other end will not answer that one
        peer.next_start = max(peer.next_start, now + LIFE)  # until ACK goes out and plans the next one
        self._context.settle(peer)
        effects: list[Effect] = [Install(peer.node_id)]
        peer.chain_reset = replaced is not None and response.handshake.chain_id == wire.NO_CHAIN
        if peer.chain_reset:
            # The broken chain is the one that INIT was judged by, unless another has come between.
            sign = response.sign if response.judged_by == replaced else None
            detail = "the other end kept no earlier key" if sign is None else sign.value
            effects.append(Alarm(peer.node_id, "chain-reset", detail, sign))
        elif response.sign is ResetSign.SUPERSEDED:
            effects.append(Alarm(peer.node_id, "chain-forked", response.sign.value, response.sign))
        return effects

    def _on_enrol_auth(self, response: Response, auth: wire.Auth, now: float) -> list[Effect]:
        proof = response.handshake.on_auth(auth, bare_key)
        session = response.handshake.session
        assert session is not None
        response.verified_at = now
        self._context.handshakes["responder", "enrol"] += 1
        opened = Opened(
            response.peer,
            "responder",
            response.handshake.init.session,
            session.channel_r,
            session.channel_i,
            response.handshake.epoch,
            now - response.born,
            invite=response.invite,
            spki=proof.credential,
        )
        return [*self._send_ack(response, 0, now), opened]

    def _send_ack(self, response: Response, bitmap: int, now: float) -> list[Effect]:
        cookie = self._cookies.current(response.source, now)
        response.ack = response.to_initiator(Kind.ACK, response.handshake.ack(bitmap, cookie), now)
        return sends(response.encode(response.ack), response.source)

    def acknowledge(self, peer: Peer, installed: int, now: float) -> list[Effect]:
        """Send ACK for the peer's verified handshake once its PSKs have been read back."""
        committed = peer.psk.committed
        if committed is None or peer.psk.desired is not committed.psks:
            return []
        for response in self.responses.of_peer(peer.node_id):
            since, session = response.verified_at, response.handshake.session
            if since is None or session is None or response.ack is not None:
                continue
            if session.chain_id != committed.chain_id:
                self.responses.drop(response)
            elif installed == ALL or (installed and now >= since + PARTIAL_ACK_AFTER):
                name, epoch = response.handshake.init.session, committed.epoch
                opened = self._context.opened(
                    peer, "responder", name, session, epoch, response.born, response.source, now
                )
                return [*self._send_ack(response, installed, now), opened]
        return []


def _sign(committed: bytes, chosen: bytes, psk: PskState) -> ResetSign | None:
    """Say what the chains in an INIT show, by the one that its sender calls agreed and the one chosen to
    build on. None where all is well, or where this end has no chain: then it is the one that forgot."""
    if psk.committed is None:
        return None
    if chosen != wire.NO_CHAIN:
        # Whoever has a part in our newest chain offers it, be it as staged only.
        return ResetSign.SUPERSEDED if psk.had(chosen) else None
    if committed == wire.NO_CHAIN:
        return ResetSign.EMPTY
    return ResetSign.SUPERSEDED if psk.had(committed) else ResetSign.UNKNOWN


def _offered(init: wire.Init) -> tuple[bytes, bytes]:
    """The ids of the chains that a member's INIT offers to build on."""
    return init.credential[:16], init.credential[16:]


def bare_key(node_id: bytes, credential: bytes) -> MLDSA65PublicKey:
    """The verifier of an enrolment: the key itself, which must be the one that the node id is the hash of."""
    if not compare_digest(node_id_of(credential), node_id):
        raise HandshakeError("identity")
    try:
        key = load_der_public_key(credential)
    except (ValueError, UnsupportedAlgorithm):
        raise HandshakeError("identity") from None
    if not isinstance(key, MLDSA65PublicKey):
        raise HandshakeError("identity")
    return key
