"""RLMTTrainer: TRL's GRPOTrainer plus what RLMT's reward alone cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from rl_think_ext.errors import UserError
from rl_think_ext.formats import read_instruction, zero_chat_template
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.outputs import cut_behind
from rl_think_ext.trl import host, policy_logprob
from rl_think_ext.trl.rlmt_reward import PreferenceScore
from rl_think_ext.trl.trainer import tokenizer_for


@dataclass
class RLMTGRPOConfig(policy_logprob.KernelOption, GRPOConfig):
    """GRPOConfig, and `logprob_kernel`. RLMT changes none of GRPO's defaults."""


class RLMTTrainer(GRPOTrainer):
    """GRPOTrainer for RLMT (arXiv 2509.20357): frame for raw base models, stop at the response's end, no score is no 0.

    Args:
        model, args, train_dataset, processing_class, **kwargs: As GRPOTrainer takes them.
        rlmt: The method's settings.
        reward_funcs: Further rewards, beside the score, which comes first. A sample for which one of them is missing,
            while others of its group have it, is unscorable as a whole.
    """

    forms_advantage = True

    def __init__(
        self,
        model: Any,
        args: GRPOConfig | None = None,
        *,
        rlmt: RLMTConfig | None = None,
        reward_funcs: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args or RLMTGRPOConfig("rlmt-run")
        if isinstance(model, str):
            # Weights in a pickle can run code: only whoever says `use_safetensors: false` gets them loaded (F38).
            args.model_init_kwargs = {"use_safetensors": True, **(args.model_init_kwargs or {})}
        processing_class = tokenizer_for(model, args) if processing_class is None else processing_class
        given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        own = [reward for reward in given if isinstance(reward, PreferenceScore)]
        self.preference = own[0] if own else PreferenceScore()
        self.rlmt = rlmt or self.preference.given or RLMTConfig()
        if own and own[0].given not in (None, self.rlmt):
            raise UserError("the reward rlmt has settings of its own that are not the trainer's: give one of them")
        if self.rlmt.style in ("response", "response-only"):
            words = read_instruction(self.rlmt.instruction_file)
            processing_class.chat_template = zero_chat_template(self.rlmt.style, words, tokenizer=processing_class)
        if args.use_vllm and self.rlmt.stop:
            tell_vllm_to_stop(args, self.rlmt.stop)
        super().__init__(
            model=model,
            reward_funcs=[self.preference, *(reward for reward in given if reward is not self.preference)],
            args=args,
            processing_class=processing_class,
            **kwargs,
        )
        self.preference.bind(self, self.rlmt)
        if getattr(args, policy_logprob.NAME, False):
            policy_logprob.install_all(self)
        host.hush_unscorable()

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """The transformers path stops at a text, too; vLLM does so by its own settings."""
        stop = self.rlmt.stop
        if stop is None or self.use_vllm:
            return super()._generate_single_turn(*args, **kwargs)
        with host.stopping_at(self, stop):
            completions, *rest = super()._generate_single_turn(*args, **kwargs)
        # What ended before its batch did is padded, and padding that ends no text would be trained.
        tokenizer = host.tokenizer_of(self)
        return [cut_behind(ids, stop, tokenizer) for ids in completions], *rest

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """None to a whole group is a reward that does not apply there; None to one sample of it is no 0."""
        rewards = super()._calculate_rewards(*args, **kwargs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups = rewards.view(-1, size, rewards.shape[1])
        applies = ~groups.isnan().all(dim=1, keepdim=True)
        missing = (groups.isnan() & applies).any(dim=-1) | groups[..., 0].isnan()
        return torch.where(missing[..., None], torch.nan, groups).view_as(rewards)


def tell_vllm_to_stop(args: GRPOConfig, text: str) -> None:
    """vLLM reads its stops when it is built; the closing tag belongs to the output and is kept."""
    kwargs = dict(args.generation_kwargs or {})
    stops = kwargs.get("stop") or []
    kwargs["stop"] = sorted({*([stops] if isinstance(stops, str) else stops), text})
    kwargs["include_stop_str_in_output"] = True
    args.generation_kwargs = kwargs
