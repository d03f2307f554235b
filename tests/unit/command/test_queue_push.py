"""What becomes of a file or a stream that is pushed: read and cut, no cluster."""

import io
import os

import pytest

from distsync.command.failures import Failure
from distsync.command.queue_push import _line_chunks

KIB_256 = 256 * 1024


def lines_of(data: bytes) -> list[str]:
    return [line for chunk in _line_chunks(io.BytesIO(data)) for line in chunk]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"\n\na\n", ["", "", "a"]),
        (b"a\r\nb\x0bc\n", ["a\r", "b\x0bc"]),
        ("é\u2028x\n".encode(), ["é\u2028x"]),
    ],
)
def test_a_newline_ends_a_line_and_nothing_else_does(data: bytes, lines: list[str]) -> None:
    assert lines_of(data) == lines


def test_lines_of_any_length_come_whole() -> None:
    lines = ["x" * KIB_256, "y", "z" * KIB_256]
    assert lines_of("\n".join(lines).encode()) == lines


def test_lines_come_when_they_are_written_and_not_when_a_batch_is_full() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as sink:
        chunks = _line_chunks(source)
        sink.write(b"a\nb\nhal")
        assert next(chunks) == ["a", "b"]
        sink.write(b"f\n")
        assert next(chunks) == ["half"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\nb\xff\nc", "line 2 is not UTF-8"),
        (b"a\n" + b"x" * (KIB_256 + 1) + b"\nc", "line 2 is longer than 256 KiB"),
        (b"a\nb\n" + b"x" * (3 * KIB_256), "line 3 is longer than 256 KiB"),
    ],
)
def test_a_line_that_cannot_be_a_message_is_named(data: bytes, said: str) -> None:
    with pytest.raises(Failure, match=said):
        lines_of(data)


def test_a_line_without_an_end_is_not_kept_in_memory_for_ever() -> None:
    class Endless(io.RawIOBase):
        count = 0

        def readable(self) -> bool:
            return True

        def read1(self, size: int = -1) -> bytes:
            self.count += 1
            return b"x" * 64 * 1024

    source = Endless()
    with pytest.raises(Failure, match="line 1 is longer"):
        list(_line_chunks(source))  # type: ignore[arg-type]
    assert source.count == 5
