"""The queues of a real Redis and the naive model side by side, call by call."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from distsync_node.errors import (
    DistSyncError,
    Fenced,
    MessageInFlight,
    MessageNotFound,
    QueueFull,
    QueueNotFound,
    RequestIdReused,
)
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import (
    Fence,
    FenceUnverified,
    NewMessage,
    PurgeTarget,
    Pushed,
    QueueConfigChange,
    Settled,
    Unclaimed,
)
from distsync_node.redis_link.scripts import SourceReader
from property.queue_checks import check_same, read_queue
from property.queue_model import MEMORY_MS, Claim, QueueModel, Sent
from queue_harness import Clock, open_store, read_with_test_clock
from redis_server import RedisServer

T = TypeVar("T")


class Comparison:
    """One history of one queue. `stores` are nodes that share the Redis."""

    def __init__(
        self,
        server: RedisServer,
        *,
        queue: str = "orders",
        read: SourceReader = read_with_test_clock,
        nodes: int = 2,
    ) -> None:
        self.queue = queue
        self.server = server
        self.client = server.client()
        self.client.flushall()
        self.clock = Clock(self.client)
        self.model = QueueModel()
        self.model.now = self.clock.now_ms
        self.claims: list[Claim] = []
        self.sent: list[Sent] = []
        self.ids: list[str] = []
        self.marks: dict[str, str] = {}
        self.attempts: list[tuple[Sent, str]] = []  # of pops
        self.claimed: dict[str, tuple[str, list[str]]] = {}  # by the first attempt of a pop
        self.loop = asyncio.new_event_loop()
        self.stores: list[QueueStore] = [self.run(open_store(server, read)) for _ in range(nodes)]
        self._numbers = itertools.count(1)
        self._nodes = itertools.cycle(self.stores)

    def close(self) -> None:
        for store in self.stores:
            self.run(store.close())
        self.loop.close()
        self.client.close()

    def run(self, work: Awaitable[T]) -> T:
        async def finish() -> T:
            return await work

        return self.loop.run_until_complete(asyncio.wait_for(finish(), timeout=30))

    @property
    def store(self) -> QueueStore:
        """The node that takes the next call."""
        return next(self._nodes)

    def number(self, kind: str) -> str:
        return f"{kind}{next(self._numbers)}"

    def check(self) -> None:
        """Redis has exactly what the model has."""
        check_same(read_queue(self.client, self.queue), self.model)

    # --- Requests and their repetition ------------------------------------------------------

    def _send(
        self, sent: Sent, apply: Callable[[], Any], run: Callable[[], Any], *, again: bool
    ) -> Any:
        """Apply to the model, unless the request was remembered, run it and compare."""
        asked = (sent.kind, str(sent.arguments))
        known, answer = self.model.recall(sent.request_id, asked)
        if known == "reused":
            expected = RequestIdReused
        elif known == "repeated":
            expected = answer(self.model) if callable(answer) else answer
        else:
            expected, remembered = apply()
            if remembered is not None:
                self.model.remember(sent.request_id, asked, remembered)
        if not again:
            self.sent.append(sent)
        try:
            found = run()
        except DistSyncError as error:
            found = type(error)
        assert found == expected, f"{sent}: {found} is not {expected}"
        self.check()
        return found

    def repeatable(self) -> list[Sent]:
        """Requests that are certainly remembered still, or never were."""
        return [one for one in self.sent if self._is_young(one)]

    def _is_young(self, sent: Sent) -> bool:
        known = self.model.answers.get(sent.request_id)
        return known is None or self.model.now - known[0] < MEMORY_MS

    def repeat(self, sent: Sent) -> None:
        """The same request comes again, to another node."""
        getattr(self, sent.kind)(**sent.arguments, sent=sent)

    def reuse(self, sent: Sent, kind: str, **arguments: Any) -> None:
        """Another request comes with an id that was used."""
        getattr(self, kind)(**arguments, sent=Sent(kind, sent.request_id, arguments))

    def _sent(self, kind: str, sent: Sent | None, **arguments: Any) -> tuple[Sent, bool]:
        if sent is not None:
            return sent, True
        return Sent(kind, self.number("request-"), arguments), False

    # --- Calls ------------------------------------------------------------------------------

    def advance(self, by_ms: int) -> None:
        self.clock.advance(by_ms)
        self.model.now = self.clock.now_ms

    def push(
        self,
        messages: list[dict[str, Any]],
        fence: tuple[str, int] | None = None,
        sent: Sent | None = None,
    ) -> None:
        sent, is_again = self._sent("push", sent, messages=messages, fence=fence)
        push_id = self.number("p")
        mark = self.marks.get(fence[0], "") if fence else ""

        def apply() -> tuple[Any, Any]:
            model_fence = (*fence, bool(mark)) if fence else None
            status, answer = self.model.push(push_id, messages, model_fence)
            match status:
                case "ok":
                    ids, ready = answer
                    self.ids.extend(ids)
                    return Pushed(ids=ids, ready=ready), Pushed(ids=ids, ready=0, repeated=True)
                case "unverified":
                    return FenceUnverified(mark="0"), None
                case "fenced":
                    return Fenced, None
            return QueueFull, None

        def run() -> Any:
            return self.run(
                self.store.push(
                    self.queue,
                    [NewMessage(**one) for one in messages],
                    request_id=sent.request_id,
                    push_id=push_id,
                    fence=Fence(lock=fence[0], token=fence[1], checked=mark) if fence else None,
                )
            )

        found = self._send(sent, apply, run, again=is_again)
        if fence is not None and isinstance(found, FenceUnverified):
            self.marks[fence[0]] = found.mark

    def pop(self, count: int, visibility_ms: int, sent: Sent | None = None) -> None:
        sent, is_again = self._sent("pop", sent, count=count, visibility_ms=visibility_ms)
        attempt = self.number("a")

        def told(items: list[Any]) -> list[tuple[Any, ...]]:
            return [
                (one.id, one.body, one.deliveries, one.deadline - self.model.now, one.group)
                for one in items
            ]

        def apply() -> tuple[Any, Any]:
            status, items = self.model.pop(attempt, count, visibility_ms)
            names = [one.id for one in items]
            self.model.last_attempts[sent.request_id] = attempt
            self.claimed[sent.request_id] = (attempt, names)

            def later(model: QueueModel) -> tuple[str, Any]:
                held = [model.held(name, attempt) for name in names]
                good = [one for one in held if one is not None]
                if good:
                    model.last_attempts[sent.request_id] = self.attempts[-1][1]
                    model.remember(sent.request_id, *model.answers[sent.request_id][1:])
                return "repeated", told(good)

            return (status, told(items)), later if items else None

        def run() -> Any:
            popped = self.run(
                self.store.pop(
                    self.queue,
                    count=count,
                    visibility_ms=visibility_ms,
                    request_id=sent.request_id,
                    attempt=attempt,
                )
            )
            for one in popped.messages:
                claim = Claim(one.id, one.receipt.split(".")[1], one.receipt)
                if claim not in self.claims:
                    self.claims.append(claim)
            return popped.status.value, [
                (one.id, one.body, one.deliveries, one.visible_ms, one.group)
                for one in popped.messages
            ]

        self.attempts.append((sent, attempt))
        self._send(sent, apply, run, again=is_again)

    def _good(self, claims: list[Claim]) -> tuple[list[Any], tuple[str, ...]]:
        """The messages whose receipts are good, once each, and the stale receipts."""
        good: list[Any] = []
        stale = []
        for claim in claims:
            item = self.model.held(claim.message_id, claim.token)
            if item is None:
                stale.append(claim.receipt)
            elif item not in good:
                good.append(item)
        return good, tuple(stale)

    def _settle(
        self,
        sent: Sent,
        claims: list[Claim],
        act: Callable[[list[Any], tuple[str, ...]], Settled],
        call: Callable[[QueueStore, list[str]], Awaitable[Settled]],
        *,
        again: bool,
    ) -> None:
        def apply() -> tuple[Any, Any]:
            good, stale = self._good(claims)
            settled = act(good, stale)
            later = Settled(stale=stale, ready=0, dead=settled.dead, repeated=True)
            return settled, later if good else None

        def run() -> Settled:
            return self.run(call(self.store, [one.receipt for one in claims]))

        self._send(sent, apply, run, again=again)

    def ack(self, claims: list[Claim], sent: Sent | None = None) -> None:
        sent, is_again = self._sent("ack", sent, claims=claims)

        def act(good: list[Any], stale: tuple[str, ...]) -> Settled:
            return Settled(stale=stale, ready=sum([self.model.ack(one) for one in good]))

        self._settle(
            sent,
            claims,
            act,
            lambda store, receipts: store.ack(self.queue, receipts, request_id=sent.request_id),
            again=is_again,
        )

    def nack(
        self,
        claims: list[Claim],
        delay_ms: int,
        dead: bool,
        spend: bool,
        sent: Sent | None = None,
    ) -> None:
        sent, is_again = self._sent(
            "nack", sent, claims=claims, delay_ms=delay_ms, dead=dead, spend=spend
        )

        def act(good: list[Any], stale: tuple[str, ...]) -> Settled:
            became = [
                (one.id, self.model.nack(one, delay_ms, dead=dead, spend=spend)) for one in good
            ]
            return Settled(
                stale=stale,
                ready=sum(ready for _, (_, ready) in became),
                dead=tuple(one for one, (is_dead, _) in became if is_dead),
            )

        self._settle(
            sent,
            claims,
            act,
            lambda store, receipts: store.nack(
                self.queue,
                receipts,
                delay_ms=delay_ms,
                dead=dead,
                spend=spend,
                request_id=sent.request_id,
            ),
            again=is_again,
        )

    def extend(self, claims: list[Claim], visibility_ms: int, sent: Sent | None = None) -> None:
        sent, is_again = self._sent("extend", sent, claims=claims, visibility_ms=visibility_ms)

        def act(good: list[Any], stale: tuple[str, ...]) -> Settled:
            for one in good:
                self.model.extend(one, visibility_ms)
            return Settled(stale=stale)

        self._settle(
            sent,
            claims,
            act,
            lambda store, receipts: store.extend(
                self.queue, receipts, visibility_ms=visibility_ms, request_id=sent.request_id
            ),
            again=is_again,
        )

    def unclaim(self, pop: Sent, attempt: str) -> None:
        """The client of this attempt is gone."""
        model, good = self.model, []
        known = model.answers.get(pop.request_id)
        token, names = self.claimed.get(pop.request_id, ("", []))
        if known is not None and token == attempt == model.last_attempts[pop.request_id]:
            held = [model.held(name, token) for name in names]
            good = [one for one in held if one is not None]
            model.answers.pop(pop.request_id)
        ready = sum([model.unclaim(one) for one in good])
        found = self.run(self.store.unclaim(self.queue, request_id=pop.request_id, attempt=attempt))
        assert found == Unclaimed(returned=len(good), ready=ready)
        self.check()

    def sweep(self) -> None:
        expected = self.model.sweep()
        assert self.run(self.store.sweep(self.queue)).moved == expected
        self.check()

    def get(self, message_id: str) -> None:
        try:
            found = self.run(self.store.get(self.queue, message_id)).phase.value
        except MessageNotFound:
            found = "unknown"
        assert found == self.model.phase(message_id)

    def cancel(self, message_id: str, sent: Sent | None = None) -> None:
        sent, is_again = self._sent("cancel", sent, message_id=message_id)
        errors: dict[str, Any] = {
            "ok": None,
            "in_flight": MessageInFlight,
            "unknown": MessageNotFound,
        }

        def apply() -> tuple[Any, Any]:
            status = self.model.cancel(message_id)
            return errors[status], (lambda _: None) if status == "ok" else None

        self._send(
            sent,
            apply,
            lambda: self.run(self.store.cancel(self.queue, message_id, request_id=sent.request_id)),
            again=is_again,
        )

    def peek(self, count: int) -> None:
        self.model.sweep()
        expected = [one.id for one in self.model.choose(count)[0]] if self.model.exists else []
        found = self.run(self.store.peek(self.queue, count=count))
        assert [one.id for one in found] == expected
        self.check()

    def configure(self, **changes: int) -> None:
        change = {**changes, "paused": bool(changes["paused"])} if "paused" in changes else changes
        work = self.store.configure(self.queue, QueueConfigChange(**change))  # type: ignore[arg-type]
        try:
            self.run(work)
        except QueueNotFound:
            assert not self.model.exists
        else:
            assert self.model.exists
            self.model.config.update(changes)
        self.check()

    def purge(self, target: PurgeTarget, sent: Sent | None = None) -> None:
        sent, is_again = self._sent("purge", sent, target=target)

        def apply() -> tuple[Any, Any]:
            dead = target is PurgeTarget.DEAD
            removed = self.model.purge_dead() if dead else self.model.purge()
            return removed, removed or None

        self._send(
            sent,
            apply,
            lambda: self.run(self.store.purge(self.queue, target, request_id=sent.request_id)),
            again=is_again,
        )

    def redrive(self) -> None:
        assert self.run(self.store.redrive(self.queue)) == self.model.redrive()
        self.check()

    def flush_scripts(self) -> None:
        self.client.script_flush()

    def restart(self) -> None:
        """Redis is killed and comes back; the nodes know nothing of it."""
        self.server.kill()
        self.server.start()
        self.check()
