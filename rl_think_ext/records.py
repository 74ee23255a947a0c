"""The three records that travel between the parts: what is predicted, what was said, what it is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# no_open, no_close: a part never opened or never closed; truncated: the length limit came before it was whole.
Status = Literal["ok", "no_open", "no_close", "empty_thought", "empty_response", "extra_tags", "truncated"]


@dataclass(frozen=True)
class Example:
    """One position of a text: the context that is read and the target that follows it.

    `position` is the offset of the cut in the text, in characters. The ids are there where the text was cut on token
    ids, and then they decide: such a cut does not always survive decoding and encoding (F31).
    """

    position: int
    context: str
    target: str
    context_ids: tuple[int, ...] | None = None
    target_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Parts:
    """A completion taken apart; in strict mode `answer` is None unless `status` is "ok"."""

    thought: str | None
    answer: str | None
    status: Status


@dataclass(frozen=True)
class Score:
    """A finite number, or None and the reason why there is none; never a silent 0.

    Raises:
        ValueError: value and reason both given or both missing, or a value that is not finite (F12).

    >>> Score.unscorable("empty target").value is None
    True
    >>> Score(float("nan"))
    Traceback (most recent call last):
    ...
    ValueError: a score is finite or None with a reason, got nan
    """

    value: float | None
    reason: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score is finite or None with a reason, got {self.value}")
        if (self.value is None) == (self.reason is None):
            raise ValueError(f"a score is a value or a reason, got value={self.value!r} and reason={self.reason!r}")

    @classmethod
    def unscorable(cls, reason: str, **metrics: float) -> Score:
        """A score that is not there, and why."""
        return cls(None, reason, metrics)
