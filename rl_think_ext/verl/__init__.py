"""The door to verl 0.9: trainers, reward manager, agent loops and datasets by name, no verl file edited.

Nothing is imported until a name is asked for. verl finds the registrations in `rl_think_ext.verl.plugin` by itself
(entry point `verl.plugins`); hydra finds a method's settings with `hydra.searchpath=[pkg://rl_think_ext.verl.config]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

TESTED = "0.9.1"

_PLACES = {
    "RLPDataset": "datasets",
    "RLMTDataset": "datasets",
    "RLPTDataset": "rlpt_dataset",
    "RLPTrainer": "rlp_trainer",
    "RLMTTrainer": "rlmt_trainer",
    "RLPTTrainer": "rlpt_trainer",
    "RLMTRewardManager": "rlmt_reward",
    "RLPTRewardManager": "rlpt_reward",
    "ThinkTrainer": "trainer",
    "ThinkWorker": "worker",
}
__all__ = ["TESTED", *_PLACES]  # noqa: PLE0604 - the names of the table


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
