"""A gate in front of a node's Redis: what passes it can be held, so that a test knows where it is.

A request that is held at the gate has left the node and not reached Redis; it arrives when the gate
is opened, even if the node is dead by then. An answer that is held is of a script that has run.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from pathlib import Path
from typing import Literal

CHUNK_BYTES = 1 << 16
LOOK_SECONDS = 0.02
KEPT_BYTES = 1 << 20

Way = Literal["requests", "answers"]


class RedisGate:
    """A TCP port that leads to a Redis on a unix socket, until `close`."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._lock = threading.Lock()
        self._held_way: Way | None = None
        self._requests = bytearray()
        self._unsent = 0
        self._callers: list[socket.socket] = []
        self._is_cut = False
        self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where a node finds its Redis."""
        return f"redis://127.0.0.1:{self.port}/0"

    def hold(self, way: Way) -> None:
        """Let nothing through one way, from now on."""
        with self._lock:
            self._held_way = way
            self._requests.clear()

    def cut(self) -> None:
        """End all connections and take no new one, until the gate is opened."""
        self._is_cut = True
        for caller in self._callers:
            with contextlib.suppress(OSError):
                caller.shutdown(socket.SHUT_RDWR)
        self._callers.clear()

    def saw(self, *texts: str) -> bool:
        """Whether all of these are in the requests that have come since `hold`, held or not."""
        with self._lock:
            return all(text.encode() in self._requests for text in texts)

    def is_empty(self) -> bool:
        """Whether all that came has gone on, or was for somebody who is gone."""
        with self._lock:
            return self._unsent == 0

    def open(self) -> None:
        """Let everything through: first what was held."""
        self._is_cut = False
        with self._lock:
            self._held_way = None

    def close(self) -> None:
        """Take no more connections."""
        self._is_closed = True
        self.open()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            self._callers.append(near)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self._target)
            except OSError:
                near.close()
                continue
            answers = threading.Thread(target=self._pass, args=(far, near, "answers"), daemon=True)
            answers.start()
            threading.Thread(
                target=self._pass_requests, args=(near, far, answers), daemon=True
            ).start()

    def _pass_requests(
        self, near: socket.socket, far: socket.socket, answers: threading.Thread
    ) -> None:
        self._pass(near, far, "requests")
        answers.join()
        near.close()
        far.close()

    def _pass(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        """Pass bytes on until the source ends; the other way goes on for as long as it can."""
        waiting = bytearray()
        is_over = False
        while waiting or not is_over:
            is_ready = not is_over and bool(select.select([source], [], [], LOOK_SECONDS)[0])
            chunk = _received(source) if is_ready else b""
            is_over = is_over or (is_ready and not chunk)
            waiting += chunk
            if self._may_pass(way, chunk):
                try:
                    sink.sendall(waiting)
                except OSError:
                    is_over = True
                self._note_passed(len(waiting))
                waiting.clear()
            elif is_over:
                time.sleep(LOOK_SECONDS)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _note_passed(self, size: int) -> None:
        with self._lock:
            self._unsent -= size

    def _may_pass(self, way: Way, chunk: bytes) -> bool:
        with self._lock:
            self._unsent += len(chunk)
            if way == "requests":
                self._requests += chunk
                del self._requests[:-KEPT_BYTES]
            return self._held_way != way


def _received(source: socket.socket) -> bytes:
    """Return what has come, nothing at the end; the end of a process may be a reset."""
    try:
        return source.recv(CHUNK_BYTES)
    except OSError:
        return b""
