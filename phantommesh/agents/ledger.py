# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of decisions, and that of what was asked of the API: one JSON line each, chained by hashes.

Each line has the BLAKE2s hash of the line before it as ``prev``, also across files: the first line of a file
has the last hash of the file before. So a line that was changed, taken out or put in shows, unless all lines
after it were written anew. The last line may be torn by a crash, and is dropped then; a whole line never is.

A line holds what was decided and why. Neither proposals nor outcomes have secrets in them, and what was asked
of the API is written without its secrets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2s
from typing import Final

import msgspec

from phantommesh.agents.base import AgentName, Outcome, Reason
from phantommesh.agents.council import Decision

FIRST: Final = "0" * 64
"""The hash before the first line of all."""

# Tuning.
MOST_LINE = 16_384  # bytes; where a line would be longer, texts are cut and evidence is left out
MOST_TEXT = 500  # characters of a text in a line that would be too long


class DecisionLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="decision"):
    """One decision. Times in Unix seconds; ``until``: when it lapses; ``seconds`` from the look to the
    verdict. Action, evidence and expectation are `actions.Action`, `base.Evidence` and `base.Expectation` as
    plain data, with null for a number that JSON does not have: what is refused may be nonsense."""

    prev: str
    seq: int
    at: float
    trace: str
    agent: AgentName
    subject: str
    action: dict[str, object]
    evidence: list[dict[str, object]]
    expects: dict[str, object] | None
    until: float | None
    why: str
    incident: str
    result: Reason
    by: AgentName | None
    seconds: float
    times: int


class OutcomeLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="outcome"):
    """What an action came to, by the trace of its decision."""

    prev: str
    at: float
    trace: str
    agent: AgentName
    measured: float | None
    met: bool | None
    error: str


class StartLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="start"):
    """The node has started. ``run`` is another word each time; ``torn``: bytes of a line that a crash had
    torn and that were dropped then."""

    prev: str
    at: float
    run: str
    version: str
    torn: int


class MissedLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="missed"):
    """So many lines are missing here: the disk was full, or too slow."""

    prev: str
    at: float
    lines: int


class WriteLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="write"):
    """Somebody asked the API for a change. ``seq`` goes on over all runs. ``who``: ``uid 0``, ``token ID`` or
    ``nobody``; ``address``: of the client, None for the Unix socket; ``asked``: the body without secrets;
    ``status``: HTTP's; ``detail``: why it was refused."""

    prev: str
    seq: int
    at: float
    who: str
    address: str | None
    method: str
    path: str
    asked: dict[str, object]
    status: int
    detail: str


Line = DecisionLine | OutcomeLine | StartLine | MissedLine | WriteLine

_encode: Final = msgspec.json.Encoder().encode
_decoder: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)


class LedgerError(ValueError):
    """A line that is none, or that does not follow the line before."""


def decision_line(one: Decision, now: float) -> DecisionLine:
    """A decision's line, not chained yet. ``now`` is the node's clock at the decision."""
    proposal, verdict = one.verdict.proposal, one.verdict
    return DecisionLine(
        prev="", seq=one.seq, at=one.at, trace=one.trace, agent=proposal.agent,
        subject=str(proposal.subject), action=msgspec.to_builtins(proposal.action),
        evidence=msgspec.to_builtins(proposal.evidence), expects=msgspec.to_builtins(proposal.expects),
        until=one.at + proposal.until - now, why=proposal.why,
        incident=proposal.incident, result=verdict.reason, by=verdict.by, seconds=one.seconds,
        times=one.times,
    )  # fmt: skip


def outcome_line(one: Outcome, at: float) -> OutcomeLine:
    """An outcome's line, not chained yet; ``at`` in Unix seconds."""
    return OutcomeLine(
        prev="", at=at, trace=one.trace, agent=one.proposal.agent, measured=one.measured, met=one.met,
        error=one.error,
    )  # fmt: skip


def hashed(line: bytes) -> str:
    """The hash of a line without its end."""
    return blake2s(line).hexdigest()


def chain(lines: Iterable[Line], last: str) -> tuple[bytes, str]:
    """Return lines as bytes, each with the hash of the one before; and the last hash."""
    written = bytearray()
    for one in lines:
        line = _encode(msgspec.structs.replace(one, prev=last))
        if len(line) > MOST_LINE:
            line = _encode(msgspec.structs.replace(_cut(one), prev=last))
        last = hashed(line)
        written += line + b"\n"
    return bytes(written), last


def _cut(line: Line) -> Line:
    """The same with shorter texts, and no evidence."""
    if isinstance(line, DecisionLine):
        return msgspec.structs.replace(
            line, why=line.why[:MOST_TEXT], incident=line.incident[:MOST_TEXT], evidence=[], expects=None,
            subject=line.subject[:MOST_TEXT], action={"do": line.action["do"]},
        )  # fmt: skip
    if isinstance(line, OutcomeLine):
        return msgspec.structs.replace(line, error=line.error[:MOST_TEXT])
    if isinstance(line, WriteLine):
        return msgspec.structs.replace(
            line, path=line.path[:MOST_TEXT], detail=line.detail[:MOST_TEXT], asked={"cut": True}
        )
    return line


def parse(line: bytes) -> Line:
    """Read one line. Raises LedgerError."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerError(f"no line of the record ({type(error).__name__})") from None


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a file: the first ``kept`` bytes are whole lines, ``torn`` bytes after them are not.
    ``last``: the hash of the last whole line; None where there is none."""

    kept: int
    torn: int
    last: str | None


def tail(data: bytes) -> Tail:
    """Say where a file's whole lines end. What a crash leaves behind the last of them is no line: it has no
    end, or is nothing but zeros, or is not JSON."""
    kept = data.rfind(b"\n") + 1
    while kept:
        begin = data.rfind(b"\n", 0, kept - 1) + 1
        line = data[begin : kept - 1]
        try:
            parse(line)
        except LedgerError:
            kept = begin
            continue
        return Tail(kept, len(data) - kept, hashed(line))
    return Tail(0, len(data), None)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of the record found. ``problem`` says where the chain is broken; empty: nowhere. ``torn``:
    whether the last file ends in a torn line, which the node drops when it starts next. ``first``: the hash
    before the first line that is kept, and ``last`` the newest; keep the newest elsewhere, and lines that are
    cut off from the end show, too."""

    files: int
    lines: int
    first: str
    last: str
    torn: bool
    problem: str = ""


def check(files: Iterable[tuple[str, bytes]]) -> Checked:
    """Check the record: its files by name, oldest first."""
    count, lines, first, last, torn, problem = 0, 0, FIRST, "", False, ""
    for name, data in files:
        if problem:
            break
        if torn:
            problem = f"the file before {name} ends in the middle of a line"
            break
        count += 1
        whole, _, rest = data.rpartition(b"\n")
        torn = bool(rest)
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            try:
                prev = parse(line).prev
            except LedgerError as error:
                problem = f"{name}, line {number}: {error}"
                break
            if not lines:
                first = prev
            elif prev != last:
                problem = f"{name}, line {number}: it does not follow the line before"
                break
            lines, last = lines + 1, hashed(line)
    return Checked(count, lines, first, last or first, torn, problem)


def read(data: bytes) -> Iterator[Line]:
    """Yield a file's lines. What is none is left out: `check` tells of that."""
    for line in data.split(b"\n"):
        if line:
            try:
                yield parse(line)
            except LedgerError:
                continue
