"""`rl-think doctor` on verl: what its registries hold of ours, and the trace where they cannot (F43, F44)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_doctor_setups import TRAIN, distribution, doctor, run_file, verl_name_that_cannot_be_imported

pytest.importorskip("verl")

NAMES = "verl's names"


def test_every_name_that_verl_knows_of_ours_is_shown() -> None:
    (finding,) = [finding for finding in doctor().findings if finding["name"] == NAMES]
    assert finding["state"] == "ok"
    for words in ("trainers rlp, rlmt, rlpt", "reward managers rlmt, rlpt", "estimators rlp"):
        assert words in finding["found"]
    assert "agent loops rl_think_thought, rl_think_chat, rl_think_prediction" in finding["found"]


def test_an_untested_verl_is_a_warning_with_the_tested_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, monkeypatch, "verl", "0.8.2")
    report = doctor()
    (finding,) = [finding for finding in report.findings if finding["name"] == "verl"]
    assert finding["state"] == "warn"
    assert "verl 0.8.2 is not the tested 0.9.1" in finding["found"]
    assert finding["todo"] == "pip install 'verl==0.9.1'"
    assert report.status == 0


def test_another_release_of_the_tested_series_is_not_called_the_tested_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, monkeypatch, "verl", "0.9.2")
    (finding,) = [finding for finding in doctor().findings if finding["name"] == "verl"]
    assert finding["state"] == "warn"
    assert finding["found"] == "verl 0.9.2 is supported, but 0.9.1 is the tested version."
    assert finding["todo"] == "pip install 'verl==0.9.1'"


def test_a_name_that_cannot_be_imported_is_broken_with_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = doctor(*verl_name_that_cannot_be_imported(tmp_path, monkeypatch))
    said = "rl_think_ext.verl.rlmt_reward.RLMTRewardManager cannot be used under verl."
    (finding,) = [one for one in report.at("broken") if one["found"] == said]
    assert report.status == 1
    assert finding["trace"].splitlines()[-1].startswith("ModuleNotFoundError: import of rl_think_ext.verl.rlmt_reward")
    assert not [one for one in report.at("ok") if one["name"] == NAMES]


def test_in_a_process_where_verls_loop_cannot_be_imported_doctor_exits_1_with_the_trace(tmp_path: Path) -> None:
    (tmp_path / "transfer_queue.py").write_text("raise ImportError('built for another machine')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "rl_think_ext.cli", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (finding,) = [one for one in json.loads(done.stdout)["findings"] if one["state"] == "broken"]
    assert done.returncode == 1
    assert finding["name"] == "verl" and "built for another machine" in finding["found"]
    assert "transfer_queue.py" in finding["trace"] and finding["todo"]


def test_a_file_is_a_run_of_trl_and_leaves_verls_registries_alone(tmp_path: Path) -> None:
    report = doctor(run_file(tmp_path, TRAIN))
    assert [one["name"] for one in report.findings if "verl" in one["name"]] == ["verl"]
