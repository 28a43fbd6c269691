# SPDX-License-Identifier: GPL-3.0-or-later
"""What is counted of each asker of the name server, bounded, and what one is kept to."""

from __future__ import annotations

import dns.message
import pytest

from phantommesh.names import askers
from phantommesh.names.askers import LATELY, Askers, kind_of


def test_counts_each_asker_and_forgets() -> None:
    found = Askers()
    for _ in range(3):
        found.note("fd00::1", "asked", 0.0)
    found.note("fd00::1", "missing", 0.0)
    found.note("fd00::2", "walked", 0.0)
    two, one = found.seen(0.0)
    assert (one.address, one.asked, one.missing, one.walked, one.kept_to) == ("fd00::1", 3.0, 1.0, 0.0, None)
    assert (two.asked, two.walked) == (0.0, 1.0)
    assert [one.asked for one in found.seen(10.0)] == [0.0, 1.1]  # fades to 1/e
    assert not list(found.seen(LATELY + 1.0))


def test_askers_without_end_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askers, "MOST", 4)
    found = Askers()
    for number in range(20):
        found.note("fd00::1", "asked", float(number))
        found.note(f"fd01::{number}", "asked", float(number))
    assert len(found) == 4 and "fd00::1" in {one.address for one in found.seen(20.0)}


def test_keeps_one_asker_to_less_and_no_other() -> None:
    found = Askers()
    found.keep_to("fd00::1", 5.0, 0.0)
    assert sum(found.allow("fd00::1", i / 100) for i in range(1000)) in range(50, 56)  # 10 s, and the burst
    assert all(found.allow("fd00::2", 0.0) for _ in range(1000))
    found.note("fd00::1", "asked", 10.0)
    assert [one.kept_to for one in found.seen(10.0)] == [5.0]
    found.keep_to("fd00::1", None, 10.0)
    assert all(found.allow("fd00::1", 10.0) for _ in range(1000))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nobody.pm.internal", "missing"), ("1.0.64.100.in-addr.ARPA", "walked"), ("3.D.f.ip6.arpa", "walked")],
)
def test_tells_a_guess_from_a_walk(name: str, kind: str) -> None:
    query = dns.message.make_query(name, "PTR", use_edns=0).to_wire()
    assert kind_of("nxdomain", query) == kind and kind_of("noerror", query) is None
