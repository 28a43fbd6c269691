# SPDX-License-Identifier: GPL-3.0-or-later
"""Other programs' packet filters, and what they do to a packet of ours: dropped, redirected, or let by.

Rules are read from ``nft --json list ruleset`` (libnftables-json(5)) and from iptables-save. A packet is a
few fields (`Packet`); all else about it is open. So a match is yes, no or maybe, and a rule that may let the
packet by has the benefit of the doubt: only what is dropped for sure is called dropped.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, TypeAlias, assert_never

import msgspec

# Tuning: what a hostile or huge ruleset may cost.
MOST_STEPS: Final = 20_000  # rules looked at for one packet; a node of a large cluster has some thousands
DEEPEST: Final = 16  # jumps within each other, as the kernel's NFT_JUMP_STACK_SIZE

Field = Literal["protocol", "dport", "sport", "iif", "oif", "state", "status", "family"]
Value: TypeAlias = int | str
Span: TypeAlias = tuple[int, int] | str
"""Numbers from, to; or a name, in which ``*`` stands for any end."""
Effect = Literal["accept", "drop", "jump", "goto", "return", "redirect", "none"]
Packet: TypeAlias = Mapping[Field, Value]

# nft's names of what a match looks at: (kind, key or field).
_META: Final[dict[str, Field]] = {
    "l4proto": "protocol", "iifname": "iif", "iif": "iif", "oifname": "oif", "oif": "oif",
    "nfproto": "family",
}  # fmt: skip
_PORTS: Final[dict[str, Field]] = {"dport": "dport", "sport": "sport"}
_TRANSPORTS: Final = frozenset({"tcp", "udp", "sctp", "dccp", "udplite", "icmp", "icmpv6"})
_ASIDE: Final = frozenset({"counter", "log", "notrack", "comment", "mangle", "ct helper", "meter", "set"})
_HOOKS_OF_IPTABLES: Final = {
    "PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}  # fmt: skip


class Match(msgspec.Struct, frozen=True):
    """One condition. ``field`` is None for what is not understood: it may hold or not."""

    field: Field | None
    spans: tuple[Span, ...] = ()
    negated: bool = False

    def holds(self, packet: Packet) -> bool | None:
        """Whether it holds for a packet; None where that is open."""
        if self.field is None or self.field not in packet:
            return None
        value = packet[self.field]
        found = any(_within(value, span) for span in self.spans)
        return found != self.negated


class Rule(msgspec.Struct, frozen=True):
    """Conditions, all of which have to hold, and what happens then. ``target``: the chain that is jumped to,
    or where a packet is redirected."""

    matches: tuple[Match, ...]
    effect: Effect
    target: str = ""


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """One chain. ``hook`` is empty for one that is only jumped to. ``table`` is its family and name; chains
    of one ``table`` jump to each other by ``name``."""

    table: str
    name: str
    hook: str = ""
    policy: Literal["accept", "drop"] = "accept"
    rules: tuple[Rule, ...] = ()

    @property
    def label(self) -> str:
        """How an operator finds it."""
        return f"chain {self.name} of table {self.table}"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a packet in a chain. ``where`` says which chain decided."""

    kind: Literal["accept", "drop", "redirect"]
    where: str = ""
    target: str = ""


def fates(chains: Sequence[Chain], hook: str, packet: Packet) -> Iterator[Fate]:
    """Yield what each base chain at a hook does to a packet for sure, where that is not letting it by."""
    tables = {(chain.table, chain.name): chain for chain in chains}
    for chain in chains:
        if chain.hook == hook and _may_see(chain, packet):
            fate = _Walk(tables, packet).through(chain)
            if fate.kind != "accept":
                yield fate


def _may_see(chain: Chain, packet: Packet) -> bool:
    family = chain.table.split(" ")[0]
    return packet.get("family") in {None, {"ip": "ipv4", "ip6": "ipv6"}.get(family, packet.get("family"))}


