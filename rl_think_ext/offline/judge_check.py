"""A judge before it is trusted with a run: agreement with labelled pairs, repeatability, canaries, speed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.offline.config import block_of, with_set
from rl_think_ext.offline.judge_agreement import agreement, load, repeatability
from rl_think_ext.offline.judge_pairs import Labelled, read_pairs
from rl_think_ext.offline.store import write_whole
from rl_think_ext.records import Score
from rl_think_ext.scoring.endpoint_wire import public
from rl_think_ext.scoring.judge import Judge, load_judge
from rl_think_ext.scoring.judge_served import ServedJudge

A_DAY = 86400.0  # seconds


@dataclass(frozen=True, kw_only=True)
class JudgeCheckConfig:
    """Ask a judge about labelled pairs: does it agree with the labels, does it repeat itself, is it fast enough?

    rl-think judge check --config run.yaml --batch-size 512 --step-seconds 120

    rl-think judge check --server http://localhost:8000 --judge-model Qwen/Qwen3-8B --pairs labelled.jsonl

    A pair is a line such as {"reference": "…", "prediction": "…", "label": 1}: 1 where the judge has to say that the
    prediction is right. Pairs of your own texts, 100 and more, say most; without --pairs some forty of ours are asked.
    What to look at first is the share of wrong predictions that are accepted: a policy finds these and repeats them.
    """

    config: Path | None = None
    """A YAML file with a `rl_think: rlpt:` block, such as a run's own."""
    server: str | None = None
    """Address of the judge, over that of --config."""
    judge_model: str | None = None
    """The judge's name on the server, over that of --config."""
    set: list[str] = field(default_factory=list)
    """Settings of RLPT by name, over those of --config: --set reward=strict judge_thinking=false."""
    pairs: Path | None = None
    """Labelled pairs, JSON lines of reference, prediction and label; without it ours."""
    twice: bool | None = None
    """Ask every pair twice; without it where the judge samples (judge_temperature above 0)."""
    batch_size: int | None = None
    """Predictions of a training step, all ranks and groups together: is the judge fast enough for them?"""
    step_seconds: float | None = None
    """Seconds that a step may spend on the judge."""
    output: Path | None = None
    """A JSON file of everything that is found, every pair included."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"`batch_size` is at least 1, got {self.batch_size}")
        if self.step_seconds is not None and not 0 < self.step_seconds < math.inf:
            raise UserError(f"`step_seconds` is a number above 0, got {self.step_seconds}")
        if (self.batch_size is None) != (self.step_seconds is None):
            raise UserError("--batch-size and --step-seconds belong together: give both, or neither")

    def rlpt(self) -> RLPTConfig:
        """RLPT's settings: the file's, --set over them, the flags over both; without cache and a step's deadline.

        Raises:
            UserError: an unknown key or a wrong value.
        """
        own = {name: getattr(self, name) for name in ("server", "judge_model") if getattr(self, name) is not None}
        where = str(self.config or "settings")
        found = with_set(RLPTConfig, block_of(self.config, "rlpt"), self.set, own, where)
        return dataclasses.replace(found, cache_file=None, cache_size=0, deadline=max(found.deadline, A_DAY))


def run_check(config: JudgeCheckConfig, told: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Ask and compare; writes --output, returns what it holds.

    Args:
        told: Called with the answers that are there and those that are to come.

    Raises:
        UserError: settings, a server or pairs that cannot be used.
    """
    settings = config.rlpt()
    labelled = read_pairs(config.pairs, settings.reward)
    judge = load_judge(settings)
    twice = settings.judge_temperature > 0 if config.twice is None else config.twice
    scores, stats = _asked(judge, labelled, told)
    again = _asked(judge, labelled, told)[0] if twice else None
    found = {
        "judge": public(settings),
        "pairs": str(config.pairs or "the package's own"),
        **agreement(labelled, scores),
        "repeated": None if again is None else repeatability(scores, again),
        "stats": stats,
        "load": load(settings, stats, config.batch_size, config.step_seconds),
        "answers": [
            {"id": one.where, "kind": one.kind, **one.pair._asdict(), "label": one.label, "verdict": score.value}
            | ({} if score.reason is None else {"reason": score.reason})
            for one, score in zip(labelled, scores, strict=True)
        ],
    }
    if config.output is not None:
        _write(config.output, found)
    return found


def _asked(
    judge: Judge, labelled: Sequence[Labelled], told: Callable[[int, int], None]
) -> tuple[list[Score], dict[str, float]]:
    """Scores and stats of one pass over all pairs."""
    if isinstance(judge, ServedJudge):
        judge.on_answer = told
    scores = judge([one.pair for one in labelled])
    told(len(labelled), len(labelled))
    return scores, dict(judge.stats)


def _write(path: Path, found: Mapping[str, Any]) -> None:
    """As JSON, in which an unknown number is null."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(
            path, (json.dumps(_plain(found), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        )
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
