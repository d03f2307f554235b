"""How records lie in a segment, and how the end of the log is told from damage. No I/O.

    record  = header (20 bytes) + payload + trailer (1 to 4 bytes 0xA5, to a multiple of 4)
    header  = magic, payload length, whitening seed, checksum, header checksum (5 x u32, LE)

`checksum` is CRC-32 over the first three fields, payload and trailer, started with the checksum
of the record before, so records cannot be dropped, repeated or put in another order. `header
checksum` is started with the segment's random nonce: bytes of another file never pass.

One record is one write and one sync, so a crash can tear only the last one. A disk writes whole
sectors of 512 bytes; those that did not make it read as zeros, because a segment's space is fresh.
From that follows what a torn record looks like, and everything else is damage:

- a header never crosses a sector boundary, so it is there in full or all zeros;
- a record never holds a sector of zeros: a payload with 64 zero bytes in a row is XORed with a
  keystream, and the trailer is not zero. So a zero sector inside a record was never written,
  and a record with a bad checksum and no zero sector was changed after it was written;
- nothing was written behind a torn record, and what remains of one whose header is lost looks
  like payload: sectors without long runs of zeros, the last one closed by a trailer.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from zlib import crc32

SECTOR_BYTES = 512
_HEADER = struct.Struct("<IIIII")
_FIELDS = struct.Struct("<III")
_CHECKSUM = struct.Struct("<I")
_MAGIC = 0x52435344  # "DSCR"
_MAGIC_BYTES = _CHECKSUM.pack(_MAGIC)
_ZERO_RUN = bytes(64)
_TRAILERS = tuple(b"\xa5" * (4 - remainder) for remainder in range(4))


class DamageError(Exception):
    """A file is not as it was written, in a way that no crash explains."""

    def __init__(self, offset: int | None, reason: str) -> None:
        super().__init__(reason if offset is None else f"{reason} at offset {offset}")
        self.offset = offset


class UnknownFormatError(Exception):
    """A file is whole, and this release cannot read its format."""

    def __init__(self, version: int, readable: tuple[int, ...]) -> None:
        reads = ", ".join(map(str, readable))
        super().__init__(f"has format {version}, this release reads format {reads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a segment holds; `torn` when bytes of an unfinished record follow `end`."""

    payloads: tuple[bytes | memoryview, ...]
    last_start: int  # offset of the last record; equals `end` when there is none
    end: int
    chain: int
    torn: bool


def record_start(offset: int) -> int:
    """Where a record may begin at or after `offset`: its header must not cross a sector."""
    left = SECTOR_BYTES - offset % SECTOR_BYTES
    return offset if left >= _HEADER.size else offset + left


def frame(payload: bytes, *, chain: int, nonce: int) -> tuple[bytes, int]:
    """Return the record's bytes and the chain value for the next record."""
    seed = 0
    if _ZERO_RUN in payload:
        seed, payload = _whiten(payload)
    trailer = _TRAILERS[len(payload) % 4]
    fields = _FIELDS.pack(_MAGIC, len(payload), seed)
    checksum = crc32(trailer, crc32(payload, crc32(fields, chain)))
    header = fields + _CHECKSUM.pack(checksum)
    return b"".join((header, _CHECKSUM.pack(crc32(header, nonce)), payload, trailer)), checksum


def scan(data: bytes, start: int, *, chain: int, nonce: int) -> Scan:
    """Read records from `start` to the end of the log.

    Raises:
        DamageError: where the bytes are neither a record, nor a torn one, nor the end.
    """
    view = memoryview(data)
    payloads: list[bytes | memoryview] = []
    end = last_start = start
    torn = False
    while not is_zero(data[end : end + 2 * _HEADER.size]) or not is_zero(data, end):
        position = record_start(end)
        if not is_zero(data[end:position]):
            raise DamageError(end, "unexpected bytes between records")
        header = data[position : position + _HEADER.size]
        if len(header) < _HEADER.size:
            torn = True
            break
        if is_zero(header):
            _check_lost_start(data, position, nonce)
            torn = True
            break
        length, seed, checksum = _read_header(header, position, nonce)
        stop = position + _HEADER.size + length + len(_TRAILERS[length % 4])
        body = view[position + _HEADER.size : stop]
        if stop > len(data) or crc32(body, crc32(header[: _FIELDS.size], chain)) != checksum:
            _check_torn(data, position, stop)
            torn = True
            break
        payloads.append(_unwhiten(body[:length], seed) if seed else body[:length])
        chain, last_start, end = checksum, position, stop
    if not payloads:
        last_start = end
    return Scan(payloads=tuple(payloads), last_start=last_start, end=end, chain=chain, torn=torn)


def _read_header(header: bytes, position: int, nonce: int) -> tuple[int, int, int]:
    magic, length, seed, checksum, header_checksum = _HEADER.unpack(header)
    if magic != _MAGIC or crc32(header[:-4], nonce) != header_checksum:
        raise DamageError(position, "record header checksum does not match")
    return length, seed, checksum


def _check_torn(data: bytes, position: int, stop: int) -> None:
    """Accept a record with a bad checksum only if part of it was never written."""
    if not is_zero(data, stop):
        raise DamageError(position, "record checksum does not match, with more data behind it")
    if stop > len(data):
        return
    for sector in range(_next_sector(position), stop, SECTOR_BYTES):
        if is_zero(data[sector : min(sector + SECTOR_BYTES, stop)]):
            return
    raise DamageError(position, "record checksum does not match")


def _check_lost_start(data: bytes, position: int, nonce: int) -> None:
    """Accept what follows a header of zeros only if one torn record can have left it."""
    damage = DamageError(position, "unexpected bytes behind the last record")
    first = _next_sector(position)
    if not is_zero(data[position:first]):
        raise damage
    found = data.find(_MAGIC_BYTES, first)
    while found >= 0:
        header = data[found : found + _HEADER.size]
        if len(header) == _HEADER.size and crc32(header[:-4], nonce) == _HEADER.unpack(header)[4]:
            raise DamageError(position, f"record is missing before the one at {found}")
        found = data.find(_MAGIC_BYTES, found + 1)
    for sector in range(first, len(data), SECTOR_BYTES):
        part = data[sector : sector + SECTOR_BYTES]
        if _ZERO_RUN not in part or is_zero(part):
            continue
        text = part.rstrip(b"\0")
        if _ZERO_RUN in text or text[-1:] != _TRAILERS[3] or not is_zero(data, sector + len(text)):
            raise damage


def _next_sector(position: int) -> int:
    return position - position % SECTOR_BYTES + SECTOR_BYTES


def is_zero(data: bytes, start: int = 0) -> bool:
    """Whether all bytes from `start` on are zero."""
    return start >= len(data) or data[start:] == bytes(len(data) - start)


def _whiten(payload: bytes) -> tuple[int, bytes]:
    seed = 1
    while _ZERO_RUN in (whitened := _unwhiten(payload, seed)):
        seed += 1
    return seed, whitened


def _unwhiten(payload: bytes | memoryview, seed: int) -> bytes:
    keystream = hashlib.shake_128(_CHECKSUM.pack(seed)).digest(len(payload))
    number = int.from_bytes(payload, "little") ^ int.from_bytes(keystream, "little")
    return number.to_bytes(len(payload), "little")
