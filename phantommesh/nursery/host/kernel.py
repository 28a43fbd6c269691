# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's WireGuard, over generic netlink."""

import errno
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count

import trio

from phantommesh.nursery.host import errors, netlink
from phantommesh.nursery.host.errors import ApplyError, BackendError
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.nursery.host.wgmessages import encode_set
from phantommesh.wireguard.device import DeviceState, Report
from phantommesh.wireguard.diff import DeviceDiff
from phantommesh.wireguard.netlink import decode_device, decode_family, encode_get, encode_get_family

_NETLINK_GENERIC = 16


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
        self._batches: Counter[str] = Counter()

    @property
    def ipv6(self) -> bool:
        """Whether this host can hold IPv6 addresses now: an administrator may turn that off and on."""
        return netlink.ipv6_available()

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

    async def resend(self, devices: Mapping[str, DeviceState]) -> None:
        """The kernel looks at its own addresses with each change of its routes: nothing is to be done."""

    async def close(self, *, remove: Collection[str]) -> None:
        """Delete the named interfaces if they are ours."""
        await trio.to_thread.run_sync(self._remove, remove)

    def _devices(self, names: Collection[str]) -> dict[str, DeviceState]:
        links = {
            name: link
            for name, link in netlink.read_links(names).items()
            if link.ours and link.kind == "wireguard"
        }
        reports = _reports(links)
        return {name: link.state(name, reports[name]) for name, link in links.items() if name in reports}

    def _create(self, name: str, mtu: int) -> None:
        link = netlink.read_links([name]).get(name)
        if link is not None and link.ours and link.kind != "wireguard":
            netlink.delete_link(name)  # the userspace backend's; its process ends with it
            link = None
        if link is None:
            netlink.make_wireguard(name, mtu)
            return
        report = _reports([name]).get(name) if link.kind == "wireguard" else None
        # A crash between making a link and marking it leaves one that is blank.
        if report is None or not (link.ours or report.blank):
            raise errors.taken(name)
        netlink.claim(name, mtu)

    def _apply(self, changes: Sequence[DeviceDiff]) -> None:
        failures: dict[str, BackendError] = {}
        try:
            self._remove([change.name for change in changes if change.remove])
        except ApplyError as error:
            failures.update(error.failures)
        changes = [change for change in changes if not change.remove]
        failures.update(self._configure([change for change in changes if change.changes_wireguard]))
        failures.update(netlink.apply_links([change for change in changes if change.name not in failures]))
        if failures:
            raise ApplyError(failures)

    def _configure(self, changes: Sequence[DeviceDiff]) -> dict[str, BackendError]:
        """Send each change to WireGuard, all over one socket; return the failures by name."""
        failures: dict[str, BackendError] = {}
        waiting = list(changes)
        if not waiting:
            return failures
        try:
            with _WireGuard() as wireguard:
                while waiting:
                    change = waiting[0]
                    try:
                        self._batches[change.name] += wireguard.set(change)
                    except TimeoutError:
                        raise  # an answer that comes later would be taken for that of the next change
                    except OSError as error:
                        failures[change.name] = errors.failed(change.name, "configuring", error)
                    del waiting[0]
        except OSError as error:
            for change in waiting:
                failures[change.name] = errors.failed(change.name, "configuring", error)
        return failures

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


def _reports(names: Collection[str]) -> dict[str, Report]:
    """Read the named devices over one socket, without those that went or are not WireGuard's."""
    found: dict[str, Report] = {}
    if not names:
        return found
    doing = ",".join(names)
    try:
        with _WireGuard() as wireguard:
            for name in names:
                doing = name
                try:
                    found[name] = wireguard.get(name)
                except OSError as error:
                    if error.errno not in (errno.ENODEV, errno.EOPNOTSUPP):
                        raise
    except OSError as error:
        raise errors.failed(doing, "reading", error) from error
    return found


class _WireGuard(NetlinkSocket):
    """A generic netlink socket bound to the ``wireguard`` family. Opened, used and closed in one thread."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_GENERIC)
        self._sequence = count(1)
        try:
            [(_, _, answer)] = self.exchange(encode_get_family(next(self._sequence)))
            self._family = decode_family(answer)
        except BaseException:
            self.close()
            raise

    def get(self, name: str) -> Report:
        """Dump a device."""
        answers = self.exchange(encode_get(self._family, next(self._sequence), name))
        return decode_device(payload for _, _, payload in answers)

    def set(self, change: DeviceDiff) -> int:
        """Send a change; return how many messages that took."""
        messages = encode_set(self._family, next(self._sequence), change)
        for message in messages:
            self.exchange(message)
        return len(messages)
