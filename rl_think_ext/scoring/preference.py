"""Outputs taken apart and their answers scored by a preference model: what RLMT's reward is made of.

Nothing here knows a trainer. A thought leaves this file only in a record of the output, never on the way to the model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rl_think_ext.messages import Message
from rl_think_ext.methods.rlmt import STATUSES, RLMTConfig, reward_messages
from rl_think_ext.records import Parts, Score
from rl_think_ext.scoring.reward_model import RewardModel

FIELDS = (
    "score",
    "malformed",
    "status",
    "thought_length",
    "answer_length",
    "unfinished",
    "num_cut",
    "repetition",
    "copied",
)
# Characters from which a prompt that stands in an answer is no coincidence.
COPY_LENGTH = 32


class Output(NamedTuple):
    """What a policy wrote, and whether it came to its end before the length limit."""

    text: str
    finished: bool = True


@dataclass(frozen=True)
class Preferences:
    """N outputs: their parts, their scores, and a table [N, len(FIELDS)] float32, NaN where there is no number.

    `malformed` is 1 where the settings score no answer because the form is not there; `status` is an index of
    STATUSES; lengths are in tokens; `num_cut` counts the prompt's tokens that the reward model has no room for;
    `repetition` is the share of an answer's bytes that compression saves, `copied` is 1 where the prompt's last message
    stands in the answer word for word (F27).
    `stats` are the reward model's own of this call.
    """

    parts: tuple[Parts, ...]
    scores: tuple[Score, ...]
    table: torch.Tensor
    stats: Mapping[str, float]

    def column(self, name: str) -> torch.Tensor:
        """One field of all outputs, [N]."""
        return column(self.table, name)


def column(table: torch.Tensor, name: str) -> torch.Tensor:
    """One field of a table, [N]."""
    return table[:, FIELDS.index(name)]


class PreferenceScorer:
    """Splits outputs and asks a reward model for the answers.

    Args:
        config: RLMT's settings.
        model: Scores conversations.
        lengths: Tokens of some texts, for the metrics; characters where nothing is given.
    """

    def __init__(
        self, config: RLMTConfig, model: RewardModel, lengths: Callable[[list[str]], Sequence[int]] | None = None
    ) -> None:
        self.config, self.model = config, model
        self.lengths = lengths or (lambda texts: [len(text) for text in texts])

    def __call__(
        self, chats: Sequence[Sequence[Message]], outputs: Sequence[Output], *, prefilled: bool = False
    ) -> Preferences:
        """Score one output per chat; chats are raw, as they were before any template of the policy."""
        config = self.config
        parts = tuple(config.split(output.text, finished=output.finished, prefilled=prefilled) for output in outputs)
        asked = [i for i, part in enumerate(parts) if part.answer is not None]
        shown = [reward_messages(chats[i], parts[i], score=config.score, text=outputs[i].text.strip()) for i in asked]
        # The model counts what one call asked: a call without a question would repeat the numbers of the last one.
        found = dict(zip(asked, self.model(shown), strict=True)) if asked else {}
        stats = dict(self.model.stats) if asked else {}
        scores = tuple(found.get(i, Score.unscorable(f"malformed: {part.status}")) for i, part in enumerate(parts))
        rows = zip(
            (math.nan if score.value is None else score.value for score in scores),
            (float(part.answer is None) for part in parts),
            (float(STATUSES.index(part.status)) for part in parts),
            self._lengths([part.thought for part in parts]),
            self._lengths([part.answer for part in parts]),
            (float(not output.finished) for output in outputs),
            (float(score.metrics.get("num_cut", 0.0)) for score in scores),
            (math.nan if part.answer is None else repetition(part.answer) for part in parts),
            (
                math.nan if part.answer is None else _copied(chat, part.answer)
                for chat, part in zip(chats, parts, strict=True)
            ),
            strict=True,
        )
        return Preferences(parts, scores, torch.tensor(list(rows), dtype=torch.float32).view(-1, len(FIELDS)), stats)

    def _lengths(self, texts: Sequence[str | None]) -> list[float]:
        """The lengths of the texts that are there, NaN for those that are not."""
        there = [text for text in texts if text is not None]
        found = iter(self.lengths(there) if there else ())
        return [math.nan if text is None else float(next(found)) for text in texts]


def repetition(text: str) -> float:
    """The share of a text's bytes that compression saves, from 0: it rises when a text says the same again and again.

    >>> repetition("Blue."), repetition("Blue. " * 100) > 0.9
    (0.0, True)
    """
    data = text.encode("utf-8", "surrogatepass")
    return max(0.0, 1.0 - len(zlib.compress(data, 1)) / max(1, len(data)))


def _copied(chat: Sequence[Message], answer: str) -> float:
    asked = chat[-1]["content"].strip() if chat else ""
    return float(len(asked) >= COPY_LENGTH and asked in answer)


def preference_metrics(table: torch.Tensor, stated_floor: float | None = None) -> dict[str, float]:
    """Means over all outputs of a step, of every rank: the same names whatever happened.

    Args:
        table: [N, len(FIELDS)].
        stated_floor: The floor in the settings: the share of scores below it says that it lies too high.
    """
    status, score = column(table, "status"), column(table, "score")
    answered = column(table, "malformed") == 0
    metrics = {f"status/{name}": float((status == i).float().mean()) for i, name in enumerate(STATUSES)}
    for name in ("thought_length", "answer_length"):
        metrics[name] = float(column(table, name).nanmean())
    metrics["answer_repetition"] = float(column(table, "repetition").nanmean())
    metrics["answer_copies_prompt"] = float(column(table, "copied").nanmean())
    below = score < (-torch.inf if stated_floor is None else stated_floor)
    return metrics | {
        "truncated": float(column(table, "unfinished").mean()),
        "no_score": float((answered & score.isnan()).float().mean()),
        "prompts_cut": float((column(table, "num_cut") > 0).float().mean()),
        "below_floor": float(below.float().mean()),
    }
