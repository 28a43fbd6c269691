# SPDX-License-Identifier: GPL-3.0-or-later
"""An example for the help of each verb that has none in its own text."""

from __future__ import annotations

from typing import Final

import click

EXAMPLES: Final = {
    "": "phantommesh status",
    "init": "phantommesh init --mesh home --endpoint vpn.example.net",
    "invite": "phantommesh invite --name nas --ttl 10m",
    "join": "phantommesh join pm1_...",
    "run": "sudo phantommesh run",
    "status": "phantommesh status --exit-code",
    "peers": "phantommesh peers --json",
    "links": "phantommesh links",
    "paths": "phantommesh paths",
    "ping": "phantommesh ping nas -c 10",
    "netcheck": "phantommesh netcheck",
    "doctor": "sudo phantommesh doctor",
    "topology": "phantommesh topology",
    "scatter": "phantommesh scatter",
    "route": "phantommesh route list",
    "route list": "phantommesh route list",
    "route explain": "phantommesh route explain 10.1.2.3",
    "route approve": "phantommesh route approve nas 10.1.0.0/16",
    "route revoke": "phantommesh route revoke nas 10.1.0.0/16",
    "acl": "phantommesh acl show",
    "acl show": "phantommesh acl show",
    "acl set-policy": "phantommesh acl set-policy policy.toml",
    "acl check": "phantommesh acl check laptop nas 443",
    "federation": "phantommesh federation list",
    "federation list": "phantommesh federation list",
    "federation invite": "phantommesh federation invite --service db:tcp/5432:web",
    "federation accept": "phantommesh federation accept - --member web",
    "federation end": "phantommesh federation end 3f9a10c2",
    "proofs": "phantommesh proofs --export proofs.bin",
    "agents": "phantommesh agents pause cipher",
    "decisions": "phantommesh decisions --follow",
    "incidents": "phantommesh incidents",
    "memory": "phantommesh memory",
    "threats": "phantommesh threats",
    "events": "phantommesh events --follow --type peer.*",
    "rename": "phantommesh rename nas-2",
    "drain": "phantommesh drain --wait",
    "undrain": "phantommesh undrain --wait",
    "identity": "phantommesh identity new",
    "identity new": "phantommesh identity new",
    "config": "phantommesh config show",
    "config check": "phantommesh config check",
    "config show": "phantommesh config show",
    "config write": "phantommesh config write",
    "token": "phantommesh token list",
    "token create": "phantommesh token create --scope read",
    "token list": "phantommesh token list",
    "token revoke": "phantommesh token revoke 3f9a10c2",
    "audit": "phantommesh audit",
    "lab": "sudo phantommesh lab run",
    "lab up": "sudo phantommesh lab up --nodes 3",
    "lab down": "sudo phantommesh lab down",
    "lab status": "sudo phantommesh lab status",
    "lab exec": "sudo phantommesh lab exec 1 -- phantommesh status",
    "lab run": "sudo phantommesh lab run --nodes 3",
}


def show_examples(command: click.Command, words: tuple[str, ...] = ()) -> None:
    """Have the help of each verb end with its example."""
    example = EXAMPLES.get(" ".join(words))
    if example is not None and command.epilog is None:
        command.epilog = f"Example: {example}"
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            show_examples(each, (*words, name))
