# SPDX-License-Identifier: GPL-3.0-or-later
"""Userspace WireGuard, ``wireguard-go`` or ``boringtun-cli``: a process an interface, reached by its socket.

The processes are no children of the node, and each has a session of its own, so that it carries packets on
when the node is killed, and the next run finds it by its socket and adopts it. Nothing waits for one to die
either; the reconciler sees that it is gone and starts another.
"""

import os
import shutil
import signal
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

import trio

from phantommesh.nursery.host import errors, netlink
from phantommesh.nursery.host.errors import ApplyError, BackendError
from phantommesh.wireguard.device import DeviceState, Report
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff
from phantommesh.wireguard.uapi import (
    GET,
    MAX_RESPONSE,
    UapiError,
    check_set,
    encode_set,
    encode_set_boringtun,
    is_whole,
    parse_get,
)

SOCKETS = Path("/var/run/wireguard")
"""The directory in which both programs, and ``wg``, look for sockets; compiled into them. Network namespaces
share it unless each mounts a directory of its own over it."""

INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")

PROGRAMS = ("wireguard-go", "boringtun-cli")
"""In order of preference."""

_ANSWER_SECONDS = 5.0  # a process that takes longer to answer is hung
_START_SECONDS = 10.0
_STOP_SECONDS = 3.0  # from SIGTERM to SIGKILL
# Bytes of a process's log; beyond, the node cuts it down to its end. While no node runs, a process writes
# nothing but errors; its log is cut when the next node has started.
_LOG_MOST, _LOG_KEPT = 1 << 20, 1 << 16
_POLL_SECONDS = 0.02  # between looks at a process that is starting

# The shell prints the process id and ends, so that the process is no child of ours. The programs can go to
# the background on their own, but then the socket was opened by a process that is gone, and its credentials
# name that one.
_IN_BACKGROUND = '"$@" >&2 & echo $!'


@dataclass(frozen=True, slots=True)
class _Process:
    """The process behind a socket, found by the socket's peer credentials."""

    pid: int
    program: str  # empty when it is none of PROGRAMS
    local: bool  # whether it is in our network namespace


