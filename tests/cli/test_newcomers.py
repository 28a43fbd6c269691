# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that newcomers look for, against the real server with a fake node: `ip`, `whois`, `wait`,
`invite list`; and a PEER by any of its names."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.cli import cli
from phantommesh.cli.peering import Called, label_of, matching
from phantommesh.management.views import PeerView, Status
from phantommesh.nursery.api.routes.reads import STATUS_AGE
from phantommesh.nursery.api.server import serve_api
from tests.support.fakenode import FakeNode


def run(at: Sequence[str], *words: str) -> Result:
    return CliRunner().invoke(cli, [*at, *words], prog_name="phantommesh")


async def with_node(node: FakeNode, tmp_path: Path, check: Callable[[list[str]], None]) -> None:
    path = tmp_path / "api.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_api, node, socket_path=path, group="no-such-group-here"))
        at = ["--socket", str(path), "--state-dir", f"{tmp_path}/none"]
        await trio.to_thread.run_sync(check, at)
        nursery.cancel_scope.cancel()


FORMS = [
    "pm-2",
    "id002",
    "100.64.0.2",
    "fd00::2",
    "FD00:0:0::2",
    "[fd00::2]",
    "pm-2.lab.internal",
    "PM-2.lab.internal.",
]


@pytest.mark.parametrize("form", FORMS)
async def test_a_peer_is_meant_by_any_of_its_names(form: str, tmp_path: Path) -> None:
    node = FakeNode(peers=3)

    def check(at: list[str]) -> None:
        for words in (
            ["rotate", form], ["ping", form], ["revoke", form, "--dry-run"],
            ["route", "approve", form, "10.1.0.0/16"], ["route", "revoke", form, "10.1.0.0/16"],
            ["proofs", "--peer", form], ["ip", form], ["whois", form],
        ):  # fmt: skip
            done = run(at, *words, "--json")
            assert done.exit_code == 0, (words, done.output)
            text = done.stdout
            assert "id002" in text and "id003" not in text and "id001" not in text, (words, text)

    await with_node(node, tmp_path, check)


@pytest.mark.parametrize("form", ["100.64.0.99", "pm-99.lab.internal", "fd00::99"])
async def test_an_address_that_nobody_has_means_nobody(form: str, tmp_path: Path) -> None:
    node = FakeNode(peers=3)

    def check(at: list[str]) -> None:
        for words in (["rotate", form], ["revoke", form], ["ip", form], ["whois", form]):
            done = run(at, *words)
            assert (done.exit_code, done.stdout) == (1, ""), words
            assert form in done.stderr and "fix: " in done.stderr
        assert node.rotated == []

    await with_node(node, tmp_path, check)


async def test_a_name_of_another_mesh_is_no_member_of_this_one(tmp_path: Path) -> None:
    node = FakeNode(peers=3)

    def check(at: list[str]) -> None:
        for form in ("pm-2.other.internal", "pm-2.lab.example", "x.pm-2.lab.internal"):
            assert run(at, "rotate", form).exit_code == 1
        assert node.rotated == []

    await with_node(node, tmp_path, check)


LABELS = st.text("abz09-.", max_size=6)


@given(LABELS, LABELS)
def test_no_text_of_another_mesh_leads_to_a_member(name: str, mesh: str) -> None:
    members = [Called("ab", "id1", "10.0.0.1", "fd00::1")]
    wanted = f"{name}.{mesh}.internal"
    assert (label_of(wanted, "lab") == "ab") == (name == "ab" and mesh == "lab")
    assert matching(members, wanted, "lab") == (members if (name, mesh) == ("ab", "lab") else [])


async def test_ip_prints_addresses_alone(tmp_path: Path) -> None:
    node = FakeNode(peers=2)

    def check(at: list[str]) -> None:
        own = node.status()
        assert run(at, "ip").stdout == f"{own.ip4}\n{own.ip6}\n"
        assert run(at, "ip", "-4").stdout == f"{own.ip4}\n"
        assert run(at, "ip", "-6", "pm-1").stdout == "fd00::1\n"
        node.twins = True
        assert "give one of" in run(at, "ip", "pm-1").stderr

    await with_node(node, tmp_path, check)


