"""Cached values: JSON, or bytes as they are."""

from __future__ import annotations

import base64
from typing import Any, Final, NamedTuple

import msgspec

__all__ = ["Payload", "as_read", "encode_value"]

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


class Payload(NamedTuple):
    """A value as it is sent."""

    data: bytes
    is_raw: bool

    def as_json(self) -> msgspec.Raw:
        """Return it as a value within JSON: bytes as text of base64."""
        if not self.is_raw:
            return msgspec.Raw(self.data)
        return msgspec.Raw(b'"' + base64.b64encode(self.data) + b'"')


def encode_value(value: Any) -> Payload:
    """Return a value as it is sent.

    Raises:
        TypeError: it is neither bytes nor anything that JSON can say.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return Payload(bytes(value), is_raw=True)
    return Payload(_encode(value), is_raw=False)


def as_read(payload: Payload) -> Any:
    """Return a value as everybody will read it: a tuple has become a list, and so on."""
    return payload.data if payload.is_raw else _decode(payload.data)
