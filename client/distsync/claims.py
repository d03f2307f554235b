"""The holder's side of claims: extended in time, and over in time.

- A claim lasts from the moment *before* the request that brought or extended it was sent, by the
  client's clock and less a margin, as a lease does (`lease`). So it is over here before the cluster
  gives the message to somebody else, also when no answer comes any more.
- A keeper extends the claims that are given to it when a third has passed, those due at about the
  same time in one call, and goes on trying until their deadline. A claim that the cluster calls
  stale, or whose deadline passes, is lost once and for all, and its listener is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from distsync.batches import chunks
from distsync.clock import Clock, Timer
from distsync.errors import ClaimLost, DistSyncError, StaleReceipt
from distsync.lease import Span, margin_seconds
from distsync.queue_calls import MAX_BATCH, QueueCalls

__all__ = ["Claim", "Keeper"]

_log = logging.getLogger("distsync")

_TOGETHER_RATIO: Final = 1 / 12
_PAUSE_SECONDS: Final = 0.05
_TOO_LATE: Final = "it could not be extended before its deadline"


class Claim:
    """The claim of one message."""

    __slots__ = (
        "_clock",
        "_reason",
        "deadline",
        "extend_at",
        "extension",
        "is_over",
        "listener",
        "receipt",
        "visibility_ms",
    )

    def __init__(self, clock: Clock, receipt: str, span: Span, visibility_ms: int) -> None:
        self.receipt = receipt
        self.visibility_ms = visibility_ms
        self.is_over = False  # settled, lost or let go
        self.listener: Callable[[ClaimLost], object] | None = None
        self.extension: asyncio.Future[None] | None = None
        self.deadline = self.extend_at = 0.0
        self._clock = clock
        self._reason: str | None = None
        self.extended(span)

    def extended(self, span: Span) -> None:
        """It lasts for `span`."""
        self.deadline = _deadline_of(span)
        self.extend_at = span.sent_at + span.seconds / 3

    def doubt(self, asked: Span) -> None:
        """It may have been changed to last for `asked`, which may be shorter; try again soon."""
        now = self._clock.now()
        self.deadline = min(self.deadline, _deadline_of(asked))
        self.extend_at = now + max(_PAUSE_SECONDS, (self.deadline - now) / 4)

    def remaining(self) -> float:
        """Return the seconds until the deadline; 0 when it is over."""
        return 0.0 if self.is_over else max(0.0, self.deadline - self._clock.now())

    def loss(self) -> ClaimLost | None:
        """Return the error of the loss, or None while it is held or was settled."""
        if self._reason is None and (self.is_over or self._clock.now() < self.deadline):
            return None
        return ClaimLost(f"the claim is lost: {self._reason or _TOO_LATE}", stale=[self.receipt])

    def lose(self, reason: str) -> None:
        """It is over although it was wanted."""
        if self.is_over:
            return
        self.is_over = True
        self._reason = reason
        error = self.loss()
        if self.listener is not None and error is not None:
            self.listener(error)


class Keeper:
    """Keeps claims of one queue. Belongs to the client's event loop."""

    def __init__(self, calls: QueueCalls, changed: Callable[[], object] = lambda: None) -> None:
        """`changed` is called whenever a claim is dropped or lost."""
        self._calls = calls
        self._core = calls.core
        self._changed = changed
        self._claims: set[Claim] = set()
        self._timer: Timer | None = None
        self._timer_at = 0.0
        calls.core.hold(self)

    def __len__(self) -> int:
        return len(self._claims)

    def keep(self, claim: Claim) -> None:
        """Extend this claim until it is dropped."""
        if not claim.is_over and claim not in self._claims:
            self._claims.add(claim)
            self._arm()

    def drop(self, claim: Claim) -> None:
        """Do not extend this claim any more."""
        if claim in self._claims:
            self._claims.discard(claim)
            self._arm()
            self._changed()

    def lose(self, reason: str) -> None:
        """All claims are over although they were wanted."""
        self._lose(list(self._claims), reason)
        self._arm()

    async def extend(self, claim: Claim, visibility_ms: int) -> None:
        """Have a claim last so long from now, kept or not.

        Raises:
            StaleReceipt: the claim has ended.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        while claim.extension is not None:  # so that the order of the two is known
            await asyncio.wait([claim.extension])
        claim.extension = asyncio.get_running_loop().create_future()
        await self._extend([claim], visibility_ms, claim.extension, give_up_at=None)

    def _arm(self) -> None:
        when = min((_due_at(claim) for claim in self._claims), default=None)
        if self._timer is not None:
            if when == self._timer_at:
                return
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self._timer_at = when
            self._timer = self._core.clock.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._core.clock.now()
        self._lose([claim for claim in self._claims if claim.deadline <= now], _TOO_LATE)
        due: dict[int, list[Claim]] = {}
        for claim in self._claims:
            soon = now + claim.visibility_ms / 1000 * _TOGETHER_RATIO
            if claim.extension is None and claim.extend_at <= soon:
                due.setdefault(claim.visibility_ms, []).append(claim)
        for visibility_ms, claims in due.items():
            for batch in chunks(claims, MAX_BATCH):
                self._begin(batch, visibility_ms)
        self._arm()

    def _begin(self, claims: list[Claim], visibility_ms: int) -> None:
        extension: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for claim in claims:
            claim.extension = extension
        self._core.background.spawn(
            self._extend_quietly(claims, visibility_ms, extension),
            name=f"distsync-extend {self._calls.name}",
        )

    async def _extend_quietly(
        self, claims: list[Claim], visibility_ms: int, extension: asyncio.Future[None]
    ) -> None:
        give_up_at = min(claim.deadline for claim in claims)
        try:
            await self._extend(claims, visibility_ms, extension, give_up_at=give_up_at)
        except StaleReceipt:
            pass  # whom it concerns has been told
        except DistSyncError as error:
            _log.warning("claims of %s could not be extended yet: %s", self._calls.name, error)

    async def _extend(
        self,
        claims: list[Claim],
        visibility_ms: int,
        extension: asyncio.Future[None],
        *,
        give_up_at: float | None,
    ) -> None:
        asked = Span(self._core.clock.now(), visibility_ms / 1000)
        attempt_seconds = None
        if give_up_at is not None:
            attempt_seconds = self._core.renewal_attempt_seconds(give_up_at)
        try:
            span = await self._calls.extend(
                [claim.receipt for claim in claims],
                visibility_ms,
                give_up_at=give_up_at,
                attempt_seconds=attempt_seconds,
            )
        except StaleReceipt as error:
            stale = set(error.stale) or {claim.receipt for claim in claims}
            self._lose([c for c in claims if c.receipt in stale], "the cluster ended it")
            _extended((c for c in claims if c.receipt not in stale), asked, visibility_ms)
            raise
        except BaseException:
            for claim in claims:
                claim.doubt(asked)
            raise
        else:
            _extended(claims, span, visibility_ms)
        finally:
            for claim in claims:
                claim.extension = None
            extension.set_result(None)
            self._arm()

    def _lose(self, claims: list[Claim], reason: str) -> None:
        for claim in claims:
            self._claims.discard(claim)
            claim.lose(reason)
        if claims:
            self._changed()


def _deadline_of(span: Span) -> float:
    sent_at, seconds = span
    return sent_at + seconds - min(margin_seconds(seconds), seconds / 2)


def _extended(claims: Iterable[Claim], span: Span, visibility_ms: int) -> None:
    for claim in claims:
        claim.visibility_ms = visibility_ms
        claim.extended(span)


def _due_at(claim: Claim) -> float:
    return claim.deadline if claim.extension is not None else min(claim.extend_at, claim.deadline)
