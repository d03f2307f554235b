"""What is in Redis for a queue, and whether it keeps the invariants of `queues/model.py`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from distsync_node.queues import model
from property.queue_model import DEFAULTS, Item, QueueModel

SPAN = 2**49
ZSETS = ("ready", "turns", "grouped", "delayed", "in_flight", "expiries", "dead")
HASHES = ("meta", "states", "bodies", "groups", "dead_states", "dead_bodies")
STATE_FIELDS = (
    "place",
    "size",
    "pushed_at",
    "expires_at",
    "due_at",
    "deliveries",
    "token",
    "deadline",
    "group",
)


def unpack(packed: bytes) -> list[Any]:
    """Return the values that cmsgpack.pack put one behind the other."""
    count = 0
    while True:  # the same values behind a header that says how many they are
        count += 1
        try:
            values: list[Any] = msgspec.msgpack.decode(b"\xdc" + count.to_bytes(2, "big") + packed)
        except msgspec.DecodeError:
            if count > 1_000:
                raise
        else:
            return values


@dataclass
class Dump:
    """The keys of a queue, decoded."""

    zsets: dict[str, dict[str, float]]
    hashes: dict[str, dict[str, bytes]]
    states: dict[str, dict[str, Any]]
    dead_states: dict[str, dict[str, Any]]


def read_queue(client: redis.Redis, queue: str) -> Dump:
    """Return everything Redis has of a queue, as of one moment."""
    pipeline = client.pipeline(transaction=True)
    for name in ZSETS:
        pipeline.zrange(model.key(queue, name), 0, -1, withscores=True)
    for name in HASHES:
        pipeline.hgetall(model.key(queue, name))
    replies = pipeline.execute()
    zsets = {
        name: {member.decode(): score for member, score in reply}
        for name, reply in zip(ZSETS, replies, strict=False)
    }
    hashes = {
        name: {field.decode(): value for field, value in reply.items()}
        for name, reply in zip(HASHES, replies[len(ZSETS) :], strict=True)
    }

    def states(name: str) -> dict[str, dict[str, Any]]:
        return {
            one: dict(zip(STATE_FIELDS, unpack(packed), strict=True))
            for one, packed in hashes[name].items()
        }

    return Dump(zsets, hashes, states("states"), states("dead_states"))


def check_invariants(dump: Dump, now_ms: int) -> None:
    """Fail if one of the numbered invariants of the data model does not hold."""
    states, zsets = dump.states, dump.zsets
    # 1
    assert states.keys() == dump.hashes["bodies"].keys()
    dead = dump.dead_states.keys()
    assert dead == dump.hashes["dead_bodies"].keys() == zsets["dead"].keys()
    assert not states.keys() & dead
    # 2
    grouped = {}
    for member in zsets["grouped"]:
        group, _, rest = member.partition("\0")
        grouped[rest[15:]] = (group, int(rest[:15]))
    delayed = {one for one in zsets["delayed"] if not one.startswith(":")}
    places = Counter([*zsets["ready"], *delayed, *grouped, *zsets["in_flight"]])
    assert set(places) == states.keys()
    assert all(count == 1 for count in places.values())
    # 3
    for one, state in states.items():
        assert (one in zsets["in_flight"]) == bool(state["token"])
        if state["token"]:
            assert zsets["in_flight"][one] == state["deadline"]
        assert state["size"] == len(dump.hashes["bodies"][one])
    # 5
    waiting_groups = {":" + group for group, _ in grouped.values()}
    flying = {state["group"]: one for one, state in states.items() if state["token"]}
    flying.pop("", None)
    delayed_groups = {one[1:] for one in zsets["delayed"] if one.startswith(":")}
    all_groups = {state["group"] for state in states.values()} - {""}
    in_groups = {name: value.decode() for name, value in dump.hashes["groups"].items()}
    assert in_groups.keys() == all_groups
    assert {group: one for group, one in in_groups.items() if one} == flying
    idle = {group for group, one in in_groups.items() if not one}
    assert zsets["turns"].keys() | delayed_groups == idle
    assert not zsets["turns"].keys() & delayed_groups
    assert {f":{group}" for group in idle} <= waiting_groups
    # 6
    for one, place in zsets["ready"].items():
        assert states[one]["place"] == place
        assert not states[one]["group"]
    for one in delayed:
        assert states[one]["due_at"] == zsets["delayed"][one]
        assert not states[one]["group"]
    for group in idle:
        first = min((at, one) for one, (name, at) in grouped.items() if name == group)[1]
        if group in zsets["turns"]:
            rank = zsets["turns"][group] // SPAN
            assert states[first]["place"] // SPAN == rank
        else:
            assert zsets["delayed"][f":{group}"] == states[first]["due_at"]
    # 7
    mortal = {
        one: state["expires_at"]
        for one, state in states.items()
        if state["expires_at"] and not state["token"]
    }
    assert zsets["expiries"] == mortal
    assert all(state["due_at"] == 0 or state["token"] == "" for state in states.values())
    assert all(state["pushed_at"] <= now_ms for state in states.values())


def check_same(dump: Dump, expected: QueueModel) -> None:
    """Fail if Redis has anything else than the model."""
    check_invariants(dump, expected.now)
    assert {one.id: describe(one) for one in expected.items} == {
        one: as_described(state, dump.hashes["bodies"][one]) for one, state in dump.states.items()
    }
    assert {one.id: describe(one) for one in expected.dead} == {
        one: as_described(state, dump.hashes["dead_bodies"][one])
        for one, state in dump.dead_states.items()
    }
    assert dump.zsets["dead"] == {one.id: one.died_at for one in expected.dead}
    waits = {one.id: one.wait for one in expected.items if one.wait != "grouped"}
    seen = {
        one: name
        for name in ("ready", "delayed", "in_flight")
        for one in dump.zsets[name]
        if not one.startswith(":")
    }
    assert seen == waits
    turns = {group: int(score) % SPAN for group, score in dump.zsets["turns"].items()}
    assert turns == expected.turns
    meta = dump.hashes["meta"]
    assert bool(meta) == expected.exists
    counters = {name: int(meta.get(name, b"0")) for name in expected.counters}
    counters["pushed"] = int(meta.get("sequence", b"0")) - int(meta.get("redriven", b"0"))
    assert counters == {"pushed": 0, **expected.counters}
    if "config" in meta:
        config = unpack(meta["config"])
        assert config == [expected.config[name] for name in DEFAULTS]


def describe(item: Item) -> tuple[Any, ...]:
    return (
        (9 - item.priority) * SPAN + item.sequence,
        item.group,
        item.pushed_at,
        item.expires_at,
        item.due_at,
        item.deliveries,
        item.token,
        item.deadline,
        item.body,
    )


def as_described(state: dict[str, Any], body: bytes) -> tuple[Any, ...]:
    return (
        state["place"],
        state["group"],
        state["pushed_at"],
        state["expires_at"],
        state["due_at"],
        state["deliveries"],
        state["token"],
        state["deadline"],
        body,
    )
