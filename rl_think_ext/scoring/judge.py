"""Who says whether a prediction is right: a language model behind a server, or a rule in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from rl_think_ext.methods.rlpt import RLPTConfig, begins, words
from rl_think_ext.records import Score

# Kinds of a missing verdict: the endpoint's failures, an answer that is cut, and one that is no verdict.
NO_VERDICT = (
    "timeout", "connection", "http", "deadline", "breaker", "unreadable", "no_text", "cut", "unparsable", "other",
)  # fmt: skip
STATS = (
    "seconds", "num_asked", "num_cached", "num_unscorable", *(f"no_verdict/{kind}" for kind in NO_VERDICT),
    "latency_p50", "latency_p95", "prompt_tokens", "completion_tokens",
    "num_canaries", "canary_wrong_accepted", "canary_right_accepted", "breaker_open", "cache_size",
)  # fmt: skip


class Pair(NamedTuple):
    """The true text, and what was predicted of it."""

    reference: str
    prediction: str


class Judge(Protocol):
    """Gives every pair 1.0 or 0.0, or the reason why there is no verdict; `stats` are those of the last call.

    `stats` always has the keys STATS, NaN where a number is not known: seconds of the call; pairs asked about, each
    once, pairs known before, pairs without a verdict, and these by kind (`no_verdict/timeout` and so on); latencies of
    the good tries in seconds; tokens as the server counts them; canaries sent, and of those with a verdict the share
    of wrong ones accepted (an alarm above 0: the judge can be talked round) and of right ones accepted (an alarm well
    below 1: it does not read); whether the breaker is open (an alarm); verdicts in memory. Alarms are for
    `canary_wrong_accepted`, `canary_right_accepted`, `breaker_open`, num_unscorable beside num_asked, and
    `latency_p95` as it nears the settings' `timeout`.
    """

    stats: Mapping[str, float]

    def __call__(self, pairs: Sequence[Pair]) -> list[Score]: ...


class RuleJudge:
    """The words of the prediction begin those of the reference (prefix), or are the same (strict)."""

    def __init__(self, config: RLPTConfig) -> None:
        self.config = config
        self.stats: Mapping[str, float] = {}

    def __call__(self, pairs: Sequence[Pair]) -> list[Score]:
        """One verdict a pair."""
        begin = time.monotonic()
        if self.config.reward == "strict":
            scores = [Score(float(words(p.prediction) == words(p.reference))) for p in pairs]
        else:
            scores = [Score(float(begins(p.prediction, p.reference))) for p in pairs]
        counts = {"num_asked": len(pairs), "num_cached": 0, "num_unscorable": 0, "num_canaries": 0}
        self.stats = dict.fromkeys(STATS, math.nan) | counts | {"seconds": time.monotonic() - begin}
        return scores


def load_judge(config: RLPTConfig, *, world_size: int = 1, time_limit: float | None = None) -> Judge:
    """The judge that the settings ask for.

    verl's generative reward model is one: its router passes OpenAI's paths on, so that `server` is the router's
    address (`dataclasses.replace(config, server=f"http://{address}")`) and `judge_model` the path the model was loaded
    from.

    Args:
        world_size: The processes that share a server's `max_concurrency`.
        time_limit: Seconds that a call may take at most, whatever the settings say.

    Raises:
        UserError: settings that name no server or no model, or a prompt or cache file that cannot be used.
    """
    if config.judge == "rule":
        return RuleJudge(config)
    from rl_think_ext.scoring.judge_served import ServedJudge

    return ServedJudge(config, num_processes=world_size, time_limit=time_limit)
