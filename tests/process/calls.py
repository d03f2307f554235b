"""Calls to nodes as any HTTP client makes them; what comes back is told as it is."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 40.0


class Answer(dict[str, Any]):
    """The JSON of an answer, with its status and its type."""

    status: int
    content_type: str


def call(
    url: str, body: Any = None, *, method: str | None = None, secret: str | None = None
) -> Answer:
    """Send a request; POST with a body, else GET."""
    headers = {"content-type": "application/json"}
    if secret is not None:
        headers["authorization"] = f"Bearer {secret}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return _answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error.headers, error.read())


def get(url: str) -> Answer:
    """GET what has to be there."""
    answer = call(url)
    assert answer.status == 200, answer
    return answer


def ask(url: str, **body: Any) -> Answer:
    """POST what has to be done."""
    answer = call(url, body)
    assert answer.status == 200, answer
    return answer


def _answer(status: int, headers: Any, content: bytes) -> Answer:
    answer = Answer(json.loads(content))
    answer.status = status
    answer.content_type = headers["content-type"]
    return answer


def call_later(url: str, body: Any) -> Future[Answer]:
    """Send a request on a thread of its own."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call(url, body))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def send_and_hold(url: str, body: Any) -> http.client.HTTPConnection:
    """Send a request and leave the answer unread; close the connection to go away."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_SECONDS)
    connection.request("POST", parts.path, json.dumps(body), {"content-type": "application/json"})
    return connection
