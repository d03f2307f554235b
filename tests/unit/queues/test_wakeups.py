"""Who of those who wait for a queue claims next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsync_node.errors import InvariantViolation, LimitReached
from distsync_node.queues import wakeups
from distsync_node.queues.wakeups import Claim, Effect, Expire, GiveBack, Move, WaiterId, Wakeups


class Poll:
    """A small shell: parks, reports, and keeps the time."""

    def __init__(self) -> None:
        self.wakeups = Wakeups()
        self.now = 0

    def enter(
        self, queue: str = "q", wanted: int = 1, wait_ms: int = 10_000
    ) -> tuple[WaiterId, list[Effect]]:
        deadline = self.now + wait_ms
        return self.wakeups.park(queue, wanted=wanted, deadline_ms=deadline, now_ms=self.now)

    def park(
        self, queue: str = "q", wanted: int = 1, wait_ms: int = 10_000, next_ms: int | None = None
    ) -> WaiterId:
        """Enter and let the claim that this leads to come back empty."""
        waiter, effects = self.enter(queue, wanted, wait_ms)
        for effect in effects:
            assert isinstance(effect, Claim)
            assert self.came_back(effect.waiter, 0, next_ms=next_ms) == []
        return waiter

    def came_back(
        self, waiter: WaiterId, got: int, *, more: bool = False, next_ms: int | None = None
    ) -> list[Effect]:
        return self.wakeups.claimed(waiter, got=got, more=more, next_ms=next_ms, now_ms=self.now)

    def at(self, now_ms: int) -> list[Effect]:
        self.now = now_ms
        return self.wakeups.tick(now_ms)


@pytest.fixture
def poll() -> Poll:
    return Poll()


def claims(*waiters: WaiterId, queue: str = "q") -> list[Effect]:
    return [Claim(waiter=one, queue=queue) for one in waiters]


def test_a_signal_wakes_as_many_as_messages_became_ready_first_come_first_served(
    poll: Poll,
) -> None:
    first, second, third = poll.park(), poll.park(), poll.park()
    assert poll.wakeups.signal("q", 2) == claims(first, second)
    assert poll.wakeups.signal("q", 5) == claims(third)


def test_the_first_poll_of_a_queue_claims_at_once(poll: Poll) -> None:
    first, effects = poll.enter()
    assert effects == claims(first)
    assert poll.came_back(first, 1) == []
    assert len(poll.wakeups) == 0


def test_a_new_poll_has_the_one_that_waits_longest_look(poll: Poll) -> None:
    first = poll.park()
    second, effects = poll.enter()
    assert effects == claims(first)
    assert poll.came_back(first, 1) == claims(second)


def test_a_signal_before_the_first_claim_came_back_is_not_lost(poll: Poll) -> None:
    first, _ = poll.enter()
    assert poll.wakeups.signal("q", 1) == []
    assert poll.came_back(first, 0) == claims(first)


def test_a_signal_of_another_queue_wakes_nobody(poll: Poll) -> None:
    poll.park()
    assert poll.wakeups.signal("other", 1) == []
    assert poll.wakeups.signal("q", 0) == []


def test_a_waiter_that_found_nothing_keeps_its_place(poll: Poll) -> None:
    first = poll.park()
    poll.wakeups.signal("q", 1)
    second = poll.park()
    assert poll.came_back(first, 0) == []
    assert poll.wakeups.signal("q", 2) == claims(first, second)


def test_a_waiter_that_got_messages_has_ended(poll: Poll) -> None:
    first = poll.park()
    poll.wakeups.signal("q", 1)
    assert poll.came_back(first, 1) == []
    assert len(poll.wakeups) == 0
    assert poll.wakeups.signal("q", 1) == []


def test_a_full_claim_wakes_the_next_waiter(poll: Poll) -> None:
    first, second = poll.park(wanted=3), poll.park()
    poll.wakeups.signal("q", 1)
    assert poll.came_back(first, 3) == claims(second)


def test_a_claim_that_is_not_full_wakes_nobody(poll: Poll) -> None:
    first, _ = poll.park(wanted=3), poll.park()
    poll.wakeups.signal("q", 1)
    assert poll.came_back(first, 2) == []


def test_a_signal_during_a_claim_makes_it_claim_again_if_it_comes_back_empty(poll: Poll) -> None:
    only = poll.park()
    poll.wakeups.signal("q", 1)
    assert poll.wakeups.signal("q", 1) == []  # nobody is idle
    assert poll.came_back(only, 0) == claims(only)
    assert poll.came_back(only, 0) == []


def test_a_pop_that_stopped_at_a_bound_is_repeated(poll: Poll) -> None:
    only = poll.park()
    poll.wakeups.signal("q", 1)
    assert poll.came_back(only, 0, more=True) == claims(only)


def test_a_queue_with_waiters_is_looked_at_every_second_by_the_first_of_them(poll: Poll) -> None:
    first, _ = poll.park(), poll.park()
    assert poll.wakeups.next_tick_ms() == 1_000
    assert poll.at(999) == []
    assert poll.at(1_000) == claims(first)
    assert poll.came_back(first, 0) == []
    assert poll.at(1_999) == []
    assert poll.at(2_000) == claims(first)


def test_a_queue_is_looked_at_when_a_delay_or_a_claim_ends(poll: Poll) -> None:
    first = poll.park(next_ms=40)
    assert poll.wakeups.next_tick_ms() == 40
    assert poll.at(40) == claims(first)
    assert poll.came_back(first, 0, next_ms=7) == []
    assert poll.at(47) == claims(first)


def test_a_queue_is_looked_at_when_a_delay_ends_that_began_meanwhile(poll: Poll) -> None:
    first = poll.park()
    poll.wakeups.expect("q", 40, poll.now)
    poll.wakeups.expect("q", 70, poll.now)
    poll.wakeups.expect("nobody waits for this", 10, poll.now)
    assert poll.wakeups.next_tick_ms() == 40
    assert poll.at(40) == claims(first)
    assert poll.came_back(first, 0, next_ms=30) == []
    assert poll.at(70) == claims(first)


def test_only_waiters_of_queues_that_are_elsewhere_are_moved(poll: Poll) -> None:
    here, there = poll.park("here"), poll.park("there")
    moved = poll.wakeups.move(lambda queue: queue == "there")
    assert moved == [Move(waiter=there, queue="there")]
    assert poll.wakeups.signal("here", 1) == claims(here, queue="here")


def test_a_waiter_expires_at_its_deadline(poll: Poll) -> None:
    first, second = poll.park(wait_ms=300), poll.park(wait_ms=500)
    assert poll.at(299) == []
    assert poll.at(300) == [Expire(waiter=first)]
    assert poll.wakeups.signal("q", 1) == claims(second)


def test_a_claim_under_way_at_the_deadline_decides(poll: Poll) -> None:
    first, second = poll.park(wait_ms=300), poll.park(wait_ms=300)
    poll.wakeups.signal("q", 2)
    assert poll.at(300) == []
    assert poll.came_back(first, 1) == []
    assert poll.came_back(second, 0) == [Expire(waiter=second)]
    assert len(poll.wakeups) == 0


def test_what_was_claimed_for_one_that_left_is_given_back_and_the_next_one_claims(
    poll: Poll,
) -> None:
    first, second = poll.park(), poll.park()
    poll.wakeups.signal("q", 1)
    poll.wakeups.leave(first)
    assert poll.came_back(first, 1) == [GiveBack(waiter=first), *claims(second)]


def test_one_that_left_with_nothing_claimed_leaves_nothing_behind(poll: Poll) -> None:
    first = poll.park()
    poll.wakeups.signal("q", 1)
    poll.wakeups.leave(first)
    poll.wakeups.leave(first)
    assert poll.came_back(first, 0) == []
    assert len(poll.wakeups) == 0
    assert list(poll.wakeups.queues()) == []


def test_one_that_left_before_its_turn_is_passed_over(poll: Poll) -> None:
    first, second = poll.park(), poll.park()
    poll.wakeups.leave(first)
    assert poll.wakeups.signal("q", 1) == claims(second)


def test_a_new_epoch_moves_all_in_their_order(poll: Poll) -> None:
    first, second, third = poll.park(), poll.park("r"), poll.park()
    poll.wakeups.signal("q", 1)
    assert poll.wakeups.move(lambda _queue: True) == [
        Move(waiter=second, queue="r"),
        Move(waiter=third, queue="q"),
    ]
    assert poll.came_back(first, 0) == [Move(waiter=first, queue="q")]
    assert len(poll.wakeups) == 0


def test_one_that_gets_its_messages_while_the_epoch_changes_is_not_moved(poll: Poll) -> None:
    first = poll.park()
    poll.wakeups.signal("q", 1)
    poll.wakeups.move(lambda _queue: True)
    assert poll.came_back(first, 1) == []
    assert len(poll.wakeups) == 0


def test_too_many_waiters_are_refused(poll: Poll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeups, "MAX_WAITERS_PER_QUEUE", 2)
    monkeypatch.setattr(wakeups, "MAX_WAITERS", 3)
    poll.park()
    poll.park()
    with pytest.raises(LimitReached):
        poll.park()
    poll.park("r")
    with pytest.raises(LimitReached):
        poll.park("s")


def test_a_report_of_a_claim_that_was_not_asked_for_is_a_bug(poll: Poll) -> None:
    first = poll.park()
    with pytest.raises(InvariantViolation):
        poll.came_back(first, 1)


def test_waiters_that_come_and_go_leave_no_memory(poll: Poll) -> None:
    poll.park()
    for _ in range(5_000):
        poll.wakeups.leave(poll.park())
    held = poll.wakeups._deadlines, poll.wakeups._queues["q"].idle
    assert all(len(one) < 200 for one in held)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_wake_up_is_lost_and_nobody_overtakes(data: st.DataObject) -> None:
    """Messages, polls and claims in any order; a claim sees what was there when it was carried out,
    which may be before or after a push whose signal comes later."""
    poll = Poll()
    messages = unsignalled = 0
    parked: list[tuple[WaiterId, int]] = []  # all who wait, in order, with what they want
    sent: list[WaiterId] = []  # claims on their way to Redis
    found: list[tuple[WaiterId, int]] = []  # and on their way back

    def carry_out(effects: list[Effect]) -> None:
        for effect in effects:
            assert isinstance(effect, Claim)
            busy = {*sent, *(waiter for waiter, _ in found)}
            idle = [waiter for waiter, _ in parked if waiter not in busy]
            assert effect.waiter == min(idle)
            sent.append(effect.waiter)

    def run_one_claim() -> None:
        nonlocal messages
        waiter = sent.pop(0)
        got = min(messages, dict(parked)[waiter])
        messages -= got
        found.append((waiter, got))

    def report_one() -> None:
        waiter, got = found.pop(0)
        if got:
            parked.remove((waiter, dict(parked)[waiter]))
        carry_out(poll.came_back(waiter, got))

    steps = st.sampled_from(("park", "push", "signal", "run", "report"))
    for step in data.draw(st.lists(steps, min_size=10, max_size=80)):
        if step == "park":
            wanted = data.draw(st.integers(1, 3))
            waiter, effects = poll.enter(wanted=wanted)
            parked.append((waiter, wanted))
            carry_out(effects)
        elif step == "push":
            count = data.draw(st.integers(1, 3))
            messages += count
            unsignalled += count
        elif step == "signal" and unsignalled:
            carry_out(poll.wakeups.signal("q", unsignalled))
            unsignalled = 0
        elif step == "run" and sent:
            run_one_claim()
        elif step == "report" and found:
            report_one()
    if unsignalled:
        carry_out(poll.wakeups.signal("q", unsignalled))
    while sent or found:
        while sent:
            run_one_claim()
        report_one()
    assert not (messages and parked), "messages and waiters, and nobody claims"
    assert len(poll.wakeups) == len(parked)
