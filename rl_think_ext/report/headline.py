"""Before and after in a few numbers, each with its interval: held-out, or from a run's own samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl_think_ext.methods.interval import FEW, Interval, mean_interval
from rl_think_ext.report import samples
from rl_think_ext.report.folder import Folder
from rl_think_ext.report.samples import Sample
from rl_think_ext.report.text import number, percent, plain, signed

# Scorable samples that each end of a run has to give.
LEAST_SAMPLES = 64
_OVERLAP = "The two 95 % intervals overlap, the difference can be chance"
_TOO_FEW = "too few texts to tell"
_APART = "the two 95 % intervals do not touch"


@dataclass(frozen=True)
class Row:
    """One interval of a tile: whose it is, when, and how it reads."""

    label: str
    when: str
    interval: Interval
    shown: str


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


@dataclass(frozen=True)
class Measured:
    """Before and after of one folder; `quantities` maps a quantity to its intervals by "before", "after" or "now".

    `direct` says whose weights answer without a thought.
    """

    quantities: Mapping[str, Mapping[str, Interval]]
    source: str
    ceiling: float | None = None
    against: str = "the frozen start"
    clusters: str = "whole texts"
    direct: str = "the policy"


_QUANTITIES: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("gain", "Gain of a thought", "nats", signed),
    ("accuracy", "Accuracy with the thought", "", percent),
    ("direct_accuracy", "Accuracy without a thought", "", percent),
)


def measured(folder: Folder) -> Measured | None:
    """Held-out numbers where there are any, otherwise the first against the last samples; None: neither."""
    if folder.offline:
        return _offline(folder.info)
    if folder.measured is not None:
        return _held_out(folder.measured)
    if not folder.tables:
        return None
    first, final = samples.ends(folder, LEAST_SAMPLES)
    return replace(_from_samples(first, final), direct=folder.baseline)


def _interval(value: Any) -> Interval:
    """An interval as a JSON file holds it; a bare number has none around it."""
    if not isinstance(value, Mapping):
        value = {"mean": value}
    found = [number(value.get(name)) for name in ("mean", "low", "high")]
    mean, low, high = (math.nan if end is None else end for end in found)
    num_values, num_clusters = (int(number(value.get(name)) or 0) for name in ("num_values", "num_clusters"))
    return Interval(mean, low, high, num_values, num_clusters)


def _held_out(found: Mapping[str, Any]) -> Measured:
    sides = {when: found[when] for when in ("before", "after") if isinstance(found.get(when), Mapping)}
    quantities = {
        name: {when: _interval(side[name]) for when, side in sides.items() if side.get(name) is not None}
        for name, *_ in _QUANTITIES
    }
    what = str(found.get("what") or "held-out rows")
    prefix = "Measured on " if "held-out" in what else "Measured held-out: "
    return Measured(quantities, f"{prefix}{plain(found.get('rows'))} {what}", number(found.get("ceiling")))


def _offline(found: Mapping[str, Any]) -> Measured:
    names = {"gain": "gain", "accuracy": "accuracy", "baseline_accuracy": "direct_accuracy"}
    quantities = {to: {"now": _interval(found[name])} for name, to in names.items() if found.get(name) is not None}
    counts = (plain(found.get(f"num_{what}")) for what in ("samples", "positions", "documents"))
    source = "{} thoughts at {} places of {} documents, no training".format(*counts)
    clusters = f"{found.get('clustered_by') or 'document'}s"
    return Measured(quantities, source, None, "the same model without a thought", clusters)


def _from_samples(first: Sequence[Sample], final: Sequence[Sample]) -> Measured:
    sides = {when: side for when, side in (("before", first), ("after", final)) if side}
    quantities = {
        name: {when: _mean(side, attribute) for when, side in sides.items()}
        for name, attribute in (
            ("gain", "gain"),
            ("accuracy", "accuracy"),
            ("direct_accuracy", "baseline_accuracy"),
        )
    }
    shown = " → ".join(f"{samples.steps_of(side)} ({_size(side)})" for side in sides.values())
    only = "" if first else "; a single table, so there is no before"
    frozen = all(sample.frozen for side in sides.values() for sample in side)
    against = "the frozen start" if frozen else "the baseline of the reward, because `frozen_gain` is off"
    return Measured(quantities, f"Training samples, not held out: {shown}{only}", None, against)


def _size(side: Sequence[Sample]) -> str:
    """What stands behind an interval: thoughts, and the texts that they belong to."""
    return f"{len(side):,} samples of {len({sample.context for sample in side}):,} texts"


def _mean(side: Sequence[Sample], attribute: str) -> Interval:
    return mean_interval([getattr(s, attribute) for s in side], [s.context for s in side])


def tiles(found: Sequence[tuple[str, Measured]]) -> list[Tile]:
    """One tile for each quantity that at least one folder knows; labels tell two folders apart."""
    made = (_tile(quantity, found) for quantity in _QUANTITIES)
    return [tile for tile in made if tile is not None]


def _tile(quantity: Any, found: Sequence[tuple[str, Measured]]) -> Tile | None:
    key, title, unit, show = quantity
    rows = []
    for label, one in found:
        for when, interval in one.quantities.get(key, {}).items():
            if interval.num_values or not math.isnan(interval.mean):
                rows.append(Row(label, when, interval, show(interval.mean)))
    if not rows:
        return None
    ceilings = {one.ceiling for _, one in found if one.ceiling is not None} if key == "gain" else set()
    edges = [v for row in rows for v in (row.interval.mean, row.interval.low, row.interval.high) if not math.isnan(v)]
    low, high = (min(0.0, *edges), max(0.1, *edges, *ceilings)) if key == "gain" else (0.0, 1.0)
    margin = 0.04 * (high - low) if key == "gain" else 0.0
    marks = ((0.0, "0"), *((c, f"ceiling {c:.2f}") for c in sorted(ceilings))) if key == "gain" else ()
    if key != "gain":
        marks = ((0.0, "0"), (0.5, "50 %"), (1.0, "100 %"))
    if key == "direct_accuracy":
        title += _whose(found)
    return Tile(key, title, unit, tuple(rows), low - margin, high + margin, marks, tuple(_verdicts(rows)))


def _whose(found: Sequence[tuple[str, Measured]]) -> str:
    """Whose accuracy without a thought it is, where that is not the policy's."""
    names = list(dict.fromkeys(one.direct for _, one in found))
    if len(names) > 1:
        return f" ({'; '.join(f'{label}: {one.direct}' for label, one in found)})"
    return "" if names == [Measured.direct] else f" ({names[0]})"


