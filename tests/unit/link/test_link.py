# SPDX-License-Identifier: GPL-3.0-or-later
"""What `Links` does with datagrams: the order of its checks, its limits, enrolment, and who may do what."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem, Decapsulator
from phantommesh.link import fragments, keys, responder, wire
from phantommesh.link.admission import HALF_OPEN, SHARES, Standing
from phantommesh.link.context import Agree, no_agreement
from phantommesh.link.effects import Effect, Enrolment, Opened, PeerAuth, Send, Sign
from phantommesh.link.fragments import Pool, Reassembler
from phantommesh.link.halfopen import LIFE, SEEN_NONCES, Response, Responses
from phantommesh.link.handshake import Initiator, Responder, prove
from phantommesh.link.machine import Links
from phantommesh.link.newcomer import Newcomer
from phantommesh.link.psk import PskPhase
from phantommesh.link.wire import CookieReply, Fragment, Kind, Mode
from phantommesh.secret import Secret
from phantommesh.trust.identity import Identity
from tests.simulation.pair import ADMISSION, FOREVER, Simulation, identities

ME, OTHER = identities(2)[1], identities(2)[0]
WG = {0: tuple(bytes([i + 1]) * 32 for i in range(7)), 1: tuple(bytes([i + 50]) * 32 for i in range(7))}
SOURCE = Address("192.0.2.7", 51800)


@dataclass
class Calls:
    """Counts what the checks are there to protect."""

    seen: Counter[str] = field(default_factory=Counter)


class CountingKem(CryptographyKem):
    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def keypair(self, seed: bytes) -> tuple[bytes, Decapsulator]:
        self.calls.seen["keypair"] += 1
        return super().keypair(seed)

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        self.calls.seen["encapsulate"] += 1
        return super().encapsulate(ek)


class SpyPeers(dict[bytes, Any]):
    """The roster, counting look-ups."""

    def __init__(self, content: dict[bytes, Any], calls: Calls) -> None:
        super().__init__(content)
        self.calls = calls

    def get(self, key: bytes, default: Any = None) -> Any:
        self.calls.seen["roster"] += 1
        return super().get(key, default)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()

    def spy(owner: Any, name: str, label: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            found.seen[label] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    spy(wire, "cookie_mac_ok", "cookie mac")
    spy(wire, "first_mac_ok", "first mac")
    spy(responder, "source_of", "rate")
    spy(Reassembler, "add", "reassembly")
    spy(Responses, "replayed", "duplicates")
    return found


def auth_of(identity: Identity, which: int, valid_until: float = FOREVER) -> PeerAuth:
    return PeerAuth(identity.node_id, identity.public_key, valid_until, WG[which], ())


def links_for(calls: Calls, *, valid_until: float = FOREVER, agree: Agree = no_agreement) -> Links:
    links = Links(
        node_id=ME.node_id, wg_keys=WG[1], admission=ADMISSION, kem=CountingKem(calls),
        random=random.Random(3).randbytes, now=0.0, agree=agree,
    )  # fmt: skip
    links.set_peers({OTHER.node_id: auth_of(OTHER, 0, valid_until)}, 0.0)
    links._peers = links._context.peers = SpyPeers(links._context.peers, calls)
    calls.seen.clear()
    return links


@dataclass
class Sender:
    """Makes datagrams as the other node would, right or wrong."""

    links: Links
    source: Address = SOURCE
    key: bytes = keys.member_mac_key(ADMISSION, ME.node_id)
    rng: random.Random = field(default_factory=lambda: random.Random(9))

    def cookie(self) -> bytes:
        request = wire.CookieRequest(Mode.MEMBER, b"12345678", OTHER.node_id).encode(self.key)
        (effect,) = self.links.receive(request, self.source, 0.0)
        assert isinstance(effect, Send)
        reply = wire.decode_untrusted(effect.datagram)
        assert isinstance(reply, CookieReply)
        return reply.cookie

    def init(self, **changed: Any) -> wire.Init:
        init = Initiator(
            kem=CryptographyKem(), random=self.rng.randbytes, mode=Mode.MEMBER, node_id=OTHER.node_id,
            epoch=1, credential=bytes(32), interface_hash=keys.interface_hash(WG[0], WG[1]),
        ).init  # fmt: skip
        return replace(init, **changed)

    def datagrams(self, init: wire.Init, cookie: bytes, key: bytes | None = None) -> list[bytes]:
        cut = wire.fragments(Kind.INIT, init.mode, init.session, init.encode())
        return [f.encode(key or self.key, cookie) for f in cut]

    def send(self, datagrams: list[bytes], now: float = 0.0) -> list[Effect]:
        return [effect for d in datagrams for effect in self.links.receive(d, self.source, now)]


def test_a_good_init_passes_every_check_in_order(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    cookie = sender.cookie()
    calls.seen.clear()
    effects = sender.send(sender.datagrams(sender.init(), cookie))
    assert [type(e) for e in effects] == [Sign]
    assert list(calls.seen) == [
        "cookie mac", "first mac", "rate", "reassembly", "roster", "duplicates", "encapsulate",
    ]  # fmt: skip
    assert calls.seen["rate"] == calls.seen["encapsulate"] == 1
    assert links.drops == {}


def expect(calls: Calls, links: Links, reason: str, last: str) -> None:
    order = ["cookie mac", "first mac", "rate", "reassembly", "roster", "duplicates", "encapsulate"]
    assert links.drops[reason] >= 1, links.drops
    for label in order[order.index(last) + 1 :]:
        assert not calls.seen[label], (label, calls.seen)
    assert calls.seen["encapsulate"] == 0


def test_a_wrong_cookie_mac_never_reaches_the_first_mac(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    for datagram in sender.datagrams(sender.init(), b"x" * 16):
        assert links.receive(datagram, SOURCE, 0.0) == []
    expect(calls, links, "cookie", "cookie mac")


def test_a_wrong_first_mac_never_touches_rate_reassembly_or_roster(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    cookie = sender.cookie()
    calls.seen.clear()
    for datagram in sender.datagrams(sender.init(), cookie, key=b"y" * 32):
        assert links.receive(datagram, SOURCE, 0.0) == []
    expect(calls, links, "mac", "first mac")
    assert links.held == (0, 0)


def test_a_cookie_does_not_serve_another_address(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    datagrams = sender.datagrams(sender.init(), sender.cookie())
    calls.seen.clear()
    for datagram in datagrams:
        links.receive(datagram, SOURCE._replace(host="192.0.2.8"), 0.0)
    expect(calls, links, "cookie", "cookie mac")


def test_a_source_over_its_rate_never_touches_reassembly(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    cookie = sender.cookie()
    for _ in range(5):
        links.receive(sender.datagrams(sender.init(), cookie)[0], SOURCE, 0.0)
    held = links.held
    calls.seen.clear()
    assert sender.send(sender.datagrams(sender.init(), cookie)) == []
    expect(calls, links, "rate", "rate")
    assert links.held == held


def test_a_full_quota_never_touches_the_roster(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    links = links_for(calls)
    monkeypatch.setitem(fragments.ROOM, Pool.CURRENT, 1000)
    sender = Sender(links)
    cookie = sender.cookie()
    calls.seen.clear()
    assert sender.send(sender.datagrams(sender.init(), cookie)) == []
    expect(calls, links, "quota", "reassembly")


def test_strangers_end_at_the_roster(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    datagrams = sender.datagrams(sender.init(node_id=b"s" * 16), sender.cookie())
    assert sender.send(datagrams) == []
    expect(calls, links, "unknown-node", "roster")
    assert links.held == (0, 0)


def test_an_expired_certificate_ends_at_the_roster(calls: Calls) -> None:
    links = links_for(calls, valid_until=10.0)
    sender = Sender(links)
    cookie = sender.cookie()
    assert sender.send(sender.datagrams(sender.init(), cookie), now=10.0) == []
    expect(calls, links, "expired", "roster")


def test_a_removed_peer_is_a_stranger_at_once(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    cookie = sender.cookie()
    first = sender.send(sender.datagrams(sender.init(), cookie))
    assert links.held == (0, 1)
    links.set_peers({}, 1.0)
    assert links.held == (0, 0)
    assert isinstance(first[0], Sign)
    assert links.signed(first[0].token, b"s" * 3309, 1.0) == []
    assert sender.send(sender.datagrams(sender.init(), cookie), now=1.0) == []
    assert links.drops["unknown-node"] == 1


def test_a_replay_after_its_handshake_is_forgotten_is_not_answered(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    datagrams = sender.datagrams(sender.init(), sender.cookie())
    sender.send(datagrams)
    links.tick(LIFE)
    assert links.held == (0, 0)
    calls.seen.clear()
    assert sender.send(datagrams, now=LIFE) == []
    expect(calls, links, "replay", "duplicates")


def test_a_bad_encapsulation_key_is_a_drop(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    assert sender.send(sender.datagrams(sender.init(ek=b"\xff" * 1568), sender.cookie())) == []
    assert links.drops == {"encapsulation key": 1}
    assert links.held == (0, 0)


def test_who_shows_nothing_shares_a_budget_and_a_few_places(calls: Calls) -> None:
    """A crowd of addresses that claims a hundred names: what it has computed does not grow with it."""
    links = links_for(calls)
    crowd = {i.to_bytes(16): replace(auth_of(OTHER, 0), node_id=i.to_bytes(16)) for i in range(1, 100)}
    links.set_peers(crowd, 0.0)
    share, seconds = SHARES[Standing.STRANGER], 10.0
    for i in range(2000):
        sender = Sender(links, Address(f"10.0.{i >> 8}.{i & 255}", 51800), rng=random.Random(i))
        init = sender.init(node_id=(i % 99 + 1).to_bytes(16))
        sender.send(sender.datagrams(init, sender.cookie()), seconds * i / 2000)
        assert links.held[1] <= share.places < HALF_OPEN
    assert share.rate * seconds - 1 <= calls.seen["encapsulate"] <= share.burst + share.rate * seconds
    assert links.drops["budget"] > 1800
    links.tick(seconds + LIFE)
    assert links.held == (0, 0)


def test_among_strangers_the_greediest_gives_way(calls: Calls) -> None:
    responses, share = Responses(), SHARES[Standing.STRANGER]
    template = Sender(links_for(calls)).init()

    def add(host: str, port: int) -> Response:
        init = replace(template, session=random.Random(f"{host} {port}").randbytes(8))
        source = Address(host, port)
        assert responses.room_for(Standing.STRANGER, init.node_id, init.node_id, source)
        handshake = Responder(
            init, kem=CryptographyKem(), random=random.Random(f"{port} {host}").randbytes, node_id=ME.node_id,
            epoch=1, chain_id=wire.NO_CHAIN, chain_key=keys.FIRST_CHAIN, interface_hash=bytes(32),
        )  # fmt: skip
        responses.add(Response(handshake, source, Standing.STRANGER, init.node_id, b"", 0.0))
        return responses.of_peer(init.node_id)[-1]

    honest = add("192.0.2.1", 1)
    for port in range(10):
        add("192.0.2.66", port)
    assert len(responses) == 1 + share.of_source
    blocks = share.places // share.of_source
    for host in range(blocks):
        for port in range(share.of_source):
            add(f"198.51.100.{host}", port)
            assert responses.by_own(honest.handshake.own) is honest
    assert len(responses) == share.places


def test_one_address_that_claims_another_name_takes_no_place_of_that_name(calls: Calls) -> None:
    """One who proves its name keeps its place whatever comes in that name, from its own address as well."""
    secret = b"x" * 32
    links = links_for(calls, agree=lambda dimension, theirs: secret)
    sender = Sender(links)
    cookie = sender.cookie()
    key = keys.pair_proof_key(secret, OTHER.node_id, ME.node_id)
    init = prove(sender.init(), key, 3, cookie)
    assert [type(e) for e in sender.send(sender.datagrams(init, cookie))] == [Sign]
    (mine,) = links._answerer.responses.of_peer(OTHER.node_id)
    assert mine.standing is Standing.PROVEN
    for i in range(600):
        source = SOURCE if i % 100 == 50 else Address(f"10.0.{i >> 8}.{i & 255}", 51800)
        flood = Sender(links, source, rng=random.Random(i))
        flood.send(flood.datagrams(flood.init(), flood.cookie()), now=i / 100)
        assert links._answerer.responses.by_own(mine.handshake.own) is mine
    # The proof is good for the address that the cookie was given to, and for nothing else in INIT.
    bad = [prove(sender.init(), key, 3, b"c" * 16), replace(prove(sender.init(), key, 3, cookie), epoch=7)]
    bad += [replace(prove(sender.init(), key, 3, cookie), dimension=4)]
    bad += [prove(sender.init(), keys.pair_proof_key(secret, ME.node_id, OTHER.node_id), 3, cookie)]
    for i, init in enumerate(bad):
        sender.send(sender.datagrams(init, cookie), now=100.0 + i)
        assert links._answerer.responses.of_peer(OTHER.node_id)[-1].standing is Standing.STRANGER


def test_a_member_at_its_own_address_or_with_a_chain_is_no_stranger(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    standing = []
    for i, endpoints in enumerate([(), (SOURCE._replace(port=9),)]):
        links.set_peers({OTHER.node_id: replace(auth_of(OTHER, 0), endpoints=endpoints)}, float(i))
        sender.send(sender.datagrams(sender.init(), sender.cookie()), now=float(i))
        standing.append(links._answerer.responses.of_peer(OTHER.node_id)[-1].standing)
    assert standing == [Standing.STRANGER, Standing.KNOWN]
    sim = Simulation()
    sim.run(3)
    a, b = sim.nodes
    assert a.links is not None and b.links is not None
    held = a.links._peers[b.identity.node_id].psk.committed
    peer = b.links._peers[a.identity.node_id]
    assert held is not None and peer.seen_at == a.address.host
    peer.seen_at, peer.auth = None, replace(peer.auth, endpoints=())
    init = replace(sender.init(), node_id=a.identity.node_id)
    gate = b.links._context.gates[0]
    for credential, expected in ((held.chain_id + bytes(16), Standing.KNOWN), (bytes(32), Standing.STRANGER)):
        got = b.links._answerer._standing(replace(init, credential=credential), peer, gate, SOURCE, b.clock)
        assert got is expected


def test_one_address_holds_one_place(calls: Calls) -> None:
    links = links_for(calls)
    sender = Sender(links)
    cookie = sender.cookie()
    for second in range(3):
        sender.send(sender.datagrams(sender.init(), cookie), now=float(second))
    assert links.held[1] == 1


def test_remembered_nonces_are_bounded_and_a_flood_pushes_out_no_proven_one() -> None:
    responses = Responses()
    responses.remember(b"p" * 32, proven=True)
    for i in range(SEEN_NONCES + 100):
        responses.remember(i.to_bytes(32), proven=False)
    assert not responses.replayed((99).to_bytes(32)) and responses.replayed((100).to_bytes(32))
    assert responses.replayed(b"p" * 32)
    assert sum(map(len, responses._nonces.values())) == SEEN_NONCES + 1


def test_a_cookie_reply_is_no_longer_than_its_request_and_costs_no_state(calls: Calls) -> None:
    links = links_for(calls)
    for i in range(1000):
        nonce = i.to_bytes(8)
        request = wire.CookieRequest(Mode.MEMBER, nonce, OTHER.node_id).encode(Sender.key)
        (effect,) = links.receive(request, Address(f"10.0.{i >> 8}.{i & 255}", i), 0.0)
        assert isinstance(effect, Send) and len(effect.datagram) == len(request)
    assert links.held == (0, 0)
    strange = wire.CookieRequest(Mode.MEMBER, b"12345678", OTHER.node_id).encode(b"k" * 32)
    assert links.receive(strange, SOURCE, 0.0) == []
    enrol = wire.CookieRequest(Mode.ENROL, b"12345678", OTHER.node_id).encode(Sender.key)
    assert links.receive(enrol, SOURCE, 0.0) == []  # this node lets nobody in
    assert links.drops == {"mac": 2}


# --- what comes back to an initiator ---


def test_what_comes_back_needs_both_macs_before_reassembly(calls: Calls) -> None:
    sim = Simulation()
    a, b = sim.nodes
    sim.network.block = {Kind.RESP}
    sim.run(0.2)
    assert a.links is not None
    (session,) = a.links._context.initiations
    init = a.links._context.initiations[session].initiation
    assert init is not None
    body = bytes(5079)
    good, back = (
        keys.member_mac_key(ADMISSION, a.identity.node_id),
        wire.return_cookie(init.handshake.init.nonce),
    )
    (piece, *_) = wire.fragments(Kind.RESP, Mode.MEMBER, session, body)
    calls.seen.clear()
    a.links.receive(piece.encode(good, b"x" * 16), b.address, a.clock)
    assert (calls.seen["cookie mac"], calls.seen["first mac"], calls.seen["reassembly"]) == (1, 0, 0)
    a.links.receive(piece.encode(b"k" * 32, back), b.address, a.clock)
    assert (calls.seen["first mac"], calls.seen["reassembly"]) == (1, 0)
    other = replace(piece, session=b"another!")
    calls.seen.clear()
    a.links.receive(other.encode(good, back), b.address, a.clock)
    assert not calls.seen
    assert a.links.drops == {"cookie": 1, "mac": 1, "session": 1}


def test_a_forged_resp_does_not_stop_the_true_one() -> None:
    sim = Simulation()
    a = sim.nodes[0]
    assert a.links is not None

    def cut(datagram: bytes, source: Address, destination: Address) -> bool:
        """Put a forged RESP of the same session before the first true fragment."""
        parsed = wire.decode_untrusted(datagram)
        if isinstance(parsed, Fragment) and parsed.kind is Kind.RESP and parsed.index == 0 and not forged:
            forged.append(parsed)
            assert a.links is not None
            init = a.links._context.initiations[parsed.session].initiation
            assert init is not None
            key = keys.member_mac_key(ADMISSION, a.identity.node_id)
            back = wire.return_cookie(init.handshake.init.nonce)
            for piece in wire.fragments(Kind.RESP, Mode.MEMBER, parsed.session, b"\1" + bytes(5078)):
                a.links.receive(piece.encode(key, back), source, a.clock)
        return False

    forged: list[Fragment] = []
    sim.network.cut = cut
    sim.run(3)
    assert forged and sum(a.links.drops.values()) >= 1
    assert sim.agree()


def test_lost_fragments_are_asked_for_and_only_those_come_again() -> None:
    sim = Simulation()
    lost: set[tuple[int, int]] = {(Kind.RESP, 2), (Kind.RESP, 4), (Kind.AUTH, 1)}

    def cut(datagram: bytes, source: Address, destination: Address) -> bool:
        key = (datagram[1], datagram[2])
        if key in lost:
            lost.remove(key)
            return True
        return False

    sim.network.cut = cut
    sim.run(0.6)
    assert sim.agree()
    assert sim.sent[Kind.RESEND] == 2
    assert (sim.sent[Kind.RESP], sim.sent[Kind.AUTH]) == (5 + 2, 3 + 1)


def test_a_request_to_resend_brings_no_more_than_one_answer_at_a_time() -> None:
    """It is the one small datagram that large ones answer, and whoever saw it can send it again."""
    sim = Simulation()
    sim.network.block = {Kind.AUTH}
    sim.run(0.2)
    a, b = sim.nodes
    assert a.links is not None and b.links is not None
    (initiation,) = [p.initiation for p in a.links._context.initiations.values()]
    (response,) = b.links._answerer.responses.of_peer(a.identity.node_id)
    assert initiation is not None
    (for_resp,) = (send.datagram for send in initiation.resend_request(0b11111))
    missing = fragments.Missing(a.address, Kind.AUTH, Mode.MEMBER, response.handshake.own, 0b111)
    (for_auth,) = b.links._answerer.ask_again(missing)
    assert isinstance(for_auth, Send)
    for receiver, datagram, sender, size in ((b, for_resp, a, 5), (a, for_auth.datagram, b, 3)):
        assert receiver.links is not None
        for moment in (sim.now, sim.now + 0.11):
            sent = [receiver.links.receive(datagram, sender.address, moment) for _ in range(20)]
            assert [len(effects) for effects in sent] == [size, *[0] * 19]


def answered_but_not_installed() -> tuple[Simulation, Links]:
    """A second handshake whose responder has verified AUTH and whose kernel took no PSK."""
    sim = Simulation()
    sim.run(5)
    a, b = sim.nodes
    b.install_works = False
    assert a.links is not None and b.links is not None
    a.links.rotate(None, a.clock)
    sim.carry_out(a, a.links.tick(a.clock))
    sim.run(0.5)
    assert sim.state(1, 0).epoch == 2
    return sim, b.links


def test_ack_waits_until_the_psks_are_read_back() -> None:
    sim, _ = answered_but_not_installed()
    sim.run(2.5)
    assert sim.sent[Kind.ACK] == 1 and sim.state().epoch == 1
    sim.nodes[1].install_works = True
    sim.run(1.5)
    assert sim.sent[Kind.ACK] == 2 and sim.state().epoch == 2


def test_ack_names_the_interfaces_where_not_all_were_installed() -> None:
    sim, links = answered_but_not_installed()
    a, b = sim.nodes
    assert a.links is not None
    (initiation,) = [p.initiation for p in a.links._context.initiations.values()]
    assert initiation is not None
    some = 0b0000101
    assert links.read_back(a.identity.node_id, some, [None] * 7, b.clock) == []
    effects = links.read_back(a.identity.node_id, some, [None] * 7, b.clock + 1.0)
    (ack,) = [e.datagram for e in effects if isinstance(e, Send)]
    parsed = wire.decode_untrusted(ack)
    assert isinstance(parsed, Fragment)
    assert initiation.handshake.on_ack(parsed.chunk).bitmap == some


# --- enrolment ---

INVITE, SECRET, ROOT_HASH = b"v" * 16, Secret(b"s" * 32), b"r" * 32


@dataclass
class Enrolling:
    """A newcomer and an authority, joined by a list of effects."""

    authority: Links
    newcomer: Newcomer
    opened: list[Opened] = field(default_factory=list)

    def run(self) -> None:
        now, here = 0.0, Address("192.0.2.9", 1)
        todo: list[tuple[str, Effect]] = [("newcomer", e) for e in self.newcomer.tick(now)]
        while todo:
            who, effect = todo.pop(0)
            now += 0.001
            effects: list[Effect] = []
            match effect:
                case Send(datagram, _) if who == "newcomer":
                    effects, who = self.authority.receive(datagram, here, now), "authority"
                case Send(datagram, destination):
                    assert destination == here
                    effects, who = self.newcomer.receive(datagram, now), "newcomer"
                case Sign(token, request) if who == "newcomer":
                    effects = self.newcomer.signed(OTHER.sign(request.data, request.context), now)
                case Sign(token, request):
                    effects = self.authority.signed(token, ME.sign(request.data, request.context), now)
                case Opened():
                    self.opened.append(effect)
            todo += [(who, e) for e in effects]


def enrolling(secret: Secret = SECRET, invite: bytes = INVITE, authority: bytes = ME.node_id) -> Enrolling:
    def find(invite_id: bytes, node_id: bytes) -> Secret | None:
        return SECRET if invite_id == INVITE and node_id == OTHER.node_id else None

    links = Links(
        node_id=ME.node_id, wg_keys=WG[1], admission=ADMISSION, kem=CryptographyKem(), now=0.0,
        random=random.Random(3).randbytes, enrolment=Enrolment(ROOT_HASH, ME.spki, find),
    )  # fmt: skip
    newcomer = Newcomer(
        node_id=OTHER.node_id, spki=OTHER.spki, authority=authority, root_hash=ROOT_HASH, invite=invite,
        secret=secret, destination=Address("192.0.2.1", 51800), kem=CryptographyKem(),
        random=random.Random(4).randbytes, now=0.0,
    )  # fmt: skip
    return Enrolling(links, newcomer)


def test_an_invited_newcomer_gets_a_channel() -> None:
    case = enrolling()
    case.run()
    authority, newcomer = case.opened
    assert (authority.role, newcomer.role) == ("responder", "initiator")
    assert (authority.key_out, authority.key_in) == (newcomer.key_in, newcomer.key_out)
    assert authority.invite == INVITE and authority.spki == OTHER.spki
    assert authority.session == newcomer.session
    assert case.authority.drops == {}


def test_a_newcomer_without_the_secret_costs_no_encapsulation() -> None:
    case = enrolling(secret=Secret(b"t" * 32))
    case.run()
    assert case.opened == [] and case.authority.drops["invite-proof"] == 1
    assert case.authority.held == (0, 0)


def test_an_unknown_invite_is_dropped() -> None:
    case = enrolling(invite=b"w" * 16)
    case.run()
    assert case.opened == [] and case.authority.drops["invite"] == 1


def test_a_datagram_for_another_authority_fails_its_mac() -> None:
    case = enrolling(authority=b"z" * 16)
    case.run()
    assert case.opened == [] and case.authority.drops["mac"] == 1


# --- membership ---


def test_new_wireguard_keys_start_the_link_anew() -> None:
    sim = Simulation()
    sim.run(3)
    a, b = sim.nodes
    assert a.links is not None and b.links is not None
    before = [psk.reveal() for psk in a.links.psks(b.identity.node_id)]
    b.wg_keys = tuple(bytes([200 + i]) * 32 for i in range(7))
    a.links.set_peers({b.identity.node_id: b.auth()}, a.clock)
    assert not a.links.keyed(b.identity.node_id)
    assert not set(before) & {psk.reveal() for psk in a.links.psks(b.identity.node_id)}
    sim.run(2)
    assert not sim.agree()  # b does not know of it yet
    assert not a.links.keyed(b.identity.node_id) and sim.state().phase is PskPhase.NONE
    sim.restart(b)
    sim.run(30)
    assert sim.agree()


def test_an_unchanged_roster_changes_nothing() -> None:
    sim = Simulation()
    sim.run(3)
    a, b = sim.nodes
    assert a.links is not None
    before = a.links.psks(b.identity.node_id)
    a.links.set_peers({b.identity.node_id: b.auth()}, a.clock)
    assert a.links.psks(b.identity.node_id) is before


def test_rotate_starts_a_new_epoch_with_one_or_all() -> None:
    sim = Simulation(nodes=3)
    sim.run(3)
    a, b, c = sim.nodes
    assert a.links is not None
    assert a.links.rotate(b.identity.node_id, a.clock) == [b.identity.node_id]
    sim.run(2)
    assert (sim.state(0, 1).epoch, sim.state(0, 2).epoch) == (2, 1)
    assert set(a.links.rotate(None, a.clock)) == {b.identity.node_id, c.identity.node_id}
    sim.run(2)
    assert (sim.state(0, 1).epoch, sim.state(0, 2).epoch) == (3, 2)
    with pytest.raises(KeyError):
        a.links.rotate(b"nobody", a.clock)


def test_signatures_nobody_asked_for_are_ignored(calls: Calls) -> None:
    links = links_for(calls)
    assert links.signed(b"12345678", b"s" * 3309, 1.0) == []


def test_noise_is_malformed_and_nothing_else(calls: Calls) -> None:
    """Drop reasons become metric labels: they must not depend on what was sent."""
    links = links_for(calls)
    rng = random.Random(1)
    for size in range(1300):
        links.receive(rng.randbytes(size), SOURCE, 0.0)
    assert set(links.drops) == {"malformed"}
