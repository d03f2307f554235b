"""Calls of the cache as any HTTP client makes them: bytes, headers and statuses as they are."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def send(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Answer:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        lowered = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, headers=lowered, body=response.read())
    finally:
        connection.close()


def path_of(key: str, **query: Any) -> str:
    """The path of a key."""
    text = f"?{urlencode(query, doseq=True)}" if query else ""
    return f"/cache/{quote(key, safe='')}{text}"


def get(url: str, key: str, **headers: str) -> Answer:
    """GET /cache/{key}"""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return send(url, "GET", path_of(key), headers=named)


def put(url: str, key: str, value: Any, **fields: Any) -> Answer:
    """PUT /cache/{key} of a JSON value."""
    return post(url, path_of(key), {"value": value, **fields}, method="PUT")


def put_bytes(url: str, key: str, value: bytes, **query: Any) -> Answer:
    """PUT /cache/{key} of bytes."""
    headers = {"content-type": "application/octet-stream"}
    return send(url, "PUT", path_of(key, **query), value, headers)


def delete(url: str, key: str, **query: Any) -> Answer:
    """DELETE /cache/{key}"""
    return send(url, "DELETE", path_of(key, **query))


def post(url: str, path: str, body: Any, method: str = "POST") -> Answer:
    """POST JSON."""
    encoded = json.dumps(body).encode()
    return send(url, method, path, encoded, {"content-type": "application/json"})
