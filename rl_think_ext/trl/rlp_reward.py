"""RLP's reward for TRL: works by name under the stock `trl grpo`, and is what ThinkGRPOTrainer builds on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rl_think_ext import settings
from rl_think_ext.data.reader import Reader
from rl_think_ext.errors import UserError
from rl_think_ext.methods.alarms import Alarms
from rl_think_ext.methods.rlp import RLPConfig, group_advantage
from rl_think_ext.run_record import SCORES
from rl_think_ext.scoring.ema import WeightAverage, refuse_sharded, trainable_checksum
from rl_think_ext.scoring.gain import REASONS, Gains, GainScorer, Rollout, gain_metrics
from rl_think_ext.scoring.likelihood import Likelihood
from rl_think_ext.scoring.sample import max_positions
from rl_think_ext.template import TagIds
from rl_think_ext.trl import checks, host
from rl_think_ext.trl.announce import announce, describe
from rl_think_ext.trl.callback import RLPCallback
from rl_think_ext.trl.rows import check_lengths, rows_of

if TYPE_CHECKING:
    from trl import GRPOTrainer


class InformationGain:
    """The information gain of thoughts (RLP, arXiv 2510.01265, eq. 5), in nats, as a TRL reward function.

    Dataset columns: `prompt` (what the policy is shown), `context` and `target` or `context_ids` and `target_ids`.
    Unscorable samples are None. Under the stock `trl grpo` TRL's advantage is eq. 7 times (n - 1) / n; the exact one
    is ThinkGRPOTrainer's. A subclass that overrides `reward` pays for something else on the same scores.

    Args:
        config: Settings; None takes the trainer's, or reads them from RL_THINK_CONFIG when training starts.

    Raises:
        UserError: from the first call, for settings, models or rows that cannot be RLP.
    """

    __name__ = "rlp"
    # What a method that is paid by the same scorer has of its own; a subclass of RLP itself leaves them alone.
    method: ClassVar[str] = "rlp"
    kind: ClassVar[type[Any]] = RLPConfig
    columns: ClassVar[Mapping[str, str]] = {name: name for name in SCORES}

    def __init__(self, config: Any = None) -> None:
        self._given = config
        self._trainer: GRPOTrainer | None = None
        self.resume_from: str | None = None
        self.dataset_name: str | None = None

    def reward(self, gains: Gains) -> list[float | None]:
        """What each sample of this process is paid: its gain, or None where it has none."""
        return [score.value for score in gains.scores()]

    @property
    def pays_gain(self) -> bool:
        """Whether the reward is the gain itself, and no subclass's own."""
        return type(self).reward is InformationGain.reward

    @property
    def given(self) -> Any:
        """The settings that were given in code, if any."""
        return self._given

    @property
    def prefix(self) -> str:
        """What the names of this method's metrics begin with."""
        return f"{self.method}/"

    def scoring(self, given: Any) -> RLPConfig:
        """What reader and scorer go by, out of the method's settings."""
        return given

    def check_settings(self, args: Any) -> list[str]:
        """The warnings for a GRPOConfig; what makes it another method raises."""
        return checks.check_settings(args)

    def check_trainer(self, trainer: GRPOTrainer) -> None:
        """What a method looks at beside the settings before it is tied to a trainer; the reader is there."""

    def alarms(self) -> Callable[[Mapping[str, float | None]], list[str]]:
        """What watches this method's metrics."""
        return Alarms()

    def make_scorer(self, *parts: Any) -> GainScorer:
        """The scorer out of likelihood, tags, baseline, frozen start and positions."""
        return GainScorer(self.config, *parts)

    def metrics(self, gains: Gains, group_size: int) -> dict[str, float]:
        """What a step says about itself."""
        return gain_metrics(gains, group_size)

    def settle(self) -> None:
        """Called once per call, when `last` holds the samples of all processes and before any is paid."""

    def advantage(self, rewards: torch.Tensor, group_size: int, noise: float) -> torch.Tensor:
        """What ThinkGRPOTrainer trains with: [B] rewards, NaN for an unscorable one, to [B]."""
        return group_advantage(rewards, group_size, noise)

    @property
    def adds_loss(self) -> bool:
        """Whether the method has a loss of its own beside TRL's, which only ThinkGRPOTrainer can add."""
        return False

    def added_loss(self, rows: Sequence[int]) -> torch.Tensor:
        """That loss over some rows of the last training batch, in TRL's scale before gradient accumulation."""
        raise NotImplementedError

    def save_state(self, folder: Path) -> None:
        """Write what a resumed run needs beside the averages, into the checkpoint's `rl_think`."""

    def load_state(self, folder: Path) -> None:
        """Read it again."""

    def __reduce__(self) -> Any:
        raise UserError(
            "RLP's reward needs the policy's weights and cannot be sent to another process: AsyncGRPO cannot train "
            "it; use GRPOTrainer (trl grpo) or ThinkGRPOTrainer (rl-think train)."
        )

    def bind(self, trainer: GRPOTrainer, config: Any = None) -> None:
        """Tie the reward to a trainer and check that the two make RLP; a second call with the same one does nothing.

        `config` holds for this trainer alone; without it the reward's own settings or RL_THINK_CONFIG do.
        """
        if self._trainer is trainer:
            return
        host.check_host()
        self.settings, self.source = (config, "given in code") if config else self._resolve()
        if not isinstance(self.settings, self.kind):
            raise UserError(f"the reward {self.__name__} takes {self.kind.__name__}, not {type(config).__name__}")
        self.config = self.scoring(self.settings)
        tokenizer = host.tokenizer_of(trainer)
        self.tags = TagIds.of(tokenizer)
        self.reader = Reader(tokenizer, self.config, self.tags)
        checks.warn_all(self.check_settings(trainer.args))
        checks.check_stop(trainer, self.tags)
        checks.check_rewards(trainer)
        positions = max_positions(trainer.model)
        check_lengths(trainer.train_dataset, self.reader, positions, trainer.max_completion_length)
        self.check_trainer(trainer)
        # Nothing of an earlier trainer stays: the ready object may serve several in one process.
        self._trainer, self._tokenizer = trainer, tokenizer
        self.restart()
        callbacks = trainer.callback_handler.callbacks
        if not any(isinstance(callback, RLPCallback) and callback.reward is self for callback in callbacks):
            callback = RLPCallback(self, trainer)
            trainer.add_callback(callback)
            if trainer.is_in_train:
                callback.begin_record(trainer.state)
        announce(trainer, self.method, self.settings, self.source)

    def restart(self) -> None:
        """Forget averages and counts: the next batch begins them anew, or takes them up from the checkpoint."""
        self.averages: dict[str, WeightAverage] = {}
        self.scorer: GainScorer | None = None
        self.last: Gains | None = None
        self.batch: tuple[list[dict[str, Any]], list[Rollout], Gains] | None = None
        self._failed, self._finished = 0, time.monotonic()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion, None where there is none; see the class."""
        if not prompts:
            return []
        # Without log_metric (a direct call) the trainer that was bound is the one.
        self.bind(self.trainer if log_metric is None and self._trainer else host.trainer_of(log_metric))
        started = time.monotonic()
        scorer = self.scorer or self._start()
        rows = rows_of(prompts, columns)
        rollouts = self._rollouts(rows, completion_ids)
        gains = scorer(rollouts)
        self.last = self._gather(gains)
        kept = [{**row, "completion_ids": ids} for (row, _), ids in zip(rows, completion_ids, strict=True)]
        if self.trainer.model.training:
            self.batch = (kept, rollouts, gains)
        self._count_failures()
        self.settle()
        if log_metric is not None:
            self._log_metrics(log_metric, started)
        # The trainer gathers these columns over all ranks at every step, wanted or not.
        if log_extra is not None and self.trainer.log_completions:
            self._log_columns(log_extra, kept, gains)
        return self.reward(gains)

    def describe(self) -> dict[str, Any]:
        """What run.json says about the run."""
        return describe(self.trainer, self.method, self.settings, self.source, self.dataset_name)

    @property
    def trainer(self) -> GRPOTrainer:
        """The trainer this reward is bound to."""
        assert self._trainer is not None, "bind() comes first"
        return self._trainer

    def _resolve(self) -> tuple[Any, str]:
        if self._given is not None:
            return self._given, "given in code"
        mapping, where = settings.from_environment(self.method)
        return settings.build(self.kind, mapping, where), where

    def _start(self) -> GainScorer:
        """On the first batch: take the averages' start from the policy (eq. 6), or from the checkpoint."""
        trainer, config = self.trainer, self.config
        model = trainer.accelerator.unwrap_model(trainer.model)
        refuse_sharded(model)  # only now: FSDP shards when training begins
        self.averages = {name: WeightAverage(model, decay) for name, decay in config.averages.items()}
        if trainer.state.global_step > 0:
            self._restore()
        baseline = {"ema": "ema", "init": "frozen"}.get(config.baseline)
        likelihood = Likelihood(
            model,
            self._tokenizer.pad_token_id,
            config.max_tokens_per_batch,
            autocast=trainer.accelerator.autocast,
            device=trainer.accelerator.device,
        )
        self.scorer = self.make_scorer(
            likelihood,
            self.tags,
            self.averages[baseline].swapped_in if baseline else None,
            self.averages["frozen"].swapped_in if config.frozen_gain else None,
            max_positions(model),
        )
        return self.scorer

    def _restore(self) -> None:
        """A resumed run goes on with the averages of its checkpoint, or not at all (F19)."""
        args, step = self.trainer.args, self.trainer.state.global_step
        given = self.resume_from or args.resume_from_checkpoint
        folder = Path(given) if isinstance(given, str) and Path(given).is_dir() else None
        folder = folder or Path(args.output_dir) / f"checkpoint-{step}"
        for name, average in self.averages.items():
            average.load(folder / "rl_think", name)
        self.load_state(folder / "rl_think")

    def _rollouts(
        self, rows: Sequence[tuple[dict[str, Any], str]], completion_ids: Sequence[Sequence[int]]
    ) -> list[Rollout]:
        ends = self.trainer.eos_token_ids
        return [
            self.reader.rollout(row, completion, ends, where)
            for (row, where), completion in zip(rows, completion_ids, strict=True)
        ]

    def _gather(self, gains: Gains) -> Gains:
        """All ranks' samples in the order in which TRL forms groups."""
        accelerator = self.trainer.accelerator
        table = accelerator.gather(gains.table.to(accelerator.device)).cpu()
        noise = accelerator.gather(torch.tensor([gains.noise], device=accelerator.device))
        return Gains(table, float(noise.max()))

    def _count_failures(self) -> None:
        """Give up after several calls in a row without a single score (F6): the checkpoint stays as it is.

        An evaluation may come in batches of one output, of which several without a score are no failure of anything.
        """
        assert self.last is not None
        if not self.trainer.model.training:
            return
        reason = self.last.column("reason")
        self._failed = self._failed + 1 if bool((reason >= 0).all()) else 0
        if self._failed >= self.config.max_failed_steps:
            found = sorted({REASONS[int(code)] for code in reason.tolist()})
            raise UserError(f"no sample was scorable in {self._failed} steps in a row: {', '.join(found)}")

    def _log_metrics(self, log_metric: Any, started: float) -> None:
        assert self.last is not None
        training = self.trainer.model.training
        size = self.trainer.num_generations if training else self.trainer.num_generations_eval
        metrics = self.metrics(self.last, size)
        now = time.monotonic()
        metrics["scoring_share"] = (now - started) / max(now - self._finished, 1e-9)
        metrics["scoring_seconds"] = now - started
        self._finished = now
        metrics["policy_checksum"] = trainable_checksum(self.trainer.model)
        if "ema" in self.averages:
            ema = self.averages["ema"]
            metrics |= {
                "ema_checksum": ema.checksum(),
                "ema_distance": ema.distance(),
                "ema_updates": float(ema.updates),
            }
        for name, value in metrics.items():
            log_metric(self.prefix + name, value)

    def _log_columns(self, log_extra: Any, rows: Sequence[dict[str, Any]], gains: Gains) -> None:
        for name in ("id", "context", "target"):
            log_extra(self.prefix + name, [row.get(name) for row in rows])
        for name, field in self.columns.items():
            values = gains.column(field).tolist()
            log_extra(self.prefix + name, [None if value != value else value for value in values])
        log_extra(self.prefix + "unscorable", [score.reason for score in gains.scores()])
