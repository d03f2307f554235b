"""Scripted nodes with a cache behind the agreed API: one table, so that it is coherent for sure."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
import pytest

from distsync_node.api.gateway import Gateway
from unit.client.scripted_cluster import Asked, ScriptedCluster


@dataclass(slots=True)
class Stored:
    version: str
    content: bytes | None  # None is a tombstone
    is_raw: bool = False
    ttl_ms: int | None = None
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class Answered:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    def __init__(self, status: int, code: str, **fields: Any) -> None:
        super().__init__(code)
        self.status = status
        self.problem = {"code": code, "status": status, "detail": code, **fields}


class CacheTable:
    """What all nodes have in common."""

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}
        self.computing: dict[str, str] = {}
        self.lost: set[str] = set()
        self.changed = asyncio.Condition()
        self._counter = itertools.count(1)

    async def answer(
        self, method: str, path: str, query: str, headers: dict[str, str], body: bytes
    ) -> Answered:
        options = parse_qsl(query, keep_blank_values=True)
        named = dict(options)
        try:
            match (method, path.split("/")[1:]):
                case ("GET", ["cache"]):
                    lines = {"M": 1, "E": len(self.stored), "S": 0}
                    return _json({"lines": lines, "misses": {"cold": 2}, "durability": "mirrored"})
                case ("GET", ["debug", "cache", "lines"]):
                    return _json(self._lines(named))
                case ("POST", ["cache", "batch"]):
                    return _json(self._batch(msgspec.json.decode(body)))
                case ("POST", ["cache", "compute"]):
                    return _json(await self._compute(msgspec.json.decode(body)))
                case ("POST", ["cache", "invalidate_tag"]):
                    return _json(self._invalidate(msgspec.json.decode(body)["tag"]))
                case ("DELETE", ["cache", key, "compute"]):
                    return _json(await self._give_up(unquote(key), named["token"]))
                case ("GET", ["cache", key]):
                    return self._get(unquote(key), headers)
                case ("PUT", ["cache", key]):
                    change = _change(headers, body, options)
                    return _json(await self.put(unquote(key), change))
                case ("DELETE", ["cache", key]):
                    return _json(self._delete(unquote(key), named))
        except Refused as refused:
            answered = _json(refused.problem)
            answered.status = refused.status
            answered.headers["content-type"] = "application/problem+json"
            return answered
        raise AssertionError(f"{method} {path}")

    def read(self, key: str) -> Stored:
        if key in self.lost:
            raise Refused(410, "line_lost")
        stored = self.stored.get(key, Stored("0.0", None))
        if stored.content is None:
            raise Refused(404, "not_found", version=stored.version)
        return stored

    def _get(self, key: str, headers: dict[str, str]) -> Answered:
        stored = self.read(key)
        if not stored.is_raw or headers.get("accept") == "application/json":
            return _json({"key": key, **_shown(stored)})
        told = {
            "content-type": "application/octet-stream",
            "ETag": f'"{stored.version}"',
            "Distsync-State": "E",
        }
        if stored.ttl_ms is not None:
            told["Distsync-Ttl-Ms"] = str(stored.ttl_ms)
        return Answered(200, stored.content or b"", told)

    async def put(self, key: str, change: dict[str, Any]) -> dict[str, Any]:
        token = change.get("compute_token")
        if token is not None and self.computing.get(key) != token:
            raise Refused(409, "compute_lost")
        self._check(key, change)
        content = msgspec.json.encode(change["value"])
        is_raw = change.get("encoding") == "base64"
        if is_raw:
            content = base64.b64decode(change["value"])
        version = f"1.{next(self._counter)}"
        tags = tuple(change.get("tags", ()))
        self.stored[key] = Stored(version, content, is_raw, change.get("ttl_ms"), tags)
        self.lost.discard(key)
        if token is not None:
            await self._end_compute(key)
        return {"key": key, "version": version, "state": "M"}

    def _check(self, key: str, change: dict[str, Any]) -> None:
        stored = self.stored.get(key)
        current = "0.0" if stored is None or stored.content is None else stored.version
        if change.get("if_version") not in (None, current):
            raise Refused(412, "version_mismatch", version=current)
        fence = change.get("fence")
        if fence is not None and fence["token"] < 10:
            raise Refused(409, "fenced", newest=10)

    def _delete(self, key: str, named: dict[str, str]) -> dict[str, Any]:
        self._check(key, named)
        version = f"1.{next(self._counter)}"
        self.stored[key] = Stored(version, None)
        self.lost.discard(key)
        return {"key": key, "version": version}

    def _batch(self, body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in body.get("get", ()):
            try:
                found[key] = _shown(self.read(key))
            except Refused as refused:
                found[key] = {"error": {"code": refused.problem["code"], "detail": "no"}}
        written = []
        for item in body.get("set", ()):
            running = self.put(item["key"], item)
            try:
                running.send(None)
            except StopIteration as ended:
                written.append(ended.value)
            except Refused as refused:
                written.append({"key": item["key"], "error": refused.problem})
        return {"get": found, "set": written, "delete": []}

    async def _compute(self, body: dict[str, Any]) -> dict[str, Any]:
        key = body["key"]

        def is_decided() -> bool:
            stored = self.stored.get(key)
            is_there = stored is not None and stored.content is not None
            return is_there or key not in self.computing

        try:
            async with asyncio.timeout(body["wait_ms"] / 1000), self.changed:
                await self.changed.wait_for(is_decided)
        except TimeoutError:
            if not is_decided():
                raise Refused(409, "compute_timeout", retriable=True) from None
        stored = self.stored.get(key)
        if stored is not None and stored.content is not None:
            return {"status": "value", "key": key, **_shown(stored)}
        token = self.computing[key] = f"token-{next(self._counter)}"
        return {"status": "compute", "token": token, "expires_in_ms": body["lease_ms"]}

    async def _give_up(self, key: str, token: str) -> dict[str, Any]:
        if self.computing.get(key) != token:
            return {"given_up": False}
        await self._end_compute(key)
        return {"given_up": True}

    async def _end_compute(self, key: str) -> None:
        self.computing.pop(key, None)
        async with self.changed:
            self.changed.notify_all()

    async def end_lease(self, key: str) -> None:
        """As if its time were over."""
        await self._end_compute(key)

    def _invalidate(self, tag: str) -> dict[str, Any]:
        for key, stored in self.stored.items():
            if tag in stored.tags:
                self.stored[key] = Stored(stored.version, None)
        return {"tag": tag, "version": "1.1"}

    def _lines(self, named: dict[str, str]) -> dict[str, Any]:
        keys = sorted(key for key in self.stored if key > named.get("after", ""))
        limit = min(int(named["limit"]), 2)
        shown = [
            {"key": key, "state": "E", "version": self.stored[key].version, "bytes": 1}
            for key in keys[:limit]
        ]
        return {"lines": shown, "next": keys[limit - 1] if len(keys) > limit else None}


def _json(value: Any) -> Answered:
    return Answered(200, msgspec.json.encode(value), {"content-type": "application/json"})


def _shown(stored: Stored) -> dict[str, Any]:
    content = stored.content or b""
    shown: dict[str, Any] = {"version": stored.version, "state": "E"}
    if stored.ttl_ms is not None:
        shown["ttl_ms"] = stored.ttl_ms
    if stored.is_raw:
        return {"value": base64.b64encode(content).decode(), "encoding": "base64", **shown}
    return {"value": msgspec.json.decode(content), **shown}


def _change(headers: dict[str, str], body: bytes, options: list[tuple[str, str]]) -> dict[str, Any]:
    if headers.get("content-type") == "application/json":
        return dict(msgspec.json.decode(body))
    assert headers["content-type"] == "application/octet-stream"
    named = dict(options)
    change: dict[str, Any] = {
        name: named[name] for name in ("if_version", "compute_token") if name in named
    }
    if "ttl_ms" in named:
        change["ttl_ms"] = int(named["ttl_ms"])
    if "fence_lock" in named:
        change["fence"] = {"lock": named["fence_lock"], "token": int(named["fence_token"])}
    change["tags"] = [value for name, value in options if name == "tag"]
    return {**change, "encoding": "base64", "value": base64.b64encode(body).decode()}


class CacheGateway:
    """Answers what is about the cache; hands the rest to the real API."""

    def __init__(self, table: CacheTable, rest: Gateway) -> None:
        self._table = table
        self._rest = rest

    def close(self) -> None:
        self._rest.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["raw_path"].decode().partition("?")[0]
        if not path.startswith(("/cache", "/debug/cache")):
            await self._rest(scope, receive, send)
            return
        body = (await receive())["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode()
        answered = await self._table.answer(scope["method"], path, query, headers, body)
        told = [(name.encode(), value.encode()) for name, value in answered.headers.items()]
        await send({"type": "http.response.start", "status": answered.status, "headers": told})
        await send({"type": "http.response.body", "body": answered.body})


class CacheCluster(ScriptedCluster):
    """Nodes that share one cache."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = CacheTable()

    def make_gateway(self, name: str) -> Gateway:
        gateway: Any = CacheGateway(self.cache, super().make_gateway(name))
        return gateway  # type: ignore[no-any-return]

    def cache_asks(self) -> list[Asked]:
        return [one for one in self.asked if one.path.startswith(("/cache", "/debug/cache"))]


@pytest.fixture
async def cluster() -> AsyncIterator[CacheCluster]:
    cluster = CacheCluster()
    await cluster.start(3)
    yield cluster
    await cluster.stop()
