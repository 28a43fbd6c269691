# SPDX-License-Identifier: GPL-3.0-or-later
"""This node's record and certificate while it runs: `node.own` decides, on this node's disk and clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from time import time
from typing import Any, TypeVar, assert_never

import structlog
import trio

from phantommesh.config.sections import Config
from phantommesh.control import messages
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.node import own as deciding
from phantommesh.node.own import Certified, Own
from phantommesh.node.steps import Compute, Told
from phantommesh.node.whereabouts import Found
from phantommesh.nursery import unexpected
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.logs import tell
from phantommesh.nursery.members.authority import AuthorityDesk
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.working import do
from phantommesh.records.record import Condition, NodeRecord, RelayOffer
from phantommesh.records.roster import Dispute
from phantommesh.routable import Network, in_order, parse_prefix
from phantommesh.state import directory
from phantommesh.state.start import NodeState, make_record, renewal_files
from phantommesh.trust.certificates import Member, TrustError
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.keys import WgKeys

DISPUTED = FaultKind("own-claim-disputed", "critical")
CERTIFICATE_EXPIRED = FaultKind("certificate-expired", "critical")
CERTIFICATE_NOT_RENEWED = FaultKind("certificate-not-renewed", "high")
MESH_ENDS = FaultKind("mesh-ends", "high")

# Tuning.
LOOK = 60.0  # s between looks at the certificate's age
LOOK_UNCERTIFIED = 15.0  # s between attempts to be taken back
AGAIN = 5.0  # s between attempts to get another one where the present one is disputed
# s between questions for routes that are not approved yet: at first, and for how long; later on
ASK_ROUTES_SOON, ASK_ROUTES_FIRST, ASK_ROUTES = 5.0, 600.0, 30.0

T = TypeVar("T")

log = structlog.get_logger("phantommesh.own")


class OwnRecord:
    """This node as others know it. ``word`` has all that it says of itself. ``merge`` takes in the group keys
    that an authority gave: `GroupKeys.merge`. ``found`` says where this node is reached, beside the
    configured endpoints; ``relays``, whether it forwards for others; ``tcp_ports``, at which further ports it
    takes TCP; ``condition``, how it stands."""

    def __init__(
        self,
        config: Config,
        state: NodeState,
        keeper: RosterKeeper,
        merge: Callable[[bytes, bytes, NodeId], bool],
    ) -> None:
        self._config, self._state, self._keeper, self._merge = config, state, keeper, merge
        self.found: Callable[[], Found] = Found
        self.relays: Callable[[], RelayOffer | None] = lambda: None
        self.tcp_ports: Callable[[], tuple[int, ...]] = tuple
        self.condition: Callable[[], Condition] = Condition
        self._approved = trio.Event()
        self._certifying = trio.Lock()  # a renewal must not bring back a name that a rename has just replaced
        certified = Certified(state.node_cert, state.authority_cert, state.member_at_issue())
        advertised = map(parse_prefix, config.routes.advertise)
        self.word = Own(state, certified, state.wg_keys, self._words, advertised)

    def _words(self, keys: WgKeys, seq: int) -> NodeRecord:
        found = self.found()
        return make_record(
            self._state.identity, keys, self._config, seq,
            found=found.endpoints, candidates=found.candidates, relay=self.relays(),
            tcp_ports=self.tcp_ports(), routes=tuple(map(str, self.word.routes.offered)),
            condition=self.condition(),
        )  # fmt: skip

    @property
    def ports(self) -> tuple[int, ...]:
        """The UDP ports of this node's WireGuards now, by dimension."""
        settings = self._config.wireguard
        return self.wg_keys.ports(settings.base_port, settings.port_choices)

    @property
    def member(self) -> Member:
        """This node, as its certificate describes it."""
        return self.word.member

    @property
    def wg_keys(self) -> WgKeys:
        """This node's WireGuard keys."""
        return self.word.wg_keys

    @property
    def renewal_error(self) -> PhantomMeshError | None:
        """Why the last attempt to renew the certificate failed, if it did."""
        return self.word.renewal_error

    def me(self) -> Member:
        """``member`` as it is now."""
        return self.member

    def name(self) -> str:
        """This node's name now: another certificate may give it another name."""
        return self.member.name

    def ip4(self) -> IPv4Address:
        """This node's overlay address now."""
        return self.member.ip4

    def routed(self) -> tuple[Network, ...]:
        """The prefixes that this node routes for others now."""
        return self.word.routes.offered

    def advertise(self, prefixes: Iterable[Network]) -> None:
        """Route these for others from now on, as far as the certificate has them; ask for the rest now."""
        self.word.routes.advertised = in_order(prefixes)
        self._approved.set()

    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """Both of this node's overlay addresses now."""
        return self.member.ip4, self.member.ip6

    def agree(self, dimension: int, theirs: bytes) -> bytes | None:
        """`WgKeys.agree` of this node's keys as they are now."""
        return self.wg_keys.agree(dimension, theirs)

    def publish(self) -> None:
        """Put our record into the roster if it says anything new."""
        try:
            if (signed := self.word.record(time())) is not None:
                self._keeper.add(signed)
        except PhantomMeshError as error:  # the old record still stands
            log.error("our own record is not acceptable", error=str(error), fix=error.fix)

    async def reserve(self) -> None:
        """`Own.reserve`. Call this once, before `publish`."""
        await self._do(self.word.reserve(moment()))

    async def replace_key(self, dimension: int, slot: int) -> None:
        """`Own.replace_key`. Raises StateError; then the old key stands."""
        await self._do(self.word.replace_key(dimension, slot, moment()))

    def renewal_due(self) -> float:
        """The Unix time at which the certificate should be renewed."""
        return self.word.renewal_due()

    async def renew(self, caller: Caller) -> None:
        """Renew the certificate whenever it is due, until cancelled."""
        while True:
            await self.renew_if_due(caller)
            with trio.move_on_after(LOOK_UNCERTIFIED if self._alone() else LOOK):
                while not self.word.disputed(time()):
                    await self._keeper.changes()
                await trio.sleep(AGAIN)

    def _alone(self) -> bool:
        """Whether this node has to be taken back."""
        return not self.word.certified_at(time()) or self.word.forlorn(time())

    def dispute(self) -> Dispute | None:
        """Return the dispute in which we have to give up our address or name, if there is one."""
        return self.word.dispute(time())

    def shared_dimension(self) -> int | None:
        """`Own.shared_dimension`."""
        return self.word.shared_dimension(time())

    async def changes(self) -> None:
        """Return at the next change of the roster."""
        await self._keeper.changes()

    async def renew_if_due(self, caller: Caller) -> None:
        """Try once if it is time. If that fails, ``renewal_error`` says why, and `status` tells it."""
        if not self.word.due(time()) or self.word.refrains(moment()):
            return
        try:
            async with self._certifying:
                await self._do(self.word.renew(moment()), caller)
            self._approved.set()  # as in `rename`
        except Exception as error:  # an authority's answer is not the service's end
            self.word.renewal_error = TrustError(
                f"the renewal failed in a way that nobody expected ({type(error).__name__})",
                fix="it is tried again by itself; if this comes back, report it with the log's line",
            )
            unexpected.note("certificate not renewed after an unexpected error", error)

    async def renew_now(self, caller: Caller) -> None:
        """Renew the certificate before its time. Raises PhantomMeshError where that fails."""
        async with self._certifying:
            await self._do(self.word.renew(moment(), early=True), caller)
        self._approved.set()  # as in `rename`
        if self.word.renewal_error is not None:
            raise self.word.renewal_error

    async def ask_routes(self, caller: Caller, desk: AuthorityDesk) -> None:
        """Ask for the routes that this node advertises and has not, again and again, until cancelled: at once
        when an authority says that it has approved some."""
        began = trio.current_time()
        while True:
            self._approved = trio.Event()
            if self.word.routes.lacking:
                async with self._certifying:
                    await self._do(self.word.ask_routes(moment()), caller, desk)
            soon = trio.current_time() < began + ASK_ROUTES_FIRST
            with trio.move_on_after(ASK_ROUTES_SOON if soon else ASK_ROUTES):
                await self._approved.wait()

    def routes_approved(self) -> None:
        """An authority has approved routes of this node: ask now."""
        self._approved.set()

    async def rename(self, name: str, caller: Caller, desk: AuthorityDesk) -> None:
        """`Own.rename`; ``desk`` is this node's own. Raises PhantomMeshError."""
        async with self._certifying:
            await self._do(self.word.rename(name, moment()), caller, desk)
        self._approved.set()  # ask for what it lacks: the authority may have known an older certificate only

    async def _do(
        self, work: deciding.OwnWork[T], caller: Caller | None = None, desk: AuthorityDesk | None = None
    ) -> T:
        return await do(work, partial(self._carry_out, caller, desk))

    async def _carry_out(
        self, caller: Caller | None, desk: AuthorityDesk | None, step: deciding.OwnStep
    ) -> Any:
        match step:
            case Compute(job):
                return await trio.to_thread.run_sync(job)
            case deciding.WriteKeys(keys):
                return await self._write(
                    {directory.WIREGUARD_KEYS: json.dumps(keys.encode()).encode("ascii")}
                )
            case deciding.WriteCertificates(authority_cert, node_cert):
                return await self._write(renewal_files(authority_cert, node_cert))
            case deciding.AskRenewal(csr, evidence):
                assert caller is not None
                return await caller.renew(csr, evidence), moment()
            case deciding.AskReturn(request):
                assert caller is not None
                return *(await caller.come_back(request)), moment()
            case deciding.Rejoin():
                return await self._rejoin(step)
            case deciding.AskRename(csr):
                assert caller is not None and desk is not None
                mine = self._keeper.roster.get(self._state.identity.node_id)
                if self._state.authority is None or mine is None:
                    return await caller.rename(csr), moment()
                return await desk.rename(mine, messages.Rename(csr)), moment()
            case deciding.AskRoutes(request):
                assert caller is not None and desk is not None
                mine = self._keeper.roster.get(self._state.identity.node_id)
                if self._state.authority is None or mine is None:
                    return await caller.ask_routes(request), moment()
                answer = await desk.ask_routes(mine, request)
                return answer if isinstance(answer, messages.Renewed) else None, moment()
            case deciding.Publish():
                return self.publish()
            case Told():
                return tell(step)
            case _:
                assert_never(step)

    async def _rejoin(self, step: deciding.Rejoin) -> None:
        returned = step.returned
        self._keeper.add(step.mine)
        if returned.record:
            await self._keeper.take([returned.record], step.authority)
        self._merge(returned.keys, returned.active_key, step.authority)

    async def _write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            await trio.to_thread.run_sync(self._state.state.write, name, data)
