"""Findings as a table that fits 80 columns, or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

from rl_think_ext.cli.doctor.case import MEND_FIRST, Finding, State

WORDS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warn": ("warn", "yellow"),
    "broken": ("BROKEN", "bold red"),
    "absent": ("not there", "dim"),
    "unchecked": ("not checked", "cyan"),
}
_FOLDED = 4
_NAME = 14


def as_json(findings: Sequence[Finding], trace: bool = False) -> None:
    """Print {"ok": bool, "counts": {state: n}, "findings": [...]}; traces are always whole there."""
    counts = Counter(finding.state for finding in findings)
    rows = [dataclasses.asdict(finding) for finding in findings]
    print(json.dumps({"ok": not counts["broken"], "counts": counts, "findings": rows}, indent=2, ensure_ascii=False))


def table(findings: Sequence[Finding], trace: bool = False) -> None:
    """Print one line a finding in the order of the groups, what to do below it, then the count of each state."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold", max_width=_NAME)
    grid.add_column(overflow="fold", ratio=1)
    blocked = [finding.name for finding in findings if finding.todo == MEND_FIRST]
    shown = [finding for finding in findings if finding.todo != MEND_FIRST]
    for group in dict.fromkeys(finding.group for finding in shown):
        grid.add_row(Text(group, "bold"), "", "")
        for finding in (one for one in shown if one.group == group):
            word, style = WORDS[finding.state]
            body = Text(finding.found)
            if finding.todo and finding.state != "ok":
                body.append(f"\n→ {finding.todo}", style)
            if finding.trace:
                body.append("\n" + folded(finding.trace, trace), "dim")
            grid.add_row(Text(f"  {word}", style), finding.name, body)
    console.print(grid)
    if blocked:
        console.print(f"Not looked at because of what is broken: {', '.join(blocked)}.", style="cyan")
    counts = Counter(finding.state for finding in findings)
    console.print(", ".join(f"{counts[state]} {word.lower()}" for state, (word, _) in WORDS.items() if counts[state]))


def folded(trace: str, whole: bool) -> str:
    """A trace's last lines, and how to see the rest."""
    lines = trace.splitlines()
    if whole or len(lines) <= _FOLDED:
        return trace
    return "\n".join([f"… {len(lines) - _FOLDED} lines more with --trace", *lines[-_FOLDED:]])
