"""What RLMT's and RLPT's trainers share: GRPOTrainer with a reward of its own, where no score is no 0."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from trl import GRPOConfig, GRPOTrainer

from rl_think_ext.errors import UserError
from rl_think_ext.trl import host, policy_logprob
from rl_think_ext.trl.step_reward import StepReward
from rl_think_ext.trl.trainer import tokenizer_for


class StepTrainer(GRPOTrainer):
    """GRPOTrainer whose first reward is a StepReward's, bound to it.

    Args:
        model, args, processing_class, **kwargs: As GRPOTrainer takes them.
        config: The method's settings; without them those of the reward that is given, or its defaults.
        reward_funcs: Further rewards, beside the method's own, which comes first. A sample for which one of them is
            missing, while others of its group have it, is unscorable as a whole.
    """

    forms_advantage = True
    reward_kind: ClassVar[type[StepReward]]

    def __init__(
        self,
        model: Any,
        args: GRPOConfig,
        config: Any,
        *,
        reward_funcs: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, str):
            # Weights in a pickle can run code: only whoever says `use_safetensors: false` gets them loaded (F38).
            args.model_init_kwargs = {"use_safetensors": True, **(args.model_init_kwargs or {})}
        processing_class = tokenizer_for(model, args) if processing_class is None else processing_class
        given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        own = [reward for reward in given if isinstance(reward, self.reward_kind)]
        self.own_reward = own[0] if own else self.reward_kind()
        name = self.own_reward.__name__
        config = config or self.own_reward.given or self.reward_kind.settings_kind()
        if own and own[0].given not in (None, config):
            raise UserError(f"the reward {name} has settings of its own that are not the trainer's: give one of them")
        self.prepare(config, args, processing_class)
        super().__init__(
            model=model,
            reward_funcs=[self.own_reward, *(reward for reward in given if reward is not self.own_reward)],
            args=args,
            processing_class=processing_class,
            **kwargs,
        )
        self.own_reward.bind(self, config)
        if getattr(args, policy_logprob.NAME, False):
            policy_logprob.install_all(self)
        host.hush_unscorable()

    def prepare(self, config: Any, args: GRPOConfig, tokenizer: Any) -> None:
        """What the settings change of TRL's arguments and of the tokenizer before there is a trainer."""

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """None to a whole group is a reward that does not apply there; None to one sample of it is no 0."""
        rewards = super()._calculate_rewards(*args, **kwargs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups = rewards.view(-1, size, rewards.shape[1])
        applies = ~groups.isnan().all(dim=1, keepdim=True)
        missing = (groups.isnan() & applies).any(dim=-1) | groups[..., 0].isnan()
        return torch.where(missing[..., None], torch.nan, groups).view_as(rewards)
