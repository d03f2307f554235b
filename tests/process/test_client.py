"""The client against real nodes that are killed, stopped and started again."""

# ruff: noqa: PT012 - what is raised comes out of the end of an `async with`
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsync import (
    AsyncClient,
    Client,
    DistSyncError,
    Election,
    Lock,
    LockLost,
    OutcomeUnknown,
    Unavailable,
)
from process.running import Up, running_cluster
from process.running import eventually as eventually_in_thread
from waiting_for import eventually


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_cluster(tmp_path_factory.mktemp("client") / "cluster") as up:
        yield up


@pytest.fixture(autouse=True)
def whole_again(up: Up) -> Iterator[None]:
    """Between tests all three nodes run and agree on a leader."""
    yield
    for pid in up.pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    with Client(up.urls) as client:
        for url in up.urls:
            eventually_in_thread(lambda url=url: client.status(url).ready, what=f"{url} ready")


async def renewed(leased: Lock | Election, seconds: float) -> None:
    """Wait until its lease lasts that much longer than it does now."""

    def deadline() -> float:
        return time.monotonic() + leased.expires_in()

    target = deadline() + seconds
    await eventually(lambda: deadline() > target)


async def leader_pid(up: Up, client: AsyncClient) -> int:
    name = (await client.status()).leader
    while name is None:
        await asyncio.sleep(0.05)
        name = (await client.status()).leader
    return up.pids[name]


async def test_a_held_lock_outlives_its_leader(up: Up) -> None:
    async with AsyncClient(up.urls) as client, client.lock("outlives", ttl=6) as lock:
        os.kill(await leader_pid(up, client), signal.SIGKILL)
        await renewed(lock, 4)  # twice at least
        lock.check()
        assert (await client.lock_info("outlives")).token == lock.token


async def test_counting_under_a_lock_stays_right_while_leaders_are_killed(up: Up) -> None:
    """Every increment is made under the lock, tokens rise, and no call is done twice."""
    counter, tokens = 0, []
    killed = 0

    async def count(client: AsyncClient, number: int) -> None:
        nonlocal counter
        for _ in range(15):
            async with client.lock("counter", ttl=10) as lock:
                seen = counter
                await asyncio.sleep(0.005)
                counter = seen + 1
                tokens.append(lock.token)

    async def kill(client: AsyncClient) -> None:
        nonlocal killed
        for threshold in (10, 30):
            await eventually(lambda t=threshold: counter >= t, within_seconds=60)
            os.kill(await leader_pid(up, client), signal.SIGKILL)
            killed += 1

    async with AsyncClient(up.urls, timeout=30) as one, AsyncClient(up.urls[:1], timeout=30) as two:
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            group.create_task(kill(one))
            for number in range(4):
                group.create_task(count(one if number % 2 else two, number))
        assert not (await one.lock_info("counter")).held
    assert counter == 60
    assert tokens == sorted(set(tokens))
    assert killed == 2


async def test_waiters_keep_their_places_when_the_leader_is_stopped(up: Up) -> None:
    """No connection breaks: that the leader is gone is found out by asking."""
    async with AsyncClient(up.urls) as client:
        holder = await client.lock("places", ttl=30, owner="holder").acquire()
        served: list[int] = []

        async def serve(number: int) -> None:
            async with client.lock("places", ttl=30):
                served.append(number)

        async def waiting() -> int:
            return (await client.lock_info("places")).waiter_count

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(serve(number))
                while await waiting() <= number:
                    await asyncio.sleep(0.01)
            pid = await leader_pid(up, client)
            os.kill(pid, signal.SIGSTOP)
            try:
                while await waiting() < 3:
                    await asyncio.sleep(0.05)
                await holder.release()
                await eventually(lambda: len(served) == 3, within_seconds=40)
            finally:
                os.kill(pid, signal.SIGCONT)
        assert served == [0, 1, 2]


