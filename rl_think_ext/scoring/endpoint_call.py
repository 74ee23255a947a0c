"""One call of an endpoint: the tries of each request on the loop's thread, and the replies in the caller's."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import stamina

from rl_think_ext.scoring.endpoint_breaker import Breaker, Tripped
from rl_think_ext.scoring.endpoint_wire import Rejected, TryAgain, Wire

if TYPE_CHECKING:
    import httpx

GRACE = 0.05  # of the deadline: for the loop's thread to say that it has passed
FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0  # seconds between tries, doubled each time, plus up to JITTER
JITTER = 0.5
LOOK = 0.02  # seconds
# What a function that reads a reply of any shape may stumble over.
UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
T = TypeVar("T")


def _not_ours(record: logging.LogRecord) -> bool:
    return not str(getattr(record, "stamina.caused_by", "")).startswith("TryAgain(")


# A line for every single retry, without its cause, would fill the screen of a training run: ours are told in one.
logging.getLogger("stamina").addFilter(_not_ours)


@dataclass(frozen=True)
class Failure:
    """Why there is no answer; `refused` where the server takes requests, but not this one."""

    reason: str
    refused: bool = False

    @property
    def kind(self) -> str:
        """The reason without its details, for counting."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class Stats:
    """One ask(): how long it took, how often it tried, what failed how often, and the good tries' latencies."""

    seconds: float = 0.0
    num_asked: int = 0
    num_retries: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    latencies: Sequence[float] = field(default=(), repr=False)

    def latency(self, share: float) -> float:
        """The latency in seconds that `share` of the good tries did not exceed; NaN without one.

        >>> Stats(latencies=[0.3, 0.1, 0.2]).latency(0.5)
        0.2
        """
        if not self.latencies:
            return math.nan
        return sorted(self.latencies)[max(0, math.ceil(share * len(self.latencies)) - 1)]


class Call(Generic[T]):
    """The state of one ask(): filled by the loop's thread, read out by the caller's."""

    def __init__(
        self,
        bodies: Sequence[Mapping[str, Any]],
        read: Callable[[Any], T],
        on_reply: Callable[[int, T | Failure], None] | None,
        num_tries: int,
        seconds: float,
        breaker: Breaker,
    ) -> None:
        self.bodies, self.read, self.on_reply = bodies, read, on_reply
        self.num_tries, self.seconds, self.breaker = num_tries, seconds, breaker
        self.given_up: str | None = None  # why, where the breaker ended the call
        self.begin = time.monotonic()  # the clock of asyncio's loops as well; other clocks may jump (F45)
        self.until = self.begin + seconds
        self.replies: deque[tuple[int, bytes | Failure]] = deque()
        self.ended = threading.Event()
        self.latencies: list[float] = []
        self.tried_again: Counter[str] = Counter()
        self._last_try: dict[int, str] = {}
        self._found: dict[int, T | Failure] = {}

    def wish(self, index: int, error: Exception) -> bool | float:
        """Stamina's question whether to try again: yes, no, or after that many seconds."""
        if not isinstance(error, TryAgain):
            return False
        self._last_try[index] = str(error)
        if error.wait is not None and time.monotonic() + error.wait >= self.until:
            return False
        return True if error.wait is None else error.wait

    def count(self, index: int) -> None:
        """Another try begins; counted by what the one before had."""
        self.tried_again[Failure(self._last_try[index]).kind] += 1

    async def timed(self, try_once: Awaitable[bytes]) -> bytes:
        """A try, and how long it took when it was good."""
        begin = time.monotonic()
        reply = await try_once
        self.latencies.append(time.monotonic() - begin)
        return reply

    def collect(self) -> None:
        """Read replies as they come, until there are no more or the deadline has passed."""
        last, more = self.until + GRACE * self.seconds, True
        while more:
            # A look now and then: to be woken by every single reply costs both threads more than the reply.
            more = not self.ended.wait(LOOK) and time.monotonic() < last
            while self.replies:
                index, content = self.replies.popleft()
                self._keep(index, content if isinstance(content, Failure) else self._read(content))

    def _read(self, content: bytes) -> T | Failure:
        try:
            return self.read(json.loads(content))
        except UNREADABLE as error:
            detail = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
            return Failure(f"unreadable: {detail[:200]}")

    def _keep(self, index: int, result: T | Failure) -> None:
        self._found[index] = result
        if self.on_reply is not None:
            self.on_reply(index, result)

    def finish(self) -> Stats:
        """Fill in what did not come in time, and count."""
        why = self.given_up or f"deadline: no answer within {self.seconds:.1f} s"
        for index in range(len(self.bodies)):
            if index not in self._found:
                last = f"; last: {self._last_try[index]}" if index in self._last_try else ""
                self._keep(index, Failure(f"{why}{last}"))
        failures = Counter(found.kind for found in self._found.values() if isinstance(found, Failure))
        seconds, num_retries = time.monotonic() - self.begin, self.tried_again.total()
        return Stats(seconds, len(self.bodies), num_retries, dict(failures), tuple(self.latencies))

    def remark(self) -> str:
        """What did not go smoothly, in one line; empty where all did."""
        failures = Counter(found.kind for found in self._found.values() if isinstance(found, Failure))
        told = [f"{num} of {len(self.bodies)} failed ({kind})" for kind, num in failures.most_common()]
        told += [f"{num} tries were repeated ({kind})" for kind, num in self.tried_again.most_common()]
        return "; ".join(told)

    def results(self) -> list[T | Failure]:
        """What was found, in the order of the bodies."""
        return [self._found[index] for index in range(len(self.bodies))]


