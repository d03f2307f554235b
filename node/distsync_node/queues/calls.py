"""What nodes say to each other about queues: `POST /queue/internal_push` and its siblings, msgpack.

A request names the cluster, the member it is meant for and the epoch of its sender's ring. Who has
an older ring adopts the newer one: a receiver asks for it with `NeedRing`, a sender gets it with
whatever it is answered. A receiver carries a call out itself or says that it is not the owner; it
never passes it on, so no call can loop.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from distsync_node.cluster.ring_state import Epoch, RingState
from distsync_node.queues.types import ClaimedMessage, NewMessage
from distsync_node.raft.types import MemberId

PUSH_PATH = "/queue/internal_push"
POP_PATH = "/queue/internal_pop"
SIGNAL_PATH = "/queue/internal_signal"
CALLS_PATH = "/queue/internal_calls"  # many that do not wait, in one request


class _Struct(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


class PushCall(_Struct, frozen=True):
    """Push; `lock` and `token` are the fence, '' and 0 without one."""

    queue: str
    messages: tuple[NewMessage, ...]
    request_id: str
    lock: str
    token: int


class PopCall(_Struct, frozen=True):
    """Pop, as the attempt that the sender can give back."""

    queue: str
    count: int
    wait_ms: int
    visibility_ms: int
    request_id: str
    attempt: str


class SignalCall(_Struct, frozen=True):
    """So many messages of these queues can be claimed that could not before; in so many
    milliseconds a delay ends. Without any, whoever gets it only says whether it could serve."""

    ready: dict[str, int]
    delays: dict[str, int]


Call: TypeAlias = PushCall | PopCall | SignalCall


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call, whom it is meant for, and the ring it goes by (whole only after `NeedRing`)."""

    cluster_id: str
    to: MemberId
    epoch: Epoch
    ring: RingState | None
    call: Call


class Pushed(_Struct, frozen=True):
    """The ids of the messages."""

    ids: tuple[str, ...]


class Popped(_Struct, frozen=True):
    """What was claimed, and the id of the request under which it may be given back: a pop goes on
    under another one when what it first claimed is settled."""

    messages: tuple[ClaimedMessage, ...]
    request_id: str


class Signalled(_Struct, frozen=True):
    """Taken note of."""


class Refused(_Struct, frozen=True):
    """It ended with this error (`errors.error_of_code`)."""

    code: str
    detail: str
    fields: dict[str, Any]


class NeedRing(_Struct, frozen=True):
    """Nothing was done: the sender's ring is newer; send it along."""


class NotOwner(_Struct, frozen=True):
    """Nothing was done: another node owns the queue, or the one asked is not the one that was
    meant."""


Reply: TypeAlias = Pushed | Popped | Signalled | Refused | NeedRing | NotOwner


class Response(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reply, and the ring it goes by if that is newer than the one of the request."""

    ring: RingState | None
    reply: Reply


encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_requests = msgspec.msgpack.Decoder(tuple[Request, ...]).decode
decode_response = msgspec.msgpack.Decoder(Response).decode
decode_responses = msgspec.msgpack.Decoder(tuple[Response, ...]).decode
