"""What clients do with the cache: values with tags, fenced writes, get-or-compute.

- A value counts only while each of its tags has the version it was set with. All these lines are
  looked at in one go, with no await between, each under valid leases: so the answer was true at
  that instant.
- `if_version` is about the line: a value whose tag was invalidated keeps its version until it is
  written again. `0.0` means that there is no value, and such a one is none.
- A key is computed by one caller at a time: its token is a line that exactly one of those who want
  it can make, and that ends by itself. A value that comes with a token first takes that line for
  itself; nobody else computes until the value is there. It is written only if since then nobody has
  written or deleted the key, nor invalidated the tags that the caller named: what was read before
  that is old.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, NoReturn

import msgspec

from distsync_node.cache.service import CacheService
from distsync_node.cache.types import (
    ABSENT,
    Change,
    Code,
    Fence,
    Found,
    Missing,
    Record,
    Refused,
    Version,
    Written,
)
from distsync_node.cache.values import (
    Lease,
    Value,
    compute_key,
    decode_lease,
    decode_value,
    encode_lease,
    encode_value,
    format_version,
    tag_key,
)
from distsync_node.errors import (
    BadRequest,
    ComputeLost,
    ComputeTimeout,
    DistSyncError,
    Fenced,
    LimitReached,
    LineLost,
    OutcomeUnknown,
    RedisFull,
    RedisUnavailable,
    Unavailable,
    VersionMismatch,
)
from distsync_node.services.runtime import boottime_ms

FENCE_TRIES: Final = 3
TOKEN_BYTES: Final = 12
WATCH_SECONDS: Final = 0.1  # how late the end of a computation may be noticed, at worst

Verify = Callable[[str, int], Awaitable[None]]
"""Returns if the token is that lock's current exclusive grant by a linearizable read, else raises
Fenced or BadRequest."""


class Got(NamedTuple):
    """A value, or None; `remaining_ms` 0: it does not expire; `hit`: it was here."""

    version: Version
    value: Value | None
    remaining_ms: int = 0
    hit: bool = False


class Put(NamedTuple):
    """A value to set; `token` is that of its computation."""

    key: str
    value: Value  # its tags have no versions yet
    tags: tuple[str, ...] = ()
    ttl_ms: int = 0
    if_version: Version | None = None
    fence: tuple[str, int] | None = None
    token: str = ""


class Computation(NamedTuple):
    """The caller is to compute the key, and to put it with this token in time."""

    token: str
    expires_in_ms: int


class CacheCalls:
    """The calls of clients on one node. All raise as `CacheService.read`, and by their outcome."""

    def __init__(self, service: CacheService, timeout_ms: int) -> None:
        self.service = service
        self._timeout_ms = timeout_ms
        self._verify: Verify | None = None
        self._watches: dict[str, asyncio.Task[None]] = {}

    def verify_with(self, verify: Verify) -> None:
        """Have fencing tokens that are newer than any seen looked up by this."""
        self._verify = verify

    async def close(self) -> None:
        """End what is under way."""
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    # --- Reads --------------------------------------------------------------------------------

    def hit(self, key: str) -> Got | None:
        """Return what can be said at once, from this node's own lines; None: ask the homes."""
        record = self.service.hit(key)
        if record is None:
            return None
        return self._judged(record.version, record.value, _remaining_ms(record), hit=True)

    def _judged(
        self, version: Version, data: bytes | None, remaining_ms: int, *, hit: bool
    ) -> Got | None:
        if data is None:
            return Got(version, None, 0, hit)
        value = decode_value(data)
        for tag, expected in value.tags:
            record = self.service.hit(tag_key(tag))
            if record is None:
                return None
            if record.version != expected:
                return Got(version, None, 0, hit)
        return Got(version, value, remaining_ms, hit)

    async def get(self, key: str) -> Got:
        """Return the value of a key, read linearizably, and count that."""
        if self.hit(key) is not None:
            self.service.hits += 1
        else:
            self.service.count_miss(self._missing(key))
        return await self._get(key)

    def _missing(self, key: str) -> str:
        """Return which line is not here that a read of the key needs: its own, or that of a tag."""
        record = self.service.hit(key)
        tags = () if record is None or record.value is None else decode_value(record.value).tags
        missing = (tag_key(tag) for tag, _ in tags if self.service.hit(tag_key(tag)) is None)
        return next(missing, key)

    async def _get(self, key: str) -> Got:
        deadline_ms = boottime_ms() + self._timeout_ms
        was_hit = True
        while True:
            outcome = await self._read(key, deadline_ms)
            data = outcome.value if isinstance(outcome, Found) else None
            remaining_ms = outcome.remaining_ms if isinstance(outcome, Found) else 0
            was_hit = was_hit and outcome.hit
            got = self.hit(key)  # what came with the answer may be old by now, where there are tags
            if got is None and (data is None or not decode_value(data).tags):
                got = self._judged(outcome.version, data, remaining_ms, hit=False)
            if got is not None:
                return got._replace(hit=was_hit)
            if data is not None:
                tags = [tag for tag, _ in decode_value(data).tags]
                await self._tag_versions(tags, deadline_ms)
                got = self.hit(key)
                if got is not None:
                    return got._replace(hit=False)
            was_hit = False

    async def _read(self, key: str, deadline_ms: int) -> Found | Missing:
        left_ms = deadline_ms - boottime_ms()
        if left_ms <= 0:
            raise Unavailable("the key could not be read in time")
        outcome = await self.service.read(key, left_ms)
        if isinstance(outcome, Refused):
            self._raise(outcome, key, is_read=True)
        return outcome

    async def _tag_versions(
        self, tags: Sequence[str], deadline_ms: int
    ) -> tuple[tuple[str, Version], ...]:
        found = [(await self._read(tag_key(tag), deadline_ms)).version for tag in tags]
        return tuple(zip(tags, found, strict=True))

    # --- Writes -------------------------------------------------------------------------------

    async def put(self, put: Put) -> Version:
        """Set a value and return its version."""
        if put.token:
            return await self._put_computed(put)
        deadline_ms = boottime_ms() + self._timeout_ms
        tags = await self._tag_versions(put.tags, deadline_ms)
        data = encode_value(put.value._replace(tags=tags))
        change = Change(data, put.ttl_ms, put.if_version, _fence(put.fence))
        return await self._write(put.key, change, deadline_ms)

    async def _put_computed(self, put: Put) -> Version:
        if put.if_version is not None:
            raise BadRequest(
                "if_version: a compute_token says already what must not have changed",
                field="if_version",
            )
        deadline_ms = boottime_ms() + self._timeout_ms
        lease = await self._take_computation(put.key, put.token)
        known = dict(lease.tags)
        try:
            now = await self._tag_versions(put.tags, deadline_ms)
            if any(known.get(tag, version) != version for tag, version in now):
                raise ComputeLost("a tag was invalidated meanwhile; nothing was written")
            data = encode_value(put.value._replace(tags=now))
            change = Change(data, put.ttl_ms, lease.base, _fence(put.fence), exact=True)
            version = await self._write(put.key, change, deadline_ms)
        except OutcomeUnknown:
            raise  # it may be there yet: until this is sure nobody computes
        except VersionMismatch:
            await self._end_computation(put.key)
            raise ComputeLost("the key was changed meanwhile; nothing was written") from None
        except DistSyncError:
            await self._end_computation(put.key)
            raise
        await self._end_computation(put.key)
        return version

    async def delete(
        self, key: str, if_version: Version | None = None, fence: tuple[str, int] | None = None
    ) -> Version:
        """Delete a key and return the version of its absence."""
        change = Change(None, 0, if_version, _fence(fence))
        return await self._write(key, change, boottime_ms() + self._timeout_ms)

    async def invalidate_tag(self, tag: str) -> Version:
        """Have every value that was set with this tag be gone."""
        return await self._write(tag_key(tag), Change(b""), boottime_ms() + self._timeout_ms)

    async def _write(self, key: str, change: Change, deadline_ms: int) -> Version:
        for _ in range(FENCE_TRIES):
            left_ms = max(1, deadline_ms - boottime_ms())
            outcome = await self.service.write(key, change, left_ms)
            if isinstance(outcome, Written):
                return outcome.version
            if outcome.code is Code.FENCE_UNVERIFIED and change.fence is not None:
                await self._verify_fence(change.fence)
                fence = msgspec.structs.replace(change.fence, verified=True)
                change = msgspec.structs.replace(change, fence=fence)
            elif await self._is_no_value(key, change, outcome, deadline_ms):
                change = msgspec.structs.replace(change, if_version=outcome.version)
            else:
                self._raise(outcome, key, is_read=False)
        raise Unavailable("others write this key all the time; nothing was done")

    async def _is_no_value(
        self, key: str, change: Change, refused: Refused, deadline_ms: int
    ) -> bool:
        """Whether a value is in the way that has lost a tag, where none is to be overwritten."""
        if refused.code is not Code.VERSION_MISMATCH or change.if_version != ABSENT or change.exact:
            return False
        outcome = await self._read(key, deadline_ms)
        if isinstance(outcome, Missing) or outcome.version != refused.version:
            return False
        expected = decode_value(outcome.value).tags
        now = await self._tag_versions([tag for tag, _ in expected], deadline_ms)
        return now != expected

    async def _verify_fence(self, fence: Fence) -> None:
        if self._verify is None:
            raise Unavailable("fencing tokens cannot be verified here")
        await self._verify(fence.lock, fence.token)

    def _raise(self, refused: Refused, key: str, *, is_read: bool) -> NoReturn:
        match refused.code:
            case Code.VERSION_MISMATCH:
                version = format_version(refused.version)
                raise VersionMismatch(f"the key has version {version}", version=version)
            case Code.FENCED:
                raise Fenced(
                    f"the lock has had a newer grant ({refused.newest})", newest=refused.newest
                )
            case Code.TOO_MANY_FENCES:
                raise LimitReached("this key was written under too many locks", limit="fences")
            case Code.LINE_LOST:
                raise LineLost(f"all nodes that had the newest value of {key!r} are gone")
            case Code.LIMIT:
                raise LimitReached(
                    "too many values wait to be written back to redis", limit="dirty_bytes"
                )
            case Code.REDIS_UNAVAILABLE:
                raise RedisUnavailable(self.service.redis_trouble)
            case Code.REDIS_FULL:
                raise RedisFull("redis has no memory left (maxmemory); nothing was done")
            case Code.UNKNOWN if not is_read:
                raise OutcomeUnknown("no outcome in time; write again under if_version to learn it")
        raise Unavailable("the home of the key did not answer in time; nothing was done")

    # --- Get or compute -----------------------------------------------------------------------

    async def compute(
        self, key: str, wait_ms: int, lease_ms: int, tags: Sequence[str] = ()
    ) -> Got | Computation:
        """Return the value; or make the caller the one who computes it, from what has these tags.

        Raises:
            ComputeTimeout: another one still computed after `wait_ms`.
        """
        deadline_ms = boottime_ms() + wait_ms
        got = await self.get(key)
        while True:
            if got.value is not None:
                return got
            taken = await self._begin_computation(key, lease_ms, got.version, tags)
            if taken is not None:
                return taken
            left_ms = deadline_ms - boottime_ms()
            if left_ms <= 0:
                raise ComputeTimeout("another caller still computes this key")
            await self._computed(key, left_ms)
            got = await self._get(key)

    async def _begin_computation(
        self, key: str, lease_ms: int, base: Version, tags: Sequence[str]
    ) -> Computation | Got | None:
        """Take the computation if it is free; then see that there is still no value.

        `base`: the version that the key has without one.
        """
        lease = compute_key(key)
        held = await self._read(lease, boottime_ms() + self._timeout_ms)
        if isinstance(held, Found):
            return None
        token = secrets.token_hex(TOKEN_BYTES)
        versions = await self._tag_versions(tags, boottime_ms() + self._timeout_ms)
        began_ms = boottime_ms()
        change = Change(encode_lease(Lease(token, base, versions)), lease_ms, ABSENT)
        outcome = await self.service.write(lease, change, self._timeout_ms)
        if isinstance(outcome, Refused):
            if outcome.code is Code.VERSION_MISMATCH:
                return None
            self._raise(outcome, key, is_read=True)  # if it was done, it ends by itself
        got = await self._get(key)
        if got.value is None and got.version == base:
            left_ms = lease_ms - (boottime_ms() - began_ms)
            return Computation(token, max(1, left_ms))
        await self._end_computation(key, outcome.version)
        return got if got.value is not None else None

    async def _take_computation(self, key: str, token: str) -> Lease:
        held = await self._read(compute_key(key), boottime_ms() + self._timeout_ms)
        if isinstance(held, Found) and (lease := decode_lease(held.value)).token == token:
            # Longer than the write of the value can take, so that nobody computes meanwhile.
            taken = encode_lease(lease._replace(token=""))
            change = Change(taken, 2 * self._timeout_ms, held.version)
            outcome = await self.service.write(compute_key(key), change, self._timeout_ms)
            if isinstance(outcome, Written):
                return lease
            if outcome.code is not Code.VERSION_MISMATCH:
                self._raise(outcome, key, is_read=False)
        raise ComputeLost("another caller may compute this key by now; nothing was written")

    async def _end_computation(self, key: str, version: Version | None = None) -> None:
        """Nobody computes any more. If this is not done the line ends by itself."""
        await self.service.write(compute_key(key), Change(None, 0, version), self._timeout_ms)

    async def give_up(self, key: str, token: str) -> bool:
        """Compute no more; returns whether that token was computing."""
        held = await self._read(compute_key(key), boottime_ms() + self._timeout_ms)
        if not isinstance(held, Found) or decode_lease(held.value).token != token:
            return False
        await self._end_computation(key, held.version)
        return True

    async def _computed(self, key: str, left_ms: int) -> None:
        """Wait until there may be a value, or nobody computes it, or so long.

        All that wait for a key on this node share one watch.
        """
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = asyncio.create_task(self._watch(key))
            watch.add_done_callback(lambda _: self._watches.pop(key, None))
        await asyncio.wait((watch,), timeout=left_ms / 1_000)
        if watch.done() and not watch.cancelled():
            watch.exception()  # whoever waits meets it by itself

    async def _watch(self, key: str) -> None:
        """The lines are here: whoever changes one of them has it invalidated first."""
        while True:
            deadline_ms = boottime_ms() + self._timeout_ms
            held = await self._read(compute_key(key), deadline_ms)
            if isinstance(held, Missing) or (await self._get(key)).value is not None:
                return
            await self.service.changed((key, compute_key(key)), WATCH_SECONDS)


def _remaining_ms(record: Record) -> int:
    return max(1, record.expires_ms - boottime_ms()) if record.expires_ms else 0


def _fence(fence: tuple[str, int] | None) -> Fence | None:
    return None if fence is None else Fence(fence[0], fence[1])
