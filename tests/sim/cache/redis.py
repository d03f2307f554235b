"""Redis as the cache sees it: `scripts/*.lua` in Python, and what goes wrong on the way there.

A command may be refused, answered late, answered never, carried out twice, or carried out long
after whoever sent it was told that it failed. What Redis holds never goes back, except that it
forgets what has no value; that is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import (
    Forgotten,
    Loaded,
    Mark,
    RedisAnswer,
    RedisFailed,
    Stored,
)
from distsync_node.cache.scripts import GRACE_MS
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
    forget_us: int = 0  # 0 = never


class Redis:
    """One server with one clock, which is right."""

    def __init__(self, kernel: Kernel, grace_ms: int = GRACE_MS) -> None:
        self._kernel = kernel
        self._rng = kernel.rng("redis")
        self._grace_us = grace_ms * US_PER_MS
        self._newest: dict[str, Version] = {}  # of what was ever written
        self.keys: dict[str, Key] = {}
        self.forgot: set[str] = set()
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
        known = self._known(effect.key)
        if isinstance(effect, RedisPut) and self._is_forgotten(known):
            return Forgotten(effect.request)
        if effect.epoch < known.floor:
            self._kernel.faults["redis_superseded"] += 1
            return RedisFailed(effect.request, undone=isinstance(effect, RedisLoad))
        if self.full and self._needs_room(effect, known):
            self._kernel.faults["redis_had_no_room"] += 1
            return RedisFailed(effect.request, undone=True, full=True)
        if isinstance(effect, RedisLoad):
            return self._load(effect, known)
        before = known.version
        stored = self._put(effect, known)
        newest = self._newest.get(effect.key, ABSENT)
        if known.version not in (before, newest):
            if known.version < newest:
                raise Violation("redis.monotonic", f"{effect.key}: {newest} -> {known.version}")
            self._newest[effect.key] = known.version
        return stored

    def _known(self, key: str) -> Key:
        known = self.keys.setdefault(key, Key())
        if 0 < known.forget_us <= self._kernel.now_us:
            self._kernel.faults["redis_forgot"] += 1
            self.forgot.add(key)
            known = self.keys[key] = Key()
        return known

    def _is_forgotten(self, known: Key) -> bool:
        return known.floor == 0

    def _keep(self, known: Key) -> None:
        now_us = self._kernel.now_us
        if known.mark is not None or (known.value is not None and not known.expires_us):
            known.forget_us = 0
        elif known.value is None:
            known.forget_us = now_us + self._grace_us
        else:
            known.forget_us = max(known.expires_us, now_us) + self._grace_us

    def _needs_room(self, effect: RedisLoad | RedisPut, known: Key) -> bool:
        if isinstance(effect, RedisLoad):
            return known == Key()
        copy, mark = effect.copy, effect.mark
        if copy is not None and copy.version > known.version:
            return copy.value is not None
        newest = known.version if known.mark is None else max(known.version, known.mark.version)
        return mark is not None and mark.version > newest

    def _load(self, effect: RedisLoad, known: Key) -> Loaded:
        if effect.epoch > known.floor:
            known.floor = effect.epoch
            self._keep(known)
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
        self._keep(known)
        return Stored(effect.request)
