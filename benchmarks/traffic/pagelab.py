# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab in which one node's client loads pages from another node's web server, watched on every uplink."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import msgspec
import trio

from benchmarks.traffic import observer
from benchmarks.traffic.pages import Page, installed
from benchmarks.traffic.traces import Load, Visit, cut
from phantommesh.config.reading import load
from phantommesh.dimensions import interface_names
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of

MODULE = (sys.executable, "-m")
PATIENCE = 10.0  # s, for a program to be ready

_NGINX = """\
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    gzip on;
    gzip_types text/css text/javascript application/javascript image/svg+xml;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen {address}:80;
        {locations}
    }}
}}
"""


# Each end may be told to send segments of 1128 to 1380 bytes, drawn a connection: the number of full ones and
# the length of the last then differ from load to load. 1380 is what MTU 1420 has room for.
_MSS = f"""\
table inet segments {{
    chain postrouting {{
        type filter hook postrouting priority 0;
        tcp flags syn / syn,rst tcp option maxseg size set numgen random mod 64 map {{ {
    ", ".join(f"{draw} : {1380 - 4 * draw}" for draw in range(64))
}
        }}
    }}
}}
"""


@asynccontextmanager
async def running(node: str, command: Sequence[str], *, talk: bool = False) -> AsyncIterator[trio.Process]:
    """A program in a namespace for as long as the block takes; with ``talk``, its stdin and stdout are pipes.

    ``ip netns exec`` becomes the program, so that ending the child ends it.
    """
    pipe = PIPE if talk else None
    command = ["ip", "netns", "exec", node, *command]
    process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def serving(node: LabNode, address: str, directory: Path) -> AsyncIterator[None]:
    """nginx in a node's namespace, with the documentation packages. Raises LabError if it does not start."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if nginx is None:
        raise LabError("there is no nginx", fix="scripts/setup bench")
    locations = "\n".join(f"location /{site}/ {{ alias {root}/; }}" for site, root in sites().items())
    (directory / "nginx.conf").write_text(
        _NGINX.format(address=address, locations=locations), encoding="ascii"
    )
    log = directory / "error.log"
    started = directory / "nginx.pid"  # written when it listens
    arguments = ["-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(log)]
    async with running(node.name, [nginx, *arguments]):
        with trio.move_on_after(PATIENCE):
            while not started.exists():  # noqa: ASYNC110  # nothing tells
                await trio.sleep(0.05)
        if not started.exists():
            said = log.read_text(encoding="utf-8") if log.exists() else "it says nothing"
            raise LabError(f"nginx does not start: {said.strip()[-300:]}")
        yield


@asynccontextmanager
async def observing(spec: LabSpec, client: LabNode, file: Path) -> AsyncIterator[None]:
    """Watch a node's cable on every segment. What was seen is in the file after the block."""
    interfaces = [f"n{client.number}u{uplink}" for uplink in range(spec.uplinks)]
    command = [*MODULE, "benchmarks.traffic.observer", str(client.number), str(file), *interfaces]
    async with running(f"{spec.name}-net", command, talk=True) as process:
        assert process.stdin is not None and process.stdout is not None
        if not await process.stdout.receive_some():  # it says "ready", or ends
            raise LabError("the observer does not start")
        yield
        await process.stdin.aclose()
        if await process.wait():
            raise LabError("the observer failed", fix="see what it says above")


def sites() -> dict[str, Path]:
    """Return the directories to serve. Raises LabError naming the package that is missing."""
    try:
        return installed()
    except FileNotFoundError as error:
        raise LabError(f"the pages of {error} are not installed", fix="scripts/setup bench") from None


def order(pages: int, repetitions: Sequence[int], seed: int) -> list[tuple[int, int]]:
    """Return (page, repetition) for each load: a repetition is a round over all pages in its own order."""
    visits = []
    for repetition in repetitions:
        turn = list(range(pages))
        random.Random(f"{seed}/{repetition}").shuffle(turn)
        visits += [(page, repetition) for page in turn]
    return visits


@asynccontextmanager
async def covering(node: LabNode, peer: str, mode: str) -> AsyncIterator[None]:
    """Cover traffic from a node to an overlay address; see `benchmarks.traffic.cover`."""
    names = interface_names(load(node.config).wireguard.prefix)
    async with running(node.name, [*MODULE, "benchmarks.traffic.cover", mode, peer, *names]):
        yield


async def watch(
    spec: LabSpec, pages: Sequence[Page], visits: Sequence[tuple[int, int]], extras: Collection[str]
) -> list[Visit]:
    """Make the visits from node 1 to node 2's server and return what was seen of each, on all uplinks.

    ``extras``: adaptive or constant, for cover traffic; mss, for segments of another size in each connection.
    """
    client, server = nodes_of(spec)[:2]
    here, address = [(await view_of(node)).status.ip4 for node in (client, server)]
    for node in (client, server):
        await _segment(node, spec.uplinks)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        seen = directory / "packets"
        for cover in {"adaptive", "constant"}.intersection(extras):
            await stack.enter_async_context(covering(client, address, cover))
            await stack.enter_async_context(covering(server, here, cover))
        for node in (client, server) if "mss" in extras else ():
            await trio.run_process(["ip", "netns", "exec", node.name, "nft", "-f", "-"], stdin=_MSS.encode())
        async with serving(server, address, directory):
            await _load(client, address, [(page.path, 0) for page in pages[:3]])  # warms both ends up
            async with observing(spec, client, seen):
                # The query's seed is the round's: no two rounds ask for the same.
                wanted = [(pages[page].path, repetition + 1) for page, repetition in visits]
                spoken = await _load(client, address, wanted)
        packets = await trio.to_thread.run_sync(observer.read_all, seen)
    loads = [Load(*visit, *when) for visit, when in zip(visits, spoken, strict=True)]
    return list(cut(packets, loads))


async def _load(
    client: LabNode, address: str, visits: Sequence[tuple[str, int]]
) -> list[tuple[float, float]]:
    command = ["ip", "netns", "exec", client.name, *MODULE, "benchmarks.traffic.visitor", f"http://{address}"]
    done = await trio.run_process(
        command, stdin=json.dumps(visits).encode(), capture_stdout=True, check=False
    )
    if done.returncode:
        raise LabError("the client failed", fix="see what it says above; scripts/setup bench")
    return msgspec.json.decode(done.stdout, type=list[tuple[float, float]])


async def _segment(node: LabNode, uplinks: int) -> None:
    """Let no uplink carry a burst as one packet, as the lab's cables would: a real one cannot."""
    for uplink in range(uplinks):
        await trio.run_process(["ip", "-n", node.name, "link", "set", f"up{uplink}", "gso_max_segs", "1"])
