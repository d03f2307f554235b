"""What a home knows of one key: its entry, and the transactions on it.

It guarantees that a transaction goes only from state to state as the table of its kind allows
(`tables.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from distsync_node.cache.events import Mark
from distsync_node.cache.judging import Offer
from distsync_node.cache.messages import Committed
from distsync_node.cache.tables import TxnKind, TxnState, check_step
from distsync_node.cache.types import ABSENT, NOTHING, Change, Copy, PeerId, Record, Version


class Step(Enum):
    """What a step of a transaction came to."""

    WAIT = auto()
    AGAIN = auto()
    DONE = auto()


@dataclass(slots=True, kw_only=True)
class Txn:
    """A transaction of a key: the one that runs, or one that waits for its turn."""

    kind: TxnKind
    key: str
    source: PeerId
    id: int
    lease: int = 0
    number: int = 0  # of the Ask
    change: Change | None = None
    grant: int = 0  # of a write-back: what is held
    copy: Copy | None = None
    state: TxnState | None = None  # None: it has not begun
    waiting: set[PeerId] = field(default_factory=set)  # who has not yielded yet
    request: int = 0  # of Redis, under way
    version: Version | None = None  # assigned, not committed
    record: Record | None = None  # what will be committed
    exposed: Version | None = None  # under which a mirror or Redis was first sent the record
    mark: Mark | None = None  # being set
    unsure: bool = False  # Redis or a mirror may have something of it: it cannot be denied any more
    mirror: PeerId | None = None  # who has not taken the copy yet
    mirrored: bool = False
    without_mirror: bool = False
    written: bool = False

    def become(self, state: TxnState) -> None:
        """Go on to a state, as the table allows."""
        if state is not self.state:
            check_step(self.kind, self.state, state)
            self.state = state

    def lose_mirror(self) -> None:
        """The successor does not answer: Redis takes its place for this write."""
        self.mirror = None
        self.without_mirror = self.unsure = True


@dataclass(slots=True, kw_only=True)
class Entry:
    """One key at its home.

    `record` is the committed state, but for an owner under local durability, who may be ahead. Its
    value is there if `has_value`, always while `dirty`: while Redis has an older one.
    """

    key: str
    loaded: bool = False
    has_value: bool = False
    record: Record = NOTHING
    lost: bool = False  # the newest value is nowhere any more
    dirty: bool = False
    dirty_since_ms: int = 0
    confirmed: bool = True  # while dirty: known to be in a second place
    mark: Mark | None = None  # in Redis; None while dirty: not known, or none
    stale_mark: Version = ABSENT  # in Redis, of writes that were never made
    owner: PeerId | None = None
    owner_grant: int = 0
    owner_commit: Committed | None = None  # what the owner's Ask came to, if it was a write
    sharers: dict[PeerId, int] = field(default_factory=dict)  # and the numbers of their grants
    offers: dict[PeerId, Offer] = field(default_factory=dict)  # copies that others have kept
    txn: Txn | None = None
    queue: list[Txn] = field(default_factory=list)  # an empty deque has 600 bytes
    flush: int = 0  # the request of Redis that writes the record back, under way
    retry_ms: int = 0  # Redis failed: not before this time again
    forgotten: bool = False  # Redis knows nothing of it any more, and has to be asked first

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to remember that Redis does not know."""
        return not (
            self.txn
            or self.queue
            or self.flush
            or self.owner
            or self.sharers
            or self.dirty
            or self.lost
            or self.stale_mark != ABSENT
            or self.offers
        )

    def holders(self) -> dict[PeerId, int]:
        """Return who may hold a copy, and the number of the grant."""
        if self.owner is None:
            return dict(self.sharers)
        return {**self.sharers, self.owner: self.owner_grant}

    def grant_of(self, holder: PeerId) -> int:
        """Return the number of the grant under which it may hold a copy; 0 = it holds none."""
        return self.owner_grant if holder == self.owner else self.sharers.get(holder, 0)

    def forget(self, holder: PeerId) -> None:
        """That holder holds nothing of it."""
        self.sharers.pop(holder, None)
        if self.owner == holder:
            self.owner = None
            self.owner_grant = 0
            self.owner_commit = None
