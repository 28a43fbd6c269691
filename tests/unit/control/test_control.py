# SPDX-License-Identifier: GPL-3.0-or-later
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control import messages
from phantommesh.control.messages import ControlError
from phantommesh.records.antientropy import MAX_WANTED

bytes_ = st.binary(max_size=60)
ids = st.binary(min_size=16, max_size=16)
legs = st.builds(
    messages.Leg,
    st.integers(0, 6),
    st.integers(0, 255),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=32, max_size=32),
    st.booleans(),
)
requests = st.one_of(
    st.builds(messages.Enrol, bytes_, bytes_, bytes_, bytes_, bytes_),
    st.builds(messages.Renew, bytes_, bytes_),
    st.builds(messages.Route, bytes_, st.lists(st.text(max_size=43), min_size=1, max_size=16).map(tuple)),
    st.just(messages.Approved()),
    st.just(messages.AskKeys()),
    st.builds(messages.Compare, bytes_),
    st.builds(messages.Fetch, st.lists(bytes_, max_size=3).map(tuple)),
    st.builds(messages.Announce, bytes_),
    st.builds(messages.SyncOpen, bytes_),
    st.builds(messages.SyncClose, bytes_),
    st.just(messages.Attend()),
    st.just(messages.Look()),
    st.builds(messages.Turn, st.binary(max_size=32), st.binary(max_size=32)),
    st.builds(messages.AskRelay, ids, st.integers(0, 127), st.booleans()),
    st.builds(messages.LeaveRelay, ids, st.integers(0, 127)),
    st.builds(messages.OfferRelay, ids, st.integers(0, 127)),
    st.builds(messages.Prove, st.lists(bytes_, max_size=messages.MAX_PARTS).map(tuple)),
)
answers = st.one_of(
    st.builds(messages.Enrolled, *[bytes_] * 9),
    st.builds(messages.KeysAre, bytes_, bytes_, bytes_),
    st.builds(messages.Differs, bytes_),
    st.builds(messages.Records, st.lists(bytes_, max_size=3).map(tuple)),
    st.builds(messages.Renewed, bytes_, bytes_),
    st.builds(messages.Done, st.booleans()),
    st.builds(messages.SyncAnswer, bytes_),
    st.builds(
        messages.Relayed,
        st.integers(1, 65535),
        st.integers(0, 60_000_000),
        st.lists(legs, max_size=7).map(tuple),
        st.text(max_size=200),
    ),
    st.builds(messages.Refused, st.text(), st.text()),
    st.builds(
        messages.Sighting,
        st.text(max_size=64),
        st.integers(0, messages.MAX_AGE_MS),
        st.lists(st.text(max_size=64), max_size=7).map(tuple),
    ),
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | bytes_,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | bytes_, inner, max_size=4),
)


@given(requests)
def test_requests_come_back(request: messages.Request) -> None:
    data = messages.encode(request)
    assert messages.decode_request_untrusted(data) == request
    with pytest.raises(ControlError):
        messages.decode_answer_untrusted(data)


@given(answers)
def test_answers_come_back(answer: messages.Answer) -> None:
    data = messages.encode(answer)
    assert messages.decode_answer_untrusted(data) == answer
    with pytest.raises(ControlError):
        messages.decode_request_untrusted(data)


def test_more_records_than_anyone_asks_for_at_once_are_no_message() -> None:
    most = (b"",) * MAX_WANTED
    assert messages.decode_request_untrusted(messages.encode(messages.Fetch(most))) == messages.Fetch(most)
    assert messages.decode_answer_untrusted(messages.encode(messages.Records(most))) == messages.Records(most)
    with pytest.raises(ControlError):
        messages.decode_request_untrusted(messages.encode(messages.Fetch((*most, b""))))
    with pytest.raises(ControlError):
        messages.decode_answer_untrusted(messages.encode(messages.Records((*most, b""))))


def check_decoders(data: bytes) -> None:
    for decode in (messages.decode_request_untrusted, messages.decode_answer_untrusted):
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
    message: messages.Request | messages.Answer, data: st.DataObject
) -> None:
    encoded = bytearray(messages.encode(message))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    check_decoders(bytes(encoded))
    check_decoders(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))


def test_deep_nesting_is_refused() -> None:
    deep = b"\x82\xa4type\xa8announce\xa1x" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(ControlError):
        messages.decode_request_untrusted(deep)


def test_the_admission_secret_is_not_shown() -> None:
    enrolled = messages.Enrolled(b"", b"", b"", b"hidden secret", b"", b"")
    assert "hidden" not in repr(enrolled) + str(enrolled) + f"{enrolled}"
