"""What a run of RLPT keeps of a batch: each output with the segment that it is about, enough to judge it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_think_ext.data.segment_rows import segment_of
from rl_think_ext.errors import UserError

if TYPE_CHECKING:
    from rl_think_ext.scoring.prediction import Predictions, Segment
    from rl_think_ext.scoring.preference import Output

# What a sample needs to be judged again: its segment, and the output as the reward read it, tags included.
COLUMNS = ("task", "context", "next_segment", "reference", "segment_ends", "said", "unfinished")
SCORES = ("score", "unscorable")


def rollout_table(
    step: int,
    ids: Sequence[Any],
    segments: Sequence[Segment],
    outputs: Sequence[Output],
    found: Predictions,
    paid: Sequence[float | None],
) -> Any:
    """A batch as a table of pyarrow.

    Args:
        ids: Of the rows.
        found: What was judged.
        paid: The scores as they were trained, where equal predictions have one.
    """
    import pyarrow as pa

    text = pa.string()
    reasons = [score.reason if value is None else None for score, value in zip(found.scores, paid, strict=True)]
    return pa.table(
        {
            "id": pa.array([None if name is None else str(name) for name in ids], text),
            "step": pa.array([step] * len(segments), pa.int64()),
            "task": pa.array([segment.task for segment in segments], text),
            "context": pa.array([_whole(segment.context) for segment in segments], text),
            "next_segment": pa.array([_whole(segment.next_segment) for segment in segments], text),
            "reference": pa.array([_whole(segment.reference.text) for segment in segments], text),
            "segment_ends": pa.array([list(segment.reference.ends) for segment in segments], pa.list_(pa.int32())),
            "said": pa.array([_whole(output.text) for output in outputs], text),
            "unfinished": pa.array([not output.finished for output in outputs], pa.bool_()),
            "status": pa.array([prediction.status for prediction in found.predictions], text),
            "score": pa.array(paid, pa.float32()),
            "unscorable": pa.array(reasons, text),
        }
    )


def kept_texts(segment: Segment, output: Output, reference: str) -> dict[str, str]:
    """The same in texts alone, for verl's dumps, whose reference is the part that the judge is shown."""
    ends = [end for end in segment.reference.ends if end <= len(reference)]
    return {
        "reference": reference,
        "segment_ends": json.dumps(ends),
        "context": segment.context,
        "next_segment": segment.next_segment,
        "said": output.text,
    }


def _whole(text: str) -> str:
    """A text that Parquet can hold: half characters, which come out of bytes that are no text, are replaced."""
    return text.encode("utf-8", "replace").decode()


def sample_of(row: Mapping[str, Any], where: str) -> tuple[Segment, Output]:
    """The segment and the output of a row that a run has kept.

    Raises:
        UserError: a column that is missing or holds something else.
    """
    from rl_think_ext.scoring.preference import Output

    ends = row.get("segment_ends")
    # verl's dumps hold what is no number and no text as text.
    given = {**row, "segment_ends": json.loads(ends)} if isinstance(ends, str) else row
    if not isinstance(row.get("said"), str) or not isinstance(row.get("unfinished"), (bool, int, float)):
        raise UserError(f"{where}: no output under `said` and `unfinished`")
    return segment_of(given, where), Output(str(row["said"]), not row["unfinished"])
