"""Recurring schedules: messages that are pushed at the times of a cron expression.

Guarantees:

- A time that comes is served once, whichever nodes serve it: the push has a request id and message
  ids made of queue, schedule and time, so one that is done again changes nothing. (Again after the
  minutes for which requests are remembered, and after the message is acknowledged, it would: a node
  has to die between a push and the next step, and none to look for that long.)
- Times that passed while nobody was there to serve them are served as one, late.
- Due is what Redis' clock says. Clocks of nodes decide nothing.

How it is found out what is due: `dsq:scheduled` has the queues with schedules by the time to look
at them. Whoever adds a schedule writes the time, never a later one, before and after it: whatever
dies in between, the queue is looked at. Whoever serves them writes the next time and reads the
schedules again then: what changed before that is seen, and what changes after it writes the time
itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from distsync_node.errors import BadRequest, LimitReached, PayloadTooLarge, after_a_change
from distsync_node.queues import checks, limits
from distsync_node.queues.replies import unexpected
from distsync_node.queues.runner import Runner
from distsync_node.queues.types import NewMessage

PUSH_ID_BYTES: Final = 20
NEVER_MS: Final = 2**53 - 1

encode: Final = msgspec.msgpack.Encoder().encode


class Specification(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is pushed, and when."""

    cron: str
    timezone: str
    message: NewMessage


