"""Settings of TRL that spoil any method whose outputs are scored elsewhere and compared within their group."""

from __future__ import annotations

from typing import Any

from rl_think_ext.errors import UserError


def check_groups(trainer: Any, unit: str) -> None:
    """Refuse groups of one, and an aggregation that takes a missing score for an average one.

    Args:
        unit: What is scored: "an answer".

    Raises:
        UserError: naming the setting and the value that is needed.
    """
    args = trainer.args
    if args.num_generations < 2:
        raise UserError(f"num_generations is at least 2: {unit} is compared with others to the same prompt.")
    if args.multi_objective_aggregation == "normalize_then_sum" and len(trainer.reward_funcs) > 1:
        raise UserError(
            "multi_objective_aggregation: normalize_then_sum counts a missing score as an average one. Say "
            "`multi_objective_aggregation: sum_then_normalize`."
        )


def check_others(
    trainer: Any, kind: type, name: str, unit: str, *, own: tuple[type, ...] = (), terms: str = ""
) -> None:
    """A stock trainer takes a missing score for 0 beside other rewards; the method's own stands first, and once.

    Args:
        kind, name: The method's reward.
        own: Rewards that are missing with it.
        terms: Their words.

    Raises:
        UserError: other rewards under the stock trainer, or in the wrong order.
    """
    rewards = trainer.reward_funcs
    scores = [isinstance(reward, kind) for reward in rewards]
    if not all(isinstance(one, (kind, *own)) for one in rewards) and not getattr(trainer, "forms_advantage", False):
        raise UserError(
            f"beside other rewards the stock trainer counts {unit} without a score as a score of 0: use `rl-think "
            f"train`, or rl_think_ext.trl.{name}{terms} alone."
        )
    if scores[0] is False or sum(scores) > 1:
        raise UserError(f"reward_funcs: rl_think_ext.trl.{name} stands first, and once: others are paid beside it")


def dropped_outputs(args: Any) -> list[str]:
    """A warning where vLLM's correction of its own log-probs leaves out whole long outputs (hazard 19)."""
    if not args.use_vllm or not args.vllm_importance_sampling_correction:
        return []
    mode = args.vllm_importance_sampling_mode
    if not mode.startswith("sequence"):
        return []
    return [
        f"vllm_importance_sampling_correction is on ({mode}): it drops whole long outputs. Say "
        "`vllm_importance_sampling_mode: token_truncate`, or `vllm_importance_sampling_correction: false`."
    ]
