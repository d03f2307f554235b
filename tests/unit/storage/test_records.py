from __future__ import annotations

import random

import pytest

from distsync_node.storage.records import (
    SECTOR_BYTES,
    DamageError,
    Scan,
    frame,
    record_start,
    scan,
)

START = SECTOR_BYTES
NONCE = 0x12345678
FILE_BYTES = 16_384


def write(payloads: list[bytes], *, size: int = FILE_BYTES) -> tuple[bytearray, list[range]]:
    """A segment's bytes and where each record lies in it."""
    content = bytearray(size)
    content[:START] = b"h" * START
    chain, end, extents = 7, START, []
    for payload in payloads:
        start = record_start(end)
        data, chain = frame(payload, chain=chain, nonce=NONCE)
        content[start : start + len(data)] = data
        end = start + len(data)
        extents.append(range(start, end))
    return content, extents


def read(content: bytes | bytearray) -> Scan:
    return scan(bytes(content), START, chain=7, nonce=NONCE)


def payloads_of(found: Scan) -> list[bytes]:
    return [bytes(payload) for payload in found.payloads]


SIZES = [0, 1, 3, 40, 468, 487, 488, 489, 511, 512, 1500, 3000]


def test_records_of_all_sizes_come_back_in_order() -> None:
    payloads = [bytes([65 + number]) * size for number, size in enumerate(SIZES)]
    content, extents = write(payloads)
    found = read(content)
    assert payloads_of(found) == payloads
    assert (found.last_start, found.end, found.torn) == (extents[-1][0], extents[-1][-1] + 1, False)


def test_headers_never_cross_a_sector() -> None:
    _, extents = write([b"x" * size for size in range(0, 500, 7)], size=1 << 20)
    assert all(extent[0] // SECTOR_BYTES == (extent[0] + 19) // SECTOR_BYTES for extent in extents)


def test_zeros_in_a_payload_come_back_and_leave_no_zero_sector() -> None:
    payloads = [bytes(5000), b"a" + bytes(64), b"b" + bytes(63)]
    content, extents = write(payloads)
    assert payloads_of(read(content)) == payloads
    for sector in range(START, extents[0][-1], SECTOR_BYTES):
        assert any(content[sector : sector + SECTOR_BYTES])


def test_an_empty_segment_is_empty() -> None:
    content, _ = write([])
    found = read(content)
    assert (found.payloads, found.last_start, found.end, found.torn) == ((), START, START, False)


def test_a_record_without_reserved_space_behind_it_is_complete() -> None:
    content, extents = write([b"one", b"two"])
    assert payloads_of(read(content[: extents[-1][-1] + 1])) == [b"one", b"two"]


@pytest.mark.parametrize("size", [900, 3000, 8000])
@pytest.mark.parametrize("fill", [b"\0", b"\xa5", b"text\0"])
def test_any_lost_sectors_of_the_last_record_are_cut(size: int, fill: bytes) -> None:
    chance = random.Random(size)
    first = b"kept" * 30
    content, extents = write([first, (fill * size)[:size]])
    last = extents[1]
    sectors = list(range(last[0] // SECTOR_BYTES, last[-1] // SECTOR_BYTES + 1))
    for _ in range(60):
        damaged = bytearray(content)
        lost = chance.sample(sectors, chance.randint(1, len(sectors)))
        for sector in lost:
            start = max(sector * SECTOR_BYTES, last[0])
            stop = min((sector + 1) * SECTOR_BYTES, last[-1] + 1)
            damaged[start:stop] = bytes(stop - start)
        found = read(damaged)
        assert payloads_of(found) == [first]
        assert found.end == extents[0][-1] + 1
        assert found.torn == (len(lost) < len(sectors))


def test_a_file_cut_short_anywhere_in_the_last_record_loses_only_that() -> None:
    first = b"kept" * 30
    content, extents = write([first, b"x" * 700])
    for size in range(extents[1][0] + 1, extents[1][-1]):
        found = read(content[:size])
        assert payloads_of(found) == [first]
        assert found.torn


def test_a_changed_byte_in_any_record_is_damage() -> None:
    content, extents = write([b"first" * 50, bytes(600), b"last" * 200])
    for extent in extents:
        for offset in extent:
            damaged = bytearray(content)
            damaged[offset] ^= 0x10
            with pytest.raises(DamageError) as caught:
                read(damaged)
            assert caught.value.offset <= offset


def test_a_byte_set_to_zero_in_any_record_is_damage() -> None:
    content, extents = write([b"first" * 50, b"last" * 200])
    for extent in extents:
        for offset in extent:
            if content[offset]:
                damaged = bytearray(content)
                damaged[offset] = 0
                with pytest.raises(DamageError):
                    read(damaged)


def test_a_zeroed_sector_before_the_last_record_is_damage() -> None:
    content, extents = write([b"a" * 2000, b"b" * 2000, b"c" * 100])
    for sector in range(1, extents[1][-1] // SECTOR_BYTES):
        damaged = bytearray(content)
        damaged[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = bytes(SECTOR_BYTES)
        with pytest.raises(DamageError):
            read(damaged)


@pytest.mark.parametrize("distance", [0, 1, 30, 700, 1024, 5000])
def test_a_stray_byte_behind_the_last_record_is_damage(distance: int) -> None:
    content, extents = write([b"a" * 100])
    content[extents[-1][-1] + 1 + distance] = 0x40
    with pytest.raises(DamageError):
        read(content)


def test_a_record_of_another_file_is_damage_and_never_read() -> None:
    content, extents = write([b"a" * 100])
    foreign, _ = frame(b"from elsewhere", chain=7, nonce=NONCE + 1)
    start = record_start(extents[-1][-1] + 1)
    content[start : start + len(foreign)] = foreign
    with pytest.raises(DamageError):
        read(content)


def test_a_repeated_record_is_damage() -> None:
    content, extents = write([b"a" * 100, b"b" * 100])
    end = extents[1][-1] + 1
    copy = content[extents[1][0] : end]
    start = record_start(end)
    content[start : start + len(copy)] = copy
    with pytest.raises(DamageError):
        read(content)


def test_two_records_in_the_wrong_order_are_damage() -> None:
    content, extents = write([b"a" * 100, b"b" * 100, b"c" * 100])
    swapped = bytearray(content)
    one, two = extents[0], extents[1]
    swapped[one[0] : one[-1] + 1], swapped[two[0] : two[-1] + 1] = (
        content[two[0] : two[-1] + 1],
        content[one[0] : one[-1] + 1],
    )
    with pytest.raises(DamageError):
        read(swapped)


def test_a_payload_that_contains_a_record_does_not_hide_a_torn_one() -> None:
    inner, _ = frame(b"inner", chain=7, nonce=NONCE + 1)
    content, extents = write([b"kept", b"x" * 600 + inner + b"y" * 900])
    last = extents[1]
    lost_end = (last[0] // SECTOR_BYTES + 1) * SECTOR_BYTES
    content[last[0] : lost_end] = bytes(lost_end - last[0])
    found = read(content)
    assert (payloads_of(found), found.torn) == ([b"kept"], True)
