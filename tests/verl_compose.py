"""Composes what a `python -m verl.trainer.main_ppo` line says and checks it as a run's start does, without starting it.

    python tests/verl_compose.py OVERRIDES...

hydra, verl's own checks, the door's checks, both datasets: everything that is looked at before Ray starts a worker.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any


def compose(*overrides: str) -> Any:
    """verl's config as its command line makes it."""
    import hydra

    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", list(overrides))


def check(config: Any) -> tuple[Any, list[str]]:
    """The settings of the run, and the warnings of the door.

    Raises:
        UserError: what the door refuses; verl's own checks raise other kinds.
    """
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(config, need_reference_policy(config), need_critic(config))
    OmegaConf.resolve(config)
    trainer = trainer_of(config)
    return trainer.settings, trainer.found


def trainer_of(config: Any) -> Any:
    """A trainer up to where verl's own begins: settings, checks, splits; stand-ins have nothing else."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    from rl_think_ext.verl import RLMTTrainer, RLPTrainer, RLPTTrainer

    mode = config.trainer.v1.trainer_mode
    get_trainer_cls(mode)  # there is one of that name
    kind = {"rlp": RLPTrainer, "rlmt": RLMTTrainer, "rlpt": RLPTTrainer}.get(mode)
    if kind is None or not config.trainer.use_v1:
        return SimpleNamespace(settings=None, found=[])
    trainer = kind.__new__(kind)
    trainer.config = config
    trainer.found = trainer.prepare()
    return trainer


def datasets(config: Any, tokenizer: Any, processor: Any = None) -> list[Any]:
    """The training and the validation side, as verl builds them."""
    from verl.trainer.ppo.utils import create_rl_dataset

    data = config.data
    return [
        create_rl_dataset(files, data, tokenizer, processor, max_samples=data.get(f"{side}_max_samples", -1))
        for side, files in (("train", data.train_files), ("val", data.val_files))
    ]


def main(overrides: list[str]) -> None:
    from rl_think_ext.scoring.load import load_tokenizer

    config = compose(*overrides)
    settings, warnings = check(config)
    for warning in warnings:
        print(f"warning: {warning}")
    found = datasets(config, load_tokenizer(config.actor_rollout_ref.model.path))
    print(f"{type(settings).__name__}, {len(found[0])} rows to train on, {len(found[1])} to validate on: composed")


if __name__ == "__main__":
    main(sys.argv[1:])
