# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that show what the agents do and did, and that pause them and let them go on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import CliError, Options, client_of, json_option, place_of
from phantommesh.cli.output import age, emit, field, moment, say, size
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.agentview import (
        AgentDetail,
        AgentView,
        DecisionView,
        MemoryView,
    )
    from phantommesh.management.views import Event

MOST_TOLD = 1024  # decisions whose outcome `decisions --follow` still waits for
DOINGS = ("pause", "resume", "dry-run")


def _row(view: AgentView) -> list[object]:
    judge = view.name == "apex"
    known = view.met + view.unmet
    return [
        view.name,
        view.phase,
        age(view.since_s),
        None if view.every_s is None else f"{view.every_s:g} s",
        None if judge else view.looks,
        None if judge else f"{1000 * view.slowest_s:.1f} ms",
        view.accepted,
        None if judge else view.refused,
        f"{view.met}/{known}" if known else None,
        view.standing,
        view.why or None,
    ]


COLUMNS = (
    "AGENT", "PHASE", "SINCE", "EVERY", "LOOKS", "SLOWEST", "ACCEPTED", "REFUSED", "AS EXPECTED", "STANDING",
    "WHY",
)  # fmt: skip
FIRST = ("AGENT", "PHASE", "ACCEPTED", "REFUSED", "STANDING", "AS EXPECTED")


@click.command()
@click.argument("words", nargs=-1, metavar="[[pause|resume|dry-run] NAME]")
@click.option("--dry-run", is_flag=True, help="Say what pause or resume would do, and do nothing.")
@json_option
@click.pass_obj
def agents(options: Options, words: tuple[str, ...], dry_run: bool) -> None:
    """Show the agents, or the agent NAME; or pause it, let it go on, or only say what it would do.

    NAME may be `all`. Paused, an agent looks no more, and what stands for it is lifted. `pause apex` lets
    what stands go on and accepts nothing new, but what the operator asks for. A pause lasts until the node
    stops; `[agents]` in the configuration is for longer.
    """
    match words:
        case () if not dry_run:
            _show_all(options, client_of(options).get_all("/v1/agents", _agent_view()))
        case (("pause" | "resume" | "dry-run") as doing, name):
            _do(options, doing, name, dry_run)
        case (name,) if name not in DOINGS and not dry_run:
            _show(options, client_of(options).agent(name))
        case _:
            raise click.UsageError(f"give at most a NAME, or one of {', '.join(DOINGS)} and a NAME")


def _agent_view() -> type[AgentView]:
    from phantommesh.management.agentview import AgentView

    return AgentView


def _show_all(options: Options, found: list[AgentView]) -> None:
    if options.json:
        from phantommesh.management.views import Page

        emit(Page(items=found, next_cursor=None))
        return
    table(COLUMNS, [_row(one) for one in found], FIRST)


def _do(options: Options, doing: str, name: str, dry_run: bool) -> None:
    client, key = client_of(options), str(uuid.uuid4())
    if doing == "pause":
        result = client.pause_agent(name, idempotency_key=key, dry_run=dry_run)
    else:
        trying = doing == "dry-run"
        result = client.resume_agent(name, trying=trying, idempotency_key=key, dry_run=dry_run)
    if options.json:
        emit(result)
        return
    for one in result.agents:
        left = f" (a dry run of {doing}: it stays so)" if dry_run else ""
        say(f"{one.name}: {one.phase}{left}")
    if result.lifted:
        say(f"{result.lifted} lasting actions {'would be' if dry_run else 'are'} lifted")


