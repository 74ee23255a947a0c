"""Figures ready for the page: the drawing, its legend in words and numbers, and what to look for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_think_ext.report import curves, draw, text
from rl_think_ext.report.folder import Folder
from rl_think_ext.report.specs import Spec


@dataclass(frozen=True)
class Legend:
    """What one line of a figure is: numbers of colour and dash, whose, what, and its way from first to last."""

    colour: int
    dash: int
    owner: str
    label: str
    way: str


@dataclass(frozen=True)
class Picture:
    """A figure ready for the page; `svg` is the one thing on it that is not escaped."""

    key: str
    title: str
    look: str
    svg: str
    legend: tuple[Legend, ...]

    @property
    def spoken(self) -> str:
        """The figure in words, for those who do not see it."""
        said = ", ".join(" ".join(filter(None, (one.owner, one.label, one.way))) for one in self.legend)
        return f"{self.title}: {said}"


def picture(figure: curves.Figure, folders: Sequence[Folder], labels: Sequence[str]) -> Picture:
    """A figure of curves with its legend."""
    several = len(folders) > 1
    legend = tuple(
        Legend(
            draw.colour(curve.folder, curve.style, len(folders)),
            curve.style % len(draw.DASHES),
            labels[curve.folder] if several else "",
            curve.label,
            " → ".join(_value(v, figure.spec) for v in (curve.first, curve.last)),
        )
        for curve in figure.curves
    )
    look = figure.spec.look
    if figure.ceilings:
        look += f" Dotted: the ceiling, {' and '.join(f'{ceiling:.2f}' for ceiling in figure.ceilings)}."
    unit = f" [{figure.spec.unit}]" if figure.spec.unit else ""
    return Picture(f"fig-{figure.spec.key}", figure.spec.title + unit, look, draw.svg(figure, len(folders)), legend)


def _value(value: float, spec: Spec) -> str:
    if spec.share:
        return text.percent(value)
    if spec.unit == "nats":
        return f"{value:.2f}".replace("-", text.MINUS)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", text.MINUS)
    return f"{value:.3g}".replace("-", text.MINUS)


def along(folders: Sequence[Folder], labels: Sequence[str]) -> Iterable[Picture]:
    """The gain by the place in the document, which an offline measurement knows."""
    rows: list[list[tuple[float, float, float, float]]] = []
    legend: list[Legend] = []
    for label, folder in zip(labels, folders, strict=True):
        entries = folder.info.get("by_position") if folder.offline else None
        points = [p for p in map(_place, entries if isinstance(entries, list) else []) if p is not None]
        if points:
            rows.append(points)
            legend.append(Legend(len(legend), 0, label if len(folders) > 1 else "", "mean gain, 95 % interval", ""))
    if rows:
        look = "Where in a document thinking helps: a band that stays clear of zero."
        yield Picture("fig-along", "Gain along a document [nats]", look, draw.positions(rows, "along"), tuple(legend))


def _place(entry: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("gain"), Mapping):
        return None
    start, stop = text.number(entry.get("from")), text.number(entry.get("to"))
    mean, low, high = (text.number(entry["gain"].get(name)) for name in ("mean", "low", "high"))
    if start is None or stop is None or mean is None:
        return None
    return (start + stop) / 2, mean, mean if low is None else low, mean if high is None else high
