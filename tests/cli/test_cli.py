# SPDX-License-Identifier: GPL-3.0-or-later
"""The command, by click's runner and as a real process against the real server with a fake node."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path
from time import time
from typing import Any

import click
import msgspec
import pytest
import trio
from click.testing import CliRunner, Result
from rich.cells import cell_len

from phantommesh.cli import base, cli, lists
from phantommesh.cli.examples import EXAMPLES
from phantommesh.cli.tables import lay_out, table
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.management.events import EventLog
from phantommesh.management.views import Rotation, RotationResult
from phantommesh.nursery.api.server import serve_api
from phantommesh.nursery.overlay import taking_down
from phantommesh.proofs.archive import MAGIC
from phantommesh.proofs.statement import Proof, Statement, decode_leaf_untrusted
from phantommesh.records.record import sign_record
from phantommesh.state import directory, rosterlog
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import GRACE, Role
from phantommesh.trust.identity import Identity, format_node_id
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import choose_ip4
from tests.support.fakenode import FakeNode, peer_view
from tests.support.makemesh import plain_record
from tests.support.makeproofs import MESH, World, node
from tests.unit.proofs.cheats import CHEATS
from tests.unit.proofs.telling import Telling


def run(*args: str | Path, root: Path | None = None, **options: Any) -> Result:
    words = [str(arg) for arg in args]
    if root is not None:
        words = [*paths(root), *words]
    return CliRunner().invoke(cli, words, **options)


def paths(root: Path) -> list[str]:
    return ["--state-dir", f"{root}/state", "--config", f"{root}/etc/pm.toml", "--socket", f"{root}/api.sock"]


def made(root: Path) -> Result:
    return run("init", "--mesh", "lab", "--name", "pm-1", "--endpoint", "192.0.2.1", root=root)


def told(result: Result, code: int, *, table: bool = False) -> str:
    """Assert that it failed as operators may expect: a line, perhaps a fix, no traceback, clean stdout; or,
    where a file of proofs was judged, a table there."""
    assert result.exit_code == code, result.output
    assert ("VERDICT" in result.stdout) if table else result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("fix: ") for line in lines[1:])
    assert len(lines) <= 2
    return result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["nothing"],
        ["status", "--nothing"],
        ["init"],
        ["join"],
        ["invite", "--ttl", "soon"],
        ["invite", "--ttl", "0s"],
        ["invite", "--uses", "0"],
        ["invite", "--role", "king"],
        ["config", "nothing"],
        ["rotate", "a", "b"],
        ["route", "explain", " "],
        ["events", "--since", "-1"],
        ["lab", "up", "--nodes", "1"],
        ["lab", "up", "--backend", "magic"],
        ["lab", "exec", "1"],
        ["lab", "exec", "x", "--", "true"],
    ],
)
def test_usage_errors_exit_2(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr


def every_command(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        path = (*prefix, name)
        found += every_command(command, path) if isinstance(command, click.Group) else [path]
        found += [path] if isinstance(command, click.Group) and command.invoke_without_command else []
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_verb_takes_the_global_options_after_its_name(command: tuple[str, ...]) -> None:
    for option in ("--state-dir", "--socket", "--config"):
        result = run(*command, option, "x", "--help")
        assert (result.exit_code, result.stderr) == (0, ""), result.output


def test_an_option_after_the_verb_is_the_one_that_counts(tmp_path: Path) -> None:
    said = told(run("status", "--socket", f"{tmp_path}/other.sock", root=tmp_path), 3)
    assert f"nothing answers on {tmp_path}/other.sock" in said
    said = told(run("config", "show", "--config", f"{tmp_path}/other.toml", root=tmp_path), 1)
    assert f"there is no configuration {tmp_path}/other.toml" in said
    said = told(run("invite", "--state-dir", f"{tmp_path}/other", root=made_in(tmp_path)), 1)
    assert f"{tmp_path}/other" in said


def made_in(root: Path) -> Path:
    assert made(root).exit_code == 0
    return root


@pytest.mark.parametrize("words", [["--json", "run"], ["run", "--json"], ["--json", "lab", "exec", "1", "x"]])
def test_json_is_refused_where_there_is_none(words: list[str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no JSON document" in result.stderr


def test_json_for_all_verbs_is_no_error_where_there_is_none(tmp_path: Path) -> None:
    result = run("run", root=tmp_path, env={"PHANTOMMESH_JSON": "1"})
    assert "there is no configuration" in told(result, 1)


GROUPS = [(), *(path for path in every_command())]


@pytest.mark.parametrize("command", GROUPS, ids=" ".join)
def test_each_help_fits_a_screen_and_has_an_example(command: tuple[str, ...]) -> None:
    found: click.Command = cli
    for name in command:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    name = " ".join(("phantommesh", *command))
    context = click.Context(found, info_name=name, **cli.context_settings)
    context.terminal_width = 80
    shown = found.get_help(context)
    assert len(shown.splitlines()) <= 24, shown
    assert "Example" in shown, shown


def test_each_example_names_a_verb() -> None:
    paths = {" ".join(path) for path in every_command()}
    for words, example in EXAMPLES.items():
        given = example.removeprefix("sudo ").removeprefix("phantommesh ")
        assert words in ("", *paths, *(path.rpartition(" ")[0] for path in paths)), words
        assert any(given == path or given.startswith(f"{path} ") for path in paths), example


def test_the_first_help_names_every_verb_once() -> None:
    shown = run("--help").stdout.partition("Verbs (")[2]
    named = re.findall(r"[a-z][a-z-]+", " ".join(line[10:] for line in shown.splitlines()[1:8]))
    assert sorted(named) == sorted(cli.commands)


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_verb_has_help(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 3


@pytest.mark.parametrize(
    "verb",
    [
        "status",
        "peers",
        "links",
        "paths",
        "scatter",
        "proofs",
        "proofs --export x",
        "events",
        "events --follow",
        "rotate",
        "revoke pm-2",
        "identity new",
    ],
)
def test_without_a_node_it_exits_3(tmp_path: Path, verb: str) -> None:
    message = told(run("--json", *verb.split(), root=tmp_path), 3)
    assert f"{tmp_path}/api.sock" in message
    assert "phantommesh init" in message and "--socket" in message


def test_a_socket_nothing_listens_on_is_no_node_either(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{tmp_path}/api.sock")
    told(run("status", root=tmp_path), 3)


def test_init_makes_a_mesh_and_refuses_to_make_it_again(tmp_path: Path) -> None:
    result = run("init", "--mesh", "lab", "--name", "pm-1", "--json", root=tmp_path)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["mesh"], shown["node"], shown["role"]) == ("lab", "pm-1", "authority")
    assert len(shown["node_id"]) == 26
    assert "fix:" in told(made(tmp_path), 1)
    assert "pm-1" in (tmp_path / "etc" / "pm.toml").read_text()


def test_invite_prints_one_line_that_reads_back(tmp_path: Path) -> None:
    assert made(tmp_path).exit_code == 0
    result = run("invite", "--ttl", "2h", "--role", "node", root=tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    invite = Invite.parse_untrusted(line)
    assert (invite.mesh, invite.role, invite.endpoints) == ("lab", Role.NODE, ("192.0.2.1:51800",))
    shown = json.loads(run("invite", "--json", "--name", "pm-2", root=tmp_path).stdout)
    assert shown["invite"].startswith("pm1_")
    assert shown["expires"].endswith("Z")
    assert shown["name"] == "pm-2"


def test_an_invite_names_the_endpoints_that_are_given_for_it(tmp_path: Path) -> None:
    assert made(tmp_path).exit_code == 0
    result = run("invite", "--endpoint", "vpn.example.net:443", "--endpoint", "192.0.2.7", root=tmp_path)
    invite = Invite.parse_untrusted(result.stdout.strip())
    assert invite.endpoints == ("vpn.example.net:443", "192.0.2.7:51800")
    refused = told(run("invite", "--endpoint", "vpn.example.net:0", root=tmp_path), 1)
    assert refused.startswith("error: --endpoint: ")
    overlay = told(run("invite", "--endpoint", "100.64.0.9", root=tmp_path), 1)
    assert "give in --endpoint" in overlay
    assert "leave some out" in told(run("invite", *["--endpoint", "a.example"] * 4, root=tmp_path), 1)


def test_invite_needs_a_mesh(tmp_path: Path) -> None:
    assert "init" in told(run("invite", root=tmp_path), 1)


def test_config_check_and_show(tmp_path: Path) -> None:
    assert made(tmp_path).exit_code == 0
    assert json.loads(run("config", "check", "--json", root=tmp_path).stdout)["ok"] is True
    shown = json.loads(run("--json", "config", "show", root=tmp_path).stdout)
    assert shown["node"]["mesh"] == "lab"
    text = run("config", "show", root=tmp_path).stdout
    (tmp_path / "again.toml").write_text(text)
    assert "is good" in run("config", "check", tmp_path / "again.toml").stdout
    (tmp_path / "bad.toml").write_text('[node]\nname = "x"\nmesh = "y"\n[wireguard]\nmtuu = 3\n')
    message = told(run("--json", "config", "check", tmp_path / "bad.toml"), 1)
    assert "mtuu" in message
    assert "wireguard.mtu" in message
    told(run("config", "check", tmp_path / "none.toml"), 1)
    told(run("config", "check", tmp_path), 1)


def test_init_takes_the_meshs_network(tmp_path: Path) -> None:
    result = run("init", "--mesh", "lab", "--name", "a", "--cidr", "10.99.0.0/16", "--json", root=tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ip4"].startswith("10.99.")
    assert run("config", "check", root=tmp_path).exit_code == 0
    for bad in ("10.99.0.1/16", "10.0.0.0/31", "127.0.0.0/8", "fd00::/48", "lan"):
        (tmp_path / "other").mkdir(exist_ok=True)
        said = told(run("init", "--mesh", "lab", "--name", "a", "--cidr", bad, root=tmp_path / "other"), 1)
        assert "overlay.cidr4" in said
        assert "fix:" in said
        assert list((tmp_path / "other").iterdir()) == []


def test_an_edited_network_is_refused_by_config_check_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(tmp_path).exit_code == 0
    file = tmp_path / "etc" / "pm.toml"
    file.write_text(file.read_text().replace("100.64.0.0/10", "10.99.0.0/16"))
    monkeypatch.setattr("phantommesh.nursery.logs.configure", lambda *_: None)
    for verb in (["config", "check"], ["run"]):
        said = told(run(*verb, root=tmp_path), 1)
        assert "overlay.cidr4 = 10.99.0.0/16 is not this mesh's network" in said
        assert "100.64.0.0/10" in said
        assert "init --mesh NAME --cidr 10.99.0.0/16" in said


def test_down_and_leave_name_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def clear(*_: object) -> taking_down.Down:
        """A host without anything of ours. The real one looks at, and changes, this machine."""
        return taking_down.Down(
            mesh=None, node="not-running", interfaces=[], prefixes=[], tables=[], marks=False, running=[]
        )

    monkeypatch.setattr(taking_down, "_clear", clear)
    for verb in ("down", "leave"):
        assert "there is no configuration" in told(run(verb, root=tmp_path), 1)
    assert made(tmp_path).exit_code == 0
    assert "authority" in told(run("leave", root=tmp_path), 1)
    assert (tmp_path / "state").is_dir()
    (tmp_path / "state").rename(tmp_path / "gone")
    assert "there is no state directory" in told(run("down", root=tmp_path), 1)


def test_the_environment_gives_the_globals(tmp_path: Path) -> None:
    assert made(tmp_path).exit_code == 0
    result = run("config", "show", env={"PHANTOMMESH_CONFIG": f"{tmp_path}/etc/pm.toml"})
    assert 'mesh = "lab"' in result.stdout
    result = run("status", env={"PHANTOMMESH_SOCKET": f"{tmp_path}/other.sock"})
    assert "other.sock" in told(result, 3)


def test_the_configs_socket_is_used_unless_told_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "pm.toml"
    file.write_text(f'[node]\nname = "x"\nmesh = "y"\n[api]\nsocket = "{tmp_path}/own.sock"\n')
    assert "own.sock" in told(run("--config", file, "status"), 3)


def test_without_root_what_needs_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(base, "_has_net_admin", lambda: False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    for args in (["run"], ["init", "--mesh", "x"], ["invite"], ["join", "pm1_x"], ["lab", "up"]):
        message = told(run(*args, root=tmp_path), 1)
        assert "needs root" in message
        assert "sudo phantommesh" in message


def test_a_lab_that_is_not_there_is_told() -> None:
    message = told(run("--json", "lab", "status", "--name", "nolab"), 1)
    assert "nolab" in message


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_lab_exec_hands_the_command_over_whole(monkeypatch: pytest.MonkeyPatch, separator: list[str]) -> None:
    called: list[object] = []
    monkeypatch.setattr(base, "_has_net_admin", lambda: True)
    monkeypatch.setattr("phantommesh.nursery.lab.up.exec_", lambda *args: called.append(args))
    result = run("lab", "exec", "--name", "x", "2", *separator, "ping", "-c", "1", "--", "host")
    assert result.exit_code == 0, result.output
    assert called == [("x", 2, ("ping", "-c", "1", "--", "host"))]


def test_a_bad_invite_is_told_before_anything_is_written(tmp_path: Path) -> None:
    for token in ("junk", "pm1_", "pm1_AAAA", "-"):
        told(run("join", "--name", "pm-2", token, root=tmp_path, input="pm1_junk\n"), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_text_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PhantomMeshError("bad \x1b[2J name\nerror: forged", fix="no\rne")

    monkeypatch.setattr("phantommesh.config.reading.load", refuse)
    message = told(run("config", "check"), 1)
    assert "\x1b" not in message
    assert "\r" not in message


def test_an_error_inside_nurseries_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        inner = ExceptionGroup("", [PhantomMeshError("the port is taken", fix="use another")])
        raise ExceptionGroup("", [inner])

    monkeypatch.setattr("phantommesh.config.reading.load", refuse)
    assert told(run("config", "check"), 1) == "error: the port is taken\nfix: use another\n"


def test_a_file_the_system_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(28, "No space left on device", "/var/lib/x")

    monkeypatch.setattr("phantommesh.config.reading.load", refuse)
    error, fix = told(run("config", "check"), 1).splitlines()
    assert error == "error: /var/lib/x: No space left on device"
    assert fix == "fix: make room on that file system, then run this again"


@pytest.mark.parametrize(
    ("membership", "reached", "shown"),
    [
        ("alive", "direct", "alive"),
        ("alive", "elsewhere", "from its side"),
        ("alive", "traffic", "by traffic"),
        ("dead", "traffic", "dead"),
    ],
)
def test_peers_says_by_which_way_a_member_is_reached(membership: str, reached: str, shown: str) -> None:
    peer = msgspec.structs.replace(peer_view(3), membership=membership, reached=reached)
    [row] = lists.PEERS.rows(peer)
    assert dict(zip(lists.PEERS.columns, row, strict=True))["NODE"] == shown


# --- as a process, against the real server ---


def process(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phantommesh", *args], capture_output=True, text=True, timeout=60, check=False
    )


async def with_node(node: FakeNode, tmp_path: Path, check: Callable[[list[str]], None]) -> None:
    path = tmp_path / "api.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_api, node, socket_path=path, group="no-such-group-here"))
        await trio.to_thread.run_sync(check, ["--socket", str(path)])
        nursery.cancel_scope.cancel()


async def test_status_peers_and_links_of_a_node(tmp_path: Path) -> None:
    node = FakeNode(peers=3)

    def check(at: list[str]) -> None:
        for verb, words in (
            ("status", ["mesh", "lab", "3 of 3 up (1 partly reachable)", "userspace"]),
            ("peers", ["NAME", "via pm-1", "pm-3", "100.64.0.3", "192.0.2.3:51820"]),
            ("links", ["PEER", "pm-3", "7/7", "12s"]),
            ("paths", ["DIMENSION", "pm-3", "dark", "12.3 ms", "0.5%", "192.0.2.1:51820"]),
            ("scatter", ["PEER", "pm-3", "deck", "3.4", "2.800", "14.3%"]),
            ("scatter", ["pm-3: ssh", "order", "flow", "0.000", "pm-3: rest"]),
            ("proofs", ["PEER", "pm-3", "sent", "received", "3.4", "2.807"]),
        ):
            plain = process(*at, verb)
            assert (plain.returncode, plain.stderr) == (0, "")
            assert all(word in plain.stdout for word in words), plain.stdout
            shown = process(*at, verb, "--json")
            assert (shown.returncode, shown.stderr) == (0, "")
            assert isinstance(json.loads(shown.stdout), dict)
        assert [link["peer"] for link in json.loads(process(*at, "--json", "links").stdout)["items"]] == [
            "pm-1",
            "pm-2",
            "pm-3",
        ]

    await with_node(node, tmp_path, check)


WIDE = ("NAME", "IPV6", "WHAT")
ROWS = [("pm-1", "fd5e:9f3b:1c2d:3e4f::1", None), ("名前", "fd5e::2", "a long text " * 12 + "\x1b[2J")]


@pytest.mark.parametrize("width", [20, 40, 55, 80, 200, None])
def test_a_table_fits_the_terminal_and_loses_nothing(width: int | None) -> None:
    lines = lay_out(WIDE, ROWS, width)
    assert all(cell_len(line) <= (width or 1000) for line in lines)
    whole = "".join("".join(lines).split())
    for cell in ("pm-1", "名前", "fd5e::2"):
        assert cell in whole
    assert whole.count("alongtext") == 12
    assert "\x1b" not in whole
    if width is None or width == 200:
        assert len(lines) == 3
    elif width == 80:  # the last column is folded
        assert lines[0].split() == list(WIDE) and len(lines) > 3
    else:  # a record an item
        assert lines[0].split() == ["NAME", "pm-1"] and lines.count("") == 1
        assert [line[:4] for line in lines if line.startswith(("IPV6", "WHAT"))] == ["IPV6", "IPV6", "WHAT"]


def test_columns_without_room_stand_below_their_row() -> None:
    rows = [("pm-1", "fd5e:9f3b:1c2d:3e4f:aaaa:bbbb:cccc:0001", "a long text " * 6)]
    lines = lay_out(WIDE, rows, 60)
    assert all(cell_len(line) <= 60 for line in lines)
    assert lines[0].split() == ["NAME", "IPV6"] and lines[1].startswith("pm-1  fd5e:")
    assert lines[2].startswith("    WHAT a long text")


def test_a_word_of_a_record_is_not_broken_where_a_line_of_its_own_holds_it() -> None:
    endpoint = "[2001:db8:4f2a:91c3:7b5e:1234:abcd:ef01]:51820"
    lines = lay_out(("DIMENSION", "ENDPOINT", "WAY"), [("0", endpoint, "direct")], 50)
    assert lines == ["DIMENSION  0", "ENDPOINT", f"    {endpoint}", "WAY        direct"]


def test_a_text_is_folded_between_words() -> None:
    lines = lay_out(("TIME", "WHAT"), [("now", "its node does not answer " * 3 + "x" * 50)], 34)
    told = [line[6:] for line in lines[1:]]
    assert " ".join(told[:-2]).split() == ["its", "node", "does", "not", "answer"] * 3
    assert "".join(told[-2:]) == "x" * 50  # a word that fits no line


def test_a_terminal_gets_what_fits_it_and_a_pipe_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for terminal, lines in ((False, 3), (True, 10)):  # a row a line; a record an item
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda answer=terminal: answer, raising=False)
        monkeypatch.setattr(sys, "stdout", out)
        table(WIDE, ROWS)
        assert len(out.getvalue().splitlines()) == lines


async def test_proofs_of_one_peer_are_listed(tmp_path: Path) -> None:
    node = FakeNode(peers=3)

    def check(at: list[str]) -> None:
        for wanted in ("pm-2", "id002"):
            shown = json.loads(process(*at, "proofs", "--peer", wanted, "--json").stdout)
            assert [view["peer"] for view in shown["items"]] == ["pm-2"]
        gone = process(*at, "proofs", "--peer", "nobody")
        assert gone.returncode == 1 and "no scatter proofs with this peer" in gone.stderr
        node.twins = True
        for verb in (["proofs", "--peer"], ["rotate"], ["proofs", "--export", f"{tmp_path}/x", "--peer"]):
            refused = process(*at, *verb, "pm-1")
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.splitlines() == [
                "error: several members are named pm-1",
                "fix: give one of id001, id002, id003",
            ]

    await with_node(node, tmp_path, check)
    assert node.rotated == []


def test_what_verify_cannot_use_is_a_usage_error(tmp_path: Path) -> None:
    for words in (["--peer", "pm-2"], ["--min-entropy", "2.9"]):
        result = run("proofs", "--verify", tmp_path / "none", *words, root=tmp_path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words[0] in result.stderr


@pytest.mark.parametrize("option", ["--root", "--max-loss", "--min-coverage", "--min-entropy"])
@pytest.mark.parametrize("also", [[], ["--export", "x"]], ids=["list", "export"])
def test_what_only_verify_uses_is_refused_without_it(tmp_path: Path, option: str, also: list[str]) -> None:
    result = run("proofs", *also, option, "1", root=tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"give {option} with --verify only" in result.stderr


def test_a_file_that_is_not_there_is_told_before_the_root_is_missed(tmp_path: Path) -> None:
    said = told(run("proofs", "--verify", tmp_path / "nothing", root=tmp_path), 1)
    assert f"{tmp_path}/nothing: No such file or directory" in said
    assert said.splitlines()[1:] == ["fix: give the path of a file that is there"]


def test_a_directory_in_the_place_of_a_file_is_told_with_a_fix(tmp_path: Path) -> None:
    for words in (("proofs", "--verify", tmp_path), ("config", "check", tmp_path)):
        said = told(run(*words, root=tmp_path), 1).splitlines()
        assert "Is a directory" in said[0]
        assert said[1].startswith("fix: give the path of a ")


def test_init_names_the_option_that_is_wrong(tmp_path: Path) -> None:
    for option, bad in (
        ("--cidr", "lan"),
        ("--cidr", "127.0.0.0/8"),
        ("--endpoint", "bad_host!"),
        ("--endpoint", "127.0.0.1:99999"),
    ):
        said = told(run("init", "--mesh", "lab", "--name", "a", option, bad, root=tmp_path), 1)
        assert option in said.splitlines()[0]
        assert list(tmp_path.iterdir()) == []


async def test_status_shows_each_fault_with_its_fix(tmp_path: Path) -> None:
    node = FakeNode()
    kind = FaultKind("peer-gone", "medium")
    node.faults = [
        kind.fault("pm-2 is dead\x1b[2J", "start it", subject="pm-2"),
        kind.fault("pm-1 is dead", "", subject="pm-1"),
    ]

    def check(at: list[str]) -> None:
        lines = process(*at, "status").stdout.splitlines()
        assert lines[-3:] == [
            "degraded     pm-2 is dead [2J",
            "  fix        start it",
            "degraded     pm-1 is dead",
        ]
        shown = json.loads(process(*at, "status", "--json").stdout)
        assert shown["faults"][0] == {
            "code": "peer-gone",
            "severity": "medium",
            "subject": "pm-2",
            "text": "pm-2 is dead\x1b[2J",
            "fix": "start it",
        }
        assert shown["degraded"] == ["pm-2 is dead\x1b[2J; start it", "pm-1 is dead"]
        assert [process(*at, "status", *how).returncode for how in ([], ["--exit-code"])] == [0, 4]
        node.reasons = ["no interfaces"]
        for how in (["--exit-code"], ["--exit-code", "--json"]):
            assert process(*at, "status", *how).returncode == 5
        node.faults, node.reasons = [], []
        assert process(*at, "status", "--exit-code").returncode == 0

    await with_node(node, tmp_path, check)


async def test_an_export_says_what_it_leaves_out(tmp_path: Path) -> None:
    """Of what the node sent to one peer it keeps four proofs more than the file has, and of what it sent to
    the other one six, of which the file has none."""
    node, world, file = FakeNode(), World(), tmp_path / "proofs"
    world.run(2)
    archive = world.archive()
    node.exported = archive.encode()
    ((_, receiver), number), *_ = archive.counts().items()
    replace, (known, unknown) = msgspec.structs.replace, node.proofs()
    kept = replace(known.sent, kept=number + 4)
    known = replace(known, node_id=format_node_id(receiver), sent=kept)
    node.proofs = lambda: [known, unknown]  # type: ignore[method-assign]

    def check(at: list[str]) -> None:
        done = process(*at, "proofs", "--export", str(file))
        lines = sorted(line for line in done.stderr.splitlines() if line.startswith("left out"))
        assert len(lines) == 2
        before, nobody = "they are from before a gap", "the peer's certificate is not known"
        assert lines[0].startswith(f"left out: 4 proofs of what was sent to {known.peer}: {before}")
        assert lines[1].startswith(f"left out: 6 proofs of what was sent to {unknown.peer}: {nobody}")
        shown = json.loads(process(*at, "--json", "proofs", "--export", str(file)).stdout)
        assert {(each["peer"], each["direction"], each["proofs"]) for each in shown["left_out"]} == {
            (known.peer, "sent", 4),
            (unknown.peer, "sent", 6),
        }
        only = process(*at, "proofs", "--export", str(file), "--peer", known.peer)
        assert unknown.peer not in only.stderr

    await with_node(node, tmp_path, check)


async def test_proofs_are_exported_to_a_file_that_verifies(tmp_path: Path) -> None:
    node, world, file = FakeNode(), World(), tmp_path / "proofs"
    world.run(2)
    node.exported = world.archive().encode()

    def check(at: list[str]) -> None:
        done = process(*at, "proofs", "--export", str(file))
        assert (done.returncode, done.stdout) == (0, f"4 proofs written to {file}\n")
        assert MESH.mesh.root_hash.hex() in done.stderr
        assert file.read_bytes() == node.exported and file.stat().st_mode & 0o777 == 0o600

    await with_node(node, tmp_path, check)
    refused = run("proofs", "--verify", str(file), root=tmp_path)  # nothing says that this is the right root
    assert "nothing says which mesh" in told(refused, 1)
    assert refused.stdout == ""
    pinned = ("--root", MESH.mesh.root_hash.hex(), "--json")
    shown = run("proofs", "--verify", str(file), *pinned, root=tmp_path)
    assert (shown.exit_code, shown.stderr) == (0, "")
    document = json.loads(shown.stdout)
    assert (document["proofs"], document["countersigned"], document["pinned"]) == (4, 4, True)
    assert document["warning"] is None
    assert (
        "all 4 proofs of mesh pm hold"
        in run("proofs", "--verify", str(file), *pinned[:2], root=tmp_path).stdout
    )
    assert {link["sender"] for link in document["links"]} == {"pm-1", "pm-2"}


def test_a_file_under_a_root_of_anybodys_own_does_not_pass_for_the_mesh_s(tmp_path: Path) -> None:
    """A forger makes a mesh of the same names, and proofs that hold under its root."""
    world, file = World(), tmp_path / "proofs"
    world.run(2)
    file.write_bytes(world.archive().encode())
    assert "knows no mesh" in told(run("proofs", "--verify", str(file), root=tmp_path), 1)
    loose = run("proofs", "--verify", str(file), "--unpinned", root=tmp_path)
    assert loose.exit_code == 0
    assert "nobody vouches for who signed" in loose.stdout and MESH.mesh.root_hash.hex() in loose.stdout
    assert "hold" not in loose.stdout
    document = json.loads(run("proofs", "--verify", str(file), "--unpinned", "--json", root=tmp_path).stdout)
    assert document["pinned"] is False and "nobody vouches" in document["warning"]
    for wrong in (("--unpinned", "--verify", str(file), "--root", "0" * 64), ("--unpinned",)):
        assert run("proofs", *wrong, root=tmp_path).exit_code == 2
    assert made(tmp_path).exit_code == 0
    assert "another mesh" in told(run("proofs", "--verify", str(file), root=tmp_path), 1)
    (tmp_path / "state" / "root.crt").write_bytes(b"damaged")
    assert "root.crt is damaged" in told(run("proofs", "--verify", str(file), root=tmp_path), 1)


def test_each_link_of_a_file_has_its_verdict(tmp_path: Path) -> None:
    """One that holds, and one that its receiver has not signed."""
    world, file = World(), tmp_path / "proofs"
    world.run(3, "deck", packets=20_000)
    proofs = world.proofs("pm-1")
    half = [Proof(proof.statement) if of(proof) == node("pm-2").node_id else proof for proof in proofs]
    file.write_bytes(world.archive(half).encode())
    pinned = ("--root", MESH.mesh.root_hash.hex())
    refused = run("proofs", "--verify", str(file), *pinned, root=tmp_path)
    assert told(refused, 4, table=True).startswith("error: pm-2 to pm-1: no proof of it is countersigned")
    assert "pm-2 to pm-1, too little: no proof of it is countersigned" in refused.stdout
    assert "holds" in refused.stdout and "100%" in refused.stdout
    document = json.loads(run("proofs", "--verify", str(file), *pinned, "--json", root=tmp_path).stdout)
    assert document["holds"] is False and document["verdict"] == "too little"
    assert {(link["sender"], link["verdict"], link["coverage_time"]) for link in document["links"]} == {
        ("pm-1", "holds", 1.0),
        ("pm-2", "too little", 0.0),
    }
    assert document["demands"] == {"max_loss": 0.05, "min_coverage": 0.5, "min_entropy": 0.5}
    missing = [proof for proof in half if of(proof) != node("pm-2").node_id][1]
    file.write_bytes(world.archive([proof for proof in half if proof != missing]).encode())
    failing = run("proofs", "--verify", str(file), *pinned, "--json", root=tmp_path)
    assert failing.exit_code == 1  # one link shows too little, and another fails
    assert json.loads(failing.stdout)["verdict"] == "fails"


def of(proof: Proof) -> bytes:
    """The sender of the traffic that the proof is of."""
    leaf = decode_leaf_untrusted(proof.statement.leaf)
    assert isinstance(leaf, Statement)
    return leaf.plan.sender


def test_what_is_asked_of_a_file_can_be_changed(tmp_path: Path) -> None:
    """A link with one path in use shows no scattering, unless that is accepted."""
    acts, _ = CHEATS["a_plan_of_one_dimension"]()
    file, pinned = tmp_path / "proofs", ("--root", MESH.mesh.root_hash.hex())
    file.write_bytes(Telling().tell(acts).encode())
    refused = run("proofs", "--verify", str(file), *pinned, root=tmp_path)
    assert "--min-entropy" in told(refused, 4, table=True)
    lowered = run("proofs", "--verify", str(file), *pinned, "--min-entropy", "0", root=tmp_path)
    assert lowered.exit_code == 0 and "100.0%" in lowered.stdout
    acts, _ = CHEATS["a_narrow_window_with_true_dates"]()
    file.write_bytes(Telling().tell(acts).encode())
    refused = run("proofs", "--verify", str(file), *pinned, root=tmp_path)
    assert "--min-coverage" in told(refused, 4, table=True)


def test_a_file_of_an_older_version_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "proofs"
    file.write_bytes(MAGIC + msgspec.msgpack.encode([1, b"root", {}, []]))
    refused = told(run("proofs", "--verify", str(file), "--unpinned", root=tmp_path), 1)
    assert "version 1" in refused and "export the proofs again" in refused


def test_what_does_not_hold_of_a_file_is_one_line(tmp_path: Path) -> None:
    world, file = World(), tmp_path / "proofs"
    world.run(2, loss=0.5, packets=20_000)
    good = world.archive().encode()
    file.write_bytes(good)
    pinned = ("--root", MESH.mesh.root_hash.hex())
    assert "lost" in told(run("proofs", "--verify", str(file), *pinned, root=tmp_path), 1, table=True)
    assert run("proofs", "--verify", str(file), *pinned, "--max-loss", "60", root=tmp_path).exit_code == 0
    assert "another mesh" in told(run("proofs", "--verify", str(file), "--root", "0" * 64, root=tmp_path), 1)
    assert made(tmp_path).exit_code == 0  # now this machine has a mesh of its own, and it is not that one
    assert "another mesh" in told(run("proofs", "--verify", str(file), root=tmp_path), 1)
    assert "is no hash" in told(run("proofs", "--verify", str(file), "--root", "0" * 63, root=tmp_path), 1)
    for damaged, what in (
        (good[:-1], "damaged"),
        (good[:-100] + bytes([good[-100] ^ 1]) + good[-99:], "another mesh"),
        (b"rubbish", "not a file of proofs"),
    ):
        file.write_bytes(damaged)
        assert what in told(run("proofs", "--verify", str(file), root=tmp_path), 1)
    assert "No such file" in told(run("proofs", "--verify", str(tmp_path / "none"), root=tmp_path), 1)
    assert run("proofs", "--verify", "a", "--export", "b", root=tmp_path).exit_code == 2


async def test_rotate_of_a_node(tmp_path: Path) -> None:
    node = FakeNode()

    def check(at: list[str]) -> None:
        dry = json.loads(process(*at, "--json", "rotate", "--dry-run").stdout)
        assert dry["dry_run"] is True
        assert node.rotated == []
        done = process(*at, "rotate", "pm-2")
        assert (done.returncode, done.stderr) == (0, "")
        assert "rotated" in done.stdout
        process(*at, "rotate", "pm-2")
        assert node.rotated == ["id002", "id002"]  # each call is a request of its own
        unknown = process(*at, "--json", "rotate", "nobody")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "no such peer in the mesh: 'nobody'" in unknown.stderr
        node.result = "started"
        for verb in (["rotate"], ["rotate", "pm-2", "--json"]):
            pending = process(*at, *verb)
            assert pending.returncode == 1 and "pm-2" in pending.stdout
            assert "rotations are not finished: " in pending.stderr and "pm-2" in pending.stderr
        node.failure = RuntimeError("bug")
        failed = process(*at, "rotate")
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: ")
        assert "Traceback" not in failed.stderr

    await with_node(node, tmp_path, check)


async def test_rename_of_a_node_edits_its_configuration(tmp_path: Path) -> None:
    node, file = FakeNode(), tmp_path / "pm.toml"
    before = '# ours\n[node]\nname = "pm-1"  # the first\nmesh = "lab"\n[dns]\nmode = "off"\n'

    def check(at: list[str]) -> None:
        file.write_text(before)
        file.chmod(0o640)
        verb = (*at, "--config", str(file), "rename")
        done = process(*verb, "pm-9")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("pm-1 is pm-9 now")
        assert file.read_text() == before.replace('"pm-1"', '"pm-9"')
        assert file.stat().st_mode & 0o777 == 0o640
        assert process(*verb, "pm-9").returncode == 0  # nothing to do
        file.write_text(before.replace("pm-1", "another"))
        said = process(*verb, "pm-7")
        assert said.returncode == 1 and "does not say node.name = pm-9" in said.stderr
        assert f'fix: set node.name to "pm-7" in {file}' in said.stderr
        assert file.read_text() == before.replace("pm-1", "another")

    await with_node(node, tmp_path, check)


def test_init_keeps_the_socket_it_was_given_and_says_what_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("phantommesh.cli.service"), "systemd_runs", lambda: False)
    result = made(tmp_path)
    assert f'socket = "{tmp_path}/api.sock"' in (tmp_path / "etc" / "pm.toml").read_text()
    next_line, keep = result.stderr.splitlines()
    assert next_line == f"next: phantommesh --state-dir {tmp_path}/state --config {tmp_path}/etc/pm.toml run"
    assert f"copy {tmp_path}/state/root.key to a safe place" in keep
    assert result.stderr not in result.stdout


def test_a_damaged_invite_is_named_and_holds_up_no_other(tmp_path: Path) -> None:
    assert made(tmp_path).exit_code == 0
    for _ in range(2):
        assert run("invite", root=tmp_path).exit_code == 0
    (bad, good) = sorted((tmp_path / "state" / "invites").glob("*.json"))
    bad.write_bytes(b"{")
    again = run("invite", root=tmp_path)
    assert again.exit_code == 0 and again.stdout.startswith("pm1_")
    assert again.stderr == f"note: {bad} is damaged: nobody can use its invite; delete the file\n"
    assert bad.exists() and good.exists()


async def test_revoke_of_a_node(tmp_path: Path) -> None:
    node = FakeNode()

    def check(at: list[str]) -> None:
        dry = process(*at, "revoke", "pm-2", "--dry-run")
        assert (dry.returncode, dry.stdout) == (0, "pm-2 (id002) would be revoked\n")
        assert node.revoked == []
        done = process(*at, "revoke", "pm-2")
        assert (done.returncode, done.stderr) == (0, "")
        assert "pm-2 (id002) is revoked" in done.stdout
        shown = json.loads(process(*at, "--json", "revoke", "pm-1", "--force").stdout)
        assert (shown["name"], shown["already"]) == ("pm-1", False)
        assert node.revoked == [("pm-2", False), ("pm-1", True)]
        node.failure = PhantomMeshError("this node is not an authority", fix="ask one: pm-0")
        failed = process(*at, "--json", "revoke", "pm-2")
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr == "error: this node is not an authority\nfix: ask one: pm-0\n"

    await with_node(node, tmp_path, check)


async def test_a_new_identity_of_a_node(tmp_path: Path) -> None:
    node = FakeNode()

    def check(at: list[str]) -> None:
        done = process(*at, "identity", "new")
        assert done.returncode == 0 and "starts again" in done.stderr
        assert "pm-0 has a new identity: id777" in done.stdout and "revoked: id000" in done.stdout
        assert json.loads(process(*at, "--json", "identity", "new").stdout)["node_id"] == "id777"
        assert node.replaced == 2
        node.failure = PhantomMeshError("an authority's identity is not replaced", fix="make another one")
        failed = process(*at, "--json", "identity", "new")
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr == "error: an authority's identity is not replaced\nfix: make another one\n"

    await with_node(node, tmp_path, check)


async def test_revocations_are_undone(tmp_path: Path) -> None:
    node = FakeNode()

    def check(at: list[str]) -> None:
        both = process(*at, "revoke", "pm-2", "--undo", "--undo-all")
        assert both.returncode == 2 and "not both" in both.stderr
        dry = process(*at, "revoke", "pm-2", "--undo-all", "--dry-run")
        assert (dry.returncode, node.undone) == (0, [])
        assert dry.stdout == "pm-2 (id002) would be cast out, and 20 that it revoked taken back\n"
        assert "is cast out" in process(*at, "revoke", "pm-2", "--undo-all").stdout
        assert "is taken back" in process(*at, "revoke", "pm-1", "--undo").stdout
        assert node.undone == ["pm-2", "pm-1"]
        node.failure = PhantomMeshError("only the machine that holds the root key", fix="run it there")
        failed = process(*at, "revoke", "pm-2", "--undo")
        assert (failed.returncode, failed.stdout) == (1, "")
        assert "fix: run it there" in failed.stderr

    await with_node(node, tmp_path, check)


def test_an_authority_is_invited_only_where_the_root_key_is(tmp_path: Path) -> None:
    made(tmp_path)
    invited = run("invite", "--role", "authority", root=tmp_path)
    assert Invite.parse_untrusted(invited.stdout).role is Role.AUTHORITY
    (tmp_path / "state" / "root.key").unlink()
    assert "root key" in told(run("invite", "--role", "authority", root=tmp_path), 1)
    assert run("invite", root=tmp_path).exit_code == 0


async def test_a_failed_rotation_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode()

    async def rotate(_peer: str | None, _uid: int | None) -> RotationResult:
        return RotationResult(
            rotations=[Rotation(peer="pm-1", node_id="id001", result="failed", detail="silent")]
        )

    monkeypatch.setattr(node, "rotate", rotate)

    def check(at: list[str]) -> None:
        result = process(*at, "--json", "rotate")
        assert result.returncode == 1
        assert json.loads(result.stdout)["rotations"][0]["detail"] == "silent"
        assert "error: " in result.stderr

    await with_node(node, tmp_path, check)


def test_a_process_tells_its_exit_status(tmp_path: Path) -> None:
    assert process("--version").returncode == 0
    assert process("--socket", f"{tmp_path}/none", "status").returncode == 3
    assert process("statuss").returncode == 2
    assert process("config", "check", f"{tmp_path}/none").returncode == 1


def test_a_junk_answer_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/api.sock")
        server.listen()
        child = subprocess.Popen(
            [sys.executable, "-m", "phantommesh", "--socket", f"{tmp_path}/api.sock", "status"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (1, "")
    assert "no usable answer" in err
    assert "Traceback" not in err


def test_starting_does_not_import_what_is_slow() -> None:
    code = (
        "import sys, phantommesh.cli, phantommesh.client.http\n"
        "slow = {'trio', 'quart', 'quart_trio', 'hypercorn', 'pyroute2', 'httpx', 'rich', 'cryptography',"
        " 'structlog', 'prometheus_client'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def some_events(node: FakeNode) -> None:
    node.events.publish("link.opened", "pm-2", {"peer": "pm-2", "node_id": "id002", "epoch": 3, "detail": ""})
    node.events.publish("health.degraded", None, {"reasons": ["one", "two\x1b[2J"], "total": 2})


async def test_events_of_a_node(tmp_path: Path) -> None:
    node = FakeNode()
    some_events(node)

    def check(at: list[str]) -> None:
        plain = process(*at, "events")
        assert (plain.returncode, plain.stderr) == (0, "")
        lines = plain.stdout.splitlines()
        assert [line.split()[1:] for line in lines[1:]] == [
            ["link.opened", "pm-2", "epoch=3"],
            ["health.degraded", "-", "reasons=one;", "two", "[2J", "total=2"],
        ]
        shown = json.loads(process(*at, "events", "--json", "--type", "link.*", "--type", "peer.*").stdout)
        assert [event["seq"] for event in shown["items"]] == [1]
        assert shown["next_cursor"] is None
        shown = json.loads(process(*at, "--json", "events", "--since", "1").stdout)
        assert [event["seq"] for event in shown["items"]] == [2]
        wrong = process(*at, "events", "--type", "pear.*", "--follow")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr.startswith("error: 'pear.*' is no type of event\nfix: ")

    await with_node(node, tmp_path, check)


@pytest.mark.parametrize("as_json", [False, True])
async def test_following_events_until_interrupted_or_the_node_stops(tmp_path: Path, as_json: bool) -> None:
    node, path, shutdown = FakeNode(), tmp_path / "api.sock", trio.Event()
    some_events(node)
    words = [sys.executable, "-m", "phantommesh", "--socket", str(path), "events", "--follow"]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serve = partial(serve_api, node, socket_path=path, group="no-such-group-here", shutdown=shutdown)
            await nursery.start(serve)
            ends: list[tuple[int, str]] = []
            for _ in range(2):
                command = subprocess.Popen(
                    [*words, *(["--json"] if as_json else [])],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    # A job in the background of a script ignores it, and so would the command.
                    preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
                )
                assert command.stdout is not None
                lines = [await trio.to_thread.run_sync(command.stdout.readline) for _ in range(2)]
                node.events.publish("peer.up", "pm-3", {})
                lines.append(await trio.to_thread.run_sync(command.stdout.readline))
                if as_json:
                    kinds = [json.loads(line)["type"] for line in lines]
                else:
                    kinds = [line.split()[1] for line in lines]
                assert kinds == ["link.opened", "health.degraded", "peer.up"]
                if not ends:
                    command.send_signal(signal.SIGINT)
                    node.events = EventLog(run="run2", clock=lambda: 0.0)
                    some_events(node)
                else:
                    shutdown.set()
                _, told = await trio.to_thread.run_sync(command.communicate)
                ends.append((command.returncode, told))
    assert ends[0] == (130, "")
    status, told = ends[1]
    assert status == 3
    assert told.startswith(f"error: the node on {path} stopped\nfix: ")
    assert len(told.splitlines()) == 2


def deny(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Let ``closed`` look as if this user had no access to the file: root has it to all."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **k: Path(path) != closed and access(path, mode, **k)
    )


def test_a_state_directory_that_may_not_be_read_stops_no_verb_that_only_asks_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a member of the socket's group."""
    closed = tmp_path / "closed"
    closed.mkdir()
    deny(monkeypatch, closed)
    arguments = ["--state-dir", str(closed), "--socket", str(tmp_path / "none"), "status"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 3, result.output


def lose_a_member(root: Path, name: str) -> IPv4Address:
    """Have a member of the mesh that nobody finds again, and return its address."""
    state = load_node(root / "state", time())
    assert state.authority is not None
    gone = Identity.generate()
    ip4 = choose_ip4(state.mesh, gone.node_id, ())
    cert = state.authority.issue(gone.spki, name, Role.NODE, ip4, time())
    signed = sign_record(gone, plain_record(gone, 1), cert, state.authority.der)
    state.roster.add(signed, time())
    state.state.write(directory.ROSTER, rosterlog.encode(state.roster.in_order(revoked=True)))
    return ip4


def test_an_invite_gives_the_place_of_a_lost_machine(tmp_path: Path) -> None:
    assert made(tmp_path).exit_code == 0
    ip4 = lose_a_member(tmp_path, "lost")
    result = run("invite", "--replace", "lost", "--json", root=tmp_path)
    assert result.exit_code == 0, result.output
    assert "revokes the present lost for ever" in result.stderr
    shown = json.loads(result.stdout)
    assert (shown["name"], shown["role"], shown["uses"]) == ("lost", "node", 1)
    invite = Invite.parse_untrusted(shown["invite"])
    entry = load_node(tmp_path / "state", time()).invites.find(invite.invite_id, time())
    assert (entry.name, entry.ip4, len(entry.replaces)) == ("lost", str(ip4), 26)
    assert "no member is named 'other'" in told(run("invite", "--replace", "other", root=tmp_path), 1)
    for more in (("--name", "x"), ("--uses", "2"), ("--role", "authority")):
        assert "leave out" in told(run("invite", "--replace", "lost", *more, root=tmp_path), 1)
    assert "in place of itself" in told(run("invite", "--replace", "pm-1", root=tmp_path), 1)


@pytest.mark.parametrize(("given", "days"), [((), 90), (("--grace", "30d"), 30), (("--grace", "365d"), 365)])
def test_init_sets_the_grace_for_good(tmp_path: Path, given: tuple[str, ...], days: int) -> None:
    result = run("init", "--mesh", "lab", "--name", "a", *given, root=tmp_path)
    assert result.exit_code == 0, result.output
    assert load_node(tmp_path / "state", time()).mesh.grace == days * 86_400


def test_a_grace_that_none_may_have_is_refused(tmp_path: Path) -> None:
    result = run("init", "--mesh", "lab", "--name", "a", "--grace", "366d", root=tmp_path)
    assert "give 0 to 365 days" in told(result, 1)
    assert not (tmp_path / "state").exists()


def test_a_configuration_that_may_not_be_read_is_named_where_it_could_name_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "pm.toml"
    config.touch()
    deny(monkeypatch, config)
    monkeypatch.setattr(base, "SOCKET", tmp_path / "api.sock")
    said = told(run("--config", config, "status"), 1)
    assert f"there is no socket {tmp_path}/api.sock, and {config}" in said and "--socket" in said
    (tmp_path / "api.sock").touch()
    assert "nothing answers on" in told(run("--config", config, "status"), 3)
    (tmp_path / "api.sock").unlink()
    config.unlink()
    assert str(config) not in told(run("--config", config, "status"), 3)


def test_a_configuration_that_is_broken_keeps_nobody_from_the_node_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "pm.toml"
    config.write_text("= [\n")
    monkeypatch.setattr(base, "SOCKET", tmp_path / "api.sock")
    said = told(run("--config", config, "status"), 1)
    assert "not TOML" in said and "--socket" in said
    (tmp_path / "api.sock").touch()
    assert "not TOML" not in told(run("--config", config, "status"), 3)


def test_the_grace_that_init_shows_is_the_one_that_a_root_without_a_word_has() -> None:
    """The verb does not import what is slow to import, so the number stands there again."""
    [option] = [option for option in cli.commands["init"].params if option.name == "grace"]
    assert option.default == GRACE
