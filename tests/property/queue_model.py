"""What queues do, said as simply as it can be: lists, loops and no attention to cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MEMORY_MS = 120_000
DEFAULTS = {
    "max_length": 0,
    "max_deliveries": 10,
    "dedupe_window_ms": 300_000,
    "ttl_ms": 0,
    "rate_count": 0,
    "rate_per_ms": 1_000,
    "paused": 0,
}


@dataclass
class Item:
    """A message. `wait` says where it is: ready, delayed, grouped, in_flight or dead."""

    id: str
    body: bytes
    priority: int
    sequence: int
    group: str
    pushed_at: int
    expires_at: int
    due_at: int
    deliveries: int = 0
    token: str = ""
    deadline: int = 0
    wait: str = "ready"
    died_at: int = 0


class QueueModel:
    """One queue."""

    def __init__(self) -> None:
        self.now = 0
        self.exists = False
        self.items: list[Item] = []
        self.dead: list[Item] = []
        self.sequence = 0
        self.config = dict(DEFAULTS)
        self.turn = 0
        self.singles_turn = 0
        self.turns: dict[str, int] = {}  # groups that can be claimed from
        self.delayed_groups: dict[str, int] = {}
        self.dedupe: dict[str, tuple[int, str]] = {}
        self.fences: dict[str, int] = {}
        self.answers: dict[str, tuple[int, Any, Any]] = {}  # request id -> when, digest, answer
        self.last_attempts: dict[str, str] = {}  # of pops
        self.counters: dict[str, int] = {}

    # --- Requests -------------------------------------------------------------------------

    def recall(self, request_id: str, asked: Any) -> tuple[str, Any]:
        """Return ("new", None), ("reused", None) or ("repeated", the first answer).

        Only for requests younger than the memory is long; what comes later is undefined.
        """
        known = self.answers.get(request_id)
        if known is None:
            return "new", None
        return ("repeated", known[2]) if known[1] == asked else ("reused", None)

    def remember(self, request_id: str, asked: Any, answer: Any) -> None:
        self.answers[request_id] = (self.now, asked, answer)

    def tally(self, name: str, by: int = 1) -> None:
        if by:
            self.counters[name] = self.counters.get(name, 0) + by

    # --- In ---------------------------------------------------------------------------------

    def push(
        self, push_id: str, messages: list[dict[str, Any]], fence: tuple[str, int, bool] | None
    ) -> tuple[str, Any]:
        if fence is not None:
            lock, token, checked = fence
            newest = self.fences.get(lock, 0)
            if token < newest:
                return "fenced", newest
            if token > newest and not checked:
                return "unverified", None
        ids: list[str] = []
        fresh: list[Item] = []
        first_ids: dict[str, str] = {}
        for index, message in enumerate(messages):
            message_id = f"{push_id}-{index}"
            dedupe_id = message["dedupe_id"]
            until, original = self.dedupe.get(dedupe_id, (0, "")) if dedupe_id else (0, "")
            if dedupe_id in first_ids:
                ids.append(first_ids[dedupe_id])
            elif self.now < until:
                ids.append(original)
            else:
                ids.append(message_id)
                ttl = message["ttl_ms"] or self.config["ttl_ms"]
                fresh.append(
                    Item(
                        id=message_id,
                        body=message["body"],
                        priority=message["priority"],
                        sequence=self.sequence + len(fresh) + 1,
                        group=message["group"],
                        pushed_at=self.now,
                        expires_at=self.now + ttl if ttl else 0,
                        due_at=self.now + message["delay_ms"] if message["delay_ms"] else 0,
                    )
                )
                if dedupe_id:
                    first_ids[dedupe_id] = message_id
        limit = self.config["max_length"]
        if limit and fresh and len(self.items) + len(fresh) > limit:
            if any(one.wait != "in_flight" and self._is_expired(one) for one in self.items):
                self.sweep()
            if len(self.items) + len(fresh) > limit:
                return "full", len(self.items)
        if fence is not None:
            self.fences[fence[0]] = fence[1]
        for dedupe_id, message_id in first_ids.items():
            self.dedupe[dedupe_id] = (self.now + self.config["dedupe_window_ms"], message_id)
        self.exists = True
        self.sequence += len(fresh)
        self.tally("pushed", len(fresh))
        self.tally("deduplicated", len(messages) - len(fresh))
        ready = sum(self._enter(item) for item in fresh)
        return "ok", (tuple(ids), ready)

    def _enter(self, item: Item) -> bool:
        """A message comes in. Return whether something can be claimed that could not before."""
        self.items.append(item)
        if item.group:
            alone = all(one is item or one.group != item.group for one in self.items)
            item.wait = "grouped"
            return alone and self._group_enters(item.group)
        item.wait = "delayed" if item.due_at > self.now else "ready"
        return item.wait == "ready"

    # --- Groups -----------------------------------------------------------------------------

    def first_of(self, group: str) -> Item | None:
        waiting = [one for one in self.items if one.group == group and one.wait == "grouped"]
        return min(waiting, key=lambda one: one.sequence, default=None)

    def _group_enters(self, group: str, turn: int | None = None) -> bool:
        self.turns.pop(group, None)
        self.delayed_groups.pop(group, None)
        first = self.first_of(group)
        if first is None:
            return False
        if first.due_at > self.now:
            self.delayed_groups[group] = first.due_at
            return False
        if turn is None:
            self.turn += 1
            turn = self.turn
        self.turns[group] = turn
        return True

    # --- Time ---------------------------------------------------------------------------------

    def promote(self) -> int:
        """What is due moves. The order matters for the turns that groups get."""
        due: list[tuple[int, bytes, Any]] = [
            (item.due_at, item.id.encode(), item)
            for item in self.items
            if item.wait == "delayed" and item.due_at <= self.now
        ]
        for group, due_at in self.delayed_groups.items():
            if due_at <= self.now:
                due.append((due_at, f":{group}".encode(), group))
        for _, _, what in sorted(due, key=lambda one: one[:2]):
            if isinstance(what, Item):
                what.wait = "ready"
            else:
                self._group_enters(what)
        late = [one for one in self.items if one.wait == "in_flight" and one.deadline <= self.now]
        for item in sorted(late, key=lambda one: (one.deadline, one.id.encode())):
            self.tally("timed_out")
            self._put_back(item, 0)
        return len(due) + len(late)

    def sweep(self) -> int:
        if not self.exists:
            return 0
        moved = self.promote()
        over = [
            one
            for one in self.items
            if one.wait != "in_flight" and one.expires_at and one.expires_at <= self.now
        ]
        for item in sorted(over, key=lambda one: (one.expires_at, one.id.encode())):
            self._remove(item)
            self.tally("expired")
        return moved + len(over)

    # --- Out ------------------------------------------------------------------------------

    def _is_spent(self, item: Item) -> bool:
        limit = self.config["max_deliveries"]
        return bool(limit) and item.deliveries >= limit

    def _is_expired(self, item: Item) -> bool:
        return bool(item.expires_at) and item.expires_at <= self.now

    def choose(self, count: int) -> tuple[list[Item], list[Item], list[str], int | None]:
        """Return those a claim takes, what it finds useless, groups out of place, the turn of
        those without a group if it changes."""
        taken: list[Item] = []
        waste: list[Item] = []
        stuck: list[str] = []
        singles = sorted(
            (one for one in self.items if one.wait == "ready"),
            key=lambda one: (-one.priority, one.sequence),
        )
        groups = sorted(self.turns, key=self._group_place)
        turn, singles_turn, changed = self.turn, self.singles_turn, None
        while len(taken) < count and (singles or groups):
            is_single, is_contest = not groups, False
            if singles and groups:
                rank, (group_rank, group_turn) = -singles[0].priority, self._group_place(groups[0])
                is_contest = rank == group_rank
                is_single = rank < group_rank or (is_contest and singles_turn < group_turn)
            if is_single:
                item = singles.pop(0)
                if self._is_expired(item) or self._is_spent(item):
                    waste.append(item)
                    continue
                taken.append(item)
                if is_contest:
                    turn += 1
                    singles_turn = changed = turn
            else:
                group = groups.pop(0)
                waiting = sorted(
                    (one for one in self.items if one.group == group and one.wait == "grouped"),
                    key=lambda one: one.sequence,
                )
                for item in waiting:
                    if item.due_at > self.now:
                        stuck.append(group)
                        break
                    if not (self._is_expired(item) or self._is_spent(item)):
                        taken.append(item)
                        break
                    waste.append(item)
                else:
                    stuck.append(group)
        return taken, waste, stuck, changed

    def _group_place(self, group: str) -> tuple[int, int]:
        first = self.first_of(group)
        assert first is not None
        return (-first.priority, self.turns[group])

    def pop(self, token: str, count: int, visibility_ms: int) -> tuple[str, list[Item]]:
        if not self.exists:
            return "ok", []
        if self.config["paused"]:
            return "paused", []
        self.promote()
        taken, waste, stuck, changed = self.choose(count)
        if changed is not None:
            self.turn = self.singles_turn = changed
        for item in taken:
            self.turns.pop(item.group, None)
        for item in waste:
            self.items.remove(item)
            if self._is_spent(item):
                self._bury(item)
            else:
                self.tally("expired")
        for group in stuck:
            self._group_enters(group)
        for item in taken:
            item.token, item.deadline, item.due_at = token, self.now + visibility_ms, 0
            item.deliveries += 1
            item.wait = "in_flight"
        self.tally("delivered", len(taken))
        return "ok", taken

    def held(self, message_id: str, token: str) -> Item | None:
        """The message a receipt is good for."""
        for item in self.items:
            if item.id == message_id and item.token == token and self.now < item.deadline:
                return item
        return None

    def ack(self, item: Item) -> bool:
        self.items.remove(item)
        self.tally("acked")
        return bool(item.group) and self._group_enters(item.group)

    def nack(self, item: Item, delay_ms: int, *, dead: bool, spend: bool) -> tuple[bool, bool]:
        self.tally("nacked")
        item.deliveries -= not spend
        return self._put_back(item, self.now + delay_ms if delay_ms else 0, dead=dead)

    def extend(self, item: Item, visibility_ms: int) -> None:
        item.deadline = self.now + visibility_ms

    def unclaim(self, item: Item) -> bool:
        self.tally("unclaimed")
        item.deliveries -= 1
        return self._put_back(item, 0)[1]

    def _put_back(self, item: Item, due_at: int, *, dead: bool = False) -> tuple[bool, bool]:
        """Return whether it is a dead letter, and whether something can be claimed now."""
        is_dead = dead or self._is_spent(item)
        ready = False
        if is_dead or self._is_expired(item):
            self.items.remove(item)
            if is_dead:
                self._bury(item)
            else:
                self.tally("expired")
        else:
            item.token, item.deadline, item.due_at = "", 0, due_at
            item.wait = "delayed" if due_at > self.now else "ready"
            ready = item.wait == "ready"
        if item.group:
            if item in self.items:
                item.wait = "grouped"
            ready = self._group_enters(item.group)
        return is_dead, ready

    def _bury(self, item: Item) -> None:
        item.token, item.deadline, item.due_at = "", 0, 0
        item.wait, item.died_at = "dead", self.now
        self.dead.append(item)
        self.tally("dead_lettered")

    def _remove(self, item: Item) -> None:
        first = self.first_of(item.group) if item.group else None
        self.items.remove(item)
        if first is item and (item.group in self.turns or item.group in self.delayed_groups):
            self._group_enters(item.group, self.turns.get(item.group))

    # --- The rest -------------------------------------------------------------------------

    def cancel(self, message_id: str) -> str:
        for item in self.items:
            if item.id != message_id:
                continue
            if item.wait == "in_flight":
                if self.now < item.deadline:
                    return "in_flight"
                self.items.remove(item)
                if item.group:
                    self._group_enters(item.group)
            else:
                self._remove(item)
            self.tally("cancelled")
            return "ok"
        for item in self.dead:
            if item.id == message_id:
                self.dead.remove(item)
                self.tally("cancelled")
                return "ok"
        return "unknown"

    def phase(self, message_id: str) -> str:
        for item in self.items:
            if item.id == message_id:
                if item.token and self.now < item.deadline:
                    return "in_flight"
                if self._is_expired(item):
                    return "unknown"
                return "delayed" if item.due_at > self.now else "ready"
        return "dead" if any(one.id == message_id for one in self.dead) else "unknown"

    def purge(self) -> int:
        removed = len(self.items)
        self.items = []
        self.turns, self.delayed_groups = {}, {}
        self.tally("purged", removed)
        return removed

    def purge_dead(self) -> int:
        removed = len(self.dead)
        self.dead = []
        self.tally("purged", removed)
        return removed

    def redrive(self) -> int:
        dead = sorted(self.dead, key=lambda one: (one.died_at, one.id.encode()))
        self.dead = []
        for item in dead:
            lifetime = item.expires_at - item.pushed_at if item.expires_at else 0
            self.sequence += 1
            item.sequence, item.pushed_at, item.deliveries = self.sequence, self.now, 0
            item.expires_at = self.now + lifetime if lifetime else 0
            item.died_at = 0
            self._enter(item)
        self.tally("redriven", len(dead))
        return len(dead)


@dataclass
class Claim:
    """What a pop gave to a consumer."""

    message_id: str
    token: str
    receipt: str


@dataclass
class Sent:
    """A request that may come again."""

    kind: str
    request_id: str
    arguments: dict[str, Any] = field(default_factory=dict)
