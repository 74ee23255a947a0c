"""Documents put together again from contexts and targets, and the gain of each of their sentences."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from rl_think_ext.methods.interval import mean_interval
from rl_think_ext.offline.rows import Position
from rl_think_ext.segment import sentence_spans

MAX_SEGMENTS = 300
# What no row shows; a blank line, so that no sentence reaches over it.
_UNKNOWN = "\n"


def text_of(positions: Sequence[Position]) -> str:
    """The text of one document as far as its positions show it; line breaks stand for what none of them shows.

    >>> a = Position(0, "d:4", "d", 4, (), (), (), {"context": "One.", "target": " Two."})
    >>> b = Position(1, "d:14", "d", 14, (), (), (), {"context": "ee.", "target": " Four."})
    >>> text_of([a, b])
    'One. Two.\\n\\nee. Four.'
    """
    pieces = [(p.start - len(p.row["context"]), p.row["context"] + (p.row.get("target") or "")) for p in positions]
    text = [_UNKNOWN] * max(start + len(piece) for start, piece in pieces)
    for start, piece in pieces:
        text[start : start + len(piece)] = piece
    return "".join(text)


def by_segment(positions: Sequence[Position], gains: Mapping[int, Sequence[float]]) -> tuple[list[dict[str, Any]], int]:
    """The sentences of the first documents with the gain of the positions whose target begins in each.

    Args:
        gains: The scorable gains of a position by its index.

    Returns:
        At most some MAX_SEGMENTS rows, in whole documents but at least one, and the number of documents left out.
        The interval is over positions, or over the thoughts of the only one; `gain` is None without a value.
    """
    documents: dict[str, list[Position]] = {}
    for p in positions:
        documents.setdefault(p.document, []).append(p)
    rows: list[dict[str, Any]] = []
    num_used = 0
    for name, members in documents.items():
        text = text_of(members)
        spans = sentence_spans(text)
        if rows and len(rows) + len(spans) > MAX_SEGMENTS:
            break
        rows += _segments(name, text, spans, members, gains)
        num_used += 1
    return rows, len(documents) - num_used


def _segments(
    document: str,
    text: str,
    spans: Sequence[tuple[int, int]],
    positions: Sequence[Position],
    gains: Mapping[int, Sequence[float]],
) -> list[dict[str, Any]]:
    starts = [start for start, _ in spans]
    members: list[list[Position]] = [[] for _ in spans]
    for p in positions:
        rest = text[p.start :]
        # The white space in front of a sentence belongs to the target, and not to the sentence before.
        begin = p.start + len(rest) - len(rest.lstrip())
        at = bisect_right(starts, begin) - 1
        if at >= 0:
            members[at].append(p)
    return [
        {
            "document": document,
            "start": start,
            "end": end,
            "text": text[start:end],
            "gain": _interval(inside, gains),
            "num_positions": len(inside),
        }
        for (start, end), inside in zip(spans, members, strict=True)
    ]


def _interval(positions: Sequence[Position], gains: Mapping[int, Sequence[float]]) -> dict[str, Any] | None:
    values = [(gain, p.index) for p in positions for gain in gains.get(p.index, ())]
    if not values:
        return None
    alone = len({index for _, index in values}) == 1
    return as_dict(mean_interval([v for v, _ in values], None if alone else [index for _, index in values]))


def as_dict(interval: Any) -> dict[str, Any]:
    """An interval as JSON has it: None for what cannot be known."""
    return {name: value if math.isfinite(value) else None for name, value in vars(interval).items()}
