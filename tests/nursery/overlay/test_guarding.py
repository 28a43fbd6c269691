# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard says of the rules in place, over a kernel that may refuse them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from phantommesh.nursery.host.nft import Fingerprint, NftError
from phantommesh.nursery.overlay import guarding
from phantommesh.nursery.overlay.guarding import Guarding
from phantommesh.overlay.guard import Guard

OURS, THEIRS = ip_network("fd00:1::/48"), ip_network("fd00:2::/48")


class Kernel:
    """In place of `nft.Table`."""

    refuses = False
    text = ""

    def __init__(self, family: str, name: str) -> None:
        self._family = family

    async def install(self, text: str) -> None:
        if Kernel.refuses:
            raise NftError("refused")
        if self._family == "inet":
            Kernel.text = text

    async def fingerprint(self) -> Fingerprint:
        return Fingerprint(1, frozenset(), ())

    async def counters(self, name: str) -> dict[int, tuple[int, int]]:
        return {}


async def test_it_says_of_other_meshes_what_the_rules_in_place_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "Table", Kernel)
    monkeypatch.setattr(Kernel, "refuses", False)
    own = ip_address("10.0.0.1"), ip_address("fd00:1::1")
    want = Guard("pm", ("pm0",), own, (ip_network("10.0.0.0/24"), OURS), 51800, (51820,))  # type: ignore[arg-type]
    told = list[object]()
    kept = Guarding(lambda: want, joined=lambda: told.append(kept.others))
    await kept.converge()
    assert not kept.others and not told
    want = replace(want, others=(THEIRS,))  # type: ignore[arg-type]
    monkeypatch.setattr(Kernel, "refuses", True)
    with pytest.raises(NftError):
        await kept.converge()
    assert not kept.others and not told  # refused: no rule keeps anybody of theirs to anything
    monkeypatch.setattr(Kernel, "refuses", False)
    await kept.converge()
    assert told == [(THEIRS,)] and str(THEIRS) in Kernel.text
    await kept.converge()
    assert len(told) == 1
    want = replace(want, control=51801)
    monkeypatch.setattr(Kernel, "refuses", True)
    with pytest.raises(NftError):
        await kept.converge()
    assert told == [(THEIRS,), ()]
