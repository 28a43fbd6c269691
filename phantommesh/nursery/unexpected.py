# SPDX-License-Identifier: GPL-3.0-or-later
"""The second line behind the parsers: what another sent, and the code did not expect, ends no service.

The first line is that each parser and verifier raises its declared error only. A fault there must cost one
datagram, record or conversation, and not the node: six failures of a service within a minute end it, and
whoever found the fault can send it to every member.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import structlog

log = structlog.get_logger("phantommesh.unexpected")


@contextmanager
def left_out(dropped: Counter[str], reason: str, what: str, **about: str) -> Iterator[None]:
    """Run what handles bytes of another. An exception that got this far is counted in ``dropped`` under
    ``reason`` and logged, and ends the block alone. Cancellation passes through.

    ``what`` is the line of the log and the same for all who send such a thing; ``about`` says who did.
    """
    try:
        yield
    except Exception as error:
        dropped[reason] += 1
        note(what, error, **about)


def note(what: str, error: Exception, **about: str) -> None:
    """Log an exception that nobody expected: its type and place. Its message may quote what was sent."""
    log.error(what, **about, error=type(error).__name__, at=_place(error.__traceback__))


def _place(trace: TracebackType | None) -> str:
    """The innermost line that is on the stack: ``trust/certificates.py:176``."""
    place = ""
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
