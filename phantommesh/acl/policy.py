# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's policy: access rules that hold on every node, and tests of what they must say. Pure.

A policy is rules as `[acl]` has them, a default, and tests: this may, that may not. The tests are run before
a policy is signed, and again by each node before the policy holds. They depend on the policy and the mesh's
networks alone and never on who is a member just now: else one node would take what another refuses.

A node's own rules hold beside the policy. Each of the two can only deny (`rules.decide`), so a node can
tighten the policy and never widen it. `signedpolicy` has the signature.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence, Set
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from phantommesh.acl.rules import (
    Anybody,
    Identified,
    IpAddress,
    Named,
    Party,
    Policy,
    Tagged,
    Within,
    decide,
    parse_address,
    parse_service,
    policy_of,
    selector_of,
)
from phantommesh.config import aclchecks
from phantommesh.config.acl import ANY, AclSection, Action, RuleSection
from phantommesh.config.sections import ConfigError
from phantommesh.errors import PhantomMeshError, shortened
from phantommesh.trust.certificates import Mesh
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId

# Tuning.
MAX_POLICY_BYTES: Final = 65_536  # as it is signed: some 600 rules. All nodes keep one and send it around
MAX_POLICY_RULES: Final = 2_048
MAX_TESTS: Final = 256
MAX_WORK: Final = 1_000_000  # words of rules that all tests together may look at: below a second
MAX_WORDS: Final = 16  # by which a test says whom it is about
_SHOWN: Final = 80  # characters of what somebody wrote, in an error

_NO_ADDRESSES: Final = (IPv4Address(0), IPv6Address(0))


class PolicyError(PhantomMeshError):
    """A policy that cannot be, or that its own tests refuse."""


class TestSection(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "target": "to"}
):
    """A test: whether a new connection passes. ``source`` and ``target`` say by words whom it is about: one
    member by its name, its node id and its tags as far as rules go by them, or an address. ``port`` is
    ``22``, ``53/udp`` or a protocol's name."""

    __test__ = False  # not a test class

    source: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_WORDS)]
    target: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_WORDS)]
    port: Annotated[str, Meta(max_length=16)]
    expect: Action = "allow"

    @property
    def said(self) -> str:
        """The test in words."""
        ends = (" ".join(end) for end in (self.source, self.target))
        return shortened(f"{' to '.join(ends)}, {self.port}", _SHOWN)


class PolicySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mesh's policy, as it is written and as it is signed. ``test`` are its tests."""

    default: Literal["allow", "deny"] = "allow"
    rule: Annotated[tuple[RuleSection, ...], Meta(max_length=MAX_POLICY_RULES)] = ()
    test: Annotated[tuple[TestSection, ...], Meta(max_length=MAX_TESTS)] = ()

    def policy(self) -> Policy:
        """The rules as they hold. Raises PolicyError."""
        try:
            aclchecks.check(self.rule)
            return policy_of(AclSection(self.default, self.rule), "mesh")
        except ConfigError as error:
            raise PolicyError(str(error), fix=error.fix) from None

    def encode(self) -> bytes:
        """The bytes that are signed. Raises PolicyError where they are too many."""
        data = msgspec.msgpack.encode(self)
        if len(data) > MAX_POLICY_BYTES:
            raise PolicyError(
                f"the policy has {len(data)} bytes, and {MAX_POLICY_BYTES} are the most",
                fix="go by tags instead of names, and by networks instead of addresses",
            )
        return data


def decode_untrusted(data: bytes) -> PolicySection:
    """Read what `PolicySection.encode` wrote. A key that is not known is refused, not passed over: it could
    be what denies. Raises PolicyError only."""
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError("the policy is too long")
    try:
        _check_keys(msgspec.msgpack.decode(data))
        return msgspec.msgpack.decode(data, type=PolicySection)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PolicyError("the policy cannot be read", fix="run one version on all nodes") from error


def parse(text: str) -> PolicySection:
    """Read a policy as an operator writes it: TOML with ``default``, ``[[rule]]`` and ``[[test]]``. Raises
    PolicyError."""
    try:
        given = tomllib.loads(text)
        _check_keys(given)
        return msgspec.convert(given, PolicySection)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise PolicyError(
            f"the policy cannot be read: {shortened(str(error), 200)}",
            fix='it has default = "deny", [[rule]] as [[acl.rule]] is in a configuration, e.g. name = "ssh", '
            'from = ["tag:ops"], ports = [22], and [[test]], e.g. from = ["laptop"], to = ["db"], '
            'port = "22", expect = "allow"',
        ) from None


def _check_keys(given: object) -> None:
    """Raise ValidationError for a rule with a key that no rule has. `RuleSection` passes it over: the
    configuration's reader has looked before."""
    known = {field.encode_name for field in msgspec.structs.fields(RuleSection)}
    ruled = given.get("rule", ()) if isinstance(given, dict) else ()
    for rule in ruled if isinstance(ruled, list | tuple) else ():
        if isinstance(rule, dict) and (unknown := [key for key in rule if key not in known]):
            raise msgspec.ValidationError(f"a rule has no key {shortened(ascii(unknown[0]), _SHOWN)}")


