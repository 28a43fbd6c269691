# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd unit of a node, as text: systemd.unit(5), systemd.service(5), systemd.exec(5).

The node itself says when it is ready and that its event loop turns: `nursery/host/notify.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK: Final = "X-PhantomMesh-StateDir"
"""A key of ours, by which a unit is known as a node's. systemd reads over keys that begin with X-."""

# Tuning.
WATCHDOG_S: Final = 60  # of a loop that does not turn, then it is started anew; busy machines have below 5 s
RESTART_S: Final = 5  # above systemd's limit of 5 starts in 10 s, so that it never gives up
STOP_S: Final = 60  # the node says goodbye for a few seconds, and is given 30 s by `down`

# What the node does by each: interfaces, routes, rules; pings and datagrams from WireGuard's ports; the name
# server at port 53; the API socket's group.
CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_CHOWN")


@dataclass(frozen=True, slots=True)
class Unit:
    """What a unit starts: ``program`` with the global options that lead to this node."""

    program: tuple[str, ...]
    state_dir: Path
    config: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The words of ``ExecStart``."""
        return (*self.program, "--state-dir", str(self.state_dir), "--config", str(self.config), "run")


def render(unit: Unit) -> str:
    """Return the unit's text. Raises ValueError for a path that no unit can name: one with a line break."""
    words = (*unit.command, str(unit.state_dir), str(unit.config.parent))
    if any(re.search(r"[\x00-\x1f\x7f]", word) for word in words):
        raise ValueError("a path has a control character in it")
    writable = [unit.state_dir, unit.config.parent, Path("/etc"), Path("/run")]
    paths = " ".join(dict.fromkeys(_word(f"-{path}") for path in writable))
    return f"""\
[Unit]
Description=PhantomMesh node ({_plain(unit.state_dir.name)})
Wants=network.target
After=network.target nss-lookup.target time-sync.target
{MARK}={_plain(str(unit.state_dir))}

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(_word(word).replace("$", "$$") for word in unit.command)}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec={RESTART_S}
TimeoutStopSec={STOP_S}
WatchdogSec={WATCHDOG_S}
KillMode=mixed

# The kernel lets nothing through that the node does not need. /etc: the hosts file. /run: the API's socket,
# and wireguard-go's.
CapabilityBoundingSet={" ".join(CAPABILITIES)}
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={paths}
ProtectHome={_homes(unit)}
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectClock=yes
ProtectHostname=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
KeyringMode=private
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def state_dir_of(text: str) -> Path | None:
    """The state directory of the node that a unit starts; None for a unit that is not one of ours."""
    found = re.search(rf"^{MARK}=(.+)$", text, re.MULTILINE)
    return None if found is None else Path(found[1].replace("%%", "%"))


def _homes(unit: Unit) -> str:
    """How much of users' homes the node may see: nothing, but where something of its own is there."""
    homes = ("/home", "/root", "/run/user")

    def within(words: Sequence[str]) -> bool:
        return any(word == home or word.startswith(f"{home}/") for word in words for home in homes)

    if within((str(unit.state_dir), str(unit.config))):
        return "no"
    return "read-only" if within(unit.program) else "yes"


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """A word of a list. The percent sign begins a specifier."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return text if re.fullmatch(r"[A-Za-z0-9_./:@%$+=,-]+", text) else f'"{text}"'
