"""The load client's HTTP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.wire import Answer, AnswerReader, WireError, post, post_template

WITH_LENGTH = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"token":7}'
)
CHUNKED = (
    b"HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\nDate: now\r\n\r\n"
    b'6;x=y\r\n{"code\r\nA\r\n":"taken"}\r\n0\r\n\r\n'
)


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (WITH_LENGTH, Answer(200, b'{"token":7}')),
        (CHUNKED, Answer(409, b'{"code":"taken"}')),
        (b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", Answer(503, b"")),
    ],
)
@given(data=st.data())
def test_an_answer_is_read_however_it_is_cut(
    wire: bytes, answer: Answer, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    reader = AnswerReader()
    assert [reader.feed(piece) for piece in pieces[:-1]] == [None] * len(cuts)
    assert reader.feed(pieces[-1]) == answer


def test_a_reader_takes_one_answer_after_another() -> None:
    reader = AnswerReader()
    assert reader.feed(WITH_LENGTH) == Answer(200, b'{"token":7}')
    assert reader.feed(CHUNKED) == Answer(409, b'{"code":"taken"}')


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate: now\r\n\r\n",
        WITH_LENGTH + b"HTTP/1.1 ",
        b"HTTP/1.1 200 OK\r\n" + b"x" * (2 << 20),
    ],
    ids=["not HTTP", "no length", "more than one answer", "endless head"],
)
def test_what_is_not_one_answer_is_refused(wire: bytes) -> None:
    with pytest.raises(WireError):
        AnswerReader().feed(wire)


@given(st.binary(max_size=50))
def test_a_template_gives_the_bytes_of_the_whole_request(value: bytes) -> None:
    template = post_template("/lock/release", b'{"token":@}', b"@")
    assert template(value) == post("/lock/release", b'{"token":' + value + b"}")
