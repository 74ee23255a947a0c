"""The door to TRL: ready reward objects for `reward_funcs:` and ThinkGRPOTrainer.

Names are made when they are first asked for, so that importing this package loads neither trl nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_think_ext.trl.answer_reward import AnswerProbability, MeanProbability
    from rl_think_ext.trl.rlmt_reward import PreferenceScore, ShapingTerm
    from rl_think_ext.trl.rlmt_trainer import RLMTGRPOConfig, RLMTTrainer
    from rl_think_ext.trl.rlp_reward import InformationGain
    from rl_think_ext.trl.rlpt_reward import PredictionScore
    from rl_think_ext.trl.rlpt_trainer import RLPTGRPOConfig, RLPTTrainer
    from rl_think_ext.trl.rpt_reward import PrefixMatch
    from rl_think_ext.trl.trainer import ThinkGRPOConfig, ThinkGRPOTrainer

    rlp: InformationGain
    rlmt: PreferenceScore
    rlpt: PredictionScore
    rlpr: MeanProbability
    rpt: PrefixMatch
    verifree: AnswerProbability
    rlmt_format: ShapingTerm
    rlmt_thought_length: ShapingTerm
    rlmt_answer_length: ShapingTerm

__all__ = [
    "AnswerProbability",
    "InformationGain",
    "MeanProbability",
    "PredictionScore",
    "PreferenceScore",
    "PrefixMatch",
    "RLMTGRPOConfig",
    "RLMTTrainer",
    "RLPTGRPOConfig",
    "RLPTTrainer",
    "ShapingTerm",
    "ThinkGRPOConfig",
    "ThinkGRPOTrainer",
    "rlmt",
    "rlmt_answer_length",
    "rlmt_format",
    "rlmt_thought_length",
    "rlp",
    "rlpr",
    "rlpt",
    "rpt",
    "verifree",
]

_MODULES = {
    "AnswerProbability": "answer_reward",
    "MeanProbability": "answer_reward",
    "PrefixMatch": "rpt_reward",
    "InformationGain": "rlp_reward",
    "PredictionScore": "rlpt_reward",
    "PreferenceScore": "rlmt_reward",
    "RLMTGRPOConfig": "rlmt_trainer",
    "RLMTTrainer": "rlmt_trainer",
    "RLPTGRPOConfig": "rlpt_trainer",
    "RLPTTrainer": "rlpt_trainer",
    "ShapingTerm": "rlmt_reward",
    "ThinkGRPOConfig": "trainer",
    "ThinkGRPOTrainer": "trainer",
}
_READY = {"rlp": ("InformationGain",), "rlmt": ("PreferenceScore",), "rlpt": ("PredictionScore",)} | {
    f"rlmt_{name}": ("ShapingTerm", name) for name in ("format", "thought_length", "answer_length")
}
_READY |= {"rpt": ("PrefixMatch",), "verifree": ("AnswerProbability",), "rlpr": ("MeanProbability",)}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    elif name in _READY:
        kind, *given = _READY[name]
        value = __getattr__(kind)(*given)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
