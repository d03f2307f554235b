"""One simulated node: the real replica between a modelled disk, network and clock.

It is the shell of the node in miniature: events are stamped with the clock when they are stepped,
effects are executed in the order given, what waits for the disk leaves when the disk is done, and
an envelope's answer is held for messages that wait for the disk. While the process is paused its
events queue up, its clock runs on and the disk finishes what it was given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol, assert_never

import msgspec

from distsync_node.raft.types import (
    ConfigurationChanged,
    Entry,
    MemberId,
    Persist,
    RaftOptions,
    RecoveredState,
    RoleChanged,
    Send,
    Snapshot,
)
from distsync_node.replica.core import Replica
from distsync_node.replica.participant import Participant
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
    ReplicaEffect,
    ReplicaEvent,
    ReplicaOptions,
    Reply,
    RingChanged,
    SendPeer,
    Stop,
    StorageInitialised,
    StoragePersisted,
    Wake,
)
from sim.disk import Disk
from sim.kernel import US_PER_MS, DriftingClock, Kernel, Violation
from sim.network import Network

HOLD_ANSWER_US = 2_000 * US_PER_MS
FLUSH_DELAY_US = 300
TIMER_SLACK_US = 400
MOST_SPINS = 50  # wakes in a row that leave the deadline in the past
FULL_CHECK_STEPS = 64  # steps between two runs of the replica's own validator

FinalEffect = Reply | Rejected | ReadAt | AdminDone


class Observer(Protocol):
    """Sees everything that happens at a host; raises Violation."""

    def applying(self, host: Host, entry: Entry) -> None:
        """An entry is about to be applied."""
        ...

    def applied(self, host: Host, entry: Entry) -> None:
        """An entry was applied."""
        ...

    def restored(self, host: Host, snapshot: Snapshot) -> None:
        """A received snapshot replaced the state."""
        ...

    def started(self, host: Host) -> None:
        """The process started with what its disk held."""
        ...

    def founded(self, host: Host) -> None:
        """The member's first state is on its disk."""
        ...

    def sending(self, host: Host, to: MemberId, message: PeerMessage) -> None:
        """A message leaves."""
        ...

    def persisting(self, host: Host, effect: Persist) -> None:
        """A write goes to the disk."""
        ...

    def role_changed(self, host: Host, effect: RoleChanged) -> None:
        """Role, term or known leader changed."""
        ...


class ObservedReplica(Replica):
    """The real replica, which lets an observer see what it applies."""

    def __init__(self, host: Host, **arguments: Any) -> None:
        self._host = host
        super().__init__(**arguments)

    def _start(self, recovered: RecoveredState) -> None:
        super()._start(recovered)
        participant = self.participant
        if participant is not None:
            _observe(self._host, participant)


def _observe(host: Host, participant: Participant) -> None:
    apply_entry, restore = participant._apply_entry, participant._restore

    def observed_apply(entry: Entry) -> None:
        host.observer.applying(host, entry)
        apply_entry(entry)
        host.observer.applied(host, entry)

    def observed_restore(snapshot: Snapshot) -> None:
        restore(snapshot)
        host.observer.restored(host, snapshot)

    participant._apply_entry = observed_apply
    participant._restore = observed_restore


class Exchange:
    """An envelope that waits for its answer."""

    __slots__ = ("answer", "open", "reply")

    def __init__(self, reply: Callable[[Answer], None]) -> None:
        self.reply = reply
        self.answer: Answer | None = None
        self.open = True

    def close(self, messages: tuple[PeerMessage, ...] = ()) -> None:
        """Send the answer back, once."""
        if self.open and self.answer is not None:
            self.open = False
            answer = self.answer
            if messages:
                answer = msgspec.structs.replace(answer, messages=messages)
            self.reply(answer)


