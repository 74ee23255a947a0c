"""A reward model from a folder or hub name: the whole of it in this process, whatever trains around it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.scoring.reward_input import RewardTemplate, max_length_of

if TYPE_CHECKING:
    from torch import nn

    from rl_think_ext.methods.rlmt import RLMTConfig


def load_reward_config(config: RLMTConfig) -> Any:
    """The reward model's own configuration.

    Raises:
        UserError: no reward model is named, nothing there, or it gives several scores.
    """
    from transformers import AutoConfig

    if not config.reward_model:
        raise UserError("`reward_model:` is missing: name a folder or hub name of a sequence-classification model")
    try:
        found = AutoConfig.from_pretrained(config.reward_model, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(_explain(config.reward_model, error)) from error
    if config.output == "logits" and found.num_labels != 1:
        raise UserError(
            f"`{config.reward_model}` gives {found.num_labels} numbers (`num_labels`), and a reward is one: take a "
            "reward model with `num_labels: 1`, or `output: score` for one whose own code makes a score of them"
        )
    return found


def load_reward_template(config: RLMTConfig, model_config: Any = None) -> RewardTemplate:
    """The reward model's own chat template with its tokenizer and limit; no weights are read.

    Raises:
        UserError: what `load_reward_config`, `max_length_of` or `RewardTemplate` do not take.
    """
    model_config = load_reward_config(config) if model_config is None else model_config
    name = config.reward_model
    tokenizer = load_tokenizer(name, trust_remote_code=config.trust_remote_code)
    return RewardTemplate(tokenizer, max_length_of(name, model_config, tokenizer, config.max_length))


def load_weights(config: RLMTConfig) -> nn.Module:
    """The reward model in eval mode, every weight of it out of its own files, whatever settings the policy has.

    Raises:
        UserError: nothing there that can be loaded, weights missing, or a dtype that does not exist.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    if config.dtype != "auto" and not isinstance(getattr(torch, config.dtype, None), torch.dtype):
        raise UserError(f"`dtype: {config.dtype}` is no dtype; for example auto, bfloat16 or float32")
    load_reward_config(config)
    try:
        # Who trusts a repository's code may load its pickles: they can do nothing more (F38).
        with without_zero3(), without_fsdp():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                config.reward_model,
                dtype=config.dtype,
                use_safetensors=None if config.trust_remote_code else True,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_explain(config.reward_model, error)) from error
    missing = sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])})
    if missing:
        raise UserError(
            f"`{config.reward_model}` holds no weights for {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}, so "
            "its scores would be random: it is no trained reward model"
        )
    check_weights(model, config.reward_model)
    return model.eval().requires_grad_(False)


def check_weights(model: nn.Module, name: str) -> None:
    """Refuse a model that was loaded without its weights (hazard 12 of ZeRO-3).

    Raises:
        UserError: the first empty parameter.
    """
    for key, parameter in model.named_parameters():
        if parameter.numel() == 0 or parameter.is_meta:
            raise UserError(
                f"`{name}` was loaded without its weights ({key} is empty): something around it splits weights while "
                "a model is made, as `deepspeed.zero.Init` does; load it outside, or score it on a server"
            )


@contextmanager
def without_zero3() -> Iterator[None]:
    """Inside, transformers knows of no ZeRO-3: `from_pretrained` would give empty weights of the policy's plan."""
    from transformers.integrations import deepspeed as state

    reference = state._hf_deepspeed_config_weak_ref
    active = None if reference is None else reference()
    state.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if active is not None:
            state.set_hf_deepspeed_config(active)


@contextmanager
def without_fsdp() -> Iterator[None]:
    """Inside, transformers knows of no FSDP that loads on one rank: the others would get zeros, and pay 0 for all.

    FSDP hands the policy's weights out later; nobody does that with a reward model's.
    """
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def num_parameters(config: RLMTConfig, model_config: Any) -> int:
    """How many weights the reward model has, from its configuration alone."""
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        with without_zero3(), torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                model_config, trust_remote_code=config.trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise UserError(_explain(config.reward_model, error)) from error
    return sum(parameter.numel() for parameter in model.parameters())


def _explain(name: str, error: Exception) -> str:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    place = f"the folder {name}" if Path(name).is_dir() else f"`{name}` (no such folder here; taken as a hub name)"
    return (
        f"could not load a reward model from {place}: {cause} It has to be a sequence-classification model in "
        "safetensors; code and pickles from a repository run only with `trust_remote_code: true` beside `reward_model:`"
    )
