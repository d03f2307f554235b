"""One core alone: a test speaks for everybody else and looks at what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from distsync_node.raft.core import RaftCore
from distsync_node.raft.membership import encode_change
from distsync_node.raft.types import (
    AppendRequest,
    AppendResponse,
    Compact,
    ConfigChange,
    ConfigOperation,
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    Member,
    MemberId,
    Persist,
    Persisted,
    PreVoteRequest,
    PreVoteResponse,
    Propose,
    ProposeConfig,
    RaftEffect,
    RaftMessage,
    RaftOptions,
    ReadIndex,
    Receive,
    RecoveredState,
    Role,
    Send,
    Snapshot,
    Term,
    Tick,
    TransferLeadership,
    VoteRequest,
    VoteResponse,
)
from unit.raft.cluster import FixedRandom, configuration, member, snapshot

EffectT = TypeVar("EffectT")
START_MS = 10_000


def command(index: int, term: int, payload: str = "") -> Entry:
    return Entry(Term(term), LogIndex(index), EntryKind.COMMANDS, index, payload.encode())


def config_entry(index: int, term: int, operation: ConfigOperation, target: str) -> Entry:
    payload = encode_change(ConfigChange(operation, member(target)))
    return Entry(Term(term), LogIndex(index), EntryKind.CONFIG, index, payload)


def log_of(*terms: int, first: int = 2) -> tuple[Entry, ...]:
    """Entries of these terms; the first follows genesis."""
    return tuple(command(first + number, term) for number, term in enumerate(terms))


def of(effects: Sequence[RaftEffect], kind: type[EffectT]) -> list[EffectT]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Sequence[RaftEffect], to: str | None = None) -> list[RaftMessage]:
    """What may leave at once."""
    return [send.message for send in of(effects, Send) if to in (None, send.to)]


def sent_after_write(effects: Sequence[RaftEffect], to: str | None = None) -> list[RaftMessage]:
    """What may leave once a Persist of this step is on disk."""
    return [
        send.message
        for persist in of(effects, Persist)
        for send in persist.then
        if to in (None, send.to)
    ]


def append(
    term: int,
    prev: tuple[int, int],
    entries: Sequence[Entry] = (),
    *,
    commit: int = 1,
    round_number: int = 1,
) -> AppendRequest:
    index, prev_term = LogIndex(prev[0]), Term(prev[1])
    return AppendRequest(
        Term(term), index, prev_term, LogIndex(commit), round_number, tuple(entries)
    )


def accepted(term: int, match: int, round_number: int = 1) -> AppendResponse:
    return AppendResponse(Term(term), round_number, accepted=True, match_index=LogIndex(match))


def refused(term: int, at: int, hint: tuple[int, int], round_number: int = 1) -> AppendResponse:
    return AppendResponse(
        Term(term),
        round_number,
        accepted=False,
        match_index=LogIndex(0),
        conflict_index=LogIndex(hint[0]),
        conflict_term=Term(hint[1]),
        refused_index=LogIndex(at),
    )


def pre_vote_answer(
    term: int, *, granted: bool, commit: tuple[int, int] = (1, 1)
) -> PreVoteResponse:
    return PreVoteResponse(Term(term), granted, LogIndex(commit[0]), Term(commit[1]))


class Single:
    """A core with its clock; Persists stay under way until `write` is called."""

    def __init__(
        self,
        voters: str = "123",
        learners: str = "",
        *,
        me: str = "1",
        term: int = 1,
        vote: str | None = None,
        commit: int = 0,
        entries: tuple[Entry, ...] = (),
        base: Snapshot | None = None,
        options: RaftOptions | None = None,
        timeout_ms: int = 400,
    ) -> None:
        self.now_ms = START_MS
        self.options = options or RaftOptions()
        self.random = FixedRandom(timeout_ms)
        recovered = RecoveredState(
            member_id=MemberId(me),
            hard_state=HardState(
                Term(term), None if vote is None else MemberId(vote), LogIndex(commit)
            ),
            snapshot=base or snapshot(configuration(voters, learners)),
            entries=entries,
        )
        self.core = RaftCore(recovered, self.options, self.random, self.now_ms)
        self.core.check_invariants()
        self._unwritten: list[Persist] = []

    def _step(self, effects: list[RaftEffect]) -> list[RaftEffect]:
        self.core.check_invariants()
        self._unwritten += of(effects, Persist)
        return effects

    def receive(self, sender: str, message: RaftMessage) -> list[RaftEffect]:
        event = Receive(now_ms=self.now_ms, sender=MemberId(sender), message=message)
        return self._step(self.core.step(event))

    def tick(self, after_ms: int = 0) -> list[RaftEffect]:
        self.now_ms += after_ms
        return self._step(self.core.step(Tick(now_ms=self.now_ms)))

    def time_out(self) -> list[RaftEffect]:
        """Reach the next deadline."""
        self.now_ms = max(self.now_ms, self.core.next_deadline_ms())
        return self.tick()

    def write(self) -> list[RaftEffect]:
        """Finish what is under way to the disk; returns what was held back, and what follows."""
        effects: list[RaftEffect] = []
        for persist in self._unwritten:
            effects += persist.then
        if self._unwritten:
            seq = self._unwritten[-1].seq
            self._unwritten = []
            effects += self._step(self.core.step(Persisted(now_ms=self.now_ms, seq=seq)))
        return effects

    def persisted(self, seq: int) -> list[RaftEffect]:
        self._unwritten = [persist for persist in self._unwritten if persist.seq > seq]
        return self._step(self.core.step(Persisted(now_ms=self.now_ms, seq=seq)))

    def propose(
        self, payload: bytes = b"x", kind: EntryKind = EntryKind.COMMANDS
    ) -> list[RaftEffect]:
        return self._step(
            self.core.step(
                Propose(now_ms=self.now_ms, ref=7, kind=kind, stamp_ms=self.now_ms, payload=payload)
            )
        )

    def change(
        self, operation: ConfigOperation, member: Member, expected: int | None = None
    ) -> list[RaftEffect]:
        return self._step(
            self.core.step(
                ProposeConfig(
                    now_ms=self.now_ms,
                    ref=8,
                    stamp_ms=self.now_ms,
                    change=ConfigChange(operation, member),
                    expected_config_index=None if expected is None else LogIndex(expected),
                )
            )
        )

    def read(self, ref: int = 9) -> list[RaftEffect]:
        return self._step(self.core.step(ReadIndex(now_ms=self.now_ms, ref=ref)))

    def transfer(self, target: str | None = None) -> list[RaftEffect]:
        chosen = None if target is None else MemberId(target)
        return self._step(self.core.step(TransferLeadership(now_ms=self.now_ms, target=chosen)))

    def compact(self, state: Snapshot) -> list[RaftEffect]:
        return self._step(self.core.step(Compact(now_ms=self.now_ms, snapshot=state)))

    # --- Ways to a role -----------------------------------------------------------------------

    def stand(self) -> list[RaftEffect]:
        """Become a candidate whose own vote is not written yet."""
        self.time_out()
        effects: list[RaftEffect] = []
        for voter in self.core.configuration.voters:
            if voter != self.core.member_id and self.core.role is Role.PRE_CANDIDATE:
                term = Term(self.core.term + 1)
                effects = self.receive(voter, PreVoteResponse(term, granted=True))
        return effects

    def lead(self) -> list[RaftEffect]:
        """Become leader; returns the effects of the step that did it."""
        self.stand()
        effects = self.write()
        for voter in self.core.configuration.voters:
            if voter != self.core.member_id and self.core.role is Role.CANDIDATE:
                effects = self.receive(voter, VoteResponse(self.core.term, granted=True))
        return effects

    def lead_and_commit(self) -> None:
        """Become leader with every follower caught up and the no-op committed."""
        self.lead()
        self.write()
        for follower in self.core.progress():
            self.receive(follower, accepted(self.core.term, self.core.last_index))
        self.write()

    def ask_pre_vote(self, sender: str, term: int, last: tuple[int, int]) -> list[RaftEffect]:
        return self.receive(sender, PreVoteRequest(Term(term), LogIndex(last[0]), Term(last[1])))

    def ask_vote(
        self, sender: str, term: int, last: tuple[int, int], *, transfer: bool = False
    ) -> list[RaftEffect]:
        return self.receive(
            sender, VoteRequest(Term(term), LogIndex(last[0]), Term(last[1]), transfer)
        )


def leader(voters: str = "123", learners: str = "", **options: int | bool) -> Single:
    """A leader of term 2 with its no-op committed and everybody caught up."""
    single = Single(voters, learners, options=RaftOptions(**options))  # type: ignore[arg-type]
    single.lead_and_commit()
    return single


def follower(*terms: int, term: int = 2) -> Single:
    """A follower of 2 in `term` whose log has entries of these terms."""
    single = Single(term=term, entries=log_of(*terms))
    single.receive("2", append(term, (1, 1)))
    return single
