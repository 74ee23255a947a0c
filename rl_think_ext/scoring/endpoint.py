"""Many requests to one server: bounded, tried again, ended by a deadline, a Failure with its reason where none came.

What passes (no connection, time-outs, 408, 425, 429, 5xx) is tried again after a wait with jitter; a Retry-After header
is honoured up to 30 s. 400, 413 and 422 are the fault of one body: a Failure of that item, unless the path has never
answered and every item was refused so. Any other status is a wrong setting: a UserError, once (F4).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.endpoint_breaker import Breaker, Tripped
from rl_think_ext.scoring.endpoint_call import Call, Failure, Stats, look, work
from rl_think_ext.scoring.endpoint_loop import background_loop, close_with_loop
from rl_think_ext.scoring.endpoint_wire import Wire, checked_key, shown_url

__all__ = ["Endpoint", "EndpointConfig", "Failure", "Stats"]
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointConfig:
    """Where a server is and how hard it may be asked; times in seconds, the key by its environment variable's name.

    After `breaker_failures` failed requests in a row the rest of a call is given up, and the next call sends one
    request first, once, to see whether the server is back; None: never.

    Raises:
        UserError: no http(s) address, or a number out of its range.
    """

    url: str
    api_key_env: str | None = None
    max_concurrency: int = 64
    timeout: float = 60.0
    deadline: float = 600.0
    retries: int = 4
    breaker_failures: int | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        for name in ("max_concurrency", "timeout", "deadline"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"`{name}` is a number above 0, got {getattr(self, name)}")
        if self.retries < 0:
            raise UserError(f"`retries` is 0 or more, got {self.retries}")

    def __repr__(self) -> str:
        return f"EndpointConfig({shown_url(self.url)}, api_key_env={self.api_key_env!r}, retries={self.retries})"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or any(c.isspace() or not c.isprintable() for c in url):
        # The address itself may hold a password in a place that nobody can tell.
        raise UserError("a server's address looks like http://host:8000 or https://host/path; the one given does not")


class Endpoint:
    """A server, asked from any thread or process: with a running event loop, after a fork, after pickling (F9, F10).

    At most `max_concurrency` divided by `num_processes`, and at least one, requests are under way at a time, over all
    threads of this process. `stats` tells of the last ask().
    """

    def __init__(self, config: EndpointConfig, num_processes: int = 1) -> None:
        checked_key(config.api_key_env, os.environ)  # now rather than in the first step
        self.config = config
        self.num_at_once = max(1, config.max_concurrency // num_processes)
        self.stats = Stats()
        self.breaker = Breaker(config.breaker_failures)
        self._answered: set[str] = set()  # the paths
        self._wire: tuple[asyncio.AbstractEventLoop, Wire] | None = None

    def __repr__(self) -> str:
        return f"Endpoint({shown_url(self.config.url)}, {self.num_at_once} at once)"

    def __getstate__(self) -> dict[str, Any]:
        # Neither connections nor the key travel; another process looks for itself whether the server is there.
        return self.__dict__ | {"_wire": None, "breaker": Breaker(self.config.breaker_failures)}

    def ask(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        read: Callable[[Any], T],
        *,
        on_reply: Callable[[int, T | Failure], None] | None = None,
        deadline: float | None = None,
        refusals_raise: bool = True,
    ) -> list[T | Failure]:
        """POST every body as JSON; what `read` makes of each reply, or a Failure, in the order of the bodies.

        Args:
            path: After the server's address, like "/v1/chat/completions".
            bodies: Written as JSON when their turn comes.
            read: Gets the decoded JSON, NaN and infinities included; raises ValueError, KeyError and their like, or
                returns a Failure, when it is not what was expected.
            on_reply: Called with index and result as replies come. This and `read` run in the caller's thread, which
                waits here; an interrupt (Ctrl-C) drops what is under way.
            deadline: Seconds for this call, where it has fewer than the settings give.
            refusals_raise: Whether it is a UserError that every body was refused and the path never answered.

        Raises:
            UserError: the settings are wrong: 401, 403, 404, a redirect; or every body is refused; or no key.
        """
        seconds = self.config.deadline if deadline is None else min(deadline, self.config.deadline)
        if not bodies:
            self.stats = Stats()
            return []
        call = Call[T](bodies, read, on_reply, self.config.retries + 1, seconds, self.breaker)
        loop = background_loop()
        future = asyncio.run_coroutine_threadsafe(self._run(call, path), loop)
        future.add_done_callback(lambda _: call.ended.set())
        try:
            call.collect()
            at_exit = future.cancelled()
            if future.done() and not at_exit:
                future.result()
        finally:
            future.cancel()
        self.stats = call.finish()
        if (remark := call.remark()) and not at_exit:
            root = shown_url(self.config.url).rstrip("/").removesuffix("/v1")
            _log.warning("%s%s: %s", root, path, remark)
        if call.latencies:
            self._answered.add(path)
        results = call.results()
        if refusals_raise and path not in self._answered:
            self._look_at_refusals(path, results)
        return results

    async def _run(self, call: Call[T], path: str) -> None:
        wire, numbers = self._connected(), iter(range(len(call.bodies)))
        num_good = self.breaker.num_good
        url = wire.url(path)
        try:
            async with asyncio.timeout_at(call.until):
                if self.breaker.is_open:
                    await look(wire, url, call, next(numbers))
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.num_at_once, len(call.bodies))):
                        group.create_task(work(wire, url, call, numbers))
        except TimeoutError:
            # What is missing then, the caller fills in. A server that was silent to all calls for as long as a try may
            # take is down.
            silent = self.breaker.num_good == num_good
            if silent and call.seconds >= 0.9 * min(self.config.timeout, self.config.deadline):
                self.breaker.trip()
        except Tripped as tripped:
            call.given_up = str(tripped)
        except BaseExceptionGroup as errors:
            others = [error for error in errors.exceptions if not isinstance(error, Tripped)]
            if others:
                raise others[0] from None
            call.given_up = str(errors.exceptions[0])

    def _connected(self) -> Wire:
        """The connections of this process's loop, on which this runs."""
        loop = asyncio.get_running_loop()
        if self._wire is None or self._wire[0] is not loop:
            key = checked_key(self.config.api_key_env, os.environ)
            wire = Wire(self.config.url, key, self.num_at_once, self.config.timeout)
            close_with_loop(wire)
            weakref.finalize(self, _drop, os.getpid(), loop, wire).atexit = False
            self._wire = (loop, wire)
        return self._wire[1]

    def _look_at_refusals(self, path: str, results: Sequence[object]) -> None:
        refused = [result for result in results if isinstance(result, Failure) and result.refused]
        if len(refused) == len(results):
            raise UserError(
                f"{shown_url(self.config.url)} refused every request to {path}: {refused[0].reason}. "
                "Look at the model's name on the server and at the longest input that it takes."
            )


def _drop(process: int, loop: asyncio.AbstractEventLoop, wire: Wire) -> None:
    """Close the connections of an endpoint that nobody has any more; whatever thread collects it, so without a lock."""
    if loop.is_running() and process == os.getpid():
        asyncio.run_coroutine_threadsafe(wire.aclose(), loop)
