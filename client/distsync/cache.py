"""The cache: values by key, the same for everyone at every moment.

    await client.cache.set("user:42", {"name": "Ada"}, ttl=60)
    user = await client.cache.get("user:42")

Reads and writes of a key are linearizable: whoever reads after a `set` or `delete` has returned
sees it, through whichever node. A value is JSON (what `None`, numbers, text, lists and dicts are
made of) or bytes, which are kept as they are.

Reads are repeated through failures of nodes and connections for the client's timeout. A write is
repeated as long as it was certainly not done. Once it may have been done, it is repeated only if
its `if_version` is that of a value, which a second one would not meet; otherwise a repetition might
undo what another client did in between. Without an answer it ends with `Unavailable` (nothing was
done) or `OutcomeUnknown` (it may have been done): then read the key, or write again if you may
overwrite.
"""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from distsync.batches import MAX_JSON_BYTES, batches
from distsync.cache_calls import MAX_BATCH, CacheCalls, Terms, entry_of, error_of_item
from distsync.cache_models import (
    BatchSetBody,
    CachedLine,
    CacheEntry,
    CacheStats,
    ValueAnswer,
)
from distsync.caching import Cached, Key, Keys, Naming, Tags
from distsync.computing import Computing, Lease
from distsync.core import Core
from distsync.durations import Duration, milliseconds_or_none
from distsync.errors import DistSyncError, NotFound, Unavailable
from distsync.fences import Fence, fence_body
from distsync.models import Problem
from distsync.transport import Repeat
from distsync.values import Payload, encode_value
from distsync.waiting import Wait

__all__ = ["Cache"]

P = ParamSpec("P")
T = TypeVar("T")

_SET_LIMITS: Final = (MAX_BATCH, MAX_JSON_BYTES)
_GET_LIMITS: Final = (MAX_BATCH, MAX_JSON_BYTES)
_ROOM: Final = "batch_bytes"  # of one answer, which the value would not fit into any more
_LINES: Final = 500


