"""RLPTTrainer: TRL's GRPOTrainer plus what RLPT's reward alone cannot do: lambda, on the advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig

from rl_think_ext.methods.rlpt import RLPTConfig, weighted
from rl_think_ext.scoring.prediction_prompt import asked_of
from rl_think_ext.trl import host, policy_logprob
from rl_think_ext.trl.rlpt_reward import PredictionScore
from rl_think_ext.trl.step_trainer import StepTrainer


@dataclass
class RLPTGRPOConfig(policy_logprob.KernelOption, GRPOConfig):
    """GRPOConfig, and `logprob_kernel`. RLPT changes none of GRPO's defaults; its recipes say `loss_type: grpo`."""


class RLPTTrainer(StepTrainer):
    """GRPOTrainer for RLPT (arXiv 2509.19249): samples of MSR count `msr_weight`, and no verdict is no 0.

    Args:
        model, args, train_dataset, processing_class, **kwargs: As GRPOTrainer takes them.
        rlpt: The method's settings.
        reward_funcs: Further rewards, beside the judge's, which comes first; see StepTrainer.
    """

    weighs_tasks = True
    reward_kind = PredictionScore
    own_reward: PredictionScore

    def __init__(
        self, model: Any, args: GRPOConfig | None = None, *, rlpt: RLPTConfig | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, args or RLPTGRPOConfig("rlpt-run"), rlpt, **kwargs)

    @property
    def prediction(self) -> PredictionScore:
        """The method's own reward."""
        return self.own_reward

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Lambda behind TRL's own advantage: dividing by a group's spread would take any factor on the reward away.

        Raises:
            UserError: a prompt that cannot be asked, naming its row.
        """
        # Before the trainer's own templates: what they raise names no row (F32).
        for i, row in enumerate(inputs):
            asked_of(row.get("prompt"), f"row {row.get('id') or f'{i} of the batch'}")
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        weight = self.prediction.config.msr_weight
        if weight != 1.0:
            tasks, mine = self.prediction.tasks(), self.accelerator.process_index * len(inputs)
            advantages = weighted(self.accelerator.gather(output["advantages"]), tasks, weight)
            host.replace_logged_advantages(self, advantages.tolist())
            output["advantages"] = advantages[mine : mine + len(inputs)]
        return output
