# SPDX-License-Identifier: GPL-3.0-or-later
"""A host behind a gateway: the driver of port mapping alone, with lifetimes of seconds, and what comes in.

Run as ``python -m tests.lab.mapped`` in a namespace. It prints the gateways' states as lines, and what comes
in at the control port, until its standard input ends.
"""

from __future__ import annotations

import sys

import trio

from phantommesh.nursery.members.mapping import Mapping
from phantommesh.portmap import machine

PORT, WIREGUARD = 51800, tuple(range(51820, 51827))


async def main() -> None:
    async with trio.open_nursery() as nursery:
        mapping = Mapping(on=True, ports=lambda: (PORT, WIREGUARD), changed=lambda: None)
        nursery.start_soon(mapping.run)
        nursery.start_soon(_hear)
        nursery.start_soon(_tell, mapping)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def _tell(mapping: Mapping) -> None:
    told = ""
    while True:
        now = " ".join(
            f"{one.address} {one.method and one.method.value} {one.open}/{one.wanted} "
            f"{one.control and one.control.port} {one.refused and one.refused.code}"
            for one in mapping.states()
        )
        if now != told:
            print(now, flush=True)
            told = now
        await trio.sleep(0.02)


async def _hear() -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("0.0.0.0", PORT))
        while True:
            heard = await sock.recv(2000)  # the node outside still sends to the one that was here
            if heard.isascii():
                print("heard", heard.decode("ascii"), flush=True)


if __name__ == "__main__":
    machine.LIFETIME, machine.SOONEST, machine.FIRST = 4, 1.0, 0.1  # type: ignore[misc]
    trio.run(main)
