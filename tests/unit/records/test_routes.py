# SPDX-License-Identifier: GPL-3.0-or-later
"""The routes that a record offers."""

import msgspec
import pytest
from msgspec import structs

from phantommesh.records.record import NodeRecord, RecordError, open_record, sign_record
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

MESH, ME = make_mesh(), identity("a")


def opened(*routes: str) -> tuple[str, ...]:
    naming = structs.replace(plain_record(ME), routes=routes)
    signed = sign_record(ME, naming, MESH.certify(ME, "a"), MESH.authority.der)
    return open_record(MESH.root, signed, NOW)[1].routes


def test_routes_are_read_and_a_record_without_them_too() -> None:
    assert opened("10.1.0.0/16", "2001:db8::/32") == ("10.1.0.0/16", "2001:db8::/32")
    earlier = msgspec.to_builtins(plain_record(ME))[:11]
    assert msgspec.convert(earlier, NodeRecord, from_attributes=False).routes == ()


@pytest.mark.parametrize(
    "routes",
    [
        ("10.1.0.1/16",),
        ("10.1.0.0/255.255.0.0",),
        ("somewhere",),
        ("10.2.0.0/16", "10.1.0.0/16"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        tuple(f"10.{n}.0.0/16" for n in range(10, 27)),
    ],
)
def test_a_record_with_routes_that_are_none_is_refused(routes: tuple[str, ...]) -> None:
    with pytest.raises(RecordError):
        opened(*routes)
