# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard in headless Chromium, of the real application on a loopback port.

In every test an error on the console, an exception, a breach of the page's policy and a request to anywhere
else than the node are failures.
"""

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.trio.worker_context import WorkerContext
from quart import Response, request
from quart_trio import QuartTrio

from phantommesh.management.scopes import Scope
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from phantommesh.nursery.api.server import connection_handler
from tests.support.bigmesh import DISK, BigMesh
from tests.support.browser import Browser, Page, chromium
from tests.support.fakenode import FakeNode
from tests.support.longnames import LongNames

pytestmark = pytest.mark.browser

SHOWN = (
    "document.querySelectorAll('#peer-list tbody tr').length > 0 && document.querySelector('#map .member')"
)
LINK = "document.querySelectorAll('#link tbody tr').length === 7"
ASKED = "document.querySelector('#confirm').open && !document.querySelector('#confirm-yes').disabled"
DONE = "document.querySelector('#confirm-body').innerText.startsWith('Done.')"
IN_DIALOG = "document.activeElement.closest('dialog') !== null"
FOCUS = "document.activeElement.id || document.activeElement.innerText"


@asynccontextmanager
async def serving(app: QuartTrio) -> AsyncIterator[str]:
    """Serve an application on a port of its own; give its address."""
    async with trio.open_nursery() as nursery:
        handle = connection_handler(app, WorkerContext(None))
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def watched(tmp_path: Path, app: QuartTrio) -> AsyncIterator[tuple[Browser, str]]:
    """Serve an application and run a browser; in the end no page may have seen an error, or have asked for
    anything elsewhere."""
    async with serving(app) as url, chromium(tmp_path / "browser") as browser:
        yield browser, url
        for page in browser.pages.values():
            assert not page.errors
            assert page.asked
            assert all(asked.startswith((url, url.replace("http", "ws"))) for asked in page.asked)


async def shown(browser: Browser, url: str, **options: Any) -> Page:
    page = await browser.open(url, **options)
    await page.until(SHOWN)
    return page


async def opened(page: Page, selector: str = "#peer-list button.name") -> None:
    await page.click(selector)
    await page.until(LINK)


async def test_the_page_shows_the_mesh_and_follows_it(tmp_path: Path) -> None:
    node = BigMesh(12)
    async with watched(tmp_path, create_app(node, Door(trusted=True))) as (browser, url):
        page = await shown(browser, url)
        assert await page.text("h1") == "gateway-000 in lab"
        assert "11 of 12 peers up" in await page.text("#glance")
        first = await page.text("#attention-list li")
        assert "no traffic flows with peer rome-007" in first and "What to do: let UDP through" in first
        assert await page.run("document.querySelectorAll('#map .member').length") == 13
        assert await page.run("document.querySelectorAll('#map .member.down').length") == 1
        assert (await page.text("#peer-list tbody tr")).startswith("rome-007")
        await page.until("document.querySelector('#live').innerText === 'Live.'")

        node.faults = [DISK.fault("the disk is full", "make room")]
        node.events.publish("health.degraded", None, {"reasons": ["the disk is full"]})
        await page.until("document.querySelector('#events').innerText.includes('health.degraded')")
        await page.until("document.querySelector('#attention-list li').innerText.includes('disk is full')")
        assert (await page.text("#attention-count")).startswith("1 critical, ")

        await opened(page, "#peer-list tbody tr:nth-child(2) button")
        link = await page.text("#link")
        assert "Link with mumbai-003" in link and "they rotate in " in link
        assert "relayed via berlin-001" in link and "1376" in link
        assert "Entropy 2.80 of 2.81 bits" in link and "6 kept, 5 signed by both ends" in link
        assert await page.run("document.querySelectorAll('#link meter').length") == 8
        assert "fortress" in await page.text("#agents") and "it raised ValueError" in await page.text(
            "#agents"
        )
        assert "psk_age_s 0.3, as expected" in await page.text("#decision-list")
        assert "203.0.113.5/32" in await page.text("#threats")
        await page.until("document.querySelector('#access').innerText.includes('419')")  # packets, by rule
        access = await page.text("#access")
        assert "What no rule names is denied. 7 packets were denied" in access
        assert "The mesh's policy 3 holds here: 1 rule, signed by berlin-001" in access


async def test_a_rotation_is_counted_down(tmp_path: Path) -> None:
    node = BigMesh(1)
    async with watched(tmp_path, create_app(node, Door(trusted=True))) as (browser, url):
        page = await shown(browser, url)
        seen = await page.text("#peer-list .due")
        assert seen.startswith("in 8") and seen.endswith(" s")
        # The map is asked for every ten seconds, and says the same each time.
        await page.until(f"document.querySelector('#peer-list .due').innerText !== {json.dumps(seen)}")


async def test_actions_say_first_what_they_would_do(tmp_path: Path) -> None:
    node = BigMesh(12)
    app, keys = create_app(node, Door(trusted=True)), list[tuple[str, str | None]]()

    @app.before_request
    async def note() -> None:
        if request.method != "GET":
            keys.append((request.full_path.rstrip("?"), request.headers.get("Idempotency-Key")))

    async with watched(tmp_path, app) as (browser, url):
        page = await shown(browser, url)

        async def act(selector: str, *said: str, unchanged: Callable[[], bool]) -> None:
            await page.until(f"document.querySelector({json.dumps(selector)})")
            await page.click(selector)
            await page.until(ASKED)
            text = await page.text("#confirm")
            assert all(one in text for one in said), text
            assert unchanged()
            await page.click("#confirm-no")
            assert unchanged()
            await page.click(selector)
            await page.until(ASKED)
            await page.click("#confirm-yes")
            await page.until(DONE)
            await page.click("#confirm-no")
            await page.until("!document.querySelector('#confirm').open")

        await act(
            "#node-actions button", "A dry run says", "rome-007: planned, epoch 8", "and 2 more",
            unchanged=lambda: not node.rotated,
        )  # fmt: skip
        assert node.rotated == [None]
        await act(
            "#node-actions button:nth-child(2)", "The node is working now",
            unchanged=lambda: node.draining.state == "working",
        )  # fmt: skip
        assert node.draining.state == "drained"
        await opened(page)
        await act(
            "#link [data-do=rotate]",
            "link with rome-007",
            "epoch 8",
            unchanged=lambda: len(node.rotated) == 1,
        )
        assert node.rotated == [None, "id007"]
        await act(
            "#agent-list [data-agent=cipher]", "There is no dry run", "cipher is running",
            "cipher quarantined the link", unchanged=lambda: node.phases["cipher"] == "running",
        )  # fmt: skip
        await act(
            "#agent-list [data-agent=cipher][data-do=resume]", "cipher is paused",
            unchanged=lambda: node.phases["cipher"] == "paused",
        )  # fmt: skip
        assert node.phases["cipher"] == "running"
        await act("#threat-list [data-do=unban]", "banned by operator", unchanged=lambda: not node.lifted)
        assert node.lifted == [("203.0.113.1/32", None)]
        await page.run("document.querySelector('#ban-form [name=network]').value = '198.51.100.9'")
        await act("#ban-form button", "from 198.51.100.9", "for 10 min", unchanged=lambda: not node.asked)
        assert node.asked == [("198.51.100.9", 600.0, False)]
    done = [(path, key) for path, key in keys if "dry_run" not in path]
    assert [path for path, _ in done] == [
        "/v1/rotations", "/v1/drain", "/v1/rotations", "/v1/agents/cipher/pause", "/v1/agents/cipher/resume",
        "/v1/bans?network=203.0.113.1%2F32", "/v1/bans",
    ]  # fmt: skip
    assert len({key for path, key in done if "?" not in path}) == 6


async def test_what_others_wrote_stays_text(tmp_path: Path) -> None:
    """Every text in every answer, names, reasons, addresses and ids, is markup that would run."""
    payload = '<img src=x onerror="window.pwned=1">\'"</script><svg onload=window.pwned=1>'
    marked = "<img src=x onerror=window.pwned=1>"
    told = {  # what is one of few words, a date, or where the page asks on
        "state", "traffic", "membership", "severity", "phase", "way", "health", "by", "time", "opened",
        "last", "type", "result", "next_cursor", "certificate_expires", "role", "run", "until",
    }  # fmt: skip

    def hostile(value: object, key: str = "") -> object:
        match value:
            case dict():
                return {name: hostile(one, name) for name, one in value.items()}
            case list():
                return [hostile(one, key) for one in value]
            case str() if key == "node_id" or key in ("one", "two"):
                return f"{marked}{value}"
            case str() if key not in told:
                return payload
            case _:
                return value

    node = BigMesh(5)
    app = create_app(node, Door(trusted=True))

    @app.before_request
    async def as_it_was() -> None:
        if (peer := request.args.get("peer")) is not None:
            request.args = type(request.args)({"peer": peer.replace(marked, "")})
        if request.view_args and "peer" in request.view_args:
            request.view_args["peer"] = request.view_args["peer"].replace(marked, "")

    @app.after_request
    async def poison(response: Response) -> Response:
        if request.path.startswith("/v1/"):
            response.set_data(json.dumps(hostile(json.loads(await response.get_data()))))
        return response

    async with watched(tmp_path, app) as (browser, url):
        page = await shown(browser, url)
        await opened(page)
        node.events.publish("peer.up", payload, {"peer": payload, "text": payload})
        node.events.publish("peer.down", payload, {payload: payload})
        await page.until("document.querySelectorAll('#event-list li').length === 2")
        await page.click("#node-actions button")
        await page.until(ASKED)
        assert await page.run("document.querySelectorAll('img, script:not([src]), svg svg').length") == 0
        assert await page.run("document.querySelectorAll('[onerror], [onload]').length") == 0
        for place in (
            "h1",
            "#peer-list",
            "#link",
            "#agent-list",
            "#decision-list",
            "#threat-list",
            "#event-list",
        ):
            assert payload in await page.text(place)
        assert payload in str(await page.run("document.querySelector('#map').textContent"))
        assert await page.run("window.pwned === undefined")


async def test_all_of_it_by_keyboard(tmp_path: Path) -> None:
    node = BigMesh(12)
    async with watched(tmp_path, create_app(node, Door(trusted=True))) as (browser, url):
        page = await shown(browser, url)
        await page.press("Tab")
        assert str(await page.run(FOCUS)).startswith("Skip to")
        await page.press("Enter")
        await page.until("document.activeElement.id === 'main'")

        async def tab_to(selector: str) -> None:
            for _ in range(60):
                if await page.run(f"document.activeElement.matches({json.dumps(selector)})"):
                    return
                await page.press("Tab")
            raise AssertionError(f"no way by Tab to {selector}")

        await tab_to("#peer-filter")
        await page.write("oslo")
        await page.until("document.querySelectorAll('#peer-list tbody tr').length === 1")
        await tab_to("#peer-list button.name")
        await page.press("Enter")
        await page.until("document.activeElement.id === 'link-title'")
        await page.until(LINK)
        await tab_to("#link [data-do=rotate]")
        await trio.sleep(4)  # the page asks again meanwhile, and the focus stays
        assert await page.run("document.activeElement.matches('#link [data-do=rotate]')")
        await page.press("Enter")
        await page.until(ASKED)
        assert await page.run(IN_DIALOG)
        for _ in range(6):  # out of the dialog there is no way but to the browser's own bar
            await page.press("Tab")
            assert await page.run(f"document.activeElement === document.body || {IN_DIALOG}")
        await page.press("Escape")
        await page.until("!document.querySelector('#confirm').open")
        assert await page.run("document.activeElement.matches('#link [data-do=rotate]')")
        assert not node.rotated
        await tab_to("#link [data-do=close-link]")
        await page.press("Enter")
        await page.until("document.querySelector('#link').hidden")
        assert await page.run("document.activeElement.matches('#peer-list button.name')")


@pytest.mark.parametrize("kind", [LongNames, lambda: BigMesh(500)], ids=["long-names", "500"])
async def test_on_a_phone_nothing_is_wider_than_the_screen(
    tmp_path: Path, kind: Callable[[], FakeNode]
) -> None:
    async with watched(tmp_path, create_app(kind(), Door(trusted=True))) as (browser, url):
        page = await shown(browser, url, width=360, height=740)
        await opened(page)
        wide = (
            "[...document.querySelectorAll('main *, header *')].filter(one => !one.closest('svg, thead') "
            "&& one.getBoundingClientRect().right > 361).map(one => one.outerHTML.slice(0, 200))"
        )
        assert await page.run(wide) == []
        assert await page.run("document.documentElement.scrollWidth") == 360
        # WCAG 2.2, 2.5.8: what is to be touched is 24 px each way at least.
        small = (
            "[...document.querySelectorAll('button, input:not([type=checkbox]), select')].filter(one => "
            "one.offsetParent && (one.offsetWidth < 24 || one.offsetHeight < 24)).length"
        )
        assert await page.run(small) == 0
        await page.click("#node-actions button")
        await page.until(ASKED)
        assert await page.run("document.querySelector('#confirm').getBoundingClientRect().right <= 360")


async def test_a_mesh_of_500_keeps_the_page_small(tmp_path: Path) -> None:
    node = BigMesh(500)
    async with watched(tmp_path, create_app(node, Door(trusted=True))) as (browser, url):
        page = await shown(browser, url)
        await opened(page)
        assert await page.run("document.querySelectorAll('#map .member').length") == 501
        assert await page.run("document.querySelectorAll('#map .edge').length") <= 8
        assert await page.run("document.querySelectorAll('#peer-list tbody tr').length") == 20
        assert await page.run("document.querySelectorAll('#attention-list li.card').length") == 30
        assert await page.run("document.querySelectorAll('*').length") < 3_500
        for number in range(3_000):
            node.events.publish("path.changed", "oslo-005", {"number": number})
        await page.until("document.querySelector('#event-list li')?.innerText.includes('2999')")
        assert await page.run("document.querySelectorAll('#event-list li').length") == 50
        assert await page.run("document.querySelectorAll('*').length") < 3_700
        await page.click("#peer-list [data-list=peers][data-page='1']")
        await page.until("document.querySelector('#peer-list').innerText.includes('Page 2 of 25')")


async def test_a_token_is_asked_for_once_and_kept_nowhere(tmp_path: Path) -> None:
    node = BigMesh(3)
    right, wrong = node.tokens.grant(Scope.READ), f"pmt_{'a' * 50}"
    app, given = create_app(node, Door(trusted=False)), list[str]()

    @app.after_request
    async def note(response: Response) -> Response:
        if request.path.startswith("/v1/"):
            given.append(request.headers.get("Authorization", "none"))
        return response

    async with serving(app) as url, chromium(tmp_path / "browser") as browser:
        page = await browser.open(url)
        await page.until("document.querySelector('#ask-token').open")
        assert "this needs a token" in await page.text("#token-why")
        await page.press("Escape")
        await page.until("document.querySelector('#ask-token').open")
        await page.run("document.querySelector('#token').focus()")
        await page.write(wrong)
        await page.press("Enter")
        await page.until("document.querySelector('#token-why').innerText.includes('does not count')")
        # The first question, and one with the wrong token: each wrong one is held against its sender.
        assert given == ["none", f"Bearer {wrong}"]
        await page.run("document.querySelector('#token').focus()")
        await page.write(right)
        await page.press("Enter")
        await page.until(SHOWN)
        await page.until("document.querySelector('#live').innerText === 'Live.'")
        assert set(given[2:]) == {f"Bearer {right}"}
        kept = (
            "document.documentElement.outerHTML + document.cookie + location.href + "
            "JSON.stringify({...localStorage, ...sessionStorage}) + "
            "[...document.querySelectorAll('input')].map(one => one.value)"
        )
        assert right not in str(await page.run(kept))
        assert not any(right in asked for asked in page.asked)
        await page.click("#node-actions button")  # to look is all that this token may
        await page.until("document.querySelector('#confirm-body').innerText.includes('scope operate')")
        assert await page.run("document.querySelector('#confirm-yes').disabled")
        assert not node.rotated


async def test_a_node_that_is_away_is_said_and_found_again(tmp_path: Path) -> None:
    node = BigMesh(3)
    app = create_app(node, Door(trusted=True))
    async with serving(app) as url, chromium(tmp_path / "browser") as browser:
        page = await shown(browser, url)
        await page.until("document.querySelector('#live').innerText === 'Live.'")
        await page.ask(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        await page.until("document.querySelector('#live').innerText !== 'Live.'")
        node.faults = [DISK.fault("the disk is full", "make room")]
        await page.ask(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        await page.until("document.querySelector('#live').innerText === 'Live.'")
        await page.until("document.querySelector('#attention-list').innerText.includes('disk is full')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_axe_finds_nothing(tmp_path: Path, width: int, dark: bool) -> None:
    """axe-core, as the package axe-core-python has it, is run in the page by the debugger; no rule is left
    out, and also what it calls minor fails."""
    axe = (resources.files("axe_core_python") / "axe.min.js").read_text()

    async def look(page: Page) -> None:
        await page.run(f"{axe};0")
        found = await page.run(
            "axe.run().then(r => r.violations.map(v => [v.id, v.impact, ...v.nodes.map(n => n.html)]))"
        )
        assert found == []
        assert await page.run("axe.run().then(r => r.passes.length)") > 20

    async with watched(tmp_path, create_app(LongNames(), Door(trusted=True))) as (browser, url):
        page = await shown(browser, url, width=width, height=900, dark=dark)
        await opened(page)
        await look(page)
        await page.click("#node-actions button")
        await page.until(ASKED)
        await look(page)


async def test_pictures(tmp_path: Path) -> None:
    """PHANTOMMESH_PICTURES=docs writes those in docs/ anew."""
    folder = Path(os.environ.get("PHANTOMMESH_PICTURES", tmp_path))
    node = BigMesh(16)
    node.phases["stream"] = "running"
    async with watched(tmp_path, create_app(node, Door(trusted=True))) as (browser, url):
        page = await shown(browser, url, width=1280, height=1280)
        await page.until("document.querySelector('#live').innerText === 'Live.'")
        await page.picture(folder / "dashboard.png")
        phone = await shown(browser, url, width=360, height=740, dark=True)
        await phone.until("document.querySelector('#live').innerText === 'Live.'")
        await opened(phone)
        await phone.until("document.activeElement.id === 'link-title'")
        await phone.run("document.querySelector('#link').scrollIntoView({behavior: 'instant'})")
        await phone.picture(folder / "dashboard-phone.png")
    for name in ("dashboard.png", "dashboard-phone.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
        assert 5_000 < (folder / name).stat().st_size < 600_000
