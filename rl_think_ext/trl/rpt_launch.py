"""A run of RPT out of one YAML file: TRL's own GRPOTrainer with the reward on bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rpt import RPTConfig
from rl_think_ext.scoring.load import explain
from rl_think_ext.trl import host
from rl_think_ext.trl.launch import arguments_of, checkpoint_of, data_of, finish, rewards_of, writable


def train(config: dict[str, Any], rest: list[str], method: RPTConfig, where: str) -> Path | None:
    """Build TRL's arguments and the trainer, and train; the run's folder in the main process, None in the others.

    Raises:
        UserError: an unknown key, a dataset or model that cannot be loaded, settings that are not RPT.
    """
    from trl import GRPOConfig, GRPOTrainer
    from trl.scripts.grpo import GRPOScriptArguments

    from rl_think_ext.trl.rpt_reward import PrefixMatch
    from rl_think_ext.trl.trainer import tokenizer_for

    given = arguments_of(GRPOScriptArguments, GRPOConfig, config, rest, where)
    script, args, name = given.script, given.args, given.model.model_name_or_path
    checkpoint = checkpoint_of(args)
    writable(args.output_dir)
    rows, held_out = data_of(given, required=("prompt", "target"))
    # Weights in a pickle can run code: only whoever says `use_safetensors: false` gets them loaded (F38).
    args.model_init_kwargs = {"use_safetensors": True, **(args.model_init_kwargs or {})}
    reward = PrefixMatch(method)
    reward.dataset_name = script.dataset_name
    try:
        trainer = GRPOTrainer(
            model=name,
            reward_funcs=[reward, *rewards_of(script.reward_funcs or [], "rpt")],
            args=args,
            processing_class=tokenizer_for(name, args),
            train_dataset=rows,
            eval_dataset=held_out,
            **given.model_options,
        )
    except OSError as error:
        raise UserError(explain("model", name, error)) from error
    reward.bind(trainer)
    host.hush_unscorable()
    return finish(trainer, checkpoint)
