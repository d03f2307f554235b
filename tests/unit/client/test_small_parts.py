"""Durations, errors, the clock and the guard of a body."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

import distsync
from distsync import errors
from distsync.body import BodyGuard
from distsync.clock import SystemClock, sleep_until
from distsync.durations import to_milliseconds, to_seconds
from distsync.errors import DistSyncError, error_from_problem
from distsync.identity import Identity, new_request_id


@pytest.mark.parametrize(
    ("given", "seconds", "milliseconds"),
    [
        (10, 10.0, 10_000),
        (0.1, 0.1, 100),
        (0, 0.0, 0),
        (0.0001, 0.0001, 1),
        (0.29, 0.29, 290),
        (timedelta(minutes=2), 120.0, 120_000),
    ],
)
def test_durations_are_seconds_or_timedeltas(given: Any, seconds: float, milliseconds: int) -> None:
    assert to_seconds(given, "ttl") == seconds
    assert to_milliseconds(seconds) == milliseconds


@pytest.mark.parametrize("given", [-1, float("nan"), float("inf"), timedelta(seconds=-1)])
def test_impossible_durations_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="ttl"):
        to_seconds(given, "ttl")


@pytest.mark.parametrize("given", ["10s", None, True])
def test_other_types_are_no_durations(given: Any) -> None:
    with pytest.raises(TypeError, match="ttl"):
        to_seconds(given, "ttl")


def all_errors(root: type[DistSyncError]) -> list[type[DistSyncError]]:
    return [root, *(e for child in root.__subclasses__() for e in all_errors(child))]


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    drawing = (errors.__doc__ or "").split("A class carries")[0]
    for kind in all_errors(DistSyncError):
        assert getattr(distsync, kind.__name__) is kind
        assert f"{kind.__name__} " in drawing


def test_the_codes_of_the_api_are_those_of_the_client() -> None:
    from distsync_node import errors as node_errors

    for name in errors.__all__:
        ours, theirs = getattr(errors, name), getattr(node_errors, name, None)
        if theirs is not None and name != "DistSyncError":
            assert (ours.code, ours.status) == (theirs.code, theirs.status), name


def test_an_unknown_code_keeps_its_name_and_falls_back_on_its_status() -> None:
    for status, kind in (
        (409, errors.Conflict),
        (418, errors.BadRequest),
        (599, errors.ServerError),
    ):
        error = error_from_problem(
            status=status, code="new", detail="something new", retriable=True, fields={"a": 1}
        )
        assert type(error) is kind
        assert (error.code, error.status, error.retriable) == ("new", status, True)
        assert str(error) == "something new"
        assert error.fields == {"a": 1}
    assert errors.ServerError.code == "internal"


def test_everything_public_is_importable() -> None:
    for name in distsync.__all__:
        assert getattr(distsync, name)


async def test_the_clock_wakes_sleepers_after_a_suspension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CLOCK_MONOTONIC stood still meanwhile, so the event loop knows nothing of it."""
    slept = 0.0
    from distsync import clock as module

    real = module._boottime
    monkeypatch.setattr(module, "_boottime", lambda: real() + slept)
    clock = SystemClock()
    sleeping = asyncio.create_task(sleep_until(clock, clock.now() + 3600))
    await asyncio.sleep(0.01)
    slept = 4000.0
    async with asyncio.timeout(5):
        await sleeping


def test_the_clock_goes_on_where_there_is_no_boot_time() -> None:
    """As on a developer's machine that does not run Linux; the nodes may be anywhere."""
    program = (
        "import asyncio, time\n"
        "del time.CLOCK_BOOTTIME\n"
        "from distsync.clock import SystemClock, sleep_until\n"
        "clock = SystemClock()\n"
        "before = clock.now()\n"
        "asyncio.run(sleep_until(clock, before + 0.02))\n"
        "assert before + 0.02 <= clock.now() <= time.monotonic()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


async def test_cancelled_timers_of_the_clock_are_forgotten() -> None:
    clock = SystemClock()
    called: list[int] = []
    clock.call_at(clock.now() + 0.02, lambda: called.append(1)).cancel()
    clock.call_at(clock.now() + 0.01, lambda: called.append(2))
    await sleep_until(clock, clock.now() + 0.03)
    await sleep_until(clock, clock.now() - 1)
    assert called == [2]
    assert not clock._timers


async def test_a_guard_takes_back_a_cancellation_that_was_not_delivered() -> None:
    """The body ends in the very step in which it is cancelled."""
    guard = BodyGuard()
    guard.enter()
    guard.interrupt("lost")
    assert not await guard.leave(None)
    await asyncio.sleep(0)
    guard.enter()
    guard.interrupt("lost")
    assert not await guard.leave(ZeroDivisionError())
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_guard_lets_a_foreign_cancellation_through() -> None:
    async def body() -> None:
        guard = BodyGuard()
        guard.enter()
        guard.interrupt("lost")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await guard.leave(None)

    task = asyncio.create_task(body())
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_forked_process_is_somebody_else() -> None:
    """A client made before the fork and first used after it, as with preloading servers."""
    identity = Identity("web")
    before = (identity.client_id, identity.new_owner(), new_request_id())
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ids = (identity.client_id, identity.new_owner(), new_request_id())
            os.write(writer, "\n".join(ids).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    after = os.read(reader, 1000).decode().split("\n")
    os.close(reader)
    assert len(after) == 3
    assert identity.client_id == before[0]
    assert not set(after) & set(before)
    assert after[1].startswith(after[0])
    assert after[2].partition("-")[0] != before[2].partition("-")[0]
    assert all(text.startswith("web-") for text in (before[0], after[0]))


def test_ids_never_come_twice() -> None:
    assert len({new_request_id() for _ in range(1000)}) == 1000
    identities = [Identity("a name: with ünusual characters") for _ in range(100)]
    assert len({identity.client_id for identity in identities}) == 100
    assert identities[0].client_id.startswith("a-name--with--nusual-characters-")
