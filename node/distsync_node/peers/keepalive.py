"""Connections that carry nothing for minutes, as a parked wait's does, and must not outlive a link.

A node that is cut off sends no end of its connections. Without probes the leader would grant into
one of them, and a follower would wait at it for as long as the request may wait.
"""

from __future__ import annotations

import socket
from typing import Final

_PROBES: Final = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))  # seconds, number


def probe(connection: socket.socket) -> None:
    """Have an idle connection end some 20 s after its other end has gone.

    Connections that a listener accepts are probed as the listener would be.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        option = getattr(socket, name, None)  # the system's own times, where there are no others
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
