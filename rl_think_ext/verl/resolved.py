"""Settings on their way through verl: out of hydra's config or RL_THINK_CONFIG, resolved once, then in every process.

The driver reads them, checks them and writes every value back to `rl_think.<method>` and `data.rl_think.<method>`. verl
sends its config to all Ray processes, on whatever machine: none of them looks at a file or a variable of its own.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.methods.rlpt import RLPTConfig

logger = logging.getLogger(__name__)

NODE = "rl_think"
METHODS: dict[str, Any] = {"rlp": RLPConfig, "rlmt": RLMTConfig, "rlpt": RLPTConfig}


@dataclass(frozen=True)
class DoorConfig:
    """What the door itself can be told, beside a method's settings.

    Args:
        logprob_kernel: Log-probs of the policy loss by rl_think_ext.kernels in place of verl's function.
        prefill_think: Put `<think>` behind the chat template's prompt (RLMT, style think).
        log_completions: Keep ids and scores of every step's samples in `default_local_dir/rl_think/rollouts` (RLP).
    """

    logprob_kernel: bool = False
    prefill_think: bool = False
    log_completions: bool = False


# Options that only one method knows.
_ONLY = {"prefill_think": "rlmt", "log_completions": "rlp"}
_OPTIONS = [field.name for field in dataclasses.fields(DoorConfig)]
# Written by `resolve`: they say that a config has been resolved, and from what.
_MARKS = ("trainer", "fingerprint", "source")
# Settings that name a file: a relative name means nothing where Ray's workers run.
_FILES = ("instruction_file", "judge_prompt", "cache_file")


def resolve(config: DictConfig, method: str) -> tuple[Any, str]:
    """The settings of a method and where they came from; written back to the config with every default.

    Raises:
        UserError: unknown keys or methods, wrong values, or settings both in the config and in RL_THINK_CONFIG.
    """
    found, source = _found(config, method)
    door = door_of(config)
    for option, owner in _ONLY.items():
        if getattr(door, option) and owner != method:
            raise UserError(f"`{NODE}.{option}` does nothing for {method}: it is for {owner}; take it out")
    with open_dict(config):
        values = {
            method: _located(dataclasses.asdict(found)),
            **dataclasses.asdict(door),
            "trainer": method,
            "fingerprint": settings.fingerprint(found),
            "source": source,
        }
        config[NODE] = values
        if "data" in config:
            with open_dict(config.data):
                config.data[NODE] = values
    return found, source


def _located(values: dict[str, Any]) -> dict[str, Any]:
    return values | {name: os.path.abspath(values[name]) for name in _FILES if values.get(name)}


def settings_of(config: Any, method: str) -> Any:
    """The settings as a process of a run reads them out of verl's config, or out of its `data` part."""
    block = _block(config)
    if block.get("fingerprint") is None:
        return _found(config, method)[0]
    return settings.build(METHODS[method], _plain(block[method]), f"{NODE}.{method}")


def door_of(config: Any) -> DoorConfig:
    """The door's own options out of the config.

    Raises:
        UserError: an unknown key, or a value of another type.
    """
    block = _block(config)
    settings.check_keys(block, [*METHODS, *_OPTIONS, *_MARKS], NODE)
    return settings.build(DoorConfig, {key: block[key] for key in _OPTIONS if key in block}, NODE)


def check_door(config: DictConfig, door: DoorConfig) -> None:
    """Refuse what verl would take and the door would not see.

    Raises:
        UserError: naming the key.
    """
    if (OmegaConf.select(config, "trainer.v1.sync.parameter_sync_step") or 1) != 1:
        raise UserError("trainer.v1.sync.parameter_sync_step: a step has one batch of scores: say 1, or leave it out")
    strategy, fused = (
        OmegaConf.select(config, f"actor_rollout_ref.{key}") for key in ("actor.strategy", "model.use_fused_kernels")
    )
    if door.logprob_kernel and (fused or strategy not in ("fsdp", "fsdp2")):
        raise UserError(
            f"{NODE}.logprob_kernel: true stands in for the log-probs of verl's FSDP engine without fused kernels; "
            f"here are actor.strategy: {strategy} and model.use_fused_kernels: {fused}: take one of them out"
        )


def is_ours(config: Any) -> bool:
    """Whether one of our trainers runs: only these can leave an unscorable sample out."""
    return _block(config).get("trainer") is not None


def _found(config: Any, method: str) -> tuple[Any, str]:
    kind, block = METHODS[method], _block(config)
    settings.check_keys(block, [*METHODS, *_OPTIONS, *_MARKS], NODE)
    given = settings.method_block({key: block[key] for key in METHODS if key in block}, method, NODE)
    for other in METHODS.keys() & block.keys() - {method}:
        if block[other]:
            raise UserError(f"`{NODE}.{other}` holds settings, and this is a run of {method}: take them out")
    built = settings.build(kind, given, f"{NODE}.{method}")
    if not os.environ.get(settings.ENVIRONMENT, "").strip():
        return built, f"{NODE}.{method}" if built != kind() else "defaults"
    if built != kind():
        raise UserError(
            f"settings of {method} stand in `{NODE}.{method}` and in {settings.ENVIRONMENT}: take one of them out"
        )
    mapping, where = settings.from_environment(method)
    found = settings.build(kind, mapping, where)
    for key in sorted(given):
        # The fragment holds all defaults, and nobody can tell one that was said from one that was not.
        if getattr(found, key) != getattr(built, key):
            logger.warning(
                "rl_think: %s says %s: %r, and that holds; `%s.%s.%s` is at its default %r",
                where, key, getattr(found, key), NODE, method, key, getattr(built, key),
            )  # fmt: skip
    return found, where


def _block(config: Any) -> dict[str, Any]:
    node = OmegaConf.select(config, NODE) if isinstance(config, DictConfig) else (config or {}).get(NODE)
    found = _plain(node)
    if not isinstance(found, dict):
        raise UserError(f"`{NODE}` holds {found!r}; expected the block of a method, for example `{NODE}.rlp.baseline`")
    return found


def _plain(node: Any) -> Any:
    if node is None:
        return {}
    if isinstance(node, Mapping):
        return dict(node)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
