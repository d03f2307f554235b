"""Many tasks, failing nodes, cancelled waits: exclusion holds and nothing is left behind.

Leases never end here by themselves, so a single grant that was forgotten would stop everything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from distsync import AsyncClient, LockHeld, OutcomeUnknown, Unavailable
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import Fault, ScriptedCluster, problem

ENTRIES = 16


class World:
    """Who is inside, and the tokens in the order of entry."""

    def __init__(self) -> None:
        self.inside: dict[str, int] = {"a": 0, "b": 0, "s": 0}
        self.tokens: dict[str, list[int]] = {"a": [], "b": [], "s": []}
        self.entries = 0

    async def visit(self, name: str, token: int, most: int, rng: random.Random) -> None:
        self.inside[name] += 1
        self.tokens[name].append(token)
        self.entries += 1
        try:
            assert self.inside[name] <= most
            await asyncio.sleep(rng.random() * 0.004)
            assert self.inside[name] <= most
        finally:
            self.inside[name] -= 1


def chaos(cluster: ScriptedCluster, rng: random.Random) -> Callable[[str], Fault | None]:
    """A third of all requests fails in one way or another; the leader is now here, now there."""
    answers = [problem(503, "no_leader"), problem(504, "outcome_unknown")]
    names = list(cluster.nodes)

    def fault(path: str) -> Fault | None:
        if rng.random() < 0.1:
            cluster.leader = rng.choice(names)
        match rng.randrange(12):
            case 0:
                return Fault(path, 0, drop="before")
            case 1 | 2:
                return Fault(path, 0, drop="after")
            case 3:
                return Fault(path, 0, answer=rng.choice(answers))
            case _:
                return None

    return fault


async def work(client: AsyncClient, world: World, rng: random.Random) -> None:
    tries = 0
    while tries < 8 or world.entries < ENTRIES:  # a busy machine needs more tries for so many
        tries += 1
        try:
            async with asyncio.timeout(rng.choice((0.02, 0.1, 5))):
                match rng.randrange(5):
                    case 0 | 1:
                        async with client.lock(name := rng.choice("ab")) as lock:
                            await world.visit(name, lock.token, 1, rng)
                    case 2:
                        async with client.semaphore("s", 2) as permit:
                            await world.visit("s", permit.token, 2, rng)
                    case 3:
                        async with client.acquire_many(["a", "b"]) as locks:
                            await world.visit("a", locks.tokens["a"], 1, rng)
                    case _:
                        async with client.session() as session, session.lock("b", wait=0) as lock:
                            await world.visit("b", lock.token, 1, rng)
        except (TimeoutError, LockHeld, Unavailable, OutcomeUnknown):
            pass  # all of these are honest answers under such conditions


@pytest.mark.parametrize("seed", range(6))
async def test_exclusion_holds_and_nothing_is_left(
    cluster: ScriptedCluster,
    clock: JumpClock,
    make_client: Callable[..., AsyncClient],
    seed: int,
) -> None:
    rng = random.Random(seed)
    world = World()
    clients = [make_client(timeout=2), make_client(cluster.urls()[rng.randrange(3)], timeout=2)]
    cluster.chaos = chaos(cluster, rng)
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(work(clients[n % 2], world, random.Random(seed * 100 + n)) for n in range(8))
        )
    cluster.chaos = None
    for name in ("a", "b"):
        assert world.tokens[name] == sorted(set(world.tokens[name]))
    assert set(world.inside.values()) == {0}
    async with asyncio.timeout(30):
        while cluster.table.machine.lock_views() or cluster.table.machine.counts().sessions:
            await asyncio.sleep(0.02)
    cluster.table.machine.check_invariants()
