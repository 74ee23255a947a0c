"""A rule reward for runs that need none of ours: the share of a response that is one letter."""

from __future__ import annotations

from typing import Any


def share_of_letter(data_source: str, solution_str: str, ground_truth: str, extra_info: Any, **_: Any) -> float:
    letters = solution_str.split()
    return letters.count(ground_truth) / max(1, len(letters))
