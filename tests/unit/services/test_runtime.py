"""The shell around a replica: what leaves when, and what becomes of calls when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from distsync_node import logs
from distsync_node.errors import NoLeader, OutcomeUnknown, StartupError
from distsync_node.raft.types import Persist, VoteResponse
from distsync_node.replica.types import (
    Answer,
    Rejected,
    RejectReason,
    ReplicaEffect,
    ReplicaEvent,
    ReplicaOptions,
    Reply,
    SubmitRead,
)
from distsync_node.services.runtime import NEVER_MS, Runtime, boottime_ms
from distsync_node.storage import Storage
from unit.services.nodes import (
    TestNode,
    acquire,
    from_b,
    running,
    token_of,
    vote_request,
)
from waiting_for import eventually


def test_time_is_that_of_the_clock_which_counts_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def read_clock(clock: int) -> int:
        read.append(clock)
        return 5_999_999

    monkeypatch.setattr(time, "clock_gettime_ns", read_clock)
    assert boottime_ms() == 5
    assert read == [time.CLOCK_BOOTTIME]


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[TestNode]:
    """A node that leads a cluster of its own."""
    node = TestNode("n1", tmp_path)
    await node.start()
    await node.service.bootstrap("k", (node.member,))
    node.campaign()
    await eventually(lambda: node.runtime.replica.is_ready_leader, "its leadership")
    yield node
    await node.stop()


async def test_a_vote_leaves_only_when_it_is_on_disk(
    member: TestNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    write = member.storage.write

    def noted_write(batch: Sequence[Persist]) -> None:
        votes = [p.hard_state.vote for p in batch if p.hard_state is not None]
        write(batch)
        if "b" in votes:
            happened.append("on disk")

    monkeypatch.setattr(member.storage, "write", noted_write)

    def respond(answer: Answer) -> bool:
        votes = [m for m in answer.messages if isinstance(m, VoteResponse)]
        assert [vote.granted for vote in votes] == [True]
        happened.append("answered")
        return True

    for number in range(1, 4):  # by the thread, then on the loop if the disk is quick
        member.runtime.receive(from_b(member, vote_request(100 * number)), respond)
        await eventually(lambda number=number: len(happened) >= 2 * number, "an answer")
    assert happened == ["on disk", "answered"] * 3


async def assert_stops(node: TestNode) -> None:
    """A call that meets a bug ends the node; its own outcome is unknown."""
    # Handed over in this turn of the loop, so that nothing else meets the bug before.
    (call,) = node.runtime.run_all((acquire("a", "o"),), deadline_ms=NEVER_MS)
    await eventually(lambda: node.stopped_because, "the end")
    assert node.stopped_because == ["a bug"]
    node.service.end_requests()
    final = await asyncio.wait_for(call, 5)
    assert isinstance(final, Rejected)
    assert final.reason is RejectReason.LEADERSHIP_LOST


async def test_an_effect_that_cannot_be_executed_stops_the_node(
    alone: TestNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a step must not stay undone behind the back of the replica."""

    def fails(_self: Runtime, _effect: ReplicaEffect, _touched: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Runtime, "_execute", fails)
    await assert_stops(alone)


async def test_a_broken_promise_of_the_replica_stops_the_node(
    alone: TestNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_event: ReplicaEvent) -> list[ReplicaEffect]:
        raise ValueError("a bug")

    monkeypatch.setattr(alone.runtime.replica, "step", fails)
    await assert_stops(alone)


@pytest.mark.parametrize("who", ["leader", "follower"])
async def test_a_node_whose_state_differs_stops_and_does_not_start_again(
    who: str, tmp_path: Path
) -> None:
    options = ReplicaOptions(hash_interval=4, serves=False)
    async with running(tmp_path, options=options) as cluster:
        odd = cluster.leading if who == "leader" else cluster.following[0]
        others = [node for node in cluster.nodes if node is not odd]
        odd.runtime.replica.machine.raise_tokens(1_000)
        asking = next(node for node in cluster.following if node is not odd)
        for number in range(12):
            if odd.stopped_because:
                break
            # What the odd one proposed is in doubt; once it has stopped, there is no leader.
            with contextlib.suppress(OutcomeUnknown, NoLeader):
                await asking.service.submit(acquire(str(number), "o"), timeout_ms=1_000)
        await eventually(lambda: odd.stopped_because, "the verdict")
        assert "differs from a quorum's" in odd.stopped_because[0]
        cluster.gone.add(odd)
        if who == "leader":
            await cluster.elect_successor()
        reply = await asking.service.submit(acquire("after", "o"), timeout_ms=20_000)
        assert token_of(reply) < 1_000
        assert [node.stopped_because for node in others] == [[], []]
    with pytest.raises(StartupError, match="differ from a quorum's") as error:
        Storage.open(odd.directory)
    assert odd.storage.member_id in str(error.value)


async def test_calls_of_a_closed_runtime_are_answered(alone: TestNode) -> None:
    await alone.runtime.run(acquire("a", "holder"))
    waiting = asyncio.create_task(alone.runtime.run(acquire("a", "waiter", wait_ms=60_000)))
    await eventually(lambda: alone.runtime.replica.machine.counts().places, "a waiter")
    await alone.runtime.close()
    given_up = await asyncio.wait_for(waiting, 5)
    assert isinstance(given_up, Rejected)
    assert given_up.reason is RejectReason.LEADERSHIP_LOST  # it waits on in the replicated state
    late = await asyncio.wait_for(alone.runtime.run(acquire("b", "late")), 5)
    assert isinstance(late, Rejected)
    assert late.reason is RejectReason.STOPPED
    read = alone.runtime.ask(lambda ref: SubmitRead(now_ms=boottime_ms(), ref=ref))
    assert isinstance(await asyncio.wait_for(read, 5), Rejected)


async def test_a_call_ends_at_its_deadline_and_with_it_its_wait(alone: TestNode) -> None:
    held = await alone.runtime.run(acquire("a", "holder"))
    assert isinstance(held, Reply)
    final = await alone.runtime.run(
        acquire("a", "waiter", wait_ms=60_000), deadline_ms=boottime_ms() + 50
    )
    assert isinstance(final, Rejected)
    assert final.reason is RejectReason.LEADERSHIP_LOST
    machine = alone.runtime.replica.machine
    await eventually(lambda: machine.counts().places == 0, "the end of the wait")


async def test_watchers_hear_of_their_lock_and_are_forgotten(alone: TestNode) -> None:
    changes = alone.service.watch("a")
    await anext(changes)
    other = asyncio.ensure_future(anext(alone.service.watch("b")))
    await other
    change = asyncio.ensure_future(anext(changes))
    await alone.runtime.run(acquire("a", "o"))
    await asyncio.wait_for(change, 5)
    await changes.aclose()  # type: ignore[attr-defined]
    assert "a" not in alone.runtime._watchers


async def test_what_a_node_logs_of_itself_belongs_to_no_request(
    member: TestNode, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str | None] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("stopping"):
                seen.append(logs.request_id.get())

    handler = Note()
    logging.getLogger("distsync_node.services.runtime").addHandler(handler)
    logs.request_id.set("a request that happens to be under way")
    member.runtime.stop("for a test")
    logging.getLogger("distsync_node.services.runtime").removeHandler(handler)
    assert seen == [None]