class UserspaceBackend:
    """Backend over processes of ``program``, a path. Needs root and /dev/net/tun."""

    name = "userspace"

    def __init__(self, program: Path) -> None:
        self.program = program
        self._batches: Counter[str] = Counter()

    @property
    def ipv6(self) -> bool:
        """Whether this host can hold IPv6 addresses now: an administrator may turn that off and on."""
        return netlink.ipv6_available()

    @classmethod
    def find(cls) -> "UserspaceBackend":
        """Use the first of PROGRAMS on PATH. Raises BackendError when there is none, or no tun device."""
        found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
        if found is None:
            raise BackendError("no userspace WireGuard on PATH", fix="install wireguard-go or boringtun-cli")
        if not Path("/dev/net/tun").exists():
            raise BackendError(
                "/dev/net/tun is missing",
                fix="load the module (modprobe tun), or give the container the device /dev/net/tun",
            )
        return cls(Path(found).resolve())

    @property
    def batches(self) -> Mapping[str, int]:
        """Set operations done so far, by interface."""
        return self._batches

    async def devices(self, names: Collection[str]) -> dict[str, DeviceState]:
        """Read those of the named interfaces that exist, are ours and answer."""
        reports: dict[str, Report] = {}
        for name in names:
            _bound_log(SOCKETS / f"{name}.log")

        async def read(name: str) -> None:
            process, report = await self._look(name)
            if process is not None and process.local and report is not None:
                reports[name] = report

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(read, name)
        links = await trio.to_thread.run_sync(netlink.read_links, list(reports)) if reports else {}
        return {name: link.state(name, reports[name]) for name, link in links.items() if link.ours}

    async def create(self, name: str, mtu: int) -> None:
        """Start a process for an interface, after ending one that hangs or whose interface was deleted.

        An interface of ours without a process, or with one that lost its socket, is replaced. A process that
        nobody has configured yet is taken over.
        """
        process, report = await self._look(name)
        link = (await trio.to_thread.run_sync(netlink.read_links, [name])).get(name)
        blank = process is not None and process.program and report is not None and report.blank
        if link is not None and not (link.ours or blank):
            raise errors.taken(name)
        if process is not None and not process.local:
            raise BackendError(
                f"{_socket_path(name)} belongs to another network namespace",
                fix=f"mount a directory of its own on {SOCKETS} in each network namespace, or change prefix "
                "in [wireguard]",
            )
        if link is not None and process is None:
            await trio.to_thread.run_sync(netlink.delete_link, name)
            link = None
        if process is not None and (link is None or report is None):
            await self._stop(name, hung=report is None)
            link = None
        if link is None:
            await self._start(name)
        await trio.to_thread.run_sync(netlink.claim, name, mtu)

    async def apply(self, changes: Sequence[DeviceDiff]) -> None:
        """Apply each change, WireGuard first, so that no interface comes up before its keys are set."""
        failures: dict[str, BackendError] = {}

        async def configure(change: DeviceDiff) -> None:
            try:
                if change.remove:
                    await self.close(remove=[change.name])
                elif change.changes_wireguard:
                    await self._set(change)
            except BackendError as error:
                failures[change.name] = error

        async with trio.open_nursery() as nursery:
            for change in changes:
                nursery.start_soon(configure, change)
        rest = [change for change in changes if not change.remove and change.name not in failures]
        failures.update(await trio.to_thread.run_sync(netlink.apply_links, rest))
        if failures:
            raise ApplyError(failures)

    async def resend(self, devices: Mapping[str, DeviceState]) -> None:
        """Set the endpoint of each peer to what it is, which makes wireguard-go forget the address of ours
        that it was reached from. With an address that is gone it sends nothing for up to 15 s: it tries
        without where the kernel says EINVAL, and kernels say ENETUNREACH. boringtun keeps no address."""
        changes = [
            DeviceDiff(name, peers=tuple(
                PeerDiff(peer.public_key, endpoint=peer.endpoint)
                for peer in device.peers.values() if peer.endpoint is not None
            ))
            for name, device in devices.items()
        ]  # fmt: skip
        if self.program.name != "boringtun-cli":
            await self.apply([change for change in changes if change.peers])

    async def close(self, *, remove: Collection[str]) -> None:
        """End the processes of the named interfaces if they are ours, which removes the interfaces."""
        failures: dict[str, BackendError] = {}

        async def stop(name: str) -> None:
            try:
                await self._stop(name)
            except BackendError as error:
                failures[name] = error

        links = await trio.to_thread.run_sync(netlink.read_links, remove)
        async with trio.open_nursery() as nursery:
            for name in (name for name, link in links.items() if link.ours):
                nursery.start_soon(stop, name)
        if failures:
            raise ApplyError(failures)

    async def _look(self, name: str) -> tuple[_Process | None, Report | None]:
        """Return the process behind a socket and its report; that is None when it hangs or talks nonsense."""
        process: _Process | None = None
        with trio.move_on_after(_ANSWER_SECONDS):
            try:
                async with _connection(name) as (process, stream):
                    return process, parse_get(await _ask(stream, GET), time())
            except (OSError, trio.BrokenResourceError, UapiError):
                pass
        return process, None

    async def _set(self, change: DeviceDiff) -> None:
        name = change.name
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                async with _connection(name) as (process, _):
                    boringtun = process.program == "boringtun-cli"
                for request in encode_set_boringtun(change) if boringtun else [encode_set(change)]:
                    async with _connection(name) as (_, stream):
                        self._batches[name] += 1
                        check_set(await _ask(stream, request))
        except UapiError as error:
            if error.code:
                raise errors.failed(name, "configuring", OSError(error.code, "")) from None
            raise BackendError(
                f"interface {name}: configuring: {error}",
                fix="use a wireguard-go or boringtun-cli of a version that is known to work, or the kernel's",
            ) from None
        except OSError as error:
            raise errors.failed(name, "configuring", error) from error
        except (trio.BrokenResourceError, trio.TooSlowError):
            raise BackendError(
                f"interface {name}: its userspace WireGuard does not answer",
                fix="see what stops it; if it hangs, end it: the node starts another one by itself",
            ) from None

    async def _start(self, name: str) -> None:
        """Start the program and wait until its socket answers."""
        await trio.Path(SOCKETS).mkdir(mode=0o755, parents=True, exist_ok=True)
        arguments = [str(self.program), "-f", name]
        if self.program.name == "boringtun-cli":
            arguments[1:1] = ["--disable-drop-privileges"]
        log_path = SOCKETS / f"{name}.log"
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LOG_LEVEL": "error"}
        try:
            # It goes on writing at the end where the file is cut meanwhile.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
            descriptor = os.open(log_path, flags, 0o600)
            try:
                shell = await trio.run_process(
                    ["sh", "-c", _IN_BACKGROUND, "sh", *arguments],
                    capture_stdout=True,
                    stderr=descriptor,
                    check=False,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                )
            finally:
                os.close(descriptor)
            with trio.fail_after(_START_SECONDS):
                while (await self._look(name))[1] is None:
                    if not _runs(int(shell.stdout)):
                        said = await trio.Path(log_path).read_text(errors="replace")
                        last = (said.strip().splitlines() or ["it said nothing"])[-1]
                        fix = fix_of(said, _instances()) or f"see {log_path}"
                        raise BackendError(f"interface {name}: {self.program.name} ended: {last}", fix=fix)
                    await trio.sleep(_POLL_SECONDS)
        except trio.TooSlowError:
            raise BackendError(
                f"interface {name}: {self.program.name} did not answer in {_START_SECONDS:.0f} s",
                fix=f"see {log_path}",
            ) from None
        except OSError as error:
            raise errors.failed(name, f"starting {self.program.name}", error) from error

    async def _stop(self, name: str, *, hung: bool = False) -> None:
        """End the process behind an interface of this namespace, and wait until it is gone."""
        try:
            async with _connection(name) as (process, _):
                if not process.local or not process.program:
                    return
                handle = os.pidfd_open(process.pid)  # the open connection shows that it has not ended yet
        except OSError:
            return  # no such process any more
        try:
            for number in (signal.SIGKILL,) if hung else (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, number)
                with trio.move_on_after(_STOP_SECONDS):
                    await trio.lowlevel.wait_readable(handle)
                    return
            raise BackendError(
                f"interface {name}: process {process.pid} does not end", fix="see what blocks it"
            )
        except ProcessLookupError:
            await trio.lowlevel.checkpoint()
        finally:
            os.close(handle)


