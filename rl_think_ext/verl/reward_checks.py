"""Settings of verl that would lose, mix or cut what its reward workers score; the same for every method they score."""

from __future__ import annotations

from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.verl.sample_info import SampleForm

# Those whose advantages a sample without a score leaves alone; tested one by one.
GROUPED = ("grpo", "rloo")
ESTIMATORS = (*GROUPED, "gae")


def compares(config: Any) -> bool:
    """Whether outputs are compared with others to the same prompt; with a critic they are not."""
    return config.algorithm.adv_estimator in GROUPED


def check_rewards(config: Any, form: SampleForm, dataset: str) -> None:
    """Check how outputs are sampled, scored and compared, before anything is started.

    Args:
        form: Of the method's samples.
        dataset: The name of its dataset class.

    Raises:
        UserError: naming the key, the value that is needed and the reason.
    """
    _check_advantage(config)
    _check_manager(config, form.method)
    _check_loop(config, form, dataset)


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
    size = rollout.prompt_length + rollout.response_length + (rollout.name == "sglang")
    if positions is not None and size > positions:
        raise UserError(
            f"data.max_response_length: a prompt of {rollout.prompt_length} tokens and a response of "
            f"{rollout.response_length} need {size} positions, the model and actor_rollout_ref.rollout.max_model_len "
            f"give {positions}: what is cut off there would be judged as finished. Lower it, or data.max_prompt_length"
        )


def need(config: Any, key: str, value: Any, why: str) -> None:
    """Refuse another value of a key.

    Raises:
        UserError: naming the key, the value and the reason.
    """
    node = config
    for name in key.split("."):
        node = None if node is None else node.get(name)
    if (node or False) != (value or False):
        raise UserError(f"{key}: {node}: {why}. Say `{key}: {'null' if value is None else str(value).lower()}`")


def warn_of_sampling(config: Any) -> list[str]:
    """Warnings about how outputs end."""
    if not config.actor_rollout_ref.rollout.get("ignore_eos"):
        return []
    return ["actor_rollout_ref.rollout.ignore_eos: true lets every output run into the length limit"]


def _check_advantage(config: Any) -> None:
    algorithm, rollout = config.algorithm, config.actor_rollout_ref.rollout
    if algorithm.adv_estimator not in ESTIMATORS:
        raise UserError(
            f"algorithm.adv_estimator: {algorithm.adv_estimator} would count an output without a score as one with the "
            f"score 0: say one of {', '.join(ESTIMATORS)}"
        )
    if compares(config) and rollout.n < 2:
        raise UserError(
            f"actor_rollout_ref.rollout.n: {rollout.n} with algorithm.adv_estimator: {algorithm.adv_estimator}: an "
            "output is compared with others to the same prompt, so n is at least 2 (or `adv_estimator: gae`)"
        )
    need(config, "algorithm.use_kl_in_reward", False, "the reward is the score alone; a KL term is one of the loss")
    why = "groups would be chosen by scores that nobody has settled over the step yet"
    need(config, "algorithm.filter_groups.enable", False, why)
    why = "it would take outputs out of the loss, but not out of what the loss is divided by"
    need(config, "algorithm.rollout_correction.rollout_rs", None, why)


def _check_manager(config: Any, method: str) -> None:
    manager, function = config.reward.reward_manager, config.reward.custom_reward_function
    if manager.source != "register" or manager.name != method:
        raise UserError(
            f"reward.reward_manager: {manager.name} (source {manager.source}) does not take outputs apart: say "
            f"`reward.reward_manager.source: register` and `reward.reward_manager.name: {method}`"
        )
    path, name = f"pkg://rl_think_ext.verl.{method}_reward", method
    if function.path is not None and (function.path, function.name) != (path, name):
        raise UserError(
            f"reward.custom_reward_function: {function.path} is never called beside the reward manager `{method}`: "
            "take it out, or register a manager of your own"
        )
    if config.reward.reward_model.enable and function.path is None:
        raise UserError(
            "reward.reward_model.enable: true without reward.custom_reward_function: verl would show its reward model "
            f"whole outputs, and ask in its own words. Say `reward.custom_reward_function.path: {path}` and "
            f"`.name: {name}`"
        )


def _check_loop(config: Any, form: SampleForm, dataset: str) -> None:
    rollout = config.actor_rollout_ref.rollout
    if config.data.custom_cls.name != dataset:
        raise UserError(
            f"data.custom_cls.name: {config.data.custom_cls.name}: a row of it may ask for another agent loop. Say "
            f"`data.custom_cls.path=pkg://rl_think_ext.verl data.custom_cls.name={dataset}`, which reads files in "
            "verl's own form, too"
        )
    why = f"prompts and ends of outputs are those of `{form.loop}`"
    need(config, "actor_rollout_ref.rollout.agent.default_agent_loop", form.loop, why)
    one_turn = f"{form.method.upper()} has one turn and no tools"
    need(config, "actor_rollout_ref.rollout.multi_turn.enable", False, one_turn)
    for name in ("tool_config_path", "function_tool_path"):
        if rollout.multi_turn.get(name):
            raise UserError(f"actor_rollout_ref.rollout.multi_turn.{name}: {one_turn}: take it out")
