# SPDX-License-Identifier: GPL-3.0-or-later
"""What the dashboard is made of, and what it asks for, without a browser."""

import re

import msgspec
import pytest
import trio

from phantommesh.management import layout
from phantommesh.management.agentview import DecisionView
from phantommesh.management.mapview import MapView
from phantommesh.management.views import Page, PathView, Problem
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from phantommesh.nursery.api.routes.dashboard import MAP_S, read_files
from tests.support.bigmesh import BigMesh
from tests.support.fakenode import FakeNode


async def test_the_page_is_open_to_all_and_strict() -> None:
    app = create_app(FakeNode(), Door(trusted=False))
    response = await app.test_client().get("/", headers={"Host": "127.0.0.1"})
    assert response.status_code == 200 and response.content_type == "text/html; charset=utf-8"
    policy = dict(
        part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert {policy[of] for of in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert (await app.test_client().get("/v1/status", headers={"Host": "127.0.0.1"})).status_code == 401


async def test_all_that_the_page_names_is_served_with_its_type() -> None:
    app, page = create_app(FakeNode(), Door(trusted=False)), read_files()["index.html"].decode()
    named = re.findall(r'(?:src|href)="/dashboard/([\w.]+)"', page)
    for source in [body.decode() for name, body in read_files().items() if name.endswith(".js")]:
        named += re.findall(r'from "\./([\w.]+)"', source)
    assert {"app.js", "style.css", "map.js"} <= set(named)
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for name in named:
        response = await app.test_client().get(f"/dashboard/{name}", headers={"Host": "localhost"})
        assert response.status_code == 200
        assert response.content_type.startswith(types[name.rpartition(".")[2]])


@pytest.mark.parametrize(
    "name", ["app.py", "..%2fapp.js", "%2e%2e%2fapp.js", "..", "no.js", "\\..\\app.py", "a%00.js"]
)
async def test_nothing_else_is_served(name: str) -> None:
    response = (
        await create_app(FakeNode(), Door(trusted=False))
        .test_client()
        .get(f"/dashboard/{name}", headers={"Host": "localhost"})
    )
    assert response.status_code == 404
    assert msgspec.json.decode(await response.get_data(), type=Problem).fix


def test_nothing_on_the_page_is_inline_or_from_elsewhere() -> None:
    files = {name: body.decode() for name, body in read_files().items()}
    page = files["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page)
    text = "".join(files.values()).replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert "localStorage" not in text and "sessionStorage" not in text and "document.cookie" not in text


async def test_a_map_is_made_once_however_many_ask(
    monkeypatch: pytest.MonkeyPatch, at_once: None, autojump_clock: object
) -> None:
    fitted = []
    real = layout.lay_out

    def counted(*given: object) -> object:
        fitted.append(given)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(layout, "lay_out", counted)
    looked = []

    class Counted(BigMesh):
        def measured(self) -> list[PathView]:
            looked.append(1)
            return super().measured()

    node = Counted(30)
    client = create_app(node, Door(trusted=True)).test_client()
    for _ in range(5):
        response = await client.get("/v1/map")
        found = msgspec.json.decode(await response.get_data(), type=MapView)
        assert len(found.members) == 31
    assert (len(fitted), len(looked)) == (1, 1)
    await trio.sleep(MAP_S)
    await client.get("/v1/map")
    assert (len(fitted), len(looked)) == (1, 2)
    node.count = 31  # one comes: it needs a place
    await trio.sleep(MAP_S)
    response = await client.get("/v1/map")
    assert msgspec.json.decode(await response.get_data(), type=MapView).members_total == 32
    assert (len(fitted), len(looked)) == (2, 3)


async def test_pages_of_paths_have_every_dimension_once() -> None:
    """Seven rows have one node id: a page may end between them."""
    node, seen = FakeNode(peers=3), list[PathView]()
    cursor: str | None = ""
    client = create_app(node, Door(trusted=True)).test_client()
    while cursor is not None:
        response = await client.get(f"/v1/paths?limit=4&cursor={cursor}")
        page = msgspec.json.decode(await response.get_data(), type=Page[PathView])
        seen += page.items
        cursor = page.next_cursor
    assert seen == node.paths()


async def test_a_list_can_be_of_one_peer() -> None:
    client = create_app(FakeNode(peers=3), Door(trusted=True)).test_client()
    for path in ("peers", "links", "paths", "scatter", "proofs"):
        for wanted in ("pm-2", "id002"):
            response = await client.get(f"/v1/{path}?peer={wanted}")
            items = (await response.get_json())["items"]
            assert {item["node_id"] for item in items} == {"id002"}
            assert len(items) == (7 if path == "paths" else 1)
        assert (await client.get(f"/v1/{path}?peer=nobody")).status_code == 404


async def test_the_newest_decisions_are_to_be_had_at_once() -> None:
    node = FakeNode()
    node.decided_on = 900
    response = (
        await create_app(node, Door(trusted=True)).test_client().get("/v1/decisions?newest=true&limit=3")
    )
    page = msgspec.json.decode(await response.get_data(), type=Page[DecisionView])
    assert [one.seq for one in page.items] == [898, 899, 900] and page.next_cursor is None