def _show(options: Options, found: AgentDetail) -> None:
    if options.json:
        emit(found)
        return
    one = found.agent
    say(found.policy.partition("\n\n")[0].replace("\n", " "))
    say("")
    rows: list[tuple[str, object]] = [("phase", f"{one.phase} for {age(one.since_s)}")]
    if one.why:
        back = "until it is resumed" if one.back_in_s is None else f"back in {age(one.back_in_s)}"
        rows.append(("because", f"{one.why}; {back}"))
    if one.every_s is not None:
        wakes = f", and at {', '.join(one.wakes)}" if one.wakes else ""
        slow = f"the slowest {1000 * one.slowest_s:.1f} ms"
        rows.append(("looks", f"{one.looks}, every {one.every_s:g} s{wakes}; {slow}"))
        rows.append(("proposals", f"{one.proposals}: {one.accepted} accepted, {one.refused} refused"))
        known = one.met + one.unmet
        rows.append(
            ("effects", f"{one.met} of {known} measured ones as expected; {one.failed} actions failed")
        )
        rows.append(("benched", f"{one.benched} times"))
    rows.append(("standing", one.standing))
    for key, value in rows:
        field(key, value)
    for standing in found.standing:
        say(f"{standing.text}: since {age(standing.since_s)}, for {age(standing.left_s)} more", indent=4)
    if found.decisions:
        say("")
    for decision in found.decisions:
        say(_sentence(decision), indent=4)


# --- decisions ---


def _sentence(view: DecisionView) -> str:
    text = f"{moment(view.time)} {view.text}"
    if view.times > 1:
        text += f" ({view.times} times)"
    if view.outcome is not None:
        text += f" -> {_later(view.outcome.after_s)} {view.outcome.text}"
    return text


def _later(seconds: float) -> str:
    return f"{seconds:.1f} s later" if seconds < 120 else f"{age(seconds)} later"


@click.command()
@click.option("-f", "--follow", "on", is_flag=True, help="Go on with each new one, until interrupted.")
@click.option("--agent", metavar="NAME", help="Only those on proposals of this agent, or of `operator`.")
@click.option("--accepted", is_flag=True, help="Only what was accepted.")
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Check the chain of a record: a node's `decisions` directory, or a file of that.",
)
@json_option
@click.pass_obj
def decisions(options: Options, on: bool, agent: str | None, accepted: bool, verify: Path | None) -> None:
    """Show what agents proposed, what became of that, the evidence, and what came of it.

    With --follow and --json one event a line. --verify needs no running node. Decisions of earlier runs of
    the node are in the record on disk.
    """
    if verify is not None:
        if on or agent or accepted:
            raise click.UsageError("--verify goes with none of the other options")
        _verify(options, verify)
        return
    if on:
        _follow(options, agent, accepted)
        return
    from phantommesh.management.agentview import DecisionView

    query = {"agent": agent} if agent else {}
    found = client_of(options).get_all(
        "/v1/decisions", DecisionView, query | ({"accepted": "true"} if accepted else {})
    )
    if options.json:
        from phantommesh.management.views import Page

        emit(Page(items=found, next_cursor=None))
        return
    if not found:
        say("no such decision since the node started: see `phantommesh agents` for who looks", err=True)
    for one in found:
        say(_sentence(one), indent=4)


def _follow(options: Options, agent: str | None, accepted: bool) -> None:
    from phantommesh.client.events import follow

    told: dict[str, Event] = {}
    for event in follow(place_of(options), {"types": "agent.decided,agent.outcome", "since": "oldest"}):
        data = event.data
        if event.type != "gap" and agent not in (None, data.get("agent")):
            continue
        if event.type == "agent.decided" and accepted and data.get("result") != "accepted":
            continue
        if options.json:
            emit(event)
            continue
        if event.type == "agent.decided":
            told[str(data.get("trace"))] = event
            if len(told) > MOST_TOLD:
                del told[next(iter(told))]
        say(_happened(event, told), indent=4)


def _happened(event: Event, told: Mapping[str, Event]) -> str:
    data, time = event.data, moment(event.time)
    if event.type == "gap":
        return f"{time} {data.get('missed')} events were missed"
    if event.type == "agent.decided":
        return f"{time} {data.get('text')}"
    before = told.get(str(data.get("trace")))
    if before is None:
        return f"{time} {data.get('agent')}, {data.get('action')} {data.get('subject')} -> {data.get('text')}"
    after = datetime.fromisoformat(event.time) - datetime.fromisoformat(before.time)
    later = _later(max(0.0, after.total_seconds()))
    return f"{moment(before.time)} {before.data.get('text')} -> {later} {data.get('text')}"


