"""Sequential objects: a lock with leases and fencing tokens, and a register.

Lock operations, their arguments and the results understood (`status` of the result):

    acquire     owner, mode (exclusive | shared), ttl_ms; limit?, queued?
                granted {token, lease_ms?} | lock_held | lock_lost | any other status: no effect
    upgrade     owner, token       granted {token} | not_holder | other: no effect
    downgrade   owner, token       ok | lock_lost (a retry: done, and ended since) | not_holder
    release     owner, token       ok | not_holder
    renew       owner, token, ttl_ms   ok | not_holder
    touch       owner, token, ttl_ms   ok: a keep-alive of the session behind a grant; it lengthens
                                   the grant if it is still held and says nothing otherwise
    break       every grant of the lock is ended by force    ok
    read        ok {holders: [{owner, token, mode}]}

An acquire with `ttl_ms` 0 is held through a session: it lives at least `lease_ms` (of its result)
from its call. `queued` tells that waiters of acquire_many may stand in front of a free lock, so
that `lock_held` proves nothing there.

**Expiry keeps its teeth.** A grant ends silently only by an entry that is stamped `ttl_ms` (less
clock drift) after the entry that made it, or renewed it last. Entries are stamped after their call
and not after their effect, in the order in which they take effect; reads are not stamped. The state
carries the earliest stamp that the order so far allows; ending a grant to make room moves it up to
the end of that lease, and an order whose stamps pass a return still open is refused. The earliest
schedule is always the best one, because every constraint is a lower bound but the returns, so
nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from checker.history import Operation

NANOSECONDS_PER_MS = 1_000_000


class Holder(NamedTuple):
    """A grant; `token` is None while only a request of unknown outcome tells of it.

    All that is known then is that its token is above those of earlier grants.
    """

    owner: str
    token: int | None
    shared: bool
    may_end_ns: int
    above: int = 0

    def may_have(self, token: int) -> bool:
        """Whether this may be the grant with that token."""
        return self.token == token or (self.token is None and token > self.above)

    def named(self, token: int) -> Holder:
        """Return the grant, its token known."""
        return self._replace(token=token, above=0)


def _order(holder: Holder) -> tuple[str, int]:
    return holder.owner, holder.token or 0


class LockState(NamedTuple):
    """Who may hold the lock, the newest token known, and the earliest present stamp."""

    holders: tuple[Holder, ...] = ()
    newest_token: int = 0
    now_ns: int = -(1 << 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockModel:
    """A lock with leases; `drift` and `slack_ms` are what clocks may take off a lease."""

    drift: float = 0.01
    slack_ms: int = 5

    def initial(self) -> LockState:
        """Return the free lock."""
        return LockState()

    def step(self, state: LockState, operation: Operation, latest_ns: int) -> Iterator[LockState]:
        """Return the states that may follow."""
        if operation.op != "read":
            state = state._replace(now_ns=max(state.now_ns, operation.call_ns))
        for after in self._effects(state, operation):
            if after.now_ns <= latest_ns:
                yield after

    def _effects(self, state: LockState, operation: Operation) -> Iterable[LockState]:
        status = None if operation.result is None else operation.result["status"]
        match operation.op:
            case "acquire":
                return self._acquire(state, operation, status)
            case "upgrade":
                return self._upgrade(state, operation, status)
            case "downgrade" | "release" | "renew":
                return self._held(state, operation, status)
            case "touch":
                return self._touch(state, operation)
            case "break":
                return [state._replace(holders=())]
            case "read":
                return self._read(state, operation)
            case other:
                raise ValueError(f"a lock knows no operation {other!r}")

    # --- Acquire ---

    def _acquire(
        self, state: LockState, operation: Operation, status: str | None
    ) -> Iterator[LockState]:
        match status:
            case "granted":
                yield from self._grant(state, operation, operation.result["token"])
            case None | "lock_lost":
                # Granted at some instant under a token nobody was told, or never.
                yield from self._grant(state, operation, None)
                if status is not None:
                    yield state
            case "lock_held":
                if operation.args.get("queued") or self._is_refused(state, operation):
                    yield state
            case _:
                yield state

    def _grant(
        self, state: LockState, operation: Operation, token: int | None
    ) -> Iterator[LockState]:
        if token is not None and token <= state.newest_token:
            return
        shared = operation.args["mode"] == "shared"
        for room in self._make_room(state, shared, operation.args.get("limit")):
            holder = Holder(
                operation.args["owner"],
                token,
                shared,
                self._lease_end(room.now_ns, operation),
                room.newest_token if token is None else 0,
            )
            yield room._replace(
                holders=tuple(sorted((*room.holders, holder), key=_order)),
                newest_token=token or room.newest_token,
            )

    def _lease_end(self, now_ns: int, operation: Operation) -> int:
        ttl_ms = operation.args["ttl_ms"]
        if ttl_ms:
            return now_ns + self._at_least_ns(ttl_ms)
        lease_ms = operation.result.get("lease_ms", 0) if operation.result is not None else 0
        return operation.call_ns + self._at_least_ns(lease_ms)

    def _at_least_ns(self, ttl_ms: int) -> int:
        return int((ttl_ms * (1 - self.drift) - self.slack_ms) * NANOSECONDS_PER_MS)

    def _make_room(self, state: LockState, shared: bool, limit: int | None) -> Iterator[LockState]:
        in_the_way = [h for h in state.holders if not (shared and h.shared)]
        kept = [h for h in state.holders if h not in in_the_way]
        surplus = max(0, len(kept) - limit + 1) if limit is not None else 0
        for dropped in combinations(kept, surplus):
            yield self._end(state, [*in_the_way, *dropped])

    def _is_refused(self, state: LockState, operation: Operation) -> bool:
        # A shared try is refused behind a waiting writer too, and writers wait only for holders.
        return bool(state.holders)

    # --- Operations of a holder ---

    def _upgrade(
        self, state: LockState, operation: Operation, status: str | None
    ) -> Iterator[LockState]:
        match status:
            case "granted" | None | "lock_lost":
                token = None if operation.pending else operation.result.get("token")
                holder = self._find(state, operation)
                if holder is not None and (token is None or token > state.newest_token):
                    others = [h for h in state.holders if h is not holder]
                    alone = self._end(state, others)
                    above = max(state.newest_token, operation.args["token"])
                    raised = holder._replace(
                        token=token, shared=False, above=above if token is None else 0
                    )
                    yield alone._replace(
                        holders=(raised,), newest_token=token or state.newest_token
                    )
                if status == "lock_lost":
                    yield state
            case "not_holder":
                yield from self._without(state, operation)
            case _:
                yield state

    def _held(
        self, state: LockState, operation: Operation, status: str | None
    ) -> Iterator[LockState]:
        match status:
            case "ok" | "lock_lost" | None:
                holder = self._find(state, operation)
                if holder is not None:
                    yield self._replace(state, holder, self._changed(state, holder, operation))
            case "not_holder":
                yield from self._without(state, operation)
            case _:
                yield state

    def _changed(self, state: LockState, holder: Holder, operation: Operation) -> Holder | None:
        match operation.op:
            case "release":
                return None
            case "downgrade":
                return holder.named(operation.args["token"])._replace(shared=True)
            case _:
                return holder.named(operation.args["token"])._replace(
                    may_end_ns=self._lease_end(state.now_ns, operation)
                )

    def _touch(self, state: LockState, operation: Operation) -> Iterator[LockState]:
        holder = self._find(state, operation)
        if holder is None or operation.pending:
            yield state
        if holder is not None:
            end_ns = max(holder.may_end_ns, self._lease_end(state.now_ns, operation))
            yield self._replace(state, holder, holder._replace(may_end_ns=end_ns))

    def _without(self, state: LockState, operation: Operation) -> Iterator[LockState]:
        holder = self._find(state, operation)
        yield state if holder is None else self._end(state, [holder])

    # --- Read ---

    def _read(self, state: LockState, operation: Operation) -> Iterator[LockState]:
        if operation.result is None or operation.result["status"] != "ok":
            yield state
            return
        seen: list[dict[str, Any]] = list(operation.result["holders"])
        known: list[Holder] = []
        gone: list[Holder] = []
        for holder in state.holders:
            match = next((s for s in seen if self._is_same(holder, s)), None)
            if match is None:
                gone.append(holder)
            else:
                seen.remove(match)
                known.append(holder.named(match["token"]))
        if not seen:
            ended = self._end(state, gone)
            newest = max([state.newest_token, *(h.token for h in known if h.token is not None)])
            yield ended._replace(
                holders=tuple(sorted(known, key=_order)),
                newest_token=newest,
            )

    # --- Helpers ---

    def _is_same(self, holder: Holder, seen: dict[str, Any]) -> bool:
        return (
            holder.owner == seen["owner"]
            and holder.may_have(seen["token"])
            and holder.shared == (seen["mode"] == "shared")
        )

    def _find(self, state: LockState, operation: Operation) -> Holder | None:
        owner, token = operation.args["owner"], operation.args["token"]
        for holder in state.holders:
            if holder.owner == owner and holder.may_have(token):
                return holder
        return None

    def _end(self, state: LockState, gone: list[Holder]) -> LockState:
        """End grants by expiry: not before the last of their leases could have ended."""
        if not gone:
            return state
        return state._replace(
            holders=tuple(h for h in state.holders if h not in gone),
            now_ns=max(state.now_ns, *(h.may_end_ns for h in gone)),
        )

    def _replace(self, state: LockState, old: Holder, new: Holder | None) -> LockState:
        rest = [h for h in state.holders if h is not old]
        if new is not None:
            rest.append(new)
        newest = state.newest_token
        if new is not None and new.token is not None:
            newest = max(newest, new.token)
        return state._replace(holders=tuple(sorted(rest, key=_order)), newest_token=newest)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterModel:
    """A register that may be empty.

    write {value} -> ok; delete -> ok; read -> ok {value} (null when empty);
    compare_and_set {expected, value} -> ok | mismatch. Any other status had no effect.
    """

    def initial(self) -> tuple[Any]:
        """Return the empty register."""
        return (None,)

    def step(self, state: tuple[Any], operation: Operation, latest_ns: int) -> Iterator[tuple[Any]]:
        """Return the states that may follow."""
        status = "ok" if operation.result is None else operation.result["status"]
        matches = True
        if operation.op == "compare_and_set":
            matches = state[0] == operation.args["expected"]
        match operation.op, status:
            case "read", "ok":
                if operation.result is None or operation.result["value"] == state[0]:
                    yield state
            case "write", "ok":
                yield (operation.args["value"],)
            case "delete", "ok":
                yield (None,)
            case "compare_and_set", "ok":
                if matches:
                    yield (operation.args["value"],)
                elif operation.pending:
                    yield state
            case "compare_and_set", "mismatch":
                if not matches:
                    yield state
            case "read" | "write" | "delete" | "compare_and_set", _:
                yield state
            case other, _:
                raise ValueError(f"a register knows no operation {other!r}")