async def test_whois_finds_by_the_underlay_and_shows_all_behind_one_address(tmp_path: Path) -> None:
    class Behind(FakeNode):
        nat: str | None = None

        def peers(self) -> list[PeerView]:
            found = super().peers()
            return [msgspec.structs.replace(one, endpoint=self.nat or one.endpoint) for one in found]

    node = Behind(peers=3)

    def names(at: list[str], wanted: str) -> list[str]:
        done = run(at, "whois", wanted, "--json")
        return [one["name"] for one in json.loads(done.stdout)["members"]] if done.exit_code == 0 else []

    def check(at: list[str]) -> None:
        first = {view.name: view.endpoint for view in node.peers()}["pm-1"]
        assert first is not None
        assert names(at, first) == ["pm-1"]
        assert names(at, first.rpartition(":")[0]) == ["pm-1"]
        node.nat = first
        assert sorted(names(at, first)) == ["pm-1", "pm-2", "pm-3"]
        assert names(at, "192.0.2.222") == []
        assert run(at, "whois", node.status().ip4).stdout.startswith("name         pm-0 (this node)")

    await with_node(node, tmp_path, check)


async def test_wait_ends_when_the_node_is_ready(tmp_path: Path) -> None:
    class Slow(FakeNode):
        looks = 0

        def status(self) -> Status:
            self.looks += 1
            return msgspec.structs.replace(super().status(), ready=self.looks > 2)

    node = Slow()

    def check(at: list[str]) -> None:
        done = run(at, "wait", "--ready", "--json")
        assert done.exit_code == 0 and json.loads(done.stdout)["ready"] is True
        assert node.looks == 3
        node.looks = -1000
        time.sleep(STATUS_AGE)  # the last answer is kept that long
        late = run(at, "wait", "--timeout", "1s")
        assert (late.exit_code, late.stdout) == (1, "") and "not ready" in late.stderr

    await with_node(node, tmp_path, check)


def test_wait_without_a_node_exits_3(tmp_path: Path) -> None:
    done = run(["--socket", f"{tmp_path}/none"], "wait", "--timeout", "1s")
    assert (done.exit_code, done.stdout) == (3, "")


async def test_invites_of_a_running_node_are_listed_and_withdrawn(tmp_path: Path) -> None:
    def check(at: list[str]) -> None:
        shown = json.loads(run(at, "invite", "list", "--json").stdout)
        assert [one["name"] for one in shown["invites"]] == ["nas", "", "pm-3"]
        assert "joined by it before: pm-1, pm-2;" in run(at, "invite", "withdraw", "00ff").stderr
        assert run(at, "invite", "withdraw", "beef").exit_code == 1

    await with_node(FakeNode(), tmp_path, check)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_asks_the_command(shell: str) -> None:
    done = run([], "completion", shell)
    assert done.exit_code == 0 and f"_PHANTOMMESH_COMPLETE={shell}_complete" in done.stdout


async def test_a_shell_completes_verbs_and_peers(tmp_path: Path) -> None:
    def complete(words: str, number: int) -> str:
        return subprocess.run(
            [sys.executable, "-m", "phantommesh"],
            capture_output=True,
            text=True,
            check=False,
            env={"_PHANTOMMESH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)},
        ).stdout

    def check(at: list[str]) -> None:
        words = " ".join(["phantommesh", *at])
        assert complete("phantommesh who", 1) == "plain,whois\n"
        assert complete(f"{words} ping pm-", len(words.split()) + 1).split() == [
            "plain,pm-0",
            "plain,pm-1",
            "plain,pm-2",
        ]
        assert complete("phantommesh --socket /none ping pm-", 4).strip() == ""

    await with_node(FakeNode(peers=2), tmp_path, check)
