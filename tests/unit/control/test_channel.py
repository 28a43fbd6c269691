# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control import channel
from phantommesh.control.channel import Channel, ChannelError
from phantommesh.secret import Secret

A, B = Secret(b"a" * 32), Secret(b"b" * 32)
CLIENT, SERVER = b"c" * 16, b"s" * 16


def pair(client: bytes = CLIENT, server: bytes = SERVER) -> tuple[Channel, Channel]:
    return Channel(A, B, client, server), Channel(B, A, client, server)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=200))))
def test_both_ends_read_what_the_other_wrote(messages: list[tuple[bool, bytes]]) -> None:
    here, there = pair()
    for outward, message in messages:
        sender, receiver = (here, there) if outward else (there, here)
        assert receiver.open(sender.seal(message)) == message


def test_two_frames_of_one_message_differ() -> None:
    here, _ = pair()
    assert here.seal(b"x") != here.seal(b"x")


@given(st.data())
def test_a_changed_frame_is_refused_and_the_right_one_still_opens(data: st.DataObject) -> None:
    here, there = pair()
    frame = here.seal(b"a request")
    position = data.draw(st.integers(0, len(frame) - 1))
    changed = bytearray(frame)
    changed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ChannelError):
        there.open(bytes(changed))
    assert there.open(frame) == b"a request"


def test_frames_cannot_be_repeated_reordered_left_out_or_sent_back() -> None:
    here, there = pair()
    first, second = here.seal(b"1"), here.seal(b"2")
    for wrong in (second, b""):
        with pytest.raises(ChannelError):
            there.open(wrong)
    with pytest.raises(ChannelError):
        here.open(first)  # reflected
    assert there.open(first) == b"1"
    with pytest.raises(ChannelError):
        there.open(first)
    assert there.open(second) == b"2"


@pytest.mark.parametrize(
    ("client", "server"), [(b"x" * 16, SERVER), (CLIENT, b"x" * 16)], ids=["client", "server"]
)
def test_a_connection_with_other_randoms_has_other_keys(client: bytes, server: bytes) -> None:
    recorded = pair()[0].seal(b"a request")
    with pytest.raises(ChannelError):
        pair(client, server)[1].open(recorded)


@given(st.binary(max_size=300))
def test_junk_is_refused_with_one_error(junk: bytes) -> None:
    for parse in (channel.parse_hello_untrusted, channel.parse_answer_untrusted, pair()[1].open):
        try:
            parse(junk)
        except ChannelError:
            continue


def test_opening_frames_are_read_back() -> None:
    assert channel.parse_hello_untrusted(channel.hello(b"sessionX", CLIENT)) == (b"sessionX", CLIENT)
    assert channel.parse_answer_untrusted(channel.answer(SERVER)) == SERVER
    for frame in (channel.hello(b"sessionX", CLIENT), channel.answer(SERVER)):
        for wrong in (frame[:-1], frame + b"x", b"D" + frame[1:]):
            with pytest.raises(ChannelError):
                channel.parse_hello_untrusted(wrong)
            with pytest.raises(ChannelError):
                channel.parse_answer_untrusted(wrong)
