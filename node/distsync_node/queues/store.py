"""Queues in Redis: one method per script, typed.

    store = await QueueStore.open("redis://localhost")
    pushed = await store.push("emails", [NewMessage(body=b"...")])
    popped = await store.pop("emails", count=10)
    await store.ack("emails", [message.receipt for message in popped.messages])
    await store.close()

Any number of nodes may do this on one Redis; which of them does is a matter of speed only. Each
method may be called again after an error that is `retriable`, with the same `request_id`, here or
on another node: it does not happen twice. Who forwards a call therefore mints first what it needs
(`new_request_id`, `new_push_id`) and sends it along; without them the store does.

Errors of all methods: BadRequest (a field is wrong; nothing done), RequestIdReused,
RedisUnavailable (nothing done), OutcomeUnknown (maybe done), LimitReached (too many in flight).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Final, Self

from distsync_node.errors import (
    Fenced,
    MessageInFlight,
    MessageNotFound,
    QueueFull,
    QueueNotFound,
    after_a_change,
)
from distsync_node.queues import checks, limits, replies
from distsync_node.queues.commands import encode
from distsync_node.queues.replies import unexpected
from distsync_node.queues.runner import Runner
from distsync_node.queues.schedules import Schedules
from distsync_node.queues.types import (
    Fence,
    FenceUnverified,
    MessageInfo,
    NewMessage,
    Order,
    Page,
    Popped,
    PurgeTarget,
    Pushed,
    PushOutcome,
    QueueConfig,
    QueueConfigChange,
    QueueStats,
    Settled,
    Swept,
    Unclaimed,
)
from distsync_node.redis_link.calls import DEADLINE_S, PATIENCE_S
from distsync_node.redis_link.topology import Timing

logger = logging.getLogger(__name__)

MAX_MARKS_KEPT: Final = 100_000
NO_FENCE: Final = ("", 0, "")


_PROCESS: Final = secrets.token_hex(8)
_numbers: Final = itertools.count()


def new_request_id() -> str:
    """Return an id for a request that came without one.

    Ids of this kind are random by process and counted in it: randomness for each costs a system
    call.
    """
    return f"{_PROCESS}{next(_numbers):x}"


new_push_id = new_request_id
"""Return what the ids of a push's messages begin with."""

new_attempt = new_request_id
"""Return what tells one try of a pop from all others."""


