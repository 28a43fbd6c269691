# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.management.finding import AmbiguousNameError, UnknownMemberError, find, look

MEMBERS = st.lists(st.tuples(st.sampled_from("abc1"), st.sampled_from("1234")), max_size=6)


def itself(item: tuple[str, str]) -> tuple[str, str]:
    return item


@given(MEMBERS, st.sampled_from("abc1234"))
def test_what_is_found_is_the_only_one_that_is_meant(members: list[tuple[str, str]], wanted: str) -> None:
    ids = {node_id for _, node_id in members}
    named = {node_id for name, node_id in members if name == wanted}
    meant = {wanted} if wanted in ids else named
    if len(meant) > 1:
        with pytest.raises(AmbiguousNameError) as caught:
            look(members, wanted, itself)
        assert caught.value.candidates == tuple(sorted(meant))
        assert all(node_id in caught.value.fix for node_id in meant)
        return
    found = look(members, wanted, itself)
    assert {found[1]} == meant if found is not None else meant == set()
    if found is None:
        with pytest.raises(UnknownMemberError, match="no such peer") as unknown:
            find(members, wanted, itself)
        assert unknown.value.fix
    else:
        assert find(members, wanted, itself) == found


def test_an_error_repeats_no_endless_name() -> None:
    with pytest.raises(AmbiguousNameError) as caught:
        look([("x" * 500, "1"), ("x" * 500, "2")], "x" * 500, itself)
    assert len(str(caught.value)) < 100
