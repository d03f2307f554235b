"""Where messages between caches are sent, and what they travel in."""

from __future__ import annotations

from typing import get_args

import pytest

from distsync_node.cache.effects import Send
from distsync_node.cache.messages import (
    Ask,
    AskRead,
    Committed,
    Invalidate,
    Message,
    Renew,
    Reply,
    Snoop,
)
from distsync_node.cache.types import PeerId, Version
from distsync_node.cache.wire import PATHS, decode_parcel, encode_message, encode_parcel, path_of
from distsync_node.cluster.ring_state import Epoch

ONE, OTHER = PeerId("one/m-1/1"), PeerId("other/m-2/1")
COMMITTED = Committed(Version(7, 1), (("lock", 3),), True)


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (Snoop(1, 2, "key", 3), "/cache/handle_snoop_read"),
        (Invalidate(1, 2, "key", 3), "/cache/handle_invalidate"),
        (Renew(1, 2, 3), "/cache/handle_messages"),
        (Ask(1, 2, 3, "key", AskRead()), "/cache/handle_messages"),
        (Reply(1, 2, 3, "key", COMMITTED), "/cache/handle_messages"),
    ],
)
def test_a_snoop_and_an_invalidation_have_endpoints_of_their_own(
    message: Message, path: str
) -> None:
    assert path_of(message) == path
    assert path in PATHS


def test_a_parcel_keeps_the_order_of_its_messages_and_their_epochs() -> None:
    messages: list[Message] = [
        Renew(1, 2, 3),
        Snoop(1, 2, "key", 3, COMMITTED),
        Invalidate(1, 2, "other", 3),
    ]
    assert {type(one) for one in messages} <= set(get_args(Message))
    encoded = [
        encode_message(Send(OTHER, Epoch(number), message))
        for number, message in enumerate(messages)
    ]
    parcel = decode_parcel(encode_parcel("cluster", ONE, OTHER, encoded))
    assert (parcel.cluster_id, parcel.source, parcel.target) == ("cluster", ONE, OTHER)
    assert parcel.messages == tuple(enumerate(messages))
