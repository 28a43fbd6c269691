# SPDX-License-Identifier: GPL-3.0-or-later
"""The initiator's side of all links: when to start, what to do with RESP and ACK, and with silence."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.link import keys, wire
from phantommesh.link.attempt import TRIES, Initiation, Stage
from phantommesh.link.context import Context, Peer
from phantommesh.link.effects import Alarm, Effect, Install, ResetSign, Sign
from phantommesh.link.fragments import Missing, Pool
from phantommesh.link.handshake import HandshakeError, Initiator
from phantommesh.link.wire import Fragment, Kind, Mode

# Tuning.
UNMET = 3  # failures in a row until a link that never was is an alarm: a newcomer's NAT takes a while
BACKOFF_FIRST, BACKOFF_MAX = 0.5, 20.0  # s between attempts that fail


class Starter:
    """Handshakes that this node started, one at most a peer."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def tick(self, peer: Peer, now: float) -> list[Effect]:
        """Start if it is due, send again what got no answer, give up what got none for too long."""
        if peer.initiation is None and now >= peer.next_start:
            self._start(peer, now)
        if peer.initiation is None:
            return []
        if peer.initiation.stage is Stage.COOKIE:
            # Heard of meanwhile.
            peer.initiation.offer(self._context.ways(peer.node_id))
            peer.initiation.offer(self._context.elsewhere(peer.node_id))
        effects: list[Effect] = [*peer.initiation.tick(now)]
        if peer.initiation.stage is Stage.FAILED:
            effects += self._failed(peer, peer.initiation, now)
        return effects

    def _start(self, peer: Peer, now: float) -> None:
        auth = peer.auth
        context = self._context
        candidates = self._candidates(peer)
        if now >= auth.valid_until or not candidates:
            peer.last_error = "its certificate has expired" if candidates else "no endpoint is known"
            peer.next_start = now + BACKOFF_MAX
            return
        offered = (peer.psk.committed, peer.psk.staged)
        handshake = Initiator(
            kem=context.kem,
            random=context.random,
            mode=Mode.MEMBER,
            node_id=context.node_id,
            epoch=peer.psk.epoch + 1,
            interface_hash=context.interface_hash(auth),
            credential=b"".join(wire.NO_CHAIN if a is None else a.chain_id for a in offered),
        )
        cookie = peer.cookie[1] if peer.cookie is not None and peer.cookie[0] == candidates[0] else None
        peer.cookie = None  # used once: if it fails, the next attempt asks for a new one
        # A WireGuard key of which one end does not know yet proves nothing: next time another dimension's.
        turn = [(peer.failures + i) % DIMENSIONS for i in range(DIMENSIONS)]
        dimension = next((i for i in turn if context.pair_key(peer, i, starts=True) is not None), 0)
        peer.initiation = Initiation(
            handshake,
            candidates=candidates,
            macs=[(gate.mac_out(peer.node_id), gate.mac_in) for gate in context.gates_to(peer.node_id)],
            cookie=cookie,
            random=context.random,
            now=now,
            proof_key=context.pair_key(peer, dimension, starts=True),
            dimension=dimension,
        )
        self._context.initiations[peer.initiation.session] = peer

    def _candidates(self, peer: Peer) -> list[Address]:
        """The addresses to try, in their order: the one that the last handshake went through, then those of
        the record, from another one on after each failure; among them those at which the peer was heard, and
        anybody may have made it seem so; and members that carry datagrams to it, after the likeliest one, as
        the peer may be behind a NAT. An address that gave a cookie and then nothing is left out once: small
        datagrams pass there, and large ones may not."""
        named, heard = peer.auth.endpoints, self._context.elsewhere(peer.node_id)
        ways = self._context.ways(peer.node_id)
        turn = peer.failures * TRIES % len(named) if named else 0
        named = named[turn:] + named[:turn]
        found = [*named[:1], *ways[:1], *heard[:1], *ways[1:], *named[1:], *heard[1:]]
        if peer.answered in found and not peer.failures and peer.answered.transport != "via":
            found.insert(0, peer.answered)
        found = [address for address in dict.fromkeys(found) if address != peer.avoided] or found[:1]
        peer.avoided = None
        return found

    def _failed(self, peer: Peer, initiation: Initiation, now: float) -> list[Effect]:
        reached = initiation.reached
        if reached is not Stage.COOKIE:
            peer.avoided = initiation.destination
        self._context.end_initiation(peer)
        peer.failures += 1
        backoff = min(BACKOFF_MAX, BACKOFF_FIRST * 2.0 ** min(peer.failures - 1, 8))
        peer.next_start = now + backoff * self._context.jitter.uniform(0.75, 1.25)
        peer.last_error = f"no answer from {initiation.destination} while {reached.value}"
        self._context.handshakes["initiator", "timeout"] += 1
        effects: list[Effect] = []
        if reached is Stage.AUTH and peer.psk.staged is not None:
            peer.psk.doubt(now)
            effects.append(Install(peer.node_id))
        if peer.failures == (UNMET if peer.psk.committed is None else 1):
            effects.append(Alarm(peer.node_id, "failed", peer.last_error))
        return effects

    def on_cookie_reply(self, reply: wire.CookieReply, datagram: bytes, now: float) -> list[Effect]:
        """Take a cookie. Its nonce names the attempt that asked for it."""
        if self._context.passed(datagram, Mode.MEMBER, with_cookie=False) is None:
            return self._context.drop("mac")
        for peer in self._context.initiations.values():
            initiation = peer.initiation
            if initiation is not None and initiation.asked(reply) and initiation.mac_ok(datagram):
                datagrams = initiation.on_cookie(reply, now)
                self._context.settle(peer)
                return [*datagrams]
        return self._context.drop("session")

    def receive(self, fragment: Fragment, datagram: bytes, source: Address, now: float) -> list[Effect]:
        """Take a fragment that is meant for an initiator. Raises what `machine.Links.receive` counts."""
        peer = self._context.initiations.get(fragment.session)
        if peer is None or peer.initiation is None:
            return self._context.drop("session")
        initiation = peer.initiation
        reason = initiation.refuses(datagram)
        if reason is not None:
            return self._context.drop(reason)
        if fragment.kind is Kind.RESEND:
            resend = wire.decode_resend_untrusted(fragment.chunk)
            return [*initiation.resent(resend, now)]
        awaited = Stage.INIT if fragment.kind is Kind.RESP else Stage.AUTH
        if initiation.stage is not awaited:
            return self._context.drop("duplicate")
        body = self._context.reassembler.add(source, fragment, now, Pool.SESSIONS)
        if body is None:
            return []
        try:
            if fragment.kind is Kind.ACK:
                return self._on_ack(peer, initiation, body, now)
            return self._on_resp(peer, initiation, wire.decode_resp_untrusted(body), now)
        finally:
            self._context.settle(peer)

    def ask_again(self, missing: Missing) -> list[Effect]:
        """Ask for the rest of a RESP."""
        peer = self._context.initiations.get(missing.session)
        if peer is None or peer.initiation is None or peer.initiation.stage is not Stage.INIT:
            return []
        return [*peer.initiation.resend_request(missing.bitmap)]

    def _on_resp(self, peer: Peer, initiation: Initiation, resp: wire.Resp, now: float) -> list[Effect]:
        def verifier(node_id: bytes, _: bytes) -> MLDSA65PublicKey:
            if node_id != peer.node_id:
                raise HandshakeError("identity")
            return peer.auth.public_key

        offered = initiation.handshake.init.credential
        chains = {wire.NO_CHAIN: keys.FIRST_CHAIN}
        chains |= {c: k for c, k in peer.psk.held_chains() if c in (offered[:16], offered[16:])}
        if resp.chain not in chains:
            raise HandshakeError("chain")
        request = initiation.on_resp(resp, chains[resp.chain], verifier)
        effects: list[Effect] = []
        staged, shown, dialled = peer.psk.staged, peer.psk.desired, peer.psk.dials
        if staged is not None and resp.chain == staged.chain_id:
            peer.psk.commit(staged, now)  # the other end has what we were unsure of
        elif staged is not None:
            peer.psk.drop_staged()
        if peer.psk.desired is not shown or peer.psk.dials != dialled:
            effects.append(Install(peer.node_id))
        peer.chain_reset = peer.psk.committed is not None and resp.chain == wire.NO_CHAIN
        if peer.chain_reset:
            # The broken chain is the one that INIT offered, unless another has come between.
            held = peer.psk.committed
            sign = ResetSign.UNANSWERED if held is not None and offered[:16] == held.chain_id else None
            effects.append(Alarm(peer.node_id, "chain-reset", "the other end kept no earlier key", sign))
        return [*effects, Sign(initiation.session, request)]

    def signed(self, token: bytes, signature: bytes, now: float) -> list[Effect]:
        """Send AUTH. From here on the other end may have the new keys, so they are staged."""
        peer = self._context.initiations.get(token)
        if peer is None or peer.initiation is None or peer.initiation.stage is not Stage.SIGN:
            return []
        initiation = peer.initiation
        lower = self._context.starts_with(peer.node_id)
        common = initiation.handshake.common
        agreement = self._context.agreement(
            peer, initiation.keys, initiation.epoch, common, by_lower_id=lower, now=now
        )
        if not peer.psk.stage(agreement):
            self._context.end_initiation(peer)
            self._context.settle(peer)
            return self._context.drop("overtaken")
        datagrams = initiation.on_signed(signature, now)
        self._context.settle(peer)
        return [*datagrams]

    def _on_ack(self, peer: Peer, initiation: Initiation, body: bytes, now: float) -> list[Effect]:
        ack = initiation.on_ack(body)
        peer.answered = initiation.destination
        peer.cookie = (initiation.destination, ack.cookie)
        self._context.end_initiation(peer)
        staged = peer.psk.staged
        if staged is None or staged.chain_id != initiation.keys.chain_id or not peer.psk.commit(staged, now):
            return self._context.drop("overtaken")
        name, began = initiation.session, initiation.started
        opened = self._context.opened(
            peer, "initiator", name, initiation.keys, staged.epoch, began, initiation.destination, now
        )
        return [Install(peer.node_id), opened]
