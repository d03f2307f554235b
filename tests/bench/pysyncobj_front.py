"""PySyncObj's lock manager behind HTTP, as fast and as durable as it can be made from outside.

The front is what DistSync's own hot path is: a plain ASGI application on uvicorn with uvloop and
httptools, msgspec for bodies. It takes DistSync's bodies on /lock/acquire and /lock/release. The
caller's `owner` stands as the lock's client id (ReplLockManager itself would use one id a node).

PySyncObj writes its journal through mmap and never syncs it (0.3.17). Here it is made durable:

- journal: fdatasync once per tick before its consequences leave. A follower's acknowledgements
  (`next_node_idx`) and votes are held back until then; the leader sends its entries first and
  syncs while they are under way, before it can count itself in the next tick. Entries that came
  in one tick share one sync, as in any group commit.
- term and vote: the metadata file is synced before the rename, and its directory after.

Two ways of sending entries, both PySyncObj's own options; the benchmark runs both and compares
with the faster one at each point:

- each entry at once (`appendEntriesUseBatch=False`): the quicker pair for one client;
- batches (`--batch-ms 1`: `appendEntriesUseBatch=True` with an append period of 1 ms instead of
  100): more pairs for many clients.

Results go to the event loop once per tick. A shorter GIL switch interval changed nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pysyncobj.syncobj
import uvicorn
import uvloop
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.batteries import ReplLockManager
from pysyncobj.journal import FileJournal, MetaStorer
from pysyncobj.transport import TCPTransport

AUTO_UNLOCK_S = 60.0
TICK_S = 0.05
APPEND_PERIOD_S = 0.1
POLL_HELD_S = 0.005
REQUEST_TIMEOUT_S = 10.0

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class AcquireRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields of DistSync's body that the load sends; wait_ms is served by polling."""

    name: str
    owner: str
    ttl_ms: int = 10_000
    wait_ms: int = 0


class ReleaseRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ends the owner's lock. PySyncObj has no fencing token; any number is taken."""

    name: str
    owner: str
    token: int = 0


_decode_acquire = msgspec.json.Decoder(AcquireRequest).decode
_decode_release = msgspec.json.Decoder(ReleaseRequest).decode
_encode = msgspec.json.Encoder().encode


