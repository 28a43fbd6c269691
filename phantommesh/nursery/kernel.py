# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's WireGuard, over generic netlink."""

import errno
import os
import socket
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from types import TracebackType

import trio

from phantommesh.nursery import netlink
from phantommesh.nursery.netlink import ApplyError, BackendError
from phantommesh.wgnetlink import (
    DONE,
    DUMP_INTERRUPTED,
    ERROR,
    GENL_CONTROL,
    NetlinkFormatError,
    decode_device,
    decode_errno,
    decode_family,
    encode_get,
    encode_get_family,
    encode_set,
    split_messages,
)
from phantommesh.wireguard import DeviceDiff, DeviceState, Report

_NETLINK_GENERIC = 16
_TIMEOUT = 10.0  # seconds; the kernel answers at once, so this only guards against waiting for ever
_BUFFER = 1 << 17  # bytes; the kernel never makes a dump message larger than 32 KiB
_DUMP_ATTEMPTS = 5


def kernel_has_wireguard() -> bool:
    """Whether this kernel knows WireGuard, after loading the module if it can. Blocks."""
    try:
        with _WireGuard():
            return True
    except OSError:
        return False


class KernelBackend:
    """Backend over the kernel's own WireGuard. Needs CAP_NET_ADMIN."""

    name = "kernel"

    def __init__(self) -> None:
        self.ipv6 = netlink.ipv6_available()
        self._batches: Counter[str] = Counter()

    @property
    def batches(self) -> Mapping[str, int]:
        """Set messages sent so far, by interface."""
        return self._batches

    async def devices(self, names: Collection[str]) -> dict[str, DeviceState]:
        """Read those of the named interfaces that exist and are ours."""
        return await trio.to_thread.run_sync(self._devices, names)

    async def create(self, name: str, mtu: int) -> None:
        """Make an interface; one that is WireGuard's but that nobody configured is taken over."""
        await trio.to_thread.run_sync(self._create, name, mtu)

    async def apply(self, changes: Sequence[DeviceDiff]) -> None:
        """Apply each change, WireGuard first, so that no interface comes up before its keys are set."""
        await trio.to_thread.run_sync(self._apply, changes)

    async def close(self, *, remove: Collection[str]) -> None:
        """Delete the named interfaces if they are ours."""
        await trio.to_thread.run_sync(self._remove, remove)

    def _devices(self, names: Collection[str]) -> dict[str, DeviceState]:
        links = netlink.read_links(names)
        found: dict[str, DeviceState] = {}
        for name, link in links.items():
            if link.ours and link.kind == "wireguard":
                report = self._report(name)
                if report is not None:
                    found[name] = link.state(name, report)
        return found

    def _create(self, name: str, mtu: int) -> None:
        link = netlink.read_links([name]).get(name)
        if link is not None and link.ours and link.kind != "wireguard":
            netlink.delete_link(name)  # the userspace backend's; its process ends with it
            link = None
        if link is None:
            netlink.make_wireguard(name, mtu)
            return
        report = self._report(name) if link.kind == "wireguard" else None
        # A crash between making a link and marking it leaves one that is blank.
        if report is None or not (link.ours or report.blank):
            raise netlink.taken(name)
        netlink.claim(name, mtu)

    def _report(self, name: str) -> Report | None:
        try:
            with _WireGuard() as wireguard:
                return wireguard.get(name)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
                return None  # it went between the two reads, or is not WireGuard's
            raise netlink.failed(name, "reading", error) from error

    def _apply(self, changes: Sequence[DeviceDiff]) -> None:
        failures: dict[str, BackendError] = {}
        try:
            self._remove([change.name for change in changes if change.remove])
        except ApplyError as error:
            failures.update(error.failures)
        changes = [change for change in changes if not change.remove]
        for change in changes:
            if change.changes_wireguard:
                try:
                    with _WireGuard() as wireguard:
                        self._batches[change.name] += wireguard.set(change)
                except OSError as error:
                    failures[change.name] = netlink.failed(change.name, "configuring", error)
        failures.update(netlink.apply_links([change for change in changes if change.name not in failures]))
        if failures:
            raise ApplyError(failures)

    def _remove(self, names: Collection[str]) -> None:
        failures: dict[str, BackendError] = {}
        for name, link in netlink.read_links(names).items():
            if link.ours:
                try:
                    netlink.delete_link(name)
                except BackendError as error:
                    failures[name] = error
        if failures:
            raise ApplyError(failures)


class _WireGuard:
    """A generic netlink socket bound to the ``wireguard`` family. Opened, used and closed in one thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
        )
        self._sequence = count(1)
        self._family = 0

    def __enter__(self) -> "_WireGuard":
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.bind((0, 0))
            answer = self._exchange(encode_get_family(next(self._sequence)))
            self._family = decode_family(answer[0][1])
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def get(self, name: str) -> Report:
        """Dump a device, again if it changed meanwhile."""
        attempts = 0
        while True:
            answers = self._exchange(encode_get(self._family, next(self._sequence), name))
            attempts += 1
            if attempts == _DUMP_ATTEMPTS or not any(flags & DUMP_INTERRUPTED for flags, _ in answers):
                break
        try:
            return decode_device(payload for _, payload in answers)
        except NetlinkFormatError as error:
            raise OSError(errno.EBADMSG, str(error)) from error

    def set(self, change: DeviceDiff) -> int:
        """Send a change; return how many messages that took."""
        messages = encode_set(self._family, next(self._sequence), change)
        for message in messages:
            self._exchange(message)
        return len(messages)

    def _exchange(self, request: bytes) -> list[tuple[int, bytes]]:
        """Send a request and collect (flags, payload) of the answers up to the end or acknowledgement."""
        self._socket.send(request)
        answers: list[tuple[int, bytes]] = []
        while True:
            for kind, flags, _, payload in split_messages(self._socket.recv(_BUFFER)):
                if kind in (ERROR, DONE):
                    code = decode_errno(payload)
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answers
                if kind in (GENL_CONTROL, self._family):
                    answers.append((flags, payload))
