"""What simulated clients do: short scripts over few locks, so that they meet.

x0..x2   one at a time, the same name for everybody
s0, s1   readers and writers, upgrades and downgrades
l0, l1   semaphores with a limit
m0..m3   several at once, and one after the other until a cycle would close
"""

from __future__ import annotations

from collections.abc import Callable

from distsync_node.locks.commands import LockMode
from sim.client import Client, Grip, Script
from sim.kernel import US_PER_MS

TTLS_MS = (400, 800, 1_500, 3_500)
WAITS_MS = (0, 0, 200, 900, 3_000)
LIMIT = 2


def critical_section(client: Client) -> Script:
    """Take an exclusive lock, keep it for a while, let go or vanish."""
    rng = client.rng
    name = rng.choice(("x0", "x0", "x1", "x2"))
    grip = yield from client.acquire(
        (name,), ttl_ms=rng.choice(TTLS_MS), wait_ms=rng.choice(WAITS_MS)
    )
    if grip is not None:
        yield from keep(client, grip)
        yield from end(client, grip)


def keep(client: Client, grip: Grip) -> Script:
    """Stay in the critical section: renew in time, or now and then sleep through the lease."""
    rng = client.rng
    if rng.random() < 0.12:
        client.kernel.faults["client_paused"] += 1
        yield int(grip.ttl_ms * rng.uniform(0.7, 1.5)) * US_PER_MS
        return
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        yield int(grip.ttl_ms * rng.uniform(0.15, 0.4)) * US_PER_MS
        if not (yield from client.renew(grip)):
            return
    yield rng.randint(0, 60) * US_PER_MS


def end(client: Client, grip: Grip) -> Script:
    """Release what is held, sometimes with a wrong token first, or leave it to expire."""
    rng = client.rng
    if rng.random() < 0.15:
        client.kernel.faults["client_left_lock"] += 1
        return
    for name in grip.tokens:
        if rng.random() < 0.1:
            yield from client.release(grip, name, token=grip.tokens[name] - 1)
        yield from client.release(grip, name)


def readers_and_writers(client: Client) -> Script:
    """Share a lock, or take it alone; change from one to the other."""
    rng = client.rng
    name = rng.choice(("s0", "s0", "s1"))
    mode = rng.choice((LockMode.SHARED, LockMode.SHARED, LockMode.EXCLUSIVE))
    grip = yield from client.acquire(
        (name,), mode=mode, ttl_ms=rng.choice(TTLS_MS), wait_ms=rng.choice(WAITS_MS)
    )
    if grip is None:
        return
    yield rng.randint(0, 150) * US_PER_MS
    if rng.random() < 0.35 and client.holds_all(grip):
        if mode is LockMode.EXCLUSIVE:
            yield from client.downgrade(grip, name)
        else:
            yield from client.upgrade(grip, name, rng.choice(WAITS_MS))
    yield from keep(client, grip)
    yield from end(client, grip)


def semaphore(client: Client) -> Script:
    """Take one of the places of a semaphore."""
    rng = client.rng
    grip = yield from client.acquire(
        (rng.choice(("l0", "l0", "l1")),),
        mode=LockMode.SHARED,
        limit=LIMIT,
        ttl_ms=rng.choice(TTLS_MS),
        wait_ms=rng.choice(WAITS_MS),
    )
    if grip is not None:
        yield from keep(client, grip)
        yield from end(client, grip)


def several(client: Client) -> Script:
    """Take several locks in one step."""
    rng = client.rng
    names = tuple(rng.sample(("m0", "m1", "m2", "m3"), rng.choice((2, 2, 3))))
    grip = yield from client.acquire(
        names, ttl_ms=rng.choice(TTLS_MS), wait_ms=rng.choice(WAITS_MS)
    )
    if grip is not None:
        yield from keep(client, grip)
        yield from end(client, grip)


def one_after_the_other(client: Client) -> Script:
    """Take a lock while holding another, under one owner: cycles must be found."""
    rng = client.rng
    owner = client.new_owner()
    first, second = rng.sample(("m0", "m1", "m2", "m3"), 2)
    outer = yield from client.acquire((first,), ttl_ms=4_000, wait_ms=1_000, owner=owner)
    if outer is None:
        return
    yield rng.randint(0, 100) * US_PER_MS
    inner = yield from client.acquire((second,), ttl_ms=2_000, wait_ms=1_500, owner=owner)
    if inner is not None:
        yield rng.randint(0, 100) * US_PER_MS
        yield from end(client, inner)
    yield from end(client, outer)


def under_session(client: Client) -> Script:
    """Hold locks by a session that is kept alive for a while."""
    rng = client.rng
    ttl_ms = rng.choice((600, 1_200, 2_500))
    session = yield from client.open_session(ttl_ms)
    if session is None:
        return
    grips: list[Grip] = []
    for name in rng.sample(("x0", "x1", "m0", "m1"), rng.choice((1, 1, 2))):
        grip = yield from client.acquire(
            (name,), ttl_ms=ttl_ms, wait_ms=rng.choice(WAITS_MS), session=session
        )
        if grip is not None:
            grips.append(grip)
    for _ in range(rng.choice((0, 1, 2, 4))):
        yield int(ttl_ms * rng.uniform(0.2, 0.6)) * US_PER_MS
        if not (yield from client.keep_alive(session, grips)):
            break
    if rng.random() < 0.6:
        yield from client.close_session(session, grips)
    else:
        client.kernel.faults["client_left_session"] += 1
        for grip in grips:
            if rng.random() < 0.5:
                yield from end(client, grip)


def vanish(client: Client) -> Script:
    """Ask, and be gone before the answer."""
    rng = client.rng
    yield from client.acquire(
        (rng.choice(("x0", "x1", "s0")),),
        ttl_ms=500,
        wait_ms=3_000,
        give_up_after_ms=rng.randint(2, 400),
    )


def look(client: Client) -> Script:
    """Read a lock a few times."""
    rng = client.rng
    for _ in range(rng.randint(1, 4)):
        yield from client.read(rng.choice(("x0", "x0", "x1", "x2", "s0", "m0")))
        yield rng.randint(0, 100) * US_PER_MS


SCRIPTS: tuple[tuple[Callable[[Client], Script], int], ...] = (
    (critical_section, 6),
    (readers_and_writers, 4),
    (semaphore, 3),
    (several, 2),
    (one_after_the_other, 2),
    (under_session, 3),
    (vanish, 1),
    (look, 4),
)


def live(client: Client) -> Script:
    """Run one script after the other until the chaos ends, then show that the cluster works."""
    scripts = [script for script, _ in SCRIPTS]
    weights = [weight for _, weight in SCRIPTS]
    while not client.finishing:
        (script,) = client.rng.choices(scripts, weights)
        yield from script(client)
        yield client.rng.randint(0, 80) * US_PER_MS
    grip = yield from client.acquire(("x0",), ttl_ms=2_000, wait_ms=10_000)
    if grip is not None:
        yield from client.release(grip, "x0")
