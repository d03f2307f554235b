"""`Client`: the same promises for threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest

from distsync import (
    Client,
    ClientClosed,
    Deadlock,
    Leader,
    LockHeld,
    LockLost,
    NotHolder,
    SessionLost,
    SyncElection,
    WaitTimeout,
)
from process.running import eventually
from unit.client.jump_clock import JumpClock, jump
from unit.client.scripted_cluster import ScriptedCluster, Served


class ServedLocks(Served[ScriptedCluster]):
    """Beside it, a clock that any thread can move."""

    def __init__(self) -> None:
        super().__init__(ScriptedCluster, 3)
        self.clock = JumpClock()

    def stop_nodes(self) -> None:
        async def stop() -> None:
            for node in self.cluster.nodes.values():
                await node.stop()

        self.portal.call(stop)

    def advance(self, seconds: float) -> None:
        async def advance() -> None:
            self.cluster.table.advance(seconds)

        self.portal.call(advance)

    def held(self) -> list[str]:
        async def names() -> list[str]:
            return [view.name for view in self.cluster.table.machine.lock_views()]

        return self.portal.call(names)


@pytest.fixture
def served() -> Iterator[ServedLocks]:
    served = ServedLocks()
    yield served
    served.close()


@pytest.fixture
def client(served: ServedLocks) -> Iterator[Client]:
    threads = set(threading.enumerate())
    with Client(served.cluster.urls(), clock=served.clock) as client:
        yield client
    assert set(threading.enumerate()) <= threads


def test_a_lock_is_held_in_the_body_and_free_after_it(served: ServedLocks, client: Client) -> None:
    with client.lock("orders/42", ttl=timedelta(seconds=10)) as lock:
        lock.check()
        assert served.held() == ["orders/42"]
        assert lock.held
        assert 9 < lock.expires_in() <= 10
        assert client.lock_info("orders/42").token == lock.token
    assert served.held() == []
    with pytest.raises(NotHolder):
        lock.check()


def test_ten_threads_share_a_client_and_exclude_each_other(client: Client) -> None:
    counter = 0
    owners: set[str | None] = set()

    def count() -> None:
        nonlocal counter
        for _ in range(5):
            with client.lock("counter") as lock:
                owners.add(lock.owner)
                seen = counter
                time.sleep(0.0005)
                counter = seen + 1
                lock.check()

    threads = [threading.Thread(target=count) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counter == 50
    assert len(owners) == 10


def test_the_lease_is_renewed_while_the_thread_works(served: ServedLocks, client: Client) -> None:
    with client.lock("a", ttl=9) as lock:
        jump(client, served.clock, 3.1)
        eventually(lambda: lock.expires_in() > 8)


def test_a_loss_is_told_by_check_by_callback_and_at_the_end(
    served: ServedLocks, client: Client
) -> None:
    lost: list[LockLost] = []
    went_on = []

    def on_lost(error: LockLost) -> None:
        client.leader_url  # noqa: B018 - a callback may use the client
        lost.append(error)

    with pytest.raises(LockLost), client.lock("a", ttl=10, on_lost=on_lost) as lock:  # noqa: PT012
        lock.check()
        served.stop_nodes()
        jump(client, served.clock, 10)
        with pytest.raises(LockLost):
            lock.check()
        went_on.append("nothing cancels a thread")
    assert went_on
    eventually(lambda: lost)
    assert lost[0].fields["name"] == "a"


def test_callbacks_may_call_the_client(served: ServedLocks, client: Client) -> None:
    called: list[threading.Thread] = []

    def on_lost(error: LockLost) -> None:
        with client.lock("b") as lock:
            assert client.lock_info("b").holders[0].owner == lock.owner
        called.append(threading.current_thread())

    with pytest.raises(LockLost), client.lock("a", ttl=10, on_lost=on_lost):  # noqa: PT012
        served.advance(11)
        jump(client, served.clock, 4)
        eventually(lambda: called)
    called[0].join(5)


def test_the_bodys_own_error_wins(served: ServedLocks, client: Client) -> None:
    with pytest.raises(ZeroDivisionError) as caught, client.lock("a", ttl=10):  # noqa: PT012
        served.clock.offset += 11
        raise ZeroDivisionError
    assert "could not be renewed" in caught.value.__notes__[0]


def test_a_body_may_give_the_lock_back_itself(served: ServedLocks, client: Client) -> None:
    with client.lock("a") as lock:
        lock.release()
        assert served.held() == []
        with client.lock("a", wait=0):
            pass


def test_a_lock_taken_before_can_be_entered_once(served: ServedLocks, client: Client) -> None:
    lock = client.lock("a")
    assert lock.try_acquire()
    with lock:
        with pytest.raises(RuntimeError, match="already"), lock:
            pass
        lock.check()
        assert served.held() == ["a"]
    assert served.held() == []
    with lock:
        assert lock.held


def test_waiting_and_not_waiting(client: Client) -> None:
    with client.lock("a"):
        other = client.lock("a", owner="other", wait=0)
        assert not other.try_acquire()
        with pytest.raises(LockHeld):
            other.acquire()
        with pytest.raises(Deadlock):
            client.lock("a").acquire()


def test_a_wait_that_passes_is_told(served: ServedLocks, client: Client) -> None:
    told: list[Exception] = []

    def wait() -> None:
        try:
            client.lock("a", wait=5).acquire()
        except WaitTimeout as error:
            told.append(error)

    with client.lock("a", ttl=60):
        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: client.lock_info("a").waiter_count == 1)
        served.advance(5)
        thread.join(5)
    assert told


def test_shared_locks_semaphores_sets_and_sessions(served: ServedLocks, client: Client) -> None:
    with client.lock("s", shared=True) as lock:
        assert lock.shared
        lock.upgrade()
        assert not lock.shared
        lock.downgrade()
        assert lock.shared
    with client.semaphore("p", 1), pytest.raises(LockHeld):
        client.semaphore("p", 1, owner="other").acquire(wait=0)
    with client.acquire_many(["a", "b"]) as locks:
        assert sorted(locks.tokens) == ["a", "b"]
        locks.check()
        assert served.held() == ["a", "b"]
    with client.session() as session:
        with session.lock("x"), session.semaphore("y", 2), session.acquire_many(["z"]):
            assert served.held() == ["x", "y", "z"]
        session.check()
    assert served.held() == []
    assert not session.is_open


def test_a_lost_session_is_told(served: ServedLocks, client: Client) -> None:
    with pytest.raises(SessionLost), client.session(ttl=9) as session:  # noqa: PT012
        lock = session.lock("a").acquire()
        served.advance(10)
        jump(client, served.clock, 3.1)
        eventually(lambda: not lock.held)


def test_an_interrupted_acquire_leaves_nothing_held(
    served: ServedLocks, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the grant and the body: nobody would give the lock back."""
    portal = client._engine().portal
    submit = portal.submit

    def interrupted(function: Callable[..., Any], *arguments: object) -> Future[Any]:
        future = submit(function, *arguments)
        future.result()
        monkeypatch.setattr(future, "result", interrupt)
        return future

    def interrupt() -> None:
        raise KeyboardInterrupt

    for make in (lambda: client.lock("a"), lambda: client.acquire_many(["b", "c"])):
        thing = make()
        monkeypatch.setattr(portal, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            thing.acquire()
        monkeypatch.undo()
        eventually(lambda: served.held() == [])
        assert not thing.held


@pytest.mark.parametrize("kind", ["lock", "acquire_many", "session", "election"])
def test_what_is_held_stays_held_when_it_is_asked_for_again(client: Client, kind: str) -> None:
    lock, locks, session, election = (
        client.lock("a"),
        client.acquire_many(["b"]),
        client.session(),
        client.election("c"),
    )
    thing, take = {
        "lock": (lock, lock.acquire),
        "acquire_many": (locks, locks.acquire),
        "session": (session, session.open),
        "election": (election, election.campaign),
    }[kind]
    take()
    with pytest.raises(RuntimeError, match="make another"):
        take()
    client.status()  # whatever was sent to the client's thread meanwhile has begun
    thing.check()


def test_reading(client: Client) -> None:
    with client.acquire_many(["a/1", "a/2", "b"]):
        assert [lock.name for lock in client.locks("a/")] == ["a/1", "a/2"]
    assert client.status().leader == "node-1"
    states = client.watch("w")
    assert not next(states).held
    with client.lock("w") as lock:
        assert next(states).token == lock.token
    states.close()  # type: ignore[attr-defined]


def test_an_election_thread_leads_until_it_is_stopped(served: ServedLocks, client: Client) -> None:
    led: list[int] = []

    def lead(term: SyncElection) -> None:
        led.append(term.token)
        term.check()
        term.ended.wait()

    first = client.election("boss", candidate="first").start(lead)
    eventually(lambda: led)
    second_election = client.election("boss", candidate="second")
    assert second_election.leader() == Leader(candidate="first", token=led[0])
    second = second_election.start(lead)
    assert first.stop(5)
    eventually(lambda: len(led) == 2)
    assert second_election.is_leader
    assert second.stop(5)
    third = client.election("boss").start(lead)
    eventually(lambda: len(led) == 3)
    waiting = client.election("boss").start(lead)
    assert waiting.stop(5)  # also one that still stands
    assert third.stop(5)
    eventually(lambda: served.held() == [])  # the wait that was cancelled ends a moment later
    assert led == sorted(set(led))


def test_an_election_thread_leads_again_after_a_loss(served: ServedLocks, client: Client) -> None:
    led: list[int] = []

    def lead(term: SyncElection) -> str:
        led.append(term.token)
        if len(led) == 1:
            served.advance(11)
            jump(client, served.clock, 4)
            term.ended.wait(5)
            term.check()
        return "done"

    assert client.election("boss", ttl=10).run(lead) == "done"
    assert len(led) == 2


def test_a_barrier_and_a_latch_join_threads(client: Client) -> None:
    barrier, latch = client.barrier("b", 3), client.latch("l", 3)
    passed: list[int] = []

    def party(number: int) -> None:
        barrier.wait(30)
        passed.append(number)
        latch.count_down(f"party-{number}")

    threads = [threading.Thread(target=party, args=(number,)) for number in range(3)]
    for thread in threads[:2]:
        thread.start()
    eventually(lambda: barrier.waiting() == 2)
    assert not passed
    threads[2].start()
    latch.wait(30)
    assert latch.is_open()
    assert latch.missing() == 0
    for thread in threads:
        thread.join(10)
    assert sorted(passed) == [0, 1, 2]
    latch.reset()
    assert latch.missing() == 3


def test_a_closed_client_says_so_and_its_locks_are_lost(served: ServedLocks) -> None:
    client = Client(served.cluster.urls(), clock=served.clock)
    lock = client.lock("a").acquire()
    client.close()
    client.close()
    with pytest.raises(LockLost, match="client was closed"):
        lock.check()
    with pytest.raises(ClientClosed):
        client.lock("b")
    with pytest.raises(ClientClosed):
        lock.release()


def test_a_client_that_is_dropped_ends_its_thread(served: ServedLocks) -> None:
    before = set(threading.enumerate())
    client = Client(served.cluster.urls(), clock=served.clock)
    assert client.status().leader == "node-1"
    assert set(threading.enumerate()) > before
    del client
    eventually(lambda: set(threading.enumerate()) <= before)


FORKING = """
    import os, sys
    from distsync import Client

    client = Client(sys.argv[1])
    with client.lock("parents") as lock, client.lock("more"):
        pid = os.fork()
        if pid == 0:
            sys.exit(0)  # the whole end of an interpreter, which frees everything
        os.waitpid(pid, 0)
        assert client.lock_info("parents").token == lock.token
        with client.acquire_many(["a", "b"]):
            pass
    client.close()
    print("well")
"""


def test_the_end_of_a_forked_process_leaves_the_parent_alone(served: ServedLocks) -> None:
    """Both share the sockets and what watches them."""
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            textwrap.dedent(FORKING),
            *served.cluster.urls()[:1],
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("well\n", "")


def test_a_forked_process_gets_a_life_of_its_own(served: ServedLocks, client: Client) -> None:
    with client.lock("parents", ttl=9) as lock:
        parents_id = client.client_id
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, on purpose
            pid = os.fork()
        if pid == 0:
            try:
                with client.lock("childs") as own:
                    assert client.client_id != parents_id
                    assert own.token > lock.token
                with pytest.raises(RuntimeError, match="before a fork"):
                    lock.release()
                os.write(writer, b"well")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        assert os.read(reader, 10) == b"well"
        os.close(reader)
        jump(client, served.clock, 3.1)  # the parent's own connections still work
        eventually(lambda: lock.expires_in() > 8)
