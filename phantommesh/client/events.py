# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line's client of a running node's events: a blocking WebSocket over its Unix socket, or
TLS with a token."""

import socket
from collections.abc import Iterator, Mapping
from urllib.parse import quote, urlencode

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.events import (
    Event as Received,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from phantommesh.client.http import ApiError, NodeNotRunningError, connect, decode, error_of, explaining
from phantommesh.client.places import Place, Remote
from phantommesh.management.views import Event

# The code that a node sends when it stops, and the one that stands for an end without a word.
STOPPED = {CloseReason.GOING_AWAY, CloseReason.ABNORMAL_CLOSURE}


def follow(place: Place, query: Mapping[str, str], *, timeout: float = 10.0) -> Iterator[Event]:
    """Yield events as they come, without end. ``query`` is that of WS /v1/events.

    ``timeout`` is in seconds and for the node to answer at all; then it may be silent for as long as it
    likes.
    Raises NodeNotRunningError, also when the node stops, and ApiError for every other failure.
    """
    ws = WSConnection(ConnectionType.CLIENT)
    headers = place.headers if isinstance(place, Remote) else {"Host": "localhost"}
    host = headers.pop("Host")
    extra = [(name.encode(), value.encode()) for name, value in headers.items()]
    with explaining(place, timeout), connect(place, timeout) as sock:
        target = f"/v1/events?{urlencode(query, quote_via=quote)}"
        sock.sendall(ws.send(Request(host=host, target=target, extra_headers=extra)))
        received = _received(ws, sock)
        _shake_hands(received, place)
        sock.settimeout(None)
        text = ""
        for each in received:
            match each:
                case TextMessage():
                    text += each.data
                    if each.message_finished:
                        yield decode(text, Event)
                        text = ""
                case Ping():
                    sock.sendall(ws.send(each.response()))
                case CloseConnection() if each.code in STOPPED:
                    raise NodeNotRunningError(
                        f"the node on {place} stopped", fix="start it again, or look at its log"
                    )
                case CloseConnection():
                    why = each.reason or f"code {each.code}"
                    raise ApiError(f"the node ended the stream of events: {why}", fix="look at its log")


def _shake_hands(received: Iterator[Received], place: Place) -> None:
    status, content = 0, b""
    for each in received:
        match each:
            case AcceptConnection():
                return
            case RejectConnection():
                status = each.status_code
            case RejectData(body_finished=False):
                content += each.data
            case RejectData():
                raise error_of(status, content)
            case CloseConnection():
                break
    raise ApiError(
        f"no usable answer on {place}: no WebSocket",
        fix="check that this is a PhantomMesh node's socket",
    )


def _received(ws: WSConnection, sock: socket.socket) -> Iterator[Received]:
    """Yield what comes, up to a CloseConnection: the connection always has one, whatever ended it."""
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            yield CloseConnection(code=CloseReason.ABNORMAL_CLOSURE)
            return
        try:
            ws.receive_data(data)
            yield from ws.events()
        except ProtocolError as error:
            raise ApiError(
                f"the node's answer is not understood: {error}",
                fix="check that this is a PhantomMesh node's socket",
            ) from None
