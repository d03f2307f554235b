"""Two nodes that both believe they own a queue: no message is claimed twice at a time or lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from distsync_node.queues.store import QueueStore, new_request_id
from distsync_node.queues.types import ClaimedMessage, NewMessage, Pushed, QueueConfigChange

CONSUMERS = 8  # on each node
MESSAGES = 1_200
GROUPS = 10
SHORT_MS = 40
LONG_MS = 60_000


@dataclass
class Seen:
    """What consumers saw."""

    acked: list[str] = field(default_factory=list)
    deliveries: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    good_until: dict[str, float] = field(default_factory=dict)  # the surely good part of a claim
    in_flight_of_group: dict[str, str] = field(default_factory=dict)
    order_of_group: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def claimed(self, one: ClaimedMessage, asked_at: float) -> None:
        assert one.deliveries not in self.deliveries[one.id], "one delivery, claimed twice"
        is_newest = one.deliveries > max(self.deliveries[one.id], default=0)
        self.deliveries[one.id].add(one.deliveries)
        # Redis counts in whole milliseconds, so its deadline may lie up to one before ours.
        good_until = asked_at + (one.visible_ms - 1) / 1e3
        if not is_newest:  # a later claim's reply, on the other connection, overtook this one's
            assert good_until <= time.monotonic(), "claimed by two at a time"
            return
        assert self.good_until.get(one.id, 0) <= time.monotonic(), "claimed by two at a time"
        self.good_until[one.id] = good_until
        if one.group:
            other = self.in_flight_of_group.get(one.group)
            if other not in (None, one.id):
                assert self.good_until[other] <= time.monotonic(), "two of a group at a time"
            self.in_flight_of_group[one.group] = one.id

    def ended(self, one: ClaimedMessage) -> None:
        self.good_until[one.id] = 0
        if self.in_flight_of_group.get(one.group) == one.id:
            del self.in_flight_of_group[one.group]


async def push_all(stores: list[QueueStore], numbers: range, group: str) -> list[str]:
    ids: list[str] = []
    for number in numbers:
        store = stores[number % len(stores)]
        pushed = await store.push("orders", [NewMessage(body=b"%d" % number, group=group)])
        assert isinstance(pushed, Pushed)
        ids += pushed.ids
    return ids


async def consume(node: QueueStore, seen: Seen, choices: random.Random, total: int) -> None:
    """Claim and mostly ack; sometimes fail, give back, or say nothing until the deadline."""
    while len(seen.acked) < total:
        does = choices.choices(("ack", "nack", "unclaim", "vanish"), (70, 10, 5, 15))[0]
        visibility_ms = SHORT_MS if does == "vanish" else LONG_MS
        asked_at = time.monotonic()
        count, request_id = choices.choice((1, 1, 3)), new_request_id()
        popped = await node.pop(
            "orders", count=count, visibility_ms=visibility_ms, request_id=request_id
        )
        for one in popped.messages:
            seen.claimed(one, asked_at)
        if not popped.messages:
            await asyncio.sleep(0.002)
            continue
        receipts = [one.receipt for one in popped.messages]
        await asyncio.sleep(0)
        match does:
            case "ack":
                for one in popped.messages:
                    seen.ended(one)
                    # Before the ack: the replies to two acks, on two connections, may overtake
                    # one another, but the next of the group is claimed only after this one's ack.
                    seen.order_of_group[one.group].append(int(one.body))
                assert (await node.ack("orders", receipts)).stale == ()
                seen.acked += [one.id for one in popped.messages]
            case "nack":
                for one in popped.messages:
                    seen.ended(one)
                assert (await node.nack("orders", receipts)).stale == ()
            case "unclaim":
                for one in popped.messages:
                    seen.ended(one)
                    seen.deliveries[one.id].remove(one.deliveries)
                unclaimed = await node.unclaim(
                    "orders", request_id=request_id, attempt=popped.attempt
                )
                assert unclaimed.returned == len(popped.messages)


@pytest.mark.parametrize("seed", range(2))
async def test_no_message_is_claimed_twice_at_a_time_and_none_is_lost(
    stores: list[QueueStore], seed: int
) -> None:
    await stores[0].configure("orders", QueueConfigChange(max_deliveries=0), create=True)
    seen = Seen()
    part = MESSAGES // (GROUPS + 1)
    parts = [range(index * part, (index + 1) * part) for index in range(GROUPS + 1)]
    total = part * len(parts)
    async with asyncio.TaskGroup() as tasks:
        pushers = [
            tasks.create_task(push_all(stores, numbers, f"g{index}" if index else ""))
            for index, numbers in enumerate(parts)
        ]
        for index in range(2 * CONSUMERS):
            choices = random.Random(f"{seed}/{index}")
            tasks.create_task(consume(stores[index % 2], seen, choices, total))
    pushed = [one for pusher in pushers for one in pusher.result()]
    assert sorted(seen.acked) == sorted(pushed)
    for deliveries in seen.deliveries.values():
        assert deliveries == set(range(1, len(deliveries) + 1))
    for group, numbers in seen.order_of_group.items():
        assert not group or numbers == sorted(numbers), f"{group} is out of order"
    stats = await stores[0].stats("orders")
    assert (stats.ready, stats.grouped, stats.in_flight, stats.dead) == (0, 0, 0, 0)
    assert stats.timed_out > 0
    assert stats.unclaimed > 0
