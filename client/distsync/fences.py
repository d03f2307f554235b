"""Fences: writes that are refused once their lock has a newer holder."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from distsync.models import Body

__all__ = ["Fence", "FenceBody", "HeldLock", "fence_body"]


class HeldLock(Protocol):
    """What has a name and a fencing token: a lock of either client, or an election."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def token(self) -> int:
        """The fencing token of the grant."""
        ...


Fence: TypeAlias = HeldLock | tuple[str, int]
"""A lock that is held exclusively, or its name and the token of the grant."""


class FenceBody(Body, frozen=True, kw_only=True):
    """The fence of a push or of a write to the cache."""

    lock: str
    token: int


def fence_body(fence: Fence | None) -> FenceBody | None:
    """Return a fence as a node is sent it."""
    if fence is None:
        return None
    if isinstance(fence, tuple):
        name, token = fence
        return FenceBody(lock=name, token=token)
    return FenceBody(lock=fence.name, token=fence.token)
