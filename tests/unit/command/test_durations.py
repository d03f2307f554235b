import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsync.command.durations import format_duration, parse_duration_ms


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("10s", 10_000),
        ("500ms", 500),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("1h30m", 5_400_000),
        ("1m2s3ms", 62_003),
        ("1.5s", 1_500),
        ("0.001s", 1),
        ("0", 0),
        ("0ms", 0),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, expected_ms: int) -> None:
    assert parse_duration_ms(text) == expected_ms


@pytest.mark.parametrize(
    "text", ["", "10", "s", "-1s", "1d", "1 s", "10S", "1s ", " 1s", "1,5s", "ms10", "1e3s", "٣s"]
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration_ms(text)


def test_a_bare_number_is_refused_with_both_readings_of_it() -> None:
    with pytest.raises(ValueError, match="write 10s or 10ms"):
        parse_duration_ms("10")


def test_less_than_a_millisecond_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of milliseconds"):
        parse_duration_ms("0.0001s")


@given(st.integers(min_value=1, max_value=59_999))
def test_below_a_minute_what_is_written_reads_back_the_same(duration_ms: int) -> None:
    assert parse_duration_ms(format_duration(duration_ms)) == duration_ms


@given(st.integers(min_value=60_000, max_value=10**9))
def test_above_a_minute_it_is_cut_to_the_second(duration_ms: int) -> None:
    assert parse_duration_ms(format_duration(duration_ms)) == duration_ms // 1_000 * 1_000


def test_a_whole_number_of_minutes_is_written_without_seconds() -> None:
    assert format_duration(120_000) == "2m"
    assert format_duration(5_400_000) == "1h30m"
    assert format_duration(0) == "0ms"
    assert format_duration(-1_500) == "-1.5s"
