# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `wait`: for scripts that go on once the node does its work."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import CliError, Duration, Options, client_of, json_option
from phantommesh.cli.output import emit, say

if TYPE_CHECKING:
    from phantommesh.management.views import Status

# Tuning.
_LOOK_S = 0.25  # between looks
_SAY_S = 1.0  # after which it says what it waits for


@click.command()
@click.option("--ready", is_flag=True, help="Until the node does its work, which is the default.")
@click.option(
    "--timeout", type=Duration(), default=60.0, show_default="1m", help="The longest time that it waits."
)
@json_option
@click.pass_obj
def wait(options: Options, ready: bool, timeout: float) -> None:
    """Wait until the node runs and is ready.

    Exit status: 0 it is ready, 1 it runs and is not ready after --timeout, 3 it does not run even then.

    \b
    Example:
      phantommesh wait --ready --timeout 30s
    """
    from phantommesh.cli.absent import starting_or_leaving
    from phantommesh.client.http import NodeNotRunningError

    start, said = time.monotonic(), ""
    while True:
        last: Status | NodeNotRunningError
        try:
            last = client_of(options).status()
        except NodeNotRunningError as error:
            last, why = error, starting_or_leaving(options) or "the node is not running"
        else:
            if last.ready:
                break
            why = last.degraded[0] if last.degraded else f"the node is {last.state}"
        passed = time.monotonic() - start
        if passed >= timeout:
            if isinstance(last, NodeNotRunningError):
                raise last
            raise CliError(f"the node is not ready: {why}", fix="see `phantommesh status`")
        if why != said and passed >= _SAY_S:
            said = why
            say(f"waiting: {why}", err=True)
        time.sleep(min(_LOOK_S, timeout - passed))
    if options.json:
        emit({"ready": True, "node": last.node, "waited_s": round(time.monotonic() - start, 3)})
    else:
        say(f"{last.node} is ready")
