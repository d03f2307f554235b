"""The operations of queues, as their users read of them."""

from __future__ import annotations

from typing import Any

from distsync_node import errors
from distsync_node.api import queue_schemas as schemas
from distsync_node.api.operation import BODY, LIMITED, Errors, Operation
from distsync_node.queues.types import QueueConfig

_REDIS: Errors = (*LIMITED, errors.RedisUnavailable, errors.OutcomeUnknown)
_CHANGE: Errors = (*_REDIS, *BODY)
_KEYED: Errors = (*_CHANGE, errors.RequestIdReused)
_SETTLE: Errors = (*_KEYED, errors.StaleReceipt)
_NAME: tuple[str, Any, str] = ("name", schemas.QueueName, "emails")

_ID: tuple[str, Any, str] = ("id", schemas.MessageId, "9f1c2e7ab04d11c35e60-0")

_RECEIPT = "9f1c2e7ab04d11c35e60-0.4be1a7c09d2f8e31.5d0c1b7a"
_RECEIPTS = (
    "Where one receipt is none of this queue, nothing is done, and `errors` of the answer has an"
    " entry for each of those; where the claims of some have ended, `stale` lists them, and the"
    " others are served."
)
_CONFIG = {
    "max_length": 0,
    "max_deliveries": 16,
    "dedupe_window_ms": 300_000,
    "ttl_ms": 0,
    "rate_count": 0,
    "rate_per_ms": 1_000,
    "paused": False,
}
_STATS = {
    "ready": 3,
    "grouped": 0,
    "delayed": 1,
    "in_flight": 2,
    "dead": 0,
    "groups": 0,
    "groups_ready": 0,
    "oldest_ready_ms": 1_250,
    "requests_remembered": 40,
    "born_at": 1_790_000_000_000,
    "pushed": 46,
    "deduplicated": 0,
    "delivered": 42,
    "acked": 40,
    "nacked": 0,
    "timed_out": 0,
    "unclaimed": 0,
    "expired": 0,
    "dead_lettered": 0,
    "redriven": 0,
    "cancelled": 0,
    "purged": 0,
    "config": _CONFIG,
}
_MESSAGE = {
    "id": "9f1c2e7ab04d11c35e60-0",
    "body": '{"to": "ada@example.com"}',
    "deliveries": 1,
    "priority": 0,
    "group": "",
}

_INFO = {
    **_MESSAGE,
    "phase": "ready",
    "size": 25,
    "pushed_at_ms": 1_789_999_998_750,
    "due_at_ms": 0,
    "expires_at_ms": 0,
    "deadline_ms": 0,
    "died_at_ms": 0,
}

_SCHEDULE_ID: tuple[str, Any, str] = ("id", schemas.ScheduleId, "nightly")
_SCHEDULE = {
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "body": "clean up",
    "priority": 0,
    "ttl_ms": 0,
    "group": "",
}
_SCHEDULE_VIEW = {"id": "nightly", **_SCHEDULE, "next_at_ms": 1_790_037_000_000}