class _Walk:
    """One packet on its way through a base chain and those that it jumps to."""

    def __init__(self, tables: Mapping[tuple[str, str], Chain], packet: Packet) -> None:
        self._tables, self._packet = tables, packet
        self._steps = MOST_STEPS

    def through(self, chain: Chain) -> Fate:
        """Return what becomes of the packet."""
        end = self._rules(chain, 0)
        if end is not None:
            return end
        return Fate("drop", f"{chain.label}, by its policy") if chain.policy == "drop" else Fate("accept")

    def _rules(self, chain: Chain, depth: int) -> Fate | None:
        """Go through a chain's rules; None where the packet comes out at their end."""
        left = False  # whether the packet may have left this chain by a rule above
        for rule in chain.rules:
            self._steps -= 1
            if self._steps <= 0 or depth > DEEPEST:
                return Fate("accept")  # too much to say anything for sure
            sure = self._sure(rule)
            if sure is False:
                continue
            end = self._effect(chain, rule, depth, sure=sure is True)
            if end == "return":
                if sure is True:
                    return None
                left = left or chain.policy == "accept"
            elif isinstance(end, Fate) and not (left and end.kind == "drop"):
                return end
        return None

    def _sure(self, rule: Rule) -> bool | None:
        """Whether a rule applies; None where that is open."""
        held = [match.holds(self._packet) for match in rule.matches]
        if False in held:
            return False
        return None if None in held else True

    def _effect(self, chain: Chain, rule: Rule, depth: int, *, sure: bool) -> Fate | Literal["return"] | None:
        """What a rule does that applies for ``sure``, or may apply."""
        match rule.effect:
            case "accept":
                return Fate("accept")
            case "drop":
                return Fate("drop", chain.label) if sure else None
            case "redirect":
                return Fate("redirect", chain.label, rule.target) if self._names_port(rule) else None
            case "return":
                return "return"
            case "jump" | "goto":
                target = self._tables.get((chain.table, rule.target))
                end = None if target is None else self._rules(target, depth + 1)
                if end is None:
                    return "return" if rule.effect == "goto" else None
                return end if sure or end.kind != "drop" else None
            case "none":
                return None
            case _:
                assert_never(rule.effect)

    def _names_port(self, rule: Rule) -> bool:
        """Whether a rule asks for the packet's own port, so that it is about this port and no other."""
        return any(match.field == "dport" and not match.negated for match in rule.matches)


def _within(value: Value, span: Span) -> bool:
    if isinstance(span, str):
        return isinstance(value, str) and fnmatchcase(value, span)
    return isinstance(value, int) and span[0] <= value <= span[1]


# ---- nft --json ----


