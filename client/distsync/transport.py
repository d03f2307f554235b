"""Calls to the cluster: one attempt after another until there is an answer or a deadline.

What may be repeated, and what an end without an answer means:

- Every call that changes something carries a request id and is repeated under the same id and with
  the same body, so that the cluster does it once. Renewals, keep-alives and reads are idempotent.
  Writes to the cache carry none: one that is guarded by the version of a value or a token is
  repeated, and refused if it was done before; any other is not repeated once it may have been done.
  What is done twice with the same effect (DELETE, the PUT of a schedule) needs no id; its caller is
  told whether an attempt before the one that was answered may have been done.
- An attempt that could not connect, or was answered 503 by a node, did nothing. One that was sent
  and broke off, timed out, or got 504 (or a 5xx that no node wrote: a proxy's) may have been done.
- Once an attempt may have been done, only an answer about this request ends the doubt. Without one
  the call ends with `OutcomeUnknown`; without doubt, with `Unavailable`. The cluster remembers
  request ids for two minutes, so a doubtful call is not repeated for longer than 100 seconds. Of
  locks it remembers the last 100,000 ends; under more load than that, a repeated release may be
  `NotHolder`, and a repeated acquire a grant of its own, whose token is the only current one.
- Between attempts there is a jittered pause that doubles up to half a second: short enough to meet
  a new leader soon, long enough for many clients at once.

A lease counts from the moment *before* its request was sent, so replies carry that moment.
"""

from __future__ import annotations

import asyncio
import random
import ssl as ssl_module
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from distsync.background import Background
from distsync.clock import Clock, sleep_until
from distsync.connections import Answer, BrokenOff, Connections, MaybeDone, NotDone, refused
from distsync.discovery import Discovery
from distsync.errors import DiskFull, DistSyncError, LimitReached, RedisFull, Unavailable
from distsync.identity import Identity
from distsync.lifelines import Lifelines
from distsync.models import ClusterStatus
from distsync.nodes import Endpoint, NodeSet, normalize_url
from distsync.patience import Call, Patience, Repeat

__all__ = ["Repeat", "Reply", "Transport"]

T = TypeVar("T")

_OPEN_STREAM_SECONDS = 7.0
_PROBE_SECONDS = 1.0
_STATUS_PATH = "/cluster/status"


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """An answer, when the attempt that it answers was about to be sent, and who owns the thing.

    `after_doubt` says whether an earlier attempt may have been done.
    """

    value: T
    sent_at: float
    owner: str | None = None
    after_doubt: bool = False


