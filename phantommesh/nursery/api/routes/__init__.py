# SPDX-License-Identifier: GPL-3.0-or-later
"""The work of the API's endpoints; `management.endpoints` says which there are."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

# By the name of its endpoint: takes the path's parameters, returns a Response; a WebSocket's returns nothing.
Handlers: TypeAlias = Mapping[str, Callable[..., Awaitable[Any]]]
