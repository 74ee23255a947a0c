"""Settings of verl and tokenizers that would silently make a run something other than RLPT."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.scoring.chat_prompt import check_end_of_turn
from rl_think_ext.scoring.prediction_prompt import check_tags
from rl_think_ext.verl.reward_checks import check_rewards, warn_of_sampling
from rl_think_ext.verl.rlpt_sample import FORM

# Engines whose servers answer /v1/chat/completions behind verl's router.
_SERVE_CHATS = ("vllm", "sglang")


def check_config(config: Any, settings: RLPTConfig) -> list[str]:
    """Check verl's config before anything is started; warnings come back.

    Raises:
        UserError: naming the key, the value that is needed and the reason.
    """
    check_rewards(config, FORM, "RLPTDataset")
    if config.reward.reward_model.enable:
        _check_service(config, settings)
    return _warnings(config)


def check_tokenizer(tokenizer: Any, ends: Container[int]) -> list[str]:
    """Check that predictions can be read and end; warnings come back. A base model needs no chat template.

    Raises:
        UserError: a tokenizer that cannot write the tags.
    """
    check_tags(tokenizer)
    return check_end_of_turn(tokenizer, ends) if tokenizer.chat_template else []


def _check_service(config: Any, settings: RLPTConfig) -> None:
    """verl's own service as the judge."""
    served = config.reward.reward_model
    if served.rollout.name not in _SERVE_CHATS:
        raise UserError(
            f"reward.reward_model.rollout.name: {served.rollout.name} is not known to answer /v1/chat/completions: say "
            f"one of {', '.join(_SERVE_CHATS)}"
        )
    if not served.model_path or settings.judge_model not in ("", served.model_path):
        raise UserError(
            f"reward.reward_model.model_path: {served.model_path} and rl_think.rlpt.judge_model: "
            f"{settings.judge_model or 'nothing'} have to name one model: verl serves it under its path"
        )
    if settings.judge != "server" or settings.server:
        raise UserError(
            "reward.reward_model.enable: true serves the judge: take `server` and `judge: rule` out of rl_think.rlpt"
        )


def _warnings(config: Any) -> list[str]:
    found = warn_of_sampling(config)
    if config.actor_rollout_ref.actor.use_kl_loss:
        found.append("actor_rollout_ref.actor.use_kl_loss: true: the paper has no KL term")
    return found
