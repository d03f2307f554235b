"""What wake-ups, kills and a million messages amount to."""

from __future__ import annotations

from bench.failover import gathered
from bench.queue_delays import Million, Wakeup, ratios

MILLION = Million(
    messages=1_000_000,
    calls=3_000,
    empty_push_ms=2.0,
    full_push_ms=2.5,
    empty_pop_ms=2.0,
    full_pop_ms=4.0,
)


def test_each_wake_up_is_held_against_ten_milliseconds() -> None:
    woken = [
        Wakeup(where="same node", count=300, p50_ms=1.0, p99_ms=9.0, longest_ms=11.0),
        Wakeup(where="other node", count=300, p50_ms=500.0, p99_ms=990.0, longest_ms=1_000.0),
    ]
    same, other = ratios(woken, None, None, full=True)
    assert (same.ratio, same.goal, same.met) == (9.0, 10.0, True)
    assert (other.ratio, other.met) == (990.0, False)
    assert "other node" in other.name


def test_a_kill_after_which_nobody_was_served_leaves_no_figure() -> None:
    killed = gathered("distsync", "", [0.1, None, 0.2], [])
    median, longest = ratios([], killed, None, full=True)
    assert median.ratio is None
    assert longest.ratio == 0.2
    served = gathered("distsync", "", [0.1, 0.3, 0.2], [])
    assert ratios([], served, None, full=True)[0].ratio == 0.2


def test_a_million_is_held_against_none_and_a_quick_run_has_no_goal() -> None:
    push, pop = ratios([], None, MILLION, full=True)
    assert (push.ratio, push.goal, push.met) == (1.25, 1.5, True)
    assert (pop.ratio, pop.met) == (2.0, False)
    assert [ratio.met for ratio in ratios([], None, MILLION, full=False)] == [None, None]
