"""The load of queues over HTTP: a closed loop of clients, each pushing, popping and acking.

Runs as `bench.load` does, `python -m bench.queue_load`, with the same LoadSpec and LoadResult; a
*pair* is a message there. Its latency counts from handing its push to the socket until a pop that
brings it is read; it counts in the window when its ack was answered. Clients that share a queue
pop each other's messages.

In a failover run (`stop_after_grants`) each client has a queue, and `silence_s` is the time from
the kill until the last of them has pushed, popped and acked again.
"""

from __future__ import annotations

import asyncio
import time

from bench import load
from bench.arithmetic import served_again_s
from bench.dialects import QueueDialect, make_queue_dialect
from bench.load import Client, LoadResult, LoadSpec, Run
from bench.wire import Answer


class QueueRun(Run):
    """Also knows when each client was served."""

    def __init__(self, spec: LoadSpec, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(spec, loop)
        self._rounds: list[list[tuple[float, float]]] = [[] for _ in range(spec.clients)]

    def note_round(self, index: int, began_s: float) -> None:
        """A client's round has ended."""
        if not self.spec.stop_after_grants:
            return
        self._rounds[index].append((began_s, time.monotonic()))
        if self.killed_at_s is not None and self.silence_s(self.killed_at_s) is not None:
            self.end()

    def silence_s(self, killed_at_s: float) -> float | None:
        """How long until every client was served again."""
        return served_again_s(self._rounds, killed_at_s)


class QueueClient(Client):
    """One client: one connection, one request outstanding, round after round."""

    _run: QueueRun
    _dialect: QueueDialect

    def __init__(self, run: QueueRun, index: int) -> None:
        super().__init__(run, index)
        self._receipts: list[bytes] = []
        self._latencies_ns: list[int] = []
        self._claimed_began_ns = 0

    def _make_dialect(self) -> QueueDialect:
        return make_queue_dialect(self._run.spec.dialect)

    def _begin_pair(self) -> None:
        self._pair_began_ns = time.monotonic_ns()
        self._send("push", self._dialect.push(self._pair_began_ns))

    def _on_answer(self, answer: Answer) -> None:
        if self._step == "push" and self._dialect.pushed(answer):
            on = self._dialect.acks_with_pop and self._receipts
            self._send("pop", self._dialect.pop_on(self._receipts) if on else self._dialect.pop())
        elif self._step == "pop":
            now_ns = time.monotonic_ns()
            if self._dialect.acks_with_pop and self._receipts:
                if not self._dialect.ended_claims(answer):
                    self._receipts = []
                    self._refused(answer)
                    return
                self._end_round()
            self._receipts, stamps = self._dialect.popped(answer)
            if not self._receipts:
                self._refused(answer)
                return
            self._latencies_ns = [now_ns - stamp for stamp in stamps]
            self._claimed_began_ns = self._pair_began_ns
            if self._dialect.acks_with_pop:
                self._begin_pair()
            else:
                self._send("ack", self._dialect.ack(self._receipts))
        elif self._step == "ack" and self._dialect.acked(answer, len(self._receipts)):
            self._end_round()
            self._begin_pair()
        else:
            self._refused(answer)

    def _end_round(self) -> None:
        """What was claimed is acked."""
        for latency_ns in self._latencies_ns:
            self._run.note_pair(latency_ns)
        self._run.note_round(self._index, self._claimed_began_ns / 1e9)


async def measure(spec: LoadSpec) -> LoadResult:
    """Run the load of queues and give its figures."""
    run = QueueRun(spec, asyncio.get_running_loop())
    return await load.drive(run, [QueueClient(run, index) for index in range(spec.clients)])


if __name__ == "__main__":
    load.main(measure)
