"""What rewards share that are settled over a whole step: the trainer they serve, the ranks, failures, the log."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.scoring import outputs
from rl_think_ext.scoring.preference import Output
from rl_think_ext.trl import host
from rl_think_ext.trl.announce import announce, describe
from rl_think_ext.trl.record_callback import RewardCallback

if TYPE_CHECKING:
    from trl import GRPOTrainer

# The trainer's processes give up waiting for one another after `ddp_timeout`: scores have to be there well before.
TIME_SHARE = 0.45


class StepReward(ABC):
    """A TRL reward function that reads outputs, has them scored elsewhere, and pays by the samples of all ranks.

    A subclass names its method (`__name__`), its settings and alarms, and says how a batch is scored. Without a trainer
    (AsyncGRPO calls rewards in a process of their own) there are no metrics and the batch is what one call brings.

    Args:
        config: Settings; None takes the trainer's, or reads them from RL_THINK_CONFIG when training starts.
    """

    __name__: str
    settings_kind: ClassVar[Any]
    alarms: ClassVar[Callable[[], Callable[[Mapping[str, float | None]], list[str]]]]
    unit: ClassVar[str]  # what is scored, in the words of an error

    def __init__(self, config: Any = None) -> None:
        self.given = config
        self.dataset_name: str | None = None
        self._trainer: GRPOTrainer | None = None
        self._read: Callable[[Sequence[int]], Output] | None = None
        self._is_alone = False
        self.restart()

    def __reduce__(self) -> Any:
        # Weights and connections stay behind; the other process makes its own at the first call (F10).
        return type(self), (self.given,)

    def restart(self) -> None:
        """Forget the last batch and the counts, as a new run does."""
        self.paid: list[float | None] = []
        self._failed, self._finished = 0, time.monotonic()

    @abstractmethod
    def prepare(self, trainer: GRPOTrainer | None) -> None:
        """Check a trainer (None where there is none), and make what scores for it."""

    @abstractmethod
    def rewards(self, prompts: Sequence[Any], said: Sequence[Output], columns: Mapping[str, Any]) -> torch.Tensor:
        """Score a batch; what the samples of all ranks are paid, [B] in TRL's order, NaN where nothing is."""

    @abstractmethod
    def reasons(self) -> Iterable[str]:
        """Why samples of this rank's last batch have no score."""

    @abstractmethod
    def metrics(self, rewards: torch.Tensor) -> Mapping[str, float]:
        """What is logged of the step: the same names on every rank, whatever happened (F11)."""

    @abstractmethod
    def columns(self) -> Mapping[str, list[Any]]:
        """What the table of completions says of this rank's last batch."""

    def rollouts(self, step: int) -> Any:
        """This rank's last batch of training as a table of pyarrow, where a method's outputs can be scored again."""
        return None

    @property
    def trainer(self) -> GRPOTrainer:
        """The trainer this reward is bound to."""
        assert self._trainer is not None, "bind() comes first"
        return self._trainer

    @property
    def is_bound(self) -> bool:
        """Whether there is a trainer."""
        return self._trainer is not None

    def describe(self) -> dict[str, Any]:
        """What run.json says about the run."""
        return describe(self.trainer, self.__name__, self.config, self.source, self.dataset_name)

    def bind(self, trainer: GRPOTrainer, config: Any = None) -> None:
        """Tie the reward to a trainer, and check that the two make the method; once for each trainer."""
        if self._trainer is trainer:
            return
        host.check_host()
        self.config, self.source = (config, "given in code") if config else self.resolve()
        self.prepare(trainer)
        self._read = outputs.reader(host.tokenizer_of(trainer), trainer.eos_token_ids, trainer.max_completion_length)
        # Only now: a trainer for which nothing can score is not bound.
        self._trainer = trainer
        self.restart()
        callbacks = trainer.callback_handler.callbacks
        if not any(isinstance(callback, RewardCallback) and callback.reward is self for callback in callbacks):
            callback = RewardCallback(self, trainer)
            trainer.add_callback(callback)
            if trainer.is_in_train:
                callback.begin_record(trainer.state)
        announce(trainer, self.__name__, self.config, self.source)

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
        if log_metric is not None or self.is_bound:
            self.bind(self.trainer if log_metric is None else host.trainer_of(log_metric))
        elif not self._is_alone:
            self.config, self.source = self.resolve()
            self.prepare(None)
            self._is_alone = True
        started = time.monotonic()
        rewards = self.rewards(prompts, self._outputs(completions, completion_ids), columns)
        mine = len(prompts) * (self.trainer.accelerator.process_index if self.is_bound else 0)
        self.paid = [None if value != value else value for value in rewards[mine : mine + len(prompts)].tolist()]
        self._count_failures(rewards)
        if log_metric is not None:
            for name, value in {**self.metrics(rewards), **self._seconds(started)}.items():
                log_metric(f"{self.__name__}/{name}", value)
        # The trainer gathers these columns over all ranks at every step, wanted or not.
        if log_extra is not None and self.trainer.log_completions:
            for name, values in self.columns().items():
                log_extra(f"{self.__name__}/{name}", values)
        return list(self.paid)

    def resolve(self) -> tuple[Any, str]:
        """The settings, and where they came from."""
        if self.given is not None:
            return self.given, "given in code"
        mapping, where = settings.from_environment(self.__name__)
        return settings.build(self.settings_kind, mapping, where), where

    def group_size(self) -> int | None:
        """Outputs to one prompt in this batch; None where nobody says."""
        if not self.is_bound:
            return None
        trainer = self.trainer
        return int(trainer.num_generations if trainer.model.training else trainer.num_generations_eval)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks, in the order in which TRL forms groups."""
        if not self.is_bound:
            return rows
        accelerator = self.trainer.accelerator
        gathered: torch.Tensor = accelerator.gather(rows.to(accelerator.device))
        return gathered.cpu()

    def has_failed(self, rewards: torch.Tensor) -> bool:
        """Whether a batch of all ranks brought nothing that was scored."""
        return bool(rewards.isnan().all())

    def _outputs(self, completions: Sequence[Any], ids: Sequence[Sequence[int]] | None) -> list[Output]:
        if self._read is None or ids is None:
            return outputs.texts_of(completions)
        return [self._read(completion) for completion in ids]

    def _count_failures(self, rewards: torch.Tensor) -> None:
        """Give up after several calls in a row without a single score (F6): the checkpoint stays as it is.

        An evaluation may come in batches of one output, of which several without the form are no failure of anything.
        """
        if self.is_bound and not self.trainer.model.training:
            return
        self._failed = self._failed + 1 if self.has_failed(rewards) else 0
        if self._failed >= self.config.max_failed_steps:
            found = sorted(set(self.reasons())) or ["other ranks' samples"]
            raise UserError(f"no {self.unit} was scored in {self._failed} steps in a row: {'; '.join(found[:5])}")

    def _seconds(self, started: float) -> dict[str, float]:
        """What scoring took, and its share of the time since the last batch was scored."""
        now = time.monotonic()
        share = (now - started) / max(now - self._finished, 1e-9)
        self._finished = now
        return {"scoring_seconds": now - started, "scoring_share": share}


def token_lengths(tokenizer: Any) -> Callable[[list[str]], list[int]]:
    """A function that counts the tokens of texts."""
    return lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
