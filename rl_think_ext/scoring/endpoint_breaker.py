"""A circuit breaker: a server that is down is not asked five hundred times, and not waited for in every step."""

from __future__ import annotations


class Tripped(Exception):  # noqa: N818 - a state, not an error
    """The breaker is open: what is left of a call is given up; the text is why, for its Failures."""


class Breaker:
    """Open after `limit` failed requests in a row, over all calls of this process; the next reply closes it.

    Kept by the thread of the loop, which is one for all requests. None: it never opens.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.num_failed = 0
        self.num_good = 0

    @property
    def is_open(self) -> bool:
        return self.limit is not None and self.num_failed >= self.limit

    def good(self) -> None:
        """A whole reply came, were it a refusal of one request."""
        self.num_failed = 0
        self.num_good += 1

    def bad(self) -> None:
        """A request failed for good, with all its tries."""
        self.num_failed += 1

    def trip(self) -> None:
        """Nothing came in all the time there was."""
        self.num_failed = max(self.num_failed, self.limit or 0)
