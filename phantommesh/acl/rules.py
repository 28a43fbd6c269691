# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules: what may come to a node out of the mesh, and the decision on one connection. Pure.

A `Policy` is a list of rules in order and ends in one that matches everything, its default. Several policies
hold together: what one of them denies is denied, so that a node's own rules can only tighten the mesh's.

Whom a name or a tag means is said by certificates alone, which authorities sign: see `Party`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Literal, assert_never

from phantommesh.config import aclchecks
from phantommesh.config.acl import ANY, AclSection, RuleSection
from phantommesh.config.intents import PROTOCOLS
from phantommesh.routable import Network
from phantommesh.trust.identity import IdentityError, NodeId, format_node_id, parse_node_id

IpAddress = IPv4Address | IPv6Address
Range = tuple[int, int]
"""Ports, or numbers of protocols, from the first to the last."""

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
MAX_PORT: Final = 65535
EVERY_PORT: Final[tuple[Range, ...]] = ((0, MAX_PORT),)

Whose = Literal["mesh", "node"]
"""Who made a policy: an authority for the whole mesh, or a node for itself."""


@dataclass(frozen=True, slots=True)
class Anybody:
    """All addresses."""


@dataclass(frozen=True, slots=True)
class Named:
    """The members of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Identified:
    """The member of this node id."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Tagged:
    """The members with this tag."""

    tag: str


@dataclass(frozen=True, slots=True)
class Within:
    """The addresses of a network, whoever has them."""

    network: Network


Selector = Anybody | Named | Identified | Tagged | Within


