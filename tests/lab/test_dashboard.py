# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard of a real node, in a browser on another machine: over TLS with the certificate that the node
made for itself, and with a token.

PHANTOMMESH_PICTURES=docs writes the pictures in docs/ that are of a real mesh anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from phantommesh.client.http import NodeClient
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, start
from phantommesh.nursery.lab.net import LabNode, nodes_of
from tests.lab import reaching
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.standing import Standing
from tests.lab.test_access import tried
from tests.lab.test_down import ask
from tests.lab.test_node import edit, stop
from tests.nursery.api.test_dashboard_browser import ASKED, DONE, LINK, SHOWN
from tests.support.browser import Browser, Page, chromium

pytestmark = [pytest.mark.lab, pytest.mark.browser]

PORT: Final = 8480
LIVE: Final = "document.querySelector('#live').innerText === 'Live.'"
POLICY: Final = """
default = "allow"

[[rule]]
name = "no-telnet"
action = "deny"
ports = [23]

[[test]]
from = ["{other}"]
to = ["{node}"]
port = "23"
expect = "deny"
"""
_CERTIFICATE: Final = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2]))))"


@pytest.fixture
def three(standing: Standing) -> Iterator[list[LabNode]]:
    """Three nodes that no other test uses: their mesh gets a policy, and one of them is killed."""
    standing.down()
    spec = make_spec("w", nodes=3, uplinks=1)
    trio.run(up.up, spec)
    try:
        yield nodes_of(spec)
    finally:
        trio.run(partial(up.down, spec.name))


def certificate_of(node: LabNode, seen_from: LabNode) -> bytes:
    """The certificate, as DER, that a node shows to another."""
    argv = [sys.executable, "-c", _CERTIFICATE, node.address(0), str(PORT)]
    shown = subprocess.run(
        ["ip", "netns", "exec", seen_from.name, *argv], capture_output=True, text=True, check=True
    )
    return ssl.PEM_cert_to_DER_cert(shown.stdout.strip())


