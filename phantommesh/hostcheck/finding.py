# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of a rule and of what it finds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from phantommesh.faults import Severity


class Chmod(msgspec.Struct, frozen=True, tag_field="mend", tag="chmod"):
    """Take permissions from a file or directory that is this node's own: its mode becomes ``mode``."""

    path: str
    mode: int

    @property
    def command(self) -> str:
        """The same as a line for a shell."""
        return f"chmod {self.mode:o} {quoted(self.path)}"


class SetSysctl(msgspec.Struct, frozen=True, tag_field="mend", tag="sysctl"):
    """Give a setting of one of this node's own interfaces another value. ``name`` as in /proc/sys, with
    slashes."""

    name: str
    value: int

    @property
    def command(self) -> str:
        """The same as a line for a shell."""
        return set_sysctl(self.name, self.value)


Mend: TypeAlias = Chmod | SetSysctl
"""A safe fix: it takes rights away or touches this node's own interfaces, nothing else, and can be undone."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is unsafe. ``subject``: the file, setting, port or program. ``text`` has the evidence.
    ``fix`` says what to do; what stands between backticks there is a line for a shell. ``mend``: the same as
    a value, where it is a safe fix."""

    rule: str
    severity: Severity
    subject: str
    text: str
    fix: str
    mend: Mend | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``id`` keeps its meaning, as scripts depend on it; ``title`` is for people."""

    id: str
    severity: Severity
    title: str

    def found(self, text: str, fix: str, *, subject: str = "", mend: Mend | None = None) -> Finding:
        """Return a finding of this rule. All of it can be shown, whatever names it quotes (`shown`)."""
        return Finding(
            rule=self.id,
            severity=self.severity,
            subject=shown(subject),
            text=shown(text),
            fix=shown(fix),
            mend=mend,
        )


def shown(text: str) -> str:
    """The same with an escape for each character that a terminal would obey or that no encoding has: a file's
    name is any bytes (os.fsdecode), and whoever made the file chose them."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"  # a byte that is no UTF-8
    return char.encode("unicode_escape").decode("ascii")


def quoted(path: str) -> str:
    """A path as a word for a shell, which `shown` leaves as it is: with escapes ($'...', as ls(1) writes
    them) where the name cannot be shown."""
    if path.isprintable():
        return shlex.quote(path)
    return "$'" + "".join(map(_octal, path)) + "'"


def _octal(char: str) -> str:
    if char.isprintable() and char not in "'\\":
        return char
    data = char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
    return "".join(f"\\{byte:03o}" for byte in data)


def set_sysctl(name: str, value: int) -> str:
    """A line for a shell that gives a setting (``net/ipv4/conf/pm0/rp_filter``) a value. It writes to /proc,
    since sysctl(8) reads dots in an interface's name as something else."""
    return f"echo {value} > /proc/sys/{shlex.quote(name)}"