def read_nft(document: Any, ours: str) -> list[Chain]:
    """The chains of nft's JSON, without tables whose name starts with ``ours``. What is not understood of it
    is a match that may hold, or left out: it is never an error."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    for item in _list(document.get("nftables") if isinstance(document, dict) else None):
        if not isinstance(item, dict):
            continue
        chain, rule = item.get("chain"), item.get("rule")
        one = chain if isinstance(chain, dict) else rule
        if not isinstance(one, dict) or str(one.get("table", "")).startswith(ours):
            continue
        table = f"{one.get('family')} {one.get('table')}"
        if isinstance(chain, dict):
            found[table, str(chain.get("name"))] = chain
        else:
            rules.setdefault((table, str(one.get("chain"))), []).extend(_nft_rule(_list(one.get("expr"))))
    return [
        Chain(
            table=table,
            name=name,
            hook=str(chain.get("hook", "")),
            policy="drop" if chain.get("policy") == "drop" else "accept",
            rules=tuple(rules.get((table, name), ())),
        )
        for (table, name), chain in found.items()
        if chain.get("family") in ("ip", "ip6", "inet")
    ]


def _nft_rule(expressions: Sequence[Any]) -> Iterator[Rule]:
    """One rule of nft as rules of ours: a verdict map is a rule an element."""
    matches: list[Match] = []
    for expression in expressions:
        if not isinstance(expression, dict) or not expression:
            matches.append(Match(None))
            continue
        [(kind, body), *_] = expression.items()
        if kind == "match" and isinstance(body, dict):
            matches += _nft_match(body)
        elif kind == "vmap" and isinstance(body, dict):
            yield from _nft_vmap(matches, body)
        elif (verdict := _nft_verdict(kind, body)) is not None:
            yield Rule(tuple(matches), *verdict)
            return
        elif kind not in _ASIDE:
            matches.append(Match(None))  # a limit, a quota, what came later than this code


def _nft_verdict(kind: str, body: Any) -> tuple[Effect, str] | None:
    match kind:
        case "accept" | "queue":
            return "accept", ""
        case "drop" | "reject":
            return "drop", ""
        case "return" | "continue":
            return ("return", "") if kind == "return" else None
        case "jump" | "goto":
            target = body.get("target", "") if isinstance(body, dict) else ""
            return ("jump" if kind == "jump" else "goto"), str(target)
        case "dnat" | "redirect" | "tproxy":
            said = body if isinstance(body, dict) else {}
            where = ":".join(
                str(said[key]) for key in ("addr", "port") if isinstance(said.get(key), str | int)
            )
            return "redirect", where or kind
        case _:
            return None


def _nft_match(body: Mapping[str, Any]) -> Iterator[Match]:
    field, more = _nft_left(body.get("left"))
    if more is not None:
        yield more
    spans = _nft_right(body.get("right"))
    operator = body.get("op")
    known = field is not None and spans is not None and operator in ("==", "!=", "in")
    yield Match(field, spans or (), operator == "!=") if known else Match(None)


def _nft_left(left: Any) -> tuple[Field | None, Match | None]:
    """What a match looks at, and what it takes for granted besides: ``udp dport`` is of UDP alone."""
    if not isinstance(left, dict):
        return None, None
    if isinstance(meta := left.get("meta"), dict):
        return _META.get(str(meta.get("key"))), None
    if isinstance(ct := left.get("ct"), dict):
        key = ct.get("key")
        return (key if key == "state" or key == "status" else None), None
    if isinstance(payload := left.get("payload"), dict):
        protocol, name = str(payload.get("protocol")), str(payload.get("field"))
        more = Match("protocol", (protocol,)) if protocol in _TRANSPORTS else None
        if name == "protocol" and protocol == "ip":
            return "protocol", None
        if protocol in ("ip", "ip6"):
            return None, Match("family", ("ipv4" if protocol == "ip" else "ipv6",))
        return (_PORTS.get(name) if protocol in ("udp", "tcp", "th") else None), more
    return None, None


def _nft_right(right: Any) -> tuple[Span, ...] | None:
    """The values of a match; None where they are not understood, such as a named set."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    spans: list[Span] = []
    for one in right if isinstance(right, list) else [right]:
        if isinstance(one, dict) and isinstance(ends := one.get("range"), list) and len(ends) == 2:
            one = tuple(ends)
        span = _span(one)
        if span is None:
            return None
        spans.append(span)
    return tuple(spans)


def _span(value: Any) -> Span | None:
    match value:
        case bool():
            return None
        case int():
            return value, value
        case (int(low), int(high)):
            return low, high
        case str() if value and value[0] not in "@$":
            return value
        case _:
            return None


