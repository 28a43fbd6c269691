# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that is asked over the network: the real server with TLS, and the command line's own client."""

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from click.testing import CliRunner, Result
from msgspec import json

from phantommesh.cli import cli
from phantommesh.client.events import follow
from phantommesh.client.http import ApiError, NodeClient, NodeNotRunningError
from phantommesh.client.places import PlaceError, Remote, remote, token_of
from phantommesh.management import servercert
from phantommesh.management.scopes import Scope
from phantommesh.management.views import Event, Status
from phantommesh.secret import Secret
from tests.nursery.api.test_tls import Served, served

T = TypeVar("T")


@asynccontextmanager
async def far(at: Path, scope: Scope = Scope.ADMIN) -> AsyncIterator[tuple[Served, Remote]]:
    """A node, and where it is to be asked, by its certificate's file and a token."""
    async with served(at) as api:
        token = Secret(api.node.tokens.grant(scope).encode())
        yield api, remote(f"https://127.0.0.1:{api.port}", token=token, authority=api.files.certificate)


async def there(work: Callable[[], T]) -> T:
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(work)


async def test_a_node_elsewhere_answers_by_its_authority_or_its_pin(tmp_path: Path) -> None:
    async with far(tmp_path) as (api, place):
        assert (await there(NodeClient(place).status)).node == "pm-0"
        pin = servercert.fingerprint(api.files.certificate.read_bytes())
        spelt = ":".join(pin[i : i + 2] for i in range(0, 64, 2)).upper()
        pinned = remote(f"https://127.0.0.1:{api.port}/", token=place.token, pin=spelt)
        assert (await there(NodeClient(pinned).status)).node == "pm-0"
        rotated = await there(partial(NodeClient(pinned).rotate, "pm-2", dry_run=False, idempotency_key="k"))
        assert rotated.rotations[0].result == "rotated" and api.node.rotated == ["id002"]


async def test_no_token_goes_to_whom_nothing_vouches_for(tmp_path: Path) -> None:
    async with far(tmp_path) as (api, place):
        before = dict(api.node.tokens.used)
        url = f"https://127.0.0.1:{api.port}"
        with pytest.raises(ApiError, match="not trusted") as unknown:
            await there(NodeClient(remote(url, token=place.token)).status)
        assert "--fingerprint" in unknown.value.fix
        with pytest.raises(PlaceError, match="another"):
            await there(NodeClient(remote(url, token=place.token, pin="0" * 64)).status)
        assert api.node.tokens.used == before == {}


async def test_a_token_that_is_too_small_is_told_so(tmp_path: Path) -> None:
    async with far(tmp_path, Scope.READ) as (api, place):
        with pytest.raises(ApiError, match="scope operate"):
            await there(partial(NodeClient(place).rotate, None, dry_run=False, idempotency_key="k"))
        assert not api.node.rotated


async def test_events_are_followed_from_elsewhere(tmp_path: Path) -> None:
    async with far(tmp_path) as (api, place):
        api.node.events.publish("peer.up", "pm-1", {})
        stream = follow(place, {"since": "oldest"})
        assert isinstance(stream, Generator)

        def first() -> Event:
            found: Event = next(stream)
            stream.close()
            return found

        assert (await there(first)).type == "peer.up"


async def test_nobody_there_is_no_running_node() -> None:
    place = remote("https://127.0.0.1:1", token=Secret(b"pmt_x"), pin="0" * 64)
    with pytest.raises(NodeNotRunningError):
        await there(NodeClient(place, timeout=5.0).status)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("vpn.example.net:8480", "no URL"), ("ftp://vpn.example.net", "no URL"), ("https://", "no URL"),
        ("https://vpn.example.net/v1", "no URL"), ("https://u:p@vpn.example.net", "no URL"),
        ("https://vpn.example.net:x", "no URL"), ("http://vpn.example.net:8480", "in clear"),
        ("http://192.0.2.1", "in clear"),
    ],
)  # fmt: skip
def test_where_no_token_may_go(url: str, why: str) -> None:
    with pytest.raises(PlaceError, match=why):
        remote(url, token=Secret(b"pmt_x"))


