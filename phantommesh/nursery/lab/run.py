# SPDX-License-Identifier: GPL-3.0-or-later
"""``lab run``: a lab with traffic, one node cut down and brought back, and what was measured."""

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import LabLink, answered, converged, crash, flows_between, proved, start
from phantommesh.nursery.lab.net import LabSpec, nodes_of, one_error
from phantommesh.nursery.lab.ping import Flow, Traffic, open_traffic
from phantommesh.nursery.lab.up import LabResult, running, status

TRAFFIC_S = 10.0
EPOCH_S = 3.0  # of the scatter, so that there is something to prove
PROVED_EPOCHS = 6  # that proofs are waited for: one to begin, one to prove, a round at each end
PING_EVERY_S = 0.05
DOWN_S = 1.0
_REFRESH_S = 0.5
PAIR = ("pair", "state", "epoch", "dimensions", "handshake")  # the columns of a pair of nodes


class Pings(msgspec.Struct, frozen=True, kw_only=True):
    """Pings over the overlay between all pairs, after convergence and before anything was killed."""

    sent: int
    received: int


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report that ``lab run --json`` prints. Times are in seconds.

    ``failover_s``: from the kill of a whole node until every pair's pings were answered again; for ``down_s``
    of it the node was left down. ``return_s``: from its start until all its links were whole. ``joins``: from
    the start of ``join`` to the node's first ping of node 1. ``proofs_verified``: of how many directions of
    links there are scatter proofs that both ends have signed, were exported and hold. ``behind``: what each
    node is behind, in the words of ``--nat``.
    """

    nodes: int
    backend: str
    converged_s: float
    links: list[LabLink]
    ping: Pings
    failover_s: float
    down_s: float
    return_s: float
    joins: dict[str, float]
    proofs_verified: int = 0
    behind: dict[str, str] = {}


async def run(spec: LabSpec, console: Console, *, traffic_s: float = TRAFFIC_S) -> RunReport:
    """Build a lab, show it at work and healing on ``console``, take it down and return what was measured.

    SIGINT, SIGTERM and SIGHUP take it down too, and raise LabError.
    """
    report: RunReport | None = None
    with one_error():
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                nursery.start_soon(_cancel_on, signals, nursery.cancel_scope)
                async with running(spec, console.log) as result:
                    report = await _show(spec, result, console, traffic_s)
                nursery.cancel_scope.cancel()
    if report is None:
        raise LabError(f"interrupted; lab {spec.name} has been taken down")
    return report


async def _cancel_on(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _show(spec: LabSpec, result: LabResult, console: Console, traffic_s: float) -> RunReport:
    console.log(f"converged in {result.converged_s:.1f} s over {result.backend} WireGuard")
    nodes = nodes_of(spec)
    victim = nodes[-1]
    flows = await flows_between(nodes)
    async with open_traffic(flows, PING_EVERY_S) as traffic, _live(spec, traffic, console):
        await trio.sleep(traffic_s)
        await traffic.settle()
        ping = Pings(sent=sum(flow.sent for flow in flows), received=sum(flow.received for flow in flows))
        console.log(f"pings between all pairs: {ping.received} of {ping.sent} answered")
        links = (await status(spec.name)).links
        proofs = await proved(
            nodes, PROVED_EPOCHS * (0.0 if spec.scatter is None else spec.scatter.epoch_seconds)
        )
        console.log(f"scatter proofs of {len(proofs)} of {2 * len(links)} directions of links hold")

        traffic.resume()
        console.log(f"killing {victim.name}: its process, and its WireGuard")
        killed = trio.current_time()
        await crash(victim)
        await trio.sleep_until(killed + DOWN_S)
        console.log(f"starting {victim.name} again")
        started = trio.current_time()
        await start(victim)
        await answered(traffic, started, spec.patience_s)
        failover_s = trio.current_time() - killed
        await converged(nodes, spec.patience_s, of=[victim])
        return_s = trio.current_time() - started
        console.log(f"{victim.name} answers {failover_s:.1f} s after the kill, its links are whole")
    return RunReport(
        nodes=result.nodes,
        backend=result.backend,
        converged_s=result.converged_s,
        links=links,
        ping=ping,
        failover_s=round(failover_s, 3),
        down_s=round(started - killed, 3),
        return_s=round(return_s, 3),
        joins=result.joins,
        proofs_verified=len(proofs),
        behind=result.behind,
    )


@asynccontextmanager
async def _live(spec: LabSpec, traffic: Traffic, console: Console) -> AsyncIterator[None]:
    """Keep the table of pairs on a terminal up to date; elsewhere print it once, at the end."""

    async def table() -> Table:
        return links_table((await status(spec.name)).links, traffic.flows)

    async def refresh(live: Live) -> None:
        while True:
            live.update(await table(), refresh=True)
            await trio.sleep(_REFRESH_S)

    if not console.is_terminal:
        yield
        console.print(await table())
        return
    with Live(console=console, auto_refresh=False) as live:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh, live)
            yield
            nursery.cancel_scope.cancel()
        live.update(await table(), refresh=True)


def links_table(links: Sequence[LabLink], flows: Sequence[Flow] = ()) -> Table:
    """Return the pairs of a lab as a table, with their pings where there are any. On a narrow terminal its
    cells are folded: rich's default is to cut them."""
    table = Table()
    for column in PAIR:
        table.add_column(column, overflow="fold")
    for column in ("ping", "answered") if flows else ():
        table.add_column(column, justify="right", overflow="fold")
    for cells in link_rows(links, flows):
        table.add_row(*cells)
    return table


def link_rows(links: Sequence[LabLink], flows: Sequence[Flow] = ()) -> list[list[str]]:
    """Return the pairs of a lab as rows of `PAIR`, with two cells more where a pair has pings."""
    rows = []
    by_pair = {(flow.source, flow.target): flow for flow in flows}
    for link in links:
        age = "-" if link.handshake_age_s is None else f"{link.handshake_age_s:.0f} s ago"
        cells = [
            f"{link.a} - {link.b}",
            link.state,
            str(link.epoch),
            f"{link.dimensions} of {DIMENSIONS}",
            age,
        ]
        if flow := by_pair.get((link.a, link.b)):
            cells += [f"{flow.rtt_s * 1000:.1f} ms", f"{flow.received} of {flow.sent}"]
        rows.append(cells)
    return rows