class Transport:
    """Repeats calls over the nodes of one cluster."""

    def __init__(
        self,
        urls: tuple[str, ...],
        *,
        identity: Identity,
        clock: Clock,
        background: Background,
        timeout_seconds: float,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        """`timeout_seconds` is how long a call rides out an outage."""
        self.nodes = NodeSet(urls, first=random.getrandbits(30))
        self.timeout_seconds = timeout_seconds
        self._clock = clock
        self._connections = Connections(identity, ssl=ssl)
        self._discovery = Discovery(self.nodes, clock, background, self._probe)
        self._lifelines = Lifelines(clock, background, self._check)
        self._decoders: dict[type[Any], Callable[[Answer], Any]] = {}

    async def post(
        self,
        path: str,
        body: msgspec.Struct,
        kind: type[T],
        *,
        repeat: Repeat = Repeat.KEYED,
        wait_seconds: float = 0.0,
        give_up_at: float | None = None,
        attempt_seconds: float | None = None,
        method: str = "POST",
        needs_leader: bool = True,
        prefer: str | None = None,
    ) -> Reply[T]:
        """Send `body` until there is an answer.

        `wait_seconds` is how long the cluster itself may hold the answer back; the outage that is
        ridden out comes on top. `give_up_at` takes the place of the client's own timeout, and
        `attempt_seconds` of the usual length of an attempt. With `needs_leader` false, a node that
        knows no leader is as good as any. `prefer` is where the first attempt goes if it can.

        Raises:
            Unavailable: nothing was done before the deadline.
            OutcomeUnknown: it may have been done (never for idempotent calls).
            DistSyncError: what the node answered.
        """
        encoded = msgspec.json.encode(body)
        decode = self.decoder(kind)
        call = Call(method, path, encoded, decode, repeat, wait_seconds, needs_leader, prefer)
        return await self.run(call, give_up_at=give_up_at, attempt_seconds=attempt_seconds)

    async def delete(
        self, path: str, kind: type[T], *, needs_leader: bool = True, prefer: str | None = None
    ) -> Reply[T]:
        """Take something away; as `post`, but without a body.

        Where an attempt was in doubt, `after_doubt` of the reply or of the error says so: what was
        to be taken away may be gone by this very call.
        """
        decode = self.decoder(kind)
        call = Call("DELETE", path, None, decode, Repeat.KEYED, 0.0, needs_leader, prefer)
        return await self.run(call)

    async def get(self, path: str, kind: type[T], *, needs_leader: bool = True) -> Reply[T]:
        """Read something. Raises as `post`, but never `OutcomeUnknown`."""
        decode = self.decoder(kind)
        call = Call("GET", path, None, decode, Repeat.IDEMPOTENT, needs_leader=needs_leader)
        return await self.run(call)

    async def stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """Yield the lines of one event stream until it breaks off.

        Raises:
            Unavailable: it could not be opened or broke off.
            DistSyncError: what the node answered.
        """
        endpoint = self.nodes.choose(self._clock.now())
        try:
            lines = await self._connections.lines(endpoint, path, _OPEN_STREAM_SECONDS)
            self._heard(endpoint, lines.leader)
            self._lifelines.attach(endpoint, lines.close, self._clock.now())
            try:
                async with aclosing(aiter(lines)) as read:
                    async for line in read:
                        yield line
            finally:
                self._lifelines.detach(endpoint, lines.close)
                lines.close()
        except (NotDone, MaybeDone) as error:
            self._lost_contact(endpoint)
            raise Unavailable(f"{endpoint.url}: {error}") from error

    async def status(self, url: str | None = None) -> ClusterStatus:
        """Return the status of the node at `url`, or of any node."""
        if url is None:
            return (await self.get(_STATUS_PATH, ClusterStatus)).value
        status = await self._probe(Endpoint(url=normalize_url(url), configured=True, usable=True))
        if status is None:
            raise Unavailable(f"{url} gives no status")
        return status

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.close()

    async def run(
        self,
        call: Call,
        *,
        give_up_at: float | None = None,
        attempt_seconds: float | None = None,
    ) -> Reply[Any]:
        """Make a call until there is an answer; `post` says the rest."""
        clock = self._clock
        started = sent_at = clock.now()
        self._discovery.called(started)
        patience = Patience(started, self.timeout_seconds, call.wait_seconds, give_up_at)
        avoid: Endpoint | None = None
        while True:
            endpoint = self._choose(call, sent_at, avoid, first=patience.failures == 0)
            seconds = attempt_seconds or patience.attempt_seconds(sent_at)
            try:
                value, owner = await self._attempt(call, endpoint, sent_at, seconds)
            except (NotDone, MaybeDone, LimitReached, DiskFull, RedisFull) as error:
                if isinstance(error, DistSyncError) and not patience.in_doubt:
                    raise  # refused, and no attempt before it may have been done
                now = clock.now()
                resume_at = patience.resume_at(
                    error, now=now, good_at=call.good_at, repeat=call.repeat
                )
                if resume_at is None:
                    raise patience.verdict(call, error, now) from error
                avoid = self._endpoint_to_avoid(endpoint, error, first=patience.failures == 1)
            except DistSyncError as error:
                error.after_doubt = patience.in_doubt
                if patience.in_doubt and call.repeat is Repeat.GUARDED:
                    # Perhaps because the attempt in doubt was done, perhaps for another's doing.
                    raise patience.verdict(call, error, clock.now()) from error
                raise
            else:
                return Reply(value, sent_at, owner, patience.in_doubt)
            await sleep_until(clock, resume_at)
            sent_at = clock.now()

    def _choose(self, call: Call, now: float, avoid: Endpoint | None, *, first: bool) -> Endpoint:
        if call.keeps_to_one:
            return self.nodes.kept(now, avoid)
        preferred = self.nodes.preferred(call.prefer, now) if first else None
        return preferred or self.nodes.choose(now, avoid)

    def _endpoint_to_avoid(
        self, endpoint: Endpoint, error: Exception, *, first: bool
    ) -> Endpoint | None:
        if isinstance(error, BrokenOff) and first:
            return None  # perhaps only an idle connection ended; a dead node refuses the next
        if not isinstance(error, DistSyncError) and refused(error) is None:
            self._lost_contact(endpoint)
        return endpoint

    async def _attempt(
        self, call: Call, endpoint: Endpoint, now: float, seconds: float
    ) -> tuple[Any, str | None]:
        try:
            answer = await self._exchange(call, endpoint, now, seconds + call.wait_seconds)
        except (DistSyncError, NotDone, MaybeDone) as error:
            said = error if isinstance(error, DistSyncError) else refused(error)
            if said is not None:
                self._heard(endpoint, said.fields.get("leader_url"))
            raise
        self._heard(endpoint, answer.leader)
        try:
            return call.decode(answer), answer.owner
        except msgspec.MsgspecError as error:
            raise MaybeDone(f"{endpoint.url} gave a senseless answer: {error}") from error

    async def _exchange(self, call: Call, endpoint: Endpoint, now: float, seconds: float) -> Answer:
        scope = asyncio.timeout(None)

        def cut() -> None:
            scope.reschedule(asyncio.get_running_loop().time())

        self._lifelines.attach(endpoint, cut, now, needs_leader=call.needs_leader)
        try:
            async with scope:
                return await self._connections.exchange(
                    endpoint, call.method, call.path, call.body, seconds, call.headers
                )
        except TimeoutError as error:
            raise MaybeDone("the node went silent") from error
        finally:
            call.good_at = self._lifelines.detach(endpoint, cut)

    def _heard(self, endpoint: Endpoint, leader: str | None) -> None:
        self.nodes.answered(endpoint)
        if leader is not None:
            self.nodes.note_leader(leader)
            if not self.nodes.leader_is_reachable:
                self._discovery.poke(self._clock.now())

    def _lost_contact(self, endpoint: Endpoint) -> None:
        now = self._clock.now()
        self.nodes.failed(endpoint, now)
        self._discovery.poke(now)

    async def _probe(self, endpoint: Endpoint) -> ClusterStatus | None:
        try:
            answer = await self._connections.exchange(
                endpoint, "GET", _STATUS_PATH, None, _PROBE_SECONDS
            )
            status: ClusterStatus = self.decoder(ClusterStatus)(answer)
        except (NotDone, MaybeDone, DistSyncError, msgspec.MsgspecError):
            return None
        return status

    async def _check(self, endpoint: Endpoint) -> ClusterStatus | None:
        status = await self._probe(endpoint)
        if status is None:
            self._lost_contact(endpoint)
        else:
            self.nodes.note_status(endpoint, status, self._clock.now())
        return status

    def decoder(self, kind: type[T]) -> Callable[[Answer], T]:
        """Return what reads a JSON answer of that kind."""
        decode = self._decoders.get(kind)
        if decode is None:
            of_content = msgspec.json.Decoder(kind).decode
            decode = self._decoders[kind] = lambda answer: of_content(answer.content)
        return decode