def test_what_a_place_says_of_itself_has_no_token() -> None:
    place = remote("http://[::1]:8480", token=Secret(b"pmt_secret"))
    assert "pmt_secret" not in repr(place) and str(place) == "http://[::1]:8480"
    assert place.headers == {"Host": "[::1]:8480", "Authorization": "Bearer pmt_secret"}
    with pytest.raises(PlaceError, match="with a token"):
        remote("https://vpn.example.net", token=None)
    with pytest.raises(PlaceError, match="SHA-256"):
        remote("https://vpn.example.net", token=Secret(b"pmt_x"), pin="abc")


def test_a_token_is_in_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("pmt_abc\n")
    assert token_of(file, {}) == token_of(None, {"PHANTOMMESH_TOKEN": "pmt_abc"}) == Secret(b"pmt_abc")
    assert token_of(None, {}) is None
    file.write_text("hunter2 is no token")
    with pytest.raises(PlaceError) as wrong:
        token_of(file, {})
    assert "hunter2" not in f"{wrong.value} {wrong.value.fix}"
    with pytest.raises(PlaceError, match="cannot read"):
        token_of(tmp_path / "nothing", {})


# --- the command line


async def run(*words: object, **environment: str) -> Result:
    args = [str(word) for word in words]
    return await there(lambda: CliRunner().invoke(cli, args, env=environment))


async def test_the_same_verbs_work_from_elsewhere(tmp_path: Path) -> None:
    async with far(tmp_path) as (api, place):
        assert place.token is not None
        token = tmp_path / "token"
        token.write_bytes(place.token.reveal())
        url, ca = f"https://127.0.0.1:{api.port}", api.files.certificate
        options = ("--api", url, "--token-file", token, "--ca", ca)
        before = await run(*options, "status", "--json")
        assert before.exit_code == 0 and json.decode(before.stdout, type=Status).node == "pm-0"
        after = await run("peers", *options)
        assert after.exit_code == 0 and "pm-2" in after.stdout
        set_here = {"PHANTOMMESH_API": url, "PHANTOMMESH_TOKEN": place.token.reveal().decode()}
        pinned = await run(
            "status", PHANTOMMESH_FINGERPRINT=servercert.fingerprint(ca.read_bytes()), **set_here
        )
        assert pinned.exit_code == 0, pinned.output
        made = await run(*options, "invite", "--name", "nas", "--ttl", "10m")
        assert made.exit_code == 0 and made.stdout == "pm1_line\n"
        assert [(one.name, one.seconds) for one in api.node.invited] == [("nas", 600.0)]
        config = tmp_path / "new.toml"
        config.write_text("# new\n")
        assert (await run(*options, "config", "apply", config, "--dry-run")).exit_code == 0
        assert api.node.config != "# new\n"
        assert (await run(*options, "config", "apply", config)).exit_code == 0
        assert (await run(*options, "config", "get")).stdout == api.node.config == "# new\n"
        for words in (("agents", "pause", "cipher"), ("undrain",), ("unban", "192.0.2.250/32")):
            assert (await run(*options, *words, "--dry-run")).exit_code == 0
        assert api.node.phases["cipher"] == "running" and not api.node.lifted


@pytest.mark.parametrize(
    "words", [("up",), ("config", "check"), ("set", "log.level=debug"), ("lab", "status")]
)
async def test_verbs_of_this_machine_refuse_another(words: tuple[str, ...]) -> None:
    for given in (("--api", "https://vpn.example.net", *words), (*words, "--api", "https://vpn.example.net")):
        result = await run(*given)
        assert result.exit_code == 2 and "this machine alone" in result.output


async def test_two_nodes_at_once_are_none(tmp_path: Path) -> None:
    far, here = "http://vpn.example.net", str(tmp_path / "s")
    set_far, set_here = {"PHANTOMMESH_API": far}, {"PHANTOMMESH_SOCKET": here}
    for result in (
        await run("--socket", here, "--api", far, "status"),
        await run("status", "--socket", here, "--api", far),
        await run("status", **set_far, **set_here),
    ):
        assert result.exit_code == 2 and "two nodes" in result.output
    # The command line goes before the environment.
    for result in (
        await run("status", "--api", far, **set_here),
        await run("--api", far, "status", **set_here),
    ):
        assert result.exit_code == 1 and "in clear" in result.output
    for result in (
        await run("status", "--socket", here, **set_far), await run("--socket", here, "status", **set_far),
    ):  # fmt: skip
        assert result.exit_code == 3 and here in result.output
