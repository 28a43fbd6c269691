# SPDX-License-Identifier: GPL-3.0-or-later
"""A node gets a new identity under its old name: `phantommesh identity new`.

1. An authority gives the node an invite in place of itself, over the channel that the old identity opened.
   The invite is on disk (`successor.invite`) before anything else happens.
2. The node joins by it as any newcomer does, into a directory of its own within the state directory
   (`successor`, whole or not there). The authority revokes the old identity when it lets the new one in.
3. The node stops, and starts again: `start.install_successor` puts the new state in place of the old.

A crash before the authority revokes leaves the old identity at work, a crash after it an invite that still
admits the same new keys: so the node goes on by itself when it runs again, revoked or not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import time

import structlog
import trio

from phantommesh.config.sections import Config
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.node.desk import AUTHORITY_ANEW
from phantommesh.node.own import check_successor
from phantommesh.nursery import unexpected
from phantommesh.nursery.members import enrolment
from phantommesh.nursery.members.calling import Caller
from phantommesh.state import directory
from phantommesh.state.making import Summary
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.invites import Invite

IDENTITY_PENDING = FaultKind("identity-pending", "high")

# Tuning.
AGAIN = 15.0  # s between attempts to go on with what was begun

log = structlog.get_logger("phantommesh.succession")


class Succession:
    """This node's way to a new identity. ``done`` is set when the new one is whole on disk: the node should
    then stop, for the old one is revoked. ``name`` gives this node's name, ``revoked`` whether it was."""

    def __init__(
        self,
        config: Config,
        state: NodeState,
        caller: Caller,
        *,
        name: Callable[[], str],
        revoked: Callable[[], bool],
    ) -> None:
        self._config, self._state, self._caller = config, state, caller
        self._name, self._revoked = name, revoked
        self._busy = trio.Lock()
        self.done = trio.Event()
        self.error: PhantomMeshError | None = None

    @property
    def pending(self) -> bool:
        """Whether a succession was begun and is not done."""
        return self._state.state.has(directory.SUCCESSION)

    async def begin(self) -> Summary:
        """Get the new identity; when this returns it is whole on disk and the old one revoked. Raises
        PhantomMeshError; `run` then goes on with anything that was begun."""
        if self._state.authority is not None:
            raise TrustError("an authority's identity is not replaced", fix=AUTHORITY_ANEW)
        async with self._busy:
            if self.done.is_set():
                raise TrustError(
                    "this node has a new identity already", fix="wait until it has started again"
                )
            if self.pending:
                try:
                    return await self._carry_on()
                except PhantomMeshError:
                    if self._revoked():
                        raise
            if self._revoked():
                raise TrustError(
                    "this node was revoked, so no authority gives it a new identity",
                    fix=directory.JOIN_ANEW,
                )
            granted = (await self._caller.replace()).invite
            token = granted.encode("ascii", "replace")
            await trio.to_thread.run_sync(self._state.state.write, directory.SUCCESSION, token)
            return await self._carry_on()

    async def run(self) -> None:
        """Go on with what an earlier run of this node, or an earlier attempt, has begun, until cancelled."""
        while True:
            if self.pending and not self.done.is_set() and not self._busy.locked():
                async with self._busy:
                    try:
                        await self._carry_on()
                    except PhantomMeshError as error:
                        log.warning("no new identity yet", error=str(error), fix=error.fix)
                    except Exception as error:  # an authority's answer is not the service's end
                        unexpected.note("no new identity yet after an unexpected error", error)
            await trio.sleep(AGAIN)

    async def _carry_on(self) -> Summary:
        try:
            summary = await self._join()
        except PhantomMeshError as error:
            self.error = error
            raise
        self.error = None
        log.warning("this node has a new identity", name=summary.name, ip4=str(summary.ip4))
        self.done.set()
        return summary

    async def _join(self) -> Summary:
        state = self._state.state
        token = (await trio.to_thread.run_sync(state.read_secret, directory.SUCCESSION)).reveal()
        try:
            invite = Invite.parse_untrusted(token.decode("ascii", "replace"))
            check_successor(invite, self._state.mesh, time())
        except TrustError:
            await trio.to_thread.run_sync(
                partial((state.path / directory.SUCCESSION).unlink, missing_ok=True)
            )
            raise
        config = state.path / f"{directory.SUCCESSOR}.toml"  # the node's own stays as it is
        await trio.to_thread.run_sync(partial(config.unlink, missing_ok=True))
        try:
            return await enrolment.join(
                state.path / directory.SUCCESSOR,
                config,
                invite.encode(),
                name=self._name(),
                endpoints=self._config.node.endpoints,
                config=self._config,
                chosen=False,
            )
        finally:
            config.unlink(missing_ok=True)
