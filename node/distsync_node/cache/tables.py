"""The transitions, as literal tables: lines at a node, transactions at a home.

What is not in a table cannot happen; if it does, that is a broken invariant and the node stops.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import Final

from distsync_node.errors import InvariantViolation


class LineState(Enum):
    """A line at a node. The first four are MESI's; the others have an Ask under way."""

    INVALID = "I"
    SHARED = "S"
    EXCLUSIVE = "E"
    MODIFIED = "M"
    FILLING = "filling"
    FILLING_INVALIDATED = "filling-invalidated"  # serves who waited before, is not installed
    OWNING = "owning"  # local durability: I, waiting for ownership
    UPGRADING = "upgrading"  # the same with S
    OWNING_INVALIDATED = "owning-invalidated"  # the grant will be refused
    COMMITTING = "commit-pending"  # a write is at the home; nobody reads here meanwhile
    COMMITTING_SHARED = "commit-pending-S"  # and what was held before, should it be denied
    COMMITTING_EXCLUSIVE = "commit-pending-E"
    COMMITTING_MODIFIED = "commit-pending-M"
    CLEANING = "cleaning"  # M, to be E once Redis has it
    WRITING_BACK = "writing-back"  # M, to be dropped once Redis has it
    WRITING_BACK_SHARED = "writing-back-S"  # snooped meanwhile
    WRITING_BACK_INVALIDATED = "writing-back-I"  # invalidated meanwhile


class Input(Enum):
    """What happens to a line."""

    ASK_READ = "ask-read"
    ASK_WRITE = "ask-write"
    ASK_OWNERSHIP = "ask-ownership"
    ASK_CLEANING = "ask-cleaning"
    ASK_EVICTION = "ask-eviction"
    WRITE = "PrWr in E or M, local durability"
    FILL_SHARED = "fill-S"
    FILL_EXCLUSIVE = "fill-E"
    OWNERSHIP = "ownership"
    COMMITTED_CLEAN = "committed"
    COMMITTED_DIRTY = "committed-dirty"
    WRITTEN_BACK = "written back, to stay"
    EVICTED = "written back, to go"
    WRITTEN_BACK_OLDER = "written back, but written since"
    DENIED = "denied"
    SNOOP = "snoop"
    INVALIDATE = "invalidate"
    SNOOP_OVERTAKES = "snoop of the grant that is on its way"
    INVALIDATE_OVERTAKES = "invalidate of the grant that is on its way"
    CLEANED = "Redis has it"
    GIVE_UP = "nobody waits for the answer any more"
    MOVED = "home moved: what became of the write is asked of the one of before"
    DROP = "lease lapsed, home moved, or clean and evicted"


_S, _I = LineState, Input

