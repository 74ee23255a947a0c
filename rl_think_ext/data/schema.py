"""The row of an RLP dataset: one set of columns for TRL and verl."""

from __future__ import annotations

from typing import TypedDict


class Row(TypedDict, total=False):
    """One position of one text.

    `prompt` is what the policy is shown: the context with the elicitation around it. `context_ids` and
    `target_ids` are there when the text was cut on token ids, and then they decide; otherwise `context` and
    `target` are encoded apart (F31).
    """

    id: str
    prompt: str
    context: str
    target: str
    context_ids: list[int]
    target_ids: list[int]
    source: str
    position: int


REQUIRED = ("prompt", "context", "target")
