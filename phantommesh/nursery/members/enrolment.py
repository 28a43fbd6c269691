# SPDX-License-Identifier: GPL-3.0-or-later
"""`join`: from an invite to a node's state directory, over one TCP connection to an authority."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import time

import msgspec
import trio

from phantommesh.config.sections import Config
from phantommesh.control import channel, messages, sessions
from phantommesh.control.policymessages import MAX_TOLD_BYTES
from phantommesh.endpoint import MAX_DATAGRAM, Address, format_endpoint, parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.kem import CryptographyKem
from phantommesh.link.attempt import Stage
from phantommesh.link.effects import Opened, Send, Sign
from phantommesh.link.newcomer import Newcomer
from phantommesh.nursery.host.hostroutes import read_host
from phantommesh.nursery.members.links import sign_in_thread
from phantommesh.nursery.names.resolve import find_all
from phantommesh.nursery.overlay import hostview
from phantommesh.nursery.sockets import channels, framing
from phantommesh.overlay.prefixes import Address as OverlayAddress
from phantommesh.reachable import Reach, Why, all_loopback
from phantommesh.records.record import CONTEXT, MAX_MEMBERS, MAX_RECORD_BYTES
from phantommesh.secret import Secret
from phantommesh.state.making import JoinDraft, Summary, begin_join, finish_join, join_config
from phantommesh.state.start import make_record
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import make_csr, prove_authority
from phantommesh.wireguard.device import Network

HANDSHAKE_SECONDS = 10.0
ANSWER_SECONDS = 50.0  # s: a roster takes that at some 10 Mbit/s for every 4,000 members
# bytes: everybody's records, the revocations, and the policies of access. Members allow each other less, as
# they hold many channels; a joiner has this one, with an authority that its invite names.
MAX_ANSWER = MAX_MEMBERS * MAX_RECORD_BYTES + channel.MAX_FRAME + MAX_TOLD_BYTES


class JoinError(PhantomMeshError):
    """The machine could not be enrolled."""


class Unanswered(framing.StreamError):
    """There is something that took the connection, and no answer to the handshake in time."""


async def join(
    state_dir: Path,
    config_path: Path,
    token: str,
    *,
    name: str,
    endpoints: tuple[str, ...],
    config: Config | None = None,
    chosen: bool = True,
    tags: tuple[str, ...] = (),
) -> Summary:
    """Enrol this machine by an invite and write its state and configuration: all of it, or nothing.

    Without ``endpoints`` the first record names the address from which the authority was reached. The node
    finds out by itself where it is from its first start on; where its settings forbid that, the address
    becomes its endpoint.
    ``chosen``: an operator gives the endpoints now, and wants to hear at once of one that is of no use. Else
    the node that runs here joins anew, under another identity. ``tags``: those that this node asks for; none:
    all that the invite grants.
    Raises `PhantomMeshError` saying what to do.
    """
    invite = Invite.parse_untrusted(token)
    invite.check_expiry(time())
    failures = []
    to_try = deque((endpoint, address, False) for endpoint, address in await _addresses(invite, endpoints))
    while to_try:
        endpoint, address, again = to_try.popleft()
        if isinstance(address, str):
            failures.append(f"{endpoint}: {address}")
            continue
        try:
            async with framing.connect(address.host, address.port) as framed:
                own = (framed.own_host if ":" not in framed.own_host else f"[{framed.own_host}]",)
                discovers = config is None or config.nat.discover
                written = endpoints or (() if discovers and not all_loopback([framed.own_host]) else own)
                settings = join_config(invite, name=name, endpoints=written, config=config)
                draft = await trio.to_thread.run_sync(begin_join, state_dir, config_path, invite, settings)
                session = await _shake_hands(framed, invite, draft)
                enrolled = await _enrol(
                    framed, session, draft, settings, found=own, chosen=chosen and bool(endpoints), tags=tags
                )
                return await trio.to_thread.run_sync(
                    _finish(state_dir, config_path, draft, settings, invite, enrolled, running=not chosen)
                )
        except framing.StreamError as error:
            if isinstance(error, Unanswered) and not again:
                to_try.append((endpoint, address, True))  # many may join at once, and the authority be busy
            else:
                failures.append(f"{endpoint}: {error}")
    raise JoinError(
        "no authority could be reached: " + "; ".join(failures),
        fix="check that the inviting node is running and that its control port is open for TCP from here",
    )


async def _addresses(invite: Invite, own: Sequence[str]) -> list[tuple[str, Address | str]]:
    """The addresses of an invite's endpoints, or why one cannot be used.

    No member was heard yet, so a network that only this host has is not refused: an operator that joins by an
    authority in a container has chosen to. The overlay's networks are not known yet, and not routed anywhere.
    """
    loopback = all_loopback(parse_endpoint(endpoint, 1)[0] for endpoint in own)
    reach = Reach(host=await trio.to_thread.run_sync(read_host), loopback=loopback)
    found: list[tuple[str, Address | str]] = []
    for endpoint in invite.endpoints:
        host, port = parse_endpoint(endpoint)
        addresses = await find_all(host)
        if not addresses:
            found.append((endpoint, f"{host} has no address"))
        for one in addresses:
            why = reach.never(one)
            if why is None:
                found.append((endpoint, Address(one, port, "tcp")))
            else:
                fix = " (for a mesh within one machine give --endpoint 127.0.0.1)"
                said = f"{one} may not be used, it is {why.text}{fix if why is Why.LOOPBACK else ''}"
                found.append((endpoint, said))
    return found


def _finish(
    state_dir: Path,
    config_path: Path,
    draft: JoinDraft,
    config: Config,
    invite: Invite,
    enrolled: messages.Enrolled,
    *,
    running: bool,
) -> Callable[[], Summary]:
    return partial(
        finish_join,
        state_dir,
        config_path,
        draft=draft,
        config=config,
        invite=invite,
        root_cert=enrolled.root_cert,
        authority_cert=enrolled.authority_cert,
        node_cert=enrolled.node_cert,
        admission_key=Secret(enrolled.admission),
        roster=enrolled.roster,
        revocations=enrolled.revocations,
        keys=enrolled.keys,
        active_key=enrolled.active_key,
        own_authority_cert=enrolled.own_authority_cert,
        policies=enrolled.policies,
        now=time(),
        check=partial(_check_host, config, running),
    )


def _check_host(
    config: Config, running: bool, networks: Sequence[Network], members: Mapping[OverlayAddress, str]
) -> None:
    """Raise OverlapError where this host's own range is in the way."""
    hostview.check(networks, members, prefix=config.wireguard.prefix, running=running)