LINE: Final = MappingProxyType(
    {
        _S.INVALID: {
            _I.ASK_READ: _S.FILLING,
            _I.ASK_WRITE: _S.COMMITTING,
            _I.ASK_OWNERSHIP: _S.OWNING,
            _I.DROP: _S.INVALID,
        },
        _S.SHARED: {
            _I.ASK_READ: _S.FILLING,  # its time to live is over
            _I.ASK_WRITE: _S.COMMITTING_SHARED,
            _I.ASK_OWNERSHIP: _S.UPGRADING,
            _I.SNOOP: _S.SHARED,
            _I.INVALIDATE: _S.INVALID,
            _I.CLEANED: _S.SHARED,
            _I.DROP: _S.INVALID,
        },
        _S.EXCLUSIVE: {
            _I.ASK_READ: _S.FILLING,
            _I.ASK_WRITE: _S.COMMITTING_EXCLUSIVE,
            _I.WRITE: _S.MODIFIED,
            _I.SNOOP: _S.SHARED,
            _I.INVALIDATE: _S.INVALID,
            _I.CLEANED: _S.EXCLUSIVE,
            _I.DROP: _S.INVALID,
        },
        _S.MODIFIED: {
            _I.ASK_WRITE: _S.COMMITTING_MODIFIED,
            _I.ASK_CLEANING: _S.CLEANING,
            _I.ASK_EVICTION: _S.WRITING_BACK,
            _I.WRITE: _S.MODIFIED,
            _I.SNOOP: _S.SHARED,
            _I.INVALIDATE: _S.INVALID,
            _I.CLEANED: _S.EXCLUSIVE,
            _I.DROP: _S.INVALID,
        },
        _S.FILLING: {
            _I.FILL_SHARED: _S.SHARED,
            _I.FILL_EXCLUSIVE: _S.EXCLUSIVE,
            _I.DENIED: _S.INVALID,
            _I.SNOOP_OVERTAKES: _S.FILLING_INVALIDATED,
            _I.INVALIDATE_OVERTAKES: _S.FILLING_INVALIDATED,
            _I.GIVE_UP: _S.INVALID,
            _I.DROP: _S.INVALID,
        },
        _S.FILLING_INVALIDATED: {
            _I.FILL_SHARED: _S.INVALID,
            _I.FILL_EXCLUSIVE: _S.INVALID,
            _I.DENIED: _S.INVALID,
            _I.SNOOP_OVERTAKES: _S.FILLING_INVALIDATED,
            _I.INVALIDATE_OVERTAKES: _S.FILLING_INVALIDATED,
            _I.GIVE_UP: _S.INVALID,
            _I.DROP: _S.INVALID,
        },
        _S.OWNING: {
            _I.OWNERSHIP: _S.EXCLUSIVE,
            _I.DENIED: _S.INVALID,
            _I.SNOOP_OVERTAKES: _S.OWNING_INVALIDATED,
            _I.INVALIDATE_OVERTAKES: _S.OWNING_INVALIDATED,
            _I.GIVE_UP: _S.INVALID,
            _I.DROP: _S.INVALID,
        },
        _S.UPGRADING: {
            _I.OWNERSHIP: _S.EXCLUSIVE,
            _I.DENIED: _S.SHARED,
            _I.SNOOP: _S.UPGRADING,
            _I.INVALIDATE: _S.OWNING,
            _I.CLEANED: _S.UPGRADING,
            _I.SNOOP_OVERTAKES: _S.OWNING_INVALIDATED,
            _I.INVALIDATE_OVERTAKES: _S.OWNING_INVALIDATED,
            _I.GIVE_UP: _S.INVALID,  # the home may take it for the owner already
            _I.DROP: _S.INVALID,
        },
        _S.OWNING_INVALIDATED: {
            _I.OWNERSHIP: _S.INVALID,
            _I.DENIED: _S.INVALID,
            _I.SNOOP_OVERTAKES: _S.OWNING_INVALIDATED,
            _I.INVALIDATE_OVERTAKES: _S.OWNING_INVALIDATED,
            _I.GIVE_UP: _S.INVALID,
            _I.DROP: _S.INVALID,
        },
        _S.COMMITTING: {
            _I.COMMITTED_CLEAN: _S.EXCLUSIVE,
            _I.COMMITTED_DIRTY: _S.MODIFIED,
            _I.DENIED: _S.INVALID,
            _I.SNOOP_OVERTAKES: _S.SHARED,
            _I.INVALIDATE_OVERTAKES: _S.INVALID,
            _I.GIVE_UP: _S.INVALID,
            _I.MOVED: _S.COMMITTING,
            _I.DROP: _S.INVALID,
        },
        _S.COMMITTING_SHARED: {
            _I.COMMITTED_CLEAN: _S.EXCLUSIVE,
            _I.COMMITTED_DIRTY: _S.MODIFIED,
            _I.DENIED: _S.SHARED,
            _I.SNOOP: _S.COMMITTING_SHARED,
            _I.INVALIDATE: _S.COMMITTING,
            _I.CLEANED: _S.COMMITTING_SHARED,
            _I.SNOOP_OVERTAKES: _S.SHARED,
            _I.INVALIDATE_OVERTAKES: _S.INVALID,
            _I.GIVE_UP: _S.INVALID,
            _I.MOVED: _S.COMMITTING,
            _I.DROP: _S.INVALID,
        },
        _S.COMMITTING_EXCLUSIVE: {
            _I.COMMITTED_CLEAN: _S.EXCLUSIVE,
            _I.COMMITTED_DIRTY: _S.MODIFIED,
            _I.DENIED: _S.EXCLUSIVE,
            _I.SNOOP: _S.COMMITTING_SHARED,
            _I.INVALIDATE: _S.COMMITTING,
            _I.CLEANED: _S.COMMITTING_EXCLUSIVE,
            _I.SNOOP_OVERTAKES: _S.SHARED,
            _I.INVALIDATE_OVERTAKES: _S.INVALID,
            _I.GIVE_UP: _S.INVALID,
            _I.MOVED: _S.COMMITTING,
            _I.DROP: _S.INVALID,
        },
        _S.COMMITTING_MODIFIED: {
            _I.COMMITTED_CLEAN: _S.EXCLUSIVE,
            _I.COMMITTED_DIRTY: _S.MODIFIED,
            _I.DENIED: _S.MODIFIED,
            _I.SNOOP: _S.COMMITTING_SHARED,
            _I.INVALIDATE: _S.COMMITTING,
            _I.CLEANED: _S.COMMITTING_EXCLUSIVE,
            _I.SNOOP_OVERTAKES: _S.SHARED,
            _I.INVALIDATE_OVERTAKES: _S.INVALID,
            _I.GIVE_UP: _S.INVALID,
            _I.MOVED: _S.COMMITTING,
            _I.DROP: _S.INVALID,
        },
        _S.CLEANING: {
            _I.WRITE: _S.CLEANING,
            _I.WRITTEN_BACK: _S.EXCLUSIVE,
            _I.WRITTEN_BACK_OLDER: _S.MODIFIED,
            _I.DENIED: _S.MODIFIED,
            _I.SNOOP: _S.WRITING_BACK_SHARED,
            _I.INVALIDATE: _S.WRITING_BACK_INVALIDATED,
            _I.CLEANED: _S.CLEANING,
            _I.DROP: _S.INVALID,
        },
        _S.WRITING_BACK: {
            _I.WRITE: _S.WRITING_BACK,
            _I.EVICTED: _S.INVALID,
            _I.WRITTEN_BACK_OLDER: _S.MODIFIED,
            _I.DENIED: _S.MODIFIED,
            _I.SNOOP: _S.WRITING_BACK_SHARED,
            _I.INVALIDATE: _S.WRITING_BACK_INVALIDATED,
            _I.CLEANED: _S.WRITING_BACK,
            _I.DROP: _S.INVALID,
        },
        _S.WRITING_BACK_SHARED: {
            _I.WRITTEN_BACK: _S.SHARED,
            _I.EVICTED: _S.INVALID,
            _I.WRITTEN_BACK_OLDER: _S.SHARED,
            _I.DENIED: _S.SHARED,
            _I.SNOOP: _S.WRITING_BACK_SHARED,
            _I.INVALIDATE: _S.WRITING_BACK_INVALIDATED,
            _I.CLEANED: _S.WRITING_BACK_SHARED,
            _I.DROP: _S.INVALID,
        },
        _S.WRITING_BACK_INVALIDATED: {
            _I.WRITTEN_BACK: _S.INVALID,
            _I.EVICTED: _S.INVALID,
            _I.WRITTEN_BACK_OLDER: _S.INVALID,
            _I.DENIED: _S.INVALID,
            _I.DROP: _S.INVALID,
        },
    }
)

