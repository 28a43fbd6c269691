# SPDX-License-Identifier: GPL-3.0-or-later
"""The name server on the loopback device, asked by a resolver library, by dig and by strangers."""

import errno
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.message
import dns.rcode
import dns.resolver
import pytest
import trio

from phantommesh.names.zone import Host, Zone
from phantommesh.nursery.names import server as server
from phantommesh.nursery.names.server import Ip, NameServer
from phantommesh.trust.certificates import Mesh
from tests.support.loopback import free_port

MESH = Mesh("pm", b"spki", IPv4Network("100.64.0.0/10"), IPv6Network("fd12:3456:789a::/48"), 0.0)
NOWHERE = IPv4Address("100.64.1.2")  # no interface of ours
ALPHA = Host("alpha", NOWHERE, IPv6Address("fd12:3456:789a::1"))
LOOPBACK = IPv4Network("127.0.0.0/8")
HERE = IPv4Address("127.0.0.1")
PATIENCE = 20.0  # s; a guard only


@dataclass
class Running:
    port: int
    server: NameServer
    zone: Zone = field(default_factory=lambda: Zone(MESH, "alpha", [ALPHA], serial=1))
    addresses: list[Ip] = field(default_factory=lambda: [HERE])
    answered: Counter[str] = field(default_factory=Counter)

    @property
    def resolver(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port, resolver.lifetime = [str(HERE)], self.port, PATIENCE
        return resolver


@asynccontextmanager
async def running(*networks: IPv4Network | IPv6Network) -> AsyncIterator[Running]:
    port = free_port()
    made = Running(
        port,
        NameServer(
            port=port,
            addresses=lambda: made.addresses,
            networks=networks or (LOOPBACK,),
            zone=lambda: made.zone,
            answered=lambda result: made.answered.update([result]),
        ),
    )
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.server.run)
            await until(lambda: listens(HERE, port))
            yield made
            nursery.cancel_scope.cancel()


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not seen():
            await trio.sleep(0.01)


def listens(address: Ip, port: int) -> bool:
    """Whether the TCP socket is there, which is bound after the UDP one."""
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6) as probe:
        return probe.connect_ex((str(address), port)) == 0


def query(name: str = "alpha.pm.internal", kind: str = "A") -> dns.message.QueryMessage:
    return dns.message.make_query(name, kind, use_edns=0)


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_resolver_finds_the_names(tcp: bool) -> None:
    async with running() as made:
        for kind, wanted in (("A", ALPHA.ip4), ("AAAA", ALPHA.ip6)):
            answer = await made.resolver.resolve("ALPHA.pm.internal", kind, tcp=tcp)
            assert [rr.address for rr in answer] == [str(wanted)]
        back = await made.resolver.resolve_address(str(ALPHA.ip6), tcp=tcp)
        assert str(back[0].target) == "alpha.pm.internal."
        with pytest.raises(dns.resolver.NXDOMAIN):
            await made.resolver.resolve("beta.pm.internal", "A", tcp=tcp)
        with pytest.raises(dns.resolver.NoNameservers, match="REFUSED"):
            await made.resolver.resolve("example.com", "A", tcp=tcp)
        assert made.answered == {"noerror": 3, "nxdomain": 1, "refused": 1}


async def test_answers_from_the_zone_as_it_is_now() -> None:
    async with running() as made:
        made.zone = Zone(MESH, "alpha", [Host("beta", ALPHA.ip4, ALPHA.ip6)], serial=2)
        assert (await made.resolver.resolve("beta.pm.internal", "A"))[0].address == str(ALPHA.ip4)


async def test_follows_its_addresses() -> None:
    other = IPv4Address("127.0.0.2")
    async with running() as made:
        made.addresses = [other]
        await until(lambda: listens(other, made.port) and not listens(HERE, made.port))
        await dns.asyncquery.udp(query(), str(other), timeout=PATIENCE, port=made.port)


async def test_needs_no_address_to_be_there_yet() -> None:
    """Binding to an address that no interface has must not fail; the lab shows that it then answers."""
    async with running() as made:
        made.addresses = [HERE, NOWHERE, ALPHA.ip6]
        await until(lambda: is_bound(NOWHERE, made.port))
        await dns.asyncquery.udp(query(), str(HERE), timeout=PATIENCE, port=made.port)


