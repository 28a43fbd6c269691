# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's word that somebody has changed tables of ours: heard at once, where a look takes seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

import structlog
import trio

from phantommesh.nftables import messages as nftnetlink
from phantommesh.nlattr import NetlinkFormatError

_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP = 270, 1, 7  # NFNLGRP_NFTABLES, linux/netfilter/nfnetlink.h
_BUFFER: Final = 1 << 17  # bytes of notifications read at once

log = structlog.get_logger("phantommesh.nftables")


async def watch(changed: Mapping[str, Callable[[], None]]) -> None:
    """Call a table's callable, by the table's name, whenever the kernel tells of a change to it that is no
    element's, our own changes too. Runs until cancelled; returns where the kernel tells of none."""
    names = {name.encode("ascii") + b"\0": tell for name, tell in changed.items()}
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with ExitStack() as stack:
        try:
            told = stack.enter_context(socket.socket(socket.AF_NETLINK, kind, nftnetlink.NETFILTER))
            told.bind((0, 0))
            told.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        except OSError as error:
            log.info("changes to tables are looked for, not told", error=os.strerror(error.errno or 0))
            return
        while True:
            await trio.lowlevel.wait_readable(told)
            try:
                messages = told.recv(_BUFFER)
                found = [tell for name, tell in names.items() if nftnetlink.changes_rules(messages, name)]
            except BlockingIOError:
                continue
            except (OSError, NetlinkFormatError):
                found = list(names.values())  # more came than the socket or the buffer holds
            for tell in found:
                tell()
