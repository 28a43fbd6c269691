# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoints that change or do something. All go through `write`: dry run, body, who may,
Idempotency-Key."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from quart import Response, g, request

from phantommesh.acl.bans import parse_network
from phantommesh.management.aclview import PolicyResult
from phantommesh.management.agentview import AgentsResult
from phantommesh.management.audit import asked as asked_for
from phantommesh.management.bodies import (
    BanRequest,
    ConfigRequest,
    DrainRequest,
    FederationAcceptRequest,
    FederationInviteRequest,
    IdentityRequest,
    InviteRequest,
    NameRequest,
    PactRequest,
    PauseRequest,
    PingRequest,
    PolicyRequest,
    ResumeRequest,
    RevocationRequest,
    RotationRequest,
    RouteRequest,
    UndrainRequest,
)
from phantommesh.management.configview import ConfigResult
from phantommesh.management.drainview import DrainView
from phantommesh.management.endpoints import (
    APPROVALS,
    BANS,
    CONFIG,
    DRAINS,
    FEDERATION_ENDS,
    FEDERATION_INVITES,
    FEDERATION_PACTS,
    IDENTITIES,
    INVITES,
    JSON,
    NAMES,
    PAUSES,
    PINGS,
    POLICIES,
    RESUMES,
    REVOCATIONS,
    ROTATIONS,
    UNDRAINS,
    WITHDRAWALS,
    WITHDRAWN_INVITES,
    Endpoint,
    RootOnly,
)
from phantommesh.management.federationview import FederationInvited, PactResult
from phantommesh.management.inviteview import InviteMade
from phantommesh.management.pingview import PingResult
from phantommesh.management.routeview import RouteResult
from phantommesh.management.threatsview import BanResult
from phantommesh.management.views import (
    IdentityResult,
    LinkView,
    NameResult,
    NodePort,
    PeerView,
    RevocationResult,
    Rotation,
    RotationResult,
)
from phantommesh.nursery.api.auth import caller
from phantommesh.nursery.api.idempotency import IdempotencyCache
from phantommesh.nursery.api.problems import ProblemError, flag
from phantommesh.nursery.api.routes import Handlers
from phantommesh.nursery.api.routes.reads import find_peer

Body = TypeVar("Body", bound=msgspec.Struct)


def writes(node: NodePort) -> Handlers:
    """Return the handlers."""
    answers = IdempotencyCache()

    async def rotate(wanted: RotationRequest, dry_run: bool) -> RotationResult:
        chosen = node.peers() if wanted.peer is None else [find_peer(node.peers(), wanted.peer)]
        if dry_run:
            return _planned(chosen, node.links())
        return await node.rotate(None if wanted.peer is None else chosen[0].node_id, caller().uid)

    async def ping(wanted: PingRequest, _dry_run: bool) -> PingResult:
        chosen = find_peer(node.peers(), wanted.peer)
        return await node.ping(chosen.node_id, count=wanted.count, size=wanted.size)

    async def ban(wanted: BanRequest, dry_run: bool) -> BanResult:
        return await node.ban(wanted.network, wanted.seconds, force=wanted.force, dry_run=dry_run)

    async def unban() -> Response:
        """Lifting twice lifts once: this has no body and needs no key."""
        network, by, dry_run = request.args.get("network"), request.args.get("by"), flag("dry_run")
        grave = by not in (None, "operator") or (network is not None and await _evident(node, network))
        if grave and not dry_run:
            need_full(RootOnly("only root may lift what evidence banned", fix="run this with sudo"))
        done = await node.unban(network, by, dry_run=dry_run)
        return Response(msgspec.json.encode(done), content_type=JSON)

    async def make_invite(wanted: InviteRequest, dry_run: bool) -> InviteMade:
        return await node.make_invite(wanted, dry_run=dry_run)

    async def set_config(wanted: ConfigRequest, dry_run: bool) -> ConfigResult:
        return await node.set_config(wanted.config, dry_run=dry_run)

    async def withdraw_invite(invite: str) -> Response:
        """An invite that is gone cannot be withdrawn twice: this has no body and needs no key."""
        assert WITHDRAWN_INVITES.root is not None
        need_full(WITHDRAWN_INVITES.root)
        return Response(msgspec.json.encode(await node.withdraw_invite(invite)), content_type=JSON)

    async def drain(wanted: DrainRequest, dry_run: bool) -> DrainView:
        return await node.drain(wanted.seconds, force=wanted.force, dry_run=dry_run)

    async def set_policy(wanted: PolicyRequest, dry_run: bool) -> PolicyResult:
        return await node.set_policy(wanted.policy, dry_run=dry_run)

    async def undrain(_wanted: UndrainRequest, dry_run: bool) -> DrainView:
        return await node.undrain(dry_run=dry_run)

    async def replace(_wanted: IdentityRequest, _dry_run: bool) -> IdentityResult:
        return await node.new_identity()

    async def rename(wanted: NameRequest, _dry_run: bool) -> NameResult:
        return await node.rename(wanted.name)

    async def approve(wanted: RouteRequest, _dry_run: bool) -> RouteResult:
        return await node.approve_routes(wanted.node, wanted.prefixes)

    async def withdraw(wanted: RouteRequest, _dry_run: bool) -> RouteResult:
        return await node.withdraw_routes(wanted.node, wanted.prefixes)

    async def invite_mesh(wanted: FederationInviteRequest, _dry_run: bool) -> FederationInvited:
        return await node.invite_mesh(
            wanted.members, wanted.services, wanted.gateways, life=wanted.life, ttl=wanted.ttl
        )

    async def accept_pact(wanted: FederationAcceptRequest, _dry_run: bool) -> PactResult:
        return await node.accept_pact(
            wanted.line, wanted.members, wanted.services, wanted.gateways, life=wanted.life
        )

    async def end_pact(wanted: PactRequest, _dry_run: bool) -> PactResult:
        return await node.end_pact(wanted.pact)

    async def revoke(wanted: RevocationRequest, dry_run: bool) -> RevocationResult:
        return await node.revoke(
            wanted.node, force=wanted.force, dry_run=dry_run, undo=wanted.undo, undo_all=wanted.undo_all
        )

    def writing(
        endpoint: Endpoint[Body], act: Callable[[Body, bool], Awaitable[object]]
    ) -> Callable[[], Awaitable[Response]]:
        async def handler() -> Response:
            return await write(endpoint, answers, act)

        return handler

    def pausing() -> Callable[[str], Awaitable[Response]]:
        async def handler(name: str) -> Response:
            async def act(_wanted: PauseRequest, dry_run: bool) -> AgentsResult:
                return node.pause_agent(name, dry_run=dry_run)

            return await write(PAUSES, answers, act, (name,))

        return handler

    def resuming() -> Callable[[str], Awaitable[Response]]:
        async def handler(name: str) -> Response:
            async def act(wanted: ResumeRequest, dry_run: bool) -> AgentsResult:
                return node.resume_agent(name, trying=wanted.dry_run, dry_run=dry_run)

            return await write(RESUMES, answers, act, (name,))

        return handler

    return {
        PAUSES.name: pausing(),
        RESUMES.name: resuming(),
        ROTATIONS.name: writing(ROTATIONS, rotate),
        PINGS.name: writing(PINGS, ping),
        BANS.name: writing(BANS, ban),
        "unban": unban,
        INVITES.name: writing(INVITES, make_invite),
        WITHDRAWN_INVITES.name: withdraw_invite,
        CONFIG.name: writing(CONFIG, set_config),
        DRAINS.name: writing(DRAINS, drain),
        UNDRAINS.name: writing(UNDRAINS, undrain),
        POLICIES.name: writing(POLICIES, set_policy),
        IDENTITIES.name: writing(IDENTITIES, replace),
        NAMES.name: writing(NAMES, rename),
        REVOCATIONS.name: writing(REVOCATIONS, revoke),
        APPROVALS.name: writing(APPROVALS, approve),
        WITHDRAWALS.name: writing(WITHDRAWALS, withdraw),
        FEDERATION_INVITES.name: writing(FEDERATION_INVITES, invite_mesh),
        FEDERATION_PACTS.name: writing(FEDERATION_PACTS, accept_pact),
        FEDERATION_ENDS.name: writing(FEDERATION_ENDS, end_pact),
    }


