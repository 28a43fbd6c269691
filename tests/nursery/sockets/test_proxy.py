# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections by way of an HTTP proxy of the environment."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control import messages
from phantommesh.nursery.sockets import framing
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import StreamError, connect
from phantommesh.nursery.sockets.proxy import Proxy, connected, parse_proxy, proxy_for
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
    assert proxy_for(AWAY, {}) is None
    assert proxy_for(AWAY, {"HTTPS_PROXY": "http://p:1"}) == Proxy("p", 1)
    assert proxy_for(AWAY, {"https_proxy": "http://q:2", "HTTPS_PROXY": "http://p:1"}) == Proxy("q", 2)
    assert proxy_for(AWAY, {"ALL_PROXY": "http://p:1"}) == Proxy("p", 1)
    assert proxy_for(AWAY, {"ALL_PROXY": "socks5://p:1"}) is None
    assert proxy_for(AWAY, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": f"localhost, {AWAY}"}) is None
    assert proxy_for(AWAY, {"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}) is None


@given(st.binary(max_size=80))
def test_any_head_is_read(head: bytes) -> None:
    assert connected(head) in (True, False)
    assert connected(b"HTTP/1.1 200 OK\r\n" + head)
    assert not connected(b"HTTP/1.1 403 no\r\n" + head)


@asynccontextmanager
async def proxying(answer: bytes, to: int) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that gives one answer to all, and then passes on what comes to a port of this host."""
    heads = list[bytes]()

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        heads.append(head)
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


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 no\r\n\r\n", b"garbage\r\n\r\n", b"", b"x" * 9000])
async def test_a_proxy_that_does_not_connect_is_an_error_that_keeps_its_secret(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "CONNECT", 1.5)
    async with proxying(answer, 1) as (port, _):
        monkeypatch.setattr(os, "environ", {"HTTPS_PROXY": f"http://me:secret@127.0.0.1:{port}"})
        with pytest.raises(StreamError) as caught:
            async with connect(AWAY, 51800):
                pass
    assert "secret" not in repr(caught.value) and "me:" not in str(caught.value)
