"""Two processes on CPU: every rank holds the same policy and averages, and groups may span ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]


def launch(arguments, out, log, checksums=True):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with log.open("w") as file:
        done = subprocess.run(
            [*command, *arguments, "--output_dir", str(out)],
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
    text = log.read_text()
    # The first rank that fails says why; what the others and torchrun add comes after it.
    first = max(text.find("Traceback"), 0)
    assert done.returncode == 0, text[first : first + 4000] + "\n…\n" + text[-1500:]
    if not checksums:
        return None
    return [json.loads((out / f"rl_think/checksums.rank{rank}.json").read_text()) for rank in (0, 1)]


def test_stock_command_keeps_averages_and_policy_equal_on_both_ranks(tmp_path):
    module = ["-m", "trl.scripts.grpo", "--config", "recipes/rlp/tiny/trl.yaml"]
    settings = ["--max_steps", "3", "--per_device_train_batch_size", "16", "--logging_steps", "1"]
    first, second = launch([*module, *settings], tmp_path / "out", tmp_path / "log")
    assert first == second
    assert first["policy"] != first["ema"] != first["frozen"]


def test_groups_that_span_ranks_have_one_advantage(tmp_path):
    module = ["-m", "rl_think_ext.cli.train", "--config", "recipes/rlp/tiny/train.yaml"]
    # Four samples a rank and groups of eight: every group lies on both ranks.
    settings = ["--per_device_train_batch_size", "4", "--max_steps", "2", "--log_completions", "true"]
    first, second = launch([*module, *settings, "--logging_steps", "1"], tmp_path / "out", tmp_path / "log")
    assert first == second
    table = pq.read_table(tmp_path / "out/completions/completions_00001.parquet").to_pylist()
    assert len({row["prompt"] for row in table}) == 1
    reasoned = [row["rlp/reasoned"] for row in table]
    mean = sum(reasoned) / 8
    for row, score in zip(table, reasoned, strict=True):
        assert abs(row["advantage"] - 8 / 7 * (score - mean)) < 1e-5


def test_rlmt_groups_that_span_ranks_have_one_floor_and_one_advantage(tmp_path):
    module = ["-m", "rl_think_ext.cli.train", "--config", "recipes/rlmt/tiny/train.yaml"]
    settings = ["--per_device_train_batch_size", "4", "--max_steps", "2", "--scale_rewards", "none"]
    out = tmp_path / "out"
    launch([*module, *settings, "--logging_steps", "1"], out, tmp_path / "log", checksums=False)
    table = pq.read_table(out / "completions/completions_00001.parquet").to_pylist()
    assert len(table) == 8 and len({json.dumps(row["prompt"]) for row in table}) == 1
    scored = [row["rlmt/score"] for row in table if row["rlmt/score"] is not None]
    paid = [row["rlmt/score"] if row["rlmt/score"] is not None else min(scored) for row in table]
    # The policy's first outputs have the form now and then only: both kinds are there, on both ranks.
    assert scored
    mean = sum(paid) / 8
    for row, score in zip(table, paid, strict=True):
        assert abs(row["rlmt"] - score) < 1e-5 and abs(row["advantage"] - (score - mean)) < 1e-4
    logs = [json.loads(line) for line in (out / "rl_think/log.jsonl").read_text().splitlines()]
    assert logs[0]["rlmt/status/ok"] == len(scored) / 8
