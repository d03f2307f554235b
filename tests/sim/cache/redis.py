"""Redis as the cache sees it: `scripts/*.lua` in Python, and what goes wrong on the way there.

A command may be refused, answered late, answered never, carried out twice, or carried out long
after whoever sent it was told that it failed. What Redis holds never goes back; that is checked
here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import Loaded, Mark, RedisAnswer, RedisFailed, Stored
from distsync_node.cache.types import ABSENT, Copy, Version
from sim.kernel import US_PER_MS, Kernel, Violation


@dataclass(slots=True)
class Key:
    """One key."""

    version: Version = ABSENT
    value: bytes | None = None
    expires_us: int = 0
    fences: tuple[tuple[str, int], ...] = ()
    mark: Mark | None = None
    floor: int = 0


class Redis:
    """One server with one clock, which is right."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._rng = kernel.rng("redis")
        self.keys: dict[str, Key] = {}
        self.down = False
        self.full = False
        self.delay_us = (100, 900)
        self.flaky = 0.0

    def heal(self) -> None:
        """End every fault."""
        self.down, self.full, self.delay_us, self.flaky = False, False, (100, 900), 0.0

    def request(self, effect: RedisLoad | RedisPut, answer: Callable[[RedisAnswer], None]) -> None:
        """Carry out an effect, some time, and answer, some time."""
        rng, kernel = self._rng, self._kernel
        if self.down:
            kernel.faults["redis_refused"] += 1
            kernel.after(self._delay(), answer, RedisFailed(effect.request, undone=True))
            return
        if self.flaky and rng.random() < self.flaky / 2:
            # Its answer is lost with the connection, and it is sent again.
            kernel.faults["redis_twice"] += 1
            kernel.after(self._delay(), self._carry_out, effect, None)
            kernel.after(rng.randint(1, 2_000) * US_PER_MS, self._carry_out, effect, answer)
            return
        if self.flaky and rng.random() < self.flaky:
            kernel.faults["redis_unknown"] += 1
            kernel.after(rng.randint(1, 200) * US_PER_MS, answer, RedisFailed(effect.request))
            if rng.random() < 0.7:  # it happens all the same, and nobody hears of it
                kernel.after(rng.randint(0, 5_000) * US_PER_MS, self._carry_out, effect, None)
            return
        kernel.after(self._delay(), self._carry_out, effect, answer)

    def _delay(self) -> int:
        return self._rng.randint(*self.delay_us)

    def _carry_out(
        self, effect: RedisLoad | RedisPut, answer: Callable[[RedisAnswer], None] | None
    ) -> None:
        result = self.apply(effect)
        if answer is not None:
            self._kernel.after(self._delay(), answer, result)

    def apply(self, effect: RedisLoad | RedisPut) -> RedisAnswer:
        """Carry out an effect now, as the scripts do."""
        known = self.keys.setdefault(effect.key, Key())
        before = known.version
        if effect.epoch < known.floor:
            self._kernel.faults["redis_superseded"] += 1
            return RedisFailed(effect.request, undone=isinstance(effect, RedisLoad))
        if self.full and self._needs_room(effect, known):
            self._kernel.faults["redis_had_no_room"] += 1
            return RedisFailed(effect.request, undone=True, full=True)
        if isinstance(effect, RedisLoad):
            return self._load(effect, known)
        stored = self._put(effect, known)
        if known.version < before:
            raise Violation("redis.monotonic", f"{effect.key}: {before} -> {known.version}")
        return stored

    def _needs_room(self, effect: RedisLoad | RedisPut, known: Key) -> bool:
        if isinstance(effect, RedisLoad):
            return known == Key()
        copy, mark = effect.copy, effect.mark
        if copy is not None and copy.version > known.version:
            return copy.value is not None
        newest = known.version if known.mark is None else max(known.version, known.mark.version)
        return mark is not None and mark.version > newest

    def _load(self, effect: RedisLoad, known: Key) -> Loaded:
        known.floor = effect.epoch
        remaining_ms = 0
        if known.expires_us:
            remaining_ms = max(1, (known.expires_us - self._kernel.now_us) // US_PER_MS)
        copy = Copy(known.version, known.value, remaining_ms, known.fences)
        return Loaded(effect.request, copy, known.mark)

    def _put(self, effect: RedisPut, known: Key) -> Stored:
        copy, mark = effect.copy, effect.mark
        if copy is not None and copy.version > known.version:
            known.version, known.value, known.fences = copy.version, copy.value, copy.fences
            known.expires_us = (
                self._kernel.now_us + copy.remaining_ms * US_PER_MS if copy.remaining_ms else 0
            )
        newest = known.version if known.mark is None else max(known.version, known.mark.version)
        if mark is not None and mark.version > newest:
            known.mark = mark
        if known.mark is not None and known.mark.version <= max(known.version, effect.ended):
            known.mark = None
        return Stored(effect.request)
