"""A barrier: `parties` callers wait until all of them have come.

What it guarantees:

- Nobody passes before `parties` calls of `wait()` were there at the same moment, each with a lease
  that had not ended. More callers than that form the next group; the barrier can be used again
  and again, by the same parties or others, without a reset.
- Once one has passed, every other of the group passes too, unless it cannot reach the cluster:
  then its `wait()` raises `Unavailable`, or `SessionLost` when its lease has ended.
- A party that crashes while it waits counts no more when its lease has ended (`ttl`); the others
  wait on for somebody in its place. One that gives up or is cancelled may have been counted: if
  it was the last one needed, the others may have passed.

How. Each call opens a session; whatever it holds ends with it.

    NAME/.barrier/door         exclusive: one arrival at a time
    NAME/.barrier/GROUP/here   a semaphore of `parties` permits: who is there
    NAME/.barrier/GROUP/open   shared, held by lease alone: the group is complete

Behind the door an arrival looks for the oldest group that is neither complete nor full and joins
it, or else founds one named by the fencing token of the door, which never comes twice. Door and
permit hang on one session, so an arrival that was paused until the door was no longer its own
cannot join what it saw before: its session is gone. Behind the door no group can fill up between
the look and the joining, because to fill it takes an arrival.

A party passes when it reads that its group is complete, or that all are here, itself included. In
the latter case it first puts up the open sign, which nobody takes down and no death does: it stays
for much longer than a session lives without contact. Every other party that lives reads it within
that time, even if all that saw the full house have left or died since. A sign that comes late,
from a party that was paused, is for a group that never comes again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from distsync.core import Core
from distsync.durations import Duration, to_milliseconds, to_seconds
from distsync.errors import BadRequest, LimitMismatch, WaitTimeout
from distsync.identity import new_request_id
from distsync.models import AcquireBody, Grant, LockInfo
from distsync.sessions import Session
from distsync.waiting import Wait, until_of, wait_seconds
from distsync.watching import Changes

__all__ = ["Barrier"]

_LONGEST_TTL_SECONDS: Final = 3600.0


@dataclass(slots=True)
class _Group:
    here: int = 0
    limit: int | None = None
    is_open: bool = False


class Barrier:
    """A barrier; made by `AsyncClient.barrier`. One object serves any number of callers."""

    def __init__(self, core: Core, name: str, parties: int, *, ttl: Duration = 10.0) -> None:
        """Users call `AsyncClient.barrier` instead."""
        if parties < 1:
            raise BadRequest("parties: at least 1", field="parties")
        ttl_seconds = to_seconds(ttl, "ttl")
        if ttl_seconds > _LONGEST_TTL_SECONDS:
            raise BadRequest(f"ttl: at most {_LONGEST_TTL_SECONDS:.0f} s", field="ttl")
        self.name = name
        self.parties = parties
        self._core = core
        self._ttl = ttl_seconds
        self._prefix = f"{name}/.barrier/"

    async def wait(self, wait: Wait = None) -> None:
        """Wait until `parties` callers are here.

        Raises:
            WaitTimeout: `wait` passed first.
            SessionLost: this party's lease ended while it waited.
            LimitMismatch: others came with another number of parties.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        until = until_of(self._core, wait_seconds(wait))
        owner = self._core.identity.new_owner()
        async with Session(self._core, ttl=self._ttl) as session:
            group = await self._arrive(session, owner, until)
            await self._gather(session, group, owner, until)

    async def waiting(self) -> int:
        """Return how many are here and wait for others."""
        groups = _groups(self._prefix, await self._list(self._prefix))
        return sum(group.here for group in groups.values() if not group.is_open)

    async def _arrive(self, session: Session, owner: str, until: float | None) -> int:
        door = session.lock(f"{self._prefix}door", owner=owner)
        await door.acquire(None if until is None else max(0.0, until - self._core.clock.now()))
        groups = _groups(self._prefix, await self._list(self._prefix))
        waiting = {number: group for number, group in groups.items() if not group.is_open}
        for group in waiting.values():
            if group.limit not in (None, self.parties):
                text = f"{self.name}: others wait for {group.limit} parties, not {self.parties}"
                raise LimitMismatch(text, name=self.name)
        unfilled = [number for number, group in waiting.items() if 0 < group.here < self.parties]
        number = min(unfilled, default=door.token)
        permit = session.semaphore(self._here(number), self.parties, owner=owner, wait=0)
        await permit.acquire()
        # Not by `async with`, which would keep silent about a failure: a party that waited with
        # the door in its hand would lock out all others.
        await door.release()
        return number

    async def _gather(self, session: Session, number: int, owner: str, until: float | None) -> None:
        clock = self._core.clock
        async with Changes(self._core, self._here(number)) as changes:
            while True:
                states = await self._list(f"{self._prefix}{number}/")
                session.check()  # it lived when this was read, so its own permit was counted
                group = _groups(self._prefix, states).get(number, _Group())
                if group.is_open:
                    return
                if group.here >= self.parties:
                    await self._put_up_sign(number, owner)
                    return
                if until is not None and clock.now() >= until:
                    text = f"{self.name}: {group.here} of {self.parties} came in time"
                    raise WaitTimeout(text, name=self.name)
                await self._await_change(changes, group.here, until)

    async def _await_change(self, changes: Changes, here: int, until: float | None) -> None:
        look_at = self._core.clock.now() + self._ttl / 3
        if until is not None:
            look_at = min(look_at, until)
        while self._core.clock.now() < look_at:
            await changes.wait(look_at)
            latest = changes.latest
            if latest is not None and (
                latest.holder_count >= self.parties or latest.holder_count < here
            ):
                return

    async def _put_up_sign(self, number: int, owner: str) -> None:
        body = AcquireBody(
            name=f"{self._prefix}{number}/open",
            owner=owner,
            request_id=new_request_id(),
            mode="shared",
            ttl_ms=to_milliseconds(6 * self._ttl + 60),
        )
        # Past the client's care for abandoned grants: in doubt, this one shall stay.
        await self._core.transport.post("/lock/acquire", body, Grant)

    def _here(self, number: int) -> str:
        return f"{self._prefix}{number}/here"

    async def _list(self, prefix: str) -> list[LockInfo]:
        return [state async for state in self._core.list_locks(prefix)]


def _groups(prefix: str, states: Iterable[LockInfo]) -> dict[int, _Group]:
    groups: dict[int, _Group] = {}
    for state in states:
        number, _, part = state.name.removeprefix(prefix).partition("/")
        if not number.isdecimal() or not state.holders:
            continue
        group = groups.setdefault(int(number), _Group())
        if part == "here":
            group.here = state.holder_count or len(state.holders)
            group.limit = state.limit
        elif part == "open":
            group.is_open = True
    return groups
