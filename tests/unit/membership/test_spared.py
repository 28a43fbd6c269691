# SPDX-License-Identifier: GPL-3.0-or-later
"""A member behind a NAT that shows by its traffic that it lives is not asked by way of others."""

import pytest

from phantommesh.membership.effects import Sync
from phantommesh.membership.messages import Kind
from phantommesh.membership.signs import FRESH
from phantommesh.membership.verdicts import STREAMS
from tests.unit.membership.test_membership import NOW, make, sends


@pytest.mark.parametrize("age", [1.0, FRESH + 5.0])
def test_a_fresh_sign_of_life_spares_the_questions_by_way_of_others(age: float) -> None:
    member = make(known=5)
    probing, core = member._probing, member._core
    target = next(iter(core.peers(1, lambda _: False)))
    for helper in core.peers(3, lambda node: node == target):
        core.reach.carried(target, helper, NOW)
    for _ in range(3):  # by way of others alone
        core.reach.weigh(target, direct=False)
    assert core.reach.leans(target)
    core.signs.came(target, core.clock - age)
    core.out.clear()
    probing.check(target, True)
    kinds = [message.kind for message, _ in sends(core.out)]
    assert Kind.PING in kinds  # perhaps it answers itself again
    assert (Kind.PING_REQ in kinds) == (age > FRESH)


def test_a_member_that_is_suspected_is_asked_over_a_stream_before_it_is_dead() -> None:
    member = make(known=5)
    core, verdicts = member._core, member._probing.verdicts
    target = next(iter(core.peers(1, lambda _: False)))
    core.out.clear()
    for _ in range(3):
        verdicts.failed(target, True)
    assert core.out.count(Sync(target)) == 1
    for other in core.peers(4, lambda node: node == target):
        verdicts.failed(other, True)
    assert len([one for one in core.out if isinstance(one, Sync)]) == STREAMS
