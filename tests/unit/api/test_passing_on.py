"""Calls of the cache that another node answers: who is asked, how often, and what is told then."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from distsync_node.api.call import Bodies, Call, Patience
from distsync_node.api.options import ApiOptions
from distsync_node.api.passing_on import ONCE, REPEATABLE, GivenBack, Kind, PassedOn, PassingOn
from distsync_node.asgi import Message
from distsync_node.cache.service import CacheService
from distsync_node.cluster.ring_state import Epoch, Incarnation, RingState, Server
from distsync_node.cluster.ring_view import RingView
from distsync_node.errors import OutcomeUnknown, Unavailable
from distsync_node.peers.client import PeerClient
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.raft.types import Member, MemberId

NOT_REACHED = PeerUnreachable("no connection", sent=False)
CUT = PeerUnreachable("no answer", sent=True)
DONE = GivenBack(200, ((b"distsync-node", b"other"), (b"etag", b'"1.2"')), b"done")
NOT_DONE = GivenBack(503, (), b"not here")


class Cluster:
    """Three members; this node, `n1`, has left the ring. What the others say is scripted."""

    cluster_id = "c"
    own_id = MemberId("m-n1")
    is_out = True
    comes_in = False

    def __init__(self, *script: GivenBack | PeerUnreachable) -> None:
        self._script = list(script)
        self.asked: list[str] = []
        self.requests: list[PassedOn] = []

    def ring(self) -> RingView:
        servers = [Server(name, MemberId(f"m-{name}"), Incarnation(1)) for name in ("n2", "n3")]
        view = RingView()
        view.adopt(RingState(Epoch(4), tuple(servers)))
        return view

    def member(self, member_id: MemberId) -> Member:
        name = member_id.removeprefix("m-")
        return Member(id=member_id, name=name, voter=True, peer_url=f"http://{name}")

    async def is_in(self, _within_seconds: float) -> bool:
        return self.comes_in

    async def post(self, url: str, body: bytes, **_: Any) -> bytes:
        self.asked.append(url)
        self.requests.append(msgspec.msgpack.decode(body, type=PassedOn))
        answer = self._script.pop(0)
        if isinstance(answer, PeerUnreachable):
            raise answer
        return msgspec.msgpack.encode(answer)


async def handled_here(_call: Call) -> bytes:
    return b"here"


async def nothing() -> Message:
    raise AssertionError("there is nothing to receive")


def call_of(**more: Any) -> Call:
    scope = {
        "type": "http",
        "method": "PUT",
        "path": "/cache/key",
        "raw_path": b"/cache/k%65y",
        "query_string": b"tag=some",
        "headers": [(b"if-none-match", b"*"), (b"content-length", b"4")],
        **more,
    }
    call = Call(scope, nothing, b"body")
    call.read_headers(ApiOptions())
    return call


async def passed_on(cluster: Cluster, call: Call, kind: Kind = ONCE) -> bytes:
    patience = Patience(ApiOptions())
    passing_on = PassingOn(cast(CacheService, cluster), cluster, cast(PeerClient, cluster))
    handler = passing_on.around(handled_here, Bodies(ApiOptions(), patience), patience, kind)
    return await handler(call)


async def test_a_call_is_passed_on_as_it_came_and_its_answer_given_back() -> None:
    cluster, call = Cluster(DONE), call_of()
    assert await passed_on(cluster, call) == b"done"
    assert (call.status, call.headers) == (200, [(b"etag", b'"1.2"')])
    (request,) = cluster.requests
    assert (request.cluster_id, request.method, request.body) == ("c", "PUT", b"body")
    assert (request.path, request.query) == (b"/cache/k%65y", b"tag=some")
    assert (b"if-none-match", b"*") in request.headers


@pytest.mark.parametrize("first", [NOT_REACHED, NOT_DONE])
async def test_what_was_certainly_not_done_is_asked_of_the_next(first: Any) -> None:
    cluster = Cluster(first, DONE)
    assert await passed_on(cluster, call_of()) == b"done"
    assert len(set(cluster.asked)) == 2


async def test_a_write_that_may_have_been_done_is_not_passed_on_twice() -> None:
    cluster = Cluster(CUT, DONE)
    with pytest.raises(OutcomeUnknown):
        await passed_on(cluster, call_of())
    assert len(cluster.asked) == 1


async def test_a_read_is_asked_of_the_next_when_its_answer_is_lost() -> None:
    cluster = Cluster(CUT, DONE)
    assert await passed_on(cluster, call_of(), REPEATABLE) == b"done"


async def test_when_nobody_does_it_the_last_answer_says_so() -> None:
    call = call_of()
    assert await passed_on(Cluster(NOT_DONE, NOT_REACHED), call) == b"not here"
    assert call.status == 503
    with pytest.raises(Unavailable):
        await passed_on(Cluster(NOT_REACHED, NOT_REACHED), call_of())


async def test_what_was_passed_on_is_answered_here() -> None:
    cluster = Cluster()
    assert await passed_on(cluster, call_of(**{"distsync.passed_on": True})) == b"here"
    assert cluster.asked == []


async def test_a_node_in_the_ring_answers_by_itself() -> None:
    cluster = Cluster()
    cluster.is_out = False
    assert await passed_on(cluster, call_of()) == b"here"


@pytest.mark.parametrize("others", [NOT_DONE, NOT_REACHED])
async def test_what_nobody_could_do_is_done_here_once_this_node_is_in(others: Any) -> None:
    cluster, call = Cluster(others, others), call_of()
    cluster.comes_in = True
    assert await passed_on(cluster, call) == b"here"
    assert (call.status, call.body) == (200, b"body")
