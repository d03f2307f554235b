"""Many things in requests that a node takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

__all__ = ["MAX_JSON_BYTES", "batches", "chunks"]

T = TypeVar("T")

MAX_JSON_BYTES: Final = 5 * 1024 * 1024
"""The limit of the API on a body, less what is around the things in it."""


def batches(
    things: Iterable[tuple[T, tuple[int, ...]]], limits: tuple[int, ...]
) -> Iterator[list[T]]:
    """Yield things in their order, as many at a time as keep each of their sizes within its limit.

    One that is over a limit by itself comes alone: the node is to say so.
    """
    batch: list[T] = []
    filled = (0,) * len(limits)
    for thing, sizes in things:
        sums = tuple(a + b for a, b in zip(filled, sizes, strict=True))
        if batch and any(total > limit for total, limit in zip(sums, limits, strict=True)):
            yield batch
            batch, sums = [], sizes
        batch.append(thing)
        filled = sums
    if batch:
        yield batch


def chunks(things: Sequence[T], size: int) -> Iterator[list[T]]:
    """Yield things in their order, so many at a time."""
    for first in range(0, len(things), size):
        yield list(things[first : first + size])
