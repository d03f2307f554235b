"""Election, barrier and latch for programs without asyncio."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from distsync.barriers import Barrier
from distsync.elections import Election, Leader
from distsync.errors import ClientClosed, LockLost, OutcomeUnknown, Unavailable
from distsync.latches import Latch
from distsync.locks import OnLost
from distsync.sync_locks import InWith, in_thread
from distsync.waiting import Wait

if TYPE_CHECKING:
    from distsync.portal import Portal

__all__ = ["ElectionThread", "SyncBarrier", "SyncElection", "SyncLatch"]

_log = logging.getLogger("distsync")

T = TypeVar("T")

_PAUSE_SECONDS = 1.0


class SyncElection(InWith):
    """One candidate; made by `Client.election`. See `Election` for what it guarantees.

    Attributes:
        ended: an event that is set when the term is over: lost, resigned from, or to be resigned
            from because its thread was stopped. What leads returns then; nothing else stops it.
    """

    def __init__(
        self, portal: Portal, make: Callable[[OnLost], Election], on_lost: OnLost | None
    ) -> None:
        """Users call `Client.election` instead."""
        self.ended = threading.Event()
        self._portal = portal
        self._on_lost = in_thread(on_lost)
        self._election = make(self._lost)
        self._campaigning: Future[None] | None = None
        self._stopping = threading.Event()

    @property
    def name(self) -> str:
        """What the candidates stand for."""
        return self._election.name

    @property
    def candidate(self) -> str:
        """What others see as the leader's name."""
        return self._election.candidate

    @property
    def is_leader(self) -> bool:
        """Whether this candidate leads, by the clock of this moment."""
        return self._election.is_leader

    @property
    def token(self) -> int:
        """The fencing token of the term; the last one's after it ended."""
        return self._election.token

    def expires_in(self) -> float:
        """Return for how many seconds it leads without another renewal; 0 when it does not."""
        return self._election.expires_in()

    def check(self) -> None:
        """Raise `LockLost` if leadership was lost, `NotHolder` if it does not lead; no I/O."""
        self._election.check()

    def campaign(self, wait: Wait = None) -> None:
        """Stand until elected. Raises as `Lock.acquire`."""
        self.ended.clear()
        future = self._campaigning = self._portal.submit(self._election.campaign, wait)
        if self._stopping.is_set():  # before there was anything to cancel
            future.cancel()
        self._take(future, self._election.give_up)

    def resign(self) -> None:
        """Step down. Raises as `Lock.release`."""
        self.ended.set()
        self._portal.call(self._election.resign)

    def leader(self) -> Leader | None:
        """Return who leads; linearizable."""
        return self._portal.call(self._election.leader)

    def observe(self) -> Iterator[Leader | None]:
        """Yield who leads now and after each change."""
        return self._portal.iterate(self._election.observe())

    def run(self, lead: Callable[[SyncElection], T]) -> T:
        """Stand for election and call `lead` as the leader, until it returns without a loss.

        When leadership is lost, `lead` shall return (see `ended`) or raise `LockLost` (by
        `check()`), and the candidate stands again; also when the cluster cannot be reached.
        Otherwise the candidate resigns, and what `lead` returned or raised is passed on.
        """
        return self._run(lead, threading.Event())

    def start(self, lead: Callable[[SyncElection], object]) -> ElectionThread:
        """Do what `run` does in a thread of its own, until `lead` returns or it is stopped."""
        stopping = threading.Event()
        return ElectionThread(self, stopping, lambda: self._run(lead, stopping))

    def stop_campaign(self) -> None:
        """End a campaign under way, or tell what leads to return."""
        if self._campaigning is not None:
            self._campaigning.cancel()
        self.ended.set()

    def _run(self, lead: Callable[[SyncElection], T], stopping: threading.Event) -> T:
        self._stopping = stopping
        while True:
            led = False
            try:
                with self:
                    led = True
                    if stopping.is_set():
                        self.ended.set()
                    return lead(self)
            except LockLost as error:
                if error.fields.get("name") != self.name:
                    raise
                _log.warning("no longer the leader: %s", error)
            except (Unavailable, OutcomeUnknown) as error:
                if led or isinstance(error, ClientClosed):
                    raise
                _log.warning("cannot stand for %s yet: %s", self.name, error)
            if stopping.wait(_PAUSE_SECONDS * (0.5 + random.random())):
                raise CancelledError

    def _lost(self, error: LockLost) -> None:
        self.ended.set()
        if self._on_lost is not None:
            self._on_lost(error)

    def __enter__(self) -> SyncElection:
        self._enter(self._election, self.campaign)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self._election, self.resign, self.name, error)


class ElectionThread:
    """Runs for election in a thread; made by `SyncElection.start`."""

    def __init__(
        self, election: SyncElection, stopping: threading.Event, work: Callable[[], object]
    ) -> None:
        self.election = election
        self._stopping = stopping
        self._work = work
        name = f"distsync-election {election.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def stop(self, timeout: float | None = None) -> bool:
        """Have it resign or end its campaign, and wait for that; returns whether it ended."""
        self._stopping.set()
        self.election.stop_campaign()
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended; returns whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except (CancelledError, ClientClosed):
            pass  # it was stopped, or its client closed
        except Exception:
            _log.exception("the leader of %s failed", self.election.name)


class SyncBarrier:
    """A barrier; made by `Client.barrier`. See `Barrier` for what it guarantees."""

    def __init__(self, portal: Portal, barrier: Barrier) -> None:
        """Users call `Client.barrier` instead."""
        self._portal = portal
        self._barrier = barrier

    @property
    def name(self) -> str:
        """The name of the barrier."""
        return self._barrier.name

    @property
    def parties(self) -> int:
        """How many pass together."""
        return self._barrier.parties

    def wait(self, wait: Wait = None) -> None:
        """Wait until `parties` callers are here. Raises as `Barrier.wait`."""
        self._portal.call(self._barrier.wait, wait)

    def waiting(self) -> int:
        """Return how many are here and wait for others."""
        return self._portal.call(self._barrier.waiting)


class SyncLatch:
    """A latch; made by `Client.latch`. See `Latch` for what it guarantees."""

    def __init__(self, portal: Portal, latch: Latch) -> None:
        """Users call `Client.latch` instead."""
        self._portal = portal
        self._latch = latch

    @property
    def name(self) -> str:
        """The name of the latch."""
        return self._latch.name

    @property
    def count(self) -> int:
        """How many counts open it."""
        return self._latch.count

    def count_down(self, party: str | None = None) -> None:
        """Count down once. Raises as `Latch.count_down`."""
        self._portal.call(self._latch.count_down, party)

    def wait(self, wait: Wait = None) -> None:
        """Wait until the latch is open. Raises as `Latch.wait`."""
        self._portal.call(self._latch.wait, wait)

    def missing(self) -> int:
        """Return how many counts are missing; 0 when it is open."""
        return self._portal.call(self._latch.missing)

    def is_open(self) -> bool:
        """Whether it is open."""
        return self._portal.call(self._latch.is_open)

    def reset(self) -> None:
        """Take back all counts; see `Latch.reset`."""
        self._portal.call(self._latch.reset)
