"""RLPT's reward for TRL: a judge's verdict on the prediction, by name under `trl grpo` and in RLPTTrainer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rl_think_ext.data.prediction_rows import rollout_table
from rl_think_ext.data.segment_rows import segment_of
from rl_think_ext.methods.groups import one_score_each
from rl_think_ext.methods.rlpt import TASKS, RLPTConfig
from rl_think_ext.methods.rlpt_alarms import RLPTAlarms
from rl_think_ext.scoring.judge import STATS, load_judge
from rl_think_ext.scoring.prediction import FIELDS, Predictions, PredictionScorer, Segment, column
from rl_think_ext.scoring.prediction_step import all_lost, judge_metrics, step_metrics
from rl_think_ext.scoring.preference import Output
from rl_think_ext.trl import host, rlpt_checks
from rl_think_ext.trl.rows import columns_of
from rl_think_ext.trl.step_reward import TIME_SHARE, StepReward, token_lengths

if TYPE_CHECKING:
    from trl import GRPOTrainer


class PredictionScore(StepReward):
    """A judge's verdict on the predicted segment (RLPT, arXiv 2509.19249) as a TRL reward function: 1, 0 or None.

    Dataset columns: `task`, `context`, `reference`, `segment_ends` and `next_segment`, as `rl-think data rlpt` writes
    them; the judge is that of the settings, whatever a row says (F42). Empty, too short and too long predictions, and
    outputs without the tags, are wrong without a question; no verdict is None. Under the stock `trl grpo` the two
    tasks count as their rows do: lambda is the share of either in the data.

    Args:
        config: Settings; None takes the trainer's, or reads them from RL_THINK_CONFIG when training starts.

    Raises:
        UserError: from the first call, for settings, judges or rows that cannot be RLPT.
    """

    __name__ = "rlpt"
    settings_kind = RLPTConfig
    alarms = RLPTAlarms
    unit = "prediction"
    scorer: PredictionScorer

    def restart(self) -> None:
        """Forget the last batch and the counts, as a new run does."""
        super().restart()
        self.last: Predictions | None = None
        self.segments: tuple[Segment, ...] = ()
        self.ids: tuple[Any, ...] = ()
        self._batch: tuple[Any, ...] | None = None
        self.table = torch.empty(0, len(FIELDS))

    def prepare(self, trainer: GRPOTrainer | None) -> None:
        """Check a trainer, and make the judge for its processes; without one, for a process of its own."""
        if trainer is None:
            self.scorer = PredictionScorer(self.config, load_judge(self.config))
            return
        tokenizer = host.tokenizer_of(trainer)
        rlpt_checks.check_run(trainer, self.config, tokenizer)
        judge = load_judge(
            self.config,
            world_size=trainer.accelerator.num_processes,
            time_limit=TIME_SHARE * trainer.args.ddp_timeout,
        )
        self.scorer = PredictionScorer(self.config, judge, token_lengths(tokenizer))

    def rewards(self, prompts: Sequence[Any], said: Sequence[Output], columns: Mapping[str, Any]) -> torch.Tensor:
        """The verdicts on the samples of all ranks, [B]; equal predictions of a reference have one."""
        rows = columns_of(columns, len(prompts))
        self.ids = tuple(row.get("id") for row, _ in rows)
        self.segments = tuple(segment_of(row, where) for row, where in rows)
        self.last = self.scorer(self.segments, said)
        marks = [
            _mark(segment, found.text) for segment, found in zip(self.segments, self.last.predictions, strict=True)
        ]
        self.table = self.gather(self.last.table).clone()
        scores, asked = column(self.table, "score"), column(self.table, "judged") == 1
        scores[:] = one_score_each(scores, self.gather(torch.tensor(marks)).tolist(), asked)
        if self.is_bound and self.trainer.model.training:
            mine = len(said) * self.trainer.accelerator.process_index
            own = [None if score != score else score for score in scores[mine : mine + len(said)].tolist()]
            self._batch = (self.ids, self.segments, tuple(said), self.last, own)
        return scores.double()

    def rollouts(self, step: int) -> Any:
        """This rank's last batch of training, enough to judge it again."""
        return None if self._batch is None else rollout_table(step, *self._batch)

    def has_failed(self, rewards: torch.Tensor) -> bool:
        """Also without a single verdict: outputs that are wrong without a question would hide a dead judge for ever."""
        return super().has_failed(rewards) or all_lost(self.table)

    def tasks(self) -> list[str]:
        """The task of each sample of all ranks, as the rewards are ordered."""
        return [TASKS[int(task)] for task in column(self.table, "task").tolist()]

    def reasons(self) -> list[str]:
        """Why samples of this rank's last batch have no score."""
        return [score.reason for score in self.last.scores if score.reason] if self.last else []

    def metrics(self, rewards: torch.Tensor) -> dict[str, float]:
        """The step's own, and the judge's over all ranks."""
        assert self.last is not None
        stats = torch.tensor([[self.last.stats.get(name, torch.nan) for name in STATS]])
        return {**step_metrics(self.table, self.group_size()), **judge_metrics(self.gather(stats))}

    def columns(self) -> dict[str, list[Any]]:
        """This rank's predictions beside what the judge compared them with."""
        assert self.last is not None
        reward = self.config.reward
        return {
            "id": list(self.ids),
            "task": [segment.task for segment in self.segments],
            "status": [prediction.status for prediction in self.last.predictions],
            "prediction": [prediction.text for prediction in self.last.predictions],
            "reference": [segment.reference.shown(reward) for segment in self.segments],
            "score": list(self.paid),
            "unscorable": [
                score.reason if paid is None else None for score, paid in zip(self.last.scores, self.paid, strict=True)
            ],
            "covered": [None if value != value else value for value in self.last.column("covered").tolist()],
        }


def _mark(segment: Segment, prediction: str | None) -> int:
    """A number for what the judge compares; 63 bits, the same on every rank."""
    text = "\0".join((segment.reference.text, repr(segment.reference.ends), prediction or ""))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1