async def write(
    endpoint: Endpoint[Body],
    answers: IdempotencyCache,
    act: Callable[[Body, bool], Awaitable[object]],
    named: tuple[str, ...] = (),
) -> Response:
    """Answer the request at hand with what ``act`` returns for its body; a repeated one from ``answers``.
    ``named``: what its path names.

    ``act`` is told whether this is a dry run, and then changes nothing. Raises ProblemError.
    """
    dry_run = flag("dry_run")
    if dry_run and not endpoint.dry_run:
        raise ProblemError(400, "this has no dry run", fix="leave dry_run out to do it")
    wanted = await _body(endpoint)
    g.asked = asked_for(wanted, endpoint.secret)
    if endpoint.root is not None and not dry_run and (endpoint.root_for is None or endpoint.root_for(wanted)):
        need_full(endpoint.root)

    async def answer() -> bytes:
        return msgspec.json.encode(await act(wanted, dry_run))

    asked = msgspec.json.encode((endpoint.name, *named, wanted, dry_run))
    key = request.headers.get("Idempotency-Key")
    body, replayed = await answers.once(
        key, asked, answer, by=caller().called, shown_once=endpoint.shown_once
    )
    response = Response(body, content_type=JSON)
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def need_full(only: RootOnly) -> None:
    """The group of the socket is for looking, rotating, pausing agents, draining in turn, and small bans; so
    is a token of scope `operate`. Raises ProblemError (403)."""
    by = caller()
    if not by.full:
        fix = only.fix if by.token is None else f"{only.fix}, or give a token of scope admin"
        raise ProblemError(403, only.refusal, fix=fix)


async def _evident(node: NodePort, text: str) -> bool:
    """Whether a network is banned by more than an operator's word. Raises BanError."""
    network = str(parse_network(text))
    return any(ban.network == network and ban.by != "operator" for ban in (await node.bans()).bans)


def _planned(peers: Sequence[PeerView], links: Sequence[LinkView]) -> RotationResult:
    epochs = {link.node_id: link.epoch for link in links}
    return RotationResult(
        dry_run=True,
        rotations=[
            Rotation(
                peer=peer.name,
                node_id=peer.node_id,
                result="planned",
                epoch=None if (now := epochs.get(peer.node_id)) is None else now + 1,
            )
            for peer in peers
        ],
    )


async def _body(endpoint: Endpoint[Body]) -> Body:
    assert endpoint.body is not None
    body = await request.get_data(as_text=False)
    if not body and endpoint.body_optional:
        return endpoint.body()
    if request.mimetype != JSON:
        raise ProblemError(415, "the body is not application/json", fix=f"set Content-Type: {JSON}")
    try:
        return msgspec.json.decode(body, type=endpoint.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(400, f"the body is not usable: {error}", fix=f"send {endpoint.example}") from None
