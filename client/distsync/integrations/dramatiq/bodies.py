"""dramatiq's messages are bytes, DistSync's are text.

What the usual encoder writes, JSON, is sent as it is and can be read in every listing. Bytes that
are no UTF-8 (pickle) go as base64 behind a mark, which makes them a third longer; so does text that
happens to begin with the mark.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Final

__all__ = ["to_bytes", "to_text"]

_MARK: Final = "base64:"


def to_text(data: bytes) -> str:
    """Return the body of a message that `to_bytes` turns into `data`."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _marked(data)
    return _marked(data) if text.startswith(_MARK) else text


def to_bytes(body: str) -> bytes:
    """Return what was given to `to_text`.

    Raises:
        ValueError: `to_text` did not make this body.
    """
    if body.startswith(_MARK):
        return b64decode(body[len(_MARK) :], validate=True)
    return body.encode()


def _marked(data: bytes) -> str:
    return _MARK + b64encode(data).decode("ascii")
