# SPDX-License-Identifier: GPL-3.0-or-later
"""Which members may pass on packets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config.sections import IntentSection, RelaySection
from phantommesh.routing.constraints import FREE, Constraints, Rule, constraints_of, unknown_members
from phantommesh.trust.identity import NodeId, format_node_id

ME, OTHER = format_node_id(NodeId(b"m" * 16)), format_node_id(NodeId(b"o" * 16))


@pytest.mark.parametrize(
    ("section", "name", "region", "rule"),
    [
        (RelaySection(), "db", "", None),
        (RelaySection(direct_only=True), "db", "eu", "direct_only"),
        (RelaySection(only=("web",)), "db", "eu", "only"),
        (RelaySection(only=("db",)), "db", "eu", None),
        (RelaySection(only=("db",), never=("db",)), "db", "eu", "never"),
        (RelaySection(regions=("eu",)), "db", "us", "regions"),
        (RelaySection(regions=("eu",)), "db", "", "regions"),
        (RelaySection(regions=("eu",)), "db", "eu", None),
        (RelaySection(never_regions=("eu",)), "db", "eu", "never_regions"),
        (RelaySection(never_regions=("eu",)), "db", "", None),
    ],
)
def test_the_rule_that_forbids_a_member_is_named(
    section: RelaySection, name: str, region: str, rule: Rule | None
) -> None:
    assert constraints_of(section).refuses(name, region, ME) == rule


def test_a_member_that_takes_another_name_is_known_by_its_id() -> None:
    """A member may rename itself to any name that is free, and an authority signs that."""
    never, only = Constraints(never=frozenset({ME})), Constraints(only=frozenset({ME}))
    assert never.refuses("bad", "", ME) == never.refuses("better", "", ME) == "never"
    assert only.refuses("db", "", ME) is only.refuses("renamed", "", ME) is None
    assert only.refuses("db", "", OTHER) == "only"


def test_a_name_that_is_written_like_an_id_is_not_taken_for_the_id() -> None:
    assert Constraints(only=frozenset({ME})).refuses(ME, "", OTHER) == "only"
    assert Constraints(never=frozenset({ME})).refuses(ME, "", OTHER) is None
    held = RelaySection(only=(ME,), never=(OTHER,))
    assert constraints_of(held).refuses("db", "", ME) is None


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
    intent = IntentSection("ssh", "order", relays=("router", "web"), never_relays=("rooter",))
    assert unknown_members(section, [intent], known) == {
        "relay.only": ("web",),
        "relay.never": tuple(sorted((OTHER, "rooter"))),
        "intent.ssh.relays": ("web",),
        "intent.ssh.never_relays": ("rooter",),
    }
    assert unknown_members(RelaySection(), [], known) == {}
