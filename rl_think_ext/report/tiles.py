"""The tiles of the headline: each quantity's intervals on one axis, and what they allow to be said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rl_think_ext.methods.interval import FEW, Interval
from rl_think_ext.report.headline import Measured
from rl_think_ext.report.kinds import RLMT, RLP, RLPT, Quantity
from rl_think_ext.report.text import plain

_OVERLAP = "The two 95 % intervals overlap, the difference can be chance"
_TOO_FEW = "too few {} to tell"
_APART = "the two 95 % intervals do not touch"


@dataclass(frozen=True)
class Row:
    """One interval of a tile: whose it is, when, and how its mean and its ends read."""

    label: str
    when: str
    interval: Interval
    shown: str
    ends: str = ""


@dataclass(frozen=True)
class Tile:
    """One quantity: its rows on a common axis from `low` to `high`, and what may be said of their difference."""

    key: str
    title: str
    unit: str
    rows: tuple[Row, ...]
    low: float
    high: float
    marks: tuple[tuple[float, str], ...]
    verdicts: tuple[tuple[str, str], ...]

    def at(self, value: float) -> float:
        """Where a value lies on the axis, in percent."""
        return round(min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low))), 2)


def tiles(found: Sequence[tuple[str, Measured]]) -> list[Tile]:
    """One tile for each quantity that at least one folder knows; labels tell two folders apart."""
    made = (_tile(quantity, found) for quantity in (*RLP.quantities, *RLMT.quantities, *RLPT.quantities))
    return [tile for tile in made if tile is not None]


def _tile(quantity: Quantity, found: Sequence[tuple[str, Measured]]) -> Tile | None:
    show, key, rows = quantity.show, quantity.key, []
    for label, one in found:
        for when, given in one.quantities.get(key, {}).items():
            if given.num_values or not math.isnan(given.mean):
                interval = _possible(given, quantity.scale)
                ends = "" if math.isnan(interval.low) else _between(show(interval.low), show(interval.high))
                rows.append(Row(label, when, interval, show(interval.mean), ends))
    if not rows:
        return None
    ceilings = {one.ceiling for _, one in found if one.ceiling is not None} if quantity.scale == "gain" else set()
    low, high, marks = _axis(quantity, rows, sorted(ceilings))
    title = quantity.title + (_whose(found) if key == "direct_accuracy" else "")
    return Tile(key, title, quantity.unit, tuple(rows), low, high, marks, tuple(_verdicts(rows, quantity)))


def _possible(interval: Interval, scale: str) -> Interval:
    """An interval without what cannot be: a share below nothing or above all, a length below nothing."""
    if scale not in ("share", "length") or math.isnan(interval.low):
        return interval
    most = 1.0 if scale == "share" else math.inf
    return replace(interval, low=max(0.0, interval.low), high=min(most, interval.high))


def _between(low: str, high: str) -> str:
    """Two ends of an interval; what stands in both is said once."""
    return low if low == high else f"{low.removesuffix(' %')} … {high}"


def _axis(
    quantity: Quantity, rows: Sequence[Row], ceilings: Sequence[float]
) -> tuple[float, float, tuple[tuple[float, str], ...]]:
    """The ends of a tile's axis, and the values that are marked on it."""
    edges = [v for row in rows for v in (row.interval.mean, row.interval.low, row.interval.high) if not math.isnan(v)]
    if quantity.scale == "share":
        return 0.0, 1.0, ((0.0, "0"), (0.5, "50 %"), (1.0, "100 %"))
    low, high = min(edges), max(edges)
    if quantity.scale == "gain":
        low, high = min(0.0, low), max(0.1, high, *ceilings)
        marks = ((0.0, "0"), *((c, f"ceiling {c:.2f}") for c in ceilings))
        return low - 0.04 * (high - low), high + 0.04 * (high - low), marks
    if quantity.scale == "length":
        low = 0.0
    margin = 0.08 * (high - low) or 0.5
    low, high = low - (margin if quantity.scale == "score" else 0.0), high + margin
    return low, high, tuple((value, plain(value)) for value in _ticks(low, high))


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers between two others.

    >>> _ticks(-0.3, 1.2), _ticks(0.0, 870.0)
    ([0.0, 0.5, 1.0], [0.0, 200.0, 400.0, 600.0, 800.0])
    """
    rough = (high - low) / 2
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (5, 2, 1) if power * factor <= rough)
    first = math.ceil(low / step)
    return [round(step * i, 10) for i in range(first, math.floor(high / step) + 1)]


def _whose(found: Sequence[tuple[str, Measured]]) -> str:
    """Whose accuracy without a thought it is, where that is not the policy's."""
    names = list(dict.fromkeys(one.direct for _, one in found))
    if len(names) > 1:
        return f" ({'; '.join(f'{label}: {one.direct}' for label, one in found)})"
    return "" if names == [Measured.direct] else f" ({names[0]})"


def _verdicts(rows: Sequence[Row], quantity: Quantity) -> list[tuple[str, str]]:
    """What the intervals allow one to say: before against after of each folder, and the two folders' last rows."""
    labels = list(dict.fromkeys(row.label for row in rows))
    said = []
    for label in labels:
        own = {row.when: row.interval for row in rows if row.label == label}
        name = label if len(labels) > 1 else ""
        if "before" in own and "after" in own:
            said.append(_change(name, own["before"], own["after"], quantity))
        elif any(math.isnan(interval.low) and interval.num_clusters for interval in own.values()):
            said.append(_too_few(name, quantity.texts, *own.values()))
    if len(labels) == 2:
        newest = [[row.interval for row in rows if row.label == label][-1] for label in labels]
        said.append(_contrast(labels, quantity.texts, *newest))
    return said


def _change(label: str, before: Interval, after: Interval, quantity: Quantity) -> tuple[str, str]:
    """Whether a quantity rose or fell, as far as the intervals allow to say so; a length may do either."""
    if math.isnan(before.low) or math.isnan(after.low):
        return _too_few(label, quantity.texts, before, after)
    texts = _texts(quantity.texts, before, after)
    if not before.apart(after):
        return "overlap", f"{f'{label}: ' if label else ''}{_OVERLAP}{texts}."
    kind = "rose" if after.mean > before.mean else "fell"
    said = f"{f'{label} {kind}' if label else kind.capitalize()}: {_APART}{texts}."
    return kind if quantity.better else "moved", said


def _too_few(label: str, what: str, *intervals: Interval) -> tuple[str, str]:
    few = _TOO_FEW.format(what)
    return "unknown", f"{f'{label}: {few}' if label else few.capitalize()}{_texts(what, *intervals)}."


def _texts(what: str, *intervals: Interval) -> str:
    """How many texts stand behind intervals, where they are few and known."""
    counts = [interval.num_clusters for interval in intervals]
    return f" ({what}: {' and '.join(map(str, counts))})" if 0 < min(counts) < FEW else ""


def _contrast(labels: Sequence[str], what: str, one: Interval, other: Interval) -> tuple[str, str]:
    if math.isnan(one.low) or math.isnan(other.low):
        return _too_few(f"{labels[0]} and {labels[1]}", what, one, other)
    if not one.apart(other):
        return "overlap", f"{labels[0]} and {labels[1]}: {_OVERLAP}{_texts(what, one, other)}."
    high, low = labels if one.mean > other.mean else reversed(labels)
    return "apart", f"{high} ends above {low}: {_APART}{_texts(what, one, other)}."
