# SPDX-License-Identifier: GPL-3.0-or-later
"""Tags in a node's certificate: what an authority signs, and what a member refuses."""

from __future__ import annotations

import contextlib
from ipaddress import ip_network

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.trust.certificates import MAX_CERTIFICATE_BYTES, Member, Role, TrustError, verify_chain
from phantommesh.trust.issuing import choose_ip4
from phantommesh.trust.routes import Grant
from phantommesh.trust.tags import MAX_TAGS, TagError, check_tags, parse_uris, uris_of
from tests.support.makemesh import NOW
from tests.unit.trust.test_trust import MESH, NODE, forge, names

ROUTE = Grant(ip_network("10.1.0.0/16"))


def verified(der: bytes) -> Member:
    return verify_chain(MESH.root, MESH.authority.der, der, NOW)


def certified(*tags: str, grants: tuple[Grant, ...] = ()) -> bytes:
    ip4 = choose_ip4(MESH.mesh, NODE.node_id, ())
    return MESH.authority.issue(NODE.spki, "alpha", Role.NODE, ip4, NOW, grants=grants, tags=tags)


def forged(*uris: str) -> bytes:
    """What no authority of ours signs, signed all the same."""
    return forge([*names(), *map(x509.UniformResourceIdentifier, uris)])


def test_a_certificate_says_which_tags_its_node_has_and_an_older_one_none() -> None:
    member = verified(certified("web", "db", "web", grants=(ROUTE,)))
    assert member.tags == ("db", "web") and member.grants == (ROUTE,)
    assert verified(certified()).tags == () and verified(forge(names())).tags == ()


def test_the_most_tags_there_may_be_fit_a_certificate() -> None:
    tags = [f"{number:02}{'x' * 61}" for number in range(MAX_TAGS)]
    der = certified(*tags)
    assert verified(der).tags == tuple(tags) and len(der) < MAX_CERTIFICATE_BYTES
    with pytest.raises(TagError):
        certified(*tags, "more")


@pytest.mark.parametrize(
    "uris",
    [
        ("phantommesh:tag:b", "phantommesh:tag:a"),
        ("phantommesh:tag:a", "phantommesh:tag:a"),
        ("phantommesh:tag:A",),
        ("phantommesh:tag:",),
        ("phantommesh:tag:a", ROUTE.uri),
        ("phantommesh:tags:a",),
        tuple(f"phantommesh:tag:{number:02}" for number in range(MAX_TAGS + 1)),
    ],
)
def test_other_lists_of_tags_are_refused(uris: tuple[str, ...]) -> None:
    with pytest.raises(TrustError):
        verified(forged(*uris))


@pytest.mark.parametrize("tag", ["", "A", "a_b", "-a", "a-", "x" * 64, "a\n", "ä"])
def test_a_tag_is_a_label(tag: str) -> None:
    with pytest.raises(TagError) as caught:
        certified(tag)
    assert caught.value.fix


@given(st.lists(st.text(max_size=70).map("phantommesh:tag:{}".format), max_size=20))
def test_any_list_of_words_is_tags_or_an_error_of_ours(uris: list[str]) -> None:
    with contextlib.suppress(TagError):
        assert uris_of(parse_uris(uris)) == uris


@given(st.sets(st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True), max_size=MAX_TAGS))
def test_tags_read_back(tags: set[str]) -> None:
    assert parse_uris(uris_of(tags)) == check_tags(tags) == tuple(sorted(tags))