def is_bound(address: IPv4Address, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND, linux/in.h
        try:
            probe.bind((str(address), port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


async def test_tries_again_where_the_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RETRY", 0.01)
    other = IPv4Address("127.0.0.3")
    async with running() as made:
        with server._bind(other, made.port, socket.SOCK_DGRAM):
            made.addresses = [HERE, other]
            await trio.sleep(0.05)
            assert not listens(other, made.port)
            await dns.asyncquery.udp(query(), str(HERE), timeout=PATIENCE, port=made.port)
        await until(lambda: listens(other, made.port))


async def test_strangers_get_nothing() -> None:
    async with running(MESH.network4) as made:
        with pytest.raises(dns.exception.Timeout):
            await dns.asyncquery.udp(query(), str(HERE), timeout=0.2, port=made.port)
        assert made.server.dropped["dns-source"] >= 1
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await dns.asyncquery.tcp(query(), str(HERE), timeout=PATIENCE, port=made.port)
        assert not made.answered


async def test_one_asker_cannot_have_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RATE", 0.0)
    monkeypatch.setattr(server, "BURST", 10.0)
    async with running() as made:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy:
            for _ in range(50):
                greedy.sendto(query().to_wire(), (str(HERE), made.port))
            await until(lambda: made.server.dropped["dns-rate"] + made.answered.total() >= 50)
            assert made.answered.total() <= 10
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as modest:
            modest.bind(("127.0.0.9", 0))
            modest.sendto(query().to_wire(), (str(HERE), made.port))
            await until(lambda: made.answered.total() == 10)


async def test_connections_are_bounded_and_serve_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as made:
        streams = [await trio.open_tcp_stream(str(HERE), made.port) for _ in range(server.MAX_PER_HOST + 1)]
        await until(lambda: made.server.dropped["dns-connections"] >= 1)
        wire = query().to_wire()
        for _ in range(3):
            await streams[0].send_all(len(wire).to_bytes(2) + wire[:5])
            await streams[0].send_all(wire[5:])
            size = int.from_bytes(await server._exactly(streams[0], 2))
            assert dns.message.from_wire(await server._exactly(streams[0], size)).answer
        for stream in streams:
            await stream.aclose()
        await until(lambda: not made.server._connections)


async def test_a_slow_connection_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE", 0.05)
    async with running() as made:
        stream = await trio.open_tcp_stream(str(HERE), made.port)
        await stream.send_all(b"\0")
        assert await stream.receive_some(1) == b""
        await stream.aclose()


@pytest.mark.parametrize("frame", [b"\xff\xff" + bytes(100), b"\x00\x00", b"\x00\x05abcde"])
async def test_junk_ends_a_connection(frame: bytes) -> None:
    async with running() as made:
        stream = await trio.open_tcp_stream(str(HERE), made.port)
        await stream.send_all(frame)
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await server._exactly(stream, 1)
        await stream.aclose()
        assert made.server.dropped.total() >= 1
        await made.resolver.resolve("alpha.pm.internal", "A", tcp=True)


async def test_junk_datagrams_are_counted() -> None:
    async with running() as made:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for junk in (b"", b"abc", bytes(12), b"\0\0\x80" + bytes(20), b"\xff" * 2000):
                sender.sendto(junk, (str(HERE), made.port))
        await until(lambda: made.server.dropped.total() + made.answered.total() >= 5)
        assert made.server.dropped == {"dns-short": 2, "dns-response": 2}
        assert made.answered == {"formerr": 1}


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed (Debian: bind9-dnsutils)")
async def test_dig() -> None:
    async with running() as made:

        async def dig(*arguments: str) -> str:
            done = await trio.run_process(
                ["dig", "+noall", "+answer", "+comments", f"-p{made.port}", f"@{HERE}", *arguments],
                capture_stdout=True,
            )
            return done.stdout.decode()

        said = await dig("alpha.pm.internal", "A")
        assert "status: NOERROR" in said
        assert "flags: qr aa rd;" in said
        assert "100.64.1.2" in said
        assert "WARNING: Message parser" not in said
        assert "alpha.pm.internal." in await dig("+tcp", "-x", str(ALPHA.ip4))
        assert "status: REFUSED" in await dig("example.com")
        assert "status: NXDOMAIN" in await dig("x.pm.internal")
        assert "status: NOTIMP" in await dig("+opcode=NOTIFY", "pm.internal", "SOA")
        assert "status: BADVERS" in await dig("+edns=1", "+noednsnegotiation", "pm.internal", "SOA")


async def test_counts_what_each_asks_for_and_is_not_there() -> None:
    async with running() as made:
        made.zone = Zone(Mesh("pm", b"spki", MESH.network4, MESH.network6, 0.0), "alpha", [ALPHA], serial=1)
        for name, kind in (("alpha", "A"), ("beta", "A"), ("beta", "AAAA")):
            await dns.asyncquery.udp(query(f"{name}.pm.internal", kind), str(HERE), PATIENCE, made.port)
        await dns.asyncquery.tcp(query("9.9.64.100.in-addr.arpa", "PTR"), str(HERE), PATIENCE, made.port)
        (seen,) = made.server.askers.seen(trio.current_time())
        assert (round(seen.missing), round(seen.walked)) == (2, 1) and seen.asked > 3.5


async def test_who_is_throttled_gets_less_and_takes_nothing_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "TOTAL_RATE", 0.0)
    monkeypatch.setattr(server, "TOTAL_BURST", 20.0)
    async with running() as made:
        blamed = Counter[tuple[str, str]]()
        made.server._blame = lambda reason, host: blamed.update([(reason, host)])
        made.server.askers.keep_to("127.0.0.8", 5.0, trio.current_time() + 1e6)  # no more than its burst
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy:
            greedy.bind(("127.0.0.8", 0))
            for _ in range(50):
                greedy.sendto(query().to_wire(), (str(HERE), made.port))
            await until(lambda: made.server.dropped["dns-shed"] + made.answered.total() >= 50)
        assert made.answered.total() == 5 and blamed == {("dns-shed", "127.0.0.8"): 45}
        await dns.asyncquery.udp(query(), str(HERE), timeout=PATIENCE, port=made.port)
