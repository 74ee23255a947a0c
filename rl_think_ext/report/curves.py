"""Curves out of a log: every metric that was logged as a number, thinned to what can be seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rl_think_ext.report.folder import Folder
from rl_think_ext.report.specs import Spec
from rl_think_ext.report.text import number

# Points of one curve in the drawing: more cannot be seen.
MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """One metric of one folder: steps and values, thinned to means of equal stretches with their lowest and highest."""

    label: str
    folder: int
    style: int
    steps: tuple[float, ...]
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    first: float
    last: float

    @property
    def is_thinned(self) -> bool:
        """Whether points stand for stretches of steps."""
        return self.lows != self.highs


@dataclass(frozen=True)
class Figure:
    """A spec with the curves that were found for it."""

    spec: Spec
    curves: tuple[Curve, ...]
    ceilings: tuple[float, ...] = ()


def figures(folders: Sequence[Folder], ceilings: Sequence[float] = ()) -> tuple[list[Figure], list[str]]:
    """Figures of everything that was logged, and the titles of what was not; a folder is drawn in those of its kind."""
    found, missing = [], []
    for spec in dict.fromkeys(spec for folder in folders for spec in folder.kind.specs):
        drawn = [list(_series(spec, folder)) if spec in folder.kind.specs else [] for folder in folders]
        # One metric has one dash in both folders, also where a name occurs in one of them only.
        order = list(dict.fromkeys(one for series in drawn for one in series))
        curves = [
            curve
            for index, folder in enumerate(folders)
            for one in drawn[index]
            for curve in _curve(folder, index, order.index(one), *one)
        ]
        if curves:
            found.append(Figure(spec, tuple(curves), tuple(ceilings) if "gain" in spec.key else ()))
        else:
            missing.append(spec.title)
    return found, missing


def _series(spec: Spec, folder: Folder) -> Iterable[tuple[str, str]]:
    """Metrics and labels of a spec, those among them whose names only the log knows."""
    if spec.every is None:
        return spec.series
    before, behind = spec.every
    names = sorted({name for entry in folder.log.values() for name in entry} - set(spec.without), key=_ok_first)
    found = [n for n in names if n.startswith(before) and n.endswith(behind) and len(n) > len(before + behind)]
    if spec.occurring:
        # Every reason and status is logged every time.
        found = [n for n in found if any(number(entry.get(n)) for entry in folder.log.values())]
    labels = [n.removeprefix(before).removesuffix(behind) for n in found]
    labels = [label.replace("_", " ") for label in labels] if spec.occurring else labels
    return list(zip(found, labels, strict=True)) or spec.series


def _ok_first(name: str) -> tuple[bool, str]:
    return not name.endswith("/ok"), name


def _curve(folder: Folder, index: int, style: int, metric: str, label: str) -> Iterator[Curve]:
    """The curve of a metric, or nothing where it was never logged as a number."""
    points = series(folder.log, metric)
    if points:
        steps, means, lows, highs = zip(*thinned(points, MOST_POINTS), strict=True)
        if metric.endswith("baseline_accuracy"):
            label = f"{label} ({folder.baseline})"
        yield Curve(label, index, style, steps, means, lows, highs, points[0][1], points[-1][1])


def series(log: Mapping[float, Mapping[str, object]], metric: str) -> list[tuple[float, float]]:
    """Step and value of every log that holds the metric as a finite number."""
    pairs = ((step, number(entry.get(metric))) for step, entry in log.items())
    return [(step, value) for step, value in pairs if value is not None]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float, float, float]]:
    """Step, mean, lowest and highest of at most `most` equal stretches; every point by itself where they are few.

    >>> thinned([(1, 0.0), (2, 1.0), (3, 5.0), (4, 7.0)], 2)
    [(1.5, 0.5, 0.0, 1.0), (3.5, 6.0, 5.0, 7.0)]
    """
    if len(points) <= most:
        return [(step, value, value, value) for step, value in points]
    edges = [len(points) * i // most for i in range(most + 1)]
    out = []
    for start, stop in pairwise(edges):
        steps, values = zip(*points[start:stop], strict=True)
        out.append((sum(steps) / len(steps), sum(values) / len(values), min(values), max(values)))
    return out
