"""Settings of TRL that would silently make it something other than RLP: refused, or warned about, with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_TAG, TagIds

# Setting, wanted value, what happens otherwise.
Line = tuple[str, Any, str]
_REFUSED: tuple[Line, ...] = (
    ("scale_rewards", "none", "eq. 7 does not divide by a standard deviation"),
    ("loss_type", "grpo", "eq. 8 is a mean over the tokens of a thought, then over thoughts"),
    ("importance_sampling_level", "token", "eq. 8 has one ratio per token"),
    ("multi_objective_aggregation", "sum_then_normalize", "the other way divides by a standard deviation"),
    ("remove_unused_columns", False, "the columns context and target would not reach the reward"),
)
_WARNED: tuple[Line, ...] = (
    ("beta", 0.0, "eq. 8 has no KL term"),
    ("delta", None, "eq. 8 is not clipped from above"),
    ("top_entropy_quantile", 1.0, "eq. 8 takes every token of a thought"),
    ("entropy_coef", 0.0, "eq. 8 has no entropy bonus"),
    ("use_adaptive_entropy", False, "eq. 8 has no entropy bonus"),
    ("off_policy_mask_threshold", None, "it drops whole thoughts"),
    ("mask_truncated_completions", False, "thoughts that were cut off are then not trained on"),
)


def check_settings(args: Any) -> list[str]:
    """The warnings for a GRPOConfig; what makes it not-RLP raises.

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    refuse(args, "RLP", _REFUSED)
    if args.num_generations < 2:
        raise UserError("num_generations is at least 2: a thought is compared with others on the same context.")
    if args.bf16 and str(args.device).startswith("cpu"):
        raise UserError("bf16 on a CPU (TRL's default) rounds the rewards away: say `bf16: false`.")
    return differing(args, "RLP", _WARNED) + _vllm(args) + schedule(args)


def refuse(args: Any, method: str, table: Sequence[Line]) -> None:
    """Refuse a GRPOConfig in which a setting has not the value of the table.

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    for name, wanted, reason in table:
        if getattr(args, name) != wanted:
            raise UserError(
                f"{name}: {getattr(args, name)!r} is not {method}: {reason}. Say `{name}: {_yaml(wanted)}`."
            )


def differing(args: Any, method: str, table: Sequence[Line]) -> list[str]:
    """A warning for each setting that has not the value of the table."""
    return [
        f"{name}: {getattr(args, name)!r} differs from {method}: {reason} (`{name}: {_yaml(wanted)}`)"
        for name, wanted, reason in table
        if getattr(args, name) != wanted
    ]


def _vllm(args: Any) -> list[str]:
    if not args.use_vllm or not args.vllm_importance_sampling_correction:
        return []
    mode = args.vllm_importance_sampling_mode
    what = "drops whole long thoughts" if mode.startswith("sequence") else "reweights tokens"
    return [
        f"vllm_importance_sampling_correction is on ({mode}): it {what} and is not eq. 8. Say "
        "`vllm_importance_sampling_correction: false`, or `vllm_importance_sampling_mode: token_truncate`."
    ]


def schedule(args: Any) -> list[str]:
    """A checkpoint inside a generation cycle resumes with another schedule."""
    cycle = max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)
    steps = args.save_steps
    if str(args.save_strategy).endswith("no") or cycle == 1 or (steps >= 1 and steps % cycle == 0):
        return []
    return [f"save_steps: {steps} is no multiple of the {cycle} steps of a generation cycle: a resumed run differs"]


def check_stop(trainer: Any, tags: TagIds) -> None:
    """Refuse a sampler that runs on behind the closing tag: what it writes there would be trained as thought.

    Raises:
        UserError: saying how this path can be made to stop.
    """
    kwargs = trainer.args.generation_kwargs or {}
    if trainer.use_vllm:
        stops = kwargs.get("stop") or []
        texts = [stops] if isinstance(stops, str) else list(stops)
        if CLOSE_TAG in texts or (tags.single and tags.close[0] in (kwargs.get("stop_token_ids") or [])):
            return
        wanted = f"stop_token_ids: [{tags.close[0]}]" if tags.single else f'stop: ["{CLOSE_TAG}"]'
        raise UserError(f"vLLM would not stop at {CLOSE_TAG}: say `generation_kwargs: {{{wanted}}}`.")
    if not tags.single:
        raise UserError(
            f"{CLOSE_TAG} is {len(tags.close)} tokens here, and the transformers path stops at single ids only: use "
            f"vLLM, or give the tokenizer the tags as tokens of their own (tokenizer.add_tokens)."
        )
    if tags.close[0] not in trainer.eos_token_ids:
        raise UserError(
            f"sampling would not stop at {CLOSE_TAG}: add {tags.close[0]} to `eos_token_id` in the model's "
            "generation_config.json, or use `rl-think train`, which does it by itself."
        )


def check_rewards(trainer: Any) -> None:
    """Refuse further rewards where the trainer would take a missing gain for a gain of 0 (F1-F15: None is no number).

    Raises:
        UserError: several rewards under a trainer that does not form the advantage itself.
    """
    if len(trainer.reward_funcs) > 1 and not getattr(trainer, "forms_advantage", False):
        raise UserError(
            "beside other rewards the stock trainer counts an unscorable thought as a gain of 0: use `rl-think train` "
            "(ThinkGRPOTrainer), or rlp alone."
        )


def warn_all(messages: list[str]) -> None:
    """Say each warning once, aloud."""
    for message in messages:
        warnings.warn(message, stacklevel=3)


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
