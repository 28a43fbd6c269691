# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter before the raw sockets, run by a small machine of its own, and UDP's checksum."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.nursery.sockets.wgports import IDLE, Instruction, WireguardPorts, _checksum, program
from phantommesh.routing.knocks import SIZE

PORTS, MAGICS = (51820, 51821, 51833), (0x504D5231, 0x504D5031)
number16, number32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def passes(code: list[Instruction], packet: bytes) -> bool:
    """Run a program as the kernel does (Documentation/networking/filter.rst), as far as it goes here. A load
    beyond the end refuses."""
    accumulator = x = at = 0
    while True:
        what, yes, no, k = code[at]
        at += 1
        if what == 0x06:
            return k > 0
        if what in (0x15, 0x45):
            met = accumulator == k if what == 0x15 else bool(accumulator & k)
            at += yes if met else no
        elif what == 0x01:
            x = k
        elif what == 0xB1:
            x = (packet[k] & 15) * 4
        else:
            offset = k + (x if what in (0x40, 0x48) else 0)
            size = 4 if what == 0x40 else 2
            if offset + size > len(packet):
                return False
            accumulator = int.from_bytes(packet[offset : offset + size], "big")


def udp(port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", 4711, port, 8 + len(payload), 0) + payload


def ipv4(datagram: bytes, options: int = 0, fragment: int = 0) -> bytes:
    header = bytes((0x45 + options, 0)) + struct.pack("!HHHBBH", 0, 0, fragment, 64, 17, 0)
    return header + bytes(8 + 4 * options) + datagram


def payload(magic: int, size: int = SIZE) -> bytes:
    return magic.to_bytes(4, "big") + bytes(size - 4)


@given(number16, number32, st.sampled_from([SIZE, SIZE - 1, SIZE + 1, 148]), st.integers(0, 10))
def test_nothing_else_passes(port: int, magic: int, size: int, options: int) -> None:
    known = port in PORTS and magic in MAGICS and size == SIZE
    datagram = udp(port, payload(magic, size))
    assert passes(program(PORTS, MAGICS, ipv6=False), ipv4(datagram, options)) == known
    assert passes(program(PORTS, MAGICS, ipv6=True), datagram) == known


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("magic", MAGICS)
@pytest.mark.parametrize("options", [0, 1, 10])
def test_ours_pass(port: int, magic: int, options: int) -> None:
    datagram = udp(port, payload(magic))
    assert passes(program(PORTS, MAGICS, ipv6=False), ipv4(datagram, options))
    assert not passes(program(PORTS, MAGICS, ipv6=False), ipv4(datagram, options, fragment=0x2000))
    assert passes(program(PORTS, MAGICS, ipv6=True), datagram)
    for ports, magics in (((), MAGICS), (PORTS, ())):
        assert not passes(program(ports, magics, ipv6=True), datagram)


@given(st.binary(max_size=100))
def test_no_packet_breaks_the_filter(packet: bytes) -> None:
    passes(program(PORTS, MAGICS, ipv6=True), packet)
    passes(program(PORTS, MAGICS, ipv6=False), b"\x45" + packet)


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.binary(max_size=65))
def test_a_datagram_with_its_checksum_sums_to_all_ones(here: bytes, there: bytes, data: bytes) -> None:
    """RFC 768: a sum of zero is sent as all ones, which counts as zero."""
    bare = udp(51820, data)
    summed = bare[:6] + _checksum(here, there, bare) + bare[8:]
    whole = here + there + struct.pack("!HH", 17, len(summed)) + summed + bytes(len(summed) % 2)
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert summed[6:8] != bytes(2)


# Run without the capability.
REFUSED = """
import trio
from phantommesh.endpoint import Address
from phantommesh.nursery.sockets.wgports import WireguardPorts

async def main():
    ports = WireguardPorts()
    assert not ports.faults()
    ports.open_ports((51820,))
    with trio.move_on_after(0.2):
        await ports.run()
        raise SystemExit("the service ended")
    assert not ports.send(0, Address("127.0.0.1", 9), bytes(64)) and not ports.open
    print(*(fault.code for fault in ports.faults()))

trio.run(main)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to take a capability away"
)
def test_without_the_capability_there_is_a_fault_and_the_service_goes_on() -> None:
    argv = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", sys.executable, "-c", REFUSED]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["no-raw-socket"]), result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for raw sockets")
async def test_the_sockets_are_there_while_they_are_needed(autojump_clock: trio.testing.MockClock) -> None:
    """Each UDP packet of the host is copied for them."""
    ports = WireguardPorts()
    ports.listen(MAGICS[0], lambda dimension, source, data: None)
    ports.open_ports(PORTS)

    def now() -> tuple[bool, bool]:
        return ports.able, ports.open

    assert now() == (False, False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ports.run)
        await trio.testing.wait_all_tasks_blocked()
        assert now() == (True, True)
        await trio.sleep(2 * IDLE + 1)
        assert now() == (True, False)
        assert ports.send(1, Address("127.0.0.1", 9), payload(MAGICS[1]))
        assert now() == (True, True)
        ports.keep("test", True)
        await trio.sleep(10 * IDLE)
        assert now() == (True, True)
        ports.keep("test", False)
        await trio.sleep(2 * IDLE + 1)
        assert now() == (True, False)
        ports.keep("test", True)
        assert now() == (True, True)
        nursery.cancel_scope.cancel()
    assert now() == (False, False)
