# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the counters agree: what was scattered, what WireGuard sent, and what the peer's WireGuard received?

WireGuard counts whole datagrams at both ends, so what one end sent and the other received is one number but
for loss. The two ends do not read at one moment: the sender reads, tells the peer, which reads and answers,
and the sender reads again. So the peer's reading lies between the sender's two, and what was sent between
them (``late_open``, ``late_close``) is how far a count can be off.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from phantommesh.proofs.spread import OWN_BYTES_PER_S
from phantommesh.proofs.statement import ZEROS, Receipt, Statement

MAX_LOSS: Final = 0.05
"""The loss bound: the share of a dimension's bytes that may get lost in an epoch."""

# Tuning.
SLACK_BYTES: Final = 256 * 1024  # a dimension: what lies in queues when counters are read
PACKET_OVERHEAD, SEGMENT_OVERHEAD = (
    64,
    0.25,
)  # WireGuard's header, tag and padding; a GSO burst has one a segment
LATE_SHARE: Final = 0.25  # of all epochs of a file, what may have been sent while counters were read
MAX_LAG_MS: Final = 3_000  # ms a commitment or the end of an epoch may take to reach the peer
LAG_SHARE: Final = 0.05  # of all epochs of a file, the time by which both ends' may differ besides


def unsent(statement: Statement, max_loss: float = MAX_LOSS) -> str | None:
    """Say which dimension's scattered bytes are not what WireGuard sent there, or None. The scatterer's
    counters are read a little before WireGuard's, about as long as the peer then takes to answer."""
    late = [sum(pair) for pair in zip(statement.late_open, statement.late_close, strict=True)]
    return _unlike(statement.packets, statement.octets, statement.wire, late, statement.seconds, max_loss)


def unsent_together(statements: Sequence[Statement], max_loss: float = MAX_LOSS) -> str | None:
    """The same of all epochs of a file as a whole: what is late in one is early in the next, so the slack
    does not grow with their number."""
    packets, octets, wire = (
        _sums([getattr(statement, name) for statement in statements])
        for name in ("packets", "octets", "wire")
    )
    late = _late_together(statements, octets)
    seconds = sum(statement.seconds for statement in statements)
    return _unlike(packets, octets, wire, late, seconds, max_loss)


def _late_together(statements: Sequence[Statement], sent: Sequence[int]) -> list[int]:
    """The bytes that may have been sent while counters were read, a dimension: where there is a gap and, to a
    share of all, where there is none."""
    ends, between = [statements[0].late_open, statements[-1].late_close], [ZEROS]
    for a, b in pairwise(statements):
        (between if a.end_ms == b.start_ms else ends).extend((a.late_close, b.late_open))
    return [
        end + min(late, int(LATE_SHARE * whole))
        for end, late, whole in zip(_sums(ends), _sums(between), sent, strict=True)
    ]


def _sums(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _unlike(
    packets: Sequence[int],
    octets: Sequence[int],
    wire: Sequence[int],
    late: Sequence[int],
    seconds: float,
    max_loss: float,
) -> str | None:
    for i, (given, sent) in enumerate(zip(octets, wire, strict=True)):
        most = given * (1 + SEGMENT_OVERHEAD) + packets[i] * PACKET_OVERHEAD + OWN_BYTES_PER_S * seconds
        if not given * (1 - max_loss) - SLACK_BYTES - late[i] <= sent <= most + SLACK_BYTES + late[i]:
            return f"dimension {i} was given {given} bytes, but WireGuard sent {sent} there"
    return None


def unreceived(statement: Statement, receipt: Receipt, max_loss: float = MAX_LOSS) -> str | None:
    """Say which dimension's sent bytes are not what the peer received, or that it held no commitment in time;
    None if all agrees."""
    lag = abs(receipt.held_ms - (statement.end_ms - statement.start_ms))
    if lag > MAX_LAG_MS:
        return (
            f"the peer held the commitment for {receipt.held_ms / 1000:.1f} s of an epoch of "
            f"{statement.seconds:.1f} s"
        )
    late = statement.late_open, statement.late_close
    return _apart(statement.wire, receipt.received, late, max_loss)


def unreceived_together(pairs: Sequence[tuple[Statement, Receipt]], max_loss: float = MAX_LOSS) -> str | None:
    """The same of all epochs of a link that both ends have signed, whatever lies between them: one slack for
    a file."""
    if not pairs:
        return None
    held = sum(receipt.held_ms for _, receipt in pairs)
    stated = sum(statement.end_ms - statement.start_ms for statement, _ in pairs)
    if abs(held - stated) > MAX_LAG_MS + LAG_SHARE * held:
        return f"the peer held the commitments for {held / 1000:.1f} s of {stated / 1000:.1f} s"
    wire = _sums([statement.wire for statement, _ in pairs])
    received = _sums([receipt.received for _, receipt in pairs])
    late = _late_together([statement for statement, _ in pairs], wire)
    return _apart(wire, received, (late, late), max_loss)


def _apart(
    wire: Sequence[int],
    received: Sequence[int],
    late: tuple[Sequence[int], Sequence[int]],
    max_loss: float,
) -> str | None:
    for i, (sent, came) in enumerate(zip(wire, received, strict=True)):
        if came > sent + late[1][i] + SLACK_BYTES:
            return f"{sent} bytes were sent on dimension {i}, but {came} received"
        if came < (sent - late[0][i]) * (1 - max_loss) - SLACK_BYTES:
            lost = 1 - came / max(1, sent)
            return (
                f"of {sent} bytes sent on dimension {i} {came} were received: {lost:.1%} lost, "
                f"the bound is {max_loss:.0%}"
            )
    return None
