"""What the bytes of a line mean to clients: the kind of the value, its tags, its payload. Pure.

    j <JSON text>                          raw bytes have r in place of j
    J <length of tags, 4 bytes> <tags, msgpack> <JSON text>      the same with tags; R

A tag is a line of its own, under a key that no client can name; its version counts, not its value.
A value was set with the versions of its tags, and is there as long as each tag still has that
version. The computing client of a key, if there is one, is a line too: its token.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from distsync_node.cache.types import Version

RESERVED: Final = "\0"
"""What keys of our own begin with."""

_JSON, _RAW, _TAGGED_JSON, _TAGGED_RAW = b"j", b"r", b"J", b"R"
_LENGTH_BYTES: Final = 4
_VERSION = re.compile(r"(0|[1-9][0-9]{0,15})\.(0|[1-9][0-9]{0,15})", re.ASCII)

Tags = tuple[tuple[str, Version], ...]
_encode = msgspec.msgpack.Encoder().encode
_decode_tags = msgspec.msgpack.Decoder(Tags).decode


class Lease(NamedTuple):
    """Who computes a key: what it found before it began, and of which tags. No token: it is over,
    and the value is being written."""

    token: str
    base: Version
    tags: Tags = ()


_decode_lease = msgspec.msgpack.Decoder(Lease).decode


class Value(NamedTuple):
    """A value as clients know it; the payload of one that is not raw is JSON text."""

    payload: bytes
    is_raw: bool = False
    tags: Tags = ()


def encode_value(value: Value) -> bytes:
    """Return the bytes of a line."""
    if not value.tags:
        return (_RAW if value.is_raw else _JSON) + value.payload
    tags = _encode(value.tags)
    kind = _TAGGED_RAW if value.is_raw else _TAGGED_JSON
    return b"".join((kind, len(tags).to_bytes(_LENGTH_BYTES, "big"), tags, value.payload))


def decode_value(data: bytes) -> Value:
    """Return the value of a line."""
    kind = data[:1]
    if kind in (_JSON, _RAW):
        return Value(data[1:], kind == _RAW)
    begin = 1 + _LENGTH_BYTES
    end = begin + int.from_bytes(data[1:begin], "big")
    return Value(data[end:], kind == _TAGGED_RAW, _decode_tags(data[begin:end]))


def encode_lease(lease: Lease) -> bytes:
    """Return the bytes of the line of a computation."""
    return _encode(lease)


def decode_lease(data: bytes) -> Lease:
    """Return what the line of a computation says."""
    return _decode_lease(data)


def tag_key(tag: str) -> str:
    """Return the key of a tag's line."""
    return f"{RESERVED}tag:{tag}"


def compute_key(key: str) -> str:
    """Return the key of the line that says who computes a key."""
    return f"{RESERVED}compute:{key}"


def format_version(version: Version) -> str:
    """Return a version as clients see it."""
    return f"{version.epoch}.{version.counter}"


def parse_version(text: str) -> Version | None:
    """Return the version that a client names; None if it is none."""
    found = _VERSION.fullmatch(text)
    return None if found is None else Version(int(found[1]), int(found[2]))
