"""Work in several processes with results in the order of the tasks, and only so many of them under way.

Every process makes its own object once, and tasks name a method of it. One worker is this process itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from rl_think_ext.errors import UserError

_AHEAD = 2  # tasks under way for each process: one that is worked on, one that waits

_made: list[Any] = []  # the object of a worker process


class Workers:
    """A pool of `num` processes, to be used as a context manager; leaving it ends them.

    Args:
        num: Processes; with 1 there are none.
        own: The object of this process, which does the work where there is no other.
        make: Makes the object of a process; can be pickled.
        given: What `make` is called with.
    """

    def __init__(self, num: int, own: Any, make: Callable[..., Any], *given: Any) -> None:
        self.num, self._own, self._make, self._given = num, own, make, given
        self._pool: ProcessPoolExecutor | None = None
        self._alive: Connection | None = None

    def __enter__(self) -> Workers:
        if self.num == 1:
            return self
        # Not fork: it copies locks that another thread holds. Who reads the pipe learns that this process has ended.
        context = get_context("spawn")
        theirs, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(self.num, context, _begin, (theirs, self._make, self._given))
        return self

    def __exit__(self, *raised: object) -> None:
        if self._pool is not None and self._alive is not None:
            self._pool.shutdown(wait=raised[0] is None, cancel_futures=True)
            self._alive.close()  # ends those that are still at work

    def map(self, method: str, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """What a method of the object makes of each task, in their order; tasks are drawn as room for them comes.

        Raises:
            UserError: what the method raised, or a process that died.
        """
        if self._pool is None:
            yield from (getattr(self._own, method)(*task) for task in tasks)
            return
        waiting: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(_call, method, task))
                if len(waiting) >= _AHEAD * self.num:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory?): the same command goes on where this ended; give fewer workers"
            ) from error


def _begin(parent: Connection, make: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """In a worker: an interrupt of the terminal is the parent's matter, and the worker ends with it (F35)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is a process for every core already
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _made.append(make(*given))


def _end_with(parent: Connection) -> None:
    parent.poll(None)  # nothing is ever sent: it returns when the other end is closed
    os._exit(1)


def _call(method: str, task: tuple[Any, ...]) -> Any:
    return getattr(_made[0], method)(*task)
