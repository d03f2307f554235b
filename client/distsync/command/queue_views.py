"""How messages and queues are shown: tables and pages for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Final

from distsync.command.durations import format_duration
from distsync.command.output import body_for, printable, render_table
from distsync.queue_models import (
    MessageInfo,
    MessageOrder,
    PeekedMessage,
    QueueConfig,
    QueueStats,
    Schedule,
)

_EXCERPT_CHARACTERS: Final = 60
_NOW: Final = ("ready", "grouped", "delayed", "in_flight", "dead")
_EVER: Final = (
    "pushed",
    "deduplicated",
    "delivered",
    "acked",
    "nacked",
    "timed_out",
    "unclaimed",
    "expired",
    "dead_lettered",
    "redriven",
    "cancelled",
    "purged",
)


def peeked_table(messages: Sequence[PeekedMessage]) -> str:
    """Show what could be claimed now."""
    headings = ("ID", "PRIORITY", "GROUP", "DELIVERIES", "BODY")
    rows = [(m.id, m.priority, m.group or None, m.deliveries, _excerpt(m.body)) for m in messages]
    return render_table(headings, rows)


def message_table(order: MessageOrder, messages: Sequence[MessageInfo], now_ms: int) -> str:
    """Show messages of an order, with the time that matters there."""
    extra = {
        "delayed": "DUE IN",
        "grouped": "DUE IN",
        "in_flight": "CLAIM ENDS IN",
        "dead": "DEAD FOR",
    }
    heading = extra.get(order)
    headings = ["ID", "PRIORITY", "GROUP", "DELIVERIES", "AGE", "EXPIRES IN", "BODY"]
    if heading is not None:
        headings.insert(-2, heading)
    rows = []
    for m in messages:
        row: list[object] = [m.id, m.priority, m.group or None, m.deliveries]
        row.append(_span(now_ms - m.pushed_at_ms))
        if heading is not None:
            row.append(_moment(order, m, now_ms))
        row.append(_span(m.expires_at_ms - now_ms) if m.expires_at_ms else None)
        row.append(_excerpt(m.body))
        rows.append(row)
    return render_table(headings, rows)


def _moment(order: MessageOrder, message: MessageInfo, now_ms: int) -> str | None:
    if order == "dead":
        return _span(now_ms - message.died_at_ms)
    at_ms = message.deadline_ms if order == "in_flight" else message.due_at_ms
    return _span(at_ms - now_ms) if at_ms else None


def message_page(message: MessageInfo, *, terminal: bool) -> str:
    """Show one message: what is known of it, and after an empty line its body."""
    times = {
        "pushed": message.pushed_at_ms,
        "due": message.due_at_ms,
        "expires": message.expires_at_ms,
        "claimed until": message.deadline_ms,
        "died": message.died_at_ms,
    }
    lines: list[tuple[str, object]] = [
        ("id", message.id),
        ("phase", message.phase.replace("_", " ")),
        ("deliveries", message.deliveries),
        ("priority", message.priority),
        ("group", message.group or None),
        ("bytes", message.size),
        *((name, _timestamp(ms)) for name, ms in times.items() if ms),
    ]
    width = max(len(name) for name, _ in lines)
    shown = [
        f"{name.ljust(width)}  {'-' if value is None else printable(str(value))}"
        for name, value in lines
    ]
    return "\n".join([*shown, "", body_for(message.body, terminal=terminal)])


def stats_page(name: str, stats: QueueStats) -> str:
    """Show what is in a queue beside what has happened."""
    rows = [
        (_words(now), _count(stats, now), _words(ever), _count(stats, ever))
        for now, ever in zip_longest(_NOW, _EVER, fillvalue="")
    ]
    table = render_table(("NOW", "MESSAGES", "SINCE IT WAS MADE", "MESSAGES"), rows)
    state = ["paused"] if stats.config.paused else []
    if stats.oldest_ready_ms:
        state.append(f"the oldest has waited {_span(stats.oldest_ready_ms)}")
    return "\n".join([": ".join([printable(name), *([", ".join(state)] if state else [])]), table])


def queues_table(queues: Sequence[tuple[str, QueueStats]]) -> str:
    """Show several queues, one a line."""
    headings = (
        *("NAME", "READY", "GROUPED", "DELAYED", "IN FLIGHT", "DEAD"),
        *("OLDEST", "STATE"),
    )
    rows = [
        (
            name,
            *(getattr(stats, field) for field in _NOW),
            _span(stats.oldest_ready_ms) if stats.oldest_ready_ms else None,
            _state(stats.config),
        )
        for name, stats in queues
    ]
    return render_table(headings, rows)


def config_table(config: QueueConfig) -> str:
    """Show a configuration; what has no limit has a dash."""
    headings = ("MAX LENGTH", "MAX DELIVERIES", "DEDUPE WINDOW", "TTL", "RATE", "STATE")
    rate = f"{config.rate_count} per {format_duration(config.rate_per_ms)}"
    row = (
        config.max_length or None,
        config.max_deliveries or None,
        format_duration(config.dedupe_window_ms) if config.dedupe_window_ms else None,
        format_duration(config.ttl_ms) if config.ttl_ms else None,
        rate if config.rate_count else None,
        _state(config),
    )
    return render_table(headings, [row])


def schedule_line(schedule: Schedule) -> str:
    """Say when a schedule is due next."""
    due = schedule.next_at
    return f"{printable(schedule.id)} is " + (f"due next at {_clock(due)}" if due else "never due")


def schedule_table(schedules: Sequence[Schedule]) -> str:
    """Show schedules, and when each is due next; what never is has a dash."""
    headings = ("ID", "CRON", "TIME ZONE", "DUE NEXT", "PRIORITY", "GROUP", "TTL", "BODY")
    rows = [
        (
            s.id,
            s.cron,
            s.timezone,
            _clock(s.next_at) if s.next_at else None,
            s.priority,
            s.group or None,
            format_duration(s.ttl_ms) if s.ttl_ms else None,
            _excerpt(s.body),
        )
        for s in schedules
    ]
    return render_table(headings, rows)


def _state(config: QueueConfig) -> str:
    return "paused" if config.paused else "open"


def _count(stats: QueueStats, field: str) -> str:
    return str(getattr(stats, field)).rjust(len("MESSAGES")) if field else ""


def _words(field: str) -> str:
    return field.replace("_", " ")


def _span(duration_ms: int) -> str:
    """Write a duration as exactly as a person reads it; what is over is 0."""
    duration_ms = max(0, duration_ms)
    step = 1 if duration_ms < 1_000 else 100 if duration_ms < 10_000 else 1_000
    return format_duration(duration_ms // step * step)


def _timestamp(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(" ", "milliseconds")


def _clock(moment: datetime) -> str:
    return moment.isoformat(" ", "seconds")


def _excerpt(body: str) -> str:
    shown = printable(body[:_EXCERPT_CHARACTERS])
    return f"{shown}…" if len(body) > _EXCERPT_CHARACTERS else shown
