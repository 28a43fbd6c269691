# SPDX-License-Identifier: GPL-3.0-or-later
"""The rights of a client of the API: `read` < `operate` < `admin`. A greater scope includes the lesser
ones."""

from enum import Enum


class Scope(Enum):
    """A scope, by the word that stands for it in tokens and documents."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"

    def includes(self, other: "Scope") -> bool:
        """Whether a client with this scope may do what needs ``other``."""
        return _ORDER.index(other) <= _ORDER.index(self)


_ORDER = (Scope.READ, Scope.OPERATE, Scope.ADMIN)


def allows(granted: Scope | None, needed: Scope | None) -> bool:
    """Whether a client may use an endpoint. ``granted`` None: nobody knows the client. ``needed`` None:
    the endpoint is open to all."""
    return needed is None or (granted is not None and granted.includes(needed))