async def work(wire: Wire, url: httpx.URL, call: Call[Any], numbers: Iterator[int]) -> None:
    """Ask about one number after another.

    Raises:
        Tripped: too many failed in a row.
    """
    for index in numbers:
        content = json.dumps(call.bodies[index], allow_nan=False, separators=(",", ":")).encode()
        try:
            reply: bytes | Failure = await _tried(wire, url, content, call, index)
            call.breaker.good()
        except TryAgain as error:
            reply = Failure(str(error))
            call.breaker.bad()
        except Rejected as error:
            reply = Failure(str(error), refused=True)
            call.breaker.good()  # it is not down
        call.replies.append((index, reply))
        if call.breaker.is_open:
            raise Tripped(f"breaker: given up after {call.breaker.num_failed} failed requests in a row")


async def look(wire: Wire, url: httpx.URL, call: Call[Any], index: int) -> None:
    """One request, tried once, before the others: whether a server that was given up is back.

    Raises:
        Tripped: it is not.
    """
    call.num_tries, num_tries = 1, call.num_tries
    try:
        await work(wire, url, call, iter([index]))
    except Tripped:
        raise Tripped("breaker: the server failed before, and the one request that looked for it failed too") from None
    call.num_tries = num_tries


async def _tried(wire: Wire, url: httpx.URL, content: bytes, call: Call[Any], index: int) -> bytes:
    """The body of a good reply, after as many tries as the settings allow.

    Raises:
        TryAgain: what the last try had.
    """
    try:
        return await call.timed(wire.post(url, content))
    except TryAgain as error:  # only now stamina: it takes as long to set up as a request
        first: TryAgain | None = error
    async for attempt in stamina.retry_context(
        on=partial(call.wish, index),
        attempts=call.num_tries,
        timeout=None,  # the deadline of the whole call decides
        wait_initial=FIRST_WAIT,
        wait_max=LONGEST_WAIT,
        wait_jitter=JITTER,
    ):
        with attempt:
            if first is not None:
                failed, first = first, None
                raise failed
            call.count(index)
            return await call.timed(wire.post(url, content))
    raise AssertionError("stamina raises what the last try raised")
