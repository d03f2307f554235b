"""The scripts of the cache on a real Redis, beside the Redis of the simulator, call by call.

So this shows two things at once: that the scripts do what they say, and that the simulator's Redis
does what the scripts do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import redis

from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import Mark, RedisAnswer, RedisFailed, Stored
from distsync_node.cache.redis_calls import answer, arguments
from distsync_node.cache.scripts import GRACE_MS, load_scripts, read_source, redis_key
from distsync_node.cache.types import ABSENT, Copy, PeerId, Version
from distsync_node.redis_link.scripts import SourceReader
from queue_harness import Clock, with_test_clock
from redis_server import RedisServer
from sim.cache.redis import Key, Redis
from sim.kernel import US_PER_MS, Kernel

CLUSTER_ID: Final = "c-9be14d"
KEYS: Final = ("orders/42", "a{b}c", "naïve 队列%")
SLOWNESS_MS: Final = 120_000  # a test may take so long while keys grow older


read_with_test_clock: Final = with_test_clock(read_source)


class Comparison:
    """One history of a few keys."""

    def __init__(self, server: RedisServer, read: SourceReader = read_with_test_clock) -> None:
        self.client = server.client()
        self.client.flushall()
        self.clock = Clock(self.client)
        self._started_ms = self.clock.now_ms
        self._kernel = Kernel(0)
        self.model = Redis(self._kernel)
        self._scripts = load_scripts(read)
        for script in self._scripts.values():
            self.client.script_load(script.source)
        self._last_request = 0
        self._floors: dict[str, int] = {}
        self._lives_ms: dict[str, int | None] = {}  # from when it was touched; None = for ever

    def close(self) -> None:
        self.client.close()

    def advance(self, by_ms: int) -> None:
        """Let time pass."""
        self.clock.advance(by_ms)
        self._kernel.now_us = (self.clock.now_ms - self._started_ms) * US_PER_MS

    def load(self, key: str, epoch: int, *, full: bool = False) -> RedisAnswer:
        """A home reads a key."""
        self._last_request += 1
        return self._run(RedisLoad(self._last_request, key, epoch), full=full)

    def put(
        self,
        key: str,
        epoch: int,
        copy: Copy | None,
        mark: Mark | None,
        ended: Version = ABSENT,
        *,
        full: bool = False,
    ) -> RedisAnswer:
        """A home writes a key back, marks it, says that marks stand for nothing, or all of it."""
        self._last_request += 1
        return self._run(RedisPut(self._last_request, key, epoch, copy, mark, ended), full=full)

    def _run(self, effect: RedisLoad | RedisPut, *, full: bool) -> RedisAnswer:
        self.model.full = full
        expected = self.model.apply(effect)
        written = self._written()
        found = self._call(effect, full=full)
        if isinstance(found, Stored):  # a WAIT vouches only for what its own connection wrote
            assert self._written() > written, f"{effect}: replicas do not hear of it"
        assert found == expected, f"{effect}: {found} is not {expected}"
        self._check(effect.key, touched=self._is_touched(effect, found))
        return found

    def _call(self, effect: RedisLoad | RedisPut, *, full: bool) -> RedisAnswer:
        name, argv = arguments(effect)
        if full:
            self.client.config_set("maxmemory", 1)
        try:
            reply: Any = self.client.evalsha(
                self._scripts[name].sha, 1, redis_key(CLUSTER_ID, effect.key), *argv
            )
        except redis.ResponseError as error:
            if not isinstance(error, redis.exceptions.OutOfMemoryError) and "OOM" not in str(error):
                raise
            return RedisFailed(effect.request, undone=True, full=True)
        finally:
            if full:
                self.client.config_set("maxmemory", 0)
        return answer(effect, reply)

    def _written(self) -> int:
        """How many changes Redis has made."""
        return int(self.client.info("persistence")["rdb_changes_since_last_save"])

    def _is_touched(self, effect: RedisLoad | RedisPut, found: RedisAnswer) -> bool:
        """Whether the call has said anew for how long the key is kept."""
        if isinstance(found, RedisFailed):
            return False
        raised = effect.epoch > self._floors.get(effect.key, 0)
        if isinstance(effect, RedisLoad):
            self._floors[effect.key] = effect.epoch
            return raised
        return True

    # --- What Redis has -----------------------------------------------------------------------

    def _check(self, key: str, *, touched: bool) -> None:
        model = self.model.keys.get(key, Key())
        fields = self.client.hgetall(redis_key(CLUSTER_ID, key))
        assert self._read(fields) == self._expected(model), f"{key}: {fields} is not {model}"
        if touched:
            self._lives_ms[key] = self._lives(model)
        if model != Key():
            self._check_time_to_live(key)

    def _read(self, fields: dict[bytes, bytes]) -> dict[str, Any]:
        assert set(fields) <= {b"e", b"c", b"v", b"x", b"l", b"f", b"me", b"mc", b"mp"}
        number: Callable[[bytes], int] = lambda name: int(fields.get(name, b"0"))  # noqa: E731
        return {
            "version": (number(b"e"), number(b"c")),
            "value": fields.get(b"v"),
            "expires": number(b"x"),
            "floor": number(b"f"),
            "mark": (number(b"me"), number(b"mc")),
            "places": b"mp" in fields,
        }

    def _expected(self, model: Key) -> dict[str, Any]:
        expires = model.expires_us // US_PER_MS + self._started_ms if model.expires_us else 0
        return {
            "version": tuple(model.version),
            "value": model.value,
            "expires": expires,
            "floor": model.floor,
            "mark": (0, 0) if model.mark is None else tuple(model.mark.version),
            "places": model.mark is not None,
        }

    def _lives(self, model: Key) -> int | None:
        """For how long it is kept from now: a marked one for ever, and a value without an end."""
        if model.mark is not None or (model.value is not None and not model.expires_us):
            return None
        ends_us = model.expires_us if model.value is not None else 0
        return max(0, (ends_us - self._kernel.now_us) // US_PER_MS) + GRACE_MS

    def _check_time_to_live(self, key: str) -> None:
        """Redis forgets keys by its own clock, whatever the test's shows."""
        left_ms = self.client.pttl(redis_key(CLUSTER_ID, key))
        lives_ms = self._lives_ms[key]
        if lives_ms is None:
            assert left_ms == -1, f"{key} would be forgotten in {left_ms} ms"
        else:
            assert lives_ms - SLOWNESS_MS <= left_ms <= lives_ms, f"{key}: {left_ms} of {lives_ms}"


