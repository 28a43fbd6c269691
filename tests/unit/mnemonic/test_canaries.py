# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses all members know to be members', and since when."""

from __future__ import annotations

from collections.abc import Iterator

from phantommesh.mnemonic.canaries import Canaries, Named

M, N = b"m" * 16, b"n" * 16


def test_what_a_record_names_is_one_since_it_was_first_named() -> None:
    canaries = Canaries()
    canaries.look([Named(M, 1, ["192.0.2.1", "2001:db8::7", "::ffff:192.0.2.3"])], 100.0)
    canaries.look([Named(M, 2, ["192.0.2.1", "192.0.2.2"]), Named(N, 1, ["192.0.2.3"])], 200.0)
    assert canaries.since("192.0.2.1") == 100.0 and canaries.since("192.0.2.2") == 200.0
    assert canaries.since("192.0.2.3") == 100.0 and canaries.since("2001:db8::") is None
    canaries.look([], 300.0)
    canaries.look([Named(M, 3, ["192.0.2.1", "2001:db8::7"])], 400.0)
    assert canaries.since("192.0.2.1") == canaries.since("2001:db8::") == 400.0


def test_names_and_private_addresses_are_none() -> None:
    canaries = Canaries()
    canaries.look([Named(M, 1, ["gate.example", "192.168.1.1", "fd00::1", "127.0.0.1", ""])], 100.0)
    assert canaries._since == {}


def test_a_record_that_has_not_changed_is_not_read_again() -> None:
    canaries, read = Canaries(), 0

    def hosts() -> Iterator[str]:
        nonlocal read
        read += 1
        yield "192.0.2.1"

    for now in range(3):
        canaries.look([Named(M, 1, hosts())], float(now))
    assert read == 1 and canaries.since("192.0.2.1") == 0.0
