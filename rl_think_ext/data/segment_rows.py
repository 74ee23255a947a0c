"""The row of an RLPT dataset: one set of columns for TRL and verl, and the one way back from a row to its segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import TASKS, Reference

if TYPE_CHECKING:
    from rl_think_ext.scoring.prediction import Segment


class SegmentRow(TypedDict):
    """One position of one text, as RLPT asks about it.

    `position` is where the reference begins in the document, in characters, and `context` ends just there. The
    segments of `reference` end at `segment_ends`, the last of them with it. `next_segment` is what the prompt of MSR
    shows behind the mask, the white space before it included; "" for ASR.
    """

    id: str
    prompt: list[dict[str, str]] | str
    task: str
    context: str
    next_segment: str
    reference: str
    segment_ends: list[int]
    source: str
    position: int


REQUIRED = ("prompt", "task", "context", "reference", "segment_ends")


def schema(form: str = "chat") -> Any:
    """The columns of a dataset whose prompts are chats, or texts (form "text"), for pyarrow."""
    import pyarrow as pa

    text = pa.string()
    chat = pa.list_(pa.struct([("role", text), ("content", text)]))
    return pa.schema(
        [
            ("id", text),
            ("prompt", chat if form == "chat" else text),
            *[(name, text) for name in ("task", "context", "next_segment", "reference")],
            ("segment_ends", pa.list_(pa.int32())),
            ("source", text),
            ("position", pa.int64()),
        ]
    )


def segment_of(row: Mapping[str, Any], where: str) -> Segment:
    """What a row asks about; columns that are not RLPT's are not looked at (F42: no address comes from data).

    Args:
        where: The row in words, for errors ("row 3 of data/rlpt").

    Raises:
        UserError: a column that is missing or holds something else, named with the row (F32, F33).

    >>> row = {"task": "asr", "context": "It rained. ", "reference": "We left.", "segment_ends": [8]}
    >>> segment_of(row, "row 1").reference.first
    'We left.'
    """
    from rl_think_ext.scoring.prediction import Segment

    task = _text(row, "task", where)
    if task not in TASKS:
        raise UserError(f"{where}: column `task` is one of {', '.join(TASKS)}, got {task[:40]!r}")
    reference = _text(row, "reference", where)
    try:
        found = Reference(reference, _ends(row, where))
    except ValueError as error:
        raise UserError(f"{where}: column `segment_ends` does not fit column `reference`: {error}") from error
    shown = _text(row, "next_segment", where, missing="")
    if bool(shown) != (task == "msr"):
        is_there = "is empty" if task == "msr" else "holds a text"
        raise UserError(
            f"{where}: column `next_segment` {is_there}, for task {task}; msr shows what follows, asr does not"
        )
    return Segment(task, _text(row, "context", where), found, shown)


def _text(row: Mapping[str, Any], name: str, where: str, missing: str | None = None) -> str:
    value = row.get(name)
    if value is None and missing is not None:
        return missing
    if value is None:
        raise UserError(f"{where}: {_absent(row, name)}; build the data with `rl-think data rlpt`")
    if not isinstance(value, str):
        raise UserError(f"{where}: column `{name}` holds {type(value).__name__}, expected text")
    return value


def _ends(row: Mapping[str, Any], where: str) -> tuple[int, ...]:
    value = row.get("segment_ends")
    if value is None:
        raise UserError(f"{where}: {_absent(row, 'segment_ends')}; build the data with `rl-think data rlpt`")
    # Arrow, numpy and torch give their own kinds of lists.
    listed = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(listed, (list, tuple)) or any(type(end) is not int for end in listed):
        raise UserError(f"{where}: column `segment_ends` holds {str(value)[:40]!r}, expected a list of whole numbers")
    return tuple(listed)


def _absent(row: Mapping[str, Any], name: str) -> str:
    return f"column `{name}` is None" if name in row else f"there is no column `{name}`"
