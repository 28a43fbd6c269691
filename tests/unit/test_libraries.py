# SPDX-License-Identifier: GPL-3.0-or-later
"""What we use of a library's insides is as it was when the code that uses it was written.

pyproject.toml caps those libraries. A failure here names what changed, and what of ours stands on it.
"""

import inspect
import re
import subprocess
import sys
import tomllib
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import Handshake, WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

ROOT = Path(__file__).parents[2]
SERVER = "nursery/api/server.py"

COPIED = {
    TCPServer.run: "5f0402814da2e334",
    TCPServer._read_data: "ac5e1b7e50394ccd",
    TCPServer.protocol_send: "25d1d1e473402531",
    TCPServer._close: "df2927b0b3ec70bd",
    H11Protocol._send_h11_event: "5abd184ee05602e3",
    H11Protocol._check_protocol: "7d44b320f16bf523",
    TaskGroup: "66711324d1b17546",
    WorkerContext: "d698999bb0be8939",
}
"""What server.py replaces or goes around, each with the digest of its source in hypercorn 0.18.0."""

ATTRIBUTES = [
    (TCPServer, "send_lock"),
    (TCPServer, "stream"),
    (H11Protocol, "stream"),
    (H11Protocol, "connection"),
    (H2Protocol, "streams"),
    (WSStream, "closed"),
    (WSStream, "handshake"),
    (WSStream, "connection"),
    (Handshake, "accepted"),
]
"""What server.py reads that hypercorn's classes set for themselves."""


def digest(thing: object) -> str:
    return sha256(inspect.getsource(thing).strip().encode()).hexdigest()[:16]  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", COPIED, ids=lambda thing: thing.__qualname__)
def test_hypercorn_does_what_our_connections_replace(thing: object) -> None:
    name = getattr(thing, "__qualname__", "")
    assert digest(thing) == COPIED[thing], (
        f"hypercorn {version('hypercorn')} has changed {name}, which {SERVER} replaces or goes around. "
        f"Compare the two versions, mend {SERVER} if it has to be, and then write {digest(thing)} here."
    )


@pytest.mark.parametrize(("owner", "name"), ATTRIBUTES, ids=lambda value: getattr(value, "__name__", value))
def test_hypercorn_has_what_we_read(owner: type, name: str) -> None:
    source = inspect.getsource(owner)
    assert re.search(rf"\bself\.{name}\b(:[^=\n]+)? =|def {name}\(", source), (
        f"hypercorn {version('hypercorn')} no longer sets {owner.__name__}.{name}, which {SERVER} reads"
    )


@pytest.mark.parametrize("library", ["hypercorn", "pyroute2", "wgnlpy"])
def test_a_library_whose_insides_we_use_is_capped(library: str) -> None:
    """wgnlpy's classes stand on pyroute2's; what they write is held against bytes in test_wgmessages.py."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [asked] = [one for one in project["dependencies"] if re.match(rf"{library}\b", one)]
    assert "<" in asked, f"{asked} in pyproject.toml has no upper bound, but we use the insides of {library}"


def test_a_node_imports_only_the_parts_of_its_libraries_that_it_uses() -> None:
    """rich and most of pyroute2 take 8 MB: docs/decisions/0046-imports-without-init.md. The web framework is
    imported while peers are spoken to already."""
    program = """
        import sys
        import phantommesh.nursery.process
        import phantommesh.nursery.host.wgmessages
        print(*sys.modules)
        import rich.console  # the command line's: whoever asks gets it
        from pyroute2 import netns
        assert rich.console.Console and netns.create
        """
    lines = "\n".join(line.strip() for line in program.splitlines())
    ran = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    unused = {"rich", "pygments", "pyroute2.ndb", "pyroute2.ipdb", "pyroute2.plan9", "quart", "hypercorn"}
    assert unused.isdisjoint(ran.stdout.split())
