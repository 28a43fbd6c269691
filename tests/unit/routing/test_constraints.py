# SPDX-License-Identifier: GPL-3.0-or-later
"""Which members may pass on packets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config.sections import RelaySection
from phantommesh.routing.constraints import FREE, Constraints, constraints_of, unknown_members
from phantommesh.trust.identity import NodeId, format_node_id

ME, OTHER = format_node_id(NodeId(b"m" * 16)), format_node_id(NodeId(b"o" * 16))


@pytest.mark.parametrize(
    ("section", "name", "region", "key"),
    [
        (RelaySection(), "db", "", ""),
        (RelaySection(direct_only=True), "db", "eu", "relay.direct_only"),
        (RelaySection(only=("web",)), "db", "eu", "relay.only"),
        (RelaySection(only=("db",)), "db", "eu", ""),
        (RelaySection(only=("db",), never=("db",)), "db", "eu", "relay.never"),
        (RelaySection(regions=("eu",)), "db", "us", "relay.regions"),
        (RelaySection(regions=("eu",)), "db", "", "relay.regions"),
        (RelaySection(regions=("eu",)), "db", "eu", ""),
        (RelaySection(never_regions=("eu",)), "db", "eu", "relay.never_regions"),
        (RelaySection(never_regions=("eu",)), "db", "", ""),
    ],
)
def test_the_key_that_forbids_a_member_is_named(
    section: RelaySection, name: str, region: str, key: str
) -> None:
    assert constraints_of(section).refuses(name, region, ME) == key


def test_a_member_that_takes_another_name_is_known_by_its_id() -> None:
    """A member may rename itself to any name that is free, and an authority signs that."""
    never, only = Constraints(never=frozenset({ME})), Constraints(only=frozenset({ME}))
    assert never.refuses("bad", "", ME) == never.refuses("better", "", ME) == "relay.never"
    assert only.refuses("db", "", ME) == only.refuses("renamed", "", ME) == ""
    assert only.refuses("db", "", OTHER) == "relay.only"


def test_a_name_that_is_written_like_an_id_is_not_taken_for_the_id() -> None:
    assert Constraints(only=frozenset({ME})).refuses(ME, "", OTHER) == "relay.only"
    assert Constraints(never=frozenset({ME})).refuses(ME, "", OTHER) == ""
    held = RelaySection(only=(ME,), never=(OTHER,))
    assert constraints_of(held).refuses("db", "", ME) == ""


names = st.frozensets(st.sampled_from(("a", "b", "c")), max_size=3)


@given(st.booleans(), names, names, names, names, st.sampled_from("abc"), st.sampled_from(("", "a", "b")))
def test_a_member_that_may_serve_is_in_what_is_allowed_and_in_nothing_forbidden(
    direct: bool, only: frozenset[str], never: frozenset[str], regions: frozenset[str],
    never_regions: frozenset[str], name: str, region: str,
) -> None:  # fmt: skip
    allowed = not Constraints(direct, only, never, regions, never_regions).refuses(name, region, ME)
    by_name = name not in never and (not only or name in only)
    by_region = region not in never_regions and (not regions or region in regions)
    assert allowed == (not direct and by_name and by_region)
    assert not FREE.refuses(name, region, ME)


def test_names_that_are_no_members_are_told_by_their_keys() -> None:
    section = RelaySection(members=("db",), only=(ME, "web"), never=("rooter", "db", "rooter", OTHER))
    known = ("db", "router", ME)
    assert unknown_members(section, known) == {
        "relay.only": ("web",),
        "relay.never": tuple(sorted((OTHER, "rooter"))),
    }
    assert unknown_members(RelaySection(), known) == {}