async def test_without_a_quorum_the_body_is_cancelled_in_time_and_calls_end_honestly(
    up: Up,
) -> None:
    async with AsyncClient(up.urls, timeout=3) as client:
        names = [name for name in up.pids if up.pids[name] != await leader_pid(up, client)]
        with pytest.raises(LockLost):
            async with client.lock("quorum", ttl=2):
                for name in names:
                    os.kill(up.pids[name], signal.SIGSTOP)
                async with asyncio.timeout(2.2):
                    await asyncio.Event().wait()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await client.lock("quorum", wait=0).acquire()
        for name in names:
            os.kill(up.pids[name], signal.SIGCONT)
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(Unavailable, OutcomeUnknown):
                    async with client.lock("quorum", wait=10):
                        break


HOLDER = """
    import sys, time
    from distsync import Client, LockLost

    with Client(sys.argv[1]) as client:
        try:
            with client.lock("paused", ttl=2) as lock:
                print("held", lock.token, flush=True)
                sys.stdin.readline()
                try:
                    lock.check()
                    print("still held", flush=True)
                except LockLost:
                    print("told", flush=True)
        except LockLost:
            print("lost", flush=True)
"""


ASYNC_HOLDER = """
    import asyncio, sys
    from distsync import AsyncClient, LockLost

    async def main():
        async with AsyncClient(sys.argv[1]) as client:
            try:
                async with client.lock("paused", ttl=2) as lock:
                    print("held", lock.token, flush=True)
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        print("told", flush=True)
                        raise
            except LockLost:
                print("lost", flush=True)

    asyncio.run(main())
"""


@pytest.mark.parametrize("holder", [HOLDER, ASYNC_HOLDER], ids=["thread", "asyncio"])
def test_a_holder_paused_past_its_ttl_is_told_and_fenced(up: Up, holder: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(holder), up.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        held, token = process.stdout.readline().split()
        assert held == "held"
        process.send_signal(signal.SIGSTOP)
        with Client(up.urls) as client, client.lock("paused", wait=20) as lock:
            assert lock.token > int(token)
            process.send_signal(signal.SIGCONT)
            output, _ = process.communicate("\n", timeout=30)
            assert output.split() == ["told", "lost"]
            lock.check()
    finally:
        process.kill()
        process.wait()


async def test_a_cancelled_wait_frees_the_queue_of_real_nodes(up: Up) -> None:
    async with AsyncClient(up.urls) as client, AsyncClient(up.urls[-1]) as other:
        async with client.lock("cancelled", ttl=30, owner="holder"):
            for patient in (client, other, client):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await patient.lock("cancelled").acquire()
            async with asyncio.timeout(10):
                while (await client.lock_info("cancelled")).waiter_count:
                    await asyncio.sleep(0.02)
        async with asyncio.timeout(10), other.lock("cancelled"):
            pass


async def test_sessions_elections_and_barriers_go_through_a_killed_leader(up: Up) -> None:
    async with AsyncClient(up.urls, timeout=30) as one, AsyncClient(up.urls, timeout=30) as two:
        elections = [one.election("e", ttl=6), two.election("e", ttl=6)]
        async with asyncio.timeout(60), one.session(ttl=6) as session, session.lock("s") as held:
            await elections[0].campaign()
            next_term = asyncio.create_task(elections[1].campaign())
            parties = [asyncio.create_task(c.barrier("b", 3, ttl=6).wait()) for c in (one, two)]
            while await one.barrier("b", 3).waiting() < 2:
                await asyncio.sleep(0.05)
            os.kill(await leader_pid(up, one), signal.SIGKILL)
            await renewed(held, 3)
            await renewed(elections[0], 3)
            held.check()
            elections[0].check()
            assert not any(party.done() for party in parties)
            await asyncio.gather(two.barrier("b", 3, ttl=6).wait(), *parties)
            await elections[0].resign()
            await next_term
            assert elections[1].token > elections[0].token
            await elections[1].resign()


def test_threads_share_one_client(up: Up, tmp_path: Path) -> None:
    with Client(up.urls) as client:
        latch = client.latch("threads", 10)

        def work() -> None:
            with client.lock("threads/lock", ttl=10) as lock:
                lock.check()
            latch.count_down()

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(10) as pool:
            for future in [pool.submit(work) for _ in range(10)]:
                future.result(60)
        latch.wait(10)
        latch.reset()
        with pytest.raises(DistSyncError):
            client.lock("", wait=0).acquire()
