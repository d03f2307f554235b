"""Which connections the kernel probes."""

from __future__ import annotations

import socket

from distsync_node.peers import keepalive


def test_a_connection_is_probed_and_so_is_what_a_listener_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        keepalive.probe(listener)
        with socket.create_connection(listener.getsockname()) as connection:
            keepalive.probe(connection)
            accepted, _ = listener.accept()
            with accepted:
                for one in (connection, accepted):
                    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
                    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
