# SPDX-License-Identifier: GPL-3.0-or-later
"""schemathesis reads the API's own description and asks the real server, at its Unix socket and over TLS,
what the description allows and what it does not: no 5xx, and every answer is as documented.

``PHANTOMMESH_API_EXAMPLES=500 pytest fuzz/test_schemathesis.py`` is a long run; CI's is short and always
the same.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import requests
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from requests.adapters import HTTPAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from phantommesh.management.endpoints import ENDPOINTS
from phantommesh.management.openapi import document
from phantommesh.management.scopes import Scope
from phantommesh.management.servercert import TlsFiles, make
from phantommesh.nursery.api.server import serve_api
from tests.support.fakenode import FakeNode

EXAMPLES: Final = int(os.environ.get("PHANTOMMESH_API_EXAMPLES", "4"))
PATIENCE_S: Final = 30.0
# What any request of ours may be refused with, were it not as described.
REFUSALS: Final = ["400", "403", "404", "409", "413", "415", "422"]
CHECKS: Final = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
    checks.negative_data_rejection,
]
CONFIG: Final = SchemathesisConfig.from_dict(
    {
        "generation": {
            "with-security-parameters": False
        },  # who may what is tests/nursery/api/test_access.py's
        "checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}},
    }
)
SCHEMA: Final = schemathesis.openapi.from_dict(document(ENDPOINTS, "0"), config=CONFIG)
OPERATIONS: Final[list[Any]] = [result.ok() for result in SCHEMA.get_all_operations()]  # type: ignore[union-attr]
MODES: Final = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


@dataclass(frozen=True, slots=True)
class Door:
    """A way to the server: where requests go to, and a session that gets there."""

    url: str
    session: requests.Session


class _UnixPool(HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> HTTPConnection:
        connection = HTTPConnection("localhost", timeout=PATIENCE_S)
        connection._new_conn = self._connect  # type: ignore[method-assign]
        return connection

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(PATIENCE_S)
        made.connect(str(self._path))
        return made


class _UnixAdapter(HTTPAdapter):
    """Sends to a Unix socket whatever the URL's host is."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _UnixPool(path)

    def get_connection_with_tls_context(self, *_given: Any, **_named: Any) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Door]]:
    """The real server over a node in memory, in a thread of its own, until the tests are over."""
    at, node = tmp_path_factory.mktemp("api"), FakeNode()
    made = make("pm-1", ["localhost", "127.0.0.1"], time.time())
    files = TlsFiles(at / "api.pem", at / "api.key")
    files.certificate.write_bytes(made.certificate)
    files.key.write_bytes(made.key.reveal())
    addresses: list[str] = []
    ready, shutdown, tokens = threading.Event(), trio.Event(), list[trio.lowlevel.TrioToken]()

    async def serve() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            addresses.extend(
                await nursery.start(
                    partial(
                        serve_api, node, socket_path=at / "api.sock", listen="127.0.0.1:0", tls=files,
                        group="no-such", shutdown=shutdown, grace=0.1,
                    )
                )
            )  # fmt: skip
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        local, far = requests.Session(), requests.Session()
        for session in (local, far):
            session.trust_env = False
        local.mount("http://", _UnixAdapter(at / "api.sock"))
        far.verify = str(files.certificate)
        far.headers["Authorization"] = f"Bearer {node.tokens.grant(Scope.ADMIN)}"
        with local, far:
            yield {"socket": Door("http://localhost", local), "tls": Door(addresses[1], far)}
    finally:
        tokens[0].run_sync_soon(shutdown.set)
        thread.join(PATIENCE_S)


@pytest.mark.parametrize("way", ["socket", "tls"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_answer_is_as_documented(operation: Any, way: str, doors: dict[str, Door]) -> None:
    door = doors[way]
    described = document(ENDPOINTS, "0")["paths"][operation.path][operation.method]
    # What has nothing but a path is asked nothing that its description forbids.
    wrong = "requestBody" in described or any(one["in"] != "path" for one in described["parameters"])
    for mode in MODES if wrong else MODES[:1]:

        @settings(
            max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            case.call_and_validate(
                base_url=door.url, session=door.session, checks=CHECKS, timeout=PATIENCE_S,
                verify=door.session.verify,
            )  # fmt: skip

        ask()


def test_the_description_is_a_good_one() -> None:
    """By the specification's own rules."""
    from openapi_spec_validator import OpenAPIV31SpecValidator

    OpenAPIV31SpecValidator(msgspec.json.decode(msgspec.json.encode(document(ENDPOINTS, "0")))).validate()
