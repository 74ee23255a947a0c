"""A run out of one YAML file: TRL's own parser, the dataset, the trainer of a method, and training."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring.ema import is_whole
from rl_think_ext.scoring.load import explain


def train(config: dict[str, Any], rest: list[str], method: Any, where: str) -> Path | None:
    """Build TRL's arguments and the trainer, and train; the run's folder in the main process, None in the others.

    `method` is RLPConfig, or the settings of a method that is paid by the same scorer (VeriFree, RLPR).

    Raises:
        UserError: an unknown key, a dataset or model that cannot be loaded, settings that are not the method's.
    """
    from trl.scripts.grpo import GRPOScriptArguments

    from rl_think_ext.trl.rows import load_rows
    from rl_think_ext.trl.trainer import ThinkGRPOConfig, ThinkGRPOTrainer

    own, kind, rlp = [], ThinkGRPOConfig, method
    if not isinstance(method, RLPConfig):
        from rl_think_ext.trl.answer_reward import REWARDS

        own, kind, rlp = [REWARDS[type(method)](method)], REWARDS[type(method)].arguments, None
    name = own[0].method if own else "rlp"
    given = arguments_of(GRPOScriptArguments, kind, config, rest, where)
    script, args, model = given.script, given.args, given.model
    checkpoint = checkpoint_of(args, (rlp or method.scoring).averages)
    writable(args.output_dir)
    splits = load_rows(script.dataset_name, script.dataset_config, script.dataset_streaming)
    try:
        trainer = ThinkGRPOTrainer(
            model.model_name_or_path,
            args,
            rlp=rlp,
            reward_funcs=[*own, *rewards_of(script.reward_funcs or [], name)],
            train_dataset=split_of(splits, script.dataset_train_split, script.dataset_name),
            eval_dataset=split_of(splits, script.dataset_test_split, script.dataset_name) if evaluates(args) else None,
            **given.model_options,
        )
    except OSError as error:
        raise UserError(explain("model", model.model_name_or_path, error)) from error
    trainer.information_gain.dataset_name = script.dataset_name
    return finish(trainer, checkpoint)


@dataclass(frozen=True)
class Arguments:
    """What TRL's parser makes of a file: the script's arguments, the trainer's, the model's."""

    script: Any
    args: Any
    model: Any

    @property
    def model_options(self) -> dict[str, Any]:
        """Quantization and adapters, as every trainer of TRL takes them."""
        from trl import get_peft_config, get_quantization_config

        return {
            "quantization_config": get_quantization_config(self.model),
            "peft_config": get_peft_config(self.model),
        }


def arguments_of(script_kind: Any, args_kind: Any, config: dict[str, Any], rest: list[str], where: str) -> Arguments:
    """TRL's own arguments out of a file's keys and the command line.

    Raises:
        UserError: an unknown key, a value that TRL refuses, no model or no dataset.
    """
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    kinds = (script_kind, args_kind, ModelConfig, DatasetMixtureConfig)
    settings.check_keys(config, [f.name for kind in kinds for f in dataclasses.fields(kind)], where)
    parser = TrlParser(kinds)
    parser.set_defaults_with_config(**config)
    try:
        script, args, model, mixture = parser.parse_args_into_dataclasses(args=rest)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
    if mixture.datasets:
        raise UserError(f"{where}: `datasets:` mixtures are not supported; build one folder with `rl-think data`")
    if not model.model_name_or_path or not script.dataset_name:
        raise UserError(f"{where}: say `model_name_or_path:` and `dataset_name:`")
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    return Arguments(script, args, model)


def finish(trainer: Any, checkpoint: str | None) -> Path | None:
    """Train and save; the run's folder in the main process, None in the others."""
    args = trainer.args
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"model and logs are in {args.output_dir}")
    return Path(args.output_dir) if trainer.accelerator.is_main_process else None


def data_of(given: Arguments, *, required: Sequence[str], built_by: str = "rl-think data rlp") -> tuple[Any, Any]:
    """The rows of training, and those of evaluation, None where the run wants none.

    Raises:
        UserError: nothing there, or a column or a split that is missing.
    """
    from rl_think_ext.trl.rows import load_rows

    script, name = given.script, given.script.dataset_name
    splits = load_rows(name, script.dataset_config, script.dataset_streaming, required=required, built_by=built_by)
    held_out = split_of(splits, script.dataset_test_split, name) if evaluates(given.args) else None
    return split_of(splits, script.dataset_train_split, name), held_out


def evaluates(args: Any) -> bool:
    """Whether a run wants its test split."""
    return str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"


def split_of(splits: Any, split: str, name: str) -> Any:
    """One split of a dataset.

    Raises:
        UserError: it is not there; the text names those that are.
    """
    if split not in splits:
        raise UserError(f"{name} has no split `{split}`; there are {', '.join(splits)}")
    return splits[split]


def checkpoint_of(args: Any, averages: Iterable[str] = ()) -> str | None:
    """What to resume from; `true`, which reaches the arguments as text, is the newest checkpoint that is whole (F18).

    Raises:
        UserError: nothing there.
    """
    given = args.resume_from_checkpoint
    if given is None or str(given).lower() == "false":
        return None
    if str(given).lower() != "true":
        if not Path(given).is_dir():
            raise UserError(f"resume_from_checkpoint: there is no {given}")
        return str(given)
    found = [path for path in Path(args.output_dir).glob("checkpoint-*") if path.name[11:].isdigit()]
    for path in sorted(found, key=lambda path: -int(path.name[11:])):
        # The trainer writes its state last.
        if (path / "trainer_state.json").is_file() and all(is_whole(path / "rl_think", name) for name in averages):
            return str(path)
    raise UserError(f"resume_from_checkpoint: there is no whole checkpoint in {args.output_dir}")


def writable(folder: str) -> None:
    """Refuse an output folder that cannot be written, before any time is spent.

    Raises:
        UserError: saying what stands in the way.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        # A name of its own: the ranks of one run look at the same moment.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {folder}: {error.strerror}; choose another one") from error


# Named by whoever trains with them under the stock command, too: here they are there already.
_OWN = tuple(f"rl_think_ext.trl.{name}" for name in ("rlp", "rlmt", "rlpt", "rpt", "verifree", "rlpr"))


def check_methods(names: Iterable[str], method: str) -> None:
    """Refuse the reward of another method than the run's.

    Raises:
        UserError: naming it.
    """
    for name in names:
        if name in _OWN and name != f"rl_think_ext.trl.{method}":
            raise UserError(
                f"reward_funcs: {name} is another method's reward, and a run has one method: take it out, or say it in "
                f"place of `{method}:` below `rl_think:`"
            )


def rewards_of(names: list[str] | str, method: str) -> list[Any]:
    """Further rewards, by TRL's own names or dotted path; the method's own is always there.

    Raises:
        UserError: a name that cannot be imported, or the reward of another method.
    """
    import trl.rewards

    names = [names] if isinstance(names, str) else names
    check_methods(names, method)
    # As `trl grpo` does: a file in the current folder can be named.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = []
    for name in names:
        if name == f"rl_think_ext.trl.{method}":
            continue
        module, _, attribute = name.rpartition(".")
        try:
            found.append(getattr(import_module(module) if module else trl.rewards, attribute))
        except (ImportError, AttributeError) as error:
            raise UserError(f"reward_funcs: cannot import {name}: {error}") from error
    return found