class Host:
    """A place with a name, where a process runs, stops and starts again."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        hosts: dict[str, Host],
        name: str,
        *,
        clock: DriftingClock,
        options: ReplicaOptions,
        raft_options: RaftOptions,
        observer: Observer,
    ) -> None:
        self.options = options
        self.name = name
        self.url = f"http://{name}"
        self.clock = clock
        self.observer = observer
        self.alive = False
        self.paused = False
        self.stopped: str | None = None
        self.incarnation = 0
        self.applied_before = 0  # the applied index when the step under way began
        self._kernel = kernel
        self._network = network
        self._hosts = hosts
        self._raft_options = raft_options
        self._rng = kernel.rng(f"host/{name}")
        self._disks = 0
        self.disk = self._new_disk()
        self.replica = self._new_replica()

    def _new_disk(self) -> Disk:
        self._disks += 1
        member_id = MemberId(f"{self.name}.{self._disks}")
        disk = Disk(self._kernel, self._kernel.rng(f"disk/{member_id}"), member_id)
        disk.on_done, disk.on_full = self._disk_done, self._disk_full
        return disk

    def _new_replica(self) -> ObservedReplica:
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._held: defaultdict[MemberId, list[Exchange]] = defaultdict(list)
        self._waiting_for_disk: defaultdict[MemberId, int] = defaultdict(int)
        self._calls: dict[int, Callable[[FinalEffect], None]] = {}
        self._addresses: dict[MemberId, str] = {}
        self._next_ref = 0
        self._flush_planned = False
        self._wake_at_us = -1
        self._steps = 0
        self._spins = 0
        self._receiving: MemberId | None = None
        return ObservedReplica(
            self,
            member_id=self.disk.member_id,
            options=self.options,
            raft_options=self._raft_options,
            rng=Random(self._rng.getrandbits(64)),
            now_ms=self.clock.read_ms(self._kernel.now_us),
            recovered=self.disk.recover(),
            removed=self.disk.removed,
        )

    # --- Life ---------------------------------------------------------------------------------

    @property
    def member_id(self) -> MemberId:
        """The id of the member whose disk this is."""
        return self.disk.member_id

    @property
    def state(self) -> str:
        """`down`, or the state of the replica."""
        return self.replica.state if self.alive else "down"

    @property
    def now_ms(self) -> int:
        """What the clock shows."""
        return self.clock.read_ms(self._kernel.now_us)

    def start(self) -> None:
        """Start the process on what the disk holds."""
        self.alive = True
        self.incarnation += 1
        self.replica = self._new_replica()
        self._kernel.trace(self.name, "start", self.member_id, self.replica.state)
        self.observer.started(self)
        self._relink()
        self._arm()

    def crash(self) -> None:
        """Lose the process and what was not synced."""
        if not self.alive:
            return
        self._kernel.trace(self.name, "crash")
        self.alive = self.paused = False
        self.incarnation += 1
        self.disk.crash()
        calls, self._calls = self._calls, {}
        for finish in calls.values():
            finish(Rejected(ref=0, reason=_CONNECTION_LOST, leader=None))

    def wipe(self) -> Disk:
        """Replace the disk by an empty one (of another member id); returns the old one."""
        old, self.disk = self.disk, self._new_disk()
        self._kernel.trace(self.name, "wipe", old.member_id, self.member_id)
        return old

    def pause(self) -> None:
        """Stop scheduling the process; its clock runs on."""
        if self.alive and not self.paused:
            self.paused = True
            self._kernel.trace(self.name, "pause")

    def resume(self) -> None:
        """Let the process run on; it takes first what came meanwhile."""
        if not self.paused:
            return
        self.paused = False
        self._kernel.trace(self.name, "resume", len(self._inbox))
        inbox, self._inbox = self._inbox, []
        incarnation = self.incarnation
        if len(inbox) > 1 and self._rng.random() < 0.3:
            self._wake(incarnation)
        for action, arguments in inbox:
            if self.incarnation == incarnation and not self.paused:
                action(*arguments)
        self._wake_at_us = -1
        self._arm()

    # --- What arrives -------------------------------------------------------------------------

    def _when_running(self, action: Callable[..., None], *arguments: Any) -> None:
        if not self.alive:
            return
        if self.paused:
            self._inbox.append((action, arguments))
        else:
            action(*arguments)

    def arrive(self, envelope: Envelope, reply: Callable[[Answer], None]) -> None:
        """An envelope reached this address; nobody answers when no process listens."""
        self._when_running(self._receive, envelope, reply)

    def _receive(self, envelope: Envelope, reply: Callable[[Answer], None]) -> None:
        if self.stopped is not None:
            return
        exchange = Exchange(reply)
        sender = envelope.sender
        self._receiving = sender
        self._exchange = exchange
        own = self._step(ReceiveEnvelope(now_ms=self.now_ms, envelope=envelope)).get(sender, ())
        self._receiving = None
        if exchange.answer is None:
            raise Violation("shell.no_answer", f"{self.name} did not answer {envelope}")
        if exchange.answer.code is not AnswerCode.ACCEPTED:
            exchange.close()
        elif own or not self._waiting_for_disk[sender]:
            exchange.close(tuple(own))
        else:
            self._held[sender].append(exchange)
            self._kernel.after(HOLD_ANSWER_US, exchange.close)

    def call(
        self,
        make_event: Callable[[int, int], ReplicaEvent],
        finish: Callable[[FinalEffect], None],
        opened: Callable[[int], None] | None = None,
    ) -> None:
        """Step an event that has one answer, as (now_ms, ref); `finish` gets it.

        `opened` is told the ref, by which `disconnect` ends the call.
        """
        self._when_running(self._call, make_event, finish, opened)

    def _call(
        self,
        make_event: Callable[[int, int], ReplicaEvent],
        finish: Callable[[FinalEffect], None],
        opened: Callable[[int], None] | None,
    ) -> None:
        self._next_ref += 1
        ref = self._next_ref
        self._calls[ref] = finish
        if opened is not None:
            opened(ref)
        self._step(make_event(self.now_ms, ref))
        if not self._flush_planned:
            self._flush_planned = True
            delay_us = self._rng.randint(0, FLUSH_DELAY_US)
            self._kernel.after(delay_us, self._when_running, self._flush, self.incarnation)

    def _flush(self, incarnation: int) -> None:
        if incarnation == self.incarnation:
            self._flush_planned = False
            self._step(Flush(now_ms=self.now_ms))

    def disconnect(self, ref: int, incarnation: int) -> None:
        """The client behind a call is gone."""
        self._when_running(self._disconnect, ref, incarnation)

    def _disconnect(self, ref: int, incarnation: int) -> None:
        if incarnation == self.incarnation and self._calls.pop(ref, None) is not None:
            self._step(Disconnect(now_ms=self.now_ms, ref=ref))

    def tell(self, make_event: Callable[[int], ReplicaEvent]) -> None:
        """Step an event that has no answer, made from now_ms."""
        self._when_running(lambda: self._step(make_event(self.now_ms)))

    # --- The disk -----------------------------------------------------------------------------

    def _disk_done(self, effects: Sequence[Any]) -> None:
        self._when_running(self._persisted, tuple(effects))

    def _persisted(self, effects: tuple[Any, ...]) -> None:
        outgoing: dict[MemberId, list[PeerMessage]] = {}
        last_seq = 0
        for effect in effects:
            if isinstance(effect, Persist):
                last_seq = effect.seq
                for send in effect.then:
                    self._waiting_for_disk[send.to] -= 1
                    self._push(send.to, send.message, outgoing)
        self._leave(outgoing)
        if last_seq:
            self._step(StoragePersisted(now_ms=self.now_ms, seq=last_seq))
        if any(isinstance(effect, Initialise) for effect in effects):
            self.observer.founded(self)
            self._step(StorageInitialised(now_ms=self.now_ms))

    def _disk_full(self, full: bool) -> None:
        self._when_running(
            lambda: self._step(DiskFullChanged(now_ms=self.now_ms, full=full)) and None
        )

    # --- Stepping -----------------------------------------------------------------------------

    def _step(self, event: ReplicaEvent) -> dict[MemberId, list[PeerMessage]]:
        """Step the replica and execute what it wants; returns what it has for the sender."""
        if self.stopped is not None:
            return {}
        self._kernel.steps += 1
        self._steps += 1
        raft = self.replica.raft
        self.applied_before = raft.applied_index if raft is not None else 0
        effects = self.replica.step(event)
        outgoing: dict[MemberId, list[PeerMessage]] = {}
        for effect in effects:
            self._execute(effect, outgoing)
        if self._steps % FULL_CHECK_STEPS == 0:
            self.replica.check_invariants()
        own = {}
        if self._receiving in outgoing:
            own = {self._receiving: outgoing.pop(self._receiving)}
        self._leave(outgoing)
        self._arm()
        return own

    def _execute(self, effect: ReplicaEffect, outgoing: dict[MemberId, list[PeerMessage]]) -> None:
        match effect:
            case Send() | SendPeer():
                self._push(effect.to, effect.message, outgoing)
            case Persist():
                self.observer.persisting(self, effect)
                for send in effect.then:
                    self._waiting_for_disk[send.to] += 1
                self.disk.submit(effect)
            case Initialise() | MarkRemoved():
                self._kernel.trace(self.name, type(effect).__name__)
                self.disk.submit(effect)
            case Reply() | Rejected() | ReadAt() | AdminDone():
                finish = self._calls.pop(effect.ref, None)
                if finish is not None:
                    finish(effect)
            case AnswerEnvelope():
                self._exchange.answer = effect.answer
            case RoleChanged():
                self._kernel.trace(self.name, "role", effect.role.name, effect.term, effect.leader)
                self.observer.role_changed(self, effect)
            case ConfigurationChanged():
                self._kernel.trace(
                    self.name,
                    "configuration",
                    effect.configuration.index,
                    effect.configuration.voters,
                    effect.configuration.learners,
                )
                self._relink()
            case Parked() | LocksChanged() | RingChanged() | LeaseHeld():
                pass
            case Stop():
                self.stopped = effect.reason
                raise Violation("replica.stopped", f"{self.name}: {effect.reason}")
            case _:
                assert_never(effect)

    def _arm(self) -> None:
        deadline_ms = self.replica.next_deadline_ms()
        if deadline_ms is None:
            return
        when_us = self.clock.when_us(deadline_ms)
        now_us = self._kernel.now_us
        due_us = max(when_us, now_us)
        if now_us < self._wake_at_us <= due_us + TIMER_SLACK_US:
            return
        # A timer is never quite on time.
        self._wake_at_us = due_us + self._rng.randint(1, TIMER_SLACK_US)
        self._kernel.at(self._wake_at_us, self._wake, self.incarnation)

    def _wake(self, incarnation: int) -> None:
        if incarnation != self.incarnation or not self.alive or self.paused:
            return
        deadline_ms = self.replica.next_deadline_ms()
        if deadline_ms is None or deadline_ms > self.now_ms:
            self._arm()
            return
        self._step(Wake(now_ms=self.now_ms))
        deadline_ms = self.replica.next_deadline_ms()
        self._spins = self._spins + 1 if deadline_ms in range(self.now_ms + 1) else 0
        if self._spins > MOST_SPINS:
            raise Violation("shell.spins", f"{self.name} wants to be woken all the time")

    # --- What leaves --------------------------------------------------------------------------

    def _push(
        self,
        to: MemberId,
        message: PeerMessage,
        outgoing: dict[MemberId, list[PeerMessage]],
    ) -> None:
        self.observer.sending(self, to, message)
        outgoing.setdefault(to, []).append(message)

    def _leave(self, outgoing: dict[MemberId, list[PeerMessage]]) -> None:
        for to, messages in outgoing.items():
            held = self._held.get(to)
            while held:
                exchange = held.pop(0)
                if exchange.open:
                    exchange.close(tuple(messages))
                    break
            else:
                address = self._addresses.get(to)
                if address is not None:
                    self._send_envelope(address, self.replica.envelope(to, tuple(messages)))

    def _send_envelope(self, address: str, envelope: Envelope) -> None:
        def arrive() -> None:
            self._hosts[address].arrive(envelope, reply)

        def reply(answer: Answer) -> None:
            self._network.send(address, self.name, self._answered, answer, incarnation)

        incarnation = self.incarnation
        self._network.send(self.name, address, arrive)

    def _answered(self, answer: Answer, incarnation: int) -> None:
        if incarnation == self.incarnation:
            self._when_running(self._take_answer, answer, incarnation)

    def _take_answer(self, answer: Answer, incarnation: int) -> None:
        if incarnation == self.incarnation:
            self._step(ReceiveAnswer(now_ms=self.now_ms, answer=answer))

    def _relink(self) -> None:
        for member in self.replica.configuration.members:
            if member.id != self.member_id:
                self._addresses[member.id] = member.peer_url.removeprefix("http://")
        for member_id in self.replica.configuration.removed:
            self._addresses.pop(member_id, None)


class _ConnectionLost:
    """The process went away with the call."""

    name = "CONNECTION_LOST"


_CONNECTION_LOST: Any = _ConnectionLost()
