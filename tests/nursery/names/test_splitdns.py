# SPDX-License-Identifier: GPL-3.0-or-later
"""What this machine's resolver is told, by a stand-in for the bus; the hosts file is real."""

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

import pytest
import trio

from phantommesh.config.sections import DnsSection
from phantommesh.names import hosts as hosts_file
from phantommesh.names.zone import Host
from phantommesh.nursery.names import split as splitdns
from phantommesh.nursery.names.split import SplitDns, SplitDnsError

PATIENCE = 30.0  # s; a guard only
ALPHA = Host("alpha", IPv4Address("100.64.1.2"), IPv6Address("fd12:3456:789a::1"))
BETA = Host("beta", IPv4Address("100.64.1.3"), IPv6Address("fd12:3456:789a::2"))
PLAIN = "127.0.0.1 localhost\n"
ZONES = ["pm.internal", "64.100.in-addr.arpa"]

Mode = Literal["auto", "resolved", "hosts", "off"]


class Bus:
    """A systemd-resolved that runs, or not, and what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pid: int | None = 40
        self.index = 7
        self.said: list[tuple[str, ...]] = []
        self.searches = 0
        monkeypatch.setattr(splitdns, "_call", self.call)
        monkeypatch.setattr(splitdns, "_is_ours", lambda pid: pid == self.pid)
        monkeypatch.setattr(socket, "if_nametoindex", self.find)
        monkeypatch.setattr(splitdns, "LOOK", 0.01)

    async def call(self, *arguments: str) -> str:
        await trio.lowlevel.checkpoint()
        if arguments[3] == "GetConnectionUnixProcessID":
            self.searches += 1
            if self.pid is None:
                raise SplitDnsError("Could not get owner of name")
            return f"u {self.pid}\n"
        self.said.append(arguments[3:])
        return ""

    def find(self, name: str) -> int:
        assert name == "pm0"
        if not self.index:
            raise OSError
        return self.index

    def methods(self) -> list[str]:
        return [words[0] for words in self.said]


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    return Bus(monkeypatch)


@asynccontextmanager
async def running(
    mode: Mode,
    path: Path,
    hosts: Callable[[], Sequence[Host]] = lambda: [ALPHA],
    *,
    port: int = 53,
    address: Callable[[], IPv4Address] = lambda: IPv4Address("100.64.1.2"),
) -> AsyncIterator[SplitDns]:
    split = SplitDns(
        DnsSection(mode=mode, hosts=str(path), port=port),
        mesh="pm",
        link="pm0",
        server=address,
        zones=ZONES,
        hosts=hosts,
    )
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(split.run)
            yield split
            nursery.cancel_scope.cancel()


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not seen():
            await trio.sleep(0.005)


@pytest.mark.parametrize("mode", ["auto", "resolved"])
async def test_tells_resolved_once_and_takes_it_back(bus: Bus, tmp_path: Path, mode: Mode) -> None:
    async with running(mode, tmp_path / "hosts"):
        await until(lambda: "FlushCaches" in bus.methods())
        await trio.sleep(0.05)
    assert bus.said == [
        ("SetLinkDomains", "ia(sb)", "7", "2", "pm.internal", "true", "64.100.in-addr.arpa", "true"),
        ("SetLinkDefaultRoute", "ib", "7", "false"),
        ("SetLinkLLMNR", "is", "7", "no"),
        ("SetLinkMulticastDNS", "is", "7", "no"),
        ("SetLinkDNSSEC", "is", "7", "no"),
        ("SetLinkDNSOverTLS", "is", "7", "no"),
        ("SetLinkDNS", "ia(iay)", "7", "1", "2", "4", "100", "64", "1", "2"),
        ("FlushCaches",),
        ("RevertLink", "i", "7"),
    ]
    assert bus.searches == 1
    assert not (tmp_path / "hosts").exists()


async def test_another_port_is_told_too(bus: Bus, tmp_path: Path) -> None:
    async with running("resolved", tmp_path / "hosts", port=5353):
        await until(lambda: "FlushCaches" in bus.methods())
    assert ("SetLinkDNSEx", "ia(iayqs)", "7", "1", "2", "4", "100", "64", "1", "2", "5353", "") in bus.said


@pytest.mark.parametrize("change", ["link", "resolved", "address"])
async def test_tells_it_again_when_it_matters(bus: Bus, tmp_path: Path, change: str) -> None:
    address = [IPv4Address("100.64.1.2")]
    async with running("auto", tmp_path / "hosts", address=lambda: address[0]):
        await until(lambda: bus.methods().count("FlushCaches") == 1)
        match change:
            case "link":
                bus.index = 0
                await trio.sleep(0.03)
                assert bus.methods().count("FlushCaches") == 1
                bus.index = 8
            case "resolved":
                bus.pid = 41
            case _:
                address[0] = IPv4Address("100.64.1.3")
        await until(lambda: bus.methods().count("FlushCaches") == 2)
    assert bus.said[-1] == ("RevertLink", "i", "8" if change == "link" else "7")


async def test_a_resolved_of_another_namespace_is_not_told(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitdns, "_is_ours", lambda pid: False)
    async with running("auto", tmp_path / "hosts"):
        await until(lambda: bus.searches == 1)
        await trio.sleep(0.03)
    assert not bus.said


async def test_auto_without_resolved_touches_nothing(
    bus: Bus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.pid = None
    async with running("auto", tmp_path / "hosts"):
        await until(lambda: bus.searches == 1)
        await trio.sleep(0.05)
        assert bus.searches == 1  # each costs a process
    assert not bus.said
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count('dns.mode to "hosts"') == 1


async def test_resolved_that_comes_later_is_told(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(splitdns, "SEARCH", 0.01)
    bus.pid = None
    async with running("resolved", tmp_path / "hosts"):
        await until(lambda: bus.searches > 3)
        bus.pid = 40
        await until(lambda: "FlushCaches" in bus.methods())
    assert capsys.readouterr().out.count("systemctl enable") == 1


async def test_hosts_mode_follows_the_members_and_leaves_nothing(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(PLAIN)
    hosts = [ALPHA]
    async with running("hosts", path, lambda: hosts) as split:
        await until(lambda: "alpha.pm.internal" in path.read_text())
        hosts.append(BETA)
        split.changed()
        await until(lambda: "100.64.1.3\tbeta.pm.internal\n" in path.read_text())
        path.write_text(PLAIN + "10.0.0.1 db\n")  # an editor that knew nothing of us
        await until(lambda: "beta" in path.read_text())
        assert path.read_text().startswith(PLAIN + "10.0.0.1 db\n# BEGIN phantommesh pm\n")
    assert path.read_text() == PLAIN + "10.0.0.1 db\n"
    assert not bus.said


async def test_hosts_mode_says_what_is_wrong_once_and_goes_on(
    bus: Bus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hosts"
    path.write_text("# BEGIN phantommesh pm\n")
    async with running("hosts", path):
        await trio.sleep(0.1)
        assert path.read_text() == "# BEGIN phantommesh pm\n"
        path.write_text(PLAIN)
        await until(lambda: "alpha" in path.read_text())
    assert capsys.readouterr().out.count("damaged block") == 1


async def test_a_mounted_hosts_file_is_said_to_be_one(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hosts"
    path.write_text(PLAIN)
    replace = hosts_file._replace

    def in_place(*arguments: object) -> object:
        replace(*arguments)  # type: ignore[arg-type]
        return hosts_file.Written.IN_PLACE

    monkeypatch.setattr(hosts_file, "_replace", in_place)
    async with running("hosts", path):
        await until(lambda: "alpha" in path.read_text())
    assert path.read_text() == PLAIN
    assert capsys.readouterr().out.count("rewritten in place") == 1


async def test_off_does_nothing(bus: Bus, tmp_path: Path) -> None:
    async with running("off", tmp_path / "hosts"):
        await trio.sleep(0.03)
    assert not bus.said
    assert not bus.searches
    assert not list(tmp_path.iterdir())


def test_no_other_process_passes_for_resolved() -> None:
    assert not splitdns._is_ours(1)
    assert not splitdns._is_ours(2**22 + 1)
