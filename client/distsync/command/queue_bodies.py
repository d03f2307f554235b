"""What can be the body of a message."""

from __future__ import annotations

from io import BufferedIOBase

from distsync.command.failures import Failure
from distsync.queue_calls import MAX_BODY_BYTES


def read_body(source: BufferedIOBase, max_bytes: int = MAX_BODY_BYTES) -> str:
    """Read a message to its end, and no further than to see that it is too long."""
    return decoded(source.read(max_bytes + 1), "the message", max_bytes)


def decoded(data: bytes, what: str, max_bytes: int = MAX_BODY_BYTES) -> str:
    """Return the text of a body.

    Raises:
        Failure: it cannot be a message; `what` names it.
    """
    if len(data) > max_bytes:
        raise Failure(f"{what} is longer than {max_bytes // 1024} KiB", code="bad_request")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Failure(f"{what} is not UTF-8", code="bad_request") from None
