# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that mark packets by the cgroup of their socket, for classes of traffic.

nf_tables knows a socket's cgroup on the output hook, and not where a packet leaves an interface. So a table
of its own marks what is routed to the mesh's interface, before the scatter rules, which read the mark and
write another. A packet has the mark of the deepest of the cgroups that it is in; an intent matches the mark
of its own cgroup, and those of the cgroups below it that other intents name.

nft resolves a path to the cgroup's number when the rules are loaded. A cgroup that is made anew, as with
each start of a service, has another number: `nursery/dataplane/cgroups.py` loads the rules again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from phantommesh.config.intents import cgroup_mark
from phantommesh.nftables.text import chain_block

FAMILY: Final = "inet"


def table_name(device: str) -> str:
    """The table of the node whose interface is ``device``."""
    return f"phantommesh_cgroups_{device}"


def render(device: str, mount: str, paths: Iterable[str]) -> str:
    """The whole ruleset for these cgroups, all of which have to be there; it takes the place of what the
    table held before. ``mount`` is where their hierarchy begins below /sys/fs/cgroup, with a slash at its
    end if it is not there itself."""
    table = f"{FAMILY} {table_name(device)}"
    deepest = sorted(((path.count("/") + 1, path) for path in paths), key=lambda one: (-one[0], one[1]))
    lines = [
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        *chain_block(
            "which",
            *(
                f'socket cgroupv2 level {level} "{mount}{path}" meta mark set {cgroup_mark(path)} return'
                for level, path in deepest
            ),
        ),
        *chain_block(
            "output",
            "type filter hook output priority -151; policy accept;",  # one before mangle
            f'oifname "{device}" jump which',
        ),
        "}",
    ]
    return "\n".join(lines) + "\n"