def fix_of(said: str, instances: int | None) -> str:
    """Return what mends the end of a process that ``said`` this; empty where that is not known. ``instances``
    is how many inotify instances a user may have: each wireguard-go watches its socket with one."""
    if "too many open files" not in said.lower():
        return ""
    allowed = "" if instances is None else f"; it is {instances} now, for all programs of a user together"
    more = 512 if instances is None else max(512, 2 * instances)
    return (
        "each userspace WireGuard needs an inotify instance, and this user has no more: run `sysctl -w "
        f"fs.inotify.max_user_instances={more}` and write that line to a file in /etc/sysctl.d/{allowed}"
    )


def _instances() -> int | None:
    try:
        return int(INSTANCES.read_text())
    except (OSError, ValueError):
        return None


def _bound_log(path: Path) -> None:
    """Cut a log that has grown too large down to its last lines. Blocks count, not the size: the process of
    an earlier version goes on at its old place, with a hole before it."""
    try:
        if path.lstat().st_blocks * 512 <= _LOG_MOST:
            return
        with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file:
            file.seek(-_LOG_KEPT, os.SEEK_END)
            _, _, kept = file.read().partition(b"\n")
            file.truncate(0)
            file.seek(0)
            file.write(kept)
    except OSError:
        pass  # there is none, or it is as small as it can be


def _socket_path(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


@asynccontextmanager
async def _connection(name: str) -> AsyncIterator[tuple[_Process, trio.SocketStream]]:
    """Connect to an interface's socket. Raises OSError when nobody listens."""
    stream = await trio.open_unix_socket(_socket_path(name))
    async with stream:
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        yield _process(struct.unpack("3i", credentials)[0]), stream


def _process(pid: int) -> _Process:
    """Look a process up in /proc; one that cannot be seen there is in another container, so not ours."""
    try:
        program = Path(f"/proc/{pid}/comm").read_text().strip()
        local = Path(f"/proc/{pid}/ns/net").samefile("/proc/thread-self/ns/net")
    except OSError:
        return _Process(pid, "", local=False)
    return _Process(pid, program if program in PROGRAMS else "", local)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def _ask(stream: trio.SocketStream, request: bytes) -> bytes:
    await stream.send_all(request)
    response = bytearray()
    while not is_whole(response):
        part = await stream.receive_some(65536)
        response += part
        if not part or len(response) > MAX_RESPONSE:
            raise UapiError("an answer without an end")
    return bytes(response)
