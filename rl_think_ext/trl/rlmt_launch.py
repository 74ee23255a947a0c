"""RLMT's kinds of training out of one YAML file: warm start (sft), preference pairs (dpo), the method (grpo)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.load import explain
from rl_think_ext.trl.announce import announce, describe
from rl_think_ext.trl.launch import (
    Arguments,
    arguments_of,
    checkpoint_of,
    data_of,
    finish,
    rewards_of,
    writable,
)
from rl_think_ext.trl.record_callback import RecordCallback

Kind = Literal["sft", "dpo", "grpo"]
COLUMNS = {"grpo": ("prompt",), "sft": ("prompt", "answer"), "dpo": ("prompt", "chosen", "rejected")}
BUILT_BY = {"grpo": "rl-think data rlmt", "sft": "rl-think data rlmt-sft", "dpo": "rl-think data rlmt-dpo"}


def train(config: dict[str, Any], rest: list[str], kind: Kind, rlmt: RLMTConfig, where: str) -> Path | None:
    """Build TRL's arguments and the trainer, and train; the run's folder in the main process, None in the others.

    Raises:
        UserError: an unknown key, a dataset or model that cannot be loaded, settings that are not RLMT.
    """
    given = parse(config, rest, kind, where)
    args, name = given.args, given.script.dataset_name
    if kind != "grpo" and given.script.dataset_streaming:
        raise UserError(
            f"{where}: `dataset_streaming: true` cannot be used for {kind}: its rows are counted and measured"
        )
    checkpoint = checkpoint_of(args)
    writable(args.output_dir)
    rows, held_out = data_of(given, required=COLUMNS[kind], built_by=BUILT_BY[kind])
    try:
        trainer = {"grpo": _grpo, "sft": _sft, "dpo": _dpo}[kind](given, rlmt, rows, held_out)
    except OSError as error:
        raise UserError(explain("model", given.model.model_name_or_path, error)) from error
    if kind == "grpo":
        trainer.preference.dataset_name = name
    else:
        trainer.add_callback(RecordCallback(trainer, lambda: describe(trainer, "rlmt", rlmt, where, name)))
        announce(trainer, "rlmt", rlmt, where)
    return finish(trainer, checkpoint)


def parse(config: dict[str, Any], rest: list[str], kind: Kind, where: str) -> Arguments:
    """TRL's arguments for one kind of training.

    Raises:
        UserError: an unknown key, a value that TRL refuses, no model or no dataset.
    """
    from trl import ScriptArguments
    from trl.scripts.grpo import GRPOScriptArguments

    if kind == "grpo":
        from rl_think_ext.trl.rlmt_trainer import RLMTGRPOConfig

        return arguments_of(GRPOScriptArguments, RLMTGRPOConfig, config, rest, where)
    from rl_think_ext.trl.rlmt_supervised import ThinkDPOConfig, ThinkSFTConfig

    return arguments_of(ScriptArguments, ThinkSFTConfig if kind == "sft" else ThinkDPOConfig, config, rest, where)


def _grpo(given: Arguments, rlmt: RLMTConfig, rows: Any, held_out: Any) -> Any:
    from rl_think_ext.trl.rlmt_trainer import RLMTTrainer

    return RLMTTrainer(
        given.model.model_name_or_path,
        given.args,
        rlmt=rlmt,
        reward_funcs=rewards_of(given.script.reward_funcs or [], "rlmt"),
        train_dataset=rows,
        eval_dataset=held_out,
        **given.model_options,
    )


def _sft(given: Arguments, rlmt: RLMTConfig, rows: Any, held_out: Any) -> Any:
    from trl import SFTTrainer

    from rl_think_ext.trl.rlmt_supervised import policy_tokenizer, sft_rows

    tokenizer = policy_tokenizer(given, rlmt)
    kept = [None if part is None else sft_rows(part, rlmt.style, tokenizer, given.args) for part in (rows, held_out)]
    return _supervised(SFTTrainer, given, tokenizer, *kept)


def _dpo(given: Arguments, rlmt: RLMTConfig, rows: Any, held_out: Any) -> Any:
    from trl import DPOTrainer

    from rl_think_ext.trl.rlmt_supervised import dpo_rows, policy_tokenizer

    tokenizer = policy_tokenizer(given, rlmt)
    kept = [None if part is None else dpo_rows(part, rlmt.style, tokenizer, given.args) for part in (rows, held_out)]
    return _supervised(DPOTrainer, given, tokenizer, *kept)


def _supervised(trainer: Any, given: Arguments, tokenizer: Any, rows: Any, held_out: Any) -> Any:
    # Weights in a pickle can run code: only whoever says `use_safetensors: false` gets them loaded (F38).
    given.args.model_init_kwargs = {"use_safetensors": True, **given.args.model_init_kwargs}
    return trainer(
        model=given.model.model_name_or_path,
        args=given.args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        **given.model_options,
    )
