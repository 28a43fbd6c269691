# SPDX-License-Identifier: GPL-3.0-or-later
"""`backup`, `restore`, `bugreport`, `upgrade-check`, `set`."""

import base64
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from phantommesh.cli import cli
from phantommesh.management.views import Status
from phantommesh.nursery.api.server import serve_api
from phantommesh.state import directory, lock, sealing
from tests.support.fakenode import FakeNode

TOKEN = "pmt_" + "t0ken" * 8


def run(root: Path, *words: str | Path) -> Result:
    at = ["--state-dir", f"{root}/state", "--config", f"{root}/pm.toml", "--socket", f"{root}/api.sock"]
    return CliRunner().invoke(cli, [*at, *map(str, words)], prog_name="phantommesh")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sealing.seal, "__kwdefaults__", {"log_n": 4})  # the tests are no attackers
    made = run(tmp_path / "a", "init", "--mesh", "lab", "--name", "nas", "--endpoint", "192.0.2.1")
    assert made.exit_code == 0, made.output
    word = tmp_path / "word"
    word.write_text("correct horse battery\nand a second line\n")
    word.chmod(0o600)
    return tmp_path


def test_a_backup_is_put_back_elsewhere_and_nothing_is_overwritten(root: Path) -> None:
    key: list[str | Path] = ["--passphrase-file", root / "word"]
    done = run(root / "a", "backup", root / "b", *key)
    assert done.exit_code == 0, done.output
    assert (root / "b").stat().st_mode & 0o777 == 0o600
    assert run(root / "a", "backup", root / "b", *key).exit_code == 1
    checked = run(root / "c", "restore", root / "b", "--check", *key)
    assert checked.exit_code == 0 and "nas (authority" in checked.stdout and not (root / "c").exists()
    there = run(root / "a", "restore", root / "b", *key).stderr
    assert "already holds" in there and "to replace it" in there
    back = run(root / "c", "restore", root / "b", *key, "--json")
    assert json.loads(back.stdout)["manifest"]["node"] == "nas"
    assert run(root / "c", "config", "show").stdout == run(root / "a", "config", "show").stdout
    assert sorted(path.name for path in root.iterdir()) == ["a", "b", "c", "word"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_backup_goes_to_a_file_system_without_hard_links(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As FAT and exFAT are. Nothing is overwritten there either, and nothing is left of what failed."""
    faster = False

    def link(_written: object, path: Path) -> None:
        if faster:
            path.write_text("another's")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    key: list[str | Path] = ["--passphrase-file", root / "word"]
    done = run(root / "a", "backup", root / "b", *key)
    assert done.exit_code == 0, done.output
    assert (root / "b").stat().st_mode & 0o777 == 0o600
    assert run(root / "c", "restore", root / "b", "--check", *key).exit_code == 0

    def full(source: BinaryIO, copy: BinaryIO) -> None:
        copy.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        failed = run(root / "a", "backup", root / "d", *key)
    assert failed.exit_code == 1 and not (root / "d").exists()
    faster = True
    assert run(root / "a", "backup", root / "e", *key).exit_code == 1
    assert (root / "e").read_text() == "another's"
    assert sorted(path.name for path in root.iterdir()) == ["a", "b", "e", "word"]


def test_a_passphrase_is_long_secret_and_the_right_one(root: Path) -> None:
    word = root / "word"
    assert run(root / "a", "backup", root / "b").exit_code == 1  # no terminal, no file
    word.chmod(0o644)
    open_ = run(root / "a", "backup", root / "b", "--passphrase-file", word)
    assert "others can read" in open_.stderr
    word.chmod(0o600)
    word.write_text("short\n")
    assert "fewer than 12" in run(root / "a", "backup", root / "b", "--passphrase-file", word).stderr
    assert not (root / "b").exists()
    word.write_text("correct horse battery\n")
    assert run(root / "a", "backup", root / "b", "--passphrase-file", word).exit_code == 0
    word.write_text("another horse battery\n")
    refused = run(root / "c", "restore", root / "b", "--passphrase-file", word)
    assert refused.exit_code == 1 and "passphrase" in refused.stderr and not (root / "c").exists()


def test_a_mistyped_path_of_a_passphrase_is_said_to_be_one(root: Path) -> None:
    refused = run(root / "a", "backup", root / "b", "--passphrase-file", root / "wrod")
    assert refused.exit_code == 1 and f"no file {root}/wrod" in "".join(refused.stderr.split("\n  "))
    assert "right path" in refused.stderr and "restore" not in refused.stderr
    assert not (root / "b").exists()


def test_what_is_no_backup_is_refused_before_a_passphrase_is_asked_for(root: Path) -> None:
    refused = run(root / "c", "restore", root / "word")
    assert refused.exit_code == 1 and "no backup" in refused.stderr


# --- bugreport ---


def secrets_of(state: Path) -> Iterator[bytes]:
    """Every secret of a state directory, as it may come to stand somewhere: raw, hex, base64 and lines of
    PEM."""
    names = [directory.ROOT_KEY, directory.AUTHORITY_KEY, directory.NODE_KEY, directory.ADMISSION_KEY]
    names += [directory.WIREGUARD_KEYS]
    for path in (*(state / name for name in names), *(state / "invites").glob("*.json")):
        data = path.read_bytes()
        if data.startswith((b"-----", b"{", b"[")):
            yield from (
                line
                for line in data.replace(b'"', b"\n").splitlines()
                if len(line) > 30 and b"-----" not in line
            )
        else:
            yield from (data, data.hex().encode(), base64.b64encode(data), base64.urlsafe_b64encode(data))


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


class Telling(FakeNode):
    """A node in which somebody pasted tokens where text is shown."""

    def __init__(self, invite: str) -> None:
        super().__init__(peers=2)
        self.events.publish("health.degraded", None, {"reasons": [f"pasted {TOKEN} and {invite}"]})
        self.invite = invite

    def status(self) -> Status:
        return msgspec.structs.replace(super().status(), advice=[f"{TOKEN} {self.invite}"])


async def test_a_report_has_no_secret_of_the_node(root: Path) -> None:
    invite = run(root / "a", "invite").stdout.strip()
    config = root / "a" / "pm.toml"
    config.write_text(
        f"# {TOKEN} {invite}\n" + config.read_text().replace('level = "info"', 'level = "debug"')
    )
    secrets = [*secrets_of(root / "a" / "state"), TOKEN.encode(), invite.encode()[4:]]
    assert len(secrets) >= 16

    def check() -> None:
        done = run(root / "a", "bugreport", "--output", root / "r.tgz", "--json")
        assert done.exit_code == 0, done.output
        found = unpacked(root / "r.tgz")
        assert {
            "phantommesh/node/status.json",
            "phantommesh/node/metrics.txt",
            "phantommesh/config.toml",
        } <= found.keys()
        assert (
            b"pm-1" in found["phantommesh/node/peers.json"] and b'"debug"' in found["phantommesh/config.toml"]
        )
        assert b"pmt_***" in found["phantommesh/node/status.json"]
        whole = b"\n".join(found.values())
        assert [secret for secret in secrets if secret in whole] == []
        assert (root / "r.tgz").stat().st_mode & 0o777 == 0o600
        assert run(root / "a", "bugreport", "--output", root / "r.tgz").exit_code == 1

    async with trio.open_nursery() as nursery:
        socket = root / "a" / "api.sock"
        await nursery.start(
            partial(serve_api, Telling(invite), socket_path=socket, group="no-such-group-here")
        )
        await trio.to_thread.run_sync(check)
        nursery.cancel_scope.cancel()


def test_the_search_for_secrets_finds_one(root: Path) -> None:
    """The state itself has all that the test above looks for."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(root / "a" / "state")
    assert sum(secret in out.getvalue() for secret in secrets_of(root / "a" / "state")) >= 12


def test_a_report_that_does_not_fit_leaves_nothing_in_the_way(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at = root / "r.tgz"
    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "addfile", full)
        refused = run(root / "a", "bugreport", "--output", at)
    assert (
        refused.exit_code == 1 and "No space left" in refused.stderr and "free some space" in refused.stderr
    )
    assert not at.exists()
    assert run(root / "a", "bugreport", "--output", at).exit_code == 0
    whole = at.read_bytes()
    monkeypatch.setattr(os.path, "lexists", lambda _: False)  # somebody makes the file just then
    second = run(root / "a", "bugreport", "--output", at)
    assert second.exit_code == 1 and "another name" in second.stderr and at.read_bytes() == whole


def test_a_report_is_made_without_a_node_or_anything(tmp_path: Path) -> None:
    done = run(tmp_path, "bugreport", "--output", tmp_path / "r.tgz", "--json")
    assert done.exit_code == 0
    missing: Sequence[str] = json.loads(done.stdout)["missing"]
    assert {"node", "config.toml", "state.json"} <= set(missing)
    assert "phantommesh/machine/uname.txt" in unpacked(tmp_path / "r.tgz")


# --- upgrade-check ---


def test_a_state_of_this_version_is_read_and_one_of_another_is_refused(root: Path) -> None:
    state = root / "a" / "state"
    good = run(root / "a", "upgrade-check", "--json")
    assert good.exit_code == 0 and json.loads(good.stdout)["ok"], good.output
    (state / directory.BANS).write_text("{")
    lost = json.loads(run(root / "a", "upgrade-check", "--json").stdout)
    assert lost["ok"] and [one["what"] for one in lost["checks"] if one["result"] == "lost"] == [
        directory.BANS
    ]
    (state / directory.FORMAT_FILE).write_text("phantommesh state 2\n")
    refused = run(root / "a", "upgrade-check")
    assert refused.exit_code == 1 and "another version" in refused.stdout
    (root / "a" / "pm.toml").write_text("[log]\nlevel = 3\n")
    assert "configuration" in run(root / "a", "upgrade-check").stdout


async def test_a_key_that_waits_says_how_to_start_again_only_where_a_node_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("phantommesh.cli.service"), "systemd_runs", lambda: False)
    at = root / "a"
    quiet = await trio.to_thread.run_sync(run, at, "set", "wireguard.mtu=1300")
    assert quiet.stdout == "wireguard.mtu: counts from the node's next start on\n" and quiet.stderr == ""
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(serve_api, FakeNode(), socket_path=at / "api.sock", group="no-such-group")
        )
        told = await trio.to_thread.run_sync(run, at, "set", "wireguard.mtu=1310")
        nursery.cancel_scope.cancel()
    options = f"phantommesh --state-dir {at}/state --config {at}/pm.toml"
    assert told.stderr == f"next: {options} down && {options} run\n"


