"""RLMTTrainer: TRL's GRPOTrainer plus what RLMT's reward alone cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig

from rl_think_ext.formats import read_instruction, zero_chat_template
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.outputs import cut_behind
from rl_think_ext.trl import host, policy_logprob
from rl_think_ext.trl.rlmt_reward import PreferenceScore
from rl_think_ext.trl.step_trainer import StepTrainer


@dataclass
class RLMTGRPOConfig(policy_logprob.KernelOption, GRPOConfig):
    """GRPOConfig, and `logprob_kernel`. RLMT changes none of GRPO's defaults."""


class RLMTTrainer(StepTrainer):
    """GRPOTrainer for RLMT (arXiv 2509.20357): frame for raw base models, stop at the response's end, no score is no 0.

    Args:
        model, args, train_dataset, processing_class, **kwargs: As GRPOTrainer takes them.
        rlmt: The method's settings.
        reward_funcs: Further rewards, beside the score, which comes first; see StepTrainer.
    """

    reward_kind = PreferenceScore
    own_reward: PreferenceScore

    def __init__(
        self, model: Any, args: GRPOConfig | None = None, *, rlmt: RLMTConfig | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, args or RLMTGRPOConfig("rlmt-run"), rlmt, **kwargs)

    @property
    def preference(self) -> PreferenceScore:
        """The method's own reward."""
        return self.own_reward

    def prepare(self, config: RLMTConfig, args: GRPOConfig, tokenizer: Any) -> None:
        """A raw base model gets its frame as a template, and vLLM the text at which it stops."""
        self.rlmt = config
        if config.style in ("response", "response-only"):
            words = read_instruction(config.instruction_file)
            tokenizer.chat_template = zero_chat_template(config.style, words, tokenizer=tokenizer)
        if args.use_vllm and config.stop:
            tell_vllm_to_stop(args, config.stop)

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


def tell_vllm_to_stop(args: GRPOConfig, text: str) -> None:
    """vLLM reads its stops when it is built; the closing tag belongs to the output and is kept."""
    kwargs = dict(args.generation_kwargs or {})
    stops = kwargs.get("stop") or []
    kwargs["stop"] = sorted({*([stops] if isinstance(stops, str) else stops), text})
    kwargs["include_stop_str_in_output"] = True
    args.generation_kwargs = kwargs