async def _shake_hands(framed: framing.FramedStream, invite: Invite, draft: JoinDraft) -> sessions.Session:
    """The enrolment handshake. Raises `JoinError` where the authority does not go on with it, `StreamError`
    where nothing there answers like an authority."""
    terms = invite.invite_id, invite.secret
    session = await shake_hands(framed, draft.identity, invite.authority, invite.root_hash, terms)
    if session is None:
        raise JoinError(
            "the authority did not accept the invite: it has expired, is used up, or was withdrawn",
            fix="ask for a new invite, and check both machines' clocks",
        )
    return session


async def shake_hands(
    framed: framing.FramedStream,
    identity: Identity,
    authority: NodeId,
    root_hash: bytes,
    terms: tuple[bytes, Secret],
) -> sessions.Session | None:
    """The handshake of a node without a certificate. ``terms`` are the invite's id and its secret. None where
    the authority does not know them. Raises `Unanswered` where nothing there answers like an authority."""
    destination = Address(framed.address.host, framed.address.port, "tcp")
    invite, secret = terms
    newcomer = Newcomer(
        node_id=identity.node_id,
        spki=identity.spki,
        authority=authority,
        root_hash=root_hash,
        invite=invite,
        secret=secret,
        destination=destination,
        kem=CryptographyKem(),
        random=os.urandom,
        now=trio.current_time(),
    )
    effects = newcomer.tick(trio.current_time())
    with trio.move_on_after(HANDSHAKE_SECONDS):
        while not newcomer.failed:
            for effect in effects:
                match effect:
                    case Send(datagram):
                        await framed.send(datagram)
                    case Opened():
                        return sessions.Session.of(effect)
            signing = [effect.request for effect in effects if isinstance(effect, Sign)]
            if signing:
                signature = await sign_in_thread(identity, signing[0])
                effects = newcomer.signed(signature, trio.current_time())
            else:
                with trio.move_on_at(newcomer.deadline) as silence:
                    frame = await framed.receive(MAX_DATAGRAM)
                    effects = newcomer.receive(frame, trio.current_time())
                if silence.cancelled_caught:  # TCP loses nothing, but a busy authority may have dropped it
                    effects = newcomer.tick(trio.current_time())
    if newcomer.reached is Stage.INIT:
        return None
    raise Unanswered(
        f"what listens there did not answer the handshake ({newcomer.reached.value}); is it the authority?"
    )


async def _enrol(
    framed: framing.FramedStream,
    session: sessions.Session,
    draft: JoinDraft,
    config: Config,
    *,
    found: tuple[str, ...],
    chosen: bool,
    tags: tuple[str, ...],
) -> messages.Enrolled:
    at = tuple(format_endpoint(*parse_endpoint(one, config.control.port)) for one in found)
    seq = int(time() * 1000)  # one a try
    record = make_record(draft.identity, draft.wg_keys, config, seq, found=at)
    body = msgspec.msgpack.encode(record)

    def sign() -> messages.Enrol:
        csr, signature = make_csr(draft.identity, config.node.name), draft.identity.sign(body, CONTEXT)
        key = draft.authority_key
        if key is None:
            return messages.Enrol(csr, body, signature, chosen=chosen, tags=tags)
        proof = prove_authority(key, draft.identity.node_id)
        return messages.Enrol(csr, body, signature, key.spki, proof, chosen, tags)

    request = await trio.to_thread.run_sync(sign)
    client = await channels.Client.open(framed, session)
    answer: messages.Answer | None = None
    with trio.move_on_after(ANSWER_SECONDS):
        answer = await client.ask(request, limit=MAX_ANSWER)
    match answer:
        case messages.Enrolled():
            return answer
        case messages.Refused(message, fix):
            raise JoinError(f"the authority refused: {message}", fix=fix)
        case None:
            raise JoinError(
                "the authority did not answer in time", fix="try again; the invite is not spent twice"
            )
        case _:
            raise JoinError(
                "the authority's answer is not one to an enrolment", fix="run the same version on both"
            )
