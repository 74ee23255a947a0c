"""What a run says of its settings when it starts: printed, kept beside the run, and equal on every rank."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.run_record import FOLDER, dataset
from rl_think_ext.scoring.endpoint_wire import public

if TYPE_CHECKING:
    from trl import GRPOTrainer

# They say nothing about what was trained, or only repeat where it lies or what others say.
_NO_ARGUMENT = ("output_dir", "logging_dir", "run_name", "model_init_kwargs", "accelerator_config")


def announce(trainer: GRPOTrainer, method: str, config: Any, source: str) -> None:
    """Print and keep the resolved settings of a method ("rlp"), and demand that every rank has the same.

    Raises:
        UserError: ranks that differ, or an output folder that cannot be written.
    """
    from accelerate.utils import gather_object

    mark, label = settings.fingerprint(config), method.upper()
    marks = gather_object([mark])
    if len(set(marks)) > 1:
        raise UserError(f"the ranks have different {label} settings ({', '.join(marks)}): give all the same file")
    if trainer.accelerator.is_main_process:
        values = public(config)
        shown = " ".join(f"{name}={value}" for name, value in values.items())
        print(f"[rl_think] {label} settings {mark} ({source}): {shown}", flush=True)
        folder = Path(trainer.args.output_dir) / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"fingerprint": mark, method: values}, indent=2)
            (folder / "settings.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to output_dir {folder}: {error.strerror}. Choose another one.") from error


def describe(trainer: GRPOTrainer, method: str, config: Any, source: str, dataset_name: str | None) -> dict[str, Any]:
    """What run.json says about a run."""
    return {
        "method": method,
        "fingerprint": settings.fingerprint(config),
        "settings": public(config),
        "source": source,
        "model": trainer.model.config._name_or_path,
        "trainer": type(trainer).__name__,
        "arguments": arguments(trainer.args),
        "num_processes": trainer.accelerator.num_processes,
        "dataset": dataset(trainer.train_dataset, dataset_name),
    }


def arguments(args: Any) -> dict[str, Any]:
    """TRL's arguments that differ from their defaults; secrets are masked by the trainer's own to_dict."""
    shown, kept = args.to_dict(), {}
    for f in dataclasses.fields(args):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        value = getattr(args, f.name, None)
        if f.init and value is not None and value != default and f.name not in _NO_ARGUMENT:
            kept[f.name] = shown.get(f.name)
    return kept