class DurableMeta(MetaStorer):
    """Term and vote reach the disk before anybody hears of them."""

    def storeMeta(self, meta: dict[str, Any]) -> None:
        """Write aside, sync, rename, sync the directory."""
        path = self.getPath()
        with open(path + ".tmp", "wb") as file:
            file.write(pysyncobj.journal.dumps(meta))
            file.flush()
            os.fdatasync(file.fileno())
        os.rename(path + ".tmp", path)
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class DurableJournal(FileJournal):
    """The file journal with a sync that knows whether there is anything to sync."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._FileJournal__metaStorer = DurableMeta(path + ".meta")
        self._path = path
        self._dirty = True
        # fdatasync writes back the dirty pages of the mapping too; unlike mmap.flush it lets
        # other threads run meanwhile.
        self._descriptor = os.open(path, os.O_RDWR)

    def add(self, command: bytes, idx: int, term: int) -> None:
        """An entry that is not on the disk yet."""
        super().add(command, idx, term)
        self._dirty = True

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N803
        """A tail was cut."""
        super().deleteEntriesFrom(entryFrom)
        self._dirty = True

    def sync(self) -> None:
        """Bring what was added to the disk."""
        if self._dirty:
            self._dirty = False
            os.fdatasync(self._descriptor)


class HoldingTransport(TCPTransport):
    """Holds back what promises durability until the journal is synced."""

    HELD = frozenset({"next_node_idx", "response_vote"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._held: list[tuple[Any, Any]] = []

    def send(self, node: Any, message: Any) -> bool:
        """Send now, or after the next sync."""
        if message["type"] in self.HELD:
            self._held.append((node, message))
            return True
        return bool(super().send(node, message))

    def let_go(self) -> None:
        """The journal is synced: send what waited for it."""
        held, self._held = self._held, []
        for node, message in held:
            super().send(node, message)


class Locks:
    """The replicated locks, asked from the event loop and answered from the tick thread."""

    def __init__(self, peer: str, others: list[str], data: Path, batch_s: float | None) -> None:
        self._tick_s = batch_s or TICK_S
        data.mkdir(parents=True, exist_ok=True)
        journals: list[DurableJournal] = []

        def create_journal(path: str) -> DurableJournal:
            journals.append(DurableJournal(path))
            return journals[0]

        pysyncobj.syncobj.createJournal = create_journal
        transports: list[HoldingTransport] = []

        def create_transport(*args: Any) -> HoldingTransport:
            transports.append(HoldingTransport(*args))
            return transports[0]

        self._loop = asyncio.get_running_loop()
        self._done: list[tuple[asyncio.Future[Any], Any, int]] = []
        self._manager = ReplLockManager(AUTO_UNLOCK_S, selfID=peer)
        self._locks = self._manager._consumer()
        conf = SyncObjConf(
            journalFile=str(data / "journal"),
            fullDumpFile=str(data / "dump"),
            appendEntriesUseBatch=batch_s is not None,
            appendEntriesPeriod=batch_s or APPEND_PERIOD_S,
            # Its own thread would start inside the constructor, before the callback is there.
            autoTick=False,
        )
        self._object = SyncObj(
            peer, others, conf=conf, consumers=[self._manager], transportClass=create_transport
        )
        self._journal, self._transport = journals[0], transports[0]
        self._object.addOnTickCallback(self._on_tick)

    def run(self) -> None:
        """The tick thread."""
        while True:
            self._object.doTick(self._tick_s)

    async def acquire(self, request: AcquireRequest) -> bool:
        """Ask until granted or the wait is over: PySyncObj keeps no queue of waiters."""
        deadline_s = self._loop.time() + request.wait_ms / 1000
        while True:
            granted = await self._replicate(
                self._locks.acquire, request.name, request.owner, time.time()
            )
            if granted or self._loop.time() + POLL_HELD_S > deadline_s:
                return bool(granted)
            await asyncio.sleep(POLL_HELD_S)

    async def release(self, request: ReleaseRequest) -> None:
        """Give the lock up."""
        await self._replicate(self._locks.release, request.name, request.owner)

    def role(self) -> str | None:
        """What this node is, once it knows a leader and has caught up."""
        leader = self._object._getLeader()
        if leader is None or not self._object.isReady():
            return None
        return "leader" if leader == self._object.selfNode else "follower"

    async def _replicate(self, call: Callable[..., None], *args: Any) -> Any:
        future = self._loop.create_future()
        call(*args, callback=lambda result, error: self._done.append((future, result, error)))
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await future

    def _on_tick(self) -> None:
        if self._done:
            done, self._done = self._done, []
            self._loop.call_soon_threadsafe(_resolve, done)
        self._journal.sync()
        self._transport.let_go()


def _resolve(done: list[tuple[asyncio.Future[Any], Any, int]]) -> None:
    for future, result, error in done:
        if future.done():
            continue
        if error == FAIL_REASON.SUCCESS:
            future.set_result(result)
        else:
            future.set_exception(ConnectionError(f"PySyncObj refused: {error}"))


class Front:
    """The ASGI application."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            status, answer = await self._answer(scope["path"], body)
        except msgspec.DecodeError as error:
            status, answer = 422, {"code": "bad_request", "detail": str(error)}
        except (ConnectionError, TimeoutError) as error:
            status, answer = 503, {"code": "unavailable", "detail": str(error)}
        content = _encode(answer)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/lock/acquire":
            request = _decode_acquire(body)
            if not await self._locks.acquire(request):
                return 409, {"code": "lock_held"}
            return 200, {"name": request.name, "owner": request.owner, "token": 1}
        if path == "/lock/release":
            await self._locks.release(_decode_release(body))
            return 200, {"released": True}
        if path == "/status":
            role = self._locks.role()
            return (200, {"role": role}) if role else (503, {"code": "no_leader"})
        return 404, {"code": "not_found"}


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    batch_s = options.batch_ms / 1000 if options.batch_ms else None
    locks = Locks(options.peer, options.others.split(","), options.data, batch_s)
    threading.Thread(target=locks.run, daemon=True).start()
    config = uvicorn.Config(
        Front(locks),
        port=options.port,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    await uvicorn.Server(config).serve()
    os._exit(0)  # PySyncObj's lock manager thread outlives the interpreter's shutdown


def main() -> None:
    """Parse the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--others", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch-ms", type=float, default=0)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
