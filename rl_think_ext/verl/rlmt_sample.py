"""A sample of RLMT on its way between verl's processes: the chat that it answers, and what the reward worker says.

verl puts samples' extra values into arrays and takes means of what is a number: every sample has the same keys, what is
not there is None, and texts stay texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rl_think_ext.errors import UserError
from rl_think_ext.messages import messages_of
from rl_think_ext.methods.rlmt import STATUSES
from rl_think_ext.records import Score
from rl_think_ext.scoring.preference import FIELDS, Preferences

PREFIX = "rlmt/"
# The reason why a sample has no score, empty where it has one; the name is the trainer's.
UNSCORABLE = "unscorable"
# What ends the run: an exception in a reward worker would only cost the sample's group (verl logs it and goes on).
FATAL = PREFIX + "fatal"
NUMBERS = tuple(PREFIX + name for name in FIELDS if name != "status")
TEXTS = tuple(PREFIX + name for name in ("status", "thought", "answer"))
# Of the reward model's call that held the sample: the largest noise, and the sample's share of the rest.
STATS = tuple(PREFIX + name for name in ("noise", "seconds", "num_asked", "num_cached"))
KEYS = (*NUMBERS, *TEXTS, *STATS, UNSCORABLE, FATAL)
# What the dumps of rollouts say of a sample, beside what it was paid.
SHOWN = (*TEXTS, PREFIX + "score")

Info = dict[str, Any]


def chat_of(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The raw chat of a sample, out of verl's `raw_prompt`: a list or an array of messages, or a text.

    Raises:
        UserError: anything else, naming the row (F32).
    """
    value: Any = row.get("raw_prompt")
    if hasattr(value, "tolist"):
        value = value.tolist()
    return messages_of(value, f"{place_of(row)}, `raw_prompt`")


def place_of(row: Mapping[str, Any]) -> str:
    """The words that name a row in an error: as its dataset says, else by its index."""
    told: Any = row.get("think_row")
    if hasattr(told, "item"):
        told = told.item()
    if isinstance(told, Mapping) and told.get("where"):
        return str(told["where"])
    return f"row {row['index']}" if row.get("index") is not None else "a row of the batch"


def infos_of(found: Preferences) -> list[Info]:
    """What is said of each output of one call of the reward model."""
    num = max(1, len(found.parts))
    shared: Info = {STATS[0]: _number(found.stats.get("noise", math.nan))}
    shared |= {name: float(found.stats.get(name.removeprefix(PREFIX), 0.0)) / num for name in STATS[1:]}
    return [
        {PREFIX + name: _number(value) for name, value in zip(FIELDS, row, strict=True)}
        | {PREFIX + "status": part.status, PREFIX + "thought": part.thought, PREFIX + "answer": part.answer}
        | shared
        | {UNSCORABLE: score.reason or "", FATAL: ""}
        for row, part, score in zip(found.table.tolist(), found.parts, found.scores, strict=True)
    ]


def fatal(error: BaseException | str) -> Info:
    """What a sample says when the run cannot go on."""
    text = str(error) if isinstance(error, UserError | str) else f"{type(error).__name__}: {error}"
    return dict.fromkeys(KEYS) | {UNSCORABLE: "the run ended", FATAL: text}


def check_infos(infos: Sequence[Mapping[str, Any]]) -> None:
    """Raise what a worker could not.

    Raises:
        UserError: what ended the run there, or samples that the reward manager has not seen.
    """
    for info in infos:
        if info.get(FATAL):
            raise UserError(str(info[FATAL]))
        if FATAL not in info:
            raise UserError(
                "a sample comes without what the reward manager `rlmt` says of it: say "
                "`reward.reward_manager.name: rlmt`, and let no agent loop but `rl_think_chat` answer"
            )


def table_of(infos: Sequence[Mapping[str, Any]]) -> Tensor:
    """[N, len(FIELDS)] as `Preferences` has it, out of what the samples say."""
    columns = [
        [
            float(STATUSES.index(info[PREFIX + name])) if name == "status" else _float(info[PREFIX + name])
            for name in FIELDS
        ]
        for info in infos
    ]
    return torch.tensor(columns, dtype=torch.float32).view(-1, len(FIELDS))


def stats_of(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The reward model's counts over samples: the largest noise, 0 where none was measured, and sums."""
    noise = [_float(info[STATS[0]]) for info in infos]
    found = {"noise": max((value for value in noise if value == value), default=0.0)}
    return found | {name.removeprefix(PREFIX): sum(_float(info[name]) for info in infos) for name in STATS[1:]}


def scores_of(rewards: Sequence[float], infos: Sequence[Mapping[str, Any]]) -> list[Score]:
    """What each sample is paid: a number, or the reason why there is none."""
    return [
        Score(value) if value == value else Score.unscorable(str(info[UNSCORABLE]) or "no score in its step")
        for value, info in zip(rewards, infos, strict=True)
    ]


def _number(value: float) -> float | None:
    return float(value) if value == value else None


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
