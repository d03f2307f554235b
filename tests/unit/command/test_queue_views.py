import json
from dataclasses import dataclass

import pytest

from distsync.command import queue_work
from distsync.command.output import render_json
from distsync.command.queue_views import (
    body_for,
    config_table,
    message_page,
    message_table,
    peeked_table,
    queues_table,
    schedule_line,
    schedule_table,
    stats_page,
)
from distsync.queue_models import MessageInfo, PeekedMessage, QueueConfig, QueueStats, Schedule

STATS = QueueStats(
    ready=3,
    grouped=0,
    delayed=1,
    in_flight=2,
    dead=0,
    pushed=46,
    acked=40,
    oldest_ready_ms=1_250,
    config=QueueConfig(max_deliveries=16, dedupe_window_ms=300_000),
)


def info(**fields: object) -> MessageInfo:
    given = {"id": "9f-0", "phase": "ready", "body": "hello", "deliveries": 1, **fields}
    return MessageInfo(**given)  # type: ignore[arg-type]


def test_what_could_be_claimed_is_a_table_with_excerpts() -> None:
    long = "x" * 70 + "end"
    table = peeked_table(
        [
            PeekedMessage(id="9f-0", body="a\nb", deliveries=0, priority=3, group="ada"),
            PeekedMessage(id="9f-1", body=long, deliveries=12),
        ]
    )
    assert table.splitlines() == [
        "ID    PRIORITY  GROUP  DELIVERIES  BODY",
        "9f-0         3  ada             0  a\\x0ab",
        f"9f-1         0  -              12  {'x' * 60}…",
    ]


@pytest.mark.parametrize(
    ("order", "fields", "heading", "shown"),
    [
        ("delayed", {"due_at_ms": 1_065_000}, "DUE IN", "1m5s"),
        ("grouped", {}, "DUE IN", "-"),
        ("in_flight", {"deadline_ms": 1_002_345}, "CLAIM ENDS IN", "2.3s"),
        ("in_flight", {"deadline_ms": 999_000}, "CLAIM ENDS IN", "0ms"),
        ("dead", {"died_at_ms": 1_000_000 - 7_200_000}, "DEAD FOR", "2h"),
    ],
)
def test_a_list_shows_the_time_that_matters_in_its_order(
    order: str, fields: dict[str, int], heading: str, shown: str
) -> None:
    message = info(pushed_at_ms=1_000_000 - 31_900, expires_at_ms=1_000_500, **fields)
    table = message_table(order, [message], 1_000_000)  # type: ignore[arg-type]
    head, row = table.splitlines()
    assert heading in head
    assert row.split()[:2] == ["9f-0", "0"]
    assert row.split()[-4:] == ["31s", shown, "500ms", "hello"]


def test_ready_messages_have_no_other_time_than_their_age() -> None:
    head, row = message_table("ready", [info(pushed_at_ms=999_900)], 1_000_000).splitlines()
    assert head.split("  ")[-1] == "BODY"
    assert row.split() == ["9f-0", "0", "-", "1", "100ms", "-", "hello"]


def test_a_message_has_a_page_with_what_applies_to_it() -> None:
    message = info(phase="in_flight", pushed_at_ms=1_790_000_000_000, size=11, body="two\nlines")
    page = message_page(message, terminal=False)
    assert page.endswith("\n\ntwo\nlines")
    assert "phase       in flight\n" in page
    assert "pushed      2026-09-21 14:13:20.000+00:00\n" in page
    assert "died" not in page


def test_a_body_cannot_draw_on_a_terminal_and_is_itself_elsewhere() -> None:
    evil = "a\tb\n\x1b[2Jc"
    assert body_for(evil, terminal=False) == evil
    assert body_for(evil, terminal=True) == "a\tb\n\\x1b[2Jc"


