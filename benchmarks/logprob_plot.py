"""The plot of benchmarks/logprob.py: a bar per goal, with what was asked for and the other peers."""

from __future__ import annotations

import statistics
from pathlib import Path

from logprob_report import GOALS, PEERS, over_runs, ratios

COLOURS = {"fp32": "#4477aa", "bf16": "#5aa270"}
RED, GREY = "#cc3311", "#9a9a9a"


def plot(record: dict, path: Path) -> bool:
    """Bars of peer / ours over all runs; goals that were not measured are left out; False where none was."""
    rows = {row["name"]: row for row in record["goals"] if row["value"] is not None}
    goals = [goal for goal in GOALS if goal.name in rows]
    if not goals:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "logprob"
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 0.42 * len(goals) + 1.9), layout="constrained")
    for y, goal in enumerate(goals):
        _row(axis, y, goal, rows[goal.name], record)
    axis.set_yticks(range(len(goals)), [goal.name for goal in goals])
    axis.invert_yaxis()
    axis.set_xscale("log")
    right = max(max(row["most"], row["goal"]) for row in rows.values() if row["at_least"])
    axis.set_xlim(0.8, max(10, right * 3))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("time of the best peer / ours")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", which="major", linewidth=0.4)
    axis.set_axisbelow(True)
    figure.suptitle(_title(record), fontsize=10, x=0.01, horizontalalignment="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def _title(record: dict) -> str:
    size = f"V = 151,936, N = {record['num_rows']}, D = {record['depth']}, one thread, {record['isa']} instructions"
    cpu = f"{record['cpu']['model name']}, family {record['cpu']['cpu family']}, torch {record['versions']['torch']}"
    key = f"bar: median of {record['runs']} runs, line through it: least to most, red: the goal, dots: other peers"
    return (
        f"Masked log-probability: {size}\n{cpu}"
        + (" (a quick run, no verdict)" if record["quick"] else "")
        + f"\n{key}"
    )


def _row(axis, y: int, goal, row: dict, record: dict) -> None:
    dtype = goal.case.split(".")[2]
    axis.barh(y, row["value"] - 0.8, left=0.8, height=0.62, color=COLOURS[dtype])
    axis.hlines(y, row["least"], row["most"], color="black", linewidth=1.4)
    axis.vlines(row["goal"], y - 0.42, y + 0.42, color=RED, linewidth=2.2, zorder=4)
    tables = [ratios(case, goal.density, 1, goal.ours) for case in over_runs(record, goal.case, 1)]
    others = {n for t in tables for n, r in t.items() if r["family"] in PEERS and n != row["anchor"]}
    dots = [statistics.median(t[n]["ratio"] for t in tables if n in t) for n in others]
    axis.scatter(dots, [y] * len(dots), s=7, color=GREY, zorder=3)
    # Behind the bar and the goal, so that neither is written over.
    end = max(row["most"], row["goal"] if row["goal"] < 4 * row["most"] else 0)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    axis.annotate(
        f"{row['value']:.2f}  {row['anchor']}",
        (end, y),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        bbox=box,
        zorder=5,
    )
