"""RLPTTrainer: what a whole step of RLPT is paid under verl, in the same words and numbers as under TRL."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from verl.utils import tensordict_utils as tu

from rl_think_ext.methods.rlpt import RLPTConfig, weighted
from rl_think_ext.methods.rlpt_alarms import RLPTAlarms
from rl_think_ext.verl import reward_checks, rlpt_checks
from rl_think_ext.verl.reward_trainer import RewardTrainer
from rl_think_ext.verl.reward_worker import ends_of
from rl_think_ext.verl.rlpt_reward import judge_of
from rl_think_ext.verl.rlpt_sample import FORM, TASK, settled
from rl_think_ext.verl.sample_info import Settled
from rl_think_ext.verl.trainer import nested

logger = logging.getLogger(__name__)


class RLPTTrainer(RewardTrainer):
    """RLPT (arXiv 2509.19249) through verl: GRPO, RLOO, or PPO with a critic, by `trainer.v1.trainer_mode=rlpt`."""

    method = "rlpt"
    form = FORM
    settings: RLPTConfig

    def check(self) -> list[str]:
        """What makes the run another method raises, a judge that cannot be asked included."""
        found = rlpt_checks.check_config(self.config, self.settings)
        if not self.config.reward.reward_model.enable:
            judge_of(self.config, self.settings)
        return found

    def watch(self) -> RLPTAlarms:
        """The alarms of the method."""
        return RLPTAlarms()

    def settled(self, infos: Sequence[Mapping[str, Any]], groups: Sequence[Hashable], *, compared: bool) -> Settled:
        """See `rlpt_sample.settled`."""
        return settled(infos, groups, compared=compared)

    def was_asked(self, shown: Mapping[str, Any]) -> bool:
        """Whether the judge was asked."""
        return bool(shown[FORM.prefix + "status"] == "ok")

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        ends = ends_of(self.config.actor_rollout_ref.model.path, self.tokenizer)
        for warning in rlpt_checks.check_tokenizer(self.tokenizer, ends):
            logger.warning("rl_think: %s", warning)
        reward_checks.check_room(self.config, self.positions())

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Lambda behind verl's own estimator: dividing by a group's spread would take any factor on the reward away.

        Returns stay as they are: a critic learns what the judge says, for either task.
        """
        batch = super()._compute_advantage(batch, metrics)
        if self.settings.msr_weight == 1.0:
            return batch
        keys = list(self.columns)
        found = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["advantages"])
        tasks = [self.columns[key][TASK] for key in keys]
        factors = weighted(torch.ones(len(keys)), tasks, self.settings.msr_weight)
        rows = [factor * row for factor, row in zip(factors, found["advantages"].unbind(), strict=True)]
        tq.kv_batch_put(
            keys=keys, partition_id=batch.partition_id, fields=tu.get_tensordict({"advantages": nested(rows)})
        )
        return batch
