"""The shell of the replica: receives, steps, executes.

Every event is stamped with `CLOCK_BOOTTIME`, which counts suspension, when it is stepped; nothing
is judged by an older reading. Effects are executed in the order given, on the event loop; the disk
has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import assert_never

import msgspec

from distsync_node.cluster.ring_state import Epoch, RingState
from distsync_node.errors import DiskFull, ShuttingDown
from distsync_node.locks.commands import LockCommand
from distsync_node.peers.inbound import Respond
from distsync_node.peers.links import Link
from distsync_node.peers.outbound import Target
from distsync_node.raft.types import (
    Configuration,
    ConfigurationChanged,
    MemberId,
    Persist,
    RaftOptions,
    RoleChanged,
    Send,
)
from distsync_node.replica.core import Replica
from distsync_node.replica.types import (
    AdminDone,
    Answer,
    AnswerCode,
    AnswerEnvelope,
    Disconnect,
    DiskFullChanged,
    Envelope,
    Flush,
    Initialise,
    LeaseHeld,
    LocksChanged,
    MarkRemoved,
    Parked,
    PeerMessage,
    ReadAt,
    ReceiveAnswer,
    ReceiveEnvelope,
    Rejected,
    RejectReason,
    ReplicaEffect,
    ReplicaEvent,
    ReplicaOptions,
    Reply,
    RingChanged,
    SendPeer,
    Stop,
    StorageInitialised,
    StoragePersisted,
    Submit,
    Wake,
)
from distsync_node.services.alarm import Alarm
from distsync_node.storage import DiskThread, Storage

logger = logging.getLogger(__name__)

NEVER_MS = 1 << 62
SWEEP_SECONDS = 0.1
ARM_SECONDS = 0.002  # as long as a deadline may be late; they are tens of milliseconds apart

Final = Reply | Rejected | ReadAt | AdminDone


def boottime_ms() -> int:
    """Return `CLOCK_BOOTTIME` in milliseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class _Call:
    """Somebody who waits for a final effect, until `deadline_ms`."""

    __slots__ = ("deadline_ms", "future", "on_parked")

    def __init__(
        self,
        future: asyncio.Future[Final],
        on_parked: Callable[[int], object] | None,
        deadline_ms: int,
    ) -> None:
        self.future = future
        self.on_parked = on_parked
        self.deadline_ms = deadline_ms


