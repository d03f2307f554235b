"""Clients of the cache on real nodes, and what they saw, for the checker (`sim.cache.model`)."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from checker.history import NEVER_NS, Operation
from process.cache_calls import Answer, delete, get, put
from process.running import eventually

THINK_SECONDS = 0.02
KEYS_AT_A_TIME = 4
SECONDS_A_KEY = 8.0
THROUGH = "through/"  # nodes keep keys with this prefix under write_through

Result = dict[str, Any]

_NOT_DONE = Answer(status=503, headers={}, body=b'{"code": "nobody_listens"}')


class CacheRecorder:
    """Threads that read, write, compare-and-set and delete until `stop`."""

    def __init__(self, urls: list[str], *, seed: int, clients: int = 6, prefix: str = "") -> None:
        self.urls = urls
        self.history: list[Operation] = []
        self.served_at: list[float] = []
        self.prefix = prefix
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(f"c{i}", random.Random(f"{seed}/{i}")))
            for i in range(clients)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def read_everywhere(self) -> list[Operation]:
        """Read all keys through every node, for what is lost shows there; return what was seen."""
        for key in sorted({one.key for one in self.history}):
            for url in self.urls:
                self.read(url, key)
        return self.history

    def read(self, url: str, key: str) -> str | None:
        """Read a key, as one more client, as soon as that is served."""
        answer = eventually(lambda: self._read("reader", url, key), what=f"{key!r} at {url}")
        return str(answer.json["value"]) if answer.status == 200 else None

    def write(self, url: str, key: str, value: str) -> None:
        """Write a key, as one more client, as soon as that is served."""
        eventually(lambda: self._write("writer", url, key, value), what=f"{key!r} at {url}")

    def served_since(self, moment: float) -> int:
        """How many operations were served that began after that moment."""
        return sum(1 for at in self.served_at if at > moment)

    def _run(self, client: str, rng: random.Random) -> None:
        number = 0
        while not self._stop.wait(rng.random() * THINK_SECONDS):
            number += 1
            generation = int((time.monotonic() - self._started) / SECONDS_A_KEY)
            which = rng.randrange(KEYS_AT_A_TIME)
            key = f"{THROUGH if which % 2 else ''}{self.prefix}{generation}/{which}"
            value = f"{client}/{number}"
            kind = rng.random()
            if kind < 0.5:
                self._read(client, rng.choice(self.urls), key)
            elif kind < 0.8:
                self._write(client, rng.choice(self.urls), key, value)
            elif kind < 0.95:
                self._compare_and_set(client, rng.choice(self.urls), key, value)
            else:
                self._delete(client, rng.choice(self.urls), key)

    def _read(self, client: str, url: str, key: str) -> Answer | None:
        began = time.monotonic_ns()
        answer = _try(lambda: get(url, key))
        if answer is not None and answer.status in (200, 404):
            value = answer.json["value"] if answer.status == 200 else None
            self._record(client, key, "read", {}, began, {"status": "ok", "value": value})
            return answer
        return None

    def _write(self, client: str, url: str, key: str, value: str) -> bool:
        began = time.monotonic_ns()
        answer = _try(lambda: put(url, key, value))
        self._record(client, key, "write", {"value": value}, began, _result(answer))
        return answer is not None and answer.status == 200

    def _compare_and_set(self, client: str, url: str, key: str, value: str) -> None:
        seen = self._read(client, url, key)
        if seen is None:
            return
        found = seen.status == 200
        expected = seen.json["value"] if found else None
        version = seen.json["version"] if found else "0.0"
        began = time.monotonic_ns()
        answer = _try(lambda: put(url, key, value, if_version=version))
        arguments = {"expected": expected, "value": value}
        self._record(client, key, "compare_and_set", arguments, began, _result(answer))

    def _delete(self, client: str, url: str, key: str) -> None:
        began = time.monotonic_ns()
        answer = _try(lambda: delete(url, key))
        self._record(client, key, "delete", {}, began, _result(answer))

    def _record(
        self,
        client: str,
        key: str,
        op: str,
        arguments: Result,
        call_ns: int,
        result: Result | None,
    ) -> None:
        operation = Operation(
            client=client,
            key=key,
            op=op,
            args=arguments,
            call_ns=call_ns,
            return_ns=NEVER_NS if result is None else time.monotonic_ns(),
            result=result,
        )
        with self._lock:
            self.history.append(operation)
            if result is not None and result["status"] == "ok":
                self.served_at.append(call_ns / 1e9)


def _try(call: Callable[[], Answer]) -> Answer | None:
    try:
        return call()
    except ConnectionRefusedError:
        return _NOT_DONE
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return None


def _result(answer: Answer | None) -> Result | None:
    """What became of a write; None: nobody knows. A 503 and a 429 did nothing."""
    if answer is None or answer.status in (500, 504):
        return None
    if answer.status == 200:
        return {"status": "ok"}
    return {"status": "mismatch" if answer.status == 412 else answer.json["code"]}
