"""One event loop in a thread of its own for all requests of this process, whatever loop the caller may run (F9)."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from typing import Protocol

SECONDS_TO_CLOSE = 2.0


class Closable(Protocol):
    """What is open on the loop and has to be closed before it ends."""

    async def aclose(self) -> None: ...


class _Background:
    """The loop of one process; a forked child has another, for it has neither this one's thread nor its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: weakref.WeakSet[Closable] = weakref.WeakSet()
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                # A daemon: the interpreter joins all others before it tells anyone that it ends.
                self.thread = threading.Thread(target=self.loop.run_forever, name="rl-think-requests", daemon=True)
                self.thread.start()
            return self.loop

    def close(self) -> None:
        with self.lock:
            loop, self.loop = self.loop, None
        if loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._finish(), loop).result(SECONDS_TO_CLOSE)
        except TimeoutError:  # a daemon may be left behind
            return
        loop.call_soon_threadsafe(loop.stop)
        self.thread.join(SECONDS_TO_CLOSE)
        if not self.thread.is_alive():
            loop.close()

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.gather(*(one.aclose() for one in self.open), return_exceptions=True)
        await asyncio.sleep(0)  # what was closed says so to its protocol


_of_process: dict[int, _Background] = {}


def _background() -> _Background:
    # A parent's stays in a forked child, unused: to let go of its loop might close what the parent still needs.
    return _of_process.setdefault(os.getpid(), _Background())


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, started at the first call; a forked child starts its own."""
    return _background().start()


def close_with_loop(one: Closable) -> None:
    """Await `one.aclose()` on the loop before it ends, if it is still there."""
    _background().open.add(one)


@atexit.register
def close() -> None:
    """End the loop of this process and what is open on it; the next request starts another."""
    _background().close()
