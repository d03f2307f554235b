"""One request on its way through the API: its headers, its body, and who waits for the answer.

Reading a body and waiting for a lock may take long; everything else does not. `Patience` looks
after the long ones only: a body that does not arrive in time is given up, and once a wait has
lasted a moment, someone listens whether the client is still there. A request that is answered at
once pays one dictionary entry for this, no task and no timer.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from distsync_node.api.metrics import RouteMetrics
from distsync_node.api.options import ApiOptions
from distsync_node.asgi import Header, Receive, Scope, disconnected
from distsync_node.errors import (
    BadRequest,
    DistSyncError,
    HeadersTooLarge,
    MalformedBody,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

MAX_CLIENT_BYTES = 128
MAX_LENGTH_DIGITS = 18

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_MEDIA_TYPE = re.compile(rb'application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)
_ERROR_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_ERROR_FIELD = re.compile(r"(?:required|unknown) field `(?P<field>[^`]*)`")

_process_prefix = secrets.token_hex(6)
_counter = itertools.count(1)

OK = 200
NOT_MODIFIED = 304
JSON: Header = (b"content-type", b"application/json")

T = TypeVar("T")
ItemCheck: TypeAlias = Callable[[Mapping[str, Any]], list[dict[str, Any]]]
"""Returns the `errors` of a body that was refused: which items of its batch are wrong."""
Answered: TypeAlias = tuple[int, list[Header], bytes]  # status, headers, body


def mint_request_id() -> str:
    """Return an id that no other process and no earlier call has returned."""
    return f"{_process_prefix}-{next(_counter):x}"


class ClientGone(Exception):
    """The client closed its connection before it was answered."""


class Call:
    """One request. `id` names it in logs and headers; `request_id` names the command it became."""

    __slots__ = (
        "answer",
        "authorization",
        "body",
        "client",
        "content_length",
        "content_type",
        "headers",
        "id",
        "interruption",
        "is_id_minted",
        "metrics",
        "owner_url",
        "parameters",
        "receive",
        "request_id",
        "scope",
        "status",
        "task",
        "undelivered",
        "watcher",
    )

    def __init__(self, scope: Scope, receive: Receive, body: bytes | None = None) -> None:
        self.scope = scope
        self.receive = receive
        self.body = body  # once all of it is here
        self.metrics: RouteMetrics | None = None  # of the route, once that is known
        self.answer: Answered | None = None
        self.status = OK
        self.headers: list[Header] = [JSON]  # of the answer that its handler gives
        self.id = ""
        self.is_id_minted = True
        self.request_id: str | None = None
        self.client = ""
        self.authorization: bytes | None = None
        self.content_type: bytes | None = None
        self.content_length: bytes | None = None
        self.owner_url: str | None = None  # where clients reach the owner of what was asked for
        self.parameters: tuple[bytes, ...] = ()  # the raw segments that matched `{...}`
        self.task: asyncio.Task[object] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.undelivered: Callable[[], None] | None = None  # no byte of the answer was written
        self.interruption: Literal["timeout", "gone"] | None = None

    def read_headers(self, options: ApiOptions) -> None:
        """Take what matters from the headers.

        Raises:
            HeadersTooLarge, BadRequest: too many, too large, or no usable client id.
        """
        raw = self.scope["headers"]
        headers: dict[bytes, bytes] = dict(raw)
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.id = given.decode("ascii")
            self.is_id_minted = False
        else:
            self.id = mint_request_id()
        if len(raw) > options.max_headers:
            raise HeadersTooLarge(f"more than {options.max_headers} headers")
        if sum(map(len, headers)) + sum(map(len, headers.values())) > options.max_header_bytes:
            raise HeadersTooLarge(f"more than {options.max_header_bytes} bytes of headers")
        self.authorization = headers.get(b"authorization")
        self.content_type = headers.get(b"content-type")
        self.content_length = headers.get(b"content-length")
        client = headers.get(b"distsync-client")
        if client is not None:
            self.client = _client_id(client)

    async def has_gone(self) -> bool:
        """Return whether the client has closed its connection, so far as is known now."""
        listening = asyncio.ensure_future(self.receive())
        await asyncio.sleep(0)  # lets it begin
        if not listening.done():
            listening.cancel()
            return False
        return bool(listening.result()["type"] == "http.disconnect")

    def name_command(self, given: str | None) -> str:
        """Return the id of the command of this call: the one given, else one of our own.

        An `X-Request-Id` from outside is no substitute: proxies send the same one twice.
        """
        self.request_id = given or (self.id if self.is_id_minted else mint_request_id())
        return self.request_id

    def has_body(self) -> bool:
        """Say whether a body was announced."""
        if self.content_length is not None:
            return self.content_length != b"0"
        return any(name == b"transfer-encoding" for name, _ in self.scope["headers"])


def _client_id(raw: bytes) -> str:
    if len(raw) > MAX_CLIENT_BYTES:
        raise BadRequest(
            f"Distsync-Client is longer than {MAX_CLIENT_BYTES} bytes", field="Distsync-Client"
        )
    try:
        client = raw.decode("utf-8")
    except UnicodeDecodeError:
        client = "\0"
    if not client.isprintable():
        raise BadRequest("Distsync-Client is not printable UTF-8", field="Distsync-Client")
    return client


class Patience:
    """Looks after requests that take long; see the top of this file."""

    def __init__(self, options: ApiOptions) -> None:
        self._interval_s = options.disconnect_check_ms / 1000
        self._body_timeout_s = options.body_timeout_ms / 1000
        self._reading: dict[Call, float] = {}  # since when; oldest first
        self._waiting: dict[Call, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin_reading(self, call: Call) -> None:
        """From now on the body has `body_timeout_ms` to arrive."""
        self._begin(self._reading, call)

    def begin_waiting(self, call: Call) -> None:
        """From now on a disconnect interrupts the call."""
        self._begin(self._waiting, call)

    def end(self, call: Call) -> None:
        """The body is here, or the wait is over."""
        self._reading.pop(call, None)
        self._waiting.pop(call, None)
        if call.watcher is not None:
            call.watcher.cancel()
            call.watcher = None

    def _begin(self, calls: dict[Call, float], call: Call) -> None:
        loop = asyncio.get_running_loop()
        if call.task is None:
            call.task = asyncio.current_task()
        calls[call] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._interval_s, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for call in _older_than(self._reading, now_s - self._body_timeout_s):
            _interrupt(call, "timeout")
            del self._reading[call]
        for call in _older_than(self._waiting, now_s - self._interval_s):
            call.watcher = loop.create_task(_watch_disconnect(call))
            del self._waiting[call]
        self._timer = None
        if self._reading or self._waiting:
            self._timer = loop.call_later(self._interval_s, self._sweep)


def _older_than(calls: dict[Call, float], moment_s: float) -> list[Call]:
    old = []
    for call, since_s in calls.items():
        if since_s > moment_s:
            break
        old.append(call)
    return old


def _interrupt(call: Call, why: Literal["timeout", "gone"]) -> None:
    if call.task is not None and call.interruption is None:
        call.interruption = why
        call.task.cancel()


async def _watch_disconnect(call: Call) -> None:
    await disconnected(call.receive)
    _interrupt(call, "gone")


def interruption_of(call: Call) -> DistSyncError | ClientGone | None:
    """Say what a CancelledError in this call means; None: somebody else cancelled the task."""
    if call.interruption is None or call.task is None or call.task.uncancel() > 0:
        return None
    if call.interruption == "gone":
        return ClientGone()
    return RequestTimeout("the body did not arrive in time")


class Bodies:
    """Reads and decodes request bodies."""

    def __init__(self, options: ApiOptions, patience: Patience) -> None:
        self._max_bytes = options.max_body_bytes
        self._patience = patience

    async def read(
        self, call: Call, decoder: msgspec.json.Decoder[T], check_items: ItemCheck | None = None
    ) -> T:
        """Return the body, decoded and checked; `check_items` tells more of a batch that is not.

        Raises:
            UnsupportedMediaType, PayloadTooLarge, MalformedBody, BadRequest, RequestTimeout.
        """
        media_type = call.content_type
        if media_type != b"application/json" and (
            media_type is None or not _MEDIA_TYPE.fullmatch(media_type.strip())
        ):
            raise UnsupportedMediaType("send the body as `Content-Type: application/json`")
        return _decode(await self._receive(call), decoder, check_items)

    async def read_raw(self, call: Call) -> bytes:
        """Return the body, whatever it is. Raises PayloadTooLarge, RequestTimeout."""
        return await self._receive(call)

    async def read_optional(self, call: Call, decoder: msgspec.json.Decoder[T]) -> T:
        """Return the body; none at all counts as `{}`. Raises as `read`."""
        if call.has_body():
            return await self.read(call, decoder)
        return _decode(b"{}", decoder)

    async def _receive(self, call: Call) -> bytes:
        if call.body is not None:
            return call.body
        length = call.content_length
        if length is not None:
            if not length.isdigit():
                raise MalformedBody("Content-Length is not a number", field="Content-Length")
            if len(length) > MAX_LENGTH_DIGITS or int(length) > self._max_bytes:
                raise self._too_large()
        self._patience.begin_reading(call)
        try:
            message = await call.receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body", False):
                body = await self._receive_rest(call, body)
            elif message["type"] == "http.disconnect":
                raise ClientGone
        finally:
            self._patience.end(call)
        if len(body) > self._max_bytes:
            raise self._too_large()
        return body

    async def _receive_rest(self, call: Call, first: bytes) -> bytes:
        body = bytearray(first)
        more = True
        while more:
            if len(body) > self._max_bytes:
                raise self._too_large()
            message = await call.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._max_bytes} bytes")


def _decode(
    body: bytes, decoder: msgspec.json.Decoder[T], check_items: ItemCheck | None = None
) -> T:
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError:
            # The first error may not be the worst: is it JSON at all?
            value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the body is not JSON: {error}") from None
    try:
        return decoder.decode(msgspec.json.encode(_with_integers(value)))
    except msgspec.ValidationError as error:
        refused = field_error(error)
        if check_items is not None and isinstance(value, dict):
            refused.fields["errors"] = check_items(value)
        raise refused from None


def _with_integers(value: object) -> object:
    """JSON has one kind of number: 10000.0 is the integer 10000, whoever wrote it."""
    if not isinstance(value, dict):
        return value
    return {
        name: int(member) if isinstance(member, float) and member.is_integer() else member
        for name, member in value.items()
    }


def field_error(error: msgspec.ValidationError, within: str = "") -> BadRequest:
    """Turn a message of the decoder into a problem that names the field, which is `within` one."""
    text = str(error)
    located = _ERROR_PATH.search(text)
    named = _ERROR_FIELD.search(text)
    path = located["path"] if located else ""
    if named:
        path = f"{path}.{named['field']}" if path else named["field"]
    if within:
        path = f"{within}.{path}" if path else within
    sentence = text[: located.start()] if located else text
    if not path:
        return BadRequest(sentence, field="body")
    return BadRequest(f"{path}: {sentence}", field=path)
