# SPDX-License-Identifier: GPL-3.0-or-later
"""The prefixes beyond the mesh that this node is to route for others: advertised, certified, offered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from phantommesh.errors import PhantomMeshError
from phantommesh.node.steps import Holdings
from phantommesh.routable import Network, in_order
from phantommesh.trust.routes import Grant, standing

if TYPE_CHECKING:
    from phantommesh.trust.certificates import Member


class Advertising:
    """``advertised`` are the prefixes that the operator wants this node to route; ``member`` returns this
    node as its certificate describes it. ``error`` says why the authorities could not be asked last."""

    def __init__(self, node: Holdings, advertised: Iterable[Network], member: Callable[[], Member]) -> None:
        self._node, self._member = node, member
        self.advertised = in_order(advertised)
        self.error: PhantomMeshError | None = None

    @property
    def granted(self) -> tuple[Grant, ...]:
        """The routes in the certificate that were not withdrawn."""
        member = self._member()
        return standing(member.grants, member.node_id, self._node.revocations)

    @property
    def withdrawn(self) -> bool:
        """Whether the certificate has a route that was withdrawn."""
        return len(self.granted) < len(self._member().grants)

    @property
    def offered(self) -> tuple[Network, ...]:
        """The prefixes that this node routes for others: advertised, and in the certificate."""
        granted = {grant.prefix for grant in self.granted}
        return tuple(prefix for prefix in self.advertised if prefix in granted)

    @property
    def lacking(self) -> tuple[Network, ...]:
        """The prefixes that are advertised and not in the certificate."""
        granted = {grant.prefix for grant in self.granted}
        return tuple(prefix for prefix in self.advertised if prefix not in granted)