READABLE: Final = frozenset(
    {
        _S.SHARED,
        _S.EXCLUSIVE,
        _S.MODIFIED,
        _S.CLEANING,
        _S.WRITING_BACK,
        _S.WRITING_BACK_SHARED,
    }
)
HAS_RECORD: Final = READABLE | {
    _S.UPGRADING,
    _S.COMMITTING_SHARED,
    _S.COMMITTING_EXCLUSIVE,
    _S.COMMITTING_MODIFIED,
}
DIRTY: Final = frozenset({_S.MODIFIED, _S.CLEANING, _S.WRITING_BACK, _S.COMMITTING_MODIFIED})
OWNED: Final = DIRTY | {_S.EXCLUSIVE, _S.COMMITTING_EXCLUSIVE}
COMMITTING: Final = frozenset(
    {
        _S.COMMITTING,
        _S.COMMITTING_SHARED,
        _S.COMMITTING_EXCLUSIVE,
        _S.COMMITTING_MODIFIED,
    }
)


def next_state(state: LineState, what: Input) -> LineState:
    """Return the state after an input. Raises InvariantViolation when it cannot happen."""
    after = LINE[state].get(what)
    if after is None:
        raise InvariantViolation(f"a line in {state.value} cannot take {what.value}")
    return after


class TxnState(Enum):
    """How far the one transaction of a key is, at its home."""

    TAKING_OVER = "taking over"  # the range is not this node's yet
    LOADING = "loading"  # Redis reads the key
    SNOOPING = "snooping"  # the owner gives the value and keeps S
    INVALIDATING = "invalidating"  # the others give up what they hold
    SECURING = "securing"  # Redis writes the value of before
    MARKING = "marking"  # Redis notes that it will not have the newest value
    MIRRORING = "mirroring"  # the ring successor takes a copy
    WRITING = "writing"  # Redis writes the new value
    STALLED = "stalled"  # the node lease has run out: nothing may be committed or granted
    DONE = "done"