def test_statistics_are_what_there_is_beside_what_happened() -> None:
    page = stats_page("emails", STATS).splitlines()
    assert page[0] == "emails: the oldest has waited 1.2s"
    assert page[1] == "NOW        MESSAGES  SINCE IT WAS MADE  MESSAGES"
    assert page[2] == "ready             3  pushed                   46"
    assert page[-1].split() == ["purged", "0"]
    assert len(page) == 2 + 12


def test_paused_queues_say_so() -> None:
    paused = QueueStats(
        ready=0, grouped=0, delayed=0, in_flight=0, dead=0, config=QueueConfig(paused=True)
    )
    assert stats_page("emails", paused).splitlines()[0] == "emails: paused"
    head, open_row, paused_row = queues_table([("a", STATS), ("b\x1b", paused)]).splitlines()
    assert head.split()[:2] == ["NAME", "READY"]
    assert open_row.split() == ["a", "3", "0", "1", "2", "0", "1.2s", "open"]
    assert paused_row.split() == ["b\\x1b", "0", "0", "0", "0", "0", "-", "paused"]


def test_a_configuration_shows_no_limit_as_a_dash() -> None:
    config = QueueConfig(max_deliveries=16, dedupe_window_ms=300_000)
    assert config_table(config).splitlines()[1].split() == ["-", "16", "5m", "-", "-", "open"]
    config = QueueConfig(ttl_ms=60_000, rate_count=100, rate_per_ms=1_000, paused=True)
    assert config_table(config).splitlines()[1].split() == (
        ["-", "-", "-", "1m", "100", "per", "1s", "paused"]
    )


def test_what_json_shows_are_the_fields_of_the_api() -> None:
    assert json.loads(render_json(info()))["deadline_ms"] == 0
    assert json.loads(render_json(STATS))["config"]["max_deliveries"] == 16


@dataclass
class FakeMessage:
    id: str = "9f-0"
    deliveries: int = 2


@pytest.mark.parametrize(
    ("as_json", "line"),
    [
        (False, "distsync: q\\x1b, message 9f-0, delivery 2: exit code 3\n"),
        (
            True,
            '{"event":"exited","queue":"q\\u001b","exit_code":3,"id":"9f-0","deliveries":2,'
            '"detail":"q\\u001b, message 9f-0, delivery 2: exit code 3"}\n',
        ),
    ],
)
def test_a_worker_tells_of_a_failure_on_one_line(
    capsys: pytest.CaptureFixture[str], as_json: bool, line: str
) -> None:
    reporter = queue_work._Reporter("q\x1b", as_json=as_json)
    reporter.exited(FakeMessage(), 3)  # type: ignore[arg-type]
    assert capsys.readouterr().err == line


def test_a_worker_tells_a_person_nothing_of_what_went_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = queue_work._Reporter("q", as_json=False)
    reporter.exited(FakeMessage(), 0)  # type: ignore[arg-type]
    reporter.stopping(1, 30)
    assert capsys.readouterr().err == ""


def test_a_body_is_a_file_that_need_not_be_read() -> None:
    import os

    body = "é" * 100_000
    with queue_work._as_file(body) as descriptor:
        data = b""
        while part := os.read(descriptor, 65_536):
            data += part
    assert data.decode() == body


def test_schedules_are_a_table_with_the_next_time_of_each() -> None:
    daily = Schedule(
        id="a", cron="30 2 * * *", body="x\ny", timezone="Asia/Tokyo", next_at_ms=1_000_000
    )
    never = Schedule(id="b", cron="0 0 30 2 *", body="y", priority=3, ttl_ms=60_000, group="g")
    assert schedule_table([daily, never]).splitlines() == [
        "ID  CRON        TIME ZONE   DUE NEXT                   PRIORITY  GROUP  TTL  BODY",
        "a   30 2 * * *  Asia/Tokyo  1970-01-01 00:16:40+00:00         0  -      -    x\\x0ay",
        "b   0 0 30 2 *  UTC         -                                 3  g      1m   y",
    ]
    assert schedule_line(daily) == "a is due next at 1970-01-01 00:16:40+00:00"
    assert schedule_line(never) == "b is never due"
