# SPDX-License-Identifier: GPL-3.0-or-later
"""The seam between the reconciler and a WireGuard: the kernel's over netlink, or a userspace one's socket."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from phantommesh.errors import PhantomMeshError
from phantommesh.wireguard import DeviceDiff, DeviceState


class BackendError(PhantomMeshError):
    """A WireGuard or link operation failed. The message names the interface."""


class ApplyError(BackendError):
    """Some interfaces could not be changed; the others were. ``failures`` maps each name to its error."""

    def __init__(self, failures: Mapping[str, BackendError]) -> None:
        self.failures = dict(failures)
        first = next(iter(self.failures.values()))
        more = f" (and {len(self.failures) - 1} more interfaces)" if len(self.failures) > 1 else ""
        super().__init__(f"{first}{more}", fix=first.fix)


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

    async def close(self, *, remove: Collection[str]) -> None:
        """Remove the named interfaces if they are ours; leave the others working."""
