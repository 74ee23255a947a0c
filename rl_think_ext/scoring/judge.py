"""Who says whether a prediction is right: a language model behind a server, or a rule in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from rl_think_ext.methods.rlpt import RLPTConfig, begins, words
from rl_think_ext.records import Score


class Pair(NamedTuple):
    """The true text, and what was predicted of it."""

    reference: str
    prediction: str


class Judge(Protocol):
    """Gives every pair 1.0 or 0.0, or the reason why there is no verdict; `stats` are those of the last call."""

    stats: Mapping[str, float]

    def __call__(self, pairs: Sequence[Pair]) -> list[Score]: ...


class RuleJudge:
    """The words of the prediction begin those of the reference (prefix), or are the same (strict)."""

    def __init__(self, config: RLPTConfig) -> None:
        self.config = config
        self.stats: Mapping[str, float] = {}

    def __call__(self, pairs: Sequence[Pair]) -> list[Score]:
        """One verdict a pair."""
        self.stats = {"num_asked": float(len(pairs))}
        if self.config.reward == "strict":
            return [Score(float(words(p.prediction) == words(p.reference))) for p in pairs]
        return [Score(float(begins(p.prediction, p.reference))) for p in pairs]


def load_judge(config: RLPTConfig, *, world_size: int = 1, time_limit: float | None = None) -> Judge:
    """The judge that the settings ask for.

    Args:
        world_size: The processes that share a server's `max_concurrency`.
        time_limit: Seconds that a call may take at most, whatever the settings say.

    Raises:
        UserError: settings that name no server or no model, or a prompt file that cannot be used.
    """
    if config.judge == "rule":
        return RuleJudge(config)
    raise NotImplementedError
