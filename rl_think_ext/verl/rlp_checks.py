"""Settings of verl that would silently make it something other than RLP: refused, or warned about, with the reason."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.verl.stops import stop_at

_ACTOR, _ROLLOUT, _MODEL = (f"actor_rollout_ref.{part}." for part in ("actor", "rollout", "model"))
# verl's loss bounds a ratio by e^20: above that its second clip never acts.
NO_DUAL_CLIP = math.exp(20)

# (key, what it may be, what happens otherwise); the first of the values is the one to say
_REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("model_engine", ("dp", None), "averages of weights are kept per shard of FSDP2, and of nothing else"),
    ("algorithm.adv_estimator", ("rlp", "rloo", "rloo_vectorized"), "eq. 7 compares a thought with those beside it"),
    ("algorithm.use_kl_in_reward", (False,), "the reward is the information gain alone"),
    ("algorithm.filter_groups.enable", (False,), "verl drops groups before RLP's reward is known"),
    ("algorithm.rollout_correction.rollout_rs", (None,), "it takes whole thoughts out of the loss"),
    (_ACTOR + "loss_agg_mode", ("seq-mean-token-mean",), "eq. 8 is a mean over a thought's tokens, then over thoughts"),
    (_ACTOR + "policy_loss.loss_mode", ("vanilla",), "eq. 8 is the clipped ratio per token"),
    (_ACTOR + "strategy", ("fsdp2",), "averages of weights are kept per shard of FSDP2, and of nothing else"),
    (_ACTOR + "ulysses_sequence_parallel_size", (1,), "a split sequence cannot be scored"),
    (_ACTOR + "fsdp_config.ulysses_sequence_parallel_size", (1,), "a split sequence cannot be scored"),
    (_MODEL + "use_fused_kernels", (False,), "fused kernels hide the logits that the reward needs"),
    (_ROLLOUT + "multi_turn.enable", (False,), "RLP samples one thought"),
    (_ACTOR + "qat.enable", (False,), "averages of weights that are quantised in training are not supported"),
    ("distillation.enabled", (False, None), "a teacher's loss is no part of RLP"),
    ("reward.reward_model.enable", (False,), "RLP's reward needs no other model"),
    ("critic.enable", (False, None), "RLP has no critic"),
    ("reward.reward_manager.name", ("naive",), "RLP's reward is formed by its trainer, and no manager is asked"),
    ("reward.custom_reward_function.path", (None,), "RLP's reward is no function, and this one would never be called"),
    ("trainer.use_v1", (True, None), "the older trainers have no place for RLP's reward"),
    ("trainer.v1.sampler.custom_sampler.path", (None,), "a sampler of one's own may drop thoughts"),
)
_WARNED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    (_ACTOR + "use_kl_loss", (False,), "eq. 8 has no KL term, and a reference model takes memory"),
    (_ACTOR + "entropy_coeff", (0, 0.0), "eq. 8 has no entropy bonus"),
    ("algorithm.rollout_correction.rollout_is", (None,), "it reweights tokens, which eq. 8 does not"),
)


def check_config(config: DictConfig, settings: RLPConfig) -> list[str]:
    """The warnings for verl's config; what makes it not-RLP raises.

    Raises:
        UserError: naming the key, the value that is needed and the reason.
    """
    for key, allowed, reason in _REFUSED:
        value = OmegaConf.select(config, key)
        if value not in allowed:
            raise UserError(f"{key}: {value!r} is not RLP: {reason}. Say `{key}={_hydra(allowed[0])}`.")
    _check_numbers(config)
    _check_data(config)
    # What cannot be told to stop would fail in every process that samples, and verl would drop the samples.
    stop_at({}, OmegaConf.select(config, _ROLLOUT + "name"), token=0)
    found = [
        f"{key}: {OmegaConf.select(config, key)!r} differs from RLP: {reason} (`{key}={_hydra(allowed[0])}`)"
        for key, allowed, reason in _WARNED
        if OmegaConf.select(config, key) not in allowed
    ]
    return found + _estimator(config) + _precision(config) + _bypass(config)


def _check_numbers(config: DictConfig) -> None:
    number = OmegaConf.select(config, _ROLLOUT + "n")
    if number < 2:
        raise UserError(
            f"{_ROLLOUT}n: {number}; it is at least 2: a thought is compared with others on the same context."
        )
    temperature = OmegaConf.select(config, _ROLLOUT + "temperature")
    if not temperature > 0:
        raise UserError(f"{_ROLLOUT}temperature: {temperature}; it is above 0: equal thoughts cannot be compared.")
    clip = OmegaConf.select(config, _ACTOR + "clip_ratio_c")
    if clip is None or clip < NO_DUAL_CLIP:
        raise UserError(
            f"{_ACTOR}clip_ratio_c: {clip} clips a second time where the advantage is negative, which eq. 8 does not. "
            f"Say `{_ACTOR}clip_ratio_c=1e9`, which no ratio reaches."
        )


def _check_data(config: DictConfig) -> None:
    name = OmegaConf.select(config, "data.custom_cls.name")
    if name != "RLPDataset":
        raise UserError(
            f"data.custom_cls.name: {name!r} has no contexts and targets. Say "
            "`data.custom_cls.path=pkg://rl_think_ext.verl data.custom_cls.name=RLPDataset`, as `+rl_think=rlp` does."
        )


def _estimator(config: DictConfig) -> list[str]:
    name = OmegaConf.select(config, "algorithm.adv_estimator")
    if name == "rlp":
        return []
    return [f"algorithm.adv_estimator: {name} is eq. 7 where all thoughts have a score; rlp also where some have none"]


def _precision(config: DictConfig) -> list[str]:
    """The reward is a small difference of large sums, and verl computes in bf16 unless it is told otherwise.

    Raises:
        UserError: averaged weights in bf16, or float16, which rounds the same way and scales its gradients.
    """
    key = _ACTOR + "fsdp_config."
    dtype = OmegaConf.select(config, key + "model_dtype")
    if dtype not in ("fp32", "float32", None):
        raise UserError(
            f"{key}model_dtype: {dtype} keeps the weights themselves in {dtype}, and an optimizer's small steps round "
            f"away. Say `{key}model_dtype=fp32`."
        )
    given = OmegaConf.select(config, key + "mixed_precision") or {}
    dtype = given.get("param_dtype", None)
    if dtype in ("fp16", "float16"):
        raise UserError(f"{key}mixed_precision.param_dtype: {dtype} is not supported: say fp32 or bf16.")
    if dtype in ("fp32", "float32", "bf16", "bfloat16"):
        return []
    return [
        f"{key}mixed_precision is not set, so verl computes in bf16: a reward is a small difference of large sums, and "
        f"rlp/score_noise says what is lost. Say `+{key}mixed_precision.param_dtype=bf16` to have it so, or =fp32 with "
        f"an attention that takes it: `+{_MODEL}override_config.attn_implementation=sdpa "
        f"{_MODEL}use_remove_padding=false`."
    ]


def _bypass(config: DictConfig) -> list[str]:
    if not OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"):
        return []
    return [
        "algorithm.rollout_correction.bypass_mode: true takes the rollout engine's log-probs for the policy's own; the "
        "reward is then a forward of its own, and nothing is saved"
    ]


def _hydra(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
