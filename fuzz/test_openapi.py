# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests drawn from the API's own description, right ones and nearly right ones: every answer is one that
the description has, of the type that it has, and none is a bug's."""

import re
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.management.endpoints import COMMON, ENDPOINTS, Endpoint
from phantommesh.management.openapi import PROBLEM, document
from phantommesh.management.scopes import Scope
from phantommesh.management.views import Problem
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from tests.support.fakenode import FakeNode

DOCUMENT = document(ENDPOINTS, "0")
SERVED = [endpoint for endpoint in ENDPOINTS if endpoint.method != "WS"]
# Names that the node has, so that requests also get through.
KNOWN = st.sampled_from(
    ["pm-1", "id002", "cipher", "all", "10.1.2.3", "192.0.2.7", "10.1.0.0/16", "operator"]
)
text = KNOWN | st.text(max_size=12)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a JSON schema, as far as msgspec writes such."""
    if "$ref" in schema:
        return of_schema(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of([of_schema(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object" if "properties" in schema:
            fields = {name: of_schema(one) for name, one in schema["properties"].items()}
            needed = {name: fields[name] for name in schema.get("required", ())}
            return st.fixed_dictionaries(
                needed, optional={name: one for name, one in fields.items() if name not in needed}
            )
        case "object":
            return st.dictionaries(text, any_json, max_size=2)
        case "array":
            most = min(schema.get("maxItems", 3), 3)
            return st.lists(of_schema(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
        case "integer":
            return st.integers(schema.get("minimum", -(2**40)), schema.get("maximum", 2**40))
        case "number":
            least = schema.get("minimum", schema.get("exclusiveMinimum", -1e12))
            return st.floats(
                least, schema.get("maximum", 1e12), exclude_min="exclusiveMinimum" in schema, allow_nan=False
            )
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return text
        case _:
            return any_json


def body_of(endpoint: Endpoint[Any]) -> st.SearchStrategy[bytes]:
    if endpoint.body is None:
        return st.just(b"")
    operation = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]
    right = of_schema(operation["requestBody"]["content"]["application/json"]["schema"])
    spoiled = st.tuples(right, text, any_json).map(lambda parts: {**parts[0], parts[1]: parts[2]})
    return (right | spoiled | any_json).map(msgspec.json.encode) | st.binary(max_size=30)


@pytest.mark.parametrize("endpoint", SERVED, ids=lambda endpoint: endpoint.name)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_every_answer_is_as_it_is_described(endpoint: Endpoint[Any], data: st.DataObject) -> None:
    part = (KNOWN | st.text(st.characters(codec="ascii", exclude_characters="/?#%"), min_size=1)).filter(
        lambda one: one not in (".", "..")
    )
    path = re.sub(r"{\w+}", lambda _match: data.draw(part), endpoint.path)
    names = st.sampled_from([*endpoint.queries, "x"] if endpoint.queries else ["x"])
    query = data.draw(st.dictionaries(names, text, max_size=2))
    body = data.draw(body_of(endpoint))
    over_tcp, key = data.draw(st.booleans()), data.draw(st.none() | st.text("abc", max_size=3))

    async def ask() -> None:
        node = FakeNode()
        headers = {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})
        scope: dict[str, Any] = {"state": {"uid": 0}}
        if over_tcp:
            headers |= {"Host": "localhost", "Authorization": f"Bearer {node.tokens.grant(Scope.ADMIN)}"}
            scope = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8480)}
        client = create_app(node, Door(trusted=not over_tcp)).test_client()
        response = await client.open(  # type: ignore[call-arg]  # quart's own type asks for json, with data
            path, method=endpoint.method, headers=headers, data=body, query_string=query, scope_base=scope
        )
        check(endpoint, response.status_code, response.content_type, await response.get_data(as_text=False))

    trio.run(ask)


def check(endpoint: Endpoint[Any], status: int, content: str, body: bytes) -> None:
    described = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]["responses"]
    assert str(status) in described, status
    assert status < 500, body
    if status != 200:
        assert content == PROBLEM and status in endpoint.errors | COMMON
        told = msgspec.json.decode(body, type=Problem)
        assert told.status == status and told.detail and told.fix
    elif endpoint.answer is not None:
        msgspec.json.decode(body, type=endpoint.answer)
