"""HTTP/1.1 as the load client speaks it: requests encoded beforehand, answers cut out of bytes.

No general parser stands between the server and the clock: one answer is outstanding on a
connection, so finding its end is all there is to do.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

HEAD_END = b"\r\n\r\n"
MAX_ANSWER_BYTES = 1 << 20


class WireError(Exception):
    """The answer is not HTTP/1.1 as far as this client speaks it."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Status and body of one answer."""

    status: int
    body: bytes


def get(path: str, host: str = "127.0.0.1") -> bytes:
    """A whole GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def post(path: str, body: bytes, host: str = "127.0.0.1", method: str = "POST") -> bytes:
    """A whole POST request of a JSON body, or one of another method that takes a body."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def post_template(path: str, body: bytes, hole: bytes) -> Callable[[bytes], bytes]:
    """POST requests that differ only in what stands for `hole` in the body.

    Everything but the hole and the length is encoded once.
    """
    before, after = body.split(hole)
    fixed_bytes = len(before) + len(after)
    head = post(path, b"").removesuffix(b"0" + HEAD_END)

    def fill(value: bytes) -> bytes:
        length = b"%d" % (fixed_bytes + len(value))
        return b"".join((head, length, HEAD_END, before, value, after))

    return fill


class AnswerReader:
    """Collects the bytes of a connection into answers, one outstanding at a time."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> Answer | None:
        """The answer these bytes complete, or None while it is not complete.

        Raises: WireError for anything but one answer with a length, chunked or not.
        """
        pending = self._pending + data if self._pending else data
        head_end = pending.find(HEAD_END)
        if head_end < 0:
            return self._keep(pending)
        head = pending[:head_end].lower()
        if not head.startswith(b"http/1.1 "):
            raise WireError(f"not an HTTP/1.1 answer: {head[:40]!r}")
        body_start = head_end + len(HEAD_END)
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            line_end = head.find(b"\r\n", at + 2)
            length = int(head[at + 17 : line_end if line_end >= 0 else len(head)])
            end = body_start + length
            if len(pending) < end:
                return self._keep(pending)
            body = pending[body_start:end]
        elif b"\r\ntransfer-encoding: chunked" in head:
            chunks = _read_chunks(pending, body_start)
            if chunks is None:
                return self._keep(pending)
            body, end = chunks
        else:
            raise WireError("an answer without a length")
        if end != len(pending):
            raise WireError("more bytes than one answer")
        self._pending = b""
        return Answer(int(head[9:12]), body)

    def _keep(self, pending: bytes) -> Answer | None:
        if len(pending) > MAX_ANSWER_BYTES:
            raise WireError("the answer is too long")
        self._pending = pending
        return None


def _read_chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    parts: list[bytes] = []
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(data[at:line_end].split(b";")[0], 16)
        at = line_end + 2
        if len(data) < at + size + 2:
            return None
        parts.append(data[at : at + size])
        at += size + 2
        if size == 0:
            return b"".join(parts), at
