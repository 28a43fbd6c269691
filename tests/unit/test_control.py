# SPDX-License-Identifier: GPL-3.0-or-later
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh import control
from phantommesh.control import ControlError
from phantommesh.records.antientropy import MAX_WANTED

bytes_ = st.binary(max_size=60)
requests = st.one_of(
    st.builds(control.Enrol, bytes_, bytes_, bytes_, bytes_, bytes_),
    st.builds(control.Renew, bytes_, bytes_),
    st.just(control.AskKeys()),
    st.builds(control.Compare, bytes_),
    st.builds(control.Fetch, st.lists(bytes_, max_size=3).map(tuple)),
    st.builds(control.Announce, bytes_),
    st.builds(control.SyncOpen, bytes_),
    st.builds(control.SyncClose, bytes_),
    st.builds(control.Turn, st.binary(max_size=32), st.binary(max_size=32)),
    st.builds(control.Prove, st.lists(bytes_, max_size=control.MAX_PARTS).map(tuple)),
)
answers = st.one_of(
    st.builds(control.Enrolled, *[bytes_] * 9),
    st.builds(control.KeysAre, bytes_, bytes_, bytes_),
    st.builds(control.Differs, bytes_),
    st.builds(control.Records, st.lists(bytes_, max_size=3).map(tuple)),
    st.builds(control.Renewed, bytes_, bytes_),
    st.just(control.Done()),
    st.builds(control.SyncAnswer, bytes_),
    st.builds(control.Refused, st.text(), st.text()),
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | bytes_,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | bytes_, inner, max_size=4),
)


@given(requests)
def test_requests_come_back(request: control.Request) -> None:
    data = control.encode(request)
    assert control.decode_request_untrusted(data) == request
    with pytest.raises(ControlError):
        control.decode_answer_untrusted(data)


@given(answers)
def test_answers_come_back(answer: control.Answer) -> None:
    data = control.encode(answer)
    assert control.decode_answer_untrusted(data) == answer
    with pytest.raises(ControlError):
        control.decode_request_untrusted(data)


def test_more_records_than_anyone_asks_for_at_once_are_no_message() -> None:
    most = (b"",) * MAX_WANTED
    assert control.decode_request_untrusted(control.encode(control.Fetch(most))) == control.Fetch(most)
    assert control.decode_answer_untrusted(control.encode(control.Records(most))) == control.Records(most)
    with pytest.raises(ControlError):
        control.decode_request_untrusted(control.encode(control.Fetch((*most, b""))))
    with pytest.raises(ControlError):
        control.decode_answer_untrusted(control.encode(control.Records((*most, b""))))


def check_decoders(data: bytes) -> None:
    for decode in (control.decode_request_untrusted, control.decode_answer_untrusted):
        try:
            decode(data)
        except ControlError:
            continue


@given(st.binary(max_size=200))
def test_junk_raises_only_the_one_error(junk: bytes) -> None:
    check_decoders(junk)


@given(trees)
def test_other_values_raise_only_the_one_error(tree: object) -> None:
    check_decoders(msgspec.msgpack.encode(tree))


@given(
    st.sampled_from(["enrol", "renew", "announce", "ask-roster", "enrolled", "renewed", "roster", "refused"]),
    st.dictionaries(st.sampled_from(["csr", "record", "digest", "wait", "roster", "message", "x"]), trees),
)
def test_wrong_fields_raise_only_the_one_error(tag: str, fields: dict[str, object]) -> None:
    check_decoders(msgspec.msgpack.encode({"type": tag, **fields}))


@given(requests | answers, st.data())
def test_changed_messages_raise_only_the_one_error(
    message: control.Request | control.Answer, data: st.DataObject
) -> None:
    encoded = bytearray(control.encode(message))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    check_decoders(bytes(encoded))
    check_decoders(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))


def test_deep_nesting_is_refused() -> None:
    deep = b"\x82\xa4type\xa8announce\xa1x" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(ControlError):
        control.decode_request_untrusted(deep)


def test_the_admission_secret_is_not_shown() -> None:
    enrolled = control.Enrolled(b"", b"", b"", b"hidden secret", b"", b"")
    assert "hidden" not in repr(enrolled) + str(enrolled) + f"{enrolled}"
