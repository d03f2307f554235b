"""`DistSyncBroker`: dramatiq's queues in a DistSync cluster.

How dramatiq's notions map:

- A queue is the queue of that name behind the broker's namespace: `default` is `dramatiq/default`.
- A delay is the queue's own. There are no `.DQ` queues: a delayed message stays in the cluster
  until it is due, and no worker holds it meanwhile. `options["eta"]` is in what `enqueue` returns
  and in what middleware sees, as with other brokers, but is not sent.
- A dead letter is the queue's own: `distsync.Client.queue("dramatiq/default").redrive()`, or the
  command, puts it back.
- A message is claimed for `visibility` and the claim extended while a worker has it. One whose
  worker dies is delivered again after that, until it has cost the queue's `max_deliveries` (10, if
  nobody configured it) and is a dead letter. A retry of dramatiq's is a new message to the queue.
- The queue orders by ten levels, dramatiq by any integers; see `priorities`.
- What follows a message (its retry, the next of a pipeline, a callback) is enqueued before the
  message is acknowledged. If that fails, the message is given back and runs again, where dramatiq
  would acknowledge it.
"""

from __future__ import annotations

import math
import ssl as ssl_module
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, Final

from dramatiq import Message
from dramatiq.broker import Broker
from dramatiq.common import current_millis, q_name
from dramatiq.errors import QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import Middleware

from distsync.durations import Duration, to_seconds
from distsync.errors import PayloadTooLarge
from distsync.errors import QueueNotFound as NoSuchQueue
from distsync.integrations.dramatiq.bodies import to_text
from distsync.integrations.dramatiq.consumer import ClaimedProxy, DistSyncConsumer
from distsync.integrations.dramatiq.failures import translated
from distsync.integrations.dramatiq.pushing import Push, Pusher
from distsync.nodes import DEFAULT_URLS
from distsync.queue_calls import MAX_BODY_BYTES, QueueCalls
from distsync.sync_client import Client

__all__ = ["DistSyncBroker"]

_LONGEST_DELAY_MS: Final = 30 * 86_400_000
_LONGEST_VISIBILITY_SECONDS: Final = 12 * 3_600.0
_MOST_URGENT: Final = 9


