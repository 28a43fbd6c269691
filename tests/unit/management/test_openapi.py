# SPDX-License-Identifier: GPL-3.0-or-later
import json
from typing import Any

from phantommesh.management.endpoints import ENDPOINTS
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from tests.support.fakenode import FakeNode


async def fetched() -> Any:
    response = await create_app(FakeNode(), Door(trusted=True)).test_client().get("/openapi.json")
    assert response.content_type == "application/json"
    return json.loads(await response.get_data())


async def test_the_document_has_every_endpoint_but_websockets() -> None:
    document = await fetched()
    assert document["openapi"].startswith("3.1")
    described = {(m.upper(), path) for path, methods in document["paths"].items() for m in methods}
    assert described == {(e.method, e.path) for e in ENDPOINTS if e.method != "WS"}
    rotation = document["paths"]["/v1/rotations"]["post"]
    assert rotation["security"] == [{"token": ["operate"]}]
    assert {each["name"] for each in rotation["parameters"]} == {"dry_run", "Idempotency-Key"}
    assert not rotation["requestBody"]["required"]
    assert document["paths"]["/v1/revocations"]["post"]["requestBody"]["required"]
    assert {"200", "401", "404", "409", "422"} <= rotation["responses"].keys()


async def test_every_reference_leads_somewhere() -> None:
    document = await fetched()

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set[str]().union(*map(references, value)) if isinstance(value, list) else set()

    found = references(document)
    assert len(found) > 10
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert found <= known
