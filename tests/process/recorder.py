"""Clients that take, renew, read and release locks on any node and record what they saw.

Each client has a thread. A request is retried under its request id on another node while its
outcome is unknown, and is one operation of the history, from its first call to its last answer.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from checker.history import NEVER_NS, Operation

ATTEMPT_SECONDS = 3.0
OPERATION_SECONDS = 12.0
NO_ANSWER = (OSError, http.client.HTTPException, json.JSONDecodeError)  # or a part of one
SETTLED = {
    "lock_held",
    "wait_timeout",
    "deadlock",
    "lock_lost",
    "not_holder",
}


class Recorder:
    """Runs clients against nodes until stopped; `history` is what they did."""

    def __init__(
        self,
        urls: list[str],
        *,
        clients: int = 5,
        keys: int = 3,
        ttl_ms: int = 1_500,
        seed: int = 1,
    ) -> None:
        self.history: list[Operation] = []
        self.granted_at: list[float] = []
        self._urls = urls
        self._keys = [f"key-{i}" for i in range(keys)]
        self._ttl_ms = ttl_ms
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._client, args=(f"c{i}", seed * 1_000 + i), daemon=True)
            for i in range(clients)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Operation]:
        """End the clients and return the history."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
            if thread.is_alive():
                raise AssertionError("a client hangs")
        return self.history

    def _client(self, name: str, seed: int) -> None:
        rng = random.Random(seed)
        numbers = itertools.count()
        while not self._stop.is_set():
            owner = f"{name}/{next(numbers)}"
            key = rng.choice(self._keys)
            shared = rng.random() < 0.3
            token = self._acquire(rng, name, key, owner, shared=shared)
            if token is None:
                continue
            held = {"owner": owner, "token": token}
            if rng.random() < 0.3:
                self._read(rng, name, key)
            if rng.random() < 0.3:
                self._operation(
                    rng, name, key, "renew", "/lock/renew", {**held, "ttl_ms": self._ttl_ms}
                )
            if rng.random() < 0.93:
                self._operation(rng, name, key, "release", "/lock/release", held)

    def _acquire(
        self, rng: random.Random, client: str, key: str, owner: str, *, shared: bool
    ) -> int | None:
        arguments = {
            "owner": owner,
            "mode": "shared" if shared else "exclusive",
            "ttl_ms": self._ttl_ms,
            "wait_ms": rng.choice([0, 300, 1_000]),
        }
        answer = self._operation(rng, client, key, "acquire", "/lock/acquire", arguments)
        if answer is None or "token" not in answer:
            return None
        self.granted_at.append(time.monotonic())
        return int(answer["token"])

    def _read(self, rng: random.Random, client: str, key: str) -> None:
        call_ns = time.monotonic_ns()
        try:
            with urllib.request.urlopen(
                f"{rng.choice(self._urls)}/lock/{key}", timeout=ATTEMPT_SECONDS
            ) as response:
                view = json.load(response)
        except NO_ANSWER:
            return
        holders = [
            {"owner": h["owner"], "token": h["token"], "mode": h["mode"]} for h in view["holders"]
        ]
        self._record(client, key, "read", {}, call_ns, {"status": "ok", "holders": holders})

    def _operation(
        self,
        rng: random.Random,
        client: str,
        key: str,
        op: str,
        path: str,
        arguments: dict[str, Any],
    ) -> dict[str, Any] | None:
        """Ask until something certain is known or time is up; record it as one operation."""
        body: dict[str, Any] = {"name": key, **arguments}
        if op != "renew":
            body["request_id"] = f"{client}-{rng.getrandbits(64):x}"
        call_ns = time.monotonic_ns()
        deadline = time.monotonic() + OPERATION_SECONDS
        while time.monotonic() < deadline:
            answer = _post(rng.choice(self._urls) + path, body)
            if answer is not None and (status := _status(op, answer)) is not None:
                result = {"status": status}
                if "token" in answer:
                    result["token"] = answer["token"]
                self._record(client, key, op, arguments, call_ns, result)
                return answer
            if op == "renew":
                break  # without a request id an unknown renewal is left unknown
        self._record(client, key, op, arguments, call_ns, None)
        return None

    def _record(
        self,
        client: str,
        key: str,
        op: str,
        arguments: dict[str, Any],
        call_ns: int,
        result: dict[str, Any] | None,
    ) -> None:
        operation = Operation(
            client=client,
            key=key,
            op=op,
            args=arguments,
            call_ns=call_ns,
            return_ns=time.monotonic_ns() if result is not None else NEVER_NS,
            result=result,
        )
        with self._lock:
            self.history.append(operation)


def _status(op: str, answer: dict[str, Any]) -> str | None:
    """The result of an answer, or None while nothing certain is known."""
    if "code" not in answer:
        return "granted" if op == "acquire" else "ok"
    return answer["code"] if answer["code"] in SETTLED else None


def _post(url: str, body: dict[str, Any]) -> dict[str, Any] | None:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        try:
            with urllib.request.urlopen(request, timeout=ATTEMPT_SECONDS) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.loads(error.read() or b"{}"))
    except NO_ANSWER:
        return None
