"""`rl-think demo`: RLP on the embedded model through the real TRL trainer, on a CPU, in minutes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError

# The settings of recipes/rlp/tiny; a test holds the two together.
SETTINGS: dict[str, Any] = {
    "max_steps": 100,
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 20,
    "temperature": 1.0,
    "learning_rate": 5.0e-4,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "loss_type": "grpo",
    "scale_rewards": "none",
    "beta": 0.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "log_completions": True,
    "num_completions_to_print": 0,
}
# Rows of the final measurement: this generator seed and the part "test" chose nothing.
TEST_SEED, TEST_ROWS = 20261121, 1024
TRAIN_ROWS = 20_000


@dataclass(frozen=True)
class DemoConfig:
    """Teach the embedded model to think with RLP and show what changed."""

    output: Path = Path("out/demo")
    """Folder of report.html, result.json, the picture and one run for each seed."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of training, one run each; the recipe's five are 0 1 2 3 4."""
    steps: int = SETTINGS["max_steps"]
    """Optimizer steps of each run."""
    test_rows: int = TEST_ROWS
    """Held-out programs of the measurement before and after."""
    controls: bool = False
    """Also train on the same programs as plain text, and on worked steps, for the same time."""


def run(argv: list[str]) -> int:
    """Run the demo; returns the exit status."""
    import tyro

    config = tyro.cli(DemoConfig, args=argv, prog="rl-think demo")
    if config.steps < 1 or config.test_rows < 1 or not config.seeds:
        raise UserError("--steps, --test-rows and --seeds are at least 1")
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {config.output}: {error.strerror}; choose another --output") from error
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    results = [_one(config, seed) for seed in config.seeds]
    (config.output / "result.json").write_text(json.dumps(_summary(config, results), indent=2) + "\n", encoding="utf-8")
    from rl_think_ext.cli.demo_view import draw, show
    from rl_think_ext.report import write

    show(results)
    draw(results, config.output / "demo.png")
    report = write([_folder(config, config.seeds[0])], config.output / "report.html")
    print(f"numbers: {config.output / 'result.json'}, picture: {config.output / 'demo.png'}\nreport: {report}")
    return 0


def _folder(config: DemoConfig, seed: int) -> Path:
    return config.output / f"seed-{seed}"


def _one(config: DemoConfig, seed: int) -> dict[str, Any]:
    """Train with one seed and measure before and after."""
    import torch

    from rl_think_ext.scoring.load import load_model, load_tokenizer
    from rl_think_ext.tiny import PROGRAMS_MODEL
    from rl_think_ext.tiny.measure import answer, means, measure, measure_rows
    from rl_think_ext.tiny.programs import held_out_rows, rl_rows

    # The model is too small to share: a second thread costs time, and equal thread counts give equal sums.
    torch.set_num_threads(1)
    tokenizer, base = load_tokenizer(str(PROGRAMS_MODEL)), load_model(str(PROGRAMS_MODEL))
    rows, test = rl_rows(seed, TRAIN_ROWS), held_out_rows("test", TEST_SEED, config.test_rows)
    frozen = answer(base, tokenizer, test).logprob
    before = measure_rows(base, tokenizer, test, baseline=frozen)
    model, history, seconds = _train(config, seed, tokenizer, rows)
    after = measure_rows(model, tokenizer, test, baseline=frozen)
    result = {
        "seed": seed,
        "train_seconds": round(seconds, 1),
        "before": means(before),
        "after": means(after),
        "history": history,
        "thoughts": _thoughts(tokenizer, {"before": base, "after": model}, test[:8], frozen[:8]),
    }
    _keep_measured(_folder(config, seed), before, after, result["thoughts"])
    if config.controls:
        from rl_think_ext.tiny.controls import train_control

        for kind in ("continued", "worked"):
            other = load_model(str(PROGRAMS_MODEL))
            steps = train_control(kind, other, tokenizer, rows, seconds=seconds, seed=seed)
            result[kind] = {"train_steps": steps, **measure(other, tokenizer, test, baseline=frozen)}
    return result


def _thoughts(tokenizer: Any, models: Any, rows: Any, frozen: Any) -> list[dict[str, Any]]:
    """What each model thinks about the same programs, and what it is worth in nats."""
    from rl_think_ext.tiny.measure import answer, sample_thoughts

    shown = [{name: row[name] for name in ("id", "context", "target")} for row in rows]
    for when, model in models.items():
        said = sample_thoughts(model, tokenizer, rows, seed=0)
        gains = (answer(model, tokenizer, rows, said).logprob - frozen).tolist()
        for entry, thought, gain in zip(shown, said, gains, strict=True):
            entry |= {when: thought, f"{when}_gain": round(gain, 4)}
    return shown


def _keep_measured(folder: Path, before: Any, after: Any, thoughts: Any) -> None:
    """The held-out measurement with its intervals, where the report looks for it."""
    import numpy as np

    from rl_think_ext.methods.interval import mean_interval

    names = ("gain", "accuracy", "direct_accuracy")
    sides = {
        when: {name: vars(mean_interval(found[name])) for name in names}
        for when, found in (("before", before), ("after", after))
    }
    what = {"what": "held-out programs", "rows": len(before["gain"]), "ceiling": float(np.log(10))}
    text = json.dumps({**what, **sides, "thoughts": thoughts}, indent=2)
    (folder / "rl_think" / "measured.json").write_text(text + "\n", encoding="utf-8")


def _train(config: DemoConfig, seed: int, tokenizer: Any, rows: Any) -> tuple[Any, list[dict[str, Any]], float]:
    """RLP through ThinkGRPOTrainer; the trained model, TRL's own log and the seconds it took."""
    from datasets import Dataset

    from rl_think_ext.cli.demo_view import LiveProgress
    from rl_think_ext.methods.rlp import RLPConfig
    from rl_think_ext.tiny import PROGRAMS_MODEL
    from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer

    chosen = {**SETTINGS, "max_steps": config.steps, "seed": seed, "logging_steps": 1, "disable_tqdm": True}
    args = ThinkGRPOConfig(str(_folder(config, seed)), **chosen)
    trainer = ThinkGRPOTrainer(
        str(PROGRAMS_MODEL),
        args,
        rlp=RLPConfig(),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer,
        callbacks=[LiveProgress(f"seed {seed}", config.steps)],
    )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    start = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - start
    wanted = (
        "rlp/gain",
        "rlp/gain_frozen",
        "rlp/logprob_baseline",
        "rlp/logprob_frozen",
        "rlp/thought_length",
        "entropy",
    )
    history = [
        {"step": log["step"], **{key.removeprefix("rlp/"): log[key] for key in wanted if log.get(key) is not None}}
        for log in trainer.state.log_history
        if "rlp/gain" in log
    ]
    return trainer.model.eval(), history, seconds


def _summary(config: DemoConfig, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What result.json holds: the means over seeds, every run, settings and versions."""
    from importlib.metadata import version

    import numpy as np

    after = {key: [float(r["after"][key]) for r in results] for key in ("gain", "accuracy")}
    return {
        "gain_mean": float(np.mean(after["gain"])),
        "gain_min": min(after["gain"]),
        "accuracy_mean": float(np.mean(after["accuracy"])),
        "ceiling_nats": float(np.log(10)),
        "settings": {**SETTINGS, "max_steps": config.steps},
        "test": {"part": "test", "seed": TEST_SEED, "rows": config.test_rows},
        "versions": {name: version(name) for name in ("rl_think_ext", "torch", "trl", "transformers")},
        "runs": results,
    }
