# SPDX-License-Identifier: GPL-3.0-or-later
"""What each key is for, where its section's docstring does not say: docs/reference/configuration.md has both.

A key that a docstring explains stands there in backquotes, with a colon behind it.
"""

import re
from collections.abc import Iterator
from inspect import cleandoc, getmro
from typing import Final

import msgspec

from phantommesh.config.sections import SECTIONS

MEANINGS: Final = {
    "node.name": "this node's name; its certificate has it, and `phantommesh rename` changes both",
    "node.mesh": "the mesh's name; its root certificate has it",
    "control.port": "the port of handshakes, gossip and what members ask of each other",
    "control.tcp": "whether the control port takes TCP, too",
    "wireguard.backend": "the kernel's WireGuard, a userspace one, or the kernel's where there is one",
    "wireguard.prefix": "what the interfaces are called: the prefix, and the prefix with 0 to 6",
    "wireguard.base_port": "the first of the UDP ports of the seven interfaces",
    "wireguard.mtu": "the largest packet inside the tunnels",
    "wireguard.keepalive": "between two keepalives to a peer, until it is measured what NATs need",
    "wireguard.keep_interfaces": "whether the interfaces stay when the node ends, and traffic goes on",
    "wireguard.reconcile_seconds": "between two looks at whether the kernel has what it should have",
    "wireguard.key_seconds": "how old a WireGuard key pair becomes",
    "wireguard.port_choices": "how many UDP ports an interface changes among, with its keys",
    "overlay.cidr4": "the mesh's IPv4 network; the root certificate decides once the mesh is made",
    "guard.forward": "interfaces behind which machines or containers use the mesh through this node",
    "link.rotate_seconds": "between two post-quantum handshakes with a peer",
    "link.jitter_seconds": "by how much that varies",
    "link.stale_alarm_seconds": "how old a PSK may become until that is a fault",
    "link.stale_random_seconds": "how old a PSK may become until a random one stops the traffic",
    "link.provider": "the library for ML-KEM-1024",
    "relay.rate": "the most bytes a second that this relay forwards, each direction of a lease",
    "relay.quota": "the most bytes that this relay forwards in a day, each lease",
    "relay.members": "those between whom this relay forwards; none: all",
    "relay.port": "the UDP port at which this relay forwards, which has to be open to others",
    "relay.regions": "regions whose members alone may pass on this node's packets; none: all",
    "relay.direct_only": "no member passes on this node's packets",
    "relay.only": "the members that may pass on this node's packets; none: all",
    "relay.never": "members that never pass on this node's packets",
    "relay.never_regions": "regions whose members never pass on this node's packets",
    "gossip.preset": "how often members watch each other: for a local network, the internet, or one machine",
    "scatter.epoch_seconds": "how long one secret map of traffic to dimensions lasts",
    "proofs.keep": "how many epochs' proofs are kept, of each peer and direction",
    "paths.port": "the UDP port of overlay addresses at which probes are answered; one for the whole mesh",
    "paths.probe_seconds": "between two probes of a path that carries traffic",
    "api.socket": "the Unix socket of the API",
    "api.listen": "where the API listens by TCP, too",
    "api.certificate": "the PEM file of the certificate over TCP; without it the node makes one for itself",
    "api.key": "the PEM file of that certificate's key, without a password",
    "dns.serve": "whether this node answers for the mesh's names",
    "dns.port": "the port of that, at the overlay addresses",
    "dns.mode": "how this machine comes to know the mesh's names",
    "dns.hosts": "the hosts file for that",
    "memory.megabytes": "the most memory that remembered threat patterns take",
    "log.level": "what is logged; `debug` names who speaks with whom",
    "log.format": "lines for people, or JSON; `auto`: by whether it is a terminal",
}


def meaning(section: str, key: str) -> str:
    """What a key is for; empty where nobody has said that."""
    if said := MEANINGS.get(f"{section}.{key}"):
        return said
    return next((found for text in _docstrings(SECTIONS[section]) if (found := _explained(text, key))), "")


def _docstrings(section: type[msgspec.Struct]) -> Iterator[str]:
    """The docstring of a section, and those of what it is made from."""
    kinds = (kind for kind in getmro(section) if issubclass(kind, msgspec.Struct))
    return (cleandoc(kind.__doc__) for kind in kinds if kind.__doc__)


def _explained(text: str, key: str) -> str:
    """The words behind a key and its colon, up to the next key or the end of the sentence."""
    flat = " ".join(text.replace("``", "`").split())
    found = re.search(rf"`{key}`(?: and `\w+`)?:? (.+?)(?:; `\w+`:|\. |\.$|; and `)", flat)
    return "" if found is None else found[1].rstrip(".")
