# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of program a flow belongs to, by its ports and its shape."""

from __future__ import annotations

from typing import Final, Literal

Application = Literal["names", "time", "shell", "call", "web", "mail", "database", "files", "bulk", "other"]

_TCP, _UDP = 6, 17

PORTS: Final[dict[tuple[int, int], Application]] = {
    **{(protocol, port): "names" for protocol in (_TCP, _UDP) for port in (53, 853, 5353)},
    (_UDP, 123): "time",
    **{(_TCP, port): "shell" for port in (22, 23, 3389, 5900)},
    **{(_UDP, port): "call" for port in (3478, 5004, 5060, 10000)},
    **{(_TCP, port): "web" for port in (80, 443, 8080, 8443)},
    (_UDP, 443): "web",
    **{(_TCP, port): "mail" for port in (25, 143, 465, 587, 993)},
    **{(_TCP, port): "database" for port in (1433, 3306, 5432, 6379, 9042, 27017)},
    **{(_TCP, port): "files" for port in (21, 139, 445, 873, 2049, 3260)},
}
"""By protocol and the port called: IANA's service names, those in use."""

# Tuning: the shape of a flow whose ports say nothing.
CALL_SIZES: Final = (60, 400)  # bytes of a packet that carries 20 ms of speech, headers included
CALL_RATES: Final = (2_000, 40_000)  # bytes a second of speech
BULK_SIZE: Final = 1000  # bytes a packet from which on a sender has more data than fits


def application_of(protocol: int, ports: tuple[int, int], size: float, rate: float) -> Application:
    """Return the class of a flow: ``ports`` are its destination's and its source's, ``size`` the bytes of a
    packet on average, ``rate`` bytes a second. A port says more than a shape."""
    for port in ports:
        if (found := PORTS.get((protocol, port))) is not None:
            return found
    if size >= BULK_SIZE:
        return "bulk"
    if protocol == _UDP and CALL_SIZES[0] <= size <= CALL_SIZES[1] and CALL_RATES[0] <= rate <= CALL_RATES[1]:
        return "call"
    return "other"
