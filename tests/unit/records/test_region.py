# SPDX-License-Identifier: GPL-3.0-or-later
"""The region in a record: where its node stands, by its own word."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from phantommesh.records.record import MAX_BODY_BYTES, NodeRecord, RecordError, open_record, sign_record
from tests.support.makemesh import NOW, identity, make_mesh, plain_record


def test_a_region_is_signed_and_read_and_a_record_without_one_holds() -> None:
    mesh, me = make_mesh(), identity("a")
    record = structs.replace(plain_record(me), region="eu-north")
    signed = sign_record(me, record, mesh.certify(me, "a"), mesh.authority.der)
    assert open_record(mesh.root, signed, NOW)[1].region == "eu-north"
    earlier = msgspec.msgpack.decode(signed.body)[:10]
    assert msgspec.convert(earlier, NodeRecord).region == ""
    later = [*msgspec.msgpack.decode(signed.body), {"of": "a later version"}]
    assert msgspec.convert(later, NodeRecord).region == "eu-north"


@pytest.mark.parametrize("region", ["EU", "-eu", "eu-", "e u", "ü", "a" * 33, "a\n", "a\x1b[31m"])
def test_a_region_that_is_no_label_is_refused(region: str) -> None:
    mesh, me = make_mesh(), identity("a")
    with pytest.raises(RecordError, match="region"):
        sign_record(
            me, structs.replace(plain_record(me), region=region), mesh.certify(me, "a"), mesh.authority.der
        )


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True))
def test_any_label_is_taken_and_costs_no_more_than_its_characters(region: str) -> None:
    plain, mesh, me = plain_record(identity("a")), make_mesh(), identity("a")
    record = structs.replace(plain, region=region)
    signed = sign_record(me, record, mesh.certify(me, "a"), mesh.authority.der)
    assert open_record(mesh.root, signed, NOW)[1] == record
    assert len(signed.body) <= len(msgspec.msgpack.encode(plain)) + len(region) + 1 <= MAX_BODY_BYTES