def _verify(options: Options, path: Path) -> None:
    """Check a record. Exits with 1 where its chain is broken."""
    from phantommesh.agents import ledger
    from phantommesh.nursery.keeping import ledger as on_disk
    from phantommesh.state.files import read_file

    found = on_disk.check(path) if path.is_dir() else ledger.check([(path.name, read_file(path))])
    if not found.files or (not found.lines and not found.problem):
        raise CliError(
            f"there is no record of decisions at {path}", fix="give a node's `decisions` directory"
        )
    if options.json:
        emit(found)
    if found.problem:
        raise CliError(
            f"the record is not as it was written: {found.problem}",
            fix="take the lines before that for true, and find out who may write there",
        )
    if options.json:
        return
    say(f"{found.lines} lines in {found.files} files follow each other")
    beginning = "from the first line on" if found.first == ledger.FIRST else f"from after {found.first} on"
    say(f"they are whole {beginning}, up to {found.last}")
    if found.torn:
        say("the last line is torn: the node drops that when it starts next")


# --- incidents and the memory ---


@click.command()
@json_option
@click.pass_obj
def incidents(options: Options) -> None:
    """Show what several agents did about one peer or address at about one time."""
    from phantommesh.management.agentview import IncidentView

    found = client_of(options).get_all("/v1/incidents", IncidentView)
    if options.json:
        from phantommesh.management.views import Page

        emit(Page(items=found, next_cursor=None))
        return
    if not found:
        say(
            "no incident since the node started: no two agents acted on one thing at about one time", err=True
        )
    for number, one in enumerate(found):
        if number:
            say("")
        say(f"{moment(one.opened)} {one.title}", indent=2)
        for line in one.story:
            say(f"  {line}", indent=4)


@click.command()
@json_option
@click.pass_obj
def memory(options: Options) -> None:
    """Show the memory of threats (MNEMONIC), and what other members hint."""
    found = client_of(options).memory()
    if options.json:
        emit(found)
        return
    _show_memory(found)


def _show_memory(found: MemoryView) -> None:
    field("patterns", f"{found.patterns} of {found.most_patterns}, {found.evicted} had to make room")
    field("bytes", f"{size(found.bytes)} of {size(found.most_bytes)}")
    dropped = ", ".join(f"{count} {why}" for why, count in sorted(found.hints_dropped.items()) if count)
    field("hints", f"{found.hinted} addresses from others, {found.own_hints} of our own")
    field("lists", f"{found.hints_taken} taken" + (f"; dropped: {dropped}" if dropped else ""))
    if found.strongest:
        say("")
        table(
            ["KIND", "SOURCE", "TARGET", "SIGNATURE", "STRENGTH", "TIMES", "USEFUL", "FALSE", "LAST"],
            [
                [
                    one.kind, one.source, one.target or None, one.signature or None, f"{one.strength:.2f}",
                    one.times, one.useful, one.false, moment(one.last),
                ]
                for one in found.strongest
            ],
            ["KIND", "SOURCE", "TARGET", "STRENGTH", "TIMES"],
        )  # fmt: skip
    if found.hinters:
        say("")
        table(
            ["HINTER", "WEIGHT", "CONFIRMED", "REFUTED", "HINTS", "HOPS", "LIAR UNTIL"],
            [
                [
                    one.name, f"{one.weight:.2f}", f"{one.confirmed:.1f}", f"{one.refuted:.1f}", one.hints,
                    one.hops, None if one.liar_until is None else moment(one.liar_until),
                ]
                for one in found.hinters
            ],
            ["HINTER", "WEIGHT", "HINTS", "CONFIRMED", "REFUTED"],
        )  # fmt: skip
