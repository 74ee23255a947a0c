"""Settings of verl, templates and tokenizers that would silently make a run something other than RLMT."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.chat_prompt import PROBE, check_end_of_turn, check_thought, prompt_ids
from rl_think_ext.template import OPEN_TAG, TagIds
from rl_think_ext.verl.reward_checks import check_rewards, need, warn_of_sampling
from rl_think_ext.verl.rlmt_sample import FORM
from rl_think_ext.verl.stops import stop_at


def check_config(config: Any, settings: RLMTConfig) -> list[str]:
    """Check verl's config before anything is started; warnings come back.

    Raises:
        UserError: naming the key, the value that is needed and the reason.
    """
    check_rewards(config, FORM, "RLMTDataset")
    _check_model(config, settings)
    stop_at({}, config.actor_rollout_ref.rollout.name, text=settings.stop)
    if settings.stop and config.actor_rollout_ref.rollout.name == "sglang":
        need(config, "actor_rollout_ref.rollout.skip_tokenizer_init", False, f"it could not stop at {settings.stop}")
    return _warnings(config, settings)


def check_template(config: Any, settings: RLMTConfig, tokenizer: Any, ends: Container[int]) -> list[str]:
    """Check the policy's template and tokenizer; warnings come back.

    Raises:
        UserError: a template that thinks where the style does not, or none at all.
    """
    options = dict(config.data.get("apply_chat_template_kwargs") or {})
    prefills = bool(config.rl_think.get("prefill_think"))
    if prefills and settings.style not in ("think", "response"):
        raise UserError(f"rl_think.prefill_think: true puts {OPEN_TAG} before an output of style {settings.style}")
    if prefills:
        TagIds.of(tokenizer)
    ids = prompt_ids(PROBE, settings, tokenizer, "the probe", options)
    if settings.stop:
        return []
    prompt = str(tokenizer.decode(ids, skip_special_tokens=False)).rstrip()
    check_thought(prompt, settings.style, "data.apply_chat_template_kwargs")
    return check_end_of_turn(tokenizer, ends)


def _check_model(config: Any, settings: RLMTConfig) -> None:
    served = config.reward.reward_model
    if not served.enable:
        if not settings.reward_model:
            raise UserError("rl_think.rlmt.reward_model names no model: a folder or a hub name of a reward model")
        return
    if served.rollout.name != "vllm":
        raise UserError(
            f"reward.reward_model.rollout.name: {served.rollout.name} has no /classify that takes token ids: say vllm"
        )
    if not served.model_path or settings.reward_model not in ("", served.model_path):
        raise UserError(
            f"reward.reward_model.model_path: {served.model_path} and rl_think.rlmt.reward_model: "
            f"{settings.reward_model or 'nothing'} have to name one model: its template is read from there"
        )
    if settings.server or settings.backend == "local" or settings.output == "score":
        raise UserError(
            "reward.reward_model.enable: true serves the reward model: take `server`, `backend: local` and `output: "
            "score` out of rl_think.rlmt"
        )


def _warnings(config: Any, settings: RLMTConfig) -> list[str]:
    found = []
    num = config.reward.num_workers
    if num > 1 and not settings.server and not config.reward.reward_model.enable:
        found.append(
            f"reward.num_workers: {num} processes load the reward model, each into the memory of its machine, and run "
            "it on the CPU: say `reward.num_workers: 1`, or serve it (`rl_think.rlmt.server`)"
        )
    return [*found, *warn_of_sampling(config)]
