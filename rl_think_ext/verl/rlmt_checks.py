"""Settings of verl, templates and tokenizers that would silently make a run something other than RLMT."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.chat_prompt import PROBE, check_end_of_turn, check_thought, prompt_ids
from rl_think_ext.template import OPEN_TAG, TagIds
from rl_think_ext.verl.stops import stop_at

LOOP = "rl_think_chat"
FUNCTION = ("pkg://rl_think_ext.verl.rlmt_reward", "rlmt")
# Those whose advantages a sample without a score leaves alone; tested one by one.
GROUPED = ("grpo", "rloo")
ESTIMATORS = (*GROUPED, "gae")


def compares(config: Any) -> bool:
    """Whether outputs are compared with others to the same prompt; with a critic they are not."""
    return config.algorithm.adv_estimator in GROUPED


def check_config(config: Any, settings: RLMTConfig) -> list[str]:
    """Check verl's config before anything is started; warnings come back.

    Raises:
        UserError: naming the key, the value that is needed and the reason.
    """
    _check_advantage(config)
    _check_manager(config)
    _check_model(config, settings)
    _check_loop(config)
    stop_at({}, config.actor_rollout_ref.rollout.name, text=settings.stop)
    if settings.stop and config.actor_rollout_ref.rollout.name == "sglang":
        _need(config, "actor_rollout_ref.rollout.skip_tokenizer_init", False, f"it could not stop at {settings.stop}")
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


def check_room(config: Any, positions: int | None) -> None:
    """Refuse a context in which an output would end before `data.max_response_length`: it would count as finished.

    verl's servers cut sampling where the context ends, and call that completed.

    Args:
        positions: What the engine's context holds at most; None is unknown.

    Raises:
        UserError: naming the key.
    """
    rollout = config.actor_rollout_ref.rollout
    # SGLang keeps one position for itself.
    need = rollout.prompt_length + rollout.response_length + (rollout.name == "sglang")
    if positions is not None and need > positions:
        raise UserError(
            f"data.max_response_length: a prompt of {rollout.prompt_length} tokens and a response of "
            f"{rollout.response_length} need {need} positions, the model and actor_rollout_ref.rollout.max_model_len "
            f"give {positions}: what is cut off there would be judged as a finished answer. Lower it, or "
            "data.max_prompt_length"
        )


def _check_advantage(config: Any) -> None:
    algorithm, rollout = config.algorithm, config.actor_rollout_ref.rollout
    if algorithm.adv_estimator not in ESTIMATORS:
        raise UserError(
            f"algorithm.adv_estimator: {algorithm.adv_estimator} would count an answer without a score as one with the "
            f"score 0: say one of {', '.join(ESTIMATORS)}"
        )
    if compares(config) and rollout.n < 2:
        raise UserError(
            f"actor_rollout_ref.rollout.n: {rollout.n} with algorithm.adv_estimator: {algorithm.adv_estimator}: an "
            "answer is compared with others to the same prompt, so n is at least 2 (or `adv_estimator: gae`)"
        )
    _need(config, "algorithm.use_kl_in_reward", False, "the reward is the score alone; RLMT's KL term is in the loss")
    why = "groups would be chosen by raw scores, before the floor and the noise are known"
    _need(config, "algorithm.filter_groups.enable", False, why)
    why = "it would take outputs out of the loss, but not out of what the loss is divided by"
    _need(config, "algorithm.rollout_correction.rollout_rs", None, why)


def _check_manager(config: Any) -> None:
    manager, function = config.reward.reward_manager, config.reward.custom_reward_function
    if manager.source != "register" or manager.name != "rlmt":
        raise UserError(
            f"reward.reward_manager: {manager.name} (source {manager.source}) does not take outputs apart: say "
            "`reward.reward_manager.source: register` and `reward.reward_manager.name: rlmt`"
        )
    path, name = FUNCTION
    if function.path is not None and (function.path, function.name) != FUNCTION:
        raise UserError(
            f"reward.custom_reward_function: {function.path} is never called beside the reward manager `rlmt`: take it "
            "out, or register a manager of your own"
        )
    if config.reward.reward_model.enable and function.path is None:
        raise UserError(
            "reward.reward_model.enable: true without reward.custom_reward_function: verl would show its reward model "
            f"the thoughts and cut nothing. Say `reward.custom_reward_function.path: {path}` and `.name: {name}`"
        )


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


def _check_loop(config: Any) -> None:
    rollout = config.actor_rollout_ref.rollout
    if config.data.custom_cls.name != "RLMTDataset":
        raise UserError(
            f"data.custom_cls.name: {config.data.custom_cls.name}: a row of it may ask for another agent loop, without "
            "stops. Say `data.custom_cls.path=pkg://rl_think_ext.verl data.custom_cls.name=RLMTDataset`, which reads "
            "files in verl's own form, too"
        )
    why = f"prompts and stops are those of `{LOOP}`"
    _need(config, "actor_rollout_ref.rollout.agent.default_agent_loop", LOOP, why)
    one_turn = "RLMT has one turn and no tools"
    _need(config, "actor_rollout_ref.rollout.multi_turn.enable", False, one_turn)
    for name in ("tool_config_path", "function_tool_path"):
        if rollout.multi_turn.get(name):
            raise UserError(f"actor_rollout_ref.rollout.multi_turn.{name}: {one_turn}: take it out")


def _warnings(config: Any, settings: RLMTConfig) -> list[str]:
    found = []
    num = config.reward.num_workers
    if num > 1 and not settings.server and not config.reward.reward_model.enable:
        found.append(
            f"reward.num_workers: {num} processes load the reward model, each into the memory of its machine, and run "
            "it on the CPU: say `reward.num_workers: 1`, or serve it (`rl_think.rlmt.server`)"
        )
    if config.actor_rollout_ref.rollout.get("ignore_eos"):
        found.append("actor_rollout_ref.rollout.ignore_eos: true lets every output run into the length limit")
    return found


def _need(config: Any, key: str, value: Any, why: str) -> None:
    node = config
    for name in key.split("."):
        node = None if node is None else node.get(name)
    if (node or False) != (value or False):
        raise UserError(f"{key}: {node}: {why}. Say `{key}: {'null' if value is None else str(value).lower()}`")
