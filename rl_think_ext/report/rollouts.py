"""Which completions tables are of the run's own training: at an evaluation TRL writes one over that of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rl_think_ext.report.text import number

_COLUMN, _TOLERANCE = "rlp/reasoned", 1e-5


def own(tables: Sequence[tuple[int, Path]], folder: Path, num_processes: float | None) -> tuple[tuple[int, Path], ...]:
    """The tables that agree with the rollouts of their step, row by row; all of them where no rollouts were kept.

    Args:
        tables: Completions tables by step.
        folder: The run's rl_think/rollouts.
        num_processes: Of the run; files of further ranks are left by an earlier one. None: unknown.
    """
    if not folder.is_dir():
        return tuple(tables)
    ranks: dict[int, list[tuple[int, Path]]] = {}
    for path in folder.glob("*.rank*.parquet"):
        step, _, rank = path.name.removesuffix(".parquet").partition(".rank")
        if _is_count(step) and _is_count(rank) and (num_processes is None or int(rank) < num_processes):
            ranks.setdefault(int(step), []).append((int(rank), path))
    return tuple((step, path) for step, path in tables if _agrees(path, sorted(ranks.get(step, []))))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _agrees(table: Path, ranks: Sequence[tuple[int, Path]]) -> bool:
    import pyarrow as pa

    try:
        scored = [value for _, path in ranks for value in _values(path, "reasoned")]
    except (pa.ArrowException, OSError):
        return False
    try:
        shown = _values(table, _COLUMN)
    except (pa.ArrowException, OSError):
        # Whoever needs a broken table names it.
        return bool(ranks)
    return bool(scored) and len(scored) == len(shown) and all(map(_equal, scored, shown))


def _values(path: Path, column: str) -> list[float | None]:
    import pyarrow.parquet as pq

    found = pq.read_table(path, columns=[column])
    return [number(value) for value in found.column(column).to_pylist()] if column in found.column_names else []


def _equal(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    # The rollouts hold float32.
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=_TOLERANCE)
