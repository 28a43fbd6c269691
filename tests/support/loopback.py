# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes on the loopback device, over a model of WireGuard: no root, no namespaces."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import time

import msgspec
import trio

from phantommesh.config.reading import load
from phantommesh.config.sections import (
    Config,
    ControlSection,
    DnsSection,
    GossipSection,
    NodeSection,
    ScatterSection,
)
from phantommesh.node.returning import place_of
from phantommesh.nursery.host.fake import FakeBackend
from phantommesh.nursery.members import enrolment
from phantommesh.nursery.node import Node
from phantommesh.nursery.overlay.holding import Overlay
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.state.making import Summary, init_mesh
from phantommesh.state.start import NodeState, install_successor, load_node, next_generation
from phantommesh.trust.certificates import Role
from phantommesh.trust.invites import Invite

PATIENCE = 60.0  # s; a guard only


def free_port() -> int:
    """A port that nobody has, for UDP and TCP, on either family."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as tcp:
            port: int = tcp.getsockname()[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                try:
                    udp.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port


def settings(port: int, *, tcp: bool = True) -> Config:
    return Config(
        node=NodeSection(name="unset", mesh="unset"),
        control=ControlSection(port=port, tcp=tcp),
        gossip=GossipSection(preset="local"),
        dns=DnsSection(serve=False, mode="off"),  # this machine's own resolver is not ours to tell
        scatter=ScatterSection(hook="off"),  # nor are its packet filter and interfaces
    )


def make_authority(at: Path) -> NodeState:
    """A new mesh called pm in the directory ``at``; its first node is alpha."""
    at.mkdir(parents=True, exist_ok=True)
    port = free_port()
    init_mesh(
        at / "state", at / "pm.toml", mesh="pm", name="alpha", endpoints=(f"127.0.0.1:{port}",),
        now=time(), config=settings(port),
    )  # fmt: skip
    return load_node(at / "state", time())


def make_invite(
    state: NodeState,
    endpoints: tuple[str, ...] = (),
    *,
    ttl: float = 60,
    name: str | None = None,
    uses: int = 1,
    tags: tuple[str, ...] = (),
) -> Invite:
    me = state.roster.get(state.identity.node_id)
    assert me is not None
    return state.invites.create(
        root_hash=state.mesh.root_hash,
        authority=state.identity.node_id,
        mesh="pm",
        endpoints=endpoints or me.record.control,
        expires=int(time() + ttl),
        role=Role.NODE,
        name=name,
        uses=uses,
        tags=tags,
    )


def invite_in_place(state: NodeState, lost: str) -> Invite:
    """`phantommesh invite --replace`."""
    place, mine = place_of(state, lost), state.roster.get(state.identity.node_id)
    assert mine is not None
    return state.invites.create(
        root_hash=state.mesh.root_hash, authority=state.identity.node_id, mesh="pm",
        endpoints=mine.record.control, expires=int(time() + 60), role=place.role, name=place.name,
        replaces=place.replaces, ip4=str(place.ip4), tags=place.tags,
    )  # fmt: skip


async def join(
    at: Path, invite: Invite, name: str, *, tcp: bool = True, tags: tuple[str, ...] = ()
) -> Summary:
    at.mkdir(parents=True, exist_ok=True)
    port = free_port()
    return await enrolment.join(
        at / "state", at / "pm.toml", invite.encode(), name=name,
        endpoints=(f"127.0.0.1:{port}",), config=settings(port, tcp=tcp), tags=tags,
    )  # fmt: skip


def roomy(config: Config) -> Config:
    """The configuration of a node whose process is that of many tests, and as large as they made it."""
    omniscient = msgspec.structs.replace(config.agents.omniscient, memory_mb=65536)
    return msgspec.structs.replace(
        config, agents=msgspec.structs.replace(config.agents, omniscient=omniscient)
    )


@asynccontextmanager
async def serving(
    at: Path,
    change: Callable[[Node], None] = lambda node: None,
    *,
    hurry: trio.Event | None = None,
    frames: bool = False,
) -> AsyncIterator[Node]:
    """Run the node that was made in ``at`` while the block runs, then let it leave. ``frames``: use frames
    over TCP, since the model of WireGuard carries nothing."""
    config = roomy(load(at / "pm.toml"))
    await trio.to_thread.run_sync(install_successor, at / "state")
    state = await trio.to_thread.run_sync(load_node, at / "state", time())
    with UdpPort(config.control.port) as udp:
        generation = await trio.to_thread.run_sync(next_generation, state.state, time())
        overlay = Overlay((state.mesh.network4, state.mesh.network6), (), dict, interval=1.0)
        node = Node(config, state, FakeBackend(), udp, generation=generation, overlay=overlay)
        # They know no other kernel than this machine's, which is not ours to change.
        overlay.run = trio.sleep_forever  # type: ignore[method-assign]
        overlay.converge = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        if not frames:
            node.parts.framed.run = trio.sleep_forever  # type: ignore[method-assign]
        node.parts.scattering.run = trio.sleep_forever  # type: ignore[method-assign]
        node.parts.scattering.close = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        node.parts.guarding.run = trio.sleep_forever  # type: ignore[method-assign]
        node.parts.guarding.converge = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        node.parts.access.converge = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        node.parts.access.run = trio.sleep_forever  # type: ignore[method-assign]
        node.parts.access.close = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        federating = node.parts.federating
        federating.guarded = partial(getattr, federating, "networks")
        node.parts.beyond.run = trio.sleep_forever  # type: ignore[method-assign]
        node.parts.beyond.converge = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        node.parts.gateway.run = trio.sleep_forever  # type: ignore[method-assign]
        node.parts.talk.run = trio.sleep_forever  # type: ignore[method-assign]
        # It finds what there is to find on this machine: a room in memory is one finding.
        node.parts.council.pause("aegis", trio.current_time())
        change(node)
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(node.serve, at / "api.sock", leave, hurry))
            with trio.fail_after(PATIENCE):
                while not (at / "api.sock").exists():
                    await trio.sleep(0.01)
            yield node
            leave.set()


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not seen():
            await trio.sleep(0.01)
