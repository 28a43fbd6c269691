# SPDX-License-Identifier: GPL-3.0-or-later
"""Load pages as a browser would: the HTML, then what it names, over six connections; nothing cached.

    python -m benchmarks.traffic.visitor BASE_URL < visits.json > loads.json

A process of its own, in a node's namespace. Each load has connections of its own, and a query that no cache
knows, of constant length.
"""

from __future__ import annotations

import json
import random
import sys
import time

import httpx
import trio

from benchmarks.traffic.pages import resources_of

CONNECTIONS = 6  # what browsers open to a server under HTTP/1.1
PAUSE = 0.03  # s between loads: what is still under way belongs to the one before
PATIENCE = 20.0  # s
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate",
}


async def visit(base: str, path: str, query: str) -> None:
    """Load one page and its sub-resources. Raises httpx.HTTPError."""
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(
        base_url=base, headers=HEADERS, limits=limits, timeout=PATIENCE, trust_env=False
    ) as client:
        page = await client.get(f"{path}?{query}")
        page.raise_for_status()
        waiting = resources_of(page.text, path)[::-1]

        async def connection() -> None:
            while waiting:
                await client.get(f"{waiting.pop()}?{query}", headers={"Referer": f"{base}{path}"})

        async with trio.open_nursery() as nursery:
            for _ in range(min(CONNECTIONS, len(waiting))):
                nursery.start_soon(connection)


async def main() -> None:
    """Make the visits of stdin, ``[page's path, seed]`` each; print when each began and ended."""
    visits: list[tuple[str, int]] = json.load(sys.stdin)
    loads = []
    for path, seed in visits:
        query = f"r={random.Random(seed).getrandbits(32):08x}"
        began = time.time()
        await visit(sys.argv[1], path, query)
        loads.append((began, time.time()))
        await trio.sleep(PAUSE)
    json.dump(loads, sys.stdout)


if __name__ == "__main__":
    trio.run(main)
