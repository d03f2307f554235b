"""The holder's arithmetic of a lease."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from distsync import LockLost, NotHolder, Unavailable
from distsync.background import Background
from distsync.lease import Lease, Span
from unit.client.jump_clock import JumpClock
from waiting_for import eventually


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    background = Background()
    yield background
    await background.close()


class Renewals:
    """Answers renewals with what a test puts in."""

    def __init__(self, clock: JumpClock) -> None:
        self.clock = clock
        self.asked_until: list[float] = []
        self.sent_at: list[float] = []
        self.errors: list[Exception] = []
        self.late_seconds = 0.0

    async def __call__(self, until: float) -> Span:
        self.asked_until.append(until)
        sent_at = self.clock.now()
        self.sent_at.append(sent_at)
        if self.errors:
            raise self.errors.pop(0)
        self.clock.offset += self.late_seconds
        return Span(sent_at, 10.0)


def lease_of(clock: JumpClock, background: Background, renewals: Renewals) -> Lease:
    span = Span(clock.now(), 10.0)
    return Lease(clock, background, span=span, renew=renewals, error=LockLost, name="a")


async def test_deadline_is_send_time_plus_ttl_less_one_percent_and_50_ms(
    clock: JumpClock, background: Background
) -> None:
    sent_at = clock.now()
    clock.offset += 3  # the answer was long on its way
    lease = Lease(
        clock,
        background,
        span=Span(sent_at, 10.0),
        renew=Renewals(clock),
        error=LockLost,
        name="a",
    )
    assert lease.deadline == pytest.approx(sent_at + 10 - 0.1 - 0.05)
    assert lease.ends_at == pytest.approx(sent_at + 10)
    assert lease.remaining() <= 6.85
    lease.stop()


async def test_each_renewal_counts_from_its_own_sending(
    clock: JumpClock, background: Background
) -> None:
    renewals = Renewals(clock)
    renewals.late_seconds = 2.0
    lease = lease_of(clock, background, renewals)
    first_deadline = lease.deadline
    clock.jump(10 / 3 + 0.001)
    await eventually(lambda: lease.deadline > first_deadline)
    assert renewals.asked_until == [first_deadline]
    assert lease.deadline == pytest.approx(renewals.sent_at[0] + 10 - 0.15)
    assert lease.remaining() <= 10 - 0.15 - 2
    lease.stop()


async def test_failed_renewals_are_repeated_and_the_deadline_stands(
    clock: JumpClock, background: Background
) -> None:
    renewals = Renewals(clock)
    renewals.errors = [Unavailable() for _ in range(1000)]
    lost: list[LockLost] = []
    lease = lease_of(clock, background, renewals)
    lease.subscribe(lost.append)
    for seconds in (3.4, 2.0, 2.0, 1.0):
        clock.jump(seconds)
        asked = len(renewals.asked_until)
        await eventually(lambda n=asked: len(renewals.asked_until) > n)
        assert lease.is_live
    clock.jump(1.5)
    assert not lease.is_live
    await eventually(lambda: lost)
    assert len(lost) == 1


async def test_a_refused_renewal_ends_it_at_once(clock: JumpClock, background: Background) -> None:
    renewals = Renewals(clock)
    renewals.errors = [NotHolder("gone")]
    lost: list[LockLost] = []
    lease = lease_of(clock, background, renewals)
    lease.subscribe(lost.append)
    clock.jump(3.4)
    await eventually(lambda: lost)
    assert not lease.is_live
    with pytest.raises(LockLost, match="gone"):
        lease.check()


async def test_a_lease_given_back_is_neither_live_nor_lost(
    clock: JumpClock, background: Background
) -> None:
    renewals = Renewals(clock)
    lost: list[LockLost] = []
    lease = lease_of(clock, background, renewals)
    lease.subscribe(lost.append)
    lease.stop()
    clock.jump(100)
    lease.check()
    assert not lease.is_live
    assert lease.remaining() == 0
    assert not clock.timers
    assert not renewals.asked_until
    assert not lost
