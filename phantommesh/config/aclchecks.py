# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tables `[[acl.rule]]` say, as numbers: protocols and ports; and what none may say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any, Final

from phantommesh.config import intents
from phantommesh.config.acl import ANY, RuleSection
from phantommesh.config.refusing import show
from phantommesh.config.sections import LABEL, ConfigError

TAG: Final = "tag:"
WITH_PORTS: Final = (6, 17)
"""Rules know the ports of these protocols, TCP and UDP."""


def protocols(rule: RuleSection) -> frozenset[int] | None:
    """The numbers of the protocols that a rule is for; None for any. Raises ValueError."""
    if rule.protocol is None or rule.protocol == ANY:
        return frozenset(WITH_PORTS) if rule.ports else None
    if isinstance(rule.protocol, str):
        if (found := intents.PROTOCOLS.get(rule.protocol)) is None:
            raise ValueError(
                f"the names are {', '.join(intents.PROTOCOLS)}; others have a number from 0 to 255"
            )
        return frozenset(found)
    if not 0 <= rule.protocol <= 255:
        raise ValueError("a protocol's number is from 0 to 255")
    return frozenset({rule.protocol})


def ports(rule: RuleSection) -> tuple[tuple[int, int], ...]:
    """The ranges of ports that a rule is for, both ends included, in order. Raises ValueError."""
    return intents.ranges(rule.ports)


def called(name: Any, number: int) -> str:
    """What an error calls a rule: by its name, or by its number in the file, from 1 on."""
    return name if isinstance(name, str) and LABEL.fullmatch(name) else str(number)


def check(rules: Sequence[RuleSection]) -> None:
    """Raise ConfigError, which names the rule, the value and the fix, for rules that cannot be."""
    for name, count in Counter(rule.name for rule in rules).items():
        if count > 1:
            raise ConfigError(
                f"{count} access rules are named {show(name)}", fix="give each a name of its own"
            )
    for number, rule in enumerate(rules, 1):
        _check(f"acl.rule.{called(rule.name, number)}", rule)


def _check(where: str, rule: RuleSection) -> None:
    if not LABEL.fullmatch(rule.name):
        raise ConfigError(
            f"{where}.name = {show(rule.name)} is no rule's name",
            fix="use 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end",
        )
    for key, selectors in (("from", rule.source), ("to", rule.target)):
        for selector in selectors:
            if why := wrong(selector):
                raise ConfigError(f"{where}.{key}: {show(selector)} {why[0]}", fix=why[1])
    for key, read in (("protocol", protocols), ("ports", ports)):
        try:
            read(rule)
        except ValueError as error:
            raise ConfigError(
                f"{where}.{key} = {show(getattr(rule, key))} cannot be: {error}", fix=f"correct {where}.{key}"
            ) from None
    if rule.ports and not (protocols(rule) or frozenset()) <= {*WITH_PORTS}:
        raise ConfigError(
            f"{where}.ports is set, and {where}.protocol = {show(rule.protocol)} is not TCP or UDP",
            fix=f'take {where}.ports out, or set {where}.protocol to "tcp" or "udp"',
        )


def is_network(selector: str) -> bool:
    """Whether a word that is no tag is meant as a network or an address: no name looks like one."""
    return "/" in selector or ":" in selector or bool(re.fullmatch(r"[0-9]+(\.[0-9]+)+", selector))


def wrong(selector: str) -> tuple[str, str] | None:
    """Say why a word selects nobody, and what to write; None where it may."""
    if selector == ANY:
        return None
    if selector.startswith(TAG):
        if LABEL.fullmatch(selector.removeprefix(TAG)):
            return None
        return "is no tag", "write a tag as \"tag:NAME\", where NAME has a-z, 0-9 and '-' only"
    if is_network(selector):
        if "%" in selector:  # Python takes any text there
            return "has a scope (after %)", "leave it out"
        try:
            ip_network(selector)
        except ValueError as error:
            said = "has bits beyond its length" if "host bits" in str(error) else "is no network"
            return said, 'write a network as "10.1.0.0/16" or "fd00:1::/48"'
        return None
    if not LABEL.fullmatch(selector):
        return "is no name of a member", 'see `phantommesh peers` for names; a tag is "tag:NAME"'
    return None
