"""Calls of the cache to a node that is not in the ring: another node answers them.

A cache serves only while its node is in the ring. A node that leaves it, or has not come into it
yet, passes a call on as it came, over the peer port, to a member of the ring: first to the home of
the key. It gives the answer back as that came. Guarantees:

- Who a call is passed on to answers it or refuses it, and never passes it on, so none can loop.
- A 503 says that nothing was done, so the next member is asked then, as it is when one cannot be
  reached. What may have been done, and must not be done twice, is unknown.
- What no other node could do is done here once this node is in the ring: so a cluster that has just
  begun answers its first calls. One that leaves, or does not come into it in time, refuses.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote

import msgspec

from distsync_node.api.call import OK, Bodies, Call, ClientGone, Patience
from distsync_node.api.gateway import Gateway
from distsync_node.api.routes import Handler
from distsync_node.asgi import ASGIApp, Header, Message, Receive, Scope, Send, disconnected
from distsync_node.cache.service import CacheService
from distsync_node.cluster.ring_view import RingView
from distsync_node.errors import OutcomeUnknown, Unavailable
from distsync_node.peers.client import PeerClient
from distsync_node.peers.endpoints import read_body, refuse, respond
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.raft.types import Member, MemberId

PATH: Final = "/cache/internal_call"
MAX_TRIED: Final = 3
ANSWER_SECONDS: Final = 6.0  # for all who are asked; a node answers, or gives up, within 5
COMING_SECONDS: Final = 3.0  # for a node to come into the ring
NO_CACHE_HERE: Final = 503

_PASSED_ON: Final = "distsync.passed_on"
_OWN_HEADERS: Final = frozenset((b"distsync-node", b"distsync-leader", b"x-request-id"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What matters of a call when it is passed on; `is_repeatable`: if done, that is harmless."""

    is_repeatable: bool
    timeout_seconds: float | None = ANSWER_SECONDS


REPEATABLE: Final = Kind(is_repeatable=True)
ONCE: Final = Kind(is_repeatable=False)
WAITING: Final = Kind(is_repeatable=True, timeout_seconds=None)  # as long as the call says


class PassedOn(msgspec.Struct, frozen=True, array_like=True):
    """A request as it came."""

    cluster_id: str
    method: str
    path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class GivenBack(msgspec.Struct, frozen=True, array_like=True):
    """Its answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


_encode = msgspec.msgpack.encode
_decode_request = msgspec.msgpack.Decoder(PassedOn).decode
_decode_answer = msgspec.msgpack.Decoder(GivenBack).decode


class Places(Protocol):
    """What is to be known of the cluster: `services.node.NodeService`."""

    @property
    def own_id(self) -> MemberId | None:
        """The id of this member, once its data directory is open."""
        ...

    @property
    def cluster_id(self) -> str:
        """The cluster this member belongs to, '' for none."""
        ...

    def ring(self) -> RingView:
        """Return the newest ring known here."""
        ...

    def member(self, member_id: MemberId) -> Member | None:
        """Return a member of the configuration."""
        ...


class PassingOn:
    """Passes calls on while the cache of this node takes no part."""

    def __init__(self, cache: CacheService, places: Places, client: PeerClient) -> None:
        self._cache = cache
        self._places = places
        self._client = client

    def around(self, handler: Handler, bodies: Bodies, patience: Patience, kind: Kind) -> Handler:
        """Return a handler that passes calls on where `handler` could not answer."""

        async def answer(call: Call) -> bytes:
            if not self._cache.is_out or _PASSED_ON in call.scope:
                return await handler(call)
            call.body = await bodies.read_raw(call) if call.has_body() else b""
            patience.begin_waiting(call)
            try:
                given = await self._pass_on(call, call.body, kind)
                is_refused = given is None or given.status == NO_CACHE_HERE
                is_in = is_refused and await self._cache.is_in(COMING_SECONDS)
            finally:
                patience.end(call)
            if is_in:
                return await handler(call)
            if given is None:
                raise Unavailable("this node is not in the ring, and no node of it has answered")
            call.status = given.status
            call.headers = [one for one in given.headers if one[0] not in _OWN_HEADERS]
            return given.body

        return answer

    def _members(self, call: Call) -> list[Member]:
        """Return who is in the ring beside this node, the home of the key first."""
        key = unquote(call.parameters[0].decode("latin-1")) if call.parameters else call.id
        servers = self._places.ring().successors(key)
        members = [self._places.member(server.member) for server in servers]
        own_id = self._places.own_id
        return [one for one in members if one is not None and one.id != own_id][:MAX_TRIED]

    async def _pass_on(self, call: Call, body: bytes, kind: Kind) -> GivenBack | None:
        """Return the answer of another node, or the last refusal; None if none was reached."""
        scope = call.scope
        given: GivenBack | None = None
        headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
        path, query = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
        cluster_id = self._places.cluster_id
        request = _encode(PassedOn(cluster_id, scope["method"], path, query, headers, body))
        loop, left_seconds = asyncio.get_running_loop(), kind.timeout_seconds
        ends_s = loop.time() + (left_seconds or 0)
        for member in self._members(call):
            if left_seconds is not None:
                left_seconds = ends_s - loop.time()
                if left_seconds <= 0:
                    break
            try:
                content = await self._client.post(
                    member.peer_url + PATH, request, timeout_seconds=left_seconds
                )
            except PeerUnreachable as error:
                if error.sent and not kind.is_repeatable:
                    raise OutcomeUnknown(f"passed on, and no answer came: {error}") from None
                continue
            given = _decode_answer(content)
            if given.status != NO_CACHE_HERE:
                break
        return given


class Reception:
    """The receiving side: a raw handler of the peer port."""

    def __init__(self, gateway: Gateway, places: Places) -> None:
        self._gateway = gateway
        self._places = places

    def handlers(self) -> dict[str, ASGIApp]:
        """Return path -> ASGI handler."""
        return {PATH: self.call}

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call that another node has passed on, as if it had come to the public port."""
        body = await read_body(receive)
        if body is None:
            return
        try:
            request = _decode_request(body)
        except msgspec.MsgspecError as error:
            await refuse(scope, send, error)
            return
        if request.cluster_id != self._places.cluster_id:
            await refuse(scope, send, ValueError("it is of another cluster"))
            return
        work = asyncio.ensure_future(self._answer(request))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await respond(send, OK, work.result())
        finally:
            gone.cancel()
            work.cancel()

    async def _answer(self, request: PassedOn) -> bytes:
        headers: list[Header] = list(request.headers)
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "path": request.path.decode("latin-1"),
            "raw_path": request.path,
            "query_string": request.query,
            "headers": headers,
            "client": None,
            _PASSED_ON: True,
        }
        answered = await self._gateway.answer(Call(scope, _nothing_comes, request.body))
        if answered is None:
            raise ClientGone
        status, answer_headers, body = answered
        return _encode(GivenBack(status, tuple(answer_headers), body))


async def _nothing_comes() -> Message:
    """The ASGI callable: the body is here, and when its sender goes the whole call is cancelled."""
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}
