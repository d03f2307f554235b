"""A private event loop in a thread of its own, and the way into it from other threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from distsync.errors import ClientClosed

__all__ = ["Portal"]

T = TypeVar("T")

_CLOSE_SECONDS = 10.0


class Portal:
    """Runs coroutines in a background thread. Made for one process: it does not survive a fork."""

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._closed = False
        self._sent: set[asyncio.Task[object]] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def of_this_process(self) -> bool:
        """Whether this process made it; after a fork its thread is not there."""
        return self._pid == os.getpid()

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run `function(*arguments)` in the loop and return what it returns.

        An interruption of the calling thread (Ctrl-C) cancels it.

        Raises:
            ClientClosed: the client was closed.
            RuntimeError: called from the loop's own thread, or in a forked process.
        """
        future = self.submit(function, *arguments)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> Future[T]:
        """Run `function(*arguments)` in the loop; raises as `call`."""
        self._check()
        coroutine = function(*arguments)
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop was closed meanwhile
            coroutine.close()
            raise ClientClosed("this client has been closed") from None

    def send(self, function: Callable[..., Coroutine[Any, Any, object]]) -> None:
        """Run `function()` in the loop without waiting for it."""
        if self._closed or not self.of_this_process:
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._spawn, function)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an asynchronous generator yields."""
        done = object()

        async def step() -> T | object:
            return await anext(items, done)

        async def end() -> None:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

        try:
            while (item := self.call(step)) is not done:
                yield item  # type: ignore[misc]  # the sentinel is excluded by the condition
        finally:
            if not self._closed:
                self.call(end)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's loop without touching what both share."""
        self._closed = True
        self._selector.close()  # else closing a socket here would deregister it for the parent

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `last`, then end the loop and its thread. Closing twice is harmless."""
        with self._lock:
            if self._closed or not self.of_this_process:
                return
            self._closed = True
        if threading.current_thread() is self._thread:
            self._spawn(lambda: self._finish(last))  # the last reference was dropped right here
            return
        asyncio.run_coroutine_threadsafe(self._finish(last), self._loop)
        self._thread.join(_CLOSE_SECONDS)

    def _check(self) -> None:
        if not self.of_this_process:
            raise RuntimeError("this was made before a fork; make it anew in this process")
        if self._closed:
            raise ClientClosed("this client has been closed")
        if threading.current_thread() is self._thread:
            raise RuntimeError("callbacks run in a thread of their own; this one must not wait")

    def _spawn(self, function: Callable[..., Coroutine[Any, Any, object]]) -> None:
        task = self._loop.create_task(function())
        self._sent.add(task)
        task.add_done_callback(self._sent.discard)

    async def _finish(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await last()
        finally:
            self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._end_tasks()
            self._loop.close()

    def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
