"""The door to TRL: ready reward objects for `reward_funcs:` and ThinkGRPOTrainer.

Names are made when they are first asked for, so that importing this package loads neither trl nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_think_ext.trl.rlp_reward import InformationGain
    from rl_think_ext.trl.trainer import ThinkGRPOConfig, ThinkGRPOTrainer

    rlp: InformationGain

__all__ = ["InformationGain", "ThinkGRPOConfig", "ThinkGRPOTrainer", "rlp"]


def __getattr__(name: str) -> Any:
    if name in ("InformationGain", "rlp"):
        from rl_think_ext.trl.rlp_reward import InformationGain

        value: Any = InformationGain if name == "InformationGain" else InformationGain()
    elif name in ("ThinkGRPOConfig", "ThinkGRPOTrainer"):
        from rl_think_ext.trl import trainer

        value = getattr(trainer, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
