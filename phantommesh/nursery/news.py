# SPDX-License-Identifier: GPL-3.0-or-later
"""The news that the parts of a node tell: a closed union, to which `weaving` reacts by one match.

A part is made before its listeners. So each part is given one `Teller`, and no part knows another's reaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phantommesh.link.effects import Alarm, Opened
from phantommesh.membership.effects import Changed
from phantommesh.paths.effects import Turned
from phantommesh.scatter.epochs import EpochCounts
from phantommesh.wireguard.device import DeviceState


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """The roster, a resolved name or the time may have changed who the peers are."""


@dataclass(frozen=True, slots=True)
class SecretsChanged:
    """A group key brought an admission secret, or one is no longer used to send."""


@dataclass(frozen=True, slots=True)
class KeysReplaced:
    """This node has another WireGuard key in some dimension. Nobody was told of the key yet."""


@dataclass(frozen=True, slots=True)
class Rerouted:
    """Other prefixes lead into the overlay than before."""


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """This node takes other prefixes beyond the mesh, or of others, than before."""


@dataclass(frozen=True, slots=True)
class CarriersChanged:
    """Other members carry prefixes beyond the mesh for this node than before."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The desired PSKs of these peers, by node id, have changed."""

    peers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class WayChanged:
    """Another way is to be taken to this peer (node id), in some dimension: see `routing.ways`."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class ReadBack:
    """The reconciler has read the interfaces: device states by name."""

    actual: Mapping[str, DeviceState]


@dataclass(frozen=True, slots=True)
class CopyGone:
    """Another run of this node has stepped aside for this one. Peers may hold keys that it agreed on."""


@dataclass(frozen=True, slots=True)
class CopyFound:
    """Two runs of a member, or of this node, are proved to have been there at one time."""


@dataclass(frozen=True, slots=True)
class EpochOver:
    """An epoch of the traffic to this peer (node id) has ended."""

    peer: bytes
    ended: EpochCounts


News = (
    PeersChanged
    | SecretsChanged
    | KeysReplaced
    | Rerouted
    | RoutesChanged
    | CarriersChanged
    | Installed
    | WayChanged
    | ReadBack
    | CopyGone
    | CopyFound
    | EpochOver
    | Opened  # a handshake finished
    | Alarm  # a link needs attention
    | Changed  # gossip has news of a member
    | Turned  # a path changed its state
)

Tell = Callable[[News], None]


class Teller:
    """Carries news from the parts to whoever reacts, at once. Raises AttributeError where news comes before
    `listen` was called: no part has anything to tell before it runs."""

    def __init__(self) -> None:
        self._react: Tell

    def listen(self, react: Tell) -> None:
        """Have ``react`` called with all news from now on."""
        self._react = react

    def __call__(self, news: News) -> None:
        self._react(news)
