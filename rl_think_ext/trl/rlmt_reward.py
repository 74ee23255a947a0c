"""RLMT's reward for TRL: a preference model's score of the answer, by name under `trl grpo` and in RLMTTrainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rl_think_ext.errors import UserError
from rl_think_ext.messages import messages_of
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlmt_alarms import RLMTAlarms
from rl_think_ext.scoring.preference import Output, Preferences, PreferenceScorer, column
from rl_think_ext.scoring.preference_step import paid, step_metrics
from rl_think_ext.scoring.reward_model import load_reward_model
from rl_think_ext.trl import host, rlmt_checks
from rl_think_ext.trl.step_reward import TIME_SHARE, StepReward, token_lengths

if TYPE_CHECKING:
    from trl import GRPOTrainer


class PreferenceScore(StepReward):
    """A reward model's score of the answer (RLMT, arXiv 2509.20357) as a TRL reward function.

    Dataset columns: `prompt`, a chat; or `prompt` as text for a raw base model and the chat in `messages`. An output
    without the form is worth what the settings say; one without a score is None. Without a trainer (AsyncGRPO calls
    rewards in a process of their own) there are no metrics and the batch is what one call brings.

    Args:
        config: Settings; None takes the trainer's, or reads them from RL_THINK_CONFIG when training starts.

    Raises:
        UserError: from the first call, for settings, models or rows that cannot be RLMT.
    """

    __name__ = "rlmt"
    settings_kind = RLMTConfig
    alarms = RLMTAlarms
    unit = "answer"
    scorer: PreferenceScorer

    def restart(self) -> None:
        """Forget the last batch and the counts, as a new run does."""
        super().restart()
        self.last: Preferences | None = None

    def prepare(self, trainer: GRPOTrainer | None) -> None:
        """Check a trainer, and load the reward model for it; without one, for a process of its own."""
        if trainer is None:
            self._prefilled, self.scorer = False, PreferenceScorer(self.config, load_reward_model(self.config))
            return
        tokenizer = host.tokenizer_of(trainer)
        self._prefilled = rlmt_checks.check_run(trainer, self.config, tokenizer)
        model = load_reward_model(
            self.config,
            world_size=trainer.accelerator.num_processes,
            device=trainer.accelerator.device,
            time_limit=TIME_SHARE * trainer.args.ddp_timeout,
        )
        self.scorer = PreferenceScorer(self.config, model, token_lengths(tokenizer))

    def rewards(self, prompts: Sequence[Any], said: Sequence[Output], columns: Mapping[str, Any]) -> torch.Tensor:
        """What every sample of all ranks is paid, [B], NaN where nothing is."""
        chats = [self._chat(prompt, columns, i) for i, prompt in enumerate(prompts)]
        self.last = self.scorer(chats, said, prefilled=self._prefilled)
        noise = torch.tensor([self.last.stats.get("noise", torch.nan)]).nan_to_num(nan=0.0)
        # The largest noise that a rank measured is everybody's.
        self._table, self._noise = self.gather(self.last.table), float(self.gather(noise).max())
        return self._rewards(self._table, self._noise)

    def has_failed(self, rewards: torch.Tensor) -> bool:
        """Also without a score of all that have the form: a fixed `floor` for the others would hide it."""
        scores = column(self._table, "score")[column(self._table, "malformed") == 0]
        return super().has_failed(rewards) or bool(len(scores) and scores.isnan().all())

    def reasons(self) -> list[str]:
        """Why samples of this rank's last batch have no score."""
        return [score.reason for score in self.last.scores if score.reason] if self.last else []

    def _chat(self, prompt: Any, columns: Mapping[str, Any], i: int) -> list[dict[str, str]]:
        """The raw chat of a row: `messages` where the prompt is the text of a frame around it."""
        ids = columns.get("id")
        where = f"row {ids[i]}" if isinstance(ids, list) and ids[i] is not None else f"row {i} of the batch"
        if not isinstance(prompt, str):
            return messages_of(prompt, f"{where}, column `prompt`")
        chats = columns.get("messages")
        if chats is None:
            raise UserError(
                f"{where}: column `prompt` is text, and there is no column `messages` with the chat that the reward "
                "model is to see: build the data with `rl-think data rlmt` (`--render` for a raw base model)"
            )
        return messages_of(chats[i], f"{where}, column `messages`")

    def _rewards(self, table: torch.Tensor, noise: float) -> torch.Tensor:
        return paid(table, self.config, self.group_size(), noise)

    def metrics(self, rewards: torch.Tensor) -> dict[str, float]:
        """Form, lengths, scores and what was paid, over all ranks; the reward model's part of this one."""
        assert self.last is not None
        metrics = step_metrics(self._table, rewards, self.config, self.group_size(), self._noise)
        for name in ("seconds", "num_asked", "num_cached"):
            metrics[f"reward_model_{name}"] = float(self.last.stats.get(name, 0.0))
        return metrics

    def columns(self) -> dict[str, list[Any]]:
        """The parts of this rank's outputs, and their scores."""
        assert self.last is not None
        parts, scores = self.last.parts, self.last.scores
        return {
            "thought": [part.thought for part in parts],
            "answer": [part.answer for part in parts],
            "status": [part.status for part in parts],
            "score": [score.value for score in scores],
            "unscorable": [score.reason for score in scores],
        }


class ShapingTerm:
    """A named term beside RLMT's reward, weighted by TRL's own `reward_weights`; None where that reward is None.

    The paper has none of these. It stands behind `rlmt` in `reward_funcs`, whose last batch it reads.

    Args:
        name: format (1 where the form is right, else 0), thought_length or answer_length (tokens over
            `max_completion_length`, 0 where there is none).
    """

    def __init__(self, name: str) -> None:
        self.__name__, self._name = f"rlmt_{name}", name

    def __call__(self, prompts: Sequence[Any], log_metric: Any = None, **columns: Any) -> list[float | None]:
        """One value per completion of the batch that `rlmt` has just scored."""
        trainer = host.trainer_of(log_metric)
        reward = next((one for one in trainer.reward_funcs if isinstance(one, PreferenceScore)), None)
        if reward is None or reward.last is None or len(reward.paid) != len(prompts):
            raise UserError(f"reward_funcs: {self.__name__} needs rl_think_ext.trl.rlmt before it")
        if self._name == "format":
            values = [float(part.status == "ok") for part in reward.last.parts]
        else:
            limit = trainer.max_completion_length or 1
            values = (reward.last.column(self._name).nan_to_num(nan=0.0) / limit).tolist()
        return [None if paid is None else value for paid, value in zip(reward.paid, values, strict=True)]
