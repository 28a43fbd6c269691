# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd unit, and the verbs on it, on a machine without systemd."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.cli import cli
from phantommesh.cli.unitfile import CAPABILITIES, Unit, render, state_dir_of
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.overlay import taking_down

service = import_module("phantommesh.cli.service")  # the package has its group by that name


def run(root: Path, *words: str) -> Result:
    at = ["--state-dir", f"{root}/state", "--config", f"{root}/pm.toml", "--socket", f"{root}/none"]
    return CliRunner().invoke(cli, [*at, *words], prog_name="phantommesh")


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a place for units; systemd does not run."""
    place = tmp_path / "units"
    place.mkdir()
    monkeypatch.setattr(service, "UNITS", place)
    monkeypatch.setattr(service, "_PLACES", (place,))
    monkeypatch.setattr(service, "systemd_runs", lambda: False)
    monkeypatch.setattr("phantommesh.cli.base._has_net_admin", lambda: True)
    return place


def split(line: str) -> list[str]:
    """Read a line's words as systemd.syntax(7) does: quotes, C escapes, and then %% and $$."""
    words = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', line)
    return [re.sub(r"\\(.)", r"\1", a or b).replace("%%", "%").replace("$$", "$") for a, b in words]


LETTERS = st.characters(codec="utf-8", min_codepoint=32, exclude_characters="/\x7f")
PATHS = st.text(LETTERS, min_size=1, max_size=12)


@given(PATHS, PATHS)
@example("a b", 'q"%$\\')
@example("%h", "$HOME")
def test_a_unit_starts_just_this_node(state: str, config: str) -> None:
    unit = Unit(("/opt/a b/phantommesh",), Path("/srv", state), Path("/etc", config, "pm.toml"))
    try:
        text = render(unit)
    except ValueError:
        assert re.search(r"[\x00-\x1f\x7f]", state + config)
        return
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert split(line) == list(unit.command)
    (line,) = re.findall(r"^ReadWritePaths=(.*)$", text, re.MULTILINE)
    assert f"-{unit.state_dir}" in [word.replace("$$", "$") for word in split(line)] or "$$" in state
    assert state_dir_of(text) == unit.state_dir


def test_a_path_with_a_line_break_makes_no_unit() -> None:
    with pytest.raises(ValueError, match="control character"):
        render(Unit(("/x",), Path("/a\nExecStartPre=/bin/evil"), Path("/etc/pm.toml")))


@pytest.mark.parametrize(
    ("program", "state", "homes"),
    [
        ("/usr/bin/x", "/var/lib/x", "yes"),
        ("/home/u/x", "/var/x", "read-only"),
        ("/usr/bin/x", "/root/x", "no"),
    ],
)
def test_homes_are_closed_where_the_node_does_not_live_there(program: str, state: str, homes: str) -> None:
    assert f"\nProtectHome={homes}\n" in render(Unit((program,), Path(state), Path("/etc/pm/pm.toml")))


def test_a_unit_asks_for_signs_of_life_and_leaves_few_rights() -> None:
    text = render(Unit(("/x",), Path("/s"), Path("/c/pm.toml")))
    for line in ("Type=notify", "WatchdogSec=60", "NoNewPrivileges=yes", "Restart=always"):
        assert line in text.splitlines()
    assert f"CapabilityBoundingSet={' '.join(CAPABILITIES)}" in text and "CAP_SYS_ADMIN" not in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("name", ["state", "a b", "per%cent", "dollar$x"])
def test_systemd_takes_the_unit(tmp_path: Path, name: str) -> None:
    file = tmp_path / "phantommesh.service"
    file.write_text(render(Unit((sys.executable,), tmp_path / name, tmp_path / "pm.toml")))
    assert verify(["systemd-analyze", "verify", str(file)]) == ""
    file.write_text(file.read_text().replace("Type=notify", "Type=notifi"))
    assert "notifi" in verify(["systemd-analyze", "verify", str(file)]), "it sees no fault"


