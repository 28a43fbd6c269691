# SPDX-License-Identifier: GPL-3.0-or-later
"""The error an operator sees: one line that names the thing, and one that says what to do. And the error that
decoders of untrusted bytes raise, which nobody sees."""

from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)


class PhantomMeshError(Exception):
    """An operator's error. ``str(error)`` is the message; ``error.fix`` says what to do, or is empty.

    The command line prints both on stderr and exits with status 1; it never prints a traceback for one.
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class DecodeError(Exception):
    """The bytes are not a datagram or message of this protocol. ``args[0]`` is a short, bounded reason."""


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters of what an error quotes, with a sign where some are left out."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_of(group: BaseExceptionGroup[Error]) -> Error:
    """Return the first error of a group, however deep it lies."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
