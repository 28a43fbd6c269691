# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to one peer over a connection; and three questions that need no channel."""

from __future__ import annotations

import os
from typing import Protocol

import trio

from phantommesh.control import channel, messages
from phantommesh.control.asking import MAX_UNLINKED
from phantommesh.control.sessions import Session
from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.link import wire
from phantommesh.nursery.sockets.framing import CONNECT, IDLE, FramedStream, StreamError
from phantommesh.records.record import MAX_RECORD_BYTES
from phantommesh.records.runs import MAX_ANSWER as MAX_RUNS
from phantommesh.trust.revocations import MAX_STANDING

ASK_REVOKED = 0x52  # then a node id, and the root's words that the asker has; the answer is how it stands
ASK_RUNS = 0x55  # then a node id, and perhaps the word of a run of it; see `node.runs.Witness.answer`
ASK_RECORDS = 0x51  # then an `Envelope` with hashes; the answer is sealed too, or empty


async def ask_standing(framed: FramedStream, node_id: bytes, plea: bytes) -> bytes:
    """Ask how a node stands, and show the root's words that we hold (`Revocations.plea`); the answer is
    `Revocations.standing`, empty where the other end knows of nothing. Raises `StreamError`."""
    await framed.send(bytes([ASK_REVOKED]) + node_id + plea)
    with trio.move_on_after(CONNECT):
        return await framed.receive(MAX_STANDING)
    raise StreamError("the other end does not answer")


async def ask_runs(framed: FramedStream, question: bytes) -> bytes:
    """Ask which runs of a node are known, and show the word of one. Raises `StreamError`."""
    await framed.send(bytes([ASK_RUNS]) + question)
    with trio.move_on_after(CONNECT):
        return await framed.receive(MAX_RUNS)
    raise StreamError("the other end does not answer")


async def ask_records(framed: FramedStream, sealed: bytes) -> bytes:
    """Ask with a sealed question for records, and return the sealed answer. Raises `StreamError`."""
    await framed.send(bytes([ASK_RECORDS]) + sealed)
    with trio.move_on_after(CONNECT):
        return await framed.receive((MAX_UNLINKED + 1) * MAX_RECORD_BYTES)
    raise StreamError("the other end does not answer")


class Frames(Protocol):
    """A connection's frames, as `FramedStream` has them; or those that another member passes on. Both raise
    `StreamError`."""

    async def send(self, frame: bytes) -> None: ...

    async def receive(self, limit: int) -> bytes: ...


class Client:
    """Requests to one peer over one connection, one at a time. A peer that stays silent for ``IDLE`` seconds
    is gone: one that lost its power never closes a connection."""

    def __init__(self, framed: Frames, sealed: channel.Channel, session: Session) -> None:
        self.framed, self.sealed, self.session = framed, sealed, session

    @classmethod
    async def open(cls, framed: Frames, session: Session) -> Client:
        """Open a channel on a connection. Raises `StreamError`."""
        mine = os.urandom(channel.RANDOM_SIZE)
        await framed.send(channel.hello(session.name, mine))
        try:
            with trio.fail_after(IDLE):
                theirs = channel.parse_answer_untrusted(await _not_a_datagram(framed, MAX_DATAGRAM))
        except channel.ChannelError as error:
            raise StreamError("the other end does not know this session") from error
        except trio.TooSlowError as error:
            raise StreamError("the other end does not answer") from error
        return cls(framed, channel.Channel(session.key_out, session.key_in, mine, theirs), session)

    async def ask(self, request: messages.Request, *, limit: int | None = None) -> messages.Answer:
        """Send one request and return its answer, of at most ``limit`` bytes, else as many as such an answer
        can have; a refusal is an answer too. Raises `StreamError`."""
        await self.framed.send(self.sealed.seal(messages.encode(request)))
        try:
            with trio.fail_after(IDLE):
                frame = await _not_a_datagram(self.framed, limit or messages.answer_limit(request))
            if len(frame) > messages.SMALL:
                return await trio.to_thread.run_sync(self._open, frame)
            return self._open(frame)
        except trio.TooSlowError as error:
            raise StreamError("the other end does not answer") from error
        except (channel.ChannelError, messages.ControlError) as error:
            raise StreamError("the answer is not genuine") from error

    def _open(self, frame: bytes) -> messages.Answer:
        return messages.decode_answer_untrusted(self.sealed.open(frame))


async def _not_a_datagram(framed: Frames, limit: int) -> bytes:
    """Return the next frame of a channel. Datagrams that the handshake on this connection repeated may still
    come; they are passed over."""
    while True:
        frame = await framed.receive(limit)
        if frame[:1] != bytes([wire.VERSION]):
            return frame
