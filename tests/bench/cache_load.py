"""The load of caches: a closed loop of clients, each reading or writing one key after the other.

Runs as `bench.load` does, `python -m bench.cache_load`, with the same LoadSpec and LoadResult; a
*pair* is one operation there. `dialect` is `KIND:SCENARIO`, where KIND is one of `cache_dialects`
or `redis-py`; the keys of reads are `RUN.0` to `RUN.N-1`, N being `shared_names`, and were set
before.

    hits      reads of keys in a random order
    mixed     one of ten operations is a write
    rewrite   each client writes a key of its own again and again
    first     each write is to a key that was never written
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator

import redis.asyncio

from bench import load
from bench.cache_dialects import VALUE, CacheDialect, make_cache_dialect
from bench.load import RETRY_DELAY_S, Client, LoadResult, LoadSpec, Run
from bench.wire import Answer

REDIS_PY = "redis-py"
READS_OF_TEN = 9
Operation = tuple[bool, str]  # whether it writes, and the key


def operations(spec: LoadSpec, scenario: str, index: int) -> Iterator[Operation]:
    """What a client does, without an end. Raises: ValueError for an unknown scenario."""
    generator = random.Random(index)
    number = 0
    while True:
        key = f"{spec.run_id}.{generator.randrange(max(spec.shared_names, 1))}"
        match scenario:
            case "hits":
                yield False, key
            case "mixed":
                yield generator.randrange(10) >= READS_OF_TEN, key
            case "rewrite":
                yield True, f"{spec.run_id}.own-{index}"
            case "first":
                yield True, f"{spec.run_id}.new-{index}-{number}"
                number += 1
            case _:
                raise ValueError(f"no such scenario: {scenario}")


class CacheClient(Client):
    """One client: one connection, one request outstanding."""

    _dialect: CacheDialect

    def __init__(self, run: Run, index: int) -> None:
        super().__init__(run, index)
        scenario = run.spec.dialect.partition(":")[2]
        self._operations = operations(run.spec, scenario, index)
        self._begun = True
        self._reads: dict[str, bytes] = {}

    def _make_dialect(self) -> CacheDialect:
        return make_cache_dialect(self._run.spec.dialect.partition(":")[0])

    def _next_name(self) -> None:
        """The names come from the operations."""

    def _begin_pair(self) -> None:
        writes, key = next(self._operations)
        if writes:
            request = self._dialect.write(key)
        elif (known := self._reads.get(key)) is not None:
            request = known
        else:
            request = self._reads[key] = self._dialect.read(key)
        self._pair_began_ns = time.monotonic_ns()
        self._send("push" if writes else "pop", request)

    def _on_answer(self, answer: Answer) -> None:
        is_write = self._step == "push"
        done = self._dialect.was_written if is_write else self._dialect.was_read
        if not done(answer):
            self._refused(answer)
            return
        self._run.note_pair(time.monotonic_ns() - self._pair_began_ns)
        self._begin_pair()


class RedisPyClient:
    """The same loop over redis-py: Redis itself, as a program reaches it that has no cache."""

    def __init__(self, run: Run, index: int) -> None:
        host, port = run.spec.targets[0]
        scenario = run.spec.dialect.partition(":")[2]
        self._run = run
        self._redis = redis.asyncio.Redis(host=host, port=port, single_connection_client=True)
        self._operations = operations(run.spec, scenario, index)

    async def connect(self) -> None:
        """Ask until the window is over."""
        async with self._redis:
            for writes, key in self._operations:
                if self._run.over.done():
                    return
                began_ns = time.monotonic_ns()
                try:
                    done = await (self._redis.set(key, VALUE) if writes else self._redis.get(key))
                except redis.RedisError as error:
                    done = None
                    self._run.note_error(type(error).__name__)
                    await asyncio.sleep(RETRY_DELAY_S)
                if done is not None:
                    self._run.note_pair(time.monotonic_ns() - began_ns)

    def sweep(self, now_s: float) -> None:
        """Nothing here ends a request."""


async def measure(spec: LoadSpec) -> LoadResult:
    """Run the load of caches and give its figures."""
    run = Run(spec, asyncio.get_running_loop())
    kind = spec.dialect.partition(":")[0]
    make: Callable[[Run, int], CacheClient | RedisPyClient]
    make = RedisPyClient if kind == REDIS_PY else CacheClient
    return await load.drive(run, [make(run, index) for index in range(spec.clients)])


if __name__ == "__main__":
    load.main(measure)