def accept(section: PolicySection, mesh: Mesh) -> Policy:
    """The policy, once it is well-formed and says what each of its tests wants, in both families. Raises
    PolicyError, which names the first test that fails and the rule that decided."""
    policy = section.policy()
    words = sum(len(rule.sources) + len(rule.targets) for rule in policy.rules)
    if (work := 2 * len(section.test) * words) > MAX_WORK:
        raise PolicyError(
            f"the policy's tests look at {work} words of its rules, and {MAX_WORK} are the most",
            fix="go by tags instead of names, or leave tests out",
        )
    for test in section.test:
        protocol, port = _service(test)
        for source, target in _ends(test, policy, mesh):
            holders = {address: party for address, party in (source, target) if party is not None}
            found = decide([policy], holders, source[0], target[0], protocol, port)
            if found.allowed != (test.expect == "allow"):
                raise PolicyError(
                    f"the policy fails its test {test.said}: over IPv{source[0].version} {found.why}, and "
                    f"the test expects {test.expect}",
                    fix="correct the rule or the test; the first rule that matches decides",
                )
    return policy


def holding(mesh: Policy | None, node: Policy) -> list[Policy]:
    """The policies that hold on a node: the mesh's, if there is one, and its own, which can only tighten."""
    return [node] if mesh is None else [mesh, node]


def _service(test: TestSection) -> tuple[int, int]:
    try:
        return parse_service(test.port)
    except ValueError as error:
        raise PolicyError(f"the test {test.said} is about no port", fix=str(error)) from None


_End = tuple[IpAddress, Party | None]
"""An address, and the member whose it is, if it is a member's at all."""


def _ends(test: TestSection, policy: Policy, mesh: Mesh) -> Iterator[tuple[_End, _End]]:
    """Whom a test is about, once for each family in which both ends have an address."""
    inner = [
        selector.network
        for rule in policy.rules
        for selector in (*rule.sources, *rule.targets)
        if isinstance(selector, Within)
    ]
    named = _addresses(test, test.source), _addresses(test, test.target)
    if not (families := [v for v in (4, 6) if all(not end or v in end for end in named)]):
        raise PolicyError(
            f"the ends of the test {test.said} have no family in common", fix="give both IPv4, or both IPv6"
        )
    if any(named[0].get(version) == named[1].get(version) is not None for version in families):
        raise PolicyError(f"the test {test.said} is about one address at both ends", fix="give two")
    parties = _party(test, test.source), _party(test, test.target)
    for version in families:
        network = mesh.network4 if version == 4 else mesh.network6
        used = {end[version] for end in named if version in end}
        source = named[0].get(version) or _free(network, inner, used, test)
        target = named[1].get(version) or _free(network, inner, used | {source}, test)
        yield (source, parties[0]), (target, parties[1])


def _addresses(test: TestSection, words: Iterable[str]) -> dict[int, IpAddress]:
    """The addresses among the words of an end by their version, which has one at most."""
    found = [address for word in words if (address := parse_address(word)) is not None]
    by_version: dict[int, IpAddress] = {one.version: one for one in found}
    if len(by_version) < len(found):
        raise PolicyError(f"the test {test.said} has two addresses at one end", fix="write a test for each")
    return by_version


def _free(
    network: IPv4Network | IPv6Network, inner: Sequence[IPv4Network | IPv6Network], used: Set[IpAddress],
    test: TestSection,
) -> IpAddress:  # fmt: skip
    """The address of a member whom rules mean by words alone, and by no part of the mesh's network."""
    narrow = [
        one
        for one in inner
        if one.version == network.version and one.prefixlen > network.prefixlen and one[0] in network
    ]
    starts = [int(network[1]), *(int(one[-1]) + 1 for one in narrow)]
    for start in starts:
        for value in range(start, min(start + 3, int(network[-1]))):
            address: IpAddress = IPv4Address(value) if network.version == 4 else IPv6Address(value)
            if address not in used and not any(address in one for one in narrow):
                return address
    raise PolicyError(
        f"the rules name all addresses of the mesh one by one, so the test {test.said} has none",
        fix="give addresses in the test",
    )


def _party(test: TestSection, words: Iterable[str]) -> Party | None:
    """The member that an end of a test is about; None for an address alone. Its own addresses do not
    matter."""
    names, ids, tags = list[str](), list[NodeId](), set[str]()
    for word in words:
        if parse_address(word) is not None:
            continue
        if word == ANY or (aclchecks.is_network(word) and not word.startswith(aclchecks.TAG)):
            raise PolicyError(
                f"the test {test.said}: {shortened(ascii(word), _SHOWN)} is no member",
                fix="name one member, by name, node id and tags, or give an address",
            )
        if why := aclchecks.wrong(word):
            raise PolicyError(f"the test {test.said}: {shortened(ascii(word), _SHOWN)} {why[0]}", fix=why[1])
        match selector_of(word):
            case Tagged(tag):
                tags.add(tag)
            case Identified(node_id):
                ids.append(node_id)
            case Named(name):
                names.append(name)
            case Anybody() | Within():
                raise AssertionError("no word of a member")
    if len(names) > 1 or len(ids) > 1:
        raise PolicyError(f"the test {test.said} names two members at one end", fix="name one")
    if not (names or ids or tags):
        return None
    nobody = NodeId(bytes(NODE_ID_BYTES))
    return Party("".join(names), next(iter(ids), nobody), _NO_ADDRESSES, frozenset(tags))
