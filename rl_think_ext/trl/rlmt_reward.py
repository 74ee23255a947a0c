"""RLMT's reward for TRL: a preference model's score of the answer, by name under `trl grpo` and in RLMTTrainer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.messages import messages_of
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring import outputs
from rl_think_ext.scoring.preference import Output, Preferences, PreferenceScorer
from rl_think_ext.scoring.preference_step import paid, step_metrics
from rl_think_ext.scoring.reward_model import load_reward_model
from rl_think_ext.trl import host, rlmt_checks
from rl_think_ext.trl.announce import announce, describe
from rl_think_ext.trl.rlmt_callback import RLMTCallback

if TYPE_CHECKING:
    from trl import GRPOTrainer

PREFIX = "rlmt/"
# The trainer's processes give up waiting for one another after `ddp_timeout`: scores have to be there well before.
TIME_SHARE = 0.45


class PreferenceScore:
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

    def __init__(self, config: RLMTConfig | None = None) -> None:
        self.given = config
        self.dataset_name: str | None = None
        self._trainer: GRPOTrainer | None = None
        self.scorer: PreferenceScorer | None = None
        self.restart()

    def __reduce__(self) -> Any:
        # Weights and connections stay behind; the other process makes its own at the first call (F10).
        return type(self), (self.given,)

    def restart(self) -> None:
        """Forget the last batch and the counts, as a new run does."""
        self.last: Preferences | None = None
        self.paid: list[float | None] = []
        self._failed, self._finished = 0, time.monotonic()

    @property
    def trainer(self) -> GRPOTrainer:
        """The trainer this reward is bound to."""
        assert self._trainer is not None, "bind() comes first"
        return self._trainer

    def describe(self) -> dict[str, Any]:
        """What run.json says about the run."""
        return describe(self.trainer, "rlmt", self.config, self.source, self.dataset_name)

    def bind(self, trainer: GRPOTrainer, config: RLMTConfig | None = None) -> None:
        """Tie the reward to a trainer, and check that the two make RLMT; once for each trainer."""
        if self._trainer is trainer:
            return
        host.check_host()
        self.config, self.source = (config, "given in code") if config else self._resolve()
        tokenizer = host.tokenizer_of(trainer)
        self._prefilled = rlmt_checks.check_run(trainer, self.config, tokenizer)
        self._read = outputs.reader(tokenizer, trainer.eos_token_ids, trainer.max_completion_length)
        self.scorer = PreferenceScorer(
            self.config,
            load_reward_model(
                self.config,
                world_size=trainer.accelerator.num_processes,
                device=trainer.accelerator.device,
                time_limit=TIME_SHARE * trainer.args.ddp_timeout,
            ),
            lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]],
        )
        # Only now: a trainer whose reward model could not be loaded is not bound.
        self._trainer = trainer
        self.restart()
        callbacks = trainer.callback_handler.callbacks
        if not any(isinstance(callback, RLMTCallback) and callback.reward is self for callback in callbacks):
            callback = RLMTCallback(self, trainer)
            trainer.add_callback(callback)
            if trainer.is_in_train:
                callback.begin_record(trainer.state)
        announce(trainer, "rlmt", self.config, self.source)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion, None where there is none; see the class."""
        if not prompts:
            return []
        if log_metric is not None or self._trainer is not None:
            self.bind(self.trainer if log_metric is None else host.trainer_of(log_metric))
        started = time.monotonic()
        chats = [self._chat(prompt, columns, i) for i, prompt in enumerate(prompts)]
        self.last = self._scored(chats, self._outputs(completions, completion_ids))
        table, noise = self._gather(self.last)
        rewards = self._rewards(table, noise)
        mine = len(prompts) * self._rank
        self.paid = [None if value != value else value for value in rewards[mine : mine + len(prompts)].tolist()]
        self._count_failures(rewards)
        if log_metric is not None:
            self._log_metrics(log_metric, table, rewards, noise, started)
        # The trainer gathers these columns over all ranks at every step, wanted or not.
        if log_extra is not None and self.trainer.log_completions:
            self._log_columns(log_extra)
        return list(self.paid)

    def _resolve(self) -> tuple[RLMTConfig, str]:
        if self.given is not None:
            return self.given, "given in code"
        mapping, where = settings.from_environment("rlmt")
        return settings.build(RLMTConfig, mapping, where), where

    def _chat(self, prompt: Any, columns: dict[str, Any], i: int) -> list[dict[str, str]]:
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

    def _outputs(self, completions: Sequence[Any], ids: Sequence[Sequence[int]] | None) -> list[Output]:
        if self._trainer is None or ids is None:
            return outputs.texts_of(completions)
        return [self._read(completion) for completion in ids]

    def _scored(self, chats: Sequence[Sequence[dict[str, str]]], said: Sequence[Output]) -> Preferences:
        if self.scorer is None:
            self.config, self.source = self._resolve()
            self._prefilled = False
            self.scorer = PreferenceScorer(self.config, load_reward_model(self.config))
        return self.scorer(chats, said, prefilled=self._prefilled)

    @property
    def _rank(self) -> int:
        return self.trainer.accelerator.process_index if self._trainer else 0

    def _gather(self, found: Preferences) -> tuple[torch.Tensor, float]:
        """All ranks' samples in the order in which TRL forms groups, and the largest noise that a rank measured."""
        noise = torch.tensor([found.stats.get("noise", torch.nan)]).nan_to_num(nan=0.0)
        if self._trainer is None:
            return found.table, float(noise)
        accelerator = self.trainer.accelerator
        table = accelerator.gather(found.table.to(accelerator.device)).cpu()
        return table, float(accelerator.gather(noise.to(accelerator.device)).max())

    def _group_size(self) -> int:
        trainer = self.trainer
        return int(trainer.num_generations if trainer.model.training else trainer.num_generations_eval)

    def _rewards(self, table: torch.Tensor, noise: float) -> torch.Tensor:
        """What every sample of all ranks is paid, [B], NaN where nothing is."""
        return paid(table, self.config, None if self._trainer is None else self._group_size(), noise)

    def _count_failures(self, rewards: torch.Tensor) -> None:
        """Give up after several calls in a row without a single score (F6): the checkpoint stays as it is.

        An evaluation may come in batches of one output, of which several without the form are no failure of anything.
        """
        assert self.last is not None
        if self._trainer is not None and not self.trainer.model.training:
            return
        self._failed = self._failed + 1 if bool(rewards.isnan().all()) else 0
        if self._failed >= self.config.max_failed_steps:
            found = sorted({score.reason for score in self.last.scores if score.reason}) or ["other ranks' samples"]
            raise UserError(f"no answer was scored in {self._failed} steps in a row: {'; '.join(found[:5])}")

    def _log_metrics(
        self, log_metric: Any, table: torch.Tensor, rewards: torch.Tensor, noise: float, started: float
    ) -> None:
        assert self.last is not None
        size, now = self._group_size(), time.monotonic()
        metrics = step_metrics(table, rewards, self.config, size, noise)
        metrics["scoring_seconds"] = now - started
        metrics["scoring_share"] = (now - started) / max(now - self._finished, 1e-9)
        self._finished = now
        stats = self.last.stats
        for name in ("seconds", "num_asked", "num_cached"):
            metrics[f"reward_model_{name}"] = float(stats.get(name, 0.0))
        for name, value in metrics.items():
            log_metric(PREFIX + name, value)

    def _log_columns(self, log_extra: Any) -> None:
        assert self.last is not None
        parts, scores = self.last.parts, self.last.scores
        log_extra(PREFIX + "thought", [part.thought for part in parts])
        log_extra(PREFIX + "answer", [part.answer for part in parts])
        log_extra(PREFIX + "status", [part.status for part in parts])
        log_extra(PREFIX + "score", [score.value for score in scores])
        log_extra(PREFIX + "unscorable", [score.reason for score in scores])


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
