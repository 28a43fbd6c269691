# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules about time: the clock, certificates and keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from phantommesh.hostcheck.finding import Finding, Rule
from phantommesh.hostcheck.seen import HostSeen
from phantommesh.moments import rfc3339, span

CLOCK_LOOSE = Rule("clock-unsynchronised", "medium", "Nothing keeps this machine's clock right")
CERTIFICATE_OVER = Rule("certificate-over", "high", "The node's certificate does not hold")
CERTIFICATE_ENDING = Rule("certificate-ending", "medium", "The node's certificate runs out soon")
MESH_ENDING = Rule("mesh-ending", "high", "The mesh's root certificate runs out soon")
KEYS_OLD = Rule("wireguard-keys-old", "medium", "WireGuard keys are older than they should get")
RULES: Final = (CLOCK_LOOSE, CERTIFICATE_OVER, CERTIFICATE_ENDING, MESH_ENDING, KEYS_OLD)

# Tuning.
ENDING: Final = 86_400.0  # s before its end in which a certificate should have been renewed long ago
MESH_ENDS: Final = 180 * 86_400.0  # s, as the fault `mesh-ends`
TOO_OLD: Final = 2.0  # times its longest life that a key may get, as peers may be away when it is due


def findings(seen: HostSeen) -> Iterator[Finding]:
    """Judge the clock and, by it, the ages of keys."""
    now, keys = seen.now, seen.keys
    if seen.clock_synchronised is False and not seen.container:
        yield CLOCK_LOOSE.found(
            "the kernel's clock is not synchronised (adjtimex says so): certificates and group keys hold "
            "by the clock, and a clock that drifts ends links in the end",
            "run a time service, such as chrony or systemd-timesyncd (`timedatectl set-ntp true`); on a "
            "virtual machine let chrony use the host's clock (/dev/ptp0)",
            subject="clock",
        )
    if keys.certificate_begins is not None and keys.certificate_begins > now:
        yield CERTIFICATE_OVER.found(
            f"the certificate begins on {rfc3339(keys.certificate_begins)}, and by this machine's clock it "
            f"is {rfc3339(now)}",
            "set the clock",
            subject="node.crt",
        )
    elif keys.certificate_ends is not None and keys.certificate_ends <= now:
        yield CERTIFICATE_OVER.found(
            f"the certificate ran out {span(now - keys.certificate_ends)} ago, by this machine's clock",
            "set the clock if it is wrong; else start the node, which asks an authority to take it back",
            subject="node.crt",
        )
    elif keys.certificate_ends is not None and keys.certificate_ends - now < ENDING:
        yield CERTIFICATE_ENDING.found(
            f"the certificate runs out in {span(keys.certificate_ends - now)}",
            "start the node, or see that it reaches an authority (`phantommesh links`)",
            subject="node.crt",
        )
    if keys.mesh_ends is not None and keys.mesh_ends - now < MESH_ENDS:
        yield MESH_ENDING.found(
            f"the root certificate runs out on {rfc3339(keys.mesh_ends)}, and nothing renews a root",
            "begin a new mesh with `phantommesh init` before, and let the machines join it",
            subject="root.crt",
        )
    if seen.config is None or keys.oldest_wireguard_key is None or not seen.running:
        return  # a node that starts replaces what is too old
    age, most = now - keys.oldest_wireguard_key, seen.config.wireguard.key_seconds
    if age > TOO_OLD * most:
        yield KEYS_OLD.found(
            f"a WireGuard key of this node is {span(age)} old; wireguard.key_seconds has {span(most)}",
            "see that peers answer (`phantommesh peers`): a key is replaced where they confirm the new one",
            subject="wireguard.json",
        )
