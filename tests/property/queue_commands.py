"""Chooses what happens next to a queue; `pick` takes one of a few things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distsync_node.queues.types import PurgeTarget
from property.queue_comparison import Comparison
from property.queue_model import Claim, Sent

GROUPS = ("", "", "", "g", "h", "a longer group ü")
STEPS_MS = (1, 1, 10, 10, 40, 60, 100, 500)
DELAYS_MS = (0, 0, 0, 0, 10, 50, 100)
VISIBILITIES_MS = (10, 50, 50, 100, 1_000)
TTLS_MS = (0, 0, 0, 0, 30, 120)
DEDUPE_IDS = ("", "", "", "same", "other")
LOCKS = ("lock", "lock", "other lock")


class Commands:
    """What may happen to a queue."""

    def __init__(self, comparison: Comparison, pick: Callable[[Any], Any]) -> None:
        self._it = comparison
        self._pick = pick

    def _message(self) -> dict[str, Any]:
        pick = self._pick
        return {
            "body": pick((b"", b"x", b"\x00\xff body", b"y" * 300)),
            "delay_ms": pick(DELAYS_MS),
            "priority": pick((0, 0, 0, 1, 9)),
            "ttl_ms": pick(TTLS_MS),
            "dedupe_id": pick(DEDUPE_IDS),
            "group": pick(GROUPS),
        }

    def push(self) -> None:
        count = self._pick((1, 1, 1, 2, 4))
        fence = (self._pick(LOCKS), self._pick(range(1, 8))) if self._pick((0, 0, 0, 1)) else None
        self._it.push([self._message() for _ in range(count)], fence)

    def push_plain(self) -> None:
        message = {"delay_ms": 0, "priority": 0, "ttl_ms": 0, "dedupe_id": ""}
        group = self._pick(GROUPS)
        self._it.push([{**message, "body": b"plain", "group": group} for _ in range(2)])

    def pop(self) -> None:
        self._it.pop(self._pick((1, 1, 2, 3, 5)), self._pick(VISIBILITIES_MS))

    def _claims(self) -> list[Claim]:
        """Receipts: of messages in flight mostly, but old ones too, and twice the same."""
        model, claims = self._it.model, self._it.claims
        held = [one for one in claims if model.held(one.message_id, one.token) is not None]
        some = (held or claims) if self._pick((1, 1, 1, 0)) else claims[-20:]
        return [self._pick(some) for _ in range(self._pick((1, 1, 2, 3)))]

    def ack(self) -> None:
        if self._it.claims:
            self._it.ack(self._claims())

    def nack(self) -> None:
        if self._it.claims:
            dead = self._pick((False, False, False, True))
            spend = self._pick((True, True, False))
            self._it.nack(self._claims(), self._pick((0, 0, 20, 200)), dead, spend)

    def extend(self) -> None:
        if self._it.claims:
            self._it.extend(self._claims(), self._pick(VISIBILITIES_MS))

    def unclaim(self) -> None:
        """By an attempt whose client is gone, which need not be the last one of its request."""
        young = self._it.repeatable()
        attempts = [one for one in self._it.attempts if one[0] in young]
        if attempts:
            pop, attempt = self._pick(attempts[-6:])
            self._it.unclaim(pop, attempt)
            if self._pick((0, 1)):
                self._it.repeat(pop)

    def repeat_pop(self) -> None:
        """A client comes again for what it was given."""
        pops = [one for one in self._it.repeatable() if one.kind == "pop"]
        if pops:
            self._it.repeat(self._pick(pops[-3:]))

    def advance(self) -> None:
        self._it.advance(self._pick(STEPS_MS))

    def advance_to_a_change(self) -> None:
        """To the very moment at which something ends, or just before."""
        model = self._it.model
        times = [
            time - model.now
            for one in model.items
            for time in (one.deadline, one.due_at, one.expires_at)
            if time > model.now
        ]
        if times:
            self._it.advance(max(0, self._pick(sorted(times)) - self._pick((0, 0, 1))))

    def forget_requests(self) -> None:
        """Let so much time pass that requests may be forgotten; the younger must not be."""
        self._it.advance(self._pick((40_000, 40_000, 40_000, 121_000)))
        self.push()
        self.repeat()

    def sweep(self) -> None:
        self._it.sweep()

    def peek(self) -> None:
        self._it.peek(self._pick((1, 3, 10)))

    def _id(self) -> str:
        known: str = self._pick(self._it.ids[-30:]) if self._it.ids else "none-0"
        return known

    def get(self) -> None:
        self._it.get(self._id())

    def cancel(self) -> None:
        self._it.cancel(self._id())

    def configure(self) -> None:
        field, values = self._pick(
            (
                ("max_deliveries", (0, 1, 2, 3)),
                ("max_deliveries", (1, 2)),
                ("max_length", (0, 0, 3, 10)),
                ("dedupe_window_ms", (0, 50, 1_000, 300_000)),
                ("ttl_ms", (0, 0, 80)),
                ("paused", (0, 0, 1)),
            )
        )
        self._it.configure(**{field: self._pick(values)})

    def purge(self) -> None:
        self._it.purge(self._pick((PurgeTarget.MESSAGES, PurgeTarget.DEAD, PurgeTarget.DEAD)))

    def redrive(self) -> None:
        self._it.redrive()

    def repeat(self) -> None:
        sent = self._it.repeatable()
        if sent:
            self._it.repeat(self._pick(sent[-20:]))

    def reuse(self) -> None:
        sent: list[Sent] = self._it.repeatable()
        if sent:
            self._it.reuse(self._pick(sent[-10:]), "cancel", message_id="none-0")

    def flush_scripts(self) -> None:
        self._it.flush_scripts()


# The rarer ones come less often in random walks.
WEIGHTS = {
    "push": 6,
    "push_plain": 3,
    "pop": 9,
    "ack": 4,
    "nack": 4,
    "extend": 2,
    "unclaim": 3,
    "repeat_pop": 2,
    "advance": 5,
    "advance_to_a_change": 5,
    "forget_requests": 2,
    "sweep": 2,
    "peek": 2,
    "get": 1,
    "cancel": 2,
    "configure": 3,
    "purge": 1,
    "redrive": 1,
    "repeat": 4,
    "reuse": 1,
    "flush_scripts": 1,
}
