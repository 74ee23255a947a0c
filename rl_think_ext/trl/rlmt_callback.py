"""What RLMT does beside a training step: the run's record and its alarms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_think_ext.methods.rlmt_alarms import RLMTAlarms
from rl_think_ext.trl.record_callback import RecordCallback

if TYPE_CHECKING:
    from rl_think_ext.trl.rlmt_reward import PreferenceScore


class RLMTCallback(RecordCallback):
    """Follows one reward through one trainer's run."""

    def __init__(self, reward: PreferenceScore, trainer: Any) -> None:
        super().__init__(trainer, reward.describe, RLMTAlarms(), "rlmt/")
        self.reward = reward

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run starts anew, and only for the trainer that the reward serves now."""
        if self.reward.trainer is self._trainer:
            self.reward.restart()
            self.begin_record(state)
