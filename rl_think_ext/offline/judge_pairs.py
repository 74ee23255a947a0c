"""Labelled pairs: what a person says about a prediction, one JSON line each; some of our own come with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.judge import Pair

OWN_PAIRS = Path(__file__).parent / "judge_pairs.jsonl"


class Labelled(NamedTuple):
    """A pair, what a person says of it, and where it comes from."""

    pair: Pair
    label: int
    kind: str
    where: str


def read_pairs(path: Path | None, reward: str) -> list[Labelled]:
    """The labelled pairs of a file, or ours with their labels for a reward.

    Raises:
        UserError: a file that cannot be read; the text names the line and what is wrong in it.
    """
    path = path or OWN_PAIRS
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"could not read the labelled pairs {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    found = [
        _labelled(line, reward, f"{path.name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise UserError(f"{path} holds no labelled pair")
    return found


def _labelled(line: str, reward: str, where: str) -> Labelled:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UserError(f'{where}: not a JSON object; a line is {{"reference": …, "prediction": …, "label": 0 or 1}}')
    texts = [row.get(name) for name in ("reference", "prediction")]
    for name, text in zip(("reference", "prediction"), texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: `{name}` holds no text")
    label = row.get("label", row.get(reward))
    if label not in (0, 1):
        raise UserError(f"{where}: `label` is 0 or 1, got {label!r}")
    return Labelled(Pair(*map(str, texts)), int(label), str(row.get("kind", "")), str(row.get("id", where)))
