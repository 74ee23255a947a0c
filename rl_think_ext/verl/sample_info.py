"""A sample on its way between verl's processes: the row that it answers, and what a reward worker says of it.

verl puts samples' extra values into arrays and takes means of what is a number: every sample has the same keys, what is
not there is None, and texts stay texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_think_ext.errors import UserError
from rl_think_ext.messages import messages_of
from rl_think_ext.records import Score

# The reason why a sample has no score, empty where it has one; the name is the trainer's.
UNSCORABLE = "unscorable"
Info = dict[str, Any]


@dataclass(frozen=True)
class SampleForm:
    """The keys under which the samples of a method say what is known of them.

    Args:
        method: Its name: what the keys begin with, but for UNSCORABLE.
        loop: The agent loop that answers its samples.
        fields: The columns of the scorer's table.
        names: What the numbers of a column stand for, where it is told by name.
        texts: What is told beside the table.
        sums: Counts of the call that held the sample, which has its share of them.
        largest: Numbers of that call, of which the largest of a step is meant.
        means: Numbers of that call, of which the mean over a step's samples is meant.
        dumped: Columns of the table that the dumps of rollouts show.
    """

    method: str
    loop: str
    fields: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    texts: tuple[str, ...]
    sums: tuple[str, ...]
    largest: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    dumped: tuple[str, ...] = ("score",)

    @property
    def prefix(self) -> str:
        """What the keys begin with."""
        return f"{self.method}/"

    @property
    def fatal_key(self) -> str:
        """What ends the run: an exception in a reward worker would only cost the sample's group (verl goes on)."""
        return self.prefix + "fatal"

    @property
    def numbers(self) -> tuple[str, ...]:
        """The keys of the table's numbers."""
        return tuple(self.prefix + name for name in self.fields if name not in self.names)

    @property
    def shown(self) -> tuple[str, ...]:
        """What the dumps of rollouts say of a sample, beside what it was paid."""
        return tuple(self.prefix + name for name in (*self.names, *self.texts, *self.dumped))

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them."""
        stats = (*self.largest, *self.sums, *self.means)
        told = tuple(self.prefix + name for name in (*self.names, *self.texts, *stats))
        return (*self.numbers, *told, UNSCORABLE, self.fatal_key)

    def infos(
        self,
        table: Tensor,
        texts: Sequence[Mapping[str, str | None]],
        scores: Sequence[Score],
        stats: Mapping[str, float],
    ) -> list[Info]:
        """What is said of each output of one call of a scorer.

        Args:
            table: [N, len(fields)].
            texts: Of each output, `texts` by their names.
            scores: Of each output.
            stats: Of the call.
        """
        num = max(1, len(scores))
        shared: Info = {name: _number(stats.get(name, math.nan)) for name in (*self.largest, *self.means)}
        shared |= {name: _number(stats.get(name, 0.0) / num) for name in self.sums}
        return [
            {
                self.prefix + name: value
                for name, value in {**self._told(row), **{key: said[key] for key in self.texts}, **shared}.items()
            }
            | {UNSCORABLE: score.reason or "", self.fatal_key: ""}
            for row, said, score in zip(table.tolist(), texts, scores, strict=True)
        ]

    def fatal(self, error: BaseException | str) -> Info:
        """What a sample says when the run cannot go on."""
        text = str(error) if isinstance(error, UserError | str) else f"{type(error).__name__}: {error}"
        return dict.fromkeys(self.keys) | {UNSCORABLE: "the run ended", self.fatal_key: text}

    def check(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Raise what a worker could not.

        Raises:
            UserError: what ended the run there, or samples that the reward manager has not seen.
        """
        for info in infos:
            if info.get(self.fatal_key):
                raise UserError(str(info[self.fatal_key]))
            if self.fatal_key not in info:
                raise UserError(
                    f"a sample comes without what the reward manager `{self.method}` says of it: say "
                    f"`reward.reward_manager.name: {self.method}`, and let no agent loop but `{self.loop}` answer"
                )

    def table(self, infos: Sequence[Mapping[str, Any]]) -> Tensor:
        """[N, len(fields)] as the scorer had it, out of what the samples say."""
        rows = [[self._value(name, info[self.prefix + name]) for name in self.fields] for info in infos]
        return torch.tensor(rows, dtype=torch.float32).view(-1, len(self.fields))

    def stats(self, infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The calls' numbers over samples: the largest ones, sums, and means; NaN where none was measured."""
        return {name: self._over(name, infos) for name in (*self.largest, *self.sums, *self.means)}

    def _over(self, name: str, infos: Sequence[Mapping[str, Any]]) -> float:
        told = [_float(info[self.prefix + name]) for info in infos]
        known = [value for value in told if value == value]
        if not known:
            return math.nan
        return max(known) if name in self.largest else sum(known) / (len(known) if name in self.means else 1)

    def _told(self, row: Sequence[float]) -> Info:
        """A row of the table, with names in place of their numbers."""
        return {
            name: self.names[name][int(value)] if name in self.names else _number(value)
            for name, value in zip(self.fields, row, strict=True)
        }

    def _value(self, name: str, told: Any) -> float:
        return float(self.names[name].index(told)) if name in self.names else _float(told)


@dataclass(frozen=True)
class Settled:
    """N samples: what each is paid, which of them differ from their group by noise alone, and the step's metrics."""

    scores: tuple[Score, ...]
    quiet: tuple[bool, ...]
    metrics: Mapping[str, float]


def chat_of(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The raw chat of a sample, out of verl's `raw_prompt`: a list or an array of messages, or a text.

    Raises:
        UserError: anything else, naming the row (F32).
    """
    return messages_of(plain(row.get("raw_prompt")), f"{place_of(row)}, `raw_prompt`")


def place_of(row: Mapping[str, Any]) -> str:
    """The words that name a row in an error: as its dataset says, else by its index."""
    told = plain(row.get("think_row"))
    if isinstance(told, Mapping) and told.get("where"):
        return str(told["where"])
    return f"row {row['index']}" if row.get("index") is not None else "a row of the batch"


def plain(value: Any) -> Any:
    """A value of verl's without the array around it."""
    return value.tolist() if hasattr(value, "tolist") else value


def scores_of(rewards: Sequence[float], infos: Sequence[Mapping[str, Any]]) -> list[Score]:
    """What each sample is paid: a number, or the reason why there is none."""
    return [
        Score(value) if value == value else Score.unscorable(str(info[UNSCORABLE]) or "no score in its step")
        for value, info in zip(rewards, infos, strict=True)
    ]


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """A mean of nothing is no number, and a logger of verl's would draw it."""
    return {name: value for name, value in metrics.items() if value == value}


def _number(value: float) -> float | None:
    return float(value) if value == value else None


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
