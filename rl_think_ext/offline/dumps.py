"""verl's own dumps of rollouts (`trainer.rollout_data_dir`): STEP.jsonl, one sample a line.

The trainers `rlp` and `rlpt` of rl_think_ext.verl add the columns by which a sample can be scored again; what verl
alone writes (input, output, gts, score, step, uid) is text without special tokens, out of which no ids can be had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError


def dumped_steps(folder: Path) -> dict[int, list[Path]]:
    """The dump of each step, in order; empty where the folder holds none."""
    found = {int(path.stem): [path] for path in folder.glob("*.jsonl") if path.stem.isdecimal()}
    return dict(sorted(found.items()))


def about_dumps(folder: Path, first: Path, columns: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, Any], Path]:
    """The run.json of the run that wrote the dumps, and its place: beside them, or in the run's folder around them.

    Args:
        folder: That of the dumps.
        first: One of the dumps.
        columns: What a sample needs to be scored again, by method.

    Raises:
        UserError: a run of another method, dumps without ids, no run.json, or one that says nothing.
    """
    places = [place / name for place in (folder, folder.parent) for name in ("run.json", "rl_think/run.json")]
    found = next((path for path in places if path.is_file()), None)
    about = {} if found is None else read_about(found)
    _check_columns(first, columns[check_method(folder, about)])
    if found is not None:
        return about, found
    raise UserError(
        f"{folder} holds verl's dumps of rollouts, but no run.json says how they were scored; looked for "
        f"{', '.join(map(str, places))}. The trainer `rlp` writes one: copy it from `rl_think` in the run's "
        "trainer.default_local_dir"
    )


def check_method(folder: Path, about: Mapping[str, Any]) -> str:
    """The method of a run, "rlp" or "rlpt"; others are refused.

    Raises:
        UserError: naming the folder and its method.
    """
    method = str(about.get("method", "rlp"))
    if method not in ("rlp", "rlpt"):
        raise UserError(
            f"{folder} is a run of {method.upper()}; replay scores RLP's thoughts and RLPT's predictions. `rl-think "
            "report` shows other runs, by their output_dir (TRL) or default_local_dir (verl)"
        )
    return method


def _check_columns(path: Path, columns: tuple[str, ...]) -> None:
    """Whether the first sample can be scored again at all; one that cannot be read is for its reader to say."""
    line = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    try:
        row = json.loads(line)
    except ValueError:
        return
    if isinstance(row, Mapping):
        _require(_plain_names(row), f"{path}, line 1", columns)


def _plain_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sample without the prefix of RLPT's columns, which stand before verl's own of the same name."""
    own = {name.removeprefix("rlpt/"): value for name, value in row.items() if name.startswith("rlpt/")}
    return {**row, **own}


def read_about(path: Path) -> dict[str, Any]:
    """A run.json.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise UserError(f"{path} holds no settings of a run, but a {type(about).__name__}")
    return about


def read_dump(path: Path, ids: tuple[str, ...], scores: tuple[str, ...]) -> list[dict[str, Any]]:
    """The samples of a step, a number that is none as None.

    Args:
        path: STEP.jsonl.
        ids: Columns of token ids that every sample needs.
        scores: Other columns that it needs.

    Raises:
        UserError: naming the line and what is wrong with it.
    """
    rows = []
    # Not splitlines: verl writes text as it is, and U+2028 in an output ends no line.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: no JSON. A run that was stopped leaves its last dump half written: leave that "
                "step out with --steps"
            ) from error
        rows.append(_checked(row, f"{path}, line {number}", ids, scores))
    return rows


def _checked(row: Any, where: str, ids: tuple[str, ...], scores: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: no sample, but a {type(row).__name__}")
    row = _plain_names(row)
    _require(row, where, (*ids, *scores))
    for name in ids:
        if not isinstance(row[name], list) or not all(type(token) is int for token in row[name]):
            raise UserError(f"{where}: `{name}` is no list of token ids")
    return {name: _plain(value) for name, value in row.items()}


def _require(row: Mapping[str, Any], where: str, columns: tuple[str, ...]) -> None:
    for name in columns:
        if name not in row:
            raise UserError(
                f"{where}: no column `{name}`, only {', '.join(row)}. verl alone dumps text, and RLMT's outputs have "
                "no target: neither can be scored again. Train with trainer.v1.trainer_mode=rlp (or rlpt) of "
                "rl_think_ext.verl, which adds what is needed"
            )


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
