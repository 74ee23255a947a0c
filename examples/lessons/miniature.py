"""What the lessons share: RLP on the embedded model, the held-out measurement, and where results go."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback

from rl_think_ext.cli.demo import SETTINGS
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring.load import load_model, load_tokenizer
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.measure import answer, measure
from rl_think_ext.tiny.programs import held_out_rows
from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer

# The model is too small to share, and equal thread counts give equal sums.
torch.set_num_threads(1)
TOKENIZER = load_tokenizer(str(PROGRAMS_MODEL))
# Programs that neither chose the demo's settings nor are its test: these runs may be looked at as often as one likes.
TEST = held_out_rows("dev", 20261121, 512)


class Learned(NamedTuple):
    """A trained model, TRL's own logs of the run, and the alarms it raised."""

    model: Any
    history: list[dict[str, Any]]
    alarms: list[str]


def learn(
    rows: Sequence[Any], name: str, model: str = str(PROGRAMS_MODEL), rlp: RLPConfig | None = None, **settings: Any
) -> Learned:
    """RLP with the demo's settings, but for those that are given."""
    chosen = {**SETTINGS, "logging_steps": 5, "disable_tqdm": True, **settings}
    args = ThinkGRPOConfig(f"out/lessons/{name}", **chosen)
    data = Dataset.from_list([dict(row) for row in rows])
    trainer = ThinkGRPOTrainer(model, args, rlp=rlp or RLPConfig(), train_dataset=data, processing_class=TOKENIZER)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    history = [log for log in trainer.state.log_history if "rlp/gain" in log]
    file = Path(args.output_dir, "rl_think", "alarms.jsonl")
    alarms = [json.loads(line)["alarm"] for line in file.read_text().splitlines()] if file.exists() else []
    return Learned(trainer.model.eval(), history, alarms)


def base(name: str = str(PROGRAMS_MODEL)) -> Any:
    """A model as it was before RL."""
    return load_model(name)


def held_out(model: Any, start: Any | None = None) -> dict[str, float]:
    """`rl_think_ext.tiny.measure.measure` on held-out programs, against the frozen start's no-think baseline."""
    frozen = answer(start or base(), TOKENIZER, TEST).logprob
    return measure(model, TOKENIZER, TEST, baseline=frozen)


def finish(name: str, result: dict[str, Any]) -> None:
    """Keep a lesson's numbers."""
    path = Path("out/lessons", f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"numbers: {path}")
