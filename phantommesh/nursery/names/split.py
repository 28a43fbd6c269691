# SPDX-License-Identifier: GPL-3.0-or-later
"""How this machine comes to ask the mesh's name server for the mesh's names, and for nothing else.

Level-triggered as the interfaces are: each pass looks at what systemd-resolved's link or the hosts file
should be and mends it, also after resolved or the interface was made anew. Leaving undoes it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import structlog
import trio

from phantommesh.config.sections import DnsSection
from phantommesh.errors import PhantomMeshError
from phantommesh.names import hosts as hosts_file
from phantommesh.names.zone import Host, hosts_lines

# Tuning.
LOOK = 5.0  # s between passes when nothing has changed
SEARCH = 60.0  # s between looks for a systemd-resolved, each of which costs a process
CALL = 5.0  # s for systemd-resolved to answer
UNDO = 5.0  # s to undo everything when leaving

_RESOLVED: Final = "org.freedesktop.resolve1"
_MANAGER: Final = (_RESOLVED, "/org/freedesktop/resolve1", f"{_RESOLVED}.Manager")
_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_UNKNOWN: Final = "this machine does not know the mesh's names"
_COMM: Final = "systemd-resolve"  # the kernel keeps 15 characters

log = structlog.get_logger("phantommesh.names")


class SplitDnsError(PhantomMeshError):
    """The machine's resolver could not be told of the mesh; says why."""


class SplitDns:
    """Keeps one machine's resolver told.

    ``link``: the interface that stands for the mesh; ``server``: where this node's name server listens;
    ``zones``: the names to send there; ``hosts``: who is in the hosts file.
    """

    def __init__(
        self,
        settings: DnsSection,
        *,
        mesh: str,
        link: str,
        server: Callable[[], IPv4Address],
        zones: Sequence[str],
        hosts: Callable[[], Sequence[Host]],
    ) -> None:
        self._settings, self._mesh, self._link, self._zones = settings, mesh, link, zones
        self._server, self._hosts = server, hosts
        self._told: _Told | None = None
        self._search_at = 0.0  # when to look for a resolved again
        self._wrote = False
        self._in_place = False
        self._said = ""
        self._changed = trio.Event()

    def changed(self) -> None:
        """The hosts or our address have changed: look now."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the resolver told until cancelled, then undo it. A failure is logged once, and tried again."""
        if self._settings.mode == "off":
            return
        try:
            while True:
                self._changed = trio.Event()
                try:
                    await self._look()
                except PhantomMeshError as error:
                    if str(error) != self._said:
                        self._said = str(error)
                        log.warning(_UNKNOWN, error=str(error), fix=error.fix)
                else:
                    self._said = ""
                with trio.move_on_after(LOOK):
                    await self._changed.wait()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + UNDO, shield=True):
                await self._undo()

    async def _look(self) -> None:
        match self._settings.mode:
            case "hosts":
                lines = hosts_lines(self._hosts(), self._mesh)
                self._wrote = True  # even half of it is undone
                await self._write(partial(hosts_file.with_block, mesh=self._mesh, lines=lines))
            case "resolved" | "auto":
                await self._tell()

    async def _tell(self) -> None:
        """Point systemd-resolved at us, if it does not already know this very link and address."""
        if self._told is not None and not await trio.to_thread.run_sync(_is_ours, self._told.pid):
            self._told, self._search_at = None, 0.0  # it has been started anew
        pid = self._told.pid if self._told is not None else await self._search()
        if pid is None:
            return
        try:
            index = socket.if_nametoindex(self._link)
        except OSError:
            self._told, self._search_at = None, 0.0  # it took its settings with it
            return
        wanted = _Told(pid, index, self._server())
        if wanted == self._told:
            return
        await self._configure(wanted)
        self._told = wanted
        log.info("systemd-resolved asks the mesh for its names", link=self._link, zone=self._zones[0])

    async def _search(self) -> int | None:
        """Return resolved's process id, None for none. Raises SplitDnsError where one is asked for."""
        now = trio.current_time()
        if now < self._search_at:
            return None
        pid = await _find_resolved()
        if pid is not None:
            return pid
        if self._settings.mode == "resolved":
            raise SplitDnsError(
                "systemd-resolved does not run in this network namespace",
                fix='start it (systemctl enable --now systemd-resolved), or set dns.mode to "hosts"',
            )
        if not self._search_at:
            log.info(
                _UNKNOWN,
                reason="no systemd-resolved runs here",
                fix=f'set dns.mode to "hosts", or send {self._zones[0]} to {self._server()} in your resolver',
            )
        self._search_at = now + SEARCH
        return None

    async def _configure(self, wanted: _Told) -> None:
        """Domains before the server: a link with a server and no domains would be asked for everything."""
        index = str(wanted.index)
        domains = [word for zone in self._zones for word in (zone, "true")]  # true: for routing, no suffix
        await _call(*_MANAGER, "SetLinkDomains", "ia(sb)", index, str(len(self._zones)), *domains)
        for method, signature, value in (
            ("SetLinkDefaultRoute", "ib", "false"),
            ("SetLinkLLMNR", "is", "no"),
            ("SetLinkMulticastDNS", "is", "no"),
            ("SetLinkDNSSEC", "is", "no"),  # nobody signs .internal; WireGuard has authenticated the answer
            ("SetLinkDNSOverTLS", "is", "no"),
        ):
            try:
                await _call(*_MANAGER, method, signature, index, value)
            except SplitDnsError as error:
                log.debug("systemd-resolved is older than this setting", setting=method, error=str(error))
        address = [str(socket.AF_INET.value), "4", *map(str, wanted.server.packed)]
        if self._settings.port == 53:
            await _call(*_MANAGER, "SetLinkDNS", "ia(iay)", index, "1", *address)
        else:
            port = str(self._settings.port)
            await _call(*_MANAGER, "SetLinkDNSEx", "ia(iayqs)", index, "1", *address, port, "")
        await _call(*_MANAGER, "FlushCaches")

    async def _write(self, change: Callable[[bytes], bytes]) -> None:
        path = Path(self._settings.hosts)
        written = await trio.to_thread.run_sync(hosts_file.write, path, change)
        if written is hosts_file.Written.IN_PLACE and not self._in_place:
            self._in_place = True
            log.warning(
                "the hosts file is a mount and is rewritten in place, which a crash can interrupt",
                path=str(path),
                fix="nothing to do; outside of containers, look why it is mounted",
            )

    async def _undo(self) -> None:
        """Leave the machine as it was found."""
        try:
            if self._told is not None and await trio.to_thread.run_sync(_is_ours, self._told.pid):
                await _call(*_MANAGER, "RevertLink", "i", str(self._told.index))
            if self._wrote:
                await self._write(partial(hosts_file.without_block, mesh=self._mesh))
        except PhantomMeshError as error:
            log.warning("the resolver's settings could not be undone", error=str(error), fix=error.fix)
        self._told, self._wrote = None, False


