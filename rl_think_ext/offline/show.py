"""What a measurement and a replay look like in a terminal: numbers, their intervals, what was left out, the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl_think_ext.methods.interval import FEW
from rl_think_ext.methods.rlpt import TASKS
from rl_think_ext.offline.replay import NUMBERS

_ROWS = (
    ("gain", "gain [nats]", "+.3f"),
    ("reasoned", "log p with a thought", ".3f"),
    ("baseline", "log p without one", ".3f"),
    ("accuracy", "accuracy with a thought", ".3f"),
    ("baseline_accuracy", "accuracy without one", ".3f"),
    ("helping", "share of thoughts that help", ".3f"),
)


def show_gain(found: Mapping[str, Any]) -> None:
    """Print what gain.json holds."""
    console = Console()
    others = {"model": found, **({"other": found["compare"]} if "compare" in found else {})}
    table = Table(title=f"{escape(found['model'])} on {escape(found['data'])}", title_justify="left")
    table.add_column("")
    for value in others.values():
        table.add_column(escape(value["model"]), justify="right")
    if "compare" in found:
        table.add_column("difference", justify="right")
    between = "\n" if "compare" in found else " "
    for key, label, digits in _ROWS:
        cells = [_interval(value[key], digits, between) for value in others.values()]
        if "compare" in found:
            cells.append(_interval(found["compare"]["difference"][key], "+.3f", between))
        table.add_row(label, *cells)
    table.add_section()
    table.add_row("mean length of a thought", *(f"{value['thought_length']:.1f}" for value in others.values()))
    table.add_row("thoughts cut off", *(f"{value['unclosed']:.1%}" for value in others.values()))
    for reason in dict.fromkeys(reason for value in others.values() for reason in value["unscorable"]):
        counts = (f"{value['unscorable'].get(reason, 0):,}" for value in others.values())
        table.add_row(f"unscorable: {reason}", *counts)
    console.print(table)
    _say(found, console)


def _say(found: Mapping[str, Any], console: Console) -> None:
    subset = f" (a random part of {found['num_rows']:,})" if found["num_positions"] < found["num_rows"] else ""
    console.print(
        f"{found['num_positions']:,} positions{subset} of {found['num_documents']:,} documents, "
        f"{found['num_samples']:,} thoughts; 95 % intervals over {found['clustered_by']}s",
        highlight=False,
    )
    if "select" in found:
        chosen = found["select"]
        counts = ", ".join(f"{reason} {n:,}" for reason, n in chosen.items() if reason != "min_gain" and n)
        console.print(f"positions by signal (above {chosen['min_gain']:g} nats): {counts}", highlight=False)
    console.print(f"[bold]{escape(found['verdict'])}[/bold]", highlight=False)
    if 1 < found["gain"]["num_clusters"] < FEW:
        number, what = found["gain"]["num_clusters"], found["clustered_by"]
        console.print(
            f"with {number} {what}s only, an interval is wide, and leans on their values being normal: measure more",
            style="red",
        )
    if "compare" in found:
        console.print(f"[bold]{escape(found['compare']['difference']['verdict'])}[/bold]", highlight=False)


def _interval(value: Mapping[str, Any], digits: str, between: str) -> str:
    if value["mean"] is None:
        return "–"
    if value["low"] is None:
        return f"{value['mean']:{digits}}"
    return escape(f"{value['mean']:{digits}}{between}[{value['low']:{digits}}, {value['high']:{digits}}]")


def show_replay(found: Mapping[str, Any]) -> None:
    """Print what replay.json holds: stored against now."""
    if found.get("method") == "rlpt":
        _show_verdicts(found)
        return
    table = Table(title=escape(f"{_what(found)}, scored by {found['model']}"), title_justify="left")
    for column in ("", "stored", "now", "difference", "correlation"):
        table.add_column(column, justify="left" if not column else "right")
    for name in NUMBERS:
        row = found[name]
        known = row["correlation"]
        numbers = [_number(row["old"]), _number(row["new"]), _number(row["difference"], interval=True)]
        table.add_row(name, *numbers, "–" if known is None else f"{known:.3f}")
    _show_table(table, found)


def _what(found: Mapping[str, Any]) -> str:
    """The run and the steps of a replay."""
    steps = found["steps"]
    shown = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}"
    return f"{found['run']}, {shown}"


def _show_verdicts(found: Mapping[str, Any]) -> None:
    """A replay of RLPT: the share of right predictions by task, and how many changed."""
    table = Table(title=escape(f"{_what(found)}, judged by {found['judge']}"), title_justify="left")
    for column in ("right", "stored", "now", "difference", "became right", "became wrong"):
        table.add_column(column, justify="left" if column == "right" else "right")
    for name in ("all", *TASKS):
        row = found[name]
        numbers = [_number(row["old"]), _number(row["new"]), _number(row["difference"], interval=True)]
        table.add_row(name, *numbers, f"{row['became_right']:,}", f"{row['became_wrong']:,}")
    _show_table(table, found)


def _show_table(table: Table, found: Mapping[str, Any]) -> None:
    """A table of a replay, and below it what changed and what has no score."""
    console = Console()
    console.print(table)
    changed = {k: v for k, v in found["settings"]["new"].items() if found["settings"]["old"].get(k, v) != v}
    console.print(f"settings that changed: {changed or 'none'}", highlight=False, markup=False)
    console.print(
        f"{found['num_samples']:,} samples of {found['num_groups']:,} groups; became unscorable "
        f"{found['became_unscorable']:,}, became scorable {found['became_scorable']:,}",
        highlight=False,
    )
    for reason, count in found["unscorable_new"].items():
        console.print(f"unscorable now: {reason} {count:,}", highlight=False)


def _number(value: Mapping[str, Any], *, interval: bool = False) -> str:
    if value["mean"] is None:
        return "–"
    shown = f"{value['mean']:+.3f}"
    return f"{shown} \\[{value['low']:+.3f}, {value['high']:+.3f}]" if interval and value["low"] is not None else shown
