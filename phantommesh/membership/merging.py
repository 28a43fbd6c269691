# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding others again: seeds tried for ever, dead members retried, whole tables compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from phantommesh.endpoint import Address
from phantommesh.membership.core import Core
from phantommesh.membership.effects import FetchRecord, Sync
from phantommesh.membership.messages import (
    LEFT,
    MAX_REST_EVENTS,
    MAX_SYNC_EVENTS,
    GossipError,
    State,
    SyncKind,
    SyncMessage,
    accusation,
    decode_sync_untrusted,
    encode_digest,
    encode_events,
)
from phantommesh.membership.probing import Probing

FIRST_SEED_WAIT: Final = 0.5  # s between tries while nobody is known; then more each time
MISSING_AT_ONCE: Final = 8  # records asked for again per retry
YOUNG: Final = 60.0  # s from the start in which after a sync that found a difference
HASTY: Final = 3  # more follow
HASTE: Final = 0.3  # after this share of the usual time
RETRIERS: Final = 8  # members that try a dead one again in one interval, together: it may not be able to call
SLICE: Final = 512  # events of a sync taken in at once, some 20 ms
SLICE_PAUSE: Final = 0.01  # s until the next


class Merging:
    """Brings views together that gossip alone would leave apart."""

    def __init__(self, core: Core, probing: Probing, seeds: tuple[Address, ...]) -> None:
        self._core = core
        self._probing = probing
        self._rumours = probing.rumours
        self._seeds = list(seeds)
        self._seed_wait = FIRST_SEED_WAIT
        self._synced = False
        self._young_until = core.clock + YOUNG
        self._next_sync = core.clock
        self._hasty = 0

    def start(self) -> None:
        """Set the timers."""
        core, params, rng = self._core, self._core.params, self._core.rng
        core.at(core.clock, self._try_seed)
        self._sync_in(rng.random() * params.sync_interval * (HASTE if params.verify else 1))
        core.at(core.clock + rng.random() * params.retry_interval, self._retry)

    def set_seeds(self, seeds: Iterable[Address]) -> None:
        """Replace the addresses to try."""
        self._seeds = list(seeds)

    def _alone(self) -> bool:
        return self._core.table.live <= 1

    def _try_seed(self, _: None) -> None:
        core = self._core
        if self._seeds and not core.leaving:
            if self._alone():
                for seed in self._seeds:
                    self._probing.contact(seed)
            else:
                self._probing.contact(self._seeds[int(core.rng.random() * len(self._seeds))])
        limit = core.params.seed_interval
        self._seed_wait = min(self._seed_wait * 1.5, limit) if self._alone() else limit
        core.at(core.clock + self._seed_wait * (0.75 + 0.5 * core.rng.random()), self._try_seed)

    def contacted(self) -> None:
        """Someone answered at a bare address: if that is news, compare tables."""
        core = self._core
        contacts, self._probing.contacts = self._probing.contacts, []
        for node, address in contacts:
            if node == core.node or node in self._probing.claims.expelled:
                continue
            self._probing.hint(node)
            if core.table.get(node) is None or node in core.table.down or not self._synced:
                self._synced = True
                core.out.append(Sync(address))

    def _sync_in(self, seconds: float) -> None:
        self._next_sync = self._core.clock + seconds
        self._core.at(self._next_sync, self._sync)

    def _sync(self, _: None) -> None:
        """Compare with a random member (memberlist's push-pull, but by digest)."""
        core = self._core
        if core.clock < self._next_sync - 1e-6:  # it was brought forward, and has been since
            return
        self._hasty -= self._hasty > 0
        self._sync_in(self._pause() * (0.75 + 0.5 * core.rng.random()))
        if core.leaving:
            return
        for peer in core.peers(1, self._probing.verdicts.doubted):
            core.out.append(Sync(peer))

    def _pause(self) -> float:
        return self._core.params.sync_interval * (HASTE if self._hasty else 1)

    def _differed(self) -> None:
        """A sync found a difference. Whoever has just started may have missed more, and news does not come
        twice; whoever has run for a while hears what is new by gossip."""
        core = self._core
        if core.params.verify and core.clock < self._young_until:
            self._hasty = HASTY
            soon = self._pause() * (0.75 + 0.5 * core.rng.random())
            if core.clock + soon < self._next_sync:
                self._sync_in(soon)

    def _retry(self, _: None) -> None:
        """Serf's rule: the more have failed, the likelier one is tried again. And purge what is too old."""
        core, params = self._core, self._core.params
        core.at(core.clock + params.retry_interval * (0.75 + 0.5 * core.rng.random()), self._retry)
        down = core.table.down
        failed = [node for node, gone in down.items() if gone.state is State.DEAD]
        few = RETRIERS if params.verify else 1
        if failed and core.rng.random() < max(few, len(failed)) / max(1, core.table.live):
            node = failed[int(core.rng.random() * len(failed))]
            if params.verify:
                down[node].retried = True
                self._probing.check(node, False)
            else:
                core.out.append(Sync(node))
        for node in [node for node, gone in down.items() if core.clock - gone.since > params.purge]:
            self._probing.verdicts.forget(node, "purged")
        missing = self._probing.claims.missing()
        for claim, source in core.rng.sample(missing, min(len(missing), MISSING_AT_ONCE)):
            core.out.append(FetchRecord(claim[:16], int.from_bytes(claim[26:32]), claim[32:], source))

    # Tables over a stream.

    def open(self) -> bytes:
        """Return our digest."""
        return encode_digest(self._core.node, self._core.table.hashes(), self._core.own)

    def answer(self, opening: bytes, peer: bytes) -> bytes:
        """Return what we hold in the buckets that differ."""
        message = self._decode(opening, SyncKind.DIGEST, peer)
        self._rumours.hear(message.events, message.sender)
        self._probing.hint(message.sender)
        mine = self._core.table.hashes()
        differing = [b for b, theirs in enumerate(message.hashes) if theirs != mine[b]]
        if differing:
            self._differed()
        return encode_events(SyncKind.DIFFERENCE, self._core.node, differing, self._events(differing))

    def close(self, answer: bytes, peer: bytes) -> bytes:
        """Take in what they hold, and return what we do."""
        message = self._decode(answer, SyncKind.DIFFERENCE, peer)
        if message.buckets:
            self._differed()
        mine = self._events(message.buckets, MAX_REST_EVENTS)
        self._hear((message.events, message.sender))
        return encode_events(SyncKind.REST, self._core.node, message.buckets, mine)

    def finish(self, closing: bytes, peer: bytes) -> None:
        """Take in what they hold."""
        message = self._decode(closing, SyncKind.REST, peer)
        self._hear((message.events, message.sender))

    def _hear(self, told: tuple[list[bytes], bytes]) -> None:
        """Take events in, a slice at a time: in between the owner does other things."""
        events, sender = told
        self._rumours.hear(events[:SLICE], sender)
        if len(events) > SLICE:
            self._core.at(self._core.clock + SLICE_PAUSE, self._hear, (events[SLICE:], sender))

    def _decode(self, data: bytes, kind: SyncKind, peer: bytes) -> SyncMessage:
        message = decode_sync_untrusted(data)
        if message.kind is not kind:
            raise GossipError("kind")
        if message.sender != peer:
            raise GossipError("impostor")
        return message

    def _events(self, buckets: list[int], limit: int = MAX_SYNC_EVENTS) -> list[bytes]:
        """Return the events that we hold in these buckets; over the limit a part of them drawn at random, so
        that none is always left out."""
        table, me = self._core.table, self._core.node
        events = []
        for node in table.within(buckets):
            claim, down = table.get(node), table.down.get(node)
            if node == me:
                events.append(self._core.own)
            elif down is not None:
                events.append(accusation(node, down.key, down.state, node if down.state == LEFT else me))
            elif claim is not None:
                events.append(claim)
        return events if len(events) <= limit else self._core.rng.sample(events, limit)