def verify(command: Sequence[str]) -> str:
    """What it says of our unit; others of this machine are not ours to mend."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if "phantommesh.service" in line)


def test_a_unit_is_installed_for_one_node_and_never_over_another(tmp_path: Path, units: Path) -> None:
    shown = run(tmp_path, "service", "install", "--dry-run")
    assert shown.exit_code == 0 and list(units.iterdir()) == []
    done = run(tmp_path, "service", "install")
    assert done.exit_code == 0, done.output
    file = units / "phantommesh.service"
    assert file.read_text() == shown.stdout and file.stat().st_mode & 0o777 == 0o644
    assert run(tmp_path, "service", "install").exit_code == 0
    other = run(tmp_path / "other", "service", "install")
    assert other.exit_code == 1 and f"for the node of {tmp_path}/state" in other.stderr
    file.write_text("[Service]\nExecStart=/bin/true\n")
    assert "somebody else's" in run(tmp_path, "service", "install").stderr
    assert run(tmp_path, "service", "install", "--force").exit_code == 0
    assert run(tmp_path / "other", "service", "uninstall").exit_code == 1
    assert run(tmp_path, "service", "uninstall").exit_code == 0
    assert list(units.iterdir()) == []


class Systemd:
    """Notes what is asked of systemctl. ``active``: whether the unit runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, active: bool = True, fails: str = "") -> None:
        self.asked: list[str] = []
        self.active, self.fails = active, fails
        monkeypatch.setattr(service, "systemd_runs", lambda: True)
        monkeypatch.setattr(service, "_systemctl", self.run)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.asked.append(" ".join(words))
        bad = words[0] == self.fails or (words[0] == "is-active" and not self.active)
        return subprocess.CompletedProcess(words, int(bad), "", "refused" if bad else "")


def test_up_starts_the_service_that_is_installed(
    tmp_path: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "phantommesh join" in run(tmp_path, "up").stderr, "there is nothing to start yet"
    (tmp_path / "state").mkdir()
    (tmp_path / "pm.toml").touch()
    none = run(tmp_path, "up")
    assert none.exit_code == 1 and "up --foreground" in none.stderr
    systemd = Systemd(monkeypatch)
    assert "service install" in run(tmp_path, "up").stderr
    assert run(tmp_path, "service", "install").exit_code == 0
    assert run(tmp_path, "up").exit_code == 0
    assert systemd.asked == ["daemon-reload", "enable phantommesh.service", "start phantommesh.service"]
    (tmp_path / "other" / "state").mkdir(parents=True)
    (tmp_path / "other" / "pm.toml").touch()
    assert "service install" in run(tmp_path / "other", "up").stderr, "it is another node's"
    Systemd(monkeypatch, fails="start")
    failed = run(tmp_path, "up")
    assert failed.exit_code == 1 and "journalctl" in failed.stderr


def test_who_is_told_to_start_the_node_is_told_how_it_starts_here(
    tmp_path: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fix() -> str:
        return re.sub(r" --(state-dir|config) \S+", "", run(tmp_path, "status").stderr.splitlines()[-1])

    assert "run `phantommesh init` to make one, or `phantommesh join`" in fix()
    (tmp_path / "pm.toml").touch()
    assert fix() == "fix: start it with `phantommesh run`, or pass --socket"
    Systemd(monkeypatch)
    assert "`phantommesh service install && phantommesh up`" in fix()
    assert run(tmp_path, "service", "install").exit_code == 0
    assert "`phantommesh up`" in fix()


def test_down_stops_the_service_first_and_goes_no_further_where_it_cannot(
    tmp_path: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    async def take(*_: object, **__: object) -> None:
        taken.append("down")
        raise PhantomMeshError("this test takes nothing off the host")

    for name in ("down", "leave"):
        monkeypatch.setattr(taking_down, name, take)
    assert run(tmp_path, "service", "install").exit_code == 0
    systemd = Systemd(monkeypatch)
    assert "takes nothing off" in run(tmp_path, "down").stderr
    assert systemd.asked == ["is-active --quiet phantommesh.service", "stop phantommesh.service"]
    systemd = Systemd(monkeypatch, active=False)
    run(tmp_path, "down")
    assert systemd.asked == ["is-active --quiet phantommesh.service"]
    systemd = Systemd(monkeypatch)
    run(tmp_path, "leave")
    assert systemd.asked[-1] == "disable --now phantommesh.service"
    Systemd(monkeypatch, fails="stop")
    taken.clear()
    refused = run(tmp_path, "down")
    assert taken == []
    assert refused.exit_code == 1 and "would start the node again" in refused.stderr
