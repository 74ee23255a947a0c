"""What a judge's verdicts on labelled pairs say about it: errors with their intervals, repeatability, speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rl_think_ext.methods.interval import Interval, share_interval
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.offline.judge_pairs import Labelled
from rl_think_ext.records import Score

OUTCOMES = ("right accepted", "wrong rejected", "wrong accepted", "right rejected", "no verdict")
# Of the kinds of missing verdicts those that no answer came with.
NO_REPLY = ("timeout", "connection", "http", "deadline", "breaker", "unreadable", "no_text", "other")


def agreement(labelled: Sequence[Labelled], scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracy and errors with their intervals, the outcomes counted, and every disagreement, the worst first.

    The shares are of the pairs with a verdict; `no_verdict` is of all.
    """
    outcomes = [_outcome(one.label, score) for one, score in zip(labelled, scores, strict=True)]
    num = {outcome: outcomes.count(outcome) for outcome in OUTCOMES}
    right = num["right accepted"] + num["wrong rejected"]
    wrong_answered = num["wrong accepted"] + num["wrong rejected"]
    right_answered = num["right accepted"] + num["right rejected"]
    cases = [
        {"id": one.where, "kind": one.kind, "outcome": outcome, **one.pair._asdict(), "reason": score.reason}
        for one, score, outcome in zip(labelled, scores, outcomes, strict=True)
    ]
    return {
        "num_pairs": len(labelled),
        "outcomes": num,
        "accuracy": _interval(share_interval(right, wrong_answered + right_answered)),
        "wrong_accepted": _interval(share_interval(num["wrong accepted"], wrong_answered)),
        "right_rejected": _interval(share_interval(num["right rejected"], right_answered)),
        "no_verdict": _interval(share_interval(num["no verdict"], len(labelled))),
        "disagreements": [case for outcome in OUTCOMES[2:] for case in cases if case["outcome"] == outcome],
    }


def _outcome(label: int, score: Score) -> str:
    if score.value is None:
        return "no verdict"
    if score.value == label:
        return "right accepted" if label else "wrong rejected"
    return "wrong accepted" if score.value else "right rejected"


def repeatability(first: Sequence[Score], second: Sequence[Score]) -> dict[str, Any]:
    """The share of the pairs with two verdicts that got the same one twice."""
    both = [
        a.value == b.value for a, b in zip(first, second, strict=True) if a.value is not None and b.value is not None
    ]
    return {"num_pairs": len(both), "same": _interval(share_interval(sum(both), len(both)))}


def load(
    settings: RLPTConfig, stats: Mapping[str, float], batch_size: int | None, step_seconds: float | None
) -> dict[str, Any]:
    """What the judge was measured to do, and what a step of `batch_size` predictions in `step_seconds` asks of it.

    Measured with the requests of this check at once, at most `max_concurrency`: fewer pairs than that show less than
    the server can do.
    """
    silent = sum(stats[f"no_verdict/{kind}"] for kind in NO_REPLY) if stats["num_unscorable"] else 0.0
    # Equal pairs are asked once and counted each; where none was answered, no canary was either.
    num_answers = stats["num_asked"] - silent + stats["num_canaries"] if silent < stats["num_asked"] else 0.0
    per_request = {
        what: stats[f"{what}_tokens"] / num_answers if num_answers else math.nan for what in ("prompt", "completion")
    }
    measured = num_answers / stats["seconds"] if stats["seconds"] else math.nan
    found: dict[str, Any] = {
        **{f"{what}_tokens_per_request": value for what, value in per_request.items()},
        "measured_requests_per_second": measured,
        "measured_tokens_per_second": measured * sum(per_request.values()),
        "at_once": min(settings.max_concurrency, int(stats["num_asked"] + stats["num_canaries"])),
    }
    if batch_size is None or step_seconds is None:
        return found
    requests = batch_size + settings.num_canaries
    needed = requests / step_seconds
    return found | {
        "requests_per_step": requests,
        "step_seconds": step_seconds,
        "needed_requests_per_second": needed,
        "needed_tokens_per_second": needed * sum(per_request.values()),
        "seconds_per_step": requests / measured if measured else math.inf,
        "keeps_up": measured >= needed,
    }


def _interval(found: Interval) -> dict[str, float]:
    return {"share": found.mean, "low": found.low, "high": found.high, "num": found.num_values}
