"""The checker: hand-made histories, a brute-force oracle on tiny ones, and its bounds."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checker.history import NEVER_NS, Operation, read_history, write_history
from checker.linearizability import Model, Verdict, check, check_history, failures
from checker.models import LockModel, RegisterModel

MS = 1_000_000
EXACT = LockModel(drift=0.0, slack_ms=0)


def operation(
    client: str,
    op: str,
    call_ms: float,
    return_ms: float | None,
    args: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    key: str = "k",
) -> Operation:
    pending = return_ms is None
    return Operation(
        client=client,
        key=key,
        op=op,
        call_ns=int(call_ms * MS),
        return_ns=NEVER_NS if return_ms is None else int(return_ms * MS),
        args=args or {},
        result=None if pending else (result or {"status": "ok"}),
    )


def write(client: str, value: object, call_ms: float, return_ms: float | None) -> Operation:
    return operation(client, "write", call_ms, return_ms, {"value": value})


def read(client: str, value: object, call_ms: float, return_ms: float | None) -> Operation:
    return operation(client, "read", call_ms, return_ms, {}, {"status": "ok", "value": value})


def acquire(
    client: str,
    token: int | str | None,
    call_ms: float,
    return_ms: float | None,
    *,
    mode: str = "exclusive",
    ttl_ms: int = 1_000,
    limit: int | None = None,
) -> Operation:
    """An acquire; `token` may be a status instead."""
    result = {"status": token} if isinstance(token, str) else {"status": "granted", "token": token}
    args = {"owner": client, "mode": mode, "ttl_ms": ttl_ms, "limit": limit}
    return operation(client, "acquire", call_ms, return_ms, args, result)


def held(
    client: str, op: str, token: int, call_ms: float, return_ms: float | None, status: str = "ok"
) -> Operation:
    args = {"owner": client, "token": token, "ttl_ms": 1_000}
    return operation(client, op, call_ms, return_ms, args, {"status": status})


def look(
    client: str, holders: list[tuple[str, int]], call_ms: float, return_ms: float
) -> Operation:
    seen = [{"owner": owner, "token": token, "mode": "exclusive"} for owner, token in holders]
    result = {"status": "ok", "holders": seen}
    return operation(client, "read", call_ms, return_ms, {}, result)


REGISTER_HISTORIES = {
    "empty": (True, []),
    "a read sees the write before it": (True, [write("a", 1, 0, 1), read("b", 1, 2, 3)]),
    "a read misses the write before it": (False, [write("a", 1, 0, 1), read("b", None, 2, 3)]),
    "concurrent reads may see either": (
        True,
        [write("a", 1, 0, 9), read("b", None, 1, 2), read("b", 1, 3, 4)],
    ),
    "a value seen is not unseen": (
        False,
        [write("a", 1, 0, 9), read("b", 1, 1, 2), read("c", None, 3, 4)],
    ),
    "a pending write may take effect late": (
        True,
        [write("a", 1, 0, None), read("b", None, 1, 2), read("b", 1, 8, 9)],
    ),
    "a pending write may never take effect": (
        True,
        [write("a", 1, 0, None), write("b", 2, 1, 2), read("b", 2, 8, 9)],
    ),
    "a pending write takes effect once": (
        False,
        [
            write("a", 1, 0, None),
            read("b", 1, 1, 2),
            write("b", 2, 3, 4),
            read("b", 1, 5, 6),
        ],
    ),
    "two readers disagree on the order of two writes": (
        False,
        [
            write("a", 1, 0, 20),
            write("b", 2, 0, 20),
            read("c", 1, 1, 2),
            read("d", 2, 3, 4),
            read("c", 1, 5, 6),
        ],
    ),
    "only one compare-and-set of the same value wins": (
        False,
        [
            operation("a", "compare_and_set", 0, 5, {"expected": None, "value": 1}),
            operation("b", "compare_and_set", 1, 6, {"expected": None, "value": 2}),
        ],
    ),
    "the compare-and-set that lost says so": (
        True,
        [
            operation("a", "compare_and_set", 0, 5, {"expected": None, "value": 1}),
            operation(
                "b",
                "compare_and_set",
                1,
                6,
                {"expected": None, "value": 2},
                {"status": "mismatch"},
            ),
        ],
    ),
}

LOCK_HISTORIES = {
    "one after the other": (
        True,
        [acquire("a", 1, 0, 1), held("a", "release", 1, 2, 3), acquire("b", 2, 4, 5)],
    ),
    "two hold it at once": (False, [acquire("a", 1, 0, 1), acquire("b", 2, 2, 3)]),
    "the second gets it after the lease": (
        True,
        [acquire("a", 1, 0, 1), acquire("b", 2, 2, 1_001)],
    ),
    "the second gets it one millisecond before the lease ends": (
        False,
        [acquire("a", 1, 2, 3), acquire("b", 2, 4, 1_001)],
    ),
    "leases that must follow one another need their whole time": (
        False,
        [acquire(name, token, 0, 2_999) for token, name in enumerate("abcd", 1)],
    ),
    "leases that follow one another fit": (
        True,
        [acquire(name, token, 0, 3_000) for token, name in enumerate("abcd", 1)],
    ),
    "a renewal lengthens the lease": (
        False,
        [acquire("a", 1, 0, 1), held("a", "renew", 1, 900, 901), acquire("b", 2, 1_100, 1_500)],
    ),
    "an unknown renewal may not have happened": (
        True,
        [acquire("a", 1, 0, 1), held("a", "renew", 1, 900, None), acquire("b", 2, 1_100, 1_500)],
    ),
    "a token comes twice": (
        False,
        [acquire("a", 1, 0, 1), held("a", "release", 1, 2, 3), acquire("b", 1, 4, 5)],
    ),
    "tokens fall": (
        False,
        [acquire("a", 2, 0, 1), held("a", "release", 2, 2, 3), acquire("b", 1, 4, 5)],
    ),
    "a stale read shows the holder before": (
        False,
        [
            acquire("a", 1, 0, 1),
            held("a", "release", 1, 2, 3),
            acquire("b", 2, 4, 5),
            look("c", [("a", 1)], 6, 7),
        ],
    ),
    "a lease counts from its stamp, which a read in between does not move": (
        True,
        [acquire("a", 1, 0, 900), look("c", [], 500, 600), acquire("b", 2, 950, 1_001)],
    ),
    "an expired holder may still be shown": (
        True,
        [acquire("a", 1, 0, 1), look("c", [("a", 1)], 1_500, 1_501)],
    ),
    "a holder vanishes before its lease ends": (
        False,
        [acquire("a", 1, 0, 1), look("c", [], 500, 501)],
    ),
    "a release refused while the lease runs": (
        False,
        [acquire("a", 1, 0, 1), held("a", "release", 1, 2, 3, "not_holder")],
    ),
    "a release refused after the lease": (
        True,
        [acquire("a", 1, 0, 1), held("a", "release", 1, 1_100, 1_101, "not_holder")],
    ),
    "released, and the same token works again": (
        False,
        [
            acquire("a", 1, 0, 1),
            held("a", "release", 1, 2, 3),
            held("a", "renew", 1, 4, 5),
        ],
    ),
    "refused although free": (False, [acquire("a", "lock_held", 0, 1)]),
    "refused beside a pending acquire": (
        True,
        [acquire("a", 1, 0, None), acquire("b", "lock_held", 1, 2)],
    ),
    "a lost reply that held the lock, seen by a reader": (
        True,
        [
            acquire("a", None, 0, None),
            acquire("b", "lock_held", 1, 2),
            look("c", [("a", 1)], 3, 4),
            acquire("b", 2, 5, 1_200),
        ],
    ),
    "a lost reply cannot come back after it ended": (
        False,
        [
            acquire("a", None, 0, None),
            look("c", [("a", 1)], 3, 4),
            acquire("b", 2, 5, 1_200),
            held("b", "release", 2, 1_300, 1_301),
            look("c", [("a", 1)], 1_400, 1_401),
        ],
    ),
    "a retry that came too late": (
        True,
        [acquire("a", "lock_lost", 0, 1_500), acquire("b", 2, 100, 1_400)],
    ),
    "readers share": (
        True,
        [acquire("a", 1, 0, 1, mode="shared"), acquire("b", 2, 2, 3, mode="shared")],
    ),
    "a writer beside a reader": (
        False,
        [acquire("a", 1, 0, 1, mode="shared"), acquire("b", 2, 2, 3)],
    ),
    "a semaphore over its limit": (
        False,
        [acquire(name, n, n, n + 1, mode="shared", limit=2) for n, name in enumerate("abc", 1)],
    ),
    "a semaphore at its limit": (
        True,
        [acquire(name, n, n, n + 1, mode="shared", limit=3) for n, name in enumerate("abc", 1)],
    ),
    "an upgrade beside another reader": (
        False,
        [
            acquire("a", 1, 0, 1, mode="shared"),
            acquire("b", 2, 2, 3, mode="shared"),
            operation(
                "a", "upgrade", 4, 5, {"owner": "a", "token": 1}, {"status": "granted", "token": 3}
            ),
        ],
    ),
    "an upgrade of unknown outcome may have replaced the token": (
        True,
        [
            acquire("a", 1, 0, 1, mode="shared"),
            operation("a", "upgrade", 2, None, {"owner": "a", "token": 1}),
            held("a", "renew", 1, 4, 5, "not_holder"),
            look("c", [("a", 2)], 6, 7),
        ],
    ),
    "an acquire of unknown outcome cannot have got an older token": (
        False,
        [
            acquire("a", 5, 0, 1),
            held("a", "release", 5, 2, 3),
            acquire("b", None, 4, None),
            look("c", [("b", 4)], 6, 7),
        ],
    ),
    "a downgrade lets readers in": (
        True,
        [
            acquire("a", 1, 0, 1),
            held("a", "downgrade", 1, 2, 3),
            acquire("b", 2, 4, 5, mode="shared"),
            held("a", "release", 1, 6, 7),
        ],
    ),
    "a forced end frees the lock": (
        True,
        [acquire("a", 1, 0, 1), operation("x", "break", 2, 3), acquire("b", 2, 4, 5)],
    ),
}


@pytest.mark.parametrize("name", REGISTER_HISTORIES)
def test_register_history(name: str) -> None:
    expected, history = REGISTER_HISTORIES[name]
    assert check(history, RegisterModel()).ok is expected


@pytest.mark.parametrize("name", LOCK_HISTORIES)
def test_lock_history(name: str) -> None:
    expected, history = LOCK_HISTORIES[name]
    assert check(history, EXACT).ok is expected


def test_clock_drift_is_granted_and_no_more() -> None:
    early = [acquire("a", 1, 0, 1), acquire("b", 2, 2, 985)]
    earlier = [acquire("a", 1, 0, 1), acquire("b", 2, 2, 984)]
    assert check(early, LockModel(drift=0.01, slack_ms=5)).ok
    assert not check(earlier, LockModel(drift=0.01, slack_ms=5)).ok


def test_a_violation_is_reported_with_what_could_not_be_explained() -> None:
    report = check([acquire("a", 1, 0, 1), acquire("b", 2, 2, 3)], EXACT)
    assert report.verdict is Verdict.VIOLATION
    assert "b acquire" in report.detail.partition("cannot go on")[2]


# --- An oracle that tries everything ----------------------------------------------------------


def brute_force(history: Sequence[Operation], model: Model[Hashable]) -> bool:
    """Try every subset of pending operations in every order that real time allows."""
    completed = [o for o in history if not o.pending]
    pending = [o for o in history if o.pending]
    for count in range(len(pending) + 1):
        for chosen in itertools.combinations(pending, count):
            for order in itertools.permutations([*completed, *chosen]):
                if explains(order, model):
                    return True
    return False


def explains(order: Sequence[Operation], model: Model[Hashable]) -> bool:
    for earlier, later in itertools.combinations(order, 2):
        if later.return_ns < earlier.call_ns:
            return False
    states = {model.initial()}
    for position, op in enumerate(order):
        latest_ns = min(later.return_ns for later in order[position:])
        states = {after for state in states for after in model.step(state, op, latest_ns)}
    return bool(states)


@st.composite
def register_histories(draw: st.DrawFn) -> list[Operation]:
    history = []
    for number in range(draw(st.integers(1, 6))):
        call_ms = draw(st.integers(0, 12))
        return_ms = draw(st.none() | st.integers(call_ms, 14))
        value = draw(st.sampled_from([None, 1, 2]))
        client = f"c{number}"
        match draw(st.sampled_from(["read", "read", "write", "cas"])):
            case "read":
                history.append(read(client, value, call_ms, return_ms))
            case "write":
                history.append(write(client, value, call_ms, return_ms))
            case _:
                args = {"expected": value, "value": draw(st.sampled_from([1, 2]))}
                result = {"status": draw(st.sampled_from(["ok", "mismatch"]))}
                history.append(
                    operation(client, "compare_and_set", call_ms, return_ms, args, result)
                )
    return history


@settings(max_examples=300, deadline=None)
@given(register_histories())
def test_agrees_with_brute_force_on_registers(history: list[Operation]) -> None:
    assert check(history, RegisterModel()).ok is brute_force(history, RegisterModel())


@st.composite
def lock_histories(draw: st.DrawFn) -> list[Operation]:
    history = []
    for _ in range(draw(st.integers(1, 5))):
        call_ms = draw(st.integers(0, 20))
        return_ms = draw(st.none() | st.integers(call_ms, 24))
        owner = draw(st.sampled_from("ab"))
        token = draw(st.integers(1, 3))
        match draw(st.sampled_from(["acquire", "acquire", "acquire", "held", "look"])):
            case "acquire":
                status = draw(st.sampled_from([token, token, "lock_held"]))
                mode = draw(st.sampled_from(["exclusive", "exclusive", "shared"]))
                made = acquire(owner, status, call_ms, return_ms, mode=mode, ttl_ms=7)
            case "held":
                op = draw(st.sampled_from(["release", "renew"]))
                status = draw(st.sampled_from(["ok", "not_holder"]))
                made = held(owner, op, token, call_ms, return_ms, status)
            case _:
                holders = draw(st.sampled_from([[], [(owner, token)]]))
                made = look(owner, holders, call_ms, 24 if return_ms is None else return_ms)
        history.append(made)
    return history


@settings(max_examples=400, deadline=None)
@given(lock_histories())
def test_agrees_with_brute_force_on_locks(history: list[Operation]) -> None:
    assert check(history, EXACT).ok is brute_force(history, EXACT)


@settings(max_examples=200, deadline=None)
@given(lock_histories())
def test_lazy_expiry_loses_no_explanation(history: list[Operation]) -> None:
    """A model that may end any lease that is over, at any step, explains nothing more."""
    assert check(history, EXACT).ok is check(history, EagerExpiry(drift=0.0, slack_ms=0)).ok


class EagerExpiry(LockModel):
    """Ends any set of leases before each operation, at any instant at which they are over."""

    def step(self, state: Any, op: Operation, latest_ns: int) -> Any:
        for count in range(len(state.holders) + 1):
            for gone in itertools.combinations(state.holders, count):
                yield from super().step(self._end(state, list(gone)), op, latest_ns)


# --- Bounds -----------------------------------------------------------------------------------


def simulated_lock_history(seed: int, operations: int, clients: int) -> list[Operation]:
    """A history of a correct lock: each operation takes effect at one instant, seen by all."""
    rng = random.Random(seed)
    history: list[Operation] = []
    free_at = dict.fromkeys((f"c{n}" for n in range(clients)), 0.0)
    holding: dict[str, int] = {}
    holder: str | None = None
    token = 0
    now = 0.0
    while len(history) < operations:
        client = min(free_at, key=free_at.__getitem__)
        now = max(now, free_at[client]) + rng.random()
        call, end = now - rng.random() * 3, now + rng.random() * 3
        call = max(call, free_at[client])
        free_at[client] = end + rng.random()
        lost = rng.random() < 0.03
        if holder == client:
            made = held(client, "release", holding[client], call, None if lost else end)
            holder = None
        elif holder is None:
            token += 1
            holder, holding[client] = client, token
            made = acquire(client, token, call, end, ttl_ms=10_000_000)
        else:
            made = acquire(client, "lock_held", call, end, ttl_ms=10_000_000)
        history.append(made)
    return history


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_operations_of_ten_clients_take_seconds(seed: int) -> None:
    history = simulated_lock_history(seed, 1_000, 10)
    started = time.process_time()
    report = check(history, EXACT)
    assert report.ok, report.detail
    assert time.process_time() - started < 10


def test_one_wrong_result_among_a_thousand_is_found() -> None:
    history = simulated_lock_history(7, 1_000, 10)
    wrong = next(
        n for n, o in enumerate(history) if n > 500 and o.result and o.result["status"] == "granted"
    )
    stale = history[wrong].result["token"] - 1
    history[wrong] = Operation(
        **{
            **{name: getattr(history[wrong], name) for name in Operation.__dataclass_fields__},
            "result": {"status": "granted", "token": stale},
        }
    )
    assert not check(history, EXACT).ok


def test_an_exhausted_search_is_unknown_and_counts_as_failure() -> None:
    history = [write(f"c{n % 10}", n, 0, 100) for n in range(20)] + [read("c0", 99, 0, 100)]
    report = check(history, RegisterModel(), budget=1_000)
    assert report.verdict is Verdict.UNKNOWN
    assert failures([report]) == [report]


def test_a_history_over_the_limits_is_unknown() -> None:
    many = [write("a", n, 2 * n, 2 * n + 1) for n in range(1_001)]
    crowd = [write(f"c{n}", n, 0, 1) for n in range(11)]
    assert check(many, RegisterModel()).verdict is Verdict.UNKNOWN
    assert check(crowd, RegisterModel()).verdict is Verdict.UNKNOWN


def test_keys_are_checked_by_themselves_and_histories_survive_a_file(tmp_path: Any) -> None:
    history = [acquire("a", 1, 0, 1), acquire("b", 2, 2, None)]
    history += [operation("c", "read", 3, 4, {}, {"status": "ok", "holders": []}, key="other")]
    path = tmp_path / "history.jsonl"
    write_history(path, history)
    assert read_history(path) == history
    reports = check_history(read_history(path), EXACT)
    assert [(report.key, report.ok) for report in reports] == [("k", True), ("other", True)]