def _nft_vmap(before: Sequence[Match], body: Mapping[str, Any]) -> Iterator[Rule]:
    field, more = _nft_left(body.get("key"))
    given = (*before, *(() if more is None else (more,)))
    data = body.get("data")
    elements = data.get("set") if isinstance(data, dict) else None
    if not isinstance(elements, list):
        yield Rule((*given, Match(None)), "accept")  # a named map: its verdicts are not known
        return
    for element in elements:
        if not isinstance(element, list) or len(element) != 2 or not isinstance(element[1], dict):
            continue
        spans = _nft_right(element[0])
        [(kind, verdict_body), *_] = element[1].items() or [("", None)]
        if (verdict := _nft_verdict(kind, verdict_body)) is not None:
            known = field is not None and spans is not None
            yield Rule((*given, Match(field, spans or ()) if known else Match(None)), *verdict)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# ---- iptables-save ----


def read_iptables(lines: Iterable[str], family: Literal["ip", "ip6"]) -> list[Chain]:
    """The chains of iptables-save's text. A match that is not understood may hold."""
    chains: dict[tuple[str, str], tuple[str, Literal["accept", "drop"]]] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    table = ""
    for line in lines:
        words = _words(line)
        if not words:
            continue
        if words[0].startswith("*"):
            table = f"{family} {words[0][1:]} (iptables)"
        elif words[0].startswith(":") and len(words) > 1:
            name = words[0][1:]
            hook = _HOOKS_OF_IPTABLES.get(name, "") if words[1] != "-" else ""
            chains[table, name] = hook, "drop" if words[1] == "DROP" else "accept"
        elif words[0] == "-A" and len(words) > 2:
            rules.setdefault((table, words[1]), []).append(_iptables_rule(words[2:]))
    return [
        Chain(table=where, name=name, hook=hook, policy=policy, rules=tuple(rules.get((where, name), ())))
        for (where, name), (hook, policy) in chains.items()
    ]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _iptables_rule(words: Sequence[str]) -> Rule:
    matches: list[Match] = []
    negated, at = False, 0
    effect: Effect = "none"
    target = ""
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 2
        match word:
            case "!":
                negated, at = True, at - 1
                continue
            case "-p" | "--protocol":
                matches.append(Match("protocol", (value,), negated))
            case "-i" | "-o":
                field: Field = "iif" if word == "-i" else "oif"
                matches.append(Match(field, (value[:-1] + "*" if value.endswith("+") else value,), negated))
            case "--dport" | "--dports" | "--sport" | "--sports" | "--destination-port" | "--source-port":
                side: Field = "dport" if word.startswith("--d") else "sport"
                matches.append(_ports(side, value, negated))
            case "--ctstate" | "--state":
                matches.append(Match("state", tuple(value.lower().split(",")), negated))
            case "-m":
                if value not in ("udp", "tcp", "multiport", "conntrack", "state", "comment"):
                    matches.append(Match(None))
            case "--comment":
                pass
            case "-j" | "-g":
                effect, target = _iptables_target(value, words[at:], goto=word == "-g")
                break
            case _:
                matches.append(Match(None))
                at -= 1  # how many values an option has is its own
        negated = False
    return Rule(tuple(matches), effect, target)


def _ports(field: Field, text: str, negated: bool) -> Match:
    spans: list[Span] = []
    for part in text.split(","):
        low, _, high = part.partition(":")
        if not (low.isdecimal() and (high or low).isdecimal()):
            return Match(None)
        spans.append((int(low), int(high or low)))
    return Match(field, tuple(spans), negated)


def _iptables_target(name: str, rest: Sequence[str], *, goto: bool) -> tuple[Effect, str]:
    match name:
        case "ACCEPT" | "QUEUE" | "NFQUEUE":
            return "accept", ""
        case "DROP" | "REJECT":
            return "drop", ""
        case "RETURN":
            return "return", ""
        case "DNAT" | "REDIRECT" | "TPROXY":
            return "redirect", rest[1] if len(rest) > 1 else name.lower()
        case "LOG" | "MARK" | "CONNMARK" | "NFLOG" | "TCPMSS" | "MASQUERADE" | "SNAT" | "CT" | "NOTRACK":
            return "none", ""
        case _:
            return ("goto" if goto else "jump"), name
