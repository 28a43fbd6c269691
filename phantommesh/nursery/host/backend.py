# SPDX-License-Identifier: GPL-3.0-or-later
"""The seam between the reconciler and a WireGuard: the kernel's over netlink, or a userspace one's socket."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import trio

from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.kernel import KernelBackend, kernel_has_wireguard
from phantommesh.nursery.host.userspace import UserspaceBackend
from phantommesh.wireguard.device import DeviceState
from phantommesh.wireguard.diff import DeviceDiff


class Backend(Protocol):
    """One kind of WireGuard. Every method raises BackendError only."""

    @property
    def name(self) -> str:
        """``kernel`` or ``userspace``."""

    @property
    def ipv6(self) -> bool:
        """Whether this host can hold IPv6 addresses."""

    @property
    def batches(self) -> Mapping[str, int]:
        """How many WireGuard set operations each interface has taken so far."""

    async def devices(self, names: Collection[str]) -> dict[str, DeviceState]:
        """Read those of the named interfaces that exist and are ours."""

    async def create(self, name: str, mtu: int) -> None:
        """Make an interface, without keys or peers. Refuses a name that someone else's interface has."""

    async def apply(self, changes: Sequence[DeviceDiff]) -> None:
        """Apply each change, one batch an interface. Tries all of them before it raises ApplyError."""

    async def resend(self, devices: Mapping[str, DeviceState]) -> None:
        """This host's addresses are others: have each of these devices, as just read, send from an address
        that the host has. Raises ApplyError."""

    async def close(self, *, remove: Collection[str]) -> None:
        """Remove the named interfaces if they are ours; leave the others working."""


async def choose(kind: str) -> Backend:
    """Return the backend for ``auto``, ``kernel`` or ``userspace``; auto takes the kernel's where it has one.

    Raises BackendError, saying what to install, when this machine cannot do it.
    """
    if kind not in ("auto", "kernel", "userspace"):
        raise BackendError(f"no WireGuard backend {kind!r}", fix="use auto, kernel or userspace")
    if kind != "userspace" and await trio.to_thread.run_sync(kernel_has_wireguard):
        return KernelBackend()
    if kind == "kernel":
        raise BackendError(
            "this kernel has no WireGuard, or this process may not use it",
            fix="load the module (modprobe wireguard), run as root, or set backend = 'userspace'",
        )
    return UserspaceBackend.find()
