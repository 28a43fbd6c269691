# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors of a WireGuard backend, and what to do about them."""

import errno
import os
from collections.abc import Mapping

from pyroute2.netlink.exceptions import NetlinkError

from phantommesh.errors import PhantomMeshError


class BackendError(PhantomMeshError):
    """A WireGuard or link operation failed. The message names the interface. ``code`` is the kernel's errno,
    or 0."""

    code = 0


class ApplyError(BackendError):
    """Some interfaces could not be changed; the others were. ``failures`` maps each name to its error."""

    def __init__(self, failures: Mapping[str, BackendError]) -> None:
        self.failures = dict(failures)
        first = next(iter(self.failures.values()))
        more = f" (and {len(self.failures) - 1} more interfaces)" if len(self.failures) > 1 else ""
        super().__init__(f"{first}{more}", fix=first.fix)


def taken(name: str) -> BackendError:
    """The error for a name that someone else's interface has."""
    return BackendError(
        f"interface {name} exists and is not PhantomMesh's",
        fix=f"remove it (ip link delete {name}) or choose another prefix in [wireguard]",
    )


def failed(name: str, doing: str, error: OSError | NetlinkError) -> BackendError:
    """Turn a kernel's refusal into an error that names the interface and, where there is one, the fix."""
    code = error.code if isinstance(error, NetlinkError) else error.errno
    fixes = {
        errno.EPERM: "run as root or with CAP_NET_ADMIN",
        errno.EADDRINUSE: "another program has the UDP port: stop it or change base_port in [wireguard]",
        errno.EOPNOTSUPP: "this kernel has no WireGuard: set backend = 'userspace' in [wireguard]",
        errno.EROFS: "mount /proc/sys writable, or set net.ipv4.conf.default.rp_filter=2 on the host",
    }
    reason = os.strerror(code) if code else str(error)
    refused = BackendError(f"interface {name}: {doing}: {reason}", fix=fixes.get(code or 0, ""))
    refused.code = code or 0
    return refused
