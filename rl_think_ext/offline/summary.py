"""From samples to what is said of them: means with intervals over documents, along the text, and a verdict in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_think_ext.methods.interval import Interval, mean_interval
from rl_think_ext.offline.rows import Position
from rl_think_ext.offline.segments import as_dict, by_segment

NUM_PLACES = 10
# Not the document's end: the data need not hold its last position, and nothing else tells how long it is.
SCALE = "0: start of the document, 1: end of its last target in the data"
_MEANS = ("gain", "reasoned", "baseline", "accuracy", "baseline_accuracy")
COLUMNS = ("row", *_MEANS, "length", "unclosed", "unscorable", "noise")
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Measured:
    """The samples of one model, brought to its positions.

    `means` are by name and position, None where no sample has a value; `gains` are the scorable gains by the
    position's index; `lengths` are the characters of each document as far as the data holds it.
    """

    positions: Sequence[Position]
    columns: Columns
    means: Mapping[str, Sequence[float | None]]
    gains: Mapping[int, Sequence[float]]
    lengths: Mapping[str, int]

    @classmethod
    def of(cls, positions: Sequence[Position], columns: Columns, lengths: Mapping[str, int]) -> Measured:
        """Bring the samples (`COLUMNS`) to the positions."""
        found = {name: _by_row(columns, name) for name in _MEANS}
        means = {name: [_mean(rows.get(p.index, ())) for p in positions] for name, rows in found.items()}
        return cls(positions, columns, means, found["gain"], lengths)

    @property
    def clusters(self) -> tuple[list[str] | None, str]:
        """What the positions are resampled by: their documents, or themselves where there is one document only."""
        names = [p.document for p in self.positions]
        return (names, "document") if len(set(names)) > 1 else (None, "position")

    def interval(self, values: Sequence[float | None]) -> Interval:
        """The mean over positions with its interval."""
        return mean_interval(values, self.clusters[0])

    @property
    def gain(self) -> Interval:
        """The mean over positions of the mean gain of their thoughts, nats."""
        return self.interval(self.means["gain"])

    def places(self) -> list[float]:
        """Where in its document each target begins: 0 is its start, 1 the end of the last target in the data."""
        return [p.start / max(1, self.lengths[p.document]) for p in self.positions]

    def helping(self) -> list[float | None]:
        """The share of a position's scorable thoughts that help at all."""
        return [_mean([float(gain > 0) for gain in self.gains.get(p.index, ())]) for p in self.positions]

    def along(self) -> list[dict[str, Any]]:
        """The gain by place (see `places`), in tenths that hold a position."""
        place = [min(int(x * NUM_PLACES), NUM_PLACES - 1) for x in self.places()]
        found = []
        for i in range(NUM_PLACES):
            values = [gain if at == i else None for gain, at in zip(self.means["gain"], place, strict=True)]
            if any(value is not None for value in values):
                edges = {"from": i / NUM_PLACES, "to": (i + 1) / NUM_PLACES}
                found.append({**edges, "gain": as_dict(self.interval(values))})
        return found

    def unscorable(self) -> dict[str, int]:
        """How many thoughts have no score, by reason."""
        return dict(Counter(reason for reason in self.columns["unscorable"] if reason).most_common())

    @property
    def noise(self) -> float:
        """The largest difference between two scores of one sample, nats."""
        return max((value for value in self.columns["noise"] if value is not None), default=0.0)


def summary(measured: Measured) -> dict[str, Any]:
    """What gain.json says of one model: intervals are over documents, where there are two or more."""
    segments, num_left_out = by_segment(measured.positions, measured.gains)
    return {
        "verdict": verdict(measured.gain),
        "num_documents": len({p.document for p in measured.positions}),
        "num_positions": len(measured.positions),
        "num_samples": len(measured.columns["row"]),
        "clustered_by": measured.clusters[1],
        **{name: as_dict(measured.interval(values)) for name, values in measured.means.items()},
        "helping": as_dict(measured.interval(measured.helping())),
        "thought_length": _mean(measured.columns["length"]),
        "unclosed": _mean(measured.columns["unclosed"]),
        "unscorable": measured.unscorable(),
        "score_noise": measured.noise,
        "by_position": measured.along(),
        "by_position_scale": SCALE,
        "by_segment": segments,
        "documents_without_segments": num_left_out,
    }


def verdict(gain: Interval) -> str:
    """What the interval of the gain means, in words.

    >>> verdict(Interval(1.2, 0.9, 1.5, 40, 8))
    'thinking helps here: +1.2 nats [+0.9, +1.5] per position'
    >>> verdict(Interval(0.1, -0.21, 0.44, 40, 8))
    'no evidence that thinking helps: +0.10 nats [-0.21, +0.44] per position, the interval contains 0'
    >>> verdict(Interval(0.1, math.nan, math.nan, 1, 1))
    'no interval can be given: +0.10 nats at the only position; measure more of them'
    """
    if math.isnan(gain.low):
        return f"no interval can be given: {_signed(gain.mean)} nats at the only position; measure more of them"
    digits = 1 if min(abs(gain.low), abs(gain.high), abs(gain.mean)) >= 0.5 else 2
    numbers = f"{gain.mean:+.{digits}f} nats [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}] per position"
    if gain.low > 0:
        return f"thinking helps here: {numbers}"
    if gain.high < 0:
        return f"thinking hurts here: {numbers}"
    return f"no evidence that thinking helps: {numbers}, the interval contains 0"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _by_row(columns: Columns, name: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    scored = zip(columns["row"], columns[name], columns["unscorable"], strict=True)
    for row, value, reason in scored:
        if value is not None and reason is None:
            found.setdefault(row, []).append(value)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
