# SPDX-License-Identifier: GPL-3.0-or-later
"""Which form of a look-up by prefix misses no packet while it is replaced.

    python -m benchmarks.subnet [--changes 300] [--prefixes 16] [--json]

In a network namespace, a program sends datagrams to one prefix without a pause, while the look-up of all
prefixes is replaced again and again, each time in one transaction of `nft`, always with that prefix in it. A
packet that finds nothing is a miss. Three forms: rules in a chain that is flushed and filled; a map of
intervals that is flushed and filled; the same map, of which one element is deleted and added.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

from benchmarks.machine import describe

TABLE = "inet beyond"
SEND = """
import socket
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        made.sendto(b"x", ("10.9.0.7", 9))
    except OSError:
        pass
"""


def prefixes(count: int) -> list[str]:
    """The prefixes; the one that is sent to comes last."""
    return [*(f"10.{100 + i}.0.0/16" for i in range(count - 1)), "10.9.0.0/16"]


def base(chain: str, more: str = "") -> str:
    """The table: what finds nothing is counted as a miss."""
    return f"""
table {TABLE} {{
  counter hits {{ }}
  counter misses {{ }}
  {more}
  chain hit {{
    counter name hits drop
  }}
  chain beyond {{
    {chain}
  }}
  chain out {{
    type filter hook output priority 0; policy accept;
    ip daddr != 10.0.0.0/8 accept
    jump beyond
    counter name misses drop
  }}
}}
"""


def rules(count: int) -> tuple[str, Callable[[int], str]]:
    """One rule a prefix, in another order each time."""

    def change(turn: int) -> str:
        listed = prefixes(count)
        turned = listed[turn % count :] + listed[: turn % count]
        filled = "".join(f"add rule {TABLE} beyond ip daddr {one} goto hit\n" for one in turned)
        return f"flush chain {TABLE} beyond\n{filled}"

    return base("\n    ".join(f"ip daddr {one} goto hit" for one in prefixes(count))), change


def whole_map(count: int) -> tuple[str, Callable[[int], str]]:
    """A map of intervals, all of it."""
    elements = ", ".join(f"{one} : goto hit" for one in prefixes(count))
    made = f"map found {{ type ipv4_addr : verdict; flags interval; elements = {{ {elements} }}\n  }}"
    filled = f"flush map {TABLE} found\nadd element {TABLE} found {{ {elements} }}\n"
    return base("ip daddr vmap @found", made), lambda turn: filled


def one_element(count: int) -> tuple[str, Callable[[int], str]]:
    """The same map: the prefix that is sent to is deleted and added."""
    text, _ = whole_map(count)
    change = (
        f"delete element {TABLE} found {{ 10.9.0.0/16 }}\n"
        f"add element {TABLE} found {{ 10.9.0.0/16 : goto hit }}\n"
    )
    return text, lambda turn: change


FORMS = {"rules": rules, "map, all of it": whole_map, "map, one element": one_element}


def nft(space: str, text: str) -> str:
    """Run a script, or a command, in the namespace."""
    done = subprocess.run(
        ["ip", "netns", "exec", space, "nft", "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def counted(space: str, name: str) -> int:
    """The packets of a counter."""
    shown = nft(space, f"list counter {TABLE} {name}\n")
    return int(re.findall(r"packets (\d+)", shown)[0])


def measure(
    form: Callable[[int], tuple[str, Callable[[int], str]]], count: int, changes: int
) -> dict[str, int]:
    """Send while the look-up is replaced; return hits and misses."""
    space = f"subnet{os.getpid()}"
    subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        subprocess.run(["ip", "-n", space, "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "-n", space, "route", "add", "10.0.0.0/8", "dev", "lo"], check=True)
        text, change = form(count)
        nft(space, text)
        with subprocess.Popen(["ip", "netns", "exec", space, sys.executable, "-c", SEND]) as sender:
            try:
                for turn in range(changes):
                    nft(space, change(turn))
            finally:
                sender.kill()
        return {"hits": counted(space, "hits"), "misses": counted(space, "misses")}
    finally:
        subprocess.run(["ip", "netns", "delete", space], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--prefixes", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {name: measure(form, arguments.prefixes, arguments.changes) for name, form in FORMS.items()}
    if arguments.json:
        print(json.dumps(found))
        return
    print(describe())
    print(f"{arguments.changes} changes of {arguments.prefixes} prefixes")
    for name, counts in found.items():
        print(f"  {name:18} {counts['misses']:8} missed of {counts['hits'] + counts['misses']}")


if __name__ == "__main__":
    main()
