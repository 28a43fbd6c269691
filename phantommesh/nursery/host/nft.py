# SPDX-License-Identifier: GPL-3.0-or-later
"""One nftables table of ours: installed by an ``nft`` child, its maps replaced and its counters read by
netlink.

A child takes tens of milliseconds and is used when peers come and go. Replacing a map takes two and is done
by hand-packed messages, each time over a socket of its own inside one worker thread. libnftables in this
process would be neither: 1.0.6 aborts on rulesets that are valid.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.nftables import messages
from phantommesh.nlattr import ERROR, decode_errno
from phantommesh.nursery.host.netlink import NetlinkSocket

T = TypeVar("T")

_CHILD_SECONDS = 30.0  # an emulated machine takes two for fifty peers


class NftError(PhantomMeshError):
    """The kernel or the ``nft`` program refused. ``code`` is the errno, 0 where there is none."""

    def __init__(self, message: str, *, fix: str = "", code: int = 0) -> None:
        super().__init__(message, fix=fix)
        self.code = code


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Which table it is, its rules, and the elements of the sets that were asked for: one of them changes
    when anybody replaces or edits it."""

    table: int
    rules: frozenset[int]
    elements: tuple[frozenset[bytes], ...]


class Table:
    """One table. Every method raises NftError only."""

    def __init__(self, family: str, name: str) -> None:
        self.family, self.name = family, name
        self._number = messages.FAMILIES[family]

    async def install(self, text: str) -> None:
        """Run a script as one transaction. Nothing has changed when it fails."""
        if shutil.which("nft") is None:
            raise NftError("the command nft is missing", fix="install nftables")
        try:
            with trio.fail_after(_CHILD_SECONDS):
                done = await trio.run_process(
                    ["nft", "-f", "-"],
                    stdin=text.encode("ascii"),
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
        except OSError as error:
            raise NftError(f"nft: {error.strerror}", fix="install nftables") from error
        except trio.TooSlowError:
            raise NftError(
                f"nft did not end in {_CHILD_SECONDS:.0f} s",
                fix="see whether `nft list ruleset` ends; the node tries again by itself",
            ) from None
        if done.returncode != 0:
            said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[0]
            missing = next((c for c in (errno.EOPNOTSUPP, errno.ENOENT) if os.strerror(c) in said), 0)
            raise NftError(
                f"nft refused the rules of table {self.family} {self.name}: {said}",
                fix="load the kernel module nf_tables; see `nft --version`",
                code=missing,
            )

    async def replace(self, maps: Mapping[str, Mapping[int, int]]) -> None:
        """Make these the elements of these maps, in one transaction."""

        def run(netlink: NetlinkSocket) -> None:
            commit(netlink, *messages.encode_replace(self._number, self.name, maps, sequence=1))

        await self._run("replacing the maps", run)

    async def commit(self, changes: Sequence[messages.Change]) -> None:
        """Carry these out, in one transaction. Nothing has changed when it fails."""

        def run(netlink: NetlinkSocket) -> None:
            commit(netlink, *messages.encode_transaction(changes, self._number, sequence=1))

        await self._run("changing it", run)

    async def remove(self) -> None:
        """Remove the table; that it is gone already is fine."""

        def run(netlink: NetlinkSocket) -> None:
            commit(netlink, *messages.encode_delete_table(self._number, self.name, sequence=1))

        try:
            await self._run("removing", run)
        except NftError as error:
            if error.code not in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
                raise

    async def fingerprint(self, *sets: str) -> Fingerprint | None:
        """Read what the table is now, and what these sets hold; None when one of them is not there."""

        def run(netlink: NetlinkSocket) -> Fingerprint | None:
            try:
                answers = netlink.exchange(messages.encode_get_table(self._number, self.name, sequence=1))
                handle = messages.decode_table(answers[0][2])
                rules = netlink.exchange(messages.encode_get_rules(self._number, self.name, sequence=2))
                held = tuple(messages.decode_elements(self._elements(netlink, name)) for name in sets)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return None
                raise
            return Fingerprint(handle, messages.decode_rules((p for _, _, p in rules), self.name), held)

        return await self._run("reading", run)

    async def rules(self) -> list[bytes]:
        """Read the rules, as the kernel has them; none where there is no such table."""

        def run(netlink: NetlinkSocket) -> list[bytes]:
            try:
                asked = messages.encode_get_rules(self._number, self.name, sequence=1)
                return [payload for _, _, payload in netlink.exchange(asked)]
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return []
                raise

        return await self._run("reading the rules", run)

    async def counters(self, name: str) -> dict[int, tuple[int, int]]:
        """Read a set's counters: (packets, bytes) by element."""
        return await self._run(
            "reading the counters", lambda netlink: messages.decode_counters(self._elements(netlink, name))
        )

    async def counters_by_key(self, name: str) -> dict[bytes, tuple[int, int]]:
        """Read the counters of a set whose keys are bytes, and whose elements may have more expressions."""
        return await self._run(
            f"reading the counters of {name}",
            lambda netlink: messages.decode_counters_by_key(self._elements(netlink, name)),
        )

    async def many_counters_by_key(self, names: Sequence[str]) -> dict[str, dict[bytes, tuple[int, int]]]:
        """Read the counters of several such sets, by name."""

        def run(netlink: NetlinkSocket) -> dict[str, dict[bytes, tuple[int, int]]]:
            return {name: messages.decode_counters_by_key(self._elements(netlink, name)) for name in names}

        return await self._run(f"reading the counters of {', '.join(names)}", run)

    async def elements(self, name: str) -> dict[int, int]:
        """Read a map."""
        return await self._run(
            f"reading {name}", lambda netlink: messages.decode_map(self._elements(netlink, name))
        )

    async def names(self, name: str) -> list[str]:
        """Read a set of interfaces' names."""
        return await self._run(
            f"reading {name}", lambda netlink: messages.decode_names(self._elements(netlink, name))
        )

    def _elements(self, netlink: NetlinkSocket, name: str) -> list[bytes]:
        answers = netlink.exchange(messages.encode_get_elements(self._number, self.name, name, sequence=1))
        return [payload for _, _, payload in answers]

    async def _run(self, doing: str, act: Callable[[NetlinkSocket], T]) -> T:
        def run() -> T:
            with NetlinkSocket(messages.NETFILTER) as netlink:
                return act(netlink)

        try:
            return await trio.to_thread.run_sync(run)
        except OSError as error:
            raise NftError(
                f"table {self.family} {self.name}: {doing}: {os.strerror(error.errno or 0)}",
                fix="run as root or with CAP_NET_ADMIN" if error.errno == errno.EPERM else "",
                code=error.errno or 0,
            ) from error


async def list_tables() -> list[tuple[str, str]]:
    """Read family and name of every table of the families in use; none where the kernel has no nf_tables.
    Raises NftError."""

    def run() -> list[tuple[str, str]]:
        with NetlinkSocket(messages.NETFILTER) as netlink:
            answers = netlink.exchange(messages.encode_get_tables(sequence=1))
            return messages.decode_tables(payload for _, _, payload in answers)

    try:
        return await trio.to_thread.run_sync(run)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
            return []
        raise NftError(
            f"listing the tables: {os.strerror(error.errno or 0)}",
            fix="run as root or with CAP_NET_ADMIN" if error.errno == errno.EPERM else "",
            code=error.errno or 0,
        ) from error


def commit(netlink: NetlinkSocket, batch: bytes, last: int) -> None:
    """Send a batch and wait until its last message is acknowledged, or any is refused. Raises OSError."""
    netlink.send(batch)
    while True:
        for kind, sequence, payload in netlink.receive():
            if kind == ERROR:
                if code := decode_errno(payload):
                    raise OSError(code, os.strerror(code))
                if sequence == last:
                    return
