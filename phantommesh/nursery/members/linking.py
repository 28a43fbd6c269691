# SPDX-License-Identifier: GPL-3.0-or-later
"""How a node's links are made: from its configuration, its state and its own record."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from time import time

import trio

from phantommesh.config.sections import Config
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.kem import provider
from phantommesh.link.context import Timing
from phantommesh.link.effects import Enrolment
from phantommesh.link.keys import RETURNING
from phantommesh.link.machine import Links
from phantommesh.nursery.members.authority import AuthorityDesk
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.secret import Secret
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId


def make_enrolment(
    state: NodeState, desk: AuthorityDesk, where: Callable[[NodeId], Sequence[Address]],
    door: Callable[[bytes], Secret | None],
) -> Enrolment:  # fmt: skip
    """Make what handshakes of nodes without a certificate of this mesh are taken by. ``where`` gives the
    addresses of a member, ``door`` the secret of members of other meshes."""
    return Enrolment(
        state.mesh.root_hash, state.identity.spki, partial(_find_invite, state, desk, door),
        lambda node_id: where(NodeId(node_id)),
    )  # fmt: skip


def make_links(config: Config, state: NodeState, own: OwnRecord, enrolment: Enrolment | None) -> Links:
    """Make the links of this node."""
    settings = config.link
    links = Links(
        node_id=state.identity.node_id,
        wg_keys=own.wg_keys.public,
        admission=state.admission.newest,
        kem=provider(settings.provider),
        random=os.urandom,
        now=trio.current_time(),
        timing=Timing(
            settings.rotate_seconds,
            settings.jitter_seconds,
            settings.stale_alarm_seconds,
            settings.stale_random_seconds,
        ),
        enrolment=enrolment,
        agree=own.agree,
    )
    links.set_admission(state.admission.current, state.admission.replaced)
    return links


def _find_invite(
    state: NodeState,
    desk: AuthorityDesk,
    door: Callable[[bytes], Secret | None],
    invite: bytes,
    node_id: bytes,
) -> Secret | None:
    if (secret := door(invite)) is not None or state.authority is None:
        return secret
    try:
        if invite == RETURNING:
            return desk.desk.returning.secret_of(node_id)
        return state.invites.find(invite, time(), NodeId(node_id)).secret
    except PhantomMeshError:
        return None
