# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's policies of access: taken of members, kept on disk, and signed where an authority runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import time
from typing import Final

import structlog
import trio

from phantommesh.acl.policy import PolicyError, PolicySection
from phantommesh.acl.rules import Policy
from phantommesh.acl.signedpolicy import SignedPolicy, Verified, encode, sign, verify
from phantommesh.faults import Fault, FaultKind
from phantommesh.moments import rfc3339
from phantommesh.nursery.keeping.saver import Patience, Saver
from phantommesh.rates import Rates
from phantommesh.records.roster import name_of
from phantommesh.state import directory
from phantommesh.state.files import StateError
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.identity import NodeId

POLICY_AHEAD = FaultKind("policy-ahead", "high")

# Tuning.
# Policies of one member that are verified, a second and at once: each takes a signature check and its tests.
VERIFY_RATE, VERIFY_BURST = 0.2, 20.0
MOST_TOLD: Final = 1024  # members that are told apart

_LAST_DATE: Final = 253_402_300_800  # unix seconds: dates have four digits for the year

log = structlog.get_logger("phantommesh.acl")


class Policing:
    """The policies of one node. ``changed`` is called when another may be in force."""

    def __init__(self, node: NodeState, *, changed: Callable[[], None]) -> None:
        self.dropped = Counter[str]()
        self._node, self._changed = node, changed
        self._rates = Rates[bytes](VERIFY_RATE, VERIFY_BURST, MOST_TOLD)
        self._saver = Saver(self._write)
        self.disk = Patience(log, "the mesh's policies")

    def verified(self) -> Verified | None:
        """The policy in force, with its signature."""
        return self._node.policies.current(self._node.revocations, time())

    def current(self) -> Policy | None:
        """The rules in force."""
        found = self.verified()
        return None if found is None else found.policy

    async def take(self, told: Sequence[bytes], member: NodeId) -> bool:
        """Hold what a member says; return whether any of it is news. What is held already costs nothing."""
        news = False
        for data in told:
            try:
                signed = SignedPolicy.decode_untrusted(data)
                if not self._node.policies.wants(signed, time()):
                    continue
                if not self._rates.allow(bytes(member), trio.current_time()):
                    raise TrustError("the member says too much of policies")
                found = await trio.to_thread.run_sync(verify, signed, self._node.root, time())
            except (TrustError, PolicyError) as error:
                self.dropped["policy"] += 1
                log.warning("a policy was refused", peer=member.hex(), error=str(error))
                continue
            news |= self._node.policies.hold(found, time())
        if news:
            await self._note()
        return news

    async def set(self, section: PolicySection, *, dry_run: bool) -> Verified:
        """Sign a policy for the whole mesh, once it passes its tests. ``dry_run``: sign, and forget it.
        Raises PolicyError, or TrustError where this node is no authority."""
        authority = self._node.authority
        if authority is None:
            raise TrustError("only an authority signs the mesh's policy", fix="run this on an authority")
        if self._node.identity.node_id in self._node.revocations:
            raise TrustError("this authority is revoked", fix="run this on another authority")

        def make() -> Verified:
            now = time()
            signed = sign(authority, section, last=self._node.policies.last(now), now=now)
            return verify(signed, self._node.root, now)

        made = await trio.to_thread.run_sync(make)
        if not dry_run and self._node.policies.hold(made, time()):
            await self._note()
        return made

    def faults(self) -> Iterator[Fault]:
        """Name the policies that this node holds and nobody follows yet."""
        for one in self._node.policies.ahead(time()):
            signer, number = one.signer, one.signed.number
            yield POLICY_AHEAD.fault(
                f"an access policy was signed by a clock that was ahead: it is of {_date(number)}, and "
                "no member follows it before",
                "see that this machine's clock is right; then sign the policy once more, with `phantommesh "
                "acl set-policy`, on the authority that signed it",
                subject=name_of(self._node.roster.get(signer), signer),
            )

    async def run(self) -> None:
        """Write what the disk has refused, until cancelled."""
        while True:
            await self._saver.marked()
            async with self.disk.patiently():
                await self._saver.save()

    async def _note(self) -> None:
        self._changed()  # at once, also where the disk is full
        self._saver.mark()
        with suppress(StateError):  # `run` says so, and tries again
            await self._saver.save()

    async def _write(self) -> None:
        kept = encode(self._node.policies)
        await trio.to_thread.run_sync(self._node.state.write, directory.POLICIES, kept)


def _date(number: int) -> str:
    return rfc3339(number) if number < _LAST_DATE else "a year after 9999"
