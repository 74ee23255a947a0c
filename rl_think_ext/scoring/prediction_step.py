"""What is logged of a whole step of RLPT: the same under every trainer."""

from __future__ import annotations

import torch
from torch import Tensor

from rl_think_ext.methods.groups import group_statistics
from rl_think_ext.methods.rlpt import STATUSES, TASKS
from rl_think_ext.scoring.judge import STATS
from rl_think_ext.scoring.prediction import column

# How the numbers that several judges say of a call become one; the others are counts, and are added.
LARGEST = ("seconds", "latency_p95", "breaker_open", "cache_size")
MEANS = ("latency_p50", "canary_wrong_accepted", "canary_right_accepted")


def step_metrics(table: Tensor, group_size: int | None) -> dict[str, float]:
    """Metrics of a step over the samples of every rank: the same names whatever happened (F11).

    Args:
        table: [B, len(FIELDS)], whole groups one after another; a row of NaN is an output that is not there.
        group_size: None where outputs are not compared with others to the same prompt.
    """
    there = ~column(table, "task").isnan()
    rows = table[there]
    score, status, task = (column(rows, name) for name in ("score", "status", "task"))
    metrics = {f"status/{name}": _mean((status == i).float()) for i, name in enumerate(STATUSES)}
    for i, one in enumerate(TASKS):
        metrics[f"{one}/share"] = _mean((task == i).float())
        metrics[f"{one}/score"] = _mean(score[task == i])
        metrics[f"{one}/covered"] = _mean(column(rows, "covered")[task == i])
    for name in ("length", "prediction_length", "prediction_chars"):
        metrics[name] = _mean(column(rows, name))
    judged = column(rows, "judged") == 1
    metrics["segments_covered"] = _mean(column(rows, "covered"))
    metrics["segments_covered_right"] = _mean(column(rows, "covered")[score == 1])
    metrics["prediction_repetition"] = _mean(column(rows, "repetition"))
    metrics["prediction_copied"] = _mean(column(rows, "copied"))
    metrics["truncated"] = _mean(column(rows, "unfinished"))
    metrics["no_verdict"] = _mean((judged & score.isnan()).float())
    metrics["unscorable"] = _mean(score.isnan().float())
    if group_size is None:
        return metrics | {"score": _mean(score)}
    return {**metrics, **group_statistics(column(table, "score"), group_size)}


def all_lost(table: Tensor) -> bool:
    """Whether the judge was asked and gave no verdict at all; what is wrong without a question tells nothing of it."""
    judged = column(table, "judged") == 1
    return bool(judged.any() and column(table, "score")[judged].isnan().all())


def judge_metrics(stats: Tensor) -> dict[str, float]:
    """What the judges of a step's processes say of themselves, NaN where none of them knows: the same names always.

    Args:
        stats: [R, len(STATS)], the `stats` of each process's judge, NaN where one asked nothing.
    """
    found = {f"judge_{name}": _together(name, stats[:, i]) for i, name in enumerate(STATS)}
    seen = found["judge_num_asked"] + found["judge_num_cached"]
    return found | {"judge_cache_hits": found["judge_num_cached"] / seen if seen else float(torch.nan)}


def _together(name: str, values: Tensor) -> float:
    known = values[~values.isnan()]
    if name in MEANS or not len(known):
        return _mean(known)
    return float(known.max() if name in LARGEST else known.sum())


def _mean(values: Tensor) -> float:
    return float(values.nanmean()) if values.numel() else float(torch.nan)
