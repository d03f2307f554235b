"""What of the broker for dramatiq needs no cluster."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, ConnectionFailed
from dramatiq.middleware import Middleware

from distsync import (
    BadRequest,
    ClientClosed,
    DistSyncError,
    LimitReached,
    OutcomeUnknown,
    QueueFull,
    RedisFull,
    RedisUnavailable,
    ServerError,
    Unavailable,
)
from distsync.integrations.dramatiq import DistSyncBroker
from distsync.integrations.dramatiq.bodies import to_bytes, to_text
from distsync.integrations.dramatiq.failures import translated
from distsync.integrations.dramatiq.pushing import Push, Pusher
from distsync.queue_models import PushBody

NOWHERE = "http://127.0.0.1:9"


class Cluster:
    """The clock and the transport of a core whose pushes all end in doubt."""

    timeout_seconds = 90.0

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.asked: list[tuple[str, float]] = []
        self.clock = self.transport = self

    def now(self) -> float:
        return self.seconds

    async def post(self, _path: str, body: PushBody, *_: object, **options: Any) -> None:
        self.asked.append((str(body.request_id), options["give_up_at"] - self.seconds))
        raise OutcomeUnknown


async def test_a_push_in_doubt_is_sent_under_its_id_only_while_the_cluster_remembers_it() -> None:
    cluster, pusher = Cluster(), Pusher()
    push = Push(queue="q", message_id="m", body="x", delay_ms=0, priority=0)
    for seconds in (0, 59, 1):
        cluster.seconds += seconds
        with pytest.raises(OutcomeUnknown):
            await pusher.push(cluster, push)  # type: ignore[arg-type]
    (first, first_s), (second, second_s), (third, third_s) = cluster.asked
    assert first == second != third
    assert (first_s, second_s, third_s) == (90, 41, 90)


def test_json_is_sent_as_it_is() -> None:
    assert to_text(b'{"args":["\xc3\xa9"]}') == '{"args":["é"]}'


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", "é\0\n".encode(), b"\xff\xfe", pickle.dumps({"a": 1}), b"base64:", b"base64:AAAA"],
)
def test_every_body_comes_back(data: bytes) -> None:
    assert to_bytes(to_text(data)) == data


def test_what_is_marked_and_no_base64_is_refused() -> None:
    with pytest.raises(ValueError):
        to_bytes("base64:é")


def test_a_missing_extra_says_what_to_install() -> None:
    code = "import sys; sys.modules['dramatiq'] = None; import distsync.integrations.dramatiq"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "ImportError: distsync.integrations.dramatiq needs dramatiq: "
        "pip install 'distsync[dramatiq]'"
    )
    assert "ModuleNotFoundError" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unavailable(), ConnectionFailed),
        (RedisUnavailable(), ConnectionFailed),
        (LimitReached(), ConnectionFailed),
        (ClientClosed(), ConnectionFailed),
        (OutcomeUnknown(), ConnectionClosed),
        (ServerError(), ConnectionClosed),
        (QueueFull(), QueueFull),
        (RedisFull(), RedisFull),
        (BadRequest(), BadRequest),
    ],
)
def test_what_may_succeed_later_is_an_error_of_the_connection(
    error: DistSyncError, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as raised, translated():
        raise error
    if issubclass(kind, BrokerConnectionError):
        assert raised.value.__cause__ is error


def level_of(broker: DistSyncBroker, priority: int | None, **options: object) -> int:
    if priority is not None and f"p{priority}" not in broker.actors:

        @dramatiq.actor(broker=broker, priority=priority, actor_name=f"p{priority}")
        def work() -> None: ...

    return broker._level(dramatiq.Message("default", f"p{priority}", (), {}, dict(options)))


def test_a_lower_priority_of_an_actor_is_a_more_urgent_level_of_the_queue() -> None:
    broker = DistSyncBroker(NOWHERE)
    assert [level_of(broker, p) for p in range(11)] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert level_of(broker, -5) == 9
    assert level_of(broker, None) == 9  # of no actor that is known here


def test_an_application_says_which_priorities_it_uses() -> None:
    broker = DistSyncBroker(NOWHERE, priorities=[-10, 0, 100])
    assert [level_of(broker, p) for p in (-20, -10, 0, 50, 100, 200)] == [9, 9, 8, 7, 7, 6]


def test_the_priority_of_rabbitmq_is_a_level() -> None:
    broker = DistSyncBroker(NOWHERE)
    levels = [level_of(broker, 7, broker_priority=asked) for asked in (0, 4, 9, 255, -1, None)]
    assert levels == [0, 4, 9, 9, 0, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"urls": ""},
        {"visibility": 0},
        {"visibility": 13 * 3600},
        {"priorities": [1, 1]},
        {"priorities": [2, 1]},
        {"priorities": range(11)},
        {"timeout": -1},
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DistSyncBroker(**{"urls": NOWHERE, **options})  # type: ignore[arg-type]


def test_a_broker_is_made_and_queues_declared_without_a_cluster() -> None:
    told: list[str] = []

    class Listener(Middleware):
        def before_declare_queue(self, broker: object, queue_name: str) -> None:
            told.append(f"before {queue_name}")

        def after_declare_queue(self, broker: object, queue_name: str) -> None:
            told.append(f"after {queue_name}")

    broker = DistSyncBroker(NOWHERE, middleware=[Listener()])
    broker.declare_queue("a")
    broker.declare_queue("a")
    broker.declare_queue("b")
    assert told == ["before a", "after a", "before b", "after b"]
    assert broker.get_declared_queues() == {"a", "b"}
    assert broker.get_declared_delay_queues() == set()
    broker.close()
    broker.close()


def test_a_cluster_that_is_not_there_is_an_error_of_the_connection() -> None:
    broker = DistSyncBroker(NOWHERE, timeout=0.2)
    broker.declare_queue("default")
    with pytest.raises(ConnectionFailed):
        broker.enqueue(dramatiq.Message("default", "a", (), {}, {}))
    with pytest.raises(ConnectionFailed):
        broker.flush("default")
    with pytest.raises(ConnectionFailed):
        broker.join("default")
    broker.close()
