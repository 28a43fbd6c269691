# SPDX-License-Identifier: GPL-3.0-or-later
"""This node's own word: its record, signed anew when it changes, and its certificate, renewed in time."""

from __future__ import annotations

import json
from dataclasses import replace
from time import time

import structlog
import trio
from msgspec import structs

from phantommesh import statedir
from phantommesh.config import Config
from phantommesh.errors import PhantomMeshError
from phantommesh.issuing import make_csr
from phantommesh.nodestate import NodeState, make_record, renewal_files
from phantommesh.nursery import unexpected
from phantommesh.nursery.calling import Caller
from phantommesh.nursery.keeper import RosterKeeper
from phantommesh.records import Dispute, settle, sign_record
from phantommesh.trust import TrustError, authority_node, verify_chain
from phantommesh.wgkeys import SEQ_AHEAD, WgKeys

RENEW_AT = 2 / 3  # of a certificate's life

# Tuning.
LOOK = 60.0  # s between looks at the certificate's age
AGAIN = 5.0  # s between attempts to get another one where the present one is disputed

log = structlog.get_logger("phantommesh.own")


class OwnRecord:
    """This node as others know it. ``member`` is what its certificate says."""

    def __init__(self, config: Config, state: NodeState, keeper: RosterKeeper) -> None:
        self._config, self._state, self._keeper = config, state, keeper
        self._node_cert, self._authority_cert = state.node_cert, state.authority_cert
        self.member = state.member_at_issue()
        self.wg_keys = state.wg_keys
        self.renewal_error: PhantomMeshError | None = None

    def publish(self) -> None:
        """Put our record into the roster if it says anything new. Also where the roster came back with a
        record of ours that we have no memory of, after the state was restored from a backup."""
        state = self._state
        if self._keeper.revoked is not None:
            return
        held = self._keeper.roster.get(state.identity.node_id)
        record = make_record(state.identity, self.wg_keys, self._config, self._next_seq())
        same_words = held is not None and structs.replace(record, seq=held.record.seq) == held.record
        if same_words and held is not None and held.signed.node_cert == self._node_cert:
            return
        if self.member.not_after <= time():
            return  # nobody would take it; a renewal comes first
        try:
            self._keeper.add(sign_record(state.identity, record, self._node_cert, self._authority_cert))
        except PhantomMeshError as error:  # the old one still stands
            log.error("our own record is not acceptable", error=str(error), fix=error.fix)

    def _next_seq(self) -> int:
        """A number for our next record: above those in the roster, and above those that were given out with
        the present keys by a run that ended before it could save the roster."""
        held = self._keeper.roster.get(self._state.identity.node_id)
        return max(0 if held is None else held.record.seq, self._state.wg_keys.seq) + 1

    async def reserve(self) -> None:
        """Call once, before `publish`. Reserves record numbers on disk, so that a run that crashes before
        saving the roster does not reuse them. Also dates keys of unknown age from now, so that they grow old
        across restarts too. If it cannot be written, the node does without."""
        if self.wg_keys.in_place:
            log.warning("the WireGuard keys of an earlier version were replaced: they could not be proved")
        dated = self.wg_keys.dated(time())
        try:
            await self._write_keys(replace(dated, seq=max(dated.seq, self._next_seq() + SEQ_AHEAD)))
        except PhantomMeshError as error:
            log.error("record numbers are not reserved", error=str(error), fix=error.fix)

    async def replace_key(self, dimension: int, slot: int) -> None:
        """Give one dimension a new WireGuard key and another of its ports. When this returns the key is on
        disk and in ``wg_keys``, and nobody was told of it yet. Raises StateError; then the old one stands."""
        await self._write_keys(self.wg_keys.replaced(dimension, slot, time(), self._next_seq() + SEQ_AHEAD))

    async def _write_keys(self, keys: WgKeys) -> None:
        data = json.dumps(keys.encode()).encode("ascii")
        await trio.to_thread.run_sync(self._state.state.write, statedir.WIREGUARD_KEYS, data)
        self.wg_keys = keys

    def renewal_due(self) -> float:
        """The Unix time at which the certificate should be renewed."""
        return self.member.not_before + RENEW_AT * (self.member.not_after - self.member.not_before)

    async def renew(self, caller: Caller) -> None:
        """Renew the certificate whenever two thirds of its life are over, until cancelled."""
        while True:
            await self.renew_if_due(caller)
            with trio.move_on_after(LOOK):
                while not self._disputed():
                    await self._keeper.changes()
                await trio.sleep(AGAIN)

    def _disputed(self) -> bool:
        """Whether the certificate should be replaced before its time: another member has the name or the
        address and keeps it, or the authority that issued it was revoked. False if this node itself was
        revoked."""
        issuer = authority_node(self._authority_cert)
        if self._keeper.revoked is not None:
            return False
        return self.dispute() is not None or (issuer is not None and issuer in self._state.revocations)

    def dispute(self) -> Dispute | None:
        """Return what we have to give up to another member, if anything."""
        return next(
            (
                dispute
                for dispute in self._keeper.roster.disputes(time())
                if dispute.loser == self.member.node_id and dispute.over in ("address", "name")
            ),
            None,
        )

    def shared_dimension(self) -> int | None:
        """A dimension whose key another member holds too, as it proved: such a key protects nothing any more.

        None if there is none.
        """
        me, public = self._state.identity.node_id, self.wg_keys.public
        disputes = self._keeper.roster.disputes(time())
        shared = (d.key for d in disputes if me in (d.loser, d.winner) and d.key in public)
        return next(map(public.index, shared), None)

    async def changes(self) -> None:
        """Return at the next change of the roster."""
        await self._keeper.changes()

    async def renew_if_due(self, caller: Caller) -> None:
        """Try once if it is time. Why it failed is in ``renewal_error``, which `status` tells."""
        if self._keeper.revoked is not None or (time() < self.renewal_due() and not self._disputed()):
            return
        try:
            await self._renew(caller)
            self.renewal_error = None
        except PhantomMeshError as error:
            self.renewal_error = error
            log.warning("certificate not renewed", error=str(error), fix=error.fix)
        except Exception as error:  # an authority's answer is not the service's end
            self.renewal_error = TrustError("the renewal failed in a way that nobody expected: see the log")
            unexpected.note("certificate not renewed after an unexpected error", error)

    async def _renew(self, caller: Caller) -> None:
        state, member, now = self._state, self.member, time()
        if state.authority is not None:
            authority_cert = state.authority.der
            name, ip4 = settle(self._keeper.roster, state.mesh, member, now)
            node_cert = state.authority.issue(state.identity.spki, name, member.role, ip4, now)
        else:
            dispute = self.dispute()
            winner = None if dispute is None else self._keeper.roster.get(dispute.winner)
            evidence = b"" if winner is None else winner.signed.encode()
            renewed = await caller.renew(make_csr(state.identity, member.name), evidence)
            node_cert, authority_cert = renewed.node_cert, renewed.authority_cert
        renewed_member = verify_chain(state.root, authority_cert, node_cert, time())
        if renewed_member.node_id != member.node_id:
            raise TrustError("the authority certified another node's key")
        for name, data in renewal_files(authority_cert, node_cert).items():
            await trio.to_thread.run_sync(state.state.write, name, data)
        self.member, self._node_cert, self._authority_cert = renewed_member, node_cert, authority_cert
        self.publish()
        log.info(
            "certificate renewed",
            until=self.member.not_after,
            name=renewed_member.name,
            ip4=str(self.member.ip4),
        )
