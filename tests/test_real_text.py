"""Real text through the whole path: `rl-think data rlp`, twenty steps of RLP with the byte-level model, a resume."""

import json
import math
from pathlib import Path

import pytest
import yaml

from rl_think_ext import cli
from rl_think_ext.tiny.text import prose, save_text_model

MATH = Path(__file__).parents[2] / "shared/data/math_text.jsonl"


def run_all(source, tmp_path, steps):
    model = save_text_model(tmp_path / "model")
    data = tmp_path / "data"
    words = ["data", "rlp", "--input", str(source), "--output", str(data), "--tokenizer", str(model)]
    assert cli.main([*words, "--num-target-tokens", "4", "--max-context-tokens", "96", "--num-positions", "2"]) == 0
    run = {
        "rl_think": {"rlp": {"num_target_tokens": 4, "aggregate": "mean"}},
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "output_dir": str(tmp_path / "out"),
        "dtype": "float32",
        "max_steps": steps,
        "save_steps": steps // 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 16,
        "learning_rate": 1e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    assert cli.main(["train", "--config", str(path)]) == 0
    whole = json.loads((tmp_path / f"out/checkpoint-{steps}/trainer_state.json").read_text())["log_history"]
    middle = str(tmp_path / f"out/checkpoint-{steps // 2}")
    assert cli.main(["train", "--config", str(path), "--resume_from_checkpoint", middle]) == 0
    resumed = json.loads((tmp_path / f"out/checkpoint-{steps}/trainer_state.json").read_text())["log_history"]
    gains = [log["rlp/gain"] for log in whole if "rlp/gain" in log]
    assert len(gains) == steps
    assert all(math.isfinite(gain) for gain in gains)
    assert gains == [log["rlp/gain"] for log in resumed if "rlp/gain" in log]


def test_generated_prose_trains_and_resumes_to_the_bit(tmp_path):
    source = tmp_path / "prose.jsonl"
    source.write_text("\n".join(json.dumps({"text": " ".join(prose(i, 6))}) for i in range(40)))
    run_all(source, tmp_path, 6)


def test_real_text_trains_twenty_steps_and_resumes_in_the_middle(tmp_path):
    if not MATH.exists():
        pytest.skip(f"absent: {MATH.name} is not shipped")
    run_all(MATH, tmp_path, 20)