QUEUE_OPERATIONS = (
    Operation(
        method="POST",
        path="/queue/push",
        id="push",
        tag="queues",
        summary="Put messages into a queue, all or none",
        description=(
            "A new name makes the queue. Where one message cannot be, none is pushed, and `errors`"
            " of the answer has an entry for each that cannot. With `fence`, a token older than the"
            " newest seen under that lock is refused."
        ),
        request=schemas.PushRequest,
        requests={
            "one": {"queue": "emails", "body": "hello"},
            "several": {
                "queue": "emails",
                "messages": [
                    {"body": "first", "group": "ada"},
                    {"body": "second", "group": "ada", "delay_ms": 5_000},
                ],
            },
            "fenced": {
                "queue": "emails",
                "body": "hello",
                "fence": {"lock": "orders/42", "token": 1842},
            },
        },
        response=schemas.PushResponse,
        answers={"pushed": {"ids": ["9f1c2e7ab04d11c35e60-0"]}},
        errors=(*_KEYED, errors.Fenced, errors.QueueFull, errors.RedisFull, errors.NoLeader),
    ),
    Operation(
        method="POST",
        path="/queue/pop",
        id="pop",
        tag="queues",
        summary="Claim messages",
        description=(
            "Each is delivered again when its claim ends without an ack. `wait_ms` waits for a"
            " message; a client that goes away meanwhile spends no delivery. `ack` saves a worker"
            " a request: it ends the claims of the messages before, whatever comes of the pop."
        ),
        request=schemas.PopRequest,
        requests={
            "wait": {"queue": "emails", "max": 10, "wait_ms": 20_000},
            "work": {"queue": "emails", "ack": [_RECEIPT], "wait_ms": 20_000},
        },
        response=schemas.PopResponse,
        answers={
            "some": {
                "messages": [{**_MESSAGE, "receipt": _RECEIPT, "visible_ms": 30_000}],
                "stale": [],
            },
            "none": {"messages": [], "stale": []},
        },
        errors=_KEYED,
    ),
    Operation(
        method="POST",
        path="/queue/ack",
        id="ack",
        tag="queues",
        summary="Messages are done",
        description=_RECEIPTS,
        request=schemas.AckRequest,
        requests={"one": {"queue": "emails", "receipts": [_RECEIPT]}},
        response=schemas.SettledResponse,
        answers={"done": {"count": 1, "dead": []}},
        errors=_SETTLE,
    ),
    Operation(
        method="POST",
        path="/queue/nack",
        id="nack",
        tag="queues",
        summary="Messages failed",
        description=f"They come back after `delay_ms`, or become dead letters. {_RECEIPTS}",
        request=schemas.NackRequest,
        requests={
            "later": {"queue": "emails", "receipts": [_RECEIPT], "delay_ms": 5_000},
            "not_begun": {"queue": "emails", "receipts": [_RECEIPT], "spend": False},
        },
        response=schemas.SettledResponse,
        answers={"done": {"count": 1, "dead": []}},
        errors=_SETTLE,
    ),
    Operation(
        method="POST",
        path="/queue/extend",
        id="extend",
        tag="queues",
        summary="Keep claims for longer",
        description=_RECEIPTS,
        request=schemas.ExtendRequest,
        requests={"minute": {"queue": "emails", "receipts": [_RECEIPT], "visibility_ms": 60_000}},
        response=schemas.SettledResponse,
        answers={"done": {"count": 1, "dead": []}},
        errors=_SETTLE,
    ),
    Operation(
        method="GET",
        path="/queues",
        id="list_queues",
        tag="queues",
        summary="List the names of queues",
        response=schemas.QueuesResponse,
        answers={"page": {"queues": ["emails", "reports"], "next": None}},
        query=schemas.QueuesQuery,
        errors=_REDIS,
    ),
    Operation(
        method="GET",
        path="/queue/{name}",
        id="get_queue",
        tag="queues",
        summary="How much is in a queue, and what has happened",
        response=schemas.QueueResponse,
        answers={"some": {"name": "emails", "stats": _STATS}},
        path_parameters=(_NAME,),
        errors=(*_REDIS, errors.QueueNotFound),
    ),
    Operation(
        method="GET",
        path="/queue/{name}/peek",
        id="peek",
        tag="queues",
        summary="What a pop would claim now",
        response=schemas.PeekResponse,
        answers={"some": {"messages": [{**_MESSAGE, "deliveries": 0}]}},
        query=schemas.PeekQuery,
        path_parameters=(_NAME,),
        errors=_REDIS,
    ),
    Operation(
        method="GET",
        path="/queue/{name}/messages",
        id="list_messages",
        tag="queues",
        summary="List messages, wherever they are",
        description=(
            "`order` says which. Pass `next` as `cursor` to get the next page; null is the end. A"
            " message that stays where it is comes once."
        ),
        response=schemas.MessagesResponse,
        answers={"page": {"messages": [_INFO], "now_ms": 1_790_000_000_000, "next": None}},
        query=schemas.MessagesQuery,
        path_parameters=(_NAME,),
        errors=_REDIS,
    ),
    Operation(
        method="GET",
        path="/queue/{name}/messages/{id}",
        id="get_message",
        tag="queues",
        summary="One message, wherever it is",
        response=schemas.MessageView,
        answers={"ready": _INFO},
        path_parameters=(_NAME, _ID),
        errors=(*_REDIS, errors.MessageNotFound),
    ),
    Operation(
        method="DELETE",
        path="/queue/{name}/messages/{id}",
        id="cancel_message",
        tag="queues",
        summary="Take a message out that is not claimed",
        description="A dead letter too.",
        response=schemas.CancelledResponse,
        answers={"done": {"cancelled": True}},
        query=schemas.DeleteQuery,
        path_parameters=(_NAME, _ID),
        errors=(
            *_REDIS,
            errors.RequestIdReused,
            errors.MessageNotFound,
            errors.MessageInFlight,
        ),
    ),
    Operation(
        method="PUT",
        path="/queue/{name}/config",
        id="configure_queue",
        tag="queues",
        summary="Change the configuration",
        request=schemas.ConfigRequest,
        requests={"deliveries": {"max_deliveries": 5, "create": True}},
        response=QueueConfig,
        answers={"all": _CONFIG},
        path_parameters=(_NAME,),
        errors=(*_CHANGE, errors.QueueNotFound),
    ),
    *(
        Operation(
            method="POST",
            path=f"/queue/{{name}}/{verb}",
            id=f"{verb}_queue",
            tag="queues",
            summary=summary,
            request=schemas.SwitchRequest,
            is_body_optional=True,
            requests={"plain": {}},
            response=QueueConfig,
            answers={"all": {**_CONFIG, "paused": verb == "pause"}},
            path_parameters=(_NAME,),
            errors=(*_CHANGE, errors.QueueNotFound),
        )
        for verb, summary in (
            ("pause", "Deliver nothing until it is resumed"),
            ("resume", "Deliver again"),
        )
    ),
    Operation(
        method="POST",
        path="/queue/{name}/purge",
        id="purge_queue",
        tag="queues",
        summary="Remove all messages, or all dead letters",
        request=schemas.PurgeRequest,
        is_body_optional=True,
        requests={"messages": {}, "dead": {"target": "dead"}},
        response=schemas.PurgedResponse,
        answers={"done": {"removed": 12}},
        path_parameters=(_NAME,),
        errors=_KEYED,
    ),
    Operation(
        method="POST",
        path="/queue/{name}/redrive",
        id="redrive_queue",
        tag="queues",
        summary="Put all dead letters back into the queue",
        request=schemas.RedriveRequest,
        is_body_optional=True,
        requests={"plain": {}},
        response=schemas.RedrivenResponse,
        answers={"done": {"moved": 3}},
        path_parameters=(_NAME,),
        errors=(*_KEYED, errors.RedisFull),
    ),
    Operation(
        method="PUT",
        path="/queue/{name}/schedules/{id}",
        id="put_schedule",
        tag="queues",
        summary="Push a message again and again",
        description=(
            "Each time of `cron` is served once, within about a second. Times that passed while no"
            " node was there are served as one, late."
        ),
        request=schemas.ScheduleRequest,
        requests={"nightly": _SCHEDULE},
        response=schemas.ScheduleView,
        answers={"kept": _SCHEDULE_VIEW},
        path_parameters=(_NAME, _SCHEDULE_ID),
        errors=(*_CHANGE, errors.RedisFull),
    ),
    Operation(
        method="GET",
        path="/queue/{name}/schedules",
        id="list_schedules",
        tag="queues",
        summary="The schedules of a queue",
        response=schemas.SchedulesResponse,
        answers={"some": {"schedules": [_SCHEDULE_VIEW]}},
        path_parameters=(_NAME,),
        errors=_REDIS,
    ),
    Operation(
        method="DELETE",
        path="/queue/{name}/schedules/{id}",
        id="delete_schedule",
        tag="queues",
        summary="Push it no more",
        response=schemas.UnscheduledResponse,
        answers={"done": {"deleted": True}},
        query=schemas.DeleteQuery,
        path_parameters=(_NAME, _SCHEDULE_ID),
        errors=_REDIS,
    ),
)
