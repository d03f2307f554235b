"""Producers and consumers of queues, who go on through whatever happens to nodes and Redis."""

from __future__ import annotations

import concurrent.futures
import http.client
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from process.calls import Answer, call
from process.running import eventually

QUEUES = 7
PRODUCERS = 3
CLAIM_MS = 600_000  # no claim runs out
PATIENCE_SECONDS = 60.0
PAUSE_SECONDS = 0.02


class QueueLoad:
    """Load on some queues through some nodes, while it is entered.

    Each call is repeated under its request id, at one node after the other, until one does it. So
    each message is taken once, whatever happens meanwhile.
    """

    def __init__(self, urls: Sequence[str], name: str) -> None:
        self.pushed: list[str] = []
        self.taken: list[str] = []
        self._urls = urls
        self._name = name
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(QUEUES + PRODUCERS)
        self._work: list[concurrent.futures.Future[None]] = []

    def __enter__(self) -> Self:
        self._work += [self._pool.submit(self._produce, number) for number in range(PRODUCERS)]
        self._work += [self._pool.submit(self._consume, number) for number in range(QUEUES)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._pool.shutdown()

    def go_on(self, messages: int) -> None:
        """Return when so many more messages have been taken."""
        wanted = len(self.taken) + messages

        def are_taken() -> bool:
            for one in self._work:
                if one.done():
                    one.result()
            return len(self.taken) >= wanted

        eventually(are_taken, what=f"{messages} more messages")

    def finish(self) -> None:
        """Push no more and have the rest taken; each message that was pushed was taken once."""
        self._stop.set()
        for one in concurrent.futures.as_completed(self._work, timeout=PATIENCE_SECONDS):
            one.result()
        assert sorted(self.taken) == sorted(self.pushed)

    def _ask(self, at: int, verb: str, **body: Any) -> Answer:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = call(f"{self._urls[at % len(self._urls)]}/queue/{verb}", body)
            except (OSError, http.client.HTTPException, ValueError):
                answer = None
            if answer is not None and answer.status == 200:
                return answer
            assert answer is None or answer["retriable"], answer
            assert time.monotonic() < deadline, answer
            time.sleep(PAUSE_SECONDS)
            at += 1

    def _produce(self, producer: int) -> None:
        number = 0
        while not self._stop.is_set():
            body, queue = f"{producer}-{number}", f"{self._name} {number % QUEUES}"
            self._ask(number, "push", queue=queue, body=body, request_id=f"push {queue} {body}")
            self.pushed.append(body)
            number += 1
            time.sleep(0.005)

    def _consume(self, consumer: int) -> None:
        queue = f"{self._name} {consumer}"
        number = empty_since_stop = 0
        while empty_since_stop < 2:
            is_over = self._stop.is_set()
            ask = {"queue": queue, "wait_ms": 1_000, "visibility_ms": CLAIM_MS}
            popped = self._ask(number, "pop", request_id=f"pop {queue} {number}", **ask)["messages"]
            for one in popped:
                receipts, request_id = [one["receipt"]], f"ack {queue} {one['id']}"
                self._ask(number, "ack", queue=queue, receipts=receipts, request_id=request_id)
                self.taken.append(one["body"])
            empty_since_stop += is_over and not popped
            number += 1
