"""Outputs read for their predictions, and the predictions judged: what RLPT's reward is made of.

Nothing here knows a trainer. Only a prediction reaches the judge; the reasoning before it never does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rl_think_ext.methods.rlpt import STATUSES, TASKS, Prediction, Reference, RLPTConfig, Task, read_prediction
from rl_think_ext.records import Score
from rl_think_ext.scoring.preference import COPY_LENGTH, Output, repetition

if TYPE_CHECKING:
    from rl_think_ext.scoring.judge import Judge

FIELDS = (
    "score",
    "task",
    "status",
    "judged",
    "length",
    "prediction_length",
    "prediction_chars",
    "covered",
    "unfinished",
    "repetition",
    "copied",
)


@dataclass(frozen=True)
class Segment:
    """One position of a text as RLPT asks about it.

    `next_segment` is what the prompt of MSR shows behind the mask; "" for ASR.
    """

    task: Task
    context: str
    reference: Reference
    next_segment: str = ""


@dataclass(frozen=True)
class Predictions:
    """N outputs: what they predict, their scores, and a table [N, len(FIELDS)] float32, NaN where there is no number.

    `task` and `status` are indices of TASKS and STATUSES; `judged` is 1 where the judge was asked; `length` and
    `prediction_length` are in tokens; `covered` counts the reference's segments that are as long as the prediction;
    `repetition` is the share of a prediction's bytes that compression saves, `copied` is 1 where it stands word for
    word in what the prompt shows (F27). `stats` are the judge's own of this call.
    """

    predictions: tuple[Prediction, ...]
    scores: tuple[Score, ...]
    table: torch.Tensor
    stats: Mapping[str, float]

    def column(self, name: str) -> torch.Tensor:
        """One field of all outputs, [N]."""
        return column(self.table, name)


def column(table: torch.Tensor, name: str) -> torch.Tensor:
    """One field of a table, [N]."""
    return table[:, FIELDS.index(name)]


class PredictionScorer:
    """Reads outputs and asks a judge about their predictions.

    Args:
        config: RLPT's settings.
        judge: Compares pairs of texts.
        lengths: Tokens of some texts, for the metrics; characters where nothing is given.
    """

    def __init__(
        self, config: RLPTConfig, judge: Judge, lengths: Callable[[list[str]], Sequence[int]] | None = None
    ) -> None:
        self.config, self.judge = config, judge
        self.lengths = lengths or (lambda texts: [len(text) for text in texts])

    def __call__(self, segments: Sequence[Segment], outputs: Sequence[Output]) -> Predictions:
        """Score one output per segment."""
        from rl_think_ext.scoring.judge import Pair

        config = self.config
        found = tuple(
            read_prediction(output.text, segment.reference, config, finished=output.finished)
            for segment, output in zip(segments, outputs, strict=True)
        )
        asked = [i for i, prediction in enumerate(found) if prediction.status == "ok"]
        pairs = [Pair(segments[i].reference.shown(config.reward), str(found[i].text)) for i in asked]
        verdicts = dict(zip(asked, self.judge(pairs), strict=True)) if asked else {}
        stats = dict(self.judge.stats) if asked else {}
        scores = tuple(verdicts.get(i) or self._unasked(prediction) for i, prediction in enumerate(found))
        texts = [prediction.text for prediction in found]
        rows = zip(
            (math.nan if score.value is None else score.value for score in scores),
            (float(TASKS.index(segment.task)) for segment in segments),
            (float(STATUSES.index(prediction.status)) for prediction in found),
            (float(i in verdicts) for i in range(len(found))),
            self._lengths([output.text for output in outputs]),
            self._lengths(texts),
            (math.nan if text is None else float(len(text)) for text in texts),
            (
                math.nan if text is None else segment.reference.num_covered(text)
                for segment, text in zip(segments, texts, strict=True)
            ),
            (float(not output.finished) for output in outputs),
            (math.nan if text is None else repetition(text) for text in texts),
            (
                math.nan if text is None else _copied(segment, text)
                for segment, text in zip(segments, texts, strict=True)
            ),
            strict=True,
        )
        return Predictions(found, scores, torch.tensor(list(rows), dtype=torch.float32).view(-1, len(FIELDS)), stats)

    def _unasked(self, prediction: Prediction) -> Score:
        """What an output is worth about which nobody is asked."""
        if prediction.text is None and self.config.malformed == "unscorable":
            return Score.unscorable(f"no prediction: {prediction.status}")
        return Score(0.0)

    def _lengths(self, texts: Sequence[str | None]) -> list[float]:
        """The lengths of the texts that are there, NaN for those that are not."""
        there = [text for text in texts if text is not None]
        found = iter(self.lengths(there) if there else ())
        return [math.nan if text is None else float(next(found)) for text in texts]


def _copied(segment: Segment, prediction: str) -> float:
    """Whether a prediction was copied from what the prompt shows; a few words may well stand there twice."""
    if len(prediction) < COPY_LENGTH:
        return 0.0
    text = _one_line(prediction)
    return float(text in _one_line(segment.context) or text in _one_line(segment.next_segment))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
