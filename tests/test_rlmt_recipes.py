"""Every kind of RLMT's smoke recipe, one after the other in this one process."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from rl_think_ext import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RECIPE = Path("recipes/rlmt/tiny")
FEW = ["--max_steps", "3", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where the runs of this file stand; the recipes speak of folders as seen from the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield tmp_path_factory.mktemp("rlmt")


def train(name, folder, *more):
    assert cli.main(["train", "--config", str(RECIPE / name), "--output_dir", str(folder), *FEW, *more]) == 0
    return [json.loads(line) for line in (folder / "rl_think/log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def warm(out):
    assert any("loss" in line for line in train("sft.yaml", out / "sft"))
    return str(out / "sft")


def test_warm_start_then_grpo_then_report(out, warm):
    lines = train("train.yaml", out / "grpo", "--model_name_or_path", warm)
    assert sum("rlmt/score" in line for line in lines) == 3
    assert all(0 < line["rlmt/status/ok"] <= 1 for line in lines if "rlmt/status/ok" in line)
    page = (out / "grpo/report.html").read_text()
    assert "Score" in page and "<script" not in page
    table = pq.read_table(out / "grpo/completions/completions_00001.parquet").to_pylist()
    assert any(row["rlmt/thought"] and row["rlmt/answer"] for row in table)


def test_the_control_is_the_same_file_but_for_one_key(out):
    config = yaml.safe_load((ROOT / RECIPE / "train.yaml").read_text())
    config["rl_think"]["rlmt"]["style"] = "none"
    (out / "none.yaml").write_text(yaml.safe_dump(config))
    words = ["train", "--config", str(out / "none.yaml"), "--output_dir", str(out / "none"), *FEW]
    assert cli.main(words) == 0
    table = pq.read_table(out / "none/completions/completions_00001.parquet").to_pylist()
    assert all(row["rlmt/thought"] is None for row in table)


def test_pairs_of_the_warm_start_then_dpo(out, warm):
    words = ["data", "rlmt-dpo", "--input", str(RECIPE / "data"), "--output", str(out / "pairs"), "--model", warm]
    words += ["--reward-model", str(RECIPE / "models/reward"), "--min-parsed", "2", "--num-prompts", "48"]
    assert cli.main([*words, "--max-tokens", "64"]) == 0
    rows = pq.read_table(out / "pairs/train.parquet").to_pylist()
    assert rows and all(row["chosen_score"] > row["rejected_score"] for row in rows)
    lines = train("dpo.yaml", out / "dpo", "--model_name_or_path", warm, "--dataset_name", str(out / "pairs"))
    assert any("rewards/margins" in line for line in lines)


def test_stock_command(out, monkeypatch):
    words = ["trl", "--config", str(RECIPE / "trl.yaml"), "--output_dir", str(out / "stock"), *FEW]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("RL_THINK_CONFIG", str(RECIPE / "settings.yaml"))
    runpy.run_module("trl.scripts.grpo", run_name="__main__")
    lines = [json.loads(line) for line in (out / "stock/rl_think/log.jsonl").read_text().splitlines()]
    assert sum("rlmt/score" in line for line in lines) == 3
    assert json.loads((out / "stock/rl_think/run.json").read_text())["trainer"] == "GRPOTrainer"
