"""gain.png: how the gain is spread over positions, where in a text it lies, and how many thoughts help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.offline.summary import NUM_PLACES, Measured

_COLOURS = ("#1f5fa8", "#d1721b")
_GREY = "#8a8f98"


def draw(measured: Mapping[str, Measured], num_thoughts: int, path: Path) -> None:
    """One model, or two over one another, under the names by which they are told apart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "axes.titlelocation": "left"}
    with plt.rc_context(style):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
        _spread(left, measured)
        _along(middle, measured)
        _helping(right, measured, num_thoughts)
        if len(measured) > 1:
            right.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=140, facecolor="white", metadata={"Software": None})
        plt.close(figure)


def _spread(axes: Any, measured: Mapping[str, Measured]) -> None:
    """A histogram of the positions' mean gains; the band is the interval of their mean."""
    import numpy as np

    values = {name: np.array([g for g in m.means["gain"] if g is not None]) for name, m in measured.items()}
    every = np.concatenate(list(values.values()))
    # A few far positions would squeeze all others into one bar: they are counted in the last bars.
    low, high = np.quantile(every, [0.005, 0.995])
    low, high = min(low, 0.0), max(high, 0.0)
    num_bars = int(min(40, max(12, 2 * len(every) ** 0.5)))
    edges = np.linspace(low, high if high > low else low + 1, num_bars + 1)
    for (name, gains), colour in zip(values.items(), _COLOURS, strict=False):
        axes.hist(np.clip(gains, edges[0], edges[-1]), edges, color=colour, alpha=0.55)
        interval = measured[name].gain
        if interval.low == interval.low:
            axes.axvspan(interval.low, interval.high, color=colour, alpha=0.25, linewidth=0)
        axes.axvline(interval.mean, color=colour, linewidth=1.6)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    cut = bool((every < edges[0]).any() or (every > edges[-1]).any())
    axes.set(
        xlabel="mean gain of a position [nats]" + (", ends hold what lies beyond" if cut else ""),
        ylabel="positions",
        title="\n".join(_words(m, name if len(measured) > 1 else "") for name, m in measured.items()),
    )


def _words(measured: Measured, name: str) -> str:
    gain = measured.gain
    band = f" [{gain.low:+.2f}, {gain.high:+.2f}]" if gain.low == gain.low else ""
    return f"{name + ': ' if name else 'gain '}{gain.mean:+.2f} nats{band}"


def _along(axes: Any, measured: Mapping[str, Measured]) -> None:
    """The gain by place in the document as far as the data holds it, with intervals."""
    for i, (m, colour) in enumerate(zip(measured.values(), _COLOURS, strict=False)):
        rows = m.along()
        place = [(row["from"] + row["to"]) / 2 + 0.012 * (i - (len(measured) - 1) / 2) for row in rows]
        mean = [row["gain"]["mean"] for row in rows]
        known = [(x, row["gain"]) for x, row in zip(place, rows, strict=True) if row["gain"]["low"] is not None]
        axes.plot(place, mean, "o-", color=colour, linewidth=1.2, markersize=4.5)
        axes.vlines(
            [x for x, _ in known], [g["low"] for _, g in known], [g["high"] for _, g in known], colour, linewidth=2.2,
            alpha=0.6,
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xlim=(-0.02, 1.02),
        xticks=[i / NUM_PLACES for i in range(0, NUM_PLACES + 1, 2)],
        xlabel="place (0 start of the document,\n1 end of its last target in the data)",
        ylabel="gain [nats]",
        title="along the text",
    )


def _helping(axes: Any, measured: Mapping[str, Measured], num_thoughts: int) -> None:
    """How many of a position's thoughts help: where none or all do, their differences say little."""
    import numpy as np

    width = 0.8 / len(measured)
    bins = min(num_thoughts, 10)
    for i, ((name, m), colour) in enumerate(zip(measured.items(), _COLOURS, strict=False)):
        shares = [share for share in m.helping() if share is not None]
        counts = np.bincount([round(share * bins) for share in shares], minlength=bins + 1) / max(1, len(shares))
        colours = [_GREY if len(measured) == 1 and k in (0, bins) else colour for k in range(bins + 1)]
        place = np.arange(bins + 1) + (i - (len(measured) - 1) / 2) * width
        axes.bar(place, counts, width, color=colours, alpha=0.8, label=name)
    labels: Sequence[str] = [f"{k}" if bins == num_thoughts else f"{k / bins:.0%}" for k in range(bins + 1)]
    axes.set(
        xticks=range(bins + 1),
        xticklabels=labels,
        xlabel=f"thoughts with a gain above 0, of {num_thoughts}",
        ylabel="share of the positions",
        title="thoughts that help" + (" (grey: none or all)" if len(measured) == 1 else ""),
    )