def _verdicts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the intervals allow one to say: before against after of each folder, and the two folders' last rows."""
    labels = list(dict.fromkeys(row.label for row in rows))
    said = []
    for label in labels:
        own = {row.when: row.interval for row in rows if row.label == label}
        name = label if len(labels) > 1 else ""
        if "before" in own and "after" in own:
            said.append(_change(name, own["before"], own["after"]))
        elif any(math.isnan(interval.low) and interval.num_clusters for interval in own.values()):
            said.append(_too_few(name, *own.values()))
    if len(labels) == 2:
        newest = [[row.interval for row in rows if row.label == label][-1] for label in labels]
        said.append(_contrast(labels, *newest))
    return said


def _change(label: str, before: Interval, after: Interval) -> tuple[str, str]:
    """Whether a quantity rose or fell, as far as the intervals allow to say so."""
    if math.isnan(before.low) or math.isnan(after.low):
        return _too_few(label, before, after)
    texts = _texts(before, after)
    if not before.apart(after):
        return "overlap", f"{f'{label}: ' if label else ''}{_OVERLAP}{texts}."
    kind = "rose" if after.mean > before.mean else "fell"
    return kind, f"{f'{label} {kind}' if label else kind.capitalize()}: {_APART}{texts}."


def _too_few(label: str, *intervals: Interval) -> tuple[str, str]:
    said = f"{label}: {_TOO_FEW}" if label else _TOO_FEW.capitalize()
    return "unknown", f"{said}{_texts(*intervals)}."


def _texts(*intervals: Interval) -> str:
    """How many texts stand behind intervals, where they are few and known."""
    counts = [interval.num_clusters for interval in intervals]
    return f" (texts: {' and '.join(map(str, counts))})" if 0 < min(counts) < FEW else ""


def _contrast(labels: Sequence[str], one: Interval, other: Interval) -> tuple[str, str]:
    if math.isnan(one.low) or math.isnan(other.low):
        return _too_few(f"{labels[0]} and {labels[1]}", one, other)
    if not one.apart(other):
        return "overlap", f"{labels[0]} and {labels[1]}: {_OVERLAP}{_texts(one, other)}."
    high, low = labels if one.mean > other.mean else reversed(labels)
    return "apart", f"{high} ends above {low}: {_APART}{_texts(one, other)}."