@dataclass(frozen=True, slots=True)
class _Told:
    """A resolved that was told: its process, our interface's index, our address."""

    pid: int
    index: int
    server: IPv4Address


async def _find_resolved() -> int | None:
    """The process id of the systemd-resolved of this network namespace, without starting one.

    A node in a container or a namespace may reach the host's bus; the host's resolved knows other interfaces
    by the same numbers, so it must not be told.
    """
    try:
        answer = await _call(*_BUS, "GetConnectionUnixProcessID", "s", _RESOLVED)
        pid = int(answer.split()[1])  # "u 1234"
    except (SplitDnsError, ValueError, IndexError):
        return None
    return pid if await trio.to_thread.run_sync(_is_ours, pid) else None


def _is_ours(pid: int) -> bool:
    """Whether a process is a systemd-resolved that sees the interfaces that we see."""
    process, ourselves = Path(f"/proc/{pid}"), Path("/proc/self/ns/net")
    try:
        same = (process / "ns/net").stat().st_ino == ourselves.stat().st_ino
        return same and (process / "comm").read_text(encoding="utf-8").startswith(_COMM)
    except OSError:
        return False


async def _call(*arguments: str) -> str:
    """Call a method over the system bus. Raises SplitDnsError."""
    method = arguments[3]
    try:
        with trio.fail_after(CALL):
            done = await trio.run_process(
                ["busctl", "call", "--", *arguments], capture_stdout=True, capture_stderr=True, check=False
            )
    except OSError as error:
        raise SplitDnsError(f"busctl: {error.strerror}", fix="install systemd") from error
    except trio.TooSlowError:
        raise SplitDnsError(f"systemd-resolved does not answer {method}", fix="see its log") from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise SplitDnsError(f"{method}: {said[-1]}", fix="see `resolvectl status`")
    return done.stdout.decode("utf-8", "replace")
