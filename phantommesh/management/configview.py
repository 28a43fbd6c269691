# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers about the configuration: the file that the node was started from, and what became of a
change."""

from __future__ import annotations

import msgspec


class ConfigView(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of GET /v1/config: the text of the ``file``; ``restart`` are the keys in it that only the
    node's next start takes over, ``refused`` says why the node does not run with it."""

    file: str
    config: str
    restart: list[str] = []
    refused: str = ""


class ConfigResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of PUT /v1/config: the keys, as ``section.key``, that differ from what the node ran with.
    ``taken`` count from now on, ``restart`` from the node's next start on."""

    taken: list[str]
    restart: list[str]
    dry_run: bool = False
