# SPDX-License-Identifier: GPL-3.0-or-later
"""Events over the API: a page of those kept, and a WebSocket that goes on with each new one.

A reader of the WebSocket is sent to as fast as it takes; meanwhile nothing is stored for it. One that takes
nothing for a while is cut, as on any connection (server.py).
"""

from collections.abc import Callable

import msgspec
import trio
from quart import Response, request, websocket
from werkzeug.datastructures import MultiDict
from wsproto.frame_protocol import CloseReason

from phantommesh.management.events import EventLog, Filter, FilterError
from phantommesh.management.tokens import TokenDesk
from phantommesh.management.views import NodePort, Page
from phantommesh.nursery.api.auth import EVENTS_PROTOCOL, Caller, caller, still_good
from phantommesh.nursery.api.paging import CURSOR_FIX, decode_cursor, encode_cursor, limit_of
from phantommesh.nursery.api.problems import ProblemError
from phantommesh.nursery.api.routes import Handlers

OLDEST = "oldest"
_MAX_DIGITS = 18

# Tuning.
SEND_TIMEOUT = 30.0  # s; over HTTP/2, where the client says when to send. Else server.py has a limit.
MAX_READERS = 256  # WebSockets at a time, of each of the two sockets
TOKEN_LOOK = 2.0  # s between looks at whether a reader's token still counts
BATCH = 64  # events between looks at what else there is
FEW_READERS = 8  # who are all told at once
SPREAD = 0.001  # s between two of more readers, about what it takes to tell one over TLS


def events(node: NodePort, shutdown: trio.Event) -> Handlers:
    """Return the handlers. ``shutdown`` ends the WebSockets, each with a close frame."""
    free = trio.Semaphore(MAX_READERS)

    def crowd() -> int:
        return MAX_READERS - free.value

    async def page() -> Response:
        log, args = node.events, request.args
        wanted, limit = _wanted(args), limit_of(args.get("limit"))
        batch = log.read(_start(log, args, log.oldest - 1), wanted, limit)
        cursor = encode_cursor(f"{log.run}.{batch.place}") if batch.more else None
        found = Page(items=batch.events, next_cursor=cursor)
        return Response(msgspec.json.encode(found), content_type="application/json")

    async def follow() -> None:
        log, args = node.events, websocket.args
        wanted, place = _wanted(args), _start(log, args, log.last)
        try:
            free.acquire_nowait()
        except trio.WouldBlock:
            raise ProblemError(503, "too many are reading events", fix="end another reader") from None
        turn = crowd()
        try:
            await websocket.accept(
                subprotocol=EVENTS_PROTOCOL if EVENTS_PROTOCOL in websocket.requested_subprotocols else None
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ignore_messages)
                nursery.start_soon(_cancel_at, shutdown, nursery.cancel_scope)
                nursery.start_soon(_cancel_without, node.tokens, caller(), nursery.cancel_scope)
                await _send_events(log, place, wanted, lambda: delay(turn, crowd()))
                nursery.cancel_scope.cancel()  # the client takes nothing
            if shutdown.is_set():
                await websocket.close(CloseReason.GOING_AWAY, "the node is stopping")
            elif not still_good(node.tokens, caller()):
                await websocket.close(CloseReason.POLICY_VIOLATION, "the token does not count any more")
        finally:
            free.release()

    return {"events": page, "follow_events": follow}


def delay(turn: int, readers: int) -> float:
    """How many seconds after an event it is a reader's turn. Hundreds of them told in one go would hold up
    the event loop, and with it all that the node does."""
    return 0.0 if readers <= FEW_READERS else SPREAD * (turn % readers)


async def _send_events(log: EventLog, place: int, wanted: Filter, wait: Callable[[], float]) -> None:
    """Send every event after ``place``, ``wait()`` seconds after it, until a client takes none for
    ``SEND_TIMEOUT``."""
    while True:
        batch = log.read(place, wanted, BATCH)
        for event in batch.events:
            with trio.move_on_after(SEND_TIMEOUT) as patience:
                await websocket.send(msgspec.json.encode(event).decode())
            if patience.cancelled_caught:
                return
        place = batch.place
        await _newer(log, place)
        await trio.sleep(wait())


async def _newer(log: EventLog, place: int) -> None:
    while log.last <= place:
        woken = trio.Event()
        log.wakes.add(woken.set)
        try:
            await woken.wait()
        finally:
            log.wakes.discard(woken.set)


async def _ignore_messages() -> None:
    # They have to be taken in, or else nobody would see the connection's end behind them.
    while True:
        await websocket.receive()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _cancel_without(tokens: TokenDesk, by: Caller, scope: trio.CancelScope) -> None:
    """Cancel once the token does not count any more by which a reader came."""
    while still_good(tokens, by):  # noqa: ASYNC110, a token's time runs out without an event
        await trio.sleep(TOKEN_LOOK)
    scope.cancel()


def _wanted(args: MultiDict[str, str]) -> Filter:
    try:
        return Filter.parse(",".join(args.getlist("types"))).told(caller().scope)
    except FilterError as error:
        raise ProblemError(400, str(error), fix=error.fix) from None


def _start(log: EventLog, args: MultiDict[str, str], otherwise: int) -> int:
    """The place to read from: where it is given for another run, the beginning of this one."""
    if (cursor := decode_cursor(args.get("cursor"))) is not None:
        run, _, seq = cursor.rpartition(".")
        name, fix = "cursor", CURSOR_FIX
    elif (since := args.get("since")) == OLDEST:
        return log.oldest - 1
    elif since is not None:
        run, seq = args.get("run", log.run), since
        name, fix = "since", f"give the seq of the last event that you have, or {OLDEST}"
    else:
        return otherwise
    if not (seq.isascii() and seq.isdigit() and len(seq) <= _MAX_DIGITS):
        raise ProblemError(400, f"{name} is not usable", fix=fix)
    return int(seq) if run == log.run else 0
