"""The benchmarks run and say what they promise; no time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CASE = "logits.forward.fp32.152k"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "logprob.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=300
    )


@pytest.mark.slow
def test_logprob_quick(tmp_path: Path) -> None:
    done = run("--quick", "--isa", "avx2", "--only", CASE, "overhead", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "logprob-avx2-quick.json").read_text())
    assert {"isa", "cpu", "flags", "versions", "allocator", "runs_measured", "memory", "goals"} <= record.keys()
    assert {"torch", "trl"} <= record["versions"].keys()
    (one,) = record["runs_measured"]
    assert (one["machine"]["aten"], one["machine"]["onednn_bf16"]) == ("AVX2", False)
    assert one["machine"]["inductor"] == "avx2, -march=x86-64-v3"
    check_case(one["cases"][CASE])
    check_goals(record["goals"], done.stdout)
    assert one["overhead"]["public_us"] > 0


def check_case(case: dict) -> None:
    ways = {way["name"]: way for way in case["ways"]}
    peers = {"TRL selective_log_softmax", "F.cross_entropy", "log_softmax + gather", "torch.compile"}
    assert peers | {"ours", "ours (torch)", "compacted torch.compile", "read (x.sum)"} <= ways.keys()
    assert all(len(way["cpu_s"]) == len(way["wall_s"]) > 0 for way in case["ways"])
    assert {way["density"] for way in case["ways"] if way["name"] == "ours"} == {1.0, 0.5, 0.05}
    assert max(way["error"] for way in case["ways"] if "error" in way) < 1e-5, "a way computes something else"


def check_goals(goals: list[dict], printed: str) -> None:
    """Every goal has its row; over small sizes none is judged."""
    assert len(goals) == 15
    assert all(row["name"] in printed and row["reached"] is None for row in goals)


@pytest.mark.slow
def test_logprob_refuses_a_pattern_without_cases() -> None:
    done = run("--only", "nothing")
    assert done.returncode == 2
    assert "matches nothing" in done.stderr and CASE in done.stderr


def record_of(name: str, folder: Path, *words: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *words, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_reward_model_quick(tmp_path: Path) -> None:
    record = record_of("reward_model", tmp_path, "--scale", "64", "--rounds", "1")
    ways = {"ours", "padded", "one"}
    assert record["times_ours"].keys() == record["peak_mib"].keys() == ways and "torch" in record["versions"]
    # Every way scores the same rows to the same numbers, or their times would not be those of the same work.
    assert max(record["largest_difference"].values()) < 1e-5 < record["spread_of_scores"]


@pytest.mark.slow
def test_endpoint_quick(tmp_path: Path) -> None:
    record = record_of("endpoint", tmp_path, "--runs", "1")
    assert [row["at_once"] for row in record["rows"]] == [64, 72, 80, 96]
    # Nobody is faster than the server: a share above 1 would say that requests were lost or not waited for.
    assert all(0 < row[way]["share"] <= 1 for row in record["rows"] for way in ("ours", "floor"))