class Cache:
    """The cache of one cluster; `AsyncClient.cache`."""

    def __init__(self, core: Core) -> None:
        """Users take `AsyncClient.cache` instead."""
        self._calls = CacheCalls(core)
        self.computing = Computing(self._calls)  # for the library itself

    # --- One key ----------------------------------------------------------------------------

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default` if it has none.

        Args:
            key: up to 1024 bytes of UTF-8; slashes are part of it.
            default: what stands for no value. A value may be None as well: `get_entry` tells.

        Raises:
            LineLost: the value was lost with the nodes that held it.
            RedisFull: Redis has no memory left, and no node has the value.
            BadRequest: the key is too long.
            Unavailable: no answer within the client's timeout.
        """
        entry = await self._calls.get(key)
        return entry.value if entry.found else default

    async def get_entry(self, key: str) -> CacheEntry:
        """Return a key's value with its version, its state and what remains of its time.

        Without a value `found` is false and the version "0.0": with that as its `if_version` a
        `set` is done only if there still is none.

        Raises: as `get`.
        """
        return await self._calls.get(key)

    async def set(
        self,
        key: str,
        value: Any,
        ttl: Duration | None = None,
        if_version: str | None = None,
        tags: Sequence[str] = (),
        fence: Fence | None = None,
    ) -> str:
        """Write a value; returns its version.

        Args:
            key: as for `get`.
            value: bytes, or what JSON can say; up to 1 MiB.
            ttl: it expires after this; by default never.
            if_version: write only if this is the key's version, as `get_entry` told it; "0.0": only
                if there is no value. With the version of a value the call is repeated also when it
                may have been done, and done at most once.
            tags: up to 16; see `invalidate_tag`.
            fence: a lock that is held exclusively, or (name, token). The write is refused once the
                lock has a newer holder.

        Raises:
            VersionMismatch: the key has another version; `version` is it.
            Fenced: the lock has, or had, a newer holder.
            LimitReached: the node holds all the unwritten values that it may; try again later.
            RedisFull: Redis has no memory left.
            PayloadTooLarge, BadRequest: the value is too large, a field out of range.
            TypeError: the value is neither bytes nor anything that JSON can say.
            Unavailable: nothing was written within the client's timeout.
            OutcomeUnknown: it may have been written. Without the version of a value, by the first
                attempt whose answer was lost; with it, also when a repetition was refused: somebody
                wrote the key, and it may have been this call.
        """
        terms = Terms(
            ttl_ms=milliseconds_or_none(ttl, "ttl"),
            if_version=if_version,
            tags=tuple(tags),
            fence=fence_body(fence),
        )
        return await self._calls.put(key, encode_value(value), terms)

    async def delete(
        self, key: str, if_version: str | None = None, fence: Fence | None = None
    ) -> None:
        """Remove a value, if there is one.

        It raises as `set` and is repeated as `set`.
        """
        terms = Terms(if_version=if_version, fence=fence_body(fence))
        await self._calls.delete(key, terms)

    # --- Many keys --------------------------------------------------------------------------

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those keys that have one.

        They are read in batches of up to 1000, each key by itself: it is not one moment for all.

        Raises: as `get`, of the first key that failed (`error.fields["key"]`); the values of the
            others are in `error.fields["values"]`.
        """
        found: dict[str, Any] = {}
        failure: DistSyncError | None = None
        sized = ((key, (1, len(key.encode()))) for key in dict.fromkeys(keys))
        for batch in batches(sized, _GET_LIMITS):
            answers = await self._calls.get_batch(batch)
            for key in batch:
                try:
                    entry = await self._entry_of(key, answers.get(key))
                except DistSyncError as error:
                    failure = failure or error
                else:
                    if entry.found:
                        found[key] = entry.value
        if failure is not None:
            failure.fields["values"] = found
            raise failure
        return found

    async def set_many(
        self,
        values: Mapping[str, Any],
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        fence: Fence | None = None,
    ) -> dict[str, str]:
        """Write the values of several keys; returns their versions.

        They are sent in batches of up to 1000 values and 5 MiB. Each key is written by itself, as
        by `set` without `if_version`: after a failure some are written and others are not.

        Raises: as `set`, of the first key that failed (`error.fields["key"]`); the versions of
            those that are written are in `error.fields["versions"]`.
        """
        terms = Terms(
            ttl_ms=milliseconds_or_none(ttl, "ttl"), tags=tuple(tags), fence=fence_body(fence)
        )
        payloads = {key: encode_value(value) for key, value in values.items()}
        versions: dict[str, str] = {}
        failure: DistSyncError | None = None
        for batch in batches(_measured(payloads, terms), _SET_LIMITS):
            try:
                written = await self._calls.set_batch([item for _, item in batch])
            except DistSyncError as error:
                error.fields["versions"] = versions
                raise
            for (key, _), answer in zip(batch, written, strict=True):
                try:
                    versions[key] = (
                        answer.version
                        if answer.error is None
                        else await self._put_after(answer.error, key, payloads[key], terms)
                    )
                except DistSyncError as error:
                    failure = failure or error
        if failure is not None:
            failure.fields["versions"] = versions
            raise failure
        return versions

    async def invalidate_tag(self, tag: str) -> None:
        """Remove at once, for everyone, every value that was set with this tag before.

        It is repeated until there is an answer; values set meanwhile may be removed as well.

        Raises:
            BadRequest: the tag is too long.
            Unavailable: no answer within the client's timeout.
        """
        await self._calls.invalidate_tag(tag)

    # --- Get or compute ---------------------------------------------------------------------

    async def compute(
        self,
        key: str,
        function: Callable[[], Awaitable[T] | T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        wait: Wait = None,
        lease: Duration = 10.0,
    ) -> T:
        """Return the value of a key; if it has none, that of `function()`, which is stored.

        Of all clients that ask at the same time one computes, and the others wait for its value.
        When it does not store one within its lease, exactly one of them takes over. An exception of
        the function is raised to its caller and gives the lease up at once.

        Args:
            key: as for `get`.
            function: asynchronous or not; one that blocks, blocks the event loop.
            ttl, tags: as for `set`. A value is not stored if the key was changed, or a tag of it
                invalidated, while the function ran; its caller gets it all the same.
            wait: how long to wait for another client that computes; None (the default) for as long
                as one does.
            lease: how long the function may take before another client takes over.

        Returns what every later caller gets: what JSON made of the value, or bytes. If it cannot be
        stored (its lease has ended, the cluster is not there) that is logged, and it is returned
        all the same.

        Raises:
            ComputeTimeout: another client was still computing after `wait`.
            TypeError: the value is neither bytes nor anything that JSON can say.
            PayloadTooLarge, BadRequest: the value is too large, a field out of range.
            Unavailable: no answer within the client's timeout; the function was not called.
        """
        begun = await self.computing.begin(key, wait, lease, tuple(tags))
        if not isinstance(begun, Lease):
            return begun.value  # type: ignore[no-any-return]
        terms = Terms(ttl_ms=milliseconds_or_none(ttl, "ttl"), tags=tuple(tags))
        try:
            made = function()
            value = await made if inspect.isawaitable(made) else made
            payload = encode_value(value)
        except BaseException:
            await self.computing.give_up(begun)
            raise
        return await self.computing.finish(begun, payload, terms)  # type: ignore[no-any-return]

    def cached(
        self,
        *,
        ttl: Duration | None = None,
        key: Key | None = None,
        tags: Tags = (),
        wait: Wait = None,
        lease: Duration = 10.0,
    ) -> Callable[[Callable[P, Awaitable[T] | T]], Cached[P, T]]:
        """Return a decorator that keeps what a function returns, by its arguments.

            @client.cache.cached(ttl=60, key="user:{user_id}", tags=["users"])
            async def load_user(user_id: int) -> dict: ...

            await load_user(42)             # one client computes it, see `compute`
            await load_user.invalidate(42)  # the next call computes it anew

        The function may be asynchronous or not; what stands for it is asynchronous.

        Args:
            ttl, wait, lease: as for `compute`.
            key: a template that is formatted with the arguments by their names, or a function of
                the arguments that returns the key. Two calls with one key get one value. The
                default is the name of the function with its module and its arguments as Python
                writes them, such as `app.users.load_user(user_id=42)`; beyond 512 bytes, their
                SHA-256. It takes None, bool, int, float, str, bytes, date and time, Decimal, UUID
                and Enum, and tuples, lists, sets and dicts of them; anything else, as the `self`
                of a method, needs a `key`.
            tags: templates as well, or a function of the arguments that returns the tags.
        """

        def decorate(function: Callable[P, Awaitable[T] | T]) -> Cached[P, T]:
            keys = Keys(Naming(function), key, tags)

            async def call(*args: P.args, **kwargs: P.kwargs) -> T:
                named, tagged = keys.of(args, kwargs)
                return await self.compute(
                    named,
                    lambda: function(*args, **kwargs),
                    ttl=ttl,
                    tags=tagged,
                    wait=wait,
                    lease=lease,
                )

            async def invalidate(*args: P.args, **kwargs: P.kwargs) -> None:
                await self.forget(keys.key(args, kwargs))

            return keys.dress(call, invalidate)  # type: ignore[no-any-return]

        return decorate

    # --- The node ---------------------------------------------------------------------------

    async def stats(self) -> CacheStats:
        """Return the statistics of the node that this client keeps to."""
        return await self._calls.stats()

    async def lines(self) -> AsyncGenerator[CachedLine, None]:
        """Yield the lines of the node that this client keeps to, page by page."""
        after: str | None = ""
        while after is not None:
            page = await self._calls.lines(after, _LINES)
            for line in page.lines:
                yield line
            after = page.next

    # --- Parts ------------------------------------------------------------------------------

    async def _entry_of(self, key: str, answer: ValueAnswer | None) -> CacheEntry:
        """Return a key of a batch; one that could not be read then is asked for by itself."""
        if answer is None:
            return await self._calls.get(key)
        if answer.error is None:
            return entry_of(answer)
        error = error_of_item(answer.error, key)
        if isinstance(error, Unavailable) or getattr(error, "limit", None) == _ROOM:
            return await self._calls.get(key)
        if isinstance(error, NotFound):
            return CacheEntry(found=False)
        raise error

    async def _put_after(self, problem: Problem, key: str, payload: Payload, terms: Terms) -> str:
        """Write a value of a batch by itself if it was certainly not written; else raise."""
        error = error_of_item(problem, key)
        if not isinstance(error, Unavailable):
            raise error
        return await self._calls.put(key, payload, terms)

    async def forget(self, key: str) -> None:
        """Remove what was computed; twice does no harm, it is computed again."""
        await self._calls.delete(key, Terms(), Repeat.IDEMPOTENT)


def _measured(
    payloads: Mapping[str, Payload], terms: Terms
) -> Iterator[tuple[tuple[str, msgspec.Raw], tuple[int, int]]]:
    """Yield keys and values as they are sent, each with what counts of it."""
    for key, payload in payloads.items():
        body = BatchSetBody(
            key=key,
            value=payload.as_json(),
            encoding="base64" if payload.is_raw else None,
            ttl_ms=terms.ttl_ms,
            tags=terms.tags,
            fence=terms.fence,
        )
        encoded = msgspec.json.encode(body)
        yield (key, msgspec.Raw(encoded)), (1, len(encoded))
