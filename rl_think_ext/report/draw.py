"""Curves as inline SVG: no text but numbers, colours by name out of the page's style sheet, ids of its own."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from rl_think_ext.report.curves import Figure

# Stand-ins that matplotlib writes and the page's style sheet decides: so a figure follows the light and dark page.
_COLOURS = {
    "#010101": "var(--ink-2)",
    "#020202": "var(--rule)",
    "#030303": "var(--zero)",
    "#040404": "var(--c0)",
    "#050505": "var(--c1)",
    "#060606": "var(--c2)",
    "#070707": "var(--c3)",
    "#080808": "var(--c4)",
    "#090909": "var(--c5)",
}
_TEXT, _GRID, _ZERO, *_LINES = _COLOURS
DASHES: tuple[Any, ...] = ("solid", (0, (4.5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (8, 3)), (0, (2, 4)))
_SIZE, _FONT = (4.2, 2.6), 9.0
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rl_think_ext.report",
    "font.size": _FONT,
    "path.simplify": True,
    "axes.unicode_minus": True,
}


def colour(folder: int, style: int, num_folders: int) -> int:
    """The number of a curve's colour: of its folder where there are two, of its series where there is one."""
    return (folder if num_folders > 1 else style) % len(_LINES)


def svg(figure: Figure, num_folders: int) -> str:
    """A figure as an SVG element that fills its box; deterministic."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_RC):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.subplots()
        _frame(axes, figure)
        for curve in figure.curves:
            shade = _LINES[colour(curve.folder, curve.style, num_folders)]
            few = len(curve.steps) <= 30
            axes.plot(
                curve.steps,
                curve.values,
                color=shade,
                linewidth=2.2 if curve.style == 0 else 1.3,
                # Curves that lie on one another stay visible: the first is whole, the others are broken and above it.
                linestyle=DASHES[curve.style % len(DASHES)],
                marker="o" if few else "",
                markersize=3.6 if len(curve.steps) == 1 else 2.4,
                zorder=5 + 0.1 * curve.style,
            )
            if curve.style == 0 and curve.is_thinned:
                axes.fill_between(curve.steps, curve.lows, curve.highs, color=shade, alpha=0.16, linewidth=0)
        _limits(axes, figure)
        return _inline(_saved(canvas), figure.spec.key)


def positions(rows: Sequence[Sequence[tuple[float, float, float, float]]], key: str) -> str:
    """Means with intervals along a document, x from 0 to 1: (place, mean, low, high) rows of one or two folders."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_RC):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.subplots()
        _style(axes)
        axes.axhline(0, color=_ZERO, linewidth=0.9)
        for index, points in enumerate(rows):
            places, means, lows, highs = zip(*points, strict=True)
            axes.fill_between(places, lows, highs, color=_LINES[index], alpha=0.18, linewidth=0)
            axes.plot(places, means, color=_LINES[index], linewidth=1.7, marker="o", markersize=3)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["start", "¼", "½", "¾", "end"])
        return _inline(_saved(canvas), key)


def _frame(axes: Any, figure: Figure) -> None:
    _style(axes)
    axes.set_xlabel("step", color=_TEXT, labelpad=2)
    if figure.spec.zero:
        axes.axhline(0, color=_ZERO, linewidth=0.9, zorder=1)
    for ceiling in figure.ceilings:
        axes.axhline(ceiling, color=_ZERO, linewidth=1.1, linestyle=(0, (1.2, 2)), zorder=1)


def _style(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT, length=0, pad=4, labelsize=_FONT)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _limits(axes: Any, figure: Figure) -> None:
    """A share starts at 0; a curve that does not move lies in a window in which that can be seen."""
    from matplotlib.ticker import PercentFormatter

    low, high = axes.get_ylim()
    if figure.spec.share:
        highest = max(max(curve.highs) for curve in figure.curves)
        top = next((edge for edge in (0.05, 0.1, 0.25, 0.5) if highest <= 0.9 * edge), max(1.0, highest)) * 1.03
        low, high = -0.02 * top, top
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.06 else 1))
    axes.set_ylim(low, high)


def _saved(canvas: Any) -> str:
    out = io.StringIO()
    canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _inline(text: str, key: str) -> str:
    """The SVG element by itself: no prologue, metadata or fixed size; named colours, ids that no other figure has."""
    text = text[text.index("<svg") :]
    # The style of matplotlib would hold for the whole page.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    text = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box[1]}" aria-hidden="true">', text, count=1)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = text.replace("url(#", f"url(#{key}-").replace('xlink:href="#', f'href="#{key}-')
    text = re.sub(r"#(0[1-9])\1\1\b", lambda found: _COLOURS[found[0]], text)
    # Paths are most of the page; the numbers beside the axes stand between tags and stay as they are.
    return re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text).strip()