class Runtime:
    """One replica with its disk, its links and its timer."""

    def __init__(
        self,
        storage: Storage,
        make_target: Callable[[str], Target],
        *,
        options: ReplicaOptions,
        raft_options: RaftOptions,
        on_stop: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._own_context = contextvars.copy_context()
        self._storage = storage
        self.make_target = make_target
        self._on_stop = on_stop
        self.replica = Replica(
            storage.member_id,
            options=options,
            raft_options=raft_options,
            rng=random.Random(),  # spreads elections; nothing secret depends on it
            now_ms=boottime_ms(),
            recovered=storage.recovered,
            removed=storage.removed,
        )
        self._disk = DiskThread(
            storage,
            loop=self._loop,
            on_persisted=self._persisted,
            on_disk_full=self._disk_full,
            on_fatal=self._fatal,
        )
        self._persists: deque[Persist] = deque()
        self._links: dict[MemberId, Link] = {}
        self._calls: dict[int, _Call] = {}
        self._next_ref = 0
        self._answer: Answer | None = None
        self._receiving: MemberId | None = None
        self._leader: MemberId | None = None
        self._flush_scheduled = False
        self._alarm = Alarm(boottime_ms, self.replica.next_deadline_ms, self._wake)
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._leader_watchers: set[asyncio.Future[None]] = set()
        self.leader_changes = 0
        self._ring_epoch = Epoch(0)
        self.on_ring: Callable[[RingState], None] = lambda _: None
        self.on_lease: Callable[[Epoch, int], None] = lambda _epoch, _ends_ms: None
        self._closed = False
        self._writing = False

    def start(self) -> None:
        """Begin to take part."""
        self._disk.start()
        self._relink(self.replica.configuration)
        self._alarm.look()

    async def close(self) -> None:
        """End every call, write what is queued and stop."""
        self.end_calls()
        self._closed = True
        self._alarm.end()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links.values()))
        await self._disk.close()

    # --- Events ---------------------------------------------------------------------------------

    def step(self, event: ReplicaEvent) -> None:
        """Step the replica and execute what it wants."""
        if self._closed:
            return
        touched: set[Link] = set()
        try:
            for effect in self.replica.step(event):
                self._execute(effect, touched)
        except Exception as error:  # a broken promise of the code: stop rather than go on
            self._fatal(error)
            return
        for link in touched:
            link.kick()
        self._alarm.look_within(ARM_SECONDS)
        if not self._writing:
            # After the sends, so that followers write at the same time.
            self._writing = True
            try:
                self._disk.write_pending()
            finally:
                self._writing = False

    async def run(
        self,
        command: LockCommand,
        *,
        deadline_ms: int = NEVER_MS,
        on_parked: Callable[[int], object] | None = None,
    ) -> Final:
        """Run a command on this member; Rejected(LEADERSHIP_LOST) when the deadline passes.

        Cancelling the task is a disconnect.
        """
        ref, future = self._submit(command, on_parked, deadline_ms)
        self._flush_soon()
        return await self._outcome(ref, future)

    def run_all(
        self, commands: Iterable[LockCommand], *, deadline_ms: int
    ) -> list[asyncio.Future[Final]]:
        """Run commands on this member, in one entry where that is possible."""
        futures = [self._submit(command, None, deadline_ms)[1] for command in commands]
        self._flush_soon()
        return futures

    def _submit(
        self,
        command: LockCommand,
        on_parked: Callable[[int], object] | None,
        deadline_ms: int,
    ) -> tuple[int, asyncio.Future[Final]]:
        ref, future = self._register(on_parked, deadline_ms)
        self.step(Submit(now_ms=boottime_ms(), ref=ref, command=command))
        return ref, future

    def _flush_soon(self) -> None:
        if self.replica.is_idle_leader:
            self.step(Flush(now_ms=boottime_ms()))  # nothing to share an entry with
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    async def ask(self, make_event: Callable[[int], ReplicaEvent]) -> Final:
        """Step an event other than a command and wait for its answer."""
        ref, future = self._register(None, NEVER_MS)
        self.step(make_event(ref))
        return await self._outcome(ref, future)

    def _register(
        self, on_parked: Callable[[int], object] | None, deadline_ms: int
    ) -> tuple[int, asyncio.Future[Final]]:
        self._next_ref += 1
        future: asyncio.Future[Final] = self._loop.create_future()
        if self._closed:
            future.set_result(
                Rejected(ref=self._next_ref, reason=RejectReason.STOPPED, leader=None)
            )
            return self._next_ref, future
        self._calls[self._next_ref] = _Call(future, on_parked, deadline_ms)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        return self._next_ref, future

    async def _outcome(self, ref: int, future: asyncio.Future[Final]) -> Final:
        try:
            return await future
        except asyncio.CancelledError:
            self._forget(ref)
            raise

    def end_calls(self) -> None:
        """End every call, as one whose outcome is unknown, and wake who waits for a leader."""
        for ref in list(self._calls):
            self._give_up(ref)
        self._wake_leader_watchers()

    def _sweep(self) -> None:
        """End calls whose deadline has passed: a stuck leader must not hold them. One timer looks
        after all of them, since nearly every call is answered long before."""
        now_ms = boottime_ms()
        late = [ref for ref, call in self._calls.items() if call.deadline_ms <= now_ms]
        for ref in late:
            self._give_up(ref)
        self._sweeper = None
        if self._calls:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _give_up(self, ref: int) -> None:
        call = self._calls.get(ref)
        if call is None:
            return
        self._forget(ref)
        if not call.future.done():
            leader = self.replica.leader
            call.future.set_result(
                Rejected(ref=ref, reason=RejectReason.LEADERSHIP_LOST, leader=leader)
            )

    def _forget(self, ref: int) -> None:
        if self._calls.pop(ref, None) is not None:
            self.step(Disconnect(now_ms=boottime_ms(), ref=ref))

    def _flush(self) -> None:
        self._flush_scheduled = False
        self.step(Flush(now_ms=boottime_ms()))

    def receive(self, envelope: Envelope, respond: Respond) -> None:
        """Take an envelope; the answer carries what is ready for its sender in time."""
        sender = envelope.sender
        self._answer = None
        self._receiving = sender
        try:
            self.step(ReceiveEnvelope(now_ms=boottime_ms(), envelope=envelope))
        finally:
            self._receiving = None
        answer: Answer | None = self._answer
        if answer is None:
            raise ShuttingDown("this node has stopped; see its log")
        link = self._links.get(sender)
        if link is None or answer.code is not AnswerCode.ACCEPTED:
            respond(answer)
            return

        def respond_with_messages() -> None:
            messages = link.take()
            if not respond(msgspec.structs.replace(answer, messages=messages)):
                link.put_back(messages)

        if link.pending and not link.has_waiting:
            link.hold(respond_with_messages)
        else:
            respond_with_messages()

    # --- Effects --------------------------------------------------------------------------------

    def _execute(self, effect: ReplicaEffect, touched: set[Link]) -> None:
        match effect:
            case Reply() | Rejected() | ReadAt() | AdminDone():
                self._finish(effect)
            case Send() | SendPeer():
                self._push(effect.to, effect.message, touched)
            case Persist():
                self._persist(effect)
            case AnswerEnvelope():
                self._answer = effect.answer
            case Parked():
                call = self._calls.get(effect.ref)
                if call is not None and call.on_parked is not None:
                    call.on_parked(effect.attempt)
            case LocksChanged():
                self._notify(effect.names)
            case RoleChanged():
                self._role_changed(effect)
            case RingChanged():
                self._ring_changed(effect.ring)
            case LeaseHeld():
                self.on_lease(effect.epoch, effect.ends_ms)
            case ConfigurationChanged():
                self._relink(effect.configuration)
            case Initialise():
                self._spawn(self._initialise(effect))
            case MarkRemoved():
                self._log(
                    logging.WARNING,
                    "this member was removed from its cluster; it idles until archived",
                )
                self._spawn(self._mark_removed())
            case Stop():
                self.stop(effect.reason)
                if effect.diverged:
                    self._storage.mark_diverged()
            case _:
                assert_never(effect)

    def _finish(self, effect: Final) -> None:
        call = self._calls.pop(effect.ref, None)
        if call is not None and not call.future.done():
            call.future.set_result(effect)

    def _push(self, to: MemberId, message: PeerMessage, touched: set[Link]) -> None:
        link = self._link(to)
        link.push(message)
        if to != self._receiving:
            touched.add(link)

    def _link(self, to: MemberId) -> Link:
        link = self._links.get(to)
        if link is None:
            # Not in the configuration yet (a new member knows nobody): answers will carry it.
            link = Link(to, self.make_target, self.replica.envelope, self._answered)
            self._links[to] = link
        return link

    def _answered(self, answer: Answer) -> None:
        self.step(ReceiveAnswer(now_ms=boottime_ms(), answer=answer))

    def _persist(self, effect: Persist) -> None:
        for send in effect.then:
            self._link(send.to).pending += 1
        self._persists.append(effect)
        self._disk.submit(effect)

    def _persisted(self, seq: int) -> None:
        """The disk has everything up to `seq`: what waited for it may leave."""
        touched: set[Link] = set()
        while self._persists and self._persists[0].seq <= seq:
            for send in self._persists.popleft().then:
                self._link(send.to).pending -= 1
                self._push(send.to, send.message, touched)
        for link in touched:
            link.kick()
        self.step(StoragePersisted(now_ms=boottime_ms(), seq=seq))

    def _disk_full(self, error: DiskFull | None) -> None:
        if error is not None:
            logger.error("%s: writes wait until there is some", error)
        else:
            logger.warning("there is room to write again")
        self.step(DiskFullChanged(now_ms=boottime_ms(), full=error is not None))

    def stop(self, reason: str) -> None:
        """Take no further part and have the program end."""
        self._log(logging.CRITICAL, "stopping: %s", reason)
        self._closed = True
        self._on_stop(reason)

    def _fatal(self, error: BaseException) -> None:
        logger.critical("a failure that cannot be mended while running", exc_info=error)
        self.stop(str(error))

    def _log(self, level: int, message: str, *arguments: object) -> None:
        """Log what belongs to no request, though one may have been the occasion."""
        self._own_context.run(logger.log, level, message, *arguments)

    def _role_changed(self, effect: RoleChanged) -> None:
        if effect.leader != self._leader:
            self._leader = effect.leader
            self.leader_changes += 1
            self._log(logging.INFO, "leader of term %d: %s", effect.term, effect.leader)
        self._wake_leader_watchers()

    def _ring_changed(self, ring: RingState) -> None:
        if ring.epoch != self._ring_epoch:
            self._ring_epoch = ring.epoch
            names = ", ".join(server.name for server in ring.servers)
            self._log(logging.INFO, "ring of epoch %d: %s", ring.epoch, names or "empty")
        self.on_ring(ring)

    def _wake_leader_watchers(self) -> None:
        for watcher in self._leader_watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._leader_watchers.clear()

    def leader_watcher(self) -> asyncio.Future[None]:
        """Return what is done once role or leader change; cancel it when it is not needed."""
        watcher: asyncio.Future[None] = self._loop.create_future()
        self._leader_watchers.add(watcher)
        watcher.add_done_callback(self._leader_watchers.discard)
        return watcher

    async def leader_change(self, timeout_seconds: float) -> None:
        """Wait until role or leader change, or that long."""
        watcher = self.leader_watcher()
        try:
            await asyncio.wait((watcher,), timeout=timeout_seconds)
        finally:
            watcher.cancel()

    def _relink(self, configuration: Configuration) -> None:
        for member in configuration.members:
            if member.id != self.replica.member_id:
                self._link(member.id).address(member.peer_url)
        for member_id in configuration.removed:
            link = self._links.pop(member_id, None)
            if link is not None:
                self._spawn(link.close())

    async def _initialise(self, effect: Initialise) -> None:
        try:
            await asyncio.to_thread(self._storage.initialise, effect.snapshot, effect.hard_state)
        except Exception as error:
            self._fatal(error)
            return
        self.step(StorageInitialised(now_ms=boottime_ms()))

    async def _mark_removed(self) -> None:
        try:
            await asyncio.to_thread(self._storage.mark_removed)
        except Exception as error:
            self._fatal(error)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Watching -------------------------------------------------------------------------------

    def watch(self, name: str) -> asyncio.Event:
        """Return an event that is set whenever the lock may have changed; see `unwatch`."""
        event = asyncio.Event()
        self._watchers.setdefault(name, set()).add(event)
        return event

    def unwatch(self, name: str, event: asyncio.Event) -> None:
        """Forget a watch."""
        events = self._watchers.get(name)
        if events is not None:
            events.discard(event)
            if not events:
                del self._watchers[name]

    def _notify(self, names: tuple[str, ...]) -> None:
        if not self._watchers:
            return
        for name in names or tuple(self._watchers):
            for event in self._watchers.get(name, ()):
                event.set()

    # --- Time -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.step(Wake(now_ms=boottime_ms()))
