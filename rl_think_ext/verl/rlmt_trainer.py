"""RLMTTrainer: what a whole step of RLMT is paid under verl, in the same words and numbers as under TRL."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlmt_alarms import RLMTAlarms
from rl_think_ext.verl import reward_checks, rlmt_checks
from rl_think_ext.verl.reward_trainer import RewardTrainer
from rl_think_ext.verl.reward_worker import ends_of
from rl_think_ext.verl.rlmt_reward import reward_model_of
from rl_think_ext.verl.rlmt_sample import FORM
from rl_think_ext.verl.rlmt_step import Step

logger = logging.getLogger(__name__)


class RLMTTrainer(RewardTrainer):
    """RLMT (arXiv 2509.20357) through verl: GRPO, RLOO, or PPO with a critic, by `trainer.v1.trainer_mode=rlmt`."""

    method = "rlmt"
    form = FORM
    settings: RLMTConfig

    def check(self) -> list[str]:
        """What makes the run another method raises, the reward model's template included."""
        found = rlmt_checks.check_config(self.config, self.settings)
        if not self.config.reward.reward_model.enable:
            reward_model_of(self.config, self.settings)
        return found

    def watch(self) -> RLMTAlarms:
        """The alarms of the method."""
        return RLMTAlarms()

    def was_asked(self, shown: Mapping[str, Any]) -> bool:
        """Whether the reward model was asked: an output without the form has no answer."""
        return shown[FORM.prefix + "answer"] is not None

    def settled(self, infos: Sequence[Mapping[str, Any]], groups: Sequence[Hashable], *, compared: bool) -> Step:
        """See `Step.of`."""
        return Step.of(infos, groups, self.settings, compared=compared)

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        ends = ends_of(self.config.actor_rollout_ref.model.path, self.tokenizer)
        for warning in rlmt_checks.check_template(self.config, self.settings, self.tokenizer, ends):
            logger.warning("rl_think: %s", warning)
        reward_checks.check_room(self.config, self.positions())
