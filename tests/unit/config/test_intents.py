# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables `[[intent]]`: what they say, and what is refused with the name and the fix."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config import intents
from phantommesh.config.changes import change
from phantommesh.config.reading import parse
from phantommesh.config.sections import MAX_INTENTS, Config, ConfigError, IntentSection, NodeSection
from phantommesh.config.writing import render

NODE = '[node]\nname = "alpha"\nmesh = "pm"\n'
SSH = '[[intent]]\nname = "ssh"\ngoal = "order"\nports = [22]\n'


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        parse(NODE + text)
    assert error.value.fix
    return error.value


def test_intents_are_read_in_the_files_order_and_written_so_that_they_are_read_again() -> None:
    text = (
        f"{NODE}{SSH}"
        '[[intent]]\nname = "backup"\ngoal = "throughput"\npeers = ["db", "web"]\nuser = "backup"\n'
        '[[intent]]\nname = "voice"\ngoal = "order"\n'
        'protocol = "udp"\ndscp = "ef"\nports = ["5000-5100", 22]\n'
    )
    config = parse(text)
    assert [intent.name for intent in config.intent] == ["ssh", "backup", "voice"]
    assert config.intent[0] == IntentSection("ssh", "order", ports=(22,))
    assert parse(render(config)) == config
    assert parse(NODE).intent == ()


def test_intents_are_taken_over_by_a_running_node() -> None:
    before, after = parse(NODE), parse(NODE + SSH)
    done = change(before, after)
    assert (done.config, done.taken, done.waiting) == (after, ("intent",), ())


@pytest.mark.parametrize(
    ("text", "said", "fix"),
    [
        ('[intent]\nname = "ssh"\n', "is not a list of tables", "[[intent]]"),
        ('[[intent]]\ngoal = "order"\nports = [22]\n', "intent.1.name is missing", "set intent.1.name"),
        ('[[intent]]\nname = "ssh"\nports = [22]\n', "intent.ssh.goal is missing", '"order"'),
        (SSH + "port = 5\n", "intent.ssh.port", "did you mean intent.ssh.ports?"),
        (SSH.replace("order", "speed"), 'intent.ssh.goal = "speed"', '"throughput"'),
        (SSH.replace("[22]", "[0]"), "intent.ssh.ports = [0]", "correct intent.ssh.ports"),
        (SSH.replace("[22]", '["90-80"]'), "a range begins with the lower one", "correct"),
        (SSH.replace("[22]", '["ssh"]'), "write a port as 22", "correct"),
        (SSH.replace("[22]", "22"), "intent.ssh.ports = 22", "at most 32 ports"),
        (SSH + 'protocol = "tpc"\n', 'intent.ssh.protocol = "tpc"', "correct intent.ssh.protocol"),
        (SSH + "protocol = 256\n", "from 0 to 255", "correct"),
        (SSH + 'protocol = "icmp"\n', "has no ports", "take intent.ssh.ports out"),
        (SSH + "dscp = 64\n", "from 0 to 63", "correct"),
        (SSH + 'dscp = "xx"\n', "the names are cs0", "correct"),
        (SSH + "user = -1\n", "a user's number", "correct"),
        (SSH + 'user = "a b; drop"\n', "no user's name", "correct"),
        (SSH + 'cgroup = "/a"\n', "intent.ssh.cgroup", "correct intent.ssh.cgroup"),
        (SSH + 'cgroup = "a/../b"\n', "as systemd does", "correct"),
        (SSH + """cgroup = 'a"b'\n""", "intent.ssh.cgroup", "correct"),
        (SSH + 'peers = ["No Name"]\n', "is no name", "phantommesh peers"),
        (SSH + 'relays = ["No Name"]\n', "intent.ssh.relays", "phantommesh peers"),
        (SSH + 'never_relays = ["?"]\n', "intent.ssh.never_relays", "phantommesh peers"),
        (SSH + 'regions = ["EU"]\n', "intent.ssh.regions", "as in node.region"),
        (SSH + f'never_regions = ["{"e" * 33}"]\n', "intent.ssh.never_regions", "as in node.region"),
        (SSH + 'relays = ["a"]\nnever_relays = ["a"]\n', 'relays allows "a"', "out of intent.ssh.relays"),
        (SSH + 'regions = ["a"]\nnever_regions = ["a"]\n', 'regions allows "a"', "intent.ssh.never_regions"),
        (SSH + "hands = 0\n", "intent.ssh.hands", "from 1 to 7"),
        (SSH + "hands = 8\n", "intent.ssh.hands", "from 1 to 7"),
        (SSH + "hands = 2\ndirect_only = true\n", "leaves one, the direct way", "take one of the two out"),
        (SSH.replace('"order"', '"latency"') + "hands = 2\n", "take one dimension", "another goal"),
        (SSH + 'direct_only = true\n[scatter]\nhook = "off"\n', "all by dimension 0", 'hook to "auto"'),
        (SSH + SSH, "2 intents are named ssh", "a name of its own"),
        (SSH.replace('"ssh"', '"rest"'), "is no intent's name", 'not "rest"'),
        (SSH.replace("ports = [22]", ""), "matches all traffic, so", "there is scatter.goal"),
        (
            SSH.replace("ports = [22]", 'peers = ["db", "web"]'),
            "matches all traffic to db, web, so",
            'set scatter.peers, e.g. { db = "order" }',
        ),
    ],
)
def test_each_mistake_is_named_with_its_fix(text: str, said: str, fix: str) -> None:
    error = refused(text)
    assert said in str(error) and fix in error.fix


