"""What the check of a judge looks like in a terminal: agreement, canaries, speed, the worst disagreements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN = 10  # disagreements
_CUT = 160  # characters of a text


def show_check(found: Mapping[str, Any]) -> None:
    """Print what `run_check` found."""
    console, judge = Console(), found["judge"]
    name = f"{judge['judge_model']} at {judge['server']}" if judge["judge"] == "server" else "the rule"
    table = Table(title=f"{escape(name)}, {judge['reward']} reward", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("labelled pairs", f"{found['num_pairs']:,}")
    for outcome, num in found["outcomes"].items():
        table.add_row(f"  {outcome}", f"{num:,}")
    table.add_section()
    for key in ("accuracy", "wrong_accepted", "right_rejected", "no_verdict"):
        table.add_row(key.replace("_", " "), _share(found[key]))
    if found["repeated"] is not None:
        table.add_row("same verdict twice", _share(found["repeated"]["same"]))
    _add_stats(table, found["stats"])
    _add_load(table, found["load"])
    console.print(table)
    _say_disagreements(console, found["disagreements"])
    _say_load(console, found["load"])
    if found["outcomes"]["no verdict"] == found["num_pairs"]:
        console.print("NOT ONE VERDICT: this judge cannot be used as it is", highlight=False)


def _share(found: Mapping[str, float]) -> str:
    if math.isnan(found["share"]):
        return "unknown"
    return f"{found['share']:.1%}  ({found['low']:.1%} to {found['high']:.1%} of {found['num']:,})"


def _add_stats(table: Table, stats: Mapping[str, float]) -> None:
    table.add_section()
    table.add_row("canaries sent", f"{stats['num_canaries']:.0f}")
    for kind in ("wrong", "right"):
        table.add_row(f"  {kind} ones accepted", _number(stats[f"canary_{kind}_accepted"], ".0%"))
    for percentile in (50, 95):
        table.add_row(f"latency p{percentile}, seconds", _number(stats[f"latency_p{percentile}"], ".3f"))
    for key, num in stats.items():
        if key.startswith("no_verdict/") and num > 0:
            table.add_row(f"no verdict: {key.removeprefix('no_verdict/')}", f"{num:.0f}")


def _add_load(table: Table, load: Mapping[str, Any]) -> None:
    table.add_row("tokens per request, prompt", _number(load["prompt_tokens_per_request"], ".0f"))
    table.add_row("tokens per request, completion", _number(load["completion_tokens_per_request"], ".1f"))
    for what in ("measured", "needed"):
        if f"{what}_requests_per_second" in load:
            table.add_row(f"{what} requests per second", _number(load[f"{what}_requests_per_second"], ",.1f"))
            table.add_row(f"{what} tokens per second", _number(load[f"{what}_tokens_per_second"], ",.0f"))


def _number(value: float, digits: str) -> str:
    return "unknown" if math.isnan(value) else format(value, digits)


def _say_disagreements(console: Console, cases: list[Mapping[str, Any]]) -> None:
    for case in cases[:SHOWN]:
        why = f" ({case['reason']})" if case["reason"] else ""
        for line in (
            f"{case['outcome']}: {case['id']} {case['kind']}{why}",
            f"  reference:  {_short(case['reference'])}",
            f"  prediction: {_short(case['prediction'])}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(cases) > SHOWN:
        console.print(f"and {len(cases) - SHOWN} more; --output FILE writes all of them", highlight=False)


def _short(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _CUT else line[:_CUT] + "…"


def _say_load(console: Console, load: Mapping[str, Any]) -> None:
    if "keeps_up" not in load:
        return
    said = (
        f"a step asks {load['requests_per_step']:,} times at most, which takes this judge "
        f"{load['seconds_per_step']:,.1f} s of {load['step_seconds']:,g} s, measured with {load['at_once']} at once: "
    )
    console.print(
        said + ("it keeps up" if load["keeps_up"] else "IT DOES NOT KEEP UP"), highlight=False, soft_wrap=True
    )
