"""ThinkGRPOTrainer: TRL's GRPOTrainer plus what a reward function alone cannot do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig, spread
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.template import CLOSE_TAG, TagIds
from rl_think_ext.trl import host, policy_logprob
from rl_think_ext.trl.rlp_reward import InformationGain


@dataclass
class ThinkGRPOConfig(policy_logprob.KernelOption, GRPOConfig):
    """GRPOConfig with the defaults that make it RLP (arXiv 2510.01265, eq. 7 and 8)."""

    loss_type: str = field(default="grpo", metadata={"help": "Mean over a thought's tokens, then over thoughts."})
    scale_rewards: str = field(default="none", metadata={"help": "Eq. 7 divides by no standard deviation."})


class ThinkGRPOTrainer(GRPOTrainer):
    """GRPOTrainer for RLP: exact advantage, prompts as token ids, stop at the closing tag, averages in checkpoints.

    The advantage is eq. 7 over the *reasoned* scores of the scorable samples of a group: the baseline is the same
    for all of them and cancels, so here it cannot move an update by a bit. Other rewards are added by their weights.

    Args:
        model, args, train_dataset, processing_class, **kwargs: As GRPOTrainer takes them.
        rlp: The method's settings.
        reward_funcs: Further rewards, beside the information gain, which comes first; a subclass of InformationGain
            among them takes its place, and eq. 7 is then formed from what it pays.
    """

    forms_advantage = True

    def __init__(
        self,
        model: Any,
        args: GRPOConfig | None = None,
        *,
        rlp: RLPConfig | None = None,
        reward_funcs: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args or ThinkGRPOConfig("rlp-run")
        if isinstance(model, str):
            # Weights in a pickle can run code: only whoever says `use_safetensors: false` gets them loaded (F38).
            args.model_init_kwargs = {"use_safetensors": True, **(args.model_init_kwargs or {})}
        processing_class = tokenizer_for(model, args) if processing_class is None else processing_class
        _tell_vllm_to_stop(args, TagIds.of(processing_class))
        given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        self.information_gain, others = _own(given)
        if rlp and self.information_gain.given not in (None, rlp):
            name = self.information_gain.__name__
            raise UserError(f"the reward {name} has settings of its own that are not the trainer's: give one of them")
        super().__init__(
            model=model,
            reward_funcs=[self.information_gain, *others],
            args=args,
            processing_class=processing_class,
            **kwargs,
        )
        tags = TagIds.of(processing_class)
        if tags.single:
            host.stop_at(self, tags.close[0])
        self.information_gain.bind(self, rlp or self.information_gain.given or self.information_gain.kind())
        if getattr(args, policy_logprob.NAME, False):
            policy_logprob.install_all(self)
        host.hush_unscorable()
        self._rows: list[dict[str, Any]] = []
        self._rewards: torch.Tensor | None = None

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Rows that bring token ids are sampled from exactly those ids; no text stands between (F31)."""
        ids, images, fields = super()._tokenize_prompts(prompts)
        reader = self.information_gain.reader
        for i, row in enumerate(self._rows):
            if row.get("context_ids") is not None:
                where = f"row {row.get('id', i)}"
                ids[i] = list(reader.prompt(row, reader.context(row, where), where))
        return ids, images, fields

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        output = super()._generate_and_score_completions(inputs)
        advantages = self._advantages()
        host.replace_logged_advantages(self, advantages.tolist())
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[start : start + len(inputs)].to(output["advantages"])
        if self.model.training and self.information_gain.adds_loss:
            # Shuffled and split with the rest: a batch of the loss knows which of the samples it holds.
            output["sample_row"] = torch.arange(len(inputs), device=output["advantages"].device)
        if "importance_sampling_ratio" in output:
            dropped = dropped_by_length(output["importance_sampling_ratio"], output["completion_mask"])
            prefix = self.information_gain.prefix
            host.log_metrics(self, {f"{prefix}vllm_dropped_{which}": share for which, share in dropped.items()})
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, and what the method adds to it."""
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        if "sample_row" not in inputs:
            return loss
        added = self.information_gain.added_loss(inputs["sample_row"].tolist())
        return loss + added / self.current_gradient_accumulation_steps

    def _advantages(self) -> torch.Tensor:
        """Eq. 7 for the samples of all ranks, [B]."""
        gains = self.information_gain.last
        assert gains is not None and self._rewards is not None
        size = self.num_generations if self.model.training else self.num_generations_eval
        rewards, noise = self._rewards.clone(), 0.0
        reasoned = gains.column("reasoned").to(rewards)
        if self.information_gain.pays_gain:
            rewards[:, 0], noise = reasoned, gains.noise
        else:
            # What is made of scores that differ by noise alone is noise too, whatever its unit (F47).
            paid = rewards[:, 0].view(-1, size)
            quiet = (spread(reasoned, size) <= gains.noise)[:, None] & ~paid.isnan()
            rewards[:, 0] = torch.where(quiet, paid.nanmean(-1, keepdim=True), paid).flatten()
        # A reward that says None to a whole group does not apply there; None to one sample of it is no 0.
        groups = rewards.view(-1, size, rewards.shape[1])
        applies = ~groups.isnan().all(dim=1, keepdim=True)
        missing = (groups.isnan() & applies).any(dim=-1).flatten()
        weights = self.reward_weights.to(rewards)
        total = (rewards * weights).nansum(dim=1)
        total[missing | rewards[:, 0].isnan()] = torch.nan
        return self.information_gain.advantage(total, size, noise * float(weights[0].abs()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.information_gain.resume_from = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def _own(rewards: list[Any]) -> tuple[InformationGain, list[Any]]:
    """The information gain or the one subclass of it that was given, and the other rewards.

    Raises:
        UserError: two of them, or one that is not the first: the weights would belong to other rewards.
    """
    own = [reward for reward in rewards if isinstance(reward, InformationGain)]
    if len(own) > 1:
        names = ", ".join(reward.__name__ for reward in own)
        raise UserError(f"reward_funcs: {names} each score every thought; give one of them")
    if own and rewards[0] is not own[0]:
        raise UserError(f"reward_funcs: put {own[0].__name__} first, and its weight too: it takes the gain's place")
    return own[0] if own else InformationGain(), rewards[1:] if own else rewards


def dropped_by_length(ratio: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Share of thoughts that vLLM's importance-sampling correction leaves without any gradient, by length.

    Args:
        ratio: [B, T] or [B, 1] factors of the loss; a thought whose factors are all 0 is dropped.
        mask: [B, T], 1 at a thought's tokens.

    Returns:
        "short" and "long": the thoughts up to the median length and those above it; NaN where there are none.
    """
    length = mask.sum(-1).float()
    dropped = ((ratio * mask) == 0).all(-1).float()
    long = length > length.median()
    return {"short": float(dropped[~long].mean()), "long": float(dropped[long].mean())}


def tokenizer_for(model: Any, args: GRPOConfig) -> Any:
    """The tokenizer of a model by name or of one that was loaded, padding and truncating on the left."""
    name = model if isinstance(model, str) else model.config._name_or_path
    tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return tokenizer


def _tell_vllm_to_stop(args: GRPOConfig, tags: TagIds) -> None:
    """vLLM reads its stops when it is built: an id where the tag is one token, the string otherwise."""
    if not args.use_vllm:
        return
    kwargs = dict(args.generation_kwargs or {})
    if tags.single:
        kwargs["stop_token_ids"] = sorted({*(kwargs.get("stop_token_ids") or []), tags.close[0]})
    else:
        stops = kwargs.get("stop") or []
        kwargs["stop"] = sorted({*([stops] if isinstance(stops, str) else stops), CLOSE_TAG})
        kwargs["include_stop_str_in_output"] = True
    args.generation_kwargs = kwargs
