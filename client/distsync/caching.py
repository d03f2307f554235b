"""The keys and tags of functions whose results are cached."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar, cast
from uuid import UUID

__all__ = ["Cached", "Key", "Keys", "Naming", "SyncCached", "Tags"]

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
C = TypeVar("C")

Key: TypeAlias = str | Callable[..., str]
"""A template of the arguments by their names, or a function of the arguments."""

Tags: TypeAlias = Sequence[str] | Callable[..., Sequence[str]]
"""Templates, or a function of the arguments."""

_LONGEST_KEY_BYTES: Final = 512
_AS_WRITTEN: Final = (
    *(type(None), bool, int, float, str, bytes),
    *(date, datetime, time, timedelta, Decimal, UUID),
)


class Cached(Protocol[P, T_co]):
    """A function whose results are cached; made by `Cache.cached`.

    For a method, `invalidate` takes the object as its first argument.
    """

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Return what is cached, or compute it."""
        ...

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Have the next call with these arguments compute it anew."""
        ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key under which the result is kept."""
        ...


class SyncCached(Protocol[P, T_co]):
    """The same for programs without asyncio; made by `SyncCache.cached`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Return what is cached, or compute it."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Have the next call with these arguments compute it anew."""
        ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key under which the result is kept."""
        ...


class Naming:
    """What a function is called, and its arguments by their names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        self._signature = inspect.signature(function)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments, also those that were left out, in the order of the signature.

        Raises:
            TypeError: the function cannot be called like that.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments


class Keys:
    """The keys and tags of one function."""

    def __init__(self, naming: Naming, key: Key | None, tags: Tags) -> None:
        """Raises TypeError for tags that are one text: each letter would be a tag."""
        if isinstance(tags, str):
            raise TypeError("tags is a list of texts, not a text")
        self._naming = naming
        self._key = key
        self._tags = tags

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return key and tags of a call."""
        return self.key(args, kwargs), self._tags_of(args, kwargs)

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Return the key of a call.

        Raises:
            TypeError: the default key cannot tell an argument from others.
        """
        if callable(self._key):
            return self._key(*args, **kwargs)
        arguments = self._naming.arguments(args, kwargs)
        if self._key is not None:
            return self._key.format(**arguments)
        return default_key(self._naming.name, arguments)

    def dress(self, call: Callable[..., Any], invalidate: Callable[..., Any]) -> Any:
        """Return `call` as the function that stands for the one that is cached."""
        cached = cast(Any, functools.update_wrapper(call, self._naming.function))
        cached.invalidate = invalidate
        cached.key = lambda *args, **kwargs: self.key(args, kwargs)
        return cached

    def _tags_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        if callable(self._tags):
            return tuple(self._tags(*args, **kwargs))
        if not self._tags:
            return ()
        arguments = self._naming.arguments(args, kwargs)
        return tuple(tag.format(**arguments) for tag in self._tags)


def default_key(name: str, arguments: Mapping[str, Any]) -> str:
    """Return `name(argument=value, ...)`: the same for equal arguments, in every process.

    Raises:
        TypeError: an argument is written otherwise in each process, or like another one.
    """
    written = ", ".join(f"{argument}={_written(value)}" for argument, value in arguments.items())
    key = f"{name}({written})"
    if len(key.encode()) <= _LONGEST_KEY_BYTES:
        return key
    return f"{name}(sha256:{hashlib.sha256(key.encode()).hexdigest()})"


def _written(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    kind = type(value)
    if kind in _AS_WRITTEN:
        return repr(value)
    if kind in (list, tuple):
        return f"{kind.__name__}({', '.join(_written(one) for one in value)})"
    if kind in (set, frozenset):
        return f"set({', '.join(sorted(_written(one) for one in value))})"
    if kind is dict:
        items = sorted(f"{_written(name)}: {_written(one)}" for name, one in value.items())
        return f"{{{', '.join(items)}}}"
    raise TypeError(f"no default key for an argument of type {kind.__qualname__}: give key=")