class Commands:
    """Chooses what happens next; `pick` takes one of a few things."""

    def __init__(self, comparison: Comparison, pick: Callable[[Any], Any]) -> None:
        self._it = comparison
        self._pick = pick

    def _version(self) -> Version:
        return Version(self._pick((1, 2, 3, 10)), self._pick((1, 2, 3, 11)))

    def _full(self) -> bool:
        return self._pick((False, False, False, True))

    def _copy(self) -> Copy:
        pick = self._pick
        value = pick((None, b"x", b"", b"\x00\xff" * 20, b"y" * 300))
        remaining_ms = 0 if value is None else pick((0, 0, 1, 500, 4_000_000))
        fences = pick(((), (("lock", 7),), (("a", 1), ("b", 1 << 52))))
        return Copy(self._version(), value, remaining_ms, fences)

    def _mark(self) -> Mark:
        return Mark(self._version(), self._pick(((PeerId("n1"),), (PeerId("n1"), PeerId("n2")))))

    def load(self) -> None:
        self._it.load(self._pick(KEYS), self._pick((1, 2, 3, 10)), full=self._full())

    def write_back(self) -> None:
        epoch = self._pick((1, 2, 3, 10))
        self._it.put(self._pick(KEYS), epoch, self._copy(), None, full=self._full())

    def mark(self) -> None:
        epoch = self._pick((1, 2, 3, 10))
        copy = self._pick((None, self._copy()))
        self._it.put(self._pick(KEYS), epoch, copy, self._mark(), full=self._full())

    def end_marks(self) -> None:
        epoch = self._pick((1, 2, 3, 10))
        copy = self._pick((None, self._copy()))
        self._it.put(self._pick(KEYS), epoch, copy, None, self._version(), full=self._full())

    def wait(self) -> None:
        self._it.advance(self._pick((1, 1, 100, 499, 1_000)))


WEIGHTS: Final = {"load": 3, "write_back": 4, "mark": 3, "end_marks": 1, "wait": 2}
