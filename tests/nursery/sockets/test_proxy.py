# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections by way of an HTTP proxy of the environment."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control import messages
from phantommesh.nursery.sockets import framing
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import StreamError, connect
from phantommesh.nursery.sockets.proxy import Proxy, connected, goes_without, parse_proxy, proxy_for, refusal
from tests.nursery.sockets.test_streams import CLIENTS, HERE, serving

AWAY = "192.0.2.7"  # TEST-NET-1: nobody answers


@pytest.mark.parametrize(
    ("url", "host", "port", "basic"),
    [
        ("http://proxy.example:3128", "proxy.example", 3128, None),
        ("proxy.example:3128", "proxy.example", 3128, None),
        ("http://10.0.0.1", "10.0.0.1", 80, None),
        ("http://[2001:db8::1]:8080/", "2001:db8::1", 8080, None),
        ("http://us%40er:p%3Ass@proxy.example:1", "proxy.example", 1, b"dXNAZXI6cDpzcw=="),
    ],
)
def test_urls_of_proxies_are_read(url: str, host: str, port: int, basic: bytes | None) -> None:
    found = parse_proxy(url)
    assert found is not None and (found.host, found.port) == (host, port)
    assert (None if found.credentials is None else found.credentials.reveal()) == basic
    assert basic is None or (basic.decode() not in repr(found) and basic in found.request(AWAY, 443))


@given(st.text(max_size=60))
def test_any_url_is_a_proxy_or_none(url: str) -> None:
    found = parse_proxy(url)
    assert found is None or found.host


def test_the_environment_names_the_proxy_and_what_goes_without_it() -> None:
    def told(environment: dict[str, str]) -> Proxy | None:
        return proxy_for(AWAY, 51800, environment)

    assert told({}) is None
    assert told({"HTTPS_PROXY": "http://p:1"}) == Proxy("p", 1)
    assert told({"https_proxy": "http://q:2", "HTTPS_PROXY": "http://p:1"}) == Proxy("q", 2)
    assert told({"ALL_PROXY": "http://p:1"}) == Proxy("p", 1)
    assert told({"ALL_PROXY": "socks5://p:1"}) is None
    assert told({"HTTPS_PROXY": "http://p:1", "NO_PROXY": f"localhost, {AWAY}"}) is None
    assert told({"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}) is None
    assert told({"HTTPS_PROXY": "http://p:1", "no_proxy": "10.0.0.0/8,192.0.2.0/24"}) is None
    assert told({"HTTPS_PROXY": "http://p:1", "no_proxy": "10.0.0.0/8"}) == Proxy("p", 1)


@pytest.mark.parametrize(
    ("host", "excluded", "without"),
    [
        (AWAY, f"{AWAY}:443", True),
        (AWAY, f"{AWAY}:444", False),
        (AWAY, "192.0.2.99/24", True),  # host bits, as Go reads it
        (AWAY, "192.0.2.0/24 10.0.0.0/8", True),  # parted by a blank, as curl reads it
        (AWAY, "192.0.2.0/", False),
        (AWAY, "192.0.2.0/33", False),
        (AWAY, ",, ,", False),
        (AWAY, ".2.7", False),  # a suffix is of names
        (f"::ffff:{AWAY}", "192.0.2.0/24", True),
        ("2001:db8::7", "2001:db8::/32", True),
        ("2001:db8::7", "2001:0db8:0::7", True),
        ("2001:db8::7", "[2001:db8::7]:443", True),
        ("2001:db8::7", "[2001:db8::7]:444", False),
        ("2001:db8::7", "[2001:db8::7]", True),
        ("2001:db8::7", "192.0.2.0/24", False),
        ("a.example.net", "example.net", True),
        ("example.net", "example.net:443", True),
        ("a.Example.net.", "EXAMPLE.net.", True),
        ("example.net", ".example.net", False),
        ("a.example.net", ".example.net", True),
        ("a.example.net", "*.example.net", True),
        ("badexample.net", "example.net", False),
        ("a.example.net", "10.0.0.0/8", False),
        ("a.example.net", ".", False),
        ("a.example.net", "*", True),
    ],
)
def test_what_goes_without_a_proxy(host: str, excluded: str, without: bool) -> None:
    assert goes_without(host, 443, excluded) == without


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", "localhost"])
def test_this_machine_itself_is_reached_by_no_proxy(host: str) -> None:
    """The proxy would take it for its own. Go spares it too, whatever NO_PROXY says."""
    assert proxy_for(host, 51800, {"HTTPS_PROXY": "http://p:1"}) is None


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 32))
def test_a_network_excludes_what_is_in_it(
    one: IPv4Address | IPv6Address, other: IPv4Address | IPv6Address, size: int
) -> None:
    network = ip_network((other, size), strict=False)
    mapped = getattr(one, "ipv4_mapped", None) or one
    assert goes_without(str(one), 1, f"x,{network}") == (mapped in network or mapped.is_loopback)
    assert goes_without(str(mapped), 1, f"{ip_network((mapped, size), strict=False)}")


