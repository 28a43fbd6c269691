# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb that looks for what is unsafe about this host and its configuration: `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import EXIT_FAILED, Options, json_option
from phantommesh.cli.output import emit, field, say

if TYPE_CHECKING:
    from phantommesh.hostcheck.finding import Finding
    from phantommesh.hostcheck.seen import HostSeen
    from phantommesh.nursery.host.mending import Mended

_KEY = 8  # cells of a severity


@click.command()
@click.option("--fix", "mends", is_flag=True, help="Carry out the safe fixes, and say how to undo each.")
@click.option("--list", "lists", is_flag=True, help="List the rules, and look at nothing.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, mends: bool, lists: bool) -> None:
    """Look for what is unsafe about this host, the configuration and the state directory.

    It needs no running node. What only root can read is named as not looked at. The exit status is 1 where
    something is found whose severity is high or critical. docs/hardening.md explains each rule.
    """
    options: Options = ctx.obj
    if lists:
        _list(options)
        return
    from phantommesh.hostcheck.scan import scan
    from phantommesh.nursery.host.scanning import Where, look

    where = Where(options.state_dir, options.config, options.socket)
    seen = look(where)
    found = scan(seen)
    mended: list[Mended] = []
    failed: list[str] = []
    if mends:
        mended, failed = _mend(found, seen)
        if mended:
            seen = look(where)
            found = scan(seen)
    if options.json:
        emit(_document(seen, found, mended, failed))
    else:
        _show(seen, found, mended, failed)
    if any(one.severity in ("high", "critical") for one in found):
        ctx.exit(EXIT_FAILED)


def findings(options: Options) -> dict[str, object]:
    """What `doctor --json` prints; nothing is mended."""
    from phantommesh.hostcheck.scan import scan
    from phantommesh.nursery.host.scanning import Where, look

    seen = look(Where(options.state_dir, options.config, options.socket))
    return _document(seen, scan(seen), [], [])


def _mend(found: tuple[Finding, ...], seen: HostSeen) -> tuple[list[Mended], list[str]]:
    from phantommesh.nursery.host.mending import MendError, carry_out

    mended, failed = [], []
    for mend in dict.fromkeys(one.mend for one in found if one.mend is not None):
        try:
            mended.append(carry_out(mend, seen.interfaces))
        except MendError as error:
            failed.append(f"{error}; {error.fix}")
    return mended, failed


def _document(
    seen: HostSeen, found: tuple[Finding, ...], mended: list[Mended], failed: list[str]
) -> dict[str, object]:
    from phantommesh.hostcheck.scan import RULES

    return {
        "running": seen.running,
        "rules": len(RULES),
        "findings": [
            {
                "rule": one.rule,
                "severity": one.severity,
                "subject": one.subject,
                "text": one.text,
                "fix": one.fix,
                "safe_fix": one.mend is not None,
            }
            for one in found
        ],
        "mended": mended,
        "not_mended": failed,
        "unknown": seen.unknown,
    }


def _show(seen: HostSeen, found: tuple[Finding, ...], mended: list[Mended], failed: list[str]) -> None:
    from phantommesh.hostcheck.scan import RULES

    for did in mended:
        field("mended", did.did, _KEY)
        field("  undo", did.undo, _KEY)
    for text in failed:
        field("failed", text, _KEY)
    for one in found:
        field(one.severity, f"{one.rule}: {one.text}", _KEY)
        field("  fix", one.fix, _KEY)
    for text in seen.unknown:
        field("unknown", text, _KEY)
    safe = sum(one.mend is not None for one in found)
    if not found:
        say(f"nothing found, by {len(RULES)} rules")
    else:
        what = "1 finding" if len(found) == 1 else f"{len(found)} findings"
        how = f"; `phantommesh doctor --fix` mends {safe} of them" if safe else ""
        say(f"{what}{how}; docs/hardening.md explains each rule")


def _list(options: Options) -> None:
    from phantommesh.cli.tables import table
    from phantommesh.hostcheck.scan import RULES

    if options.json:
        emit([{"rule": one.id, "severity": one.severity, "title": one.title} for one in RULES.values()])
    else:
        table(("RULE", "SEVERITY", "TITLE"), [(one.id, one.severity, one.title) for one in RULES.values()])
