"""Single calls put together: what waits while a batch is worked on goes into the next one.

verl asks for the reward of one sample at a time, from an event loop of its own; a reward model wants many. The work is
done in one thread of this process, so that it does not matter which loop or thread calls (F9).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class Waiting(Generic[In, Out]):
    """Collects items and works on them in batches.

    Args:
        work: Takes the waiting items and gives a result for each, in order; called from one thread only. What it
            raises reaches every item of the batch.
        seconds: How long the first item of a batch waits for company at most.
        most: Items of one batch.
    """

    def __init__(self, work: Callable[[list[In]], Sequence[Out]], seconds: float = 0.02, most: int = 256) -> None:
        self.work, self.seconds, self.most = work, seconds, most
        self._items: queue.SimpleQueue[tuple[In, Future[Out]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, item: In) -> Future[Out]:
        """The result of an item, later; `asyncio.wrap_future` waits for it in any loop."""
        future: Future[Out] = Future()
        self._items.put((item, future))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rl_think reward", daemon=True)
                self._thread.start()
        return future

    def __getstate__(self) -> dict[str, Any]:
        # Threads and futures stay behind (F10).
        return {"work": self.work, "seconds": self.seconds, "most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Waiting.__init__(self, **state)

    def _run(self) -> None:
        while True:
            batch = self._next()
            alive = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if alive:
                self._answer([item for item, _ in alive], [future for _, future in alive])

    def _next(self) -> list[tuple[In, Future[Out]]]:
        batch = [self._items.get()]
        end = time.monotonic() + self.seconds
        while len(batch) < self.most:
            try:
                batch.append(self._items.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        return batch

    def _answer(self, items: list[In], futures: list[Future[Out]]) -> None:
        try:
            results = self.work(items)
            if len(results) != len(items):
                raise ValueError(f"{len(items)} items were given {len(results)} results")
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it, or would wait for ever
            for future in futures:
                future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            future.set_result(result)
