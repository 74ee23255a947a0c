"""The record of a run: what it is, every log, and what its alarms say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rl_think_ext.run_record import Record

if TYPE_CHECKING:
    from rl_think_ext.trl.step_reward import StepReward

logger = logging.getLogger(__name__)


class RecordCallback(TrainerCallback):
    """Writes `output_dir/rl_think` for one trainer's run.

    Args:
        trainer: The run.
        describe: What run.json says of it.
        alarms: Takes the metrics of a log and says what is new.
        prefix: What is taken off the metrics' names before the alarms see them.
    """

    def __init__(
        self,
        trainer: Any,
        describe: Callable[[], Mapping[str, Any]],
        alarms: Callable[[Mapping[str, float | None]], list[str]] | None = None,
        prefix: str = "",
    ) -> None:
        self._trainer, self._describe, self._alarms, self._prefix = trainer, describe, alarms, prefix
        self.record = Record(trainer.args.output_dir, trainer.accelerator.process_index)
        self._began = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new run counts from its own beginning."""
        self.begin_record(state)

    def begin_record(self, state: Any) -> None:
        """Also called when a reward joins a run that has begun, as it does under the stock command."""
        self._began = True
        self.record.begin(state.global_step)
        if state.is_world_process_zero:
            self.record.describe(self._describe())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the log, and raise alarms, each said once."""
        # An evaluation without training leaves the record of the run that is there alone.
        if not logs or not self._began or not state.is_world_process_zero:
            return
        self.record.append("log.jsonl", {"step": state.global_step, **logs})
        metrics = {key.removeprefix(self._prefix): value for key, value in logs.items()}
        for text in self._alarms(metrics) if self._alarms else ():
            logger.warning("step %d: %s", state.global_step, text)
            self.record.append("alarms.jsonl", {"step": state.global_step, "alarm": text})


class RewardCallback(RecordCallback):
    """Follows one reward through one trainer's run: its record and its alarms."""

    def __init__(self, reward: StepReward, trainer: Any) -> None:
        super().__init__(trainer, reward.describe, type(reward).alarms(), f"{reward.__name__}/")
        self.reward = reward

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run starts anew, and only for the trainer that the reward serves now."""
        if self.reward.trainer is self._trainer:
            self.reward.restart()
            self.begin_record(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep on every rank the batch behind a log of training, and in the main process the log."""
        if logs and self._began and args.log_completions and f"{self.reward.__name__}/score" in logs:
            table = self.reward.rollouts(state.global_step)
            if table is not None:
                self.record.keep(state.global_step, table)
        super().on_log(args, state, control, logs, **kwargs)