def several(count: int, peers: str = "") -> str:
    return "".join(
        f'[[intent]]\nname = "c{i}"\ngoal = "order"\nports = [{i + 1}]\n{peers}\n' for i in range(count)
    )


def test_a_peers_traffic_has_eight_classes_at_most_and_a_node_64_intents() -> None:
    assert len(parse(NODE + several(7)).intent) == 7
    assert "each peer" in str(refused(several(8)))
    assert "the peer db" in str(refused(several(7) + several(1, 'peers = ["db"]').replace("c0", "x")))
    many = [IntentSection(f"c{i}", "order", (f"peer-{i % 10}",), ports=(i + 1,)) for i in range(MAX_INTENTS)]
    config = Config(NodeSection("alpha", "pm"), intent=tuple(many))
    assert parse(render(config)) == config
    assert "65 intents" in str(refused(several(65, 'peers = ["db"]')))


port = st.integers(1, 65535)
given_ports = st.lists(
    st.one_of(port, st.tuples(port, port).map(lambda two: f"{min(two)}-{max(two)}")), max_size=32
)


@given(given_ports)
def test_ranges_of_ports_hold_what_was_given_and_do_not_touch(given: list[int | str]) -> None:
    """nft refuses a set of intervals that overlap."""
    found = intents.ports(IntentSection("x", "order", ports=tuple(given)))
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(found))
    wanted = set[int]()
    for one in given:
        first, _, last = str(one).partition("-")
        wanted |= set(range(int(first), int(last or first) + 1))
    assert {number for first, last in found for number in range(first, last + 1)} == wanted


anything = st.one_of(st.integers(-1, 70_000), st.text(max_size=8), st.sampled_from(["tcp", "ef", "22-23"]))


@given(st.fixed_dictionaries({}, optional={
    "peers": st.lists(st.text(max_size=4), max_size=2).map(tuple), "protocol": anything,
    "ports": st.lists(anything, max_size=3).map(tuple), "dscp": anything, "user": anything,
    "cgroup": st.text(max_size=8) | st.just("a/b.service"),
}))  # fmt: skip
def test_what_is_not_refused_can_be_read(keys: dict[str, object]) -> None:
    intent = IntentSection("x", "order", **keys)  # type: ignore[arg-type]
    try:
        intents.check([intent])
    except ConfigError:
        return
    for read in (intents.protocols, intents.ports, intents.dscp, intents.user, intents.cgroup):
        read(intent)