@dataclass(frozen=True, slots=True)
class Party:
    """A member as rules see it. Name, id, tags and addresses are those of its certificate."""

    name: str
    node_id: NodeId
    addresses: tuple[IPv4Address, IPv6Address]
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``protocols`` None: every protocol; else ``ports`` are those of TCP and UDP. ``builtin``: no
    configuration says it; its name is in brackets, as no configured name is."""

    name: str
    allow: bool
    sources: tuple[Selector, ...] = (Anybody(),)
    targets: tuple[Selector, ...] = (Anybody(),)
    protocols: frozenset[int] | None = None
    ports: tuple[Range, ...] = EVERY_PORT
    builtin: bool = False

    def ports_of(self, protocol: int) -> tuple[Range, ...]:
        """The ports of TCP or UDP that the rule matches."""
        return self.ports if self.protocols is None or protocol in self.protocols else ()

    def takes(self, protocol: int, port: int) -> bool:
        """Whether the rule matches what is of this protocol, at this port of TCP or UDP."""
        if protocol in (TCP, UDP):
            return any(first <= port <= last for first, last in self.ports_of(protocol))
        return self.protocols is None or protocol in self.protocols


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in order, the last of which matches everything."""

    whose: Whose
    rules: tuple[Rule, ...]

    @property
    def idle(self) -> bool:
        """Whether it denies nothing, whatever comes."""
        return all(rule.allow for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a connection, by which rule of whose policy; ``why`` says it in words."""

    allowed: bool
    rule: Rule
    whose: Whose

    @property
    def why(self) -> str:
        """One sentence."""
        policy = "the mesh's policy" if self.whose == "mesh" else "this node's configuration"
        verb = "allows" if self.allowed else "denies"
        if not self.rule.builtin:
            return f"the rule {self.rule.name} of {policy} {verb} it"
        return {
            OWN: "it is the mesh's own measuring, which no rule closes",
            PING: f"{policy} has no rule for it, and ICMP passes where none denies it",
        }.get(self.rule.name, f"{policy} has no rule for it, and its default {verb} it")


OWN: Final = "(mesh)"
PING: Final = "(icmp)"
DEFAULT: Final = "(default)"
MEASURING: Final = Decision(True, Rule(OWN, True, builtin=True), "mesh")
"""The decision on what comes to the UDP ports of a member's overlay addresses by which members measure the
mesh, and keep it."""


def policy_of(section: AclSection, whose: Whose) -> Policy:
    """The policy that a section of the configuration says. Raises ValueError for a section that
    `config.aclchecks` has not seen."""
    rules = list(map(_rule, section.rule))
    if section.default == "deny":
        rules.append(Rule(PING, True, protocols=frozenset({ICMP, ICMP6}), builtin=True))
    rules.append(Rule(DEFAULT, section.default == "allow", builtin=True))
    return Policy(whose, tuple(rules))


def _rule(section: RuleSection) -> Rule:
    return Rule(
        section.name,
        section.action == "allow",
        tuple(map(selector_of, section.source)),
        tuple(map(selector_of, section.target)),
        aclchecks.protocols(section),
        aclchecks.ports(section) or EVERY_PORT,
    )


def selector_of(word: str) -> Selector:
    """Whom a word of a rule selects. A word that can be a node id is one, so that no member gets into a rule
    by calling itself like another's id. Raises ValueError."""
    if word == ANY:
        return Anybody()
    if word.startswith(aclchecks.TAG):
        return Tagged(word.removeprefix(aclchecks.TAG))
    if aclchecks.is_network(word):
        return Within(ip_network(word))
    try:
        return Identified(parse_node_id(word))
    except IdentityError:
        return Named(word)


def word_of(selector: Selector) -> str:
    """The word for a selector: `selector_of` makes the same of it."""
    match selector:
        case Anybody():
            return ANY
        case Within(network):
            return str(network)
        case Named(name):
            return name
        case Identified(node_id):
            return format_node_id(node_id)
        case Tagged(tag):
            return aclchecks.TAG + tag
        case _:
            assert_never(selector)


def parse_service(text: str) -> tuple[int, int]:
    """Read what an operator asks about, as protocol and port: ``22`` and ``22/tcp``, ``53/udp``, ``icmp`` or
    another protocol's name. Raises ValueError."""
    port, slash, name = text.partition("/")
    if port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= MAX_PORT:
        if name in ("tcp", "udp") or not slash:
            return (UDP if name == "udp" else TCP), int(port)
        raise ValueError("a port is of tcp or udp")
    if not slash and text in PROTOCOLS and text not in ("tcp", "udp"):
        return PROTOCOLS[text][0], 0
    raise ValueError('write a port as 22 or "53/udp", or give a protocol without ports, e.g. icmp')


def protocol_name(number: int) -> str:
    """What a protocol is called; its number where it has no name here."""
    return next((name for name, numbers in PROTOCOLS.items() if number in numbers), str(number))


def selects(selector: Selector, address: IpAddress, party: Party | None) -> bool:
    """Whether a selector means this address, which is ``party``'s, if it is a member's at all."""
    match selector:
        case Anybody():
            return True
        case Within(network):
            return address.version == network.version and address in network
        case Named(name):
            return party is not None and party.name == name
        case Identified(node_id):
            return party is not None and party.node_id == node_id
        case Tagged(tag):
            return party is not None and tag in party.tags
        case _:
            assert_never(selector)


def by_address(parties: Iterable[Party]) -> dict[IpAddress, Party]:
    """The members by their overlay addresses; of two that claim one address, the later."""
    return {address: party for party in parties for address in party.addresses}


def decide(
    policies: Sequence[Policy], holders: Mapping[IpAddress, Party], source: IpAddress, target: IpAddress,
    protocol: int, port: int = 0, own: Collection[int] = (),
) -> Decision:  # fmt: skip
    """Decide on a new connection, by reading rule after rule: the meaning that what is compiled has to have.
    ``holders`` are the members by address, ``port`` is the target's, of TCP and UDP; ``own`` are the ports of
    `MEASURING`."""
    if protocol == UDP and port in own and target in holders:
        return MEASURING
    ends = (source, holders.get(source)), (target, holders.get(target))
    found = [_first(policy, ends, protocol, port) for policy in policies]
    return next((decision for decision in found if not decision.allowed), found[-1])


def _first(
    policy: Policy, ends: tuple[tuple[IpAddress, Party | None], ...], protocol: int, port: int
) -> Decision:
    for rule in policy.rules:
        sides = zip((rule.sources, rule.targets), ends, strict=True)
        if all(any(selects(one, *end) for one in selectors) for selectors, end in sides) and rule.takes(
            protocol, port
        ):
            return Decision(rule.allow, rule, policy.whose)
    raise AssertionError("the last rule of a policy matches everything")


def parse_address(text: str) -> IpAddress | None:
    """An address without a scope; None for what is no address."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None