class TxnKind(Enum):
    """What a transaction is for."""

    READ = "read"
    WRITE = "write"
    OWNERSHIP = "ownership"
    WRITE_BACK = "write-back"
    EXPIRY = "expiry"  # a deletion by the home: the time to live is over
    RECOVERY = "recovery"  # somebody kept a copy


_T = TxnState
_ANY_WAIT = {_T.TAKING_OVER, _T.LOADING}
_STEPS = {
    TxnKind.READ: (_T.SNOOPING, _T.SECURING),
    TxnKind.WRITE: (_T.INVALIDATING, _T.SECURING, _T.MARKING, _T.MIRRORING, _T.WRITING),
    TxnKind.OWNERSHIP: (_T.INVALIDATING, _T.SECURING),
    TxnKind.WRITE_BACK: (_T.SECURING,),
    TxnKind.EXPIRY: (_T.INVALIDATING, _T.SECURING, _T.MARKING, _T.MIRRORING, _T.WRITING),
    TxnKind.RECOVERY: (_T.SECURING,),
}
# From each state of a transaction: those that may follow.
TXN: Final = MappingProxyType(
    {
        _T.TAKING_OVER: {_T.LOADING, _T.STALLED, _T.DONE},
        _T.LOADING: {
            _T.SNOOPING,
            _T.INVALIDATING,
            _T.SECURING,
            _T.MARKING,
            _T.WRITING,
            _T.STALLED,
            _T.DONE,
        },
        _T.SNOOPING: {_T.LOADING, _T.SECURING, _T.STALLED, _T.DONE},
        _T.INVALIDATING: {
            _T.LOADING,
            _T.SECURING,
            _T.MARKING,
            _T.MIRRORING,
            _T.WRITING,
            _T.STALLED,
            _T.DONE,
        },
        _T.SECURING: {
            _T.LOADING,
            _T.MARKING,
            _T.MIRRORING,
            _T.WRITING,
            _T.STALLED,
            _T.DONE,
        },
        _T.MARKING: {_T.MIRRORING, _T.WRITING, _T.STALLED, _T.DONE},
        _T.MIRRORING: {_T.MARKING, _T.WRITING, _T.STALLED, _T.DONE},
        _T.WRITING: {_T.STALLED, _T.DONE},
        _T.STALLED: {
            _T.LOADING,
            _T.SNOOPING,
            _T.INVALIDATING,
            _T.SECURING,
            _T.MARKING,  # the places are others after a change of the ring
            _T.MIRRORING,
            _T.WRITING,
            _T.DONE,
        },
        _T.DONE: set(),
    }
)


def check_step(kind: TxnKind, before: TxnState | None, after: TxnState) -> None:
    """Raise InvariantViolation if a transaction of that kind cannot go on so."""
    known = before is None or after in TXN[before]
    if not known or not (
        after in _ANY_WAIT or after in {_T.STALLED, _T.DONE} or after in _STEPS[kind]
    ):
        was = "nothing" if before is None else before.value
        raise InvariantViolation(f"a {kind.value} cannot go from {was} to {after.value}")
