"""The cache for programs without asyncio; see `cache` for what it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from distsync.cache import Cache
from distsync.cache_calls import Terms
from distsync.cache_models import CachedLine, CacheEntry, CacheStats
from distsync.caching import Key, Keys, Naming, SyncCached, Tags
from distsync.computing import Lease
from distsync.durations import Duration, milliseconds_or_none
from distsync.fences import Fence
from distsync.values import encode_value
from distsync.waiting import Wait

if TYPE_CHECKING:
    from distsync.portal import Portal

__all__ = ["SyncCache"]

P = ParamSpec("P")
T = TypeVar("T")

Engine: TypeAlias = "Callable[[], tuple[Portal, Cache]]"


class SyncCache:
    """The cache of one cluster; `Client.cache`. Its functions run in the thread that calls."""

    def __init__(self, engine: Engine) -> None:
        """Users take `Client.cache` instead.

        `engine` is asked at each call: after a fork it is another one, and a function that is
        cached was decorated before.
        """
        self._engine = engine

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default` if it has none. See `Cache.get`."""
        portal, cache = self._engine()
        return portal.call(cache.get, key, default)

    def get_entry(self, key: str) -> CacheEntry:
        """Return a key's value with its version, state and time. See `Cache.get_entry`."""
        portal, cache = self._engine()
        return portal.call(cache.get_entry, key)

    def set(
        self,
        key: str,
        value: Any,
        ttl: Duration | None = None,
        if_version: str | None = None,
        tags: Sequence[str] = (),
        fence: Fence | None = None,
    ) -> str:
        """Write a value; returns its version. See `Cache.set`."""
        portal, cache = self._engine()
        return portal.call(cache.set, key, value, ttl, if_version, tags, fence)

    def delete(self, key: str, if_version: str | None = None, fence: Fence | None = None) -> None:
        """Remove a value, if there is one. See `Cache.delete`."""
        portal, cache = self._engine()
        portal.call(cache.delete, key, if_version, fence)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those keys that have one. See `Cache.get_many`."""
        portal, cache = self._engine()
        return portal.call(cache.get_many, list(keys))  # an iterator belongs to this thread

    def set_many(
        self,
        values: Mapping[str, Any],
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        fence: Fence | None = None,
    ) -> dict[str, str]:
        """Write the values of several keys; returns their versions. See `Cache.set_many`."""
        portal, cache = self._engine()
        return portal.call(cache.set_many, dict(values), ttl, tags, fence)

    def invalidate_tag(self, tag: str) -> None:
        """Remove every value that was set with this tag. See `Cache.invalidate_tag`."""
        portal, cache = self._engine()
        portal.call(cache.invalidate_tag, tag)

    def compute(
        self,
        key: str,
        function: Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        wait: Wait = None,
        lease: Duration = 10.0,
    ) -> T:
        """Return the value of a key; if it has none, that of `function()`, which is stored.

        See `Cache.compute`.
        """
        portal, cache = self._engine()
        computing = cache.computing
        begun = portal.call(computing.begin, key, wait, lease, tuple(tags))
        if not isinstance(begun, Lease):
            return begun.value  # type: ignore[no-any-return]
        terms = Terms(ttl_ms=milliseconds_or_none(ttl, "ttl"), tags=tuple(tags))
        try:
            payload = encode_value(function())
        except BaseException:
            portal.call(computing.give_up, begun)
            raise
        return portal.call(computing.finish, begun, payload, terms)  # type: ignore[no-any-return]

    def cached(
        self,
        *,
        ttl: Duration | None = None,
        key: Key | None = None,
        tags: Tags = (),
        wait: Wait = None,
        lease: Duration = 10.0,
    ) -> Callable[[Callable[P, T]], SyncCached[P, T]]:
        """Return a decorator that keeps what a function returns. See `Cache.cached`."""

        def decorate(function: Callable[P, T]) -> SyncCached[P, T]:
            keys = Keys(Naming(function), key, tags)

            def call(*args: P.args, **kwargs: P.kwargs) -> T:
                named, tagged = keys.of(args, kwargs)
                return self.compute(
                    named,
                    lambda: function(*args, **kwargs),
                    ttl=ttl,
                    tags=tagged,
                    wait=wait,
                    lease=lease,
                )

            def invalidate(*args: P.args, **kwargs: P.kwargs) -> None:
                portal, cache = self._engine()
                portal.call(cache.forget, keys.key(args, kwargs))

            return keys.dress(call, invalidate)  # type: ignore[no-any-return]

        return decorate

    def stats(self) -> CacheStats:
        """Return the statistics of the node that this client keeps to."""
        portal, cache = self._engine()
        return portal.call(cache.stats)

    def lines(self) -> Iterator[CachedLine]:
        """Yield the lines of the node that this client keeps to."""
        portal, cache = self._engine()
        return portal.iterate(cache.lines())
