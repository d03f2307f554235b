"""What a token is worth as a fence."""

from __future__ import annotations

from distsync_node.locks.commands import FencingToken
from distsync_node.locks.fencing import FenceVerdict, check_fence
from unit.locks.driver import Locks


def verdict(locks: Locks, name: str, token: int) -> FenceVerdict:
    return check_fence(locks.machine, name, FencingToken(token))


def test_only_the_current_exclusive_grant_is_a_fence() -> None:
    locks = Locks()
    old = locks.hold("owner", "a")
    assert verdict(locks, "a", old) is FenceVerdict.CURRENT
    locks.release("owner", "a", old)
    assert verdict(locks, "a", old) is FenceVerdict.STALE
    new = locks.hold("owner", "a")
    assert verdict(locks, "a", new) is FenceVerdict.CURRENT
    assert verdict(locks, "a", old) is FenceVerdict.STALE
    assert verdict(locks, "a", new + 1) is FenceVerdict.STALE
    assert verdict(locks, "b", new) is FenceVerdict.STALE


def test_a_shared_grant_is_no_fence() -> None:
    locks = Locks()
    token = locks.share("owner", "a")
    assert verdict(locks, "a", token) is FenceVerdict.SHARED


def test_upgrade_and_downgrade_change_what_a_token_is_worth() -> None:
    locks = Locks()
    shared = locks.share("owner", "a")
    locks.upgrade("owner", "a", shared)
    exclusive = locks.token("a", "owner")
    assert verdict(locks, "a", shared) is FenceVerdict.STALE
    assert verdict(locks, "a", exclusive) is FenceVerdict.CURRENT
    locks.downgrade("owner", "a", exclusive)
    assert verdict(locks, "a", exclusive) is FenceVerdict.SHARED
