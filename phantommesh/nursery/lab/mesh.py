# SPDX-License-Identifier: GPL-3.0-or-later
"""The nodes of a lab: started, ended, configured and judged from outside."""

import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import trio

from phantommesh.client.http import NodeClient
from phantommesh.config.reading import load
from phantommesh.config.writing import render
from phantommesh.dimensions import DIMENSIONS, interface_names, master_name
from phantommesh.errors import PhantomMeshError
from phantommesh.management.views import LinkView, Status
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL
from phantommesh.nursery.lab import net
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.net import RUN, LabNode, LabSpec
from phantommesh.nursery.lab.ping import Flow, Traffic
from phantommesh.nursery.lab.underlay import KINDS
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.verify import Report, examine
from phantommesh.scatter.ruleset import FAMILY, table_name
from phantommesh.state.directory import ROOT_CERT, StateDir
from phantommesh.state.files import atomic_write
from phantommesh.trust.certificates import describe_mesh, load_root

_COMMAND: Final = (sys.executable, "-m", "phantommesh")
POLL_S: Final = 0.1  # between two looks at a node that is not there yet
_LOG_LINES: Final = 5  # of a node's log, quoted when it does not come up


class LabLink(msgspec.Struct, frozen=True, kw_only=True):
    """One pair of nodes, seen from both: the weaker end's dimensions, the older end's handshake."""

    a: str
    b: str
    epoch: int
    dimensions: int
    handshake_age_s: float | None
    state: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node's API at one moment."""

    status: Status
    links: dict[str, LinkView]  # by peer name

    def whole(self, peers: Iterable[str]) -> bool:
        """Whether the links to all these peers are fresh, with every dimension keyed and answering."""
        found = [self.links.get(peer) for peer in peers]
        return all(link and link.state == "fresh" and link.dimensions == DIMENSIONS for link in found)


async def crash(node: LabNode) -> None:
    """End a node as a power cut would: every process of its namespace, its interfaces and its rules."""
    await net.kill([node.name])
    prefix = load(node.config).wireguard.prefix
    for name in (*interface_names(prefix), master_name(prefix)):
        # Those of a userspace WireGuard went with its process.
        await trio.run_process(
            ["ip", "-n", node.name, "link", "delete", name], check=False, capture_stderr=True
        )
    for family in ("-4", "-6"):
        flush = ["ip", "-n", node.name, family, "route", "flush", "proto", str(ROUTE_PROTOCOL)]
        await trio.run_process(flush, check=False, capture_stderr=True)
    inside = ["ip", "netns", "exec", node.name]
    for family in FAMILY.values():
        await trio.run_process(
            [*inside, "nft", "delete", "table", family, table_name(master_name(prefix))],
            check=False,
            capture_stderr=True,
        )


async def start(node: LabNode) -> None:
    """Start ``phantommesh run`` in a node's namespace, in the background."""
    pid = await net.start(node, [*_COMMAND, "run"])
    pid_file(node).write_text(f"{pid}\n", encoding="ascii")


