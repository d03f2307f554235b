"""What nodes tell each other. Every message travels with the epoch of its sender.

    holder -> home    Renew        keep my copy lease (0: give me one; I hold nothing of yours)
                      Ask          one of AskRead, AskWrite, AskOwnership, AskWriteBack
                      Yielded      the answer to Snoop and Invalidate
                      Dropped      I hold what that grant gave no longer (a hint; may be lost)
    home -> holder    Renewed      the lease and how long it lasts; 0: as long as before
                      Reply        to an Ask: Granted, Committed, WrittenBack, Denied or GivenUp;
                                   it renews
                      Snoop        another reads: keep a shared copy at most
                      Invalidate   another writes: keep nothing
                      Cleaned      Redis has that version: copies kept for safety may go
    home -> successor Mirror       keep this copy; answered by Mirrored
    any -> new home   Report       what I keep of your part of the ring, under the new epoch, in
                                   parts; answered by ReportTaken. Part 0 is beside the epoch
    any -> any        RingWanted   you seem to know a newer ring; answered by RingNews

Lost messages are sent again by who waits for the answer, so all of them may come twice, late, or
never. What makes that harmless: the numbers of asks (`number`, `floor`), of transactions (`txn`),
of leases (`lease`) and of grants (`grant`: the number of the Ask that it answers).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from distsync_node.cache.types import ABSENT, Change, Code, Copy, Version
from distsync_node.cluster.ring_state import RingState


class Renew(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Keep the lease of that number; all asks below `floor` have ended at the holder."""

    lease: int
    number: int
    floor: int


class Renewed(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The answer; it counts from the sending of the Renew of that number."""

    lease: int
    number: int
    lease_ms: int


class AskRead(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The value, and a copy to keep."""


class AskWrite(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Commit this change, and let me own the line."""

    change: Change


class AskOwnership(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Let me own the line and write it by myself (local durability)."""


class AskWriteBack(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Have it in Redis; `copy` is what only I have (local durability).

    `stays`: to hold it as clean then, not to drop it.
    """

    grant: int
    copy: Copy | None
    stays: bool = False


Wish: TypeAlias = AskRead | AskWrite | AskOwnership | AskWriteBack


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A request for one key."""

    lease: int
    number: int
    floor: int
    key: str
    wish: Wish


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A copy to keep, alone (E) or shared (S). `block`: counters for versions of its owner."""

    copy: Copy
    exclusive: bool
    block: tuple[int, int, int] | None = None  # epoch, first counter, and the one after the last


class Committed(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The change is made; the asker owns the line, as E or, where Redis has it not yet, as M."""

    version: Version
    fences: tuple[tuple[str, int], ...]
    dirty: bool


class WrittenBack(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Redis has it: the line may be dropped, or be clean."""


class Denied(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Nothing was changed or granted."""

    code: Code
    version: Version
    newest: int


class GivenUp(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Who was asked to write is not the home any more, and did nothing, nor will it.

    With a version: the write may have been made, under that version or never.
    """

    version: Version = ABSENT


Result: TypeAlias = Granted | Committed | WrittenBack | Denied | GivenUp


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The answer to the Ask of that number."""

    lease: int
    number: int
    lease_ms: int
    key: str
    result: Result


class Snoop(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Another reads. `committed`: what the Ask numbered `grant` came to, if that was a write."""

    lease: int
    txn: int
    key: str
    grant: int
    committed: Committed | None = None


class Invalidate(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Another writes. Fields as in Snoop."""

    lease: int
    txn: int
    key: str
    grant: int
    committed: Committed | None = None


class Yielded(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Done. `version` is the newest the holder keeps, if only for safety; ABSENT: none."""

    lease: int
    txn: int
    key: str
    version: Version
    copy: Copy | None = None


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """A line was evicted: the home need not remember it. Nothing is lost if this is."""

    lease: int
    key: str
    grant: int


class Cleaned(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Redis has this version or a newer one."""

    key: str
    version: Version


class Mirror(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Keep this copy for safety; it is not to be served."""

    txn: int
    key: str
    copy: Copy


class Mirrored(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """The copy is kept; or not, by a node that is about to leave."""

    txn: int
    key: str
    kept: bool = True


class Report(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """Part `part` of `parts` (from 1) of all copies kept of the receiver's keys.

    `unmarked`: the keys of those that are newer than what Redis has without a mark there.
    """

    part: int
    parts: int
    copies: tuple[tuple[str, Copy], ...]
    unmarked: tuple[str, ...] = ()


class ReportTaken(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """That part has arrived."""

    part: int


class RingWanted(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """Tell me the ring you know."""


class RingNews(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """Rings, one after the other, as far as they are known: a gap costs lines and leases.

    `left_have_ended`: whoever is not in the last one has certainly no lease any more.
    """

    rings: tuple[RingState, ...]
    left_have_ended: bool


Message: TypeAlias = (
    Renew
    | Renewed
    | Ask
    | Reply
    | Snoop
    | Invalidate
    | Yielded
    | Dropped
    | Cleaned
    | Mirror
    | Mirrored
    | Report
    | ReportTaken
    | RingWanted
    | RingNews
)