@given(st.text(max_size=40), st.text(max_size=80), st.integers(1, 65535))
def test_any_exclusion_is_read(host: str, excluded: str, port: int) -> None:
    assert goes_without(host, port, excluded) in (True, False)
    assert goes_without(AWAY, port, f"{excluded},{AWAY}")


@given(st.binary(max_size=80))
def test_any_head_is_read(head: bytes) -> None:
    assert connected(head) in (True, False)
    assert connected(b"HTTP/1.1 200 OK\r\n" + head)
    assert not connected(b"HTTP/1.1 403 no\r\n" + head)
    assert refusal(head).isprintable()


@asynccontextmanager
async def proxying(answer: bytes | None, to: int) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that gives one answer to all, and then passes on what comes to a port of this host; None: one
    that takes requests and answers nothing."""
    heads = list[bytes]()

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        heads.append(head)
        if answer is None:
            await trio.sleep_forever()
        await stream.send_all(answer)
        if not connected(answer):
            return
        async with await trio.open_tcp_stream(HERE, to) as other, trio.open_nursery() as nursery:

            async def pass_on(one: trio.SocketStream, two: trio.SocketStream) -> None:
                async for part in one:
                    await two.send_all(part)
                nursery.cancel_scope.cancel()

            nursery.start_soon(pass_on, stream, other)
            nursery.start_soon(pass_on, other, stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host=HERE))
        yield listener.socket.getsockname()[1], heads
        nursery.cancel_scope.cancel()


async def test_a_channel_goes_by_the_proxy_where_nothing_answers_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as served:
        answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"
        async with proxying(answer, served.number) as (port, heads):
            url = f"http://me:secret@127.0.0.1:{port}"
            monkeypatch.setattr(os, "environ", {"HTTPS_PROXY": url})
            async with connect(AWAY, served.number) as framed:
                assert (framed.address.host, framed.address.port) == (AWAY, served.number)
                client = await Client.open(framed, CLIENTS)
                assert isinstance(await client.ask(messages.Renew(b"")), messages.Refused)
            [head] = heads
            assert head.startswith(f"CONNECT {AWAY}:{served.number} HTTP/1.1\r\n".encode())
            assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in head

            # What answers directly needs no proxy.
            monkeypatch.setattr(framing, "HEAD_START", 60.0)
            async with connect(HERE, served.number):
                assert len(heads) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 407 me:secret\r\n\r\n", "other credentials .407.: set user and password"),
        (b"HTTP/1.1 403 me:secret\r\n\r\n", "it refused .403."),
        (b"garbage\r\n\r\n", "none of HTTP"),
        (b"x" * 9000, "none of HTTP"),
        (b"", "closed the connection"),
        (None, "no answer"),
    ],
)
async def test_a_proxy_that_does_not_connect_is_an_error_that_keeps_its_secret(
    answer: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "CONNECT", 1.5)
    async with proxying(answer, 1) as (port, _):
        monkeypatch.setattr(os, "environ", {"HTTPS_PROXY": f"http://me:secret@127.0.0.1:{port}"})
        monkeypatch.setattr(framing, "HEAD_START", 0.1)
        with pytest.raises(StreamError, match=why) as caught:
            async with connect(AWAY, 51800):
                pass
    assert "secret" not in repr(caught.value) and "me:" not in str(caught.value)


async def test_a_further_port_is_tried_where_the_control_port_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {})
    async with serving() as served:
        [listener] = await trio.open_tcp_listeners(0, host=HERE)
        closed = listener.socket.getsockname()[1]
        await listener.aclose()
        async with connect(HERE, closed, (closed, served.number)) as framed:
            assert (framed.address.host, framed.address.port) == (HERE, closed)
            client = await Client.open(framed, CLIENTS)
            assert isinstance(await client.ask(messages.Renew(b"")), messages.Refused)
        with pytest.raises(StreamError, match=f"port {closed}"):
            async with connect(HERE, closed, (closed,)):
                pass


async def test_a_proxy_that_passes_one_port_alone_is_used_for_a_further_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as served:
        heads = list[bytes]()

        async def serve(stream: trio.SocketStream) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(1)
            heads.append(head)
            if b":443 " not in head.splitlines()[0]:
                await trio.sleep_forever()
            await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            async with await trio.open_tcp_stream(HERE, served.number) as other, trio.open_nursery() as both:
                both.start_soon(_pass_on, stream, other)
                both.start_soon(_pass_on, other, stream)

        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host=HERE))
            port = listener.socket.getsockname()[1]
            monkeypatch.setattr(os, "environ", {"HTTPS_PROXY": f"http://127.0.0.1:{port}"})
            async with connect(AWAY, 51800, (443,)) as framed:
                client = await Client.open(framed, CLIENTS)
                assert isinstance(await client.ask(messages.Renew(b"")), messages.Refused)
            nursery.cancel_scope.cancel()
        assert len(heads) == 2


async def _pass_on(one: trio.SocketStream, two: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for part in one:
            await two.send_all(part)
        await two.send_eof()