def public_key(certificate: bytes) -> bytes:
    """The SHA-256 of its SubjectPublicKeyInfo."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


@asynccontextmanager
async def looking(node: LabNode, seen_from: LabNode, home: Path) -> AsyncIterator[tuple[Browser, str]]:
    """A browser on another node that trusts this node's certificate and no other: the operator has compared
    the fingerprint with that in the log."""
    certificate = await trio.to_thread.run_sync(certificate_of, node, seen_from)
    told = map(json.loads, node.log.read_text("utf-8").splitlines())
    *_, listens = (line for line in told if line["event"] == "API listens")
    assert hashlib.sha256(certificate).hexdigest() == listens["sha256"]
    async with chromium(home, space=seen_from.name, key=public_key(certificate)) as browser:
        yield browser, f"https://{node.address(0)}:{PORT}/"


async def signed_in(browser: Browser, url: str, token: str, **options: Any) -> Page:
    page = await browser.open(url, **options)
    await page.until("document.querySelector('#ask-token').open")
    await page.run("document.querySelector('#token').focus()")
    await page.write(token)
    await page.press("Enter")
    await page.until(SHOWN)
    await page.until(LIVE)
    return page


def epoch(node: LabNode, peer: LabNode) -> int:
    (link,) = [one for one in ask(node, "links")["items"] if one["peer"] == peer.name]
    found: int = link["epoch"]
    return found


def rotations_asked(node: LabNode) -> list[dict[str, Any]]:
    return [one for one in ask(node, "audit")["items"] if one["path"].startswith("/v1/rotations")]


async def test_an_operator_looks_acts_and_is_told_what_is_wrong(three: list[LabNode], tmp_path: Path) -> None:
    node, second, third = three
    edit(node.config, api={"listen": f"{node.address(0)}:{PORT}"})
    await stop(node)
    await start(node)
    await converged(three, PATIENCE_S)
    token = ask(node, "token", "create", "--scope", "operate", "--name", "operator")["token"]
    (tmp_path / "policy.toml").write_text(POLICY.format(node=node.name, other=second.name))
    number = ask(node, "acl", "set-policy", str(tmp_path / "policy.toml"))["number"]
    folder = Path(os.environ.get("PHANTOMMESH_PICTURES", tmp_path))

    async with chromium(tmp_path / "stranger", space=second.name, key=bytes(32)) as stranger:
        warned = await stranger.open(f"https://{node.address(0)}:{PORT}/")
        assert "ERR_CERT_AUTHORITY_INVALID" in await warned.text("body")  # it takes another key only
    async with looking(node, second, tmp_path / "browser") as (browser, url):
        page = await signed_in(browser, url, token)
        assert await page.text("h1") == f"{node.name} in {ask(node, 'status')['mesh']}"
        await page.until("document.querySelector('#glance').innerText.includes('2 of 2 peers up')")
        assert await page.run("document.querySelector('main > section').id") == "attention"
        assert await page.run("document.querySelectorAll('#map .member').length") == 3
        peers = await page.text("#peer-list")
        assert second.name in peers and third.name in peers

        await policed(page, node, second, number)
        await rotated(page, node, second)
        kill(third)
        told = f"document.querySelector('#attention-list li')?.innerText.includes({json.dumps(third.name)})"
        await page.until(told)
        first = await page.text("#attention-list li")
        assert re.match("critical|high|medium", first) and "What to do: " in first
        await page.until("document.querySelector('#glance').innerText.includes('1 of 2 peers up')")
        await page.run("scrollTo({top: 0, behavior: 'instant'})")
        await page.picture(folder / "dashboard-lab.png")

        phone = await signed_in(browser, url, token, width=360, height=740, dark=True)
        await phone.until(told)
        assert await phone.run("document.documentElement.scrollWidth") == 360
        assert await phone.run("document.querySelector('#attention').getBoundingClientRect().top") < 740
        await phone.picture(folder / "dashboard-lab-phone.png")

        for one in (page, phone):
            # The first question is asked without a token.
            assert all("401" in error for error in one.errors), one.errors
            assert all(asked.startswith((url, url.replace("https", "wss"))) for asked in one.asked)
            assert not any(token in asked for asked in one.asked)


async def policed(page: Page, node: LabNode, other: LabNode, number: int) -> None:
    """The mesh's policy is shown, and a packet that its rule denies is counted."""
    access = "document.querySelector('#access').innerText"
    said = f"The mesh's policy {number} holds here: 1 rule, signed by {node.name}."
    await page.until(f"{access}.includes({json.dumps(said)})")
    address = NodeClient(node.socket, timeout=30.0).status().ip4
    assert await trio.to_thread.run_sync(tried, other, [(address, reaching.TCP, 23)]) == [False]
    hits = (
        "Number([...document.querySelectorAll('#access tbody tr')].find(row => row.innerText.includes("
        "'no-telnet')).querySelector('[data-label=Packets]').innerText)"
    )
    await page.until(f"{hits} > 0")


async def rotated(page: Page, node: LabNode, other: LabNode) -> None:
    """A rotation is tried, refused by the operator, and then done."""
    names = "[...document.querySelectorAll('#peer-list button.name')]"
    await page.run(f"{names}.find(one => one.innerText === {json.dumps(other.name)}).click()")
    await page.until(LINK)
    assert f"Link with {other.name}" in await page.text("#link")
    assert await page.run("document.querySelectorAll('#link tbody tr .badge.good').length") == 7

    await page.click("#link [data-do=rotate]")
    await page.until(ASKED)
    said = await page.text("#confirm")
    assert "A dry run says" in said and f"{other.name}: planned, epoch " in said
    await page.click("#confirm-no")
    assert [one for one in rotations_asked(node) if "dry_run" not in one["path"]] == []

    before = epoch(node, other)
    await page.click("#link [data-do=rotate]")
    await page.until(ASKED)
    await page.click("#confirm-yes")
    await page.until(DONE)
    await page.click("#confirm-no")
    (done,) = [one for one in rotations_asked(node) if "dry_run" not in one["path"]]
    assert done["status"] < 300 and done["who"].endswith("(operator)")
    assert done["address"] == other.address(0)
    with trio.fail_after(PATIENCE_S):
        while await trio.to_thread.run_sync(epoch, node, other) <= before:
            await trio.sleep(0.2)
