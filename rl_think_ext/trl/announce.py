"""What a run says of its settings when it starts: printed, kept beside the run, and equal on every rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.trl.record import FOLDER, arguments, dataset

if TYPE_CHECKING:
    from trl import GRPOTrainer


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


def public(config: Any) -> dict[str, Any]:
    """The settings as they may be printed and stored: an address without its password or key (F39)."""
    from rl_think_ext.scoring.endpoint_wire import shown_url

    values = dict(vars(config))
    return values | {name: shown_url(values[name]) for name in ("server",) if values.get(name)}


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