def kill(node: LabNode, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a node's process alone; a userspace WireGuard goes on. Raises LabError if it is gone."""
    pid = int(pid_file(node).read_text(encoding="ascii"))
    if pid not in net.processes_in([node.name]):
        raise LabError(f"{node.name} is not running", fix=f"see {node.log}")
    os.kill(pid, number)


async def converged(
    nodes: Sequence[LabNode], patience_s: float, *, of: Sequence[LabNode] = ()
) -> list[LabLink]:
    """Wait until the links of the nodes ``of`` (default: all) to all others are whole, and return all links.

    Raises LabError naming the node that is behind, and what it says, after ``patience_s`` seconds.
    """
    views: dict[str, NodeView] = {}
    problems: dict[str, str] = {}

    async def watch(node: LabNode) -> None:
        peers = [peer.name for peer in nodes if peer != node]
        while True:
            try:
                views[node.name] = view = await view_of(node)
            except PhantomMeshError as error:
                problems[node.name] = str(error)
            else:
                if view.whole(peers):
                    problems.pop(node.name, None)
                    return
                problems[node.name] = _shortfall(view, peers)
            await trio.sleep(POLL_S)

    with trio.move_on_after(patience_s):
        async with trio.open_nursery() as nursery:
            for node in of or nodes:
                nursery.start_soon(watch, node)
    if problems:
        name, problem = min(problems.items())
        behind = next(node for node in nodes if node.name == name)
        raise LabError(
            f"{name} has not converged in {patience_s:g} s: {problem}{_quote(behind)}", fix=_look(behind)
        )
    for node in nodes:
        if node.name not in views:
            views[node.name] = await view_of(node)
    return links_between(nodes, views)


async def flows_between(nodes: Sequence[LabNode], patience_s: float = 60.0) -> list[Flow]:
    """Return a flow of pings over the overlay for every pair. Waits for nodes that are still starting; raises
    LabError for one that is not there after ``patience_s`` seconds."""
    addresses = {node.name: (await answering(node, patience_s)).status.ip4 for node in nodes}
    return [Flow(a.name, b.name, addresses[b.name]) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]


async def answered(traffic: Traffic, after: float, patience_s: float) -> None:
    """Wait until every flow has an answer to a ping sent after ``after``. Raises LabError if one has not."""
    with trio.move_on_after(patience_s):
        async with trio.open_nursery() as nursery:
            for flow in traffic.flows:
                nursery.start_soon(traffic.wait_answered, flow, after)
    for flow in traffic.flows:
        if flow.last_answered <= after:
            raise LabError(
                f"{flow.target} does not answer {flow.source} over the overlay ({flow.address})",
                fix="look at `phantommesh lab exec` with `wg show` and `ip route` on both",
            )


async def phantommesh(node: LabNode, *arguments: str) -> str:
    """Run one command of the real command line in a node's namespace, and return what it printed."""
    done = await trio.run_process(
        node.inside([*_COMMAND, *arguments]),
        env=node.environment(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise LabError(
            f"{node.name}: phantommesh {arguments[0]}: {'; '.join(said[-2:])}{_quote(LabNode(node.lab, 1))}"
        )
    return done.stdout.decode("utf-8").strip()


def endpoints(spec: LabSpec, node: LabNode) -> list[str]:
    """Return the options that name a node's addresses: none where others cannot call it."""
    asked = any(KINDS[router.kind].asked for router in spec.routers if node.number in router.nodes)
    if asked or (not spec.named and node.number > 1):  # an invite needs somewhere to go
        return []
    return [word for uplink in range(spec.uplinks) for word in ("--endpoint", node.address(uplink))]


def configure(spec: LabSpec, node: LabNode) -> None:
    """Set in the configuration that ``init`` or ``join`` wrote what a user would set with an editor."""
    config, regions = load(node.config), spec.underlay.regions
    region = "" if regions is None else f"region-{regions.of(node.number, spec.nodes) + 1}"
    config = msgspec.structs.replace(
        config,
        node=msgspec.structs.replace(config.node, region=region),
        wireguard=msgspec.structs.replace(config.wireguard, backend=spec.backend),
        api=msgspec.structs.replace(config.api, socket=str(node.socket)),
        link=spec.link or config.link,
        scatter=spec.scatter or config.scatter,
        guard=spec.guard or config.guard,
    )
    atomic_write(node.config, render(config).encode("ascii"), mode=0o644)


async def answering(node: LabNode, patience_s: float) -> NodeView:
    with trio.move_on_after(patience_s):
        while True:
            try:
                return await view_of(node)
            except PhantomMeshError:
                await trio.sleep(POLL_S)
    raise LabError(f"{node.name} does not start{_quote(node)}", fix=_look(node))


async def view_of(node: LabNode) -> NodeView:
    """Ask a node's API. Raises NodeNotRunningError or ApiError."""
    client = NodeClient(node.socket)

    def ask() -> NodeView:
        links = client.get_all("/v1/links", LinkView)
        return NodeView(client.status(), {link.peer: link for link in links})

    return await trio.to_thread.run_sync(ask)


async def proved(nodes: Sequence[LabNode], patience_s: float) -> dict[tuple[str, str], int]:
    """Wait until every node has proofs of what it sends on each link that hold and both ends have signed, and
    return how many by (sender, receiver). After ``patience_s`` seconds it is those that are there by then; a
    link that does not hold counts for nothing."""
    found: dict[tuple[str, str], int] = {}
    wanted = {(a.name, b.name) for a in nodes for b in nodes if a != b}
    with trio.move_on_after(patience_s):
        while not wanted <= found.keys():
            for node in nodes:
                try:
                    report = await trio.to_thread.run_sync(_verified, node)
                except PhantomMeshError:
                    continue  # there are none yet
                for link in report.links:
                    if link.sender == node.name and link.verdict == "holds":
                        found[link.sender, link.receiver] = link.countersigned
            await trio.sleep(POLL_S)
    return found


def _verified(node: LabNode) -> Report:
    root = load_root(StateDir.open(node.state_dir).read(ROOT_CERT))
    exported = NodeClient(node.socket).request("GET", "/v1/proofs/export")
    return examine(Archive.decode_untrusted(exported), root_hash=describe_mesh(root).root_hash)


def links_between(nodes: Sequence[LabNode], views: Mapping[str, NodeView]) -> list[LabLink]:
    found = []
    for i, a in enumerate(nodes):
        for b in nodes[i + 1 :]:
            ends = [views[x.name].links.get(y.name) for x, y in ((a, b), (b, a)) if x.name in views]
            known = [end for end in ends if end is not None]
            ages = [end.handshake_age_s for end in known if end.handshake_age_s is not None]
            states = sorted({end.state for end in known})
            found.append(
                LabLink(
                    a=a.name,
                    b=b.name,
                    epoch=min((end.epoch for end in known), default=0),
                    dimensions=min((end.dimensions for end in known), default=0) if len(known) == 2 else 0,
                    handshake_age_s=max(ages, default=None),
                    state="/".join(states) or "none",
                )
            )
    return found


def _shortfall(view: NodeView, peers: Iterable[str]) -> str:
    for peer in peers:
        link = view.links.get(peer)
        if link is None:
            return f"it does not know {peer}"
        if link.state != "fresh" or link.dimensions != DIMENSIONS:
            why = f" ({link.last_error})" if link.last_error else ""
            return f"to {peer}: {link.state}, {link.dimensions} of {DIMENSIONS} dimensions answer{why}"
    return "it is whole, but came late"


def _quote(node: LabNode) -> str:
    try:
        lines = node.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {node.name}: {line}" for line in lines)


def _look(node: LabNode) -> str:
    return f"see {failed_logs(node.lab) / node.log.name}"


def failed_logs(name: str) -> Path:
    return Path("/var/log") / f"phantommesh-lab-{name}"


def pid_file(node: LabNode) -> Path:
    return RUN / f"{node.name}.pid"
