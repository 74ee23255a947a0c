"""Every kind of RLPT's smoke recipe, one after the other in this one process: data, cold start, RLPT, RLVR."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from rl_think_ext import cli
from rl_think_ext.tiny import segment_measure

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RECIPE = Path("recipes/rlpt/tiny")
FEW = ["--max_steps", "2", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where the runs of this file stand; the recipes speak of folders as seen from the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield tmp_path_factory.mktemp("rlpt")


@pytest.fixture(scope="module")
def data(out):
    words = ["data", "rlpt", "--input", str(RECIPE / "texts"), "--output", str(out / "data")]
    assert cli.main([*words, "--min-segment-chars", "8", "--no-rules", "--dedup", "exact"]) == 0
    return out / "data"


@pytest.fixture(scope="module")
def cold(out):
    with pytest.MonkeyPatch.context() as patch:
        stock(patch, "sft", "sft.yaml", out / "sft")
    return str(out / "sft")


def stock(patch, script, name, folder, *more):
    """TRL's own command, in this process."""
    words = ["trl", "--config", str(RECIPE / name), "--output_dir", str(folder), *FEW, *more]
    patch.setattr(sys, "argv", words)
    runpy.run_module(f"trl.scripts.{script}", run_name="__main__")


def logged(folder):
    return [json.loads(line) for line in (folder / "rl_think/log.jsonl").read_text().splitlines()]


def completions(folder):
    return pq.read_table(folder / "completions/completions_00001.parquet").to_pylist()


def test_the_builder_writes_the_shipped_data(data):
    shipped = pq.read_table(RECIPE / "data/train.parquet").to_pylist()
    assert pq.read_table(data / "train.parquet").to_pylist() == shipped and len(shipped) > 2000


def test_cold_start_then_rlpt_then_report(out, cold, data):
    words = ["train", "--config", str(RECIPE / "train.yaml"), "--output_dir", str(out / "rlpt"), *FEW]
    assert cli.main([*words, "--model_name_or_path", cold, "--dataset_name", str(data)]) == 0
    lines = [line for line in logged(out / "rlpt") if "rlpt/score" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["rlpt/status/ok"] > 0.8 and line["rlpt/no_verdict"] == 0
        assert line["rlpt/asr/share"] + line["rlpt/msr/share"] == pytest.approx(1)
        assert line["rlpt/segments_covered"] > 0.3 and line["rlpt/prediction_length"] > 3
    rows = completions(out / "rlpt")
    assert {row["rlpt/task"] for row in rows} == {"asr", "msr"}
    assert {row["rlpt/score"] for row in rows} == {0.0, 1.0}
    right = next(row for row in rows if row["rlpt/score"] == 1.0)
    assert right["rlpt/reference"].startswith("So ") and right["rlpt/prediction"].startswith("So ")
    page = (out / "rlpt/report.html").read_text()
    assert "RLPT" in page and "<script" not in page


def test_strict_is_the_same_file_but_for_one_key(out):
    config = yaml.safe_load((RECIPE / "train.yaml").read_text())
    config["rl_think"]["rlpt"]["reward"] = "strict"
    (out / "strict.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["train", "--config", str(out / "strict.yaml"), "--output_dir", str(out / "strict"), *FEW]) == 0
    # A strict reference is one segment: one full stop.
    assert all(row["rlpt/reference"].count(".") == 1 for row in completions(out / "strict"))


def test_stock_command(out, monkeypatch):
    monkeypatch.setenv("RL_THINK_CONFIG", str(RECIPE / "settings.yaml"))
    stock(monkeypatch, "grpo", "trl.yaml", out / "stock")
    assert sum("rlpt/score" in line for line in logged(out / "stock")) == 2
    assert json.loads((out / "stock/rl_think/run.json").read_text())["trainer"] == "GRPOTrainer"


def test_rlvr_behind_it_is_the_stock_command_with_its_own_verifier(out, cold, monkeypatch):
    stock(monkeypatch, "grpo", "rlvr.yaml", out / "rlvr", "--model_name_or_path", cold)
    rows = completions(out / "rlvr")
    assert {row["accuracy_reward"] for row in rows} == {0.0, 1.0}, "math-verify reads some answers, and some are wrong"
    assert not (out / "rlvr/rl_think").exists()


def test_a_look_at_the_policy(capsys):
    segment_measure.main(["recipes/rlpt/tiny/models/policy", "--rows", "16"])
    said = json.loads(capsys.readouterr().out)
    assert 0 <= said["asr/strict"] <= said["asr/prefix"] <= 1