async def test_a_node_looks_at_its_file_also_for_a_key_that_waits(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its status would not say that it has to be restarted."""
    node, at = FakeNode(), root / "a"

    def hang_up(state_dir: Path) -> bool:
        assert state_dir == at / "state" and "mtu = 1310" in (at / "pm.toml").read_text()
        told = {"keys": [], "restart": ["wireguard.mtu"]}
        trio.from_thread.run_sync(node.events.publish, "config.taken", None, told)
        return True

    monkeypatch.setattr(lock, "hang_up", hang_up)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_api, node, socket_path=at / "api.sock", group="no-such-group"))
        done = await trio.to_thread.run_sync(run, at, "set", "wireguard.mtu=1310", "--json")
        nursery.cancel_scope.cancel()
    said = json.loads(done.stdout)
    assert (said["taken"], said["restart"], said["reloaded"]) == ([], ["wireguard.mtu"], True)


_HOLD = """
import fcntl, sys
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_node_that_starts_is_not_said_to_be_stopped(root: Path) -> None:
    at = root / "a"
    words = ["status"], ["wait", "--timeout", "1s"]
    for each in words:
        assert "the node is not running" in run(at, *each).stderr
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, at / "state" / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for each in words:
            told = run(at, *each)
            assert told.exit_code == 3
            assert f"the node is starting or leaving (pid {other.pid})" in told.stderr
            assert "not running" not in told.stderr and "wait" in told.stderr
        other.stdin.close()
    assert "the node is not running" in run(at, "status").stderr
