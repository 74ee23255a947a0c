"""Which of a prompt's rollouts an agent loop samples: verl hands the number to the loop alone, not to the server."""

from __future__ import annotations

from contextvars import ContextVar

ROLLOUT: ContextVar[int] = ContextVar("rollout", default=0)
