# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of access rules is kept as it should be, over a kernel that may refuse or lose it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from phantommesh.acl.rules import Party
from phantommesh.acl.standing import Connection, TcpSockets
from phantommesh.config.acl import AclSection, RuleSection
from phantommesh.node.access import Situation
from phantommesh.nursery.dataplane.access import Access
from phantommesh.nursery.host.nft import Fingerprint, NftError
from phantommesh.trust.identity import NodeId


def party(number: int, name: str) -> Party:
    return Party(name, NodeId(bytes([number]) * 16), (IPv4Address(number), IPv6Address(number)))


ME, WEB, OPS = party(1, "db"), party(2, "web"), party(3, "ops")
SSH = RuleSection("ssh", source=("web", "ops"), protocol="tcp", ports=(22,))


class Kernel:
    """In place of `nft.Table`: ``table`` counts installations, None: there is none."""

    def __init__(self) -> None:
        self.table: int | None = None
        self.scripts: list[str] = []
        self.refuses = False
        self.packets = 0

    async def install(self, text: str) -> None:
        if self.refuses:
            raise NftError("refused")
        self.scripts.append(text)
        if text.startswith("add table"):
            self.table = len(self.scripts)

    async def remove(self) -> None:
        self.table = None

    async def fingerprint(self, *sets: str) -> Fingerprint | None:
        return None if self.table is None else Fingerprint(self.table, frozenset(), ())

    async def counters_of(self, *names: str) -> dict[str, dict[bytes, tuple[int, int]]]:
        if self.table is None:
            raise NftError("no table")
        return {name: {b"\0\x16": (self.packets, 0)} for name in names if name.startswith("tcp")}


def there(kernel: Kernel) -> int | None:
    """The number of the table that there is."""
    return kernel.table


class Node:
    def __init__(self) -> None:
        self.now = Situation(AclSection("deny", (SSH,)), ME, (WEB,), ())
        self.kernel = Kernel()
        self.sockets: TcpSockets | OSError = TcpSockets()
        self.access = Access(
            lambda: self.now, "pm", ("pm0",), rules=self.kernel, sockets=lambda connections: self.read()
        )

    def read(self) -> TcpSockets:
        if isinstance(self.sockets, OSError):
            raise self.sockets
        return self.sockets

    def rules(self, section: AclSection, *others: Party) -> None:
        self.now = Situation(section, ME, others, ())


async def test_without_a_rule_that_denies_there_is_no_table() -> None:
    node = Node()
    node.rules(AclSection("allow", (SSH,)), WEB)
    node.kernel.table = 7  # of a run of before
    await node.access.converge()
    assert there(node.kernel) is None and node.kernel.scripts == []
    node.rules(AclSection("deny"), WEB)
    await node.access.converge()
    assert there(node.kernel) is not None
    node.rules(AclSection("allow"), WEB)
    await node.access.converge()
    assert there(node.kernel) is None


async def test_a_member_that_comes_is_an_element_and_new_rules_are_a_new_table() -> None:
    node = Node()
    await node.access.converge()
    await node.access.converge()
    assert len(node.kernel.scripts) == 1
    node.rules(node.now.section, WEB, OPS)
    await node.access.converge()
    assert node.kernel.scripts[1].startswith("add element")
    node.rules(AclSection("deny"), WEB, OPS)
    await node.access.converge()
    assert node.kernel.scripts[2].startswith("add table")


async def test_a_table_that_somebody_removed_is_put_back() -> None:
    node = Node()
    await node.access.converge()
    node.kernel.table = None
    await node.access.converge()
    assert there(node.kernel) == 2
    node.kernel.table = 77  # another of that name
    await node.access.converge()
    assert there(node.kernel) == 3


async def test_rules_that_the_kernel_refuses_are_not_shown_as_held() -> None:
    node = Node()
    await node.access.converge()
    held = node.access.compiled
    node.rules(AclSection("deny"), WEB)
    node.kernel.refuses = True
    with pytest.raises(NftError):
        await node.access.converge()
    assert node.access.compiled is held
    node.kernel.refuses = False
    await node.access.converge()
    assert node.access.compiled is not held and node.kernel.scripts[1].startswith("add table")


async def test_a_refused_change_of_members_is_made_up_for_by_a_whole_table() -> None:
    node = Node()
    await node.access.converge()
    node.rules(node.now.section, WEB, OPS)
    node.kernel.refuses = True
    with pytest.raises(NftError):
        await node.access.converge()
    node.kernel.refuses = False
    await node.access.converge()
    assert node.kernel.scripts[1].startswith("add table")


async def test_counts_go_on_over_a_new_table() -> None:
    node = Node()
    await node.access.converge()
    node.kernel.packets = 5
    assert (await node.access.counts())["node", "ssh"] == 5
    node.kernel.packets = 7
    node.rules(AclSection("deny", (SSH, RuleSection("more", ports=(1,)))), WEB)
    await node.access.converge()  # what the table of before had counted is not lost
    node.kernel.packets = 2
    assert (await node.access.counts())["node", "ssh"] == 9
    node.kernel.packets = 4
    assert (await node.access.counts())["node", "ssh"] == 11


MINE = Connection(ME.addresses[0], 40000, WEB.addresses[0], 443)
ELEMENT = "0.0.0.2 . 443 . 0.0.0.1 . 40000"


async def test_a_first_table_knows_what_stood_and_later_ones_do_not_learn_more() -> None:
    node = Node()
    node.sockets = TcpSockets(frozenset({22}), frozenset({MINE}))
    await node.access.converge()
    assert f"begun4 {{ {ELEMENT} }}" in node.kernel.scripts[0] and "served { 22 }" in node.kernel.scripts[0]
    node.sockets = TcpSockets(frozenset({80}), frozenset({MINE, MINE._replace(port=40001)}))
    await node.access.converge()
    assert node.kernel.scripts[1:] == ["add element inet phantommesh_acl_pm served { 80 }\n"]
    node.rules(AclSection("deny"), WEB)
    await node.access.converge()
    assert ELEMENT in node.kernel.scripts[2] and "40001" not in node.kernel.scripts[2]
    node.sockets = TcpSockets(frozenset({80}))
    await node.access.converge()
    assert node.kernel.scripts[3:] == [f"delete element inet phantommesh_acl_pm begun4 {{ {ELEMENT} }}\n"]


async def test_what_begins_while_the_first_table_is_made_is_looked_for_again() -> None:
    node = Node()
    looks = iter([TcpSockets(), TcpSockets(frozenset(), frozenset({MINE}))])
    node.read = lambda: next(looks)  # type: ignore[method-assign]
    await node.access.converge()
    assert node.kernel.scripts[1:] == [f"add element inet phantommesh_acl_pm begun4 {{ {ELEMENT} }}\n"]


async def test_rules_are_held_where_the_kernel_does_not_list_sockets() -> None:
    node = Node()
    node.sockets = TcpSockets(frozenset({22}))
    await node.access.converge()
    node.sockets = OSError("no such module")
    node.rules(AclSection("deny"), WEB)
    await node.access.converge()
    assert "served { 22 }" in node.kernel.scripts[1] and node.access.problem is None
