# SPDX-License-Identifier: GPL-3.0-or-later
"""The control port's sockets on a host whose IPv6 is switched off and on while they are open."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.lab

# In a network namespace of its own. Each line: whether IPv6 is on, what came by UDP, whether TCP connects.
SWITCHES = """
import pathlib, subprocess
import trio
from phantommesh.endpoint import Address
from phantommesh.nursery.sockets.udp import UdpPort

PORT = 51800

def switch(off):
    for which in ("all", "default"):
        pathlib.Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text(str(off))

async def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    switch(1)
    came, waiting = trio.open_memory_channel(9)
    with UdpPort(PORT) as port:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(port.receive, lambda datagram, source: came.send_nowait(source.host))
            listeners = await trio.open_tcp_listeners(PORT)
            for off in (1, 0, 1, 0):
                switch(off)
                for host in ("::1", "127.0.0.1"):
                    port.send(b"datagram", Address(host, PORT))
                found = [await waiting.receive() for _ in range(2 - off)]
                try:
                    async with await trio.open_tcp_stream("::1", PORT):
                        connects = True
                except OSError:
                    connects = False
                print(not off, sorted(found), connects)
            nursery.cancel_scope.cancel()

trio.run(main)
"""


def test_the_control_port_takes_ipv6_up_again() -> None:
    command = ["unshare", "--net", sys.executable, "-c", SWITCHES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    off, on = "False ['127.0.0.1'] False", "True ['127.0.0.1', '::1'] True"
    assert done.stdout.splitlines() == [off, on, off, on]