class QueueStore:
    """The queues of one Redis. Made by `open`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.schedules = Schedules(runner)
        self._marks: dict[str, str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.on_returned: Callable[[str, int], None] = lambda _queue, _ready: None
        """Called with a queue and how many messages a cancelled pop has given back."""

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        timing: Timing | None = None,
        patience_s: float = PATIENCE_S,
        deadline_s: float = DEADLINE_S,
    ) -> Self:
        """Return a store. A Redis that cannot be reached yet is no error: calls get 503 until then.

        Raises:
            StartupError: the URL is none, or the server must not be used as it is, in one line.
        """
        runner = Runner(url, timing=timing, patience_s=patience_s, deadline_s=deadline_s)
        await runner.start()
        return cls(runner)

    async def close(self) -> None:
        """End all connections. Calls in flight fail."""
        if self._background:
            await asyncio.wait(self._background, timeout=DEADLINE_S)
        await self._runner.close()

    # Messages in.

    async def push(
        self,
        queue: str,
        messages: Sequence[NewMessage],
        *,
        request_id: str = "",
        push_id: str = "",
        fence: Fence | None = None,
    ) -> PushOutcome:
        """Put messages into a queue, all or none; a new name makes the queue.

        A message whose dedupe id was pushed within the queue's window is not pushed; its place in
        `ids` has the id of that one.

        Raises:
            QueueFull: they do not fit under max_length. Fenced: the lock has a newer grant.
            RedisFull: Redis has no memory left.
        """
        checks.check_queue(queue)
        checks.check_messages(messages)
        lock: tuple[str, int, str] = NO_FENCE
        if fence is not None:
            checks.check_fence(fence)
            lock = (fence.lock, fence.token, fence.checked)
        push_id = push_id or new_push_id()
        checks.check_token(push_id, "push_id")
        items = [
            (one.delay_ms, one.priority, one.ttl_ms, one.dedupe_id, one.group) for one in messages
        ]
        bodies = [one.body for one in messages]
        digest = _digest((items, lock[:2], [len(body) for body in bodies]), bodies)
        request = (_checked(request_id), digest, push_id, lock, items)
        await self._runner.register(queue)
        reply = await self._runner.run("push", queue, request, bodies)
        if reply[0][0] == "full" and reply[0][3]:  # in part of what has expired
            await self.sweep(queue)
            reply = await self._runner.run("push", queue, request, bodies)
        match reply:
            case [["ok" | "repeated" as status, first_id, before, ready, created]]:
                if created:
                    with after_a_change():
                        await self._runner.register(queue, again=True)
                return Pushed(
                    ids=_ids(first_id, len(items), before), ready=ready, repeated=status != "ok"
                )
            case [["unverified", mark]]:
                return FenceUnverified(mark=mark)
            case [["fenced", newest]]:
                raise Fenced(
                    f"lock {lock[0]!r} has had a newer grant ({newest}) than {lock[1]}",
                    lock=lock[0],
                    token=lock[1],
                    newest=newest,
                )
            case [["full", length, max_length, _]]:
                raise QueueFull(
                    f"queue {queue!r} holds {length} of at most {max_length} messages",
                    limit="max_length",
                )
            case _:
                raise unexpected("push", reply)

    # Messages out.

    async def pop(
        self,
        queue: str,
        *,
        count: int = 1,
        visibility_ms: int = 30_000,
        request_id: str = "",
        attempt: str = "",
    ) -> Popped:
        """Claim up to `count` messages for `visibility_ms`. An unknown queue is an empty one.

        The same request again, while its receipts are good, gives the same messages with the same
        receipts. Each try of it, by whichever node, is an attempt of its own, named in the result;
        whoever cannot pass the messages on gives the attempt back with `unclaim`. If this is
        cancelled, that is done here.
        """
        checks.check_queue(queue)
        checks.check_range(count, "max", 1, limits.MAX_BATCH)
        lowest, highest = limits.MIN_VISIBILITY_MS, limits.MAX_VISIBILITY_MS
        checks.check_range(visibility_ms, "visibility_ms", lowest, highest)
        request_id = _checked(request_id)
        attempt = attempt or new_attempt()
        checks.check_token(attempt, "attempt")
        digest = _digest((count, visibility_ms))
        request = (request_id, digest, attempt, count, visibility_ms, limits.MAX_POP_BYTES)

        def give_back(call: asyncio.Future[Any] | None) -> None:
            task = asyncio.create_task(self._give_back(queue, request_id, attempt, call))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

        reply = await self._runner.run("pop", queue, request, abandoned=give_back)
        return replies.popped(reply, self._mark(queue), attempt)

    async def ack(
        self,
        queue: str,
        receipts: Sequence[str],
        *,
        request_id: str = "",
        field: str = "receipts",
    ) -> Settled:
        """The messages are done and leave the queue. `field`: what errors call the receipts."""
        ids, tokens = self._split(queue, receipts, field)
        request = (_checked(request_id), _digest((receipts,)), ids, tokens)
        match await self._runner.run("ack", queue, request):
            case [["ok" | "repeated" as status, stale, ready]]:
                return Settled(stale=_picked(receipts, stale), ready=ready, repeated=status != "ok")
            case reply:
                raise unexpected("ack", reply)

    async def nack(
        self,
        queue: str,
        receipts: Sequence[str],
        *,
        delay_ms: int = 0,
        dead: bool = False,
        spend: bool = True,
        request_id: str = "",
    ) -> Settled:
        """The messages failed. They come back after `delay_ms`, or are dead letters now if `dead`.

        One that has used up its deliveries becomes a dead letter in any case. Without `spend` this
        delivery is not counted: for messages that were not begun.
        """
        ids, tokens = self._split(queue, receipts)
        checks.check_range(delay_ms, "delay_ms", 0, limits.MAX_DELAY_MS)
        digest = _digest((receipts, delay_ms, dead, spend))
        request = (_checked(request_id), digest, ids, tokens, delay_ms, dead, spend)
        match await self._runner.run("nack", queue, request):
            case [["ok" | "repeated" as status, stale, ready, dead_ids]]:
                return Settled(
                    stale=_picked(receipts, stale),
                    ready=ready,
                    dead=tuple(dead_ids),
                    repeated=status != "ok",
                )
            case reply:
                raise unexpected("nack", reply)

    async def extend(
        self, queue: str, receipts: Sequence[str], *, visibility_ms: int, request_id: str = ""
    ) -> Settled:
        """The claims go on until `visibility_ms` from now."""
        ids, tokens = self._split(queue, receipts)
        lowest, highest = limits.MIN_VISIBILITY_MS, limits.MAX_VISIBILITY_MS
        checks.check_range(visibility_ms, "visibility_ms", lowest, highest)
        digest = _digest((receipts, visibility_ms))
        request = (_checked(request_id), digest, ids, tokens, visibility_ms)
        match await self._runner.run("extend", queue, request):
            case [["ok" | "repeated" as status, stale]]:
                return Settled(stale=_picked(receipts, stale), repeated=status != "ok")
            case reply:
                raise unexpected("extend", reply)

    async def unclaim(self, queue: str, *, request_id: str, attempt: str) -> Unclaimed:
        """Nobody got what this attempt of a pop claimed: it returns at once, no delivery is spent.

        Only for whoever carried out the attempt, and only if no byte of an answer has left it.
        Nothing happens if a later attempt of the same request has been answered with the messages.
        """
        checks.check_queue(queue)
        checks.check_request_id(request_id)
        match await self._runner.run("unclaim", queue, (request_id, attempt)):
            case [["ok", returned, ready]]:
                return Unclaimed(returned=returned, ready=ready)
            case reply:
                raise unexpected("unclaim", reply)

    # What time makes due.

    async def sweep(self, queue: str, *, limit: int = limits.SWEEP_LIMIT) -> Swept:
        """Move what is due, up to `limit` of each kind. Pops do most of it too; see `sweeping`."""
        checks.check_queue(queue)
        checks.check_range(limit, "limit", 1, limits.SWEEP_LIMIT)
        match await self._runner.run("sweep", queue, (limit,)):
            case [["ok", moved, more, next_ms]]:
                return Swept(moved=moved, more=more, next_ms=replies.wait_or_none(next_ms))
            case reply:
                raise unexpected("sweep", reply)

    # One message.

    async def get(self, queue: str, message_id: str) -> MessageInfo:
        """Return a message, wherever it is.

        Raises:
            MessageNotFound
        """
        checks.check_queue(queue)
        match await self._runner.run("get", queue, (message_id,)):
            case [["ok", _, [message]], body]:
                return replies.message_info(message, body)
            case [["unknown", *_]]:
                raise MessageNotFound(f"queue {queue!r} has no message {message_id!r}")
            case reply:
                raise unexpected("get", reply)

    async def cancel(self, queue: str, message_id: str, *, request_id: str = "") -> None:
        """Take out a message that is not claimed; a dead letter too.

        Raises:
            MessageNotFound, MessageInFlight
        """
        checks.check_queue(queue)
        request = (_checked(request_id), _digest((message_id,)), message_id)
        match await self._runner.run("cancel", queue, request):
            case [["ok" | "repeated"]]:
                return
            case [["in_flight"]]:
                raise MessageInFlight(f"message {message_id!r} is claimed by a consumer")
            case [["unknown"]]:
                raise MessageNotFound(f"queue {queue!r} has no message {message_id!r}")
            case reply:
                raise unexpected("cancel", reply)

    # The queue as a whole.

    async def peek(self, queue: str, *, count: int = 1) -> tuple[MessageInfo, ...]:
        """Return what a pop would claim now, in order, without claiming it."""
        checks.check_queue(queue)
        checks.check_range(count, "max", 1, limits.MAX_BATCH)
        await self.sweep(queue)
        match await self._runner.run("peek", queue, (count, limits.MAX_POP_BYTES)):
            case [["ok", _, messages], *bodies]:
                return replies.message_infos(messages, bodies)
            case reply:
                raise unexpected("peek", reply)

    async def list_page(
        self, queue: str, order: Order, *, cursor: str = "", limit: int = limits.MAX_BATCH
    ) -> Page:
        """Return part of it. A message that stays in its order is told once over all pages."""
        checks.check_queue(queue)
        checks.check_range(limit, "limit", 1, limits.MAX_BATCH)
        score, member = replies.read_cursor(cursor, order)
        request = (order.value, score, member, limit, limits.MAX_POP_BYTES)
        match await self._runner.run("list", queue, request):
            case [["ok", now_ms, messages, next_score, next_member], *bodies]:
                return Page(
                    messages=replies.message_infos(messages, bodies),
                    now_ms=now_ms,
                    cursor=replies.write_cursor(order, next_score, next_member),
                )
            case reply:
                raise unexpected("list", reply)

    async def stats(self, queue: str) -> QueueStats:
        """Return how much there is in a queue and what has happened.

        Raises:
            QueueNotFound
        """
        checks.check_queue(queue)
        match await self._runner.run("stats", queue, ()):
            case [["ok", _, pairs]]:
                return replies.queue_stats(pairs)
            case [["unknown", *_]]:
                raise QueueNotFound(f"there is no queue {queue!r}")
            case reply:
                raise unexpected("stats", reply)

    async def configure(
        self, queue: str, change: QueueConfigChange, *, create: bool = False
    ) -> QueueConfig:
        """Change the configuration and return all of it; pausing is a part of it.

        Raises:
            QueueNotFound: there is none, and `create` is not set.
        """
        checks.check_queue(queue)
        checks.check_config(change)
        pairs: list[str | int] = []
        for name in QueueConfigChange.__struct_fields__:
            value = getattr(change, name)
            if value is not None:
                pairs += [name, int(value)]
        if create:
            await self._runner.register(queue)
        match await self._runner.run("configure", queue, (create, pairs)):
            case [["ok", config, _]]:
                return replies.queue_config(config)
            case [["unknown", *_]]:
                raise QueueNotFound(f"there is no queue {queue!r}")
            case reply:
                raise unexpected("configure", reply)

    async def purge(
        self, queue: str, target: PurgeTarget = PurgeTarget.MESSAGES, *, request_id: str = ""
    ) -> int:
        """Remove all messages, claimed ones too, or all dead letters. Returns how many."""
        checks.check_queue(queue)
        request = (_checked(request_id), _digest((target.value,)), target.value)
        match await self._runner.run("purge", queue, request):
            case [["ok" | "repeated", removed]]:
                return int(removed)
            case reply:
                raise unexpected("purge", reply)

    async def redrive(self, queue: str, *, request_id: str = "") -> int:
        """Put all dead letters that there are now back into the queue. Returns how many."""
        checks.check_queue(queue)
        request_id = _checked(request_id)
        moved, until_ms, page, more = 0, 0, 0, True
        while more:
            request = (
                _digest((request_id, page)),
                _digest(("redrive",)),
                until_ms,
                limits.REDRIVE_LIMIT,
                limits.REDRIVE_BYTES,
            )
            with after_a_change() if page else nullcontext():
                reply = await self._runner.run("redrive", queue, request)
            match reply:
                case [["ok" | "repeated", count, more, until_ms, _]]:
                    moved += count
                    page += 1
                case _:
                    raise unexpected("redrive", reply)
        return moved

    async def queue_names(
        self, *, prefix: str = "", after: str = "", limit: int = limits.MAX_BATCH
    ) -> tuple[str, ...]:
        """Return names of queues in the order of their UTF-8 bytes, from the one behind `after`."""
        checks.check_text(prefix, "prefix", limits.MAX_NAME_BYTES, empty=True)
        checks.check_text(after, "after", limits.MAX_NAME_BYTES, empty=True)
        checks.check_range(limit, "limit", 1, limits.MAX_BATCH)
        return await self._runner.names(prefix.encode(), after.encode(), limit)

    async def ping(self) -> None:
        """Ask Redis whether it is there.

        Raises:
            RedisUnavailable, OutcomeUnknown
        """
        await self._runner.ping()

    # Inside.

    async def _give_back(
        self, queue: str, request_id: str, attempt: str, call: asyncio.Future[Any] | None
    ) -> None:
        """Return what a cancelled pop claims, once it has."""
        try:
            if call is not None:
                await asyncio.gather(call, return_exceptions=True)
            unclaimed = await self.unclaim(queue, request_id=request_id, attempt=attempt)
            self.on_returned(queue, unclaimed.ready)
        except Exception as error:
            logger.warning("claims of a cancelled pop stay until their deadline: %s", error)

    def _mark(self, queue: str) -> str:
        mark = self._marks.get(queue)
        if mark is None:
            if len(self._marks) >= MAX_MARKS_KEPT:
                self._marks.clear()
            mark = self._marks[queue] = checks.queue_mark(queue)
        return mark

    def _split(
        self, queue: str, receipts: Sequence[str], field: str = "receipts"
    ) -> tuple[list[str], list[str]]:
        checks.check_queue(queue)
        return checks.split_receipts(receipts, self._mark(queue), field)


def _checked(request_id: str) -> str:
    if not request_id:
        return new_request_id()
    checks.check_request_id(request_id)
    return request_id


def _digest(asked: Sequence[Any], bodies: Iterable[bytes] = ()) -> str:
    digest = hashlib.blake2b(encode(asked), digest_size=8)
    for body in bodies:
        digest.update(body)
    return digest.hexdigest()


def _ids(push_id: str, count: int, before: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    ids = [f"{push_id}-{index}" for index in range(count)]
    for index, message_id in before:
        ids[index] = message_id
    return tuple(ids)


def _picked(receipts: Sequence[str], indexes: Iterable[int]) -> tuple[str, ...]:
    return tuple(receipts[index] for index in indexes)
