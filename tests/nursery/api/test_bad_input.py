# SPDX-License-Identifier: GPL-3.0-or-later
"""What no client should send, over a real socket: a clean refusal, and nothing is done."""

from pathlib import Path

import msgspec
import pytest
import trio

from phantommesh.management.views import Problem
from phantommesh.nursery.api.problems import MAX_BODY_BYTES
from tests.nursery.api.test_api import serving
from tests.support.fakenode import FakeNode

HEAD = "Host: localhost\r\nConnection: close\r\n"
JSON = f"{HEAD}Content-Type: application/json\r\n"


async def sent(path: Path, data: bytes) -> bytes:
    async with await trio.open_unix_socket(path) as stream:
        with trio.fail_after(20):
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                pass  # it was refused before its end
            answer = b""
            try:
                async for part in stream:
                    answer += part
            except trio.BrokenResourceError:
                pass
    return answer


def refused(answer: bytes, *statuses: int) -> None:
    """The first answer is a refusal, as problem details wherever the application has seen the request."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert status in statuses, answer[:300]
    if b"problem+json" in head:
        assert msgspec.json.decode(body, type=Problem).status == status
    else:
        assert status in (400, 431, 501) and not body, answer[:300]
    assert b"Traceback" not in answer and b"<html" not in answer.lower()


def post(body: bytes, target: str = "/v1/rotations", head: str = JSON, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {target} HTTP/1.1\r\n{head}Content-Length: {size}\r\n\r\n".encode() + body


def get(target: str, head: str = HEAD) -> bytes:
    return f"GET {target} HTTP/1.1\r\n{head}\r\n".encode()


def chunked(size: int) -> bytes:
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    head = f"POST /v1/rotations HTTP/1.1\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + chunk * (size // 4096) + b"0\r\n\r\n"


REFUSED: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "a body that is too large": (post(b" " * (MAX_BODY_BYTES + 1)), (413,)),
    "a body that says it is too large": (post(b"{}", length=10**12), (413,)),
    "a body in pieces that is too large": (chunked(2 * MAX_BODY_BYTES), (413,)),
    "a length that is none": (
        f"POST /v1/rotations HTTP/1.1\r\n{JSON}Content-Length: -1\r\n\r\n".encode(), (400,)
    ),
    "a wrong type": (post(b'{"peer": 7}'), (400,)),
    "a list": (post(b"[]"), (400,)),
    "an unknown field": (post(b'{"peers": "pm-1"}'), (400,)),
    "deep nesting": (post(b"[" * 30_000), (400,)),
    "no UTF-8": (post(b'{"peer": "\xff"}'), (400,)),
    "a lone surrogate": (post(b'{"peer": "\\ud800"}'), (400,)),
    "a large number": (post(b'{"peer": "pm-1", "count": 1e999}', "/v1/pings"), (400,)),
    "no number": (post(b'{"network": "192.0.2.7", "seconds": NaN}', "/v1/bans"), (400,)),
    "another kind of body": (post(b"{}", head=f"{HEAD}Content-Type: text/xml\r\n"), (415,)),
    "a way up": (get("/v1/../v1/status"), (404,)),
    "a way up in a parameter": (get("/v1/peers/..%2f..%2fetc%2fpasswd"), (404,)),
    "two slashes": (get("//v1/status"), (404,)),
    "a null byte": (get("/v1/peers/%00"), (404,)),
    "no UTF-8 in a path": (get("/v1/peers/%ff%fe"), (404,)),
    "a long path": (get("/v1/peers/" + "x" * 8000), (404,)),
    "a path that is longer": (get("/v1/peers/" + "x" * 200_000), (400, 431)),
    "another host's target": (get("http://evil.example/v1/nothing"), (404,)),
    "a huge cursor": (get("/v1/peers?cursor=" + "A" * 9000 + "!"), (400,)),
    "a cursor of no page": (get("/v1/audit?cursor=" + "QUFB" * 2000), (400,)),
    "a limit of many digits": (get("/v1/peers?limit=" + "9" * 5000), (400,)),
    "a name that no query has": (get("/v1/peers?" + "x" * 5000 + "=1"), (400,)),
    "a large header": (get("/v1/status", f"{HEAD}X: {'x' * 100_000}\r\n"), (400, 431)),
    "many headers": (get("/v1/status", HEAD + "X: 1\r\n" * 20_000), (400, 431)),
    "two lengths": (
        f"POST /v1/rotations HTTP/1.1\r\n{JSON}Content-Length: 2\r\nContent-Length: 40\r\n\r\n{{}}".encode(),
        (400,),
    ),
    "a length and a transfer coding": (
        f"POST /v1/rotations HTTP/1.1\r\n{JSON}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        "2\r\n{}\r\n0\r\n\r\n".encode(),
        (400,),
    ),
    "a null byte in a header": (b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", (400,)),
    "a bare carriage return in a header": (
        get("/v1/status", f"{HEAD}X: a\rTransfer-Encoding: chunked\r\n"), (400,)
    ),
    "a header that begins folded": (b"GET /v1/status HTTP/1.1\r\n X: 1\r\nHost: localhost\r\n\r\n", (400,)),
    "two transfer codings": (
        f"POST /v1/rotations HTTP/1.1\r\n{JSON}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"
        "\r\n0\r\n\r\n".encode(),
        (400, 501),
    ),
    "a chunk's length that is none": (
        f"POST /v1/rotations HTTP/1.1\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n"
        "-2\r\n{}\r\n0\r\n\r\n".encode(),
        (400,),
    ),
    "a configuration of another kind": (
        post(b'{"config": 7}', "/v1/config").replace(b"POST", b"PUT", 1), (400,)
    ),
    "an invite for ever": (post(b'{"seconds": 1e300}', "/v1/invites"), (400,)),
    "an invite with more than there is": (post(b'{"root": true}', "/v1/invites"), (400,)),
    "two hosts": (get("/v1/status", f"{HEAD}Host: evil.example\r\n"), (400,)),
    "no host": (get("/v1/status", "Connection: close\r\n"), (400,)),
    "a space before the colon": (get("/v1/status", f"{HEAD}Transfer-Encoding : chunked\r\n"), (400,)),
    "a folded header": (b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX:\x00y\r\n\r\n", (400,)),
    "a transfer coding that is none": (
        f"POST /v1/rotations HTTP/1.1\r\n{JSON}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".encode(),
        (400, 501),
    ),
    "a long Idempotency-Key": (post(b"{}", head=f"{JSON}Idempotency-Key: {'k' * 300}\r\n"), (400,)),
    "a method that is none": (f"BREW /v1/status HTTP/1.1\r\n{HEAD}\r\n".encode(), (405,)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
async def test_a_clean_refusal(what: str, tmp_path: Path) -> None:
    node = FakeNode()
    data, statuses = REFUSED[what]
    async with serving(node, tmp_path / "api.sock"):
        refused(await sent(tmp_path / "api.sock", data), *statuses)
        # The node goes on.
        assert (await sent(tmp_path / "api.sock", get("/healthz"))).startswith(b"HTTP/1.1 200 ")
    assert node.rotated == [] and node.pinged == [] and node.asked == []


async def test_no_upgrade_to_http_2_in_clear(tmp_path: Path) -> None:
    head = HEAD.replace("close", "Upgrade, HTTP2-Settings")
    asked = get("/healthz", f"{head}Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n")
    path = tmp_path / "api.sock"
    async with serving(FakeNode(), path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(asked)
        with trio.fail_after(20):
            answer = await stream.receive_some(4096)
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_folded_transfer_coding_counts_as_one(tmp_path: Path) -> None:
    """RFC 9112 section 5.2: a fold stands for a space. Whoever took it for a header of no value would find
    another request in the body."""
    node = FakeNode()
    hidden = b"POST /v1/rotations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    head = (
        f"POST /v1/pings HTTP/1.1\r\n{JSON}Transfer-Encoding:\r\n chunked\r\n\r\n{len(hidden):x}\r\n".encode()
    )
    async with serving(node, tmp_path / "api.sock"):
        answer = await sent(tmp_path / "api.sock", head + hidden + b"\r\n0\r\n\r\n")
    refused(answer, 400)
    assert answer.count(b"HTTP/1.1 4") == 1 and node.rotated == []


@pytest.mark.parametrize("head", [JSON, JSON.replace("Connection: close\r\n", "")])
async def test_no_request_is_smuggled_behind_another(head: str, tmp_path: Path) -> None:
    """Both a length and a transfer coding (RFC 9112 section 6.1): a refusal, and what comes behind is no
    request of its own that a proxy has not seen."""
    node = FakeNode()
    hidden = b"POST /v1/rotations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    data = (
        f"POST /v1/nothing HTTP/1.1\r\n{head}Content-Length: {5 + len(hidden)}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ).encode() + hidden
    async with serving(node, tmp_path / "api.sock"):
        answer = await sent(tmp_path / "api.sock", data)
    assert answer.count(b"HTTP/1.1 ") == 1 and node.rotated == []
