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
        return f"chmod {self.mode:o} {shlex.quote(self.path)}"


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
        """Return a finding of this rule."""
        return Finding(rule=self.id, severity=self.severity, subject=subject, text=text, fix=fix, mend=mend)


def set_sysctl(name: str, value: int) -> str:
    """A line for a shell that gives a setting (``net/ipv4/conf/pm0/rp_filter``) a value. It writes to /proc,
    since sysctl(8) reads dots in an interface's name as something else."""
    return f"echo {value} > /proc/sys/{shlex.quote(name)}"