class DistSyncBroker(Broker):
    """A broker for dramatiq on a DistSync cluster.

        dramatiq.set_broker(DistSyncBroker("http://127.0.0.1:8081,http://127.0.0.1:8082"))

    Nothing is sent before the first message. It may be made before a fork, and shared by threads.
    """

    def __init__(
        self,
        urls: str | Iterable[str] = DEFAULT_URLS,
        *,
        middleware: list[Middleware] | None = None,
        namespace: str = "dramatiq",
        visibility: Duration = 30.0,
        priorities: Sequence[int] = range(10),
        timeout: Duration = 10.0,
        name: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        """Make a broker.

        Args:
            urls: node URLs, as a list or separated by commas; any of them will do.
            middleware: all middleware instead of the usual, as for every broker.
            namespace: what the names of queues begin with in the cluster, before a slash; "" for
                nothing.
            visibility: after how long the messages of a worker that died are delivered again.
            priorities: up to ten priorities of actors that the queues tell apart, rising. A message
                counts as the next of them that is not below its actor's; lower goes first. Within a
                worker every priority counts. For actors of 0, 50 and 100 give just these.
            timeout: how long a call rides out an outage.
            name: what this program is called in the cluster; by default the host's name.
            ssl: for https URLs with other certificates than the system's.

        Raises:
            ValueError: an argument is out of range, or no URL.
        """
        self._visibility_seconds = to_seconds(visibility, "visibility")
        if not 0 < self._visibility_seconds <= _LONGEST_VISIBILITY_SECONDS:
            raise ValueError(f"visibility must be above 0 and up to 12 hours, not {visibility!r}")
        self._priorities = tuple(priorities)
        if list(self._priorities) != sorted(set(self._priorities)) or len(self._priorities) > 10:
            raise ValueError(f"priorities must be up to ten rising integers, not {priorities!r}")
        self._prefix = f"{namespace}/" if namespace else ""
        self._options: dict[str, Any] = {
            "urls": urls if isinstance(urls, str) else tuple(urls),
            "timeout": timeout,
            "name": name,
            "ssl": ssl,
        }
        self._open: Client | None = Client(**self._options)
        self._pusher = Pusher()
        self._following = threading.local()
        super().__init__(middleware=middleware)

    # --- Declaring --------------------------------------------------------------------------

    def declare_queue(self, queue_name: str) -> None:
        """Have workers consume a queue. Nothing is sent; twice is harmless."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = self._in_cluster(queue_name)
            self.emit_after("declare_queue", queue_name)

    # --- Messages in ------------------------------------------------------------------------

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Put a message into its queue, declared here or not; returns it as it was enqueued.

        The same message again after a `ConnectionClosed`, within a minute, is there once.

        Args:
            message: up to 256 KiB encoded; what is not UTF-8 (pickle) up to 192 KiB.
            delay: in milliseconds, up to 30 days. An `eta` among the options does the same.

        Raises:
            ConnectionFailed: nothing was done within the timeout.
            ConnectionClosed: no answer within the timeout; it may be in the queue.
            QueueFull, RedisFull, PayloadTooLarge: of DistSync.
            ValueError: the delay is too long.
        """
        now_ms = current_millis()
        options = {} if delay is None else {"eta": now_ms + math.ceil(delay)}
        message = message.copy(queue_name=q_name(message.queue_name), options=options)
        self.emit_before("enqueue", message, delay)
        sent = message.copy()
        eta = sent.options.pop("eta", None)
        delay_ms = max(0, math.ceil(eta - now_ms)) if isinstance(eta, (int, float)) else 0
        if delay_ms > _LONGEST_DELAY_MS:
            raise ValueError(f"a message can be delayed by up to 30 days, not by {delay_ms} ms")
        try:
            self._push(sent, delay_ms)
        except Exception as error:
            if (followed := self._followed()) is not None:
                followed.follow_up_failed(error)
            raise
        self.emit_after("enqueue", message, delay)
        return message

    def _push(self, message: Message[Any], delay_ms: int) -> None:
        body = to_text(message.encode())
        if (size := len(body.encode())) > MAX_BODY_BYTES:
            raise PayloadTooLarge(
                f"message {message.message_id} has {size} bytes as it is sent, and the limit is"
                f" {MAX_BODY_BYTES}",
                field="body",
            )
        push = Push(
            queue=self._in_cluster(message.queue_name),
            message_id=message.message_id,
            body=body,
            delay_ms=delay_ms,
            priority=self._level(message),
        )
        engine = self._client()._engine()
        with translated():
            engine.portal.call(self._pusher.push, engine.client._core, push)

    def _level(self, message: Message[Any]) -> int:
        asked = message.options.get("broker_priority")  # as RabbitMQ's broker has it
        if isinstance(asked, int):
            return min(max(asked, 0), _MOST_URGENT)
        actor = self.actors.get(message.actor_name)
        priority = 0 if actor is None else actor.priority
        return _MOST_URGENT - min(bisect_left(self._priorities, priority), _MOST_URGENT)

    # --- Messages out -----------------------------------------------------------------------

    def consume(
        self, queue_name: str, prefetch: int = 1, timeout: int = 30_000
    ) -> DistSyncConsumer:
        """Return a consumer that claims up to `prefetch` messages and idles for `timeout` ms.

        Raises:
            QueueNotFound: it was not declared.
        """
        name = self._declared(queue_name)
        engine = self._client()._engine()
        queue = engine.client.queue(name)
        return DistSyncConsumer(
            engine.portal,
            QueueCalls(engine.client._core, name),
            lambda: queue.consume(
                concurrency=max(prefetch, 1),
                visibility=self._visibility_seconds,
                auto_ack=False,
            ),
            queue_name=queue_name,
            timeout_ms=timeout,
        )

    # --- What happens around them -----------------------------------------------------------

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Tell middleware; a worker that shuts down claims nothing more while its actors end."""
        if signal == "worker_shutdown":
            for thread in list(args[0].consumers.values()):
                if isinstance(thread.consumer, DistSyncConsumer):
                    thread.consumer.stop_claiming()
        super().emit_before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Tell middleware; what it enqueues after a message belongs to that message."""
        if signal != "process_message" or not isinstance(args[0], ClaimedProxy):
            super().emit_after(signal, *args, **kwargs)
            return
        self._following.message = args[0]
        try:
            super().emit_after(signal, *args, **kwargs)
        finally:
            self._following.message = None

    def _followed(self) -> ClaimedProxy | None:
        message: ClaimedProxy | None = getattr(self._following, "message", None)
        return message

    # --- Queues as a whole ------------------------------------------------------------------

    def flush(self, queue_name: str) -> None:
        """Drop all messages of a queue: delayed ones, dead letters and those at work as well."""
        queue = self._client().queue(self._in_cluster(queue_name))
        with translated():
            queue.purge()
            queue.purge(dead=True)

    def flush_all(self) -> None:
        """Drop all messages of all declared queues."""
        for queue_name in self.get_declared_queues():
            self.flush(queue_name)

    def join(self, queue_name: str, *, interval: int = 100, timeout: int | None = None) -> None:
        """Wait until a queue holds no message, delayed ones and those at work included.

        Args:
            queue_name: the queue.
            interval: how often to look, in milliseconds.
            timeout: how long to wait, in milliseconds; None for ever.

        Raises:
            QueueJoinTimeout: it still holds messages.
            QueueNotFound: it was not declared.
        """
        name = self._declared(queue_name)
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while self._holds_messages(name):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            time.sleep(interval / 1000)

    def _holds_messages(self, name: str) -> bool:
        with translated():
            try:
                stats = self._client().queue(name).stats()
            except NoSuchQueue:
                return False
        return bool(stats.ready or stats.grouped or stats.delayed or stats.in_flight)

    # --- Life -------------------------------------------------------------------------------

    def close(self) -> None:
        """End all connections. A call afterwards opens new ones."""
        client, self._open = self._open, None
        if client is not None:
            client.close()

    def _client(self) -> Client:
        client = self._open
        if client is None:
            client = self._open = Client(**self._options)
        return client

    def _in_cluster(self, queue_name: str) -> str:
        return self._prefix + queue_name

    def _declared(self, queue_name: str) -> str:
        try:
            name: str = self.queues[queue_name]
        except KeyError:
            raise QueueNotFound(queue_name) from None
        return name
