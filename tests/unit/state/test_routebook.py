# SPDX-License-Identifier: GPL-3.0-or-later
"""The authority's book of routes on disk."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.state.files import StateError
from phantommesh.state.routebook import Approval, decode_approvals, encode_approvals
from phantommesh.trust.identity import NodeId
from phantommesh.trust.routes import Grant

approvals = st.builds(
    Approval,
    st.binary(min_size=16, max_size=16).map(NodeId),
    st.builds(
        Grant, st.builds(lambda n: IPv4Network((n << 16, 16)), st.integers(0, 65535)), st.integers(0, 9999)
    ),
)


@given(st.lists(approvals, max_size=5).map(tuple))
def test_the_book_comes_back(book: tuple[Approval, ...]) -> None:
    assert decode_approvals(encode_approvals(book)) == book


@given(st.binary(max_size=200))
def test_a_damaged_book_says_what_to_do(data: bytes) -> None:
    with pytest.raises(StateError) as caught:
        decode_approvals(data)
    assert "approved again" in caught.value.fix
