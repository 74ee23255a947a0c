"""A run of RLPT out of one YAML file; its cold start is `trl sft`, what comes after it (RLVR) is `trl grpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl_think_ext.data.segment_rows import REQUIRED
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.scoring.load import explain
from rl_think_ext.trl.launch import arguments_of, checkpoint_of, data_of, finish, rewards_of, writable


def train(config: dict[str, Any], rest: list[str], rlpt: RLPTConfig, where: str) -> Path | None:
    """Build TRL's arguments and the trainer, and train; the run's folder in the main process, None in the others.

    Raises:
        UserError: an unknown key, a dataset or model that cannot be loaded, settings that are not RLPT.
    """
    from trl.scripts.grpo import GRPOScriptArguments

    from rl_think_ext.trl.rlpt_trainer import RLPTGRPOConfig, RLPTTrainer

    given = arguments_of(GRPOScriptArguments, RLPTGRPOConfig, config, rest, where)
    checkpoint = checkpoint_of(given.args)
    writable(given.args.output_dir)
    rows, held_out = data_of(given, required=REQUIRED, built_by="rl-think data rlpt")
    try:
        trainer = RLPTTrainer(
            given.model.model_name_or_path,
            given.args,
            rlpt=rlpt,
            reward_funcs=rewards_of(given.script.reward_funcs or [], "rlpt"),
            train_dataset=rows,
            eval_dataset=held_out,
            **given.model_options,
        )
    except OSError as error:
        raise UserError(explain("model", given.model.model_name_or_path, error)) from error
    trainer.prediction.dataset_name = given.script.dataset_name
    return finish(trainer, checkpoint)