class Schedule(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A schedule: its id, when it is due next by the clock of Redis, and what it does."""

    id: str
    next_at_ms: int
    specification: Specification


class _Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A schedule as it stands in Redis."""

    next_at_ms: int
    specification: Specification


_decode: Final = msgspec.msgpack.Decoder(_Kept).decode


def next_time_ms(cron: str, timezone: str, after_ms: int) -> int:
    """Return the first time after `after_ms` at which a cron expression is due.

    `NEVER_MS` if there is none. Five fields (minute, hour, day, month, weekday), or six with
    seconds in front; a time that a change of clocks leaves out is due right after it.

    Raises:
        BadRequest: it is none, or there is no such time zone.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ValueError, OSError, KeyError):
        raise BadRequest("timezone: is not in the IANA database", field="timezone") from None
    after = datetime.fromtimestamp(after_ms // 1_000, UTC).astimezone(zone)
    try:
        due = next(CronSim(cron, after), None)
    except CronSimError as error:
        raise BadRequest(f"cron: {error}", field="cron") from None
    return NEVER_MS if due is None else int(due.timestamp() * 1_000)


class Schedules:
    """The schedules of the queues of one Redis."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def put(self, queue: str, schedule_id: str, specification: Specification) -> Schedule:
        """Add a schedule, or replace the one of that id.

        Raises:
            BadRequest, LimitReached: nothing was done. RedisFull.
        """
        checks.check_queue(queue)
        checks.check_text(schedule_id, "id", limits.MAX_SCHEDULE_ID_BYTES)
        checks.check_messages([specification.message])
        if len(specification.message.body) > limits.MAX_SCHEDULED_BODY_BYTES:
            raise PayloadTooLarge(
                f"body: of a schedule is at most {limits.MAX_SCHEDULED_BODY_BYTES} bytes",
                field="body",
            )
        now_ms = await self._runner.time_ms()
        due_ms = next_time_ms(specification.cron, specification.timezone, now_ms)
        await self._runner.register(queue)
        # Before and after: a node may die in between, and others may forget the queue in between.
        await self._runner.look_at(queue, due_ms, no_later=True)
        packed = encode(_Kept(due_ms, specification))
        request = (schedule_id, limits.MAX_SCHEDULES)
        match await self._runner.run("schedule", queue, request, [packed]):
            case [["ok", created]]:
                if created:
                    with after_a_change():
                        await self._runner.register(queue, again=True)
            case [["too_many"]]:
                raise LimitReached(
                    f"queue {queue!r} has {limits.MAX_SCHEDULES} schedules", limit="schedules"
                )
            case reply:
                raise unexpected("schedule", reply)
        with after_a_change():
            await self._runner.look_at(queue, due_ms, no_later=True)
        return Schedule(id=schedule_id, next_at_ms=due_ms, specification=specification)

    async def delete(self, queue: str, schedule_id: str) -> bool:
        """Forget a schedule; returns whether there was one."""
        checks.check_queue(queue)
        checks.check_text(schedule_id, "id", limits.MAX_SCHEDULE_ID_BYTES)
        match await self._runner.run("unschedule", queue, (schedule_id,)):
            case [["ok", existed]]:
                return bool(existed)
            case reply:
                raise unexpected("unschedule", reply)

    async def list(self, queue: str) -> tuple[Schedule, ...]:
        """Return the schedules of a queue, by id."""
        checks.check_queue(queue)
        _, kept = await self._read(queue)
        return tuple(
            Schedule(id=one, next_at_ms=at.next_at_ms, specification=at.specification)
            for one, (_, at) in sorted(kept.items())
        )

    async def to_look_at(self, *, after: int = 0, limit: int) -> tuple[tuple[str, int], ...]:
        """Return queues with schedules that may be due, and for how many milliseconds they have
        been: the latest first, up to `limit` behind the first `after`."""
        now_ms = await self._runner.time_ms()
        found = await self._runner.to_look_at(now_ms, after=after, limit=limit)
        return tuple((queue, now_ms - at_ms) for queue, at_ms in found)

    async def due(self, queue: str) -> tuple[Due, ...]:
        """Return what is due in a queue now."""
        now_ms, kept = await self._read(queue)
        return tuple(
            Due(queue, one, packed, at, now_ms)
            for one, (packed, at) in sorted(kept.items())
            if at.next_at_ms <= now_ms
        )

    async def served(self, due: Due) -> None:
        """It was pushed: the schedule is due at its next time, unless it was changed meanwhile."""
        kept = [due.packed, due.after()]
        match await self._runner.run("reschedule", due.queue, (due.schedule_id,), kept):
            case [["ok", _]]:
                return
            case reply:
                raise unexpected("reschedule", reply)

    async def looked_at(self, queue: str) -> None:
        """Nothing of a queue is due any more: have it looked at when something will be."""
        before = await self._earliest(queue)
        if before is None:
            await self._runner.look_no_more(queue)
        else:
            await self._runner.look_at(queue, before)
        after = await self._earliest(queue)
        if after is not None and (before is None or after < before):
            await self._runner.look_at(queue, after, no_later=before is not None)

    async def _earliest(self, queue: str) -> int | None:
        _, kept = await self._read(queue)
        return min((at.next_at_ms for _, at in kept.values()), default=None)

    async def _read(self, queue: str) -> tuple[int, dict[str, tuple[bytes, _Kept]]]:
        reply: Sequence[Any] = await self._runner.run("schedules", queue, ())
        match reply:
            case [["ok", now_ms], *pairs]:
                ids, values = pairs[::2], pairs[1::2]
                return now_ms, {
                    one.decode(): (packed, _decode(packed))
                    for one, packed in zip(ids, values, strict=True)
                }
            case _:
                raise unexpected("schedules", reply)


class Due:
    """A time of a schedule that has come."""

    __slots__ = ("_kept", "_now_ms", "packed", "queue", "schedule_id")

    def __init__(
        self, queue: str, schedule_id: str, packed: bytes, kept: _Kept, now_ms: int
    ) -> None:
        self.queue = queue
        self.schedule_id = schedule_id
        self.packed = packed
        self._kept = kept
        self._now_ms = now_ms

    @property
    def message(self) -> NewMessage:
        """What to push."""
        return self._kept.specification.message

    @property
    def push_id(self) -> str:
        """The same for this time of this schedule, whoever pushes; also the request id."""
        named = encode((self.queue, self.schedule_id, self.packed))
        return hashlib.blake2b(named, digest_size=PUSH_ID_BYTES).hexdigest()

    def after(self) -> bytes:
        """Return the schedule as it stands once this is served."""
        specification = self._kept.specification
        after_ms = max(self._kept.next_at_ms, self._now_ms)
        due_ms = next_time_ms(specification.cron, specification.timezone, after_ms)
        return encode(_Kept(due_ms, specification))
