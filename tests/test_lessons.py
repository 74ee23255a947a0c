"""What docs/lessons.md claims, on runs short enough for `make test-slow`; the commands themselves run in test_docs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def lesson(folder, name, *words):
    """Run one in a folder of its own; what it printed and the numbers that it kept."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / f"examples/lessons/{name}.py"), *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / f"out/lessons/{name}.json").read_text())


def test_tag_left_in_the_baseline_reports_more_than_there_is_for_the_same_policy(tmp_path):
    found = lesson(tmp_path, "tag_leak", "--steps", "60")
    assert found["same policy"]
    assert found["masked"]["rlp/gain"] < found["ceiling"] < found["not masked"]["rlp/gain"]
    assert found["masked"]["rlp/accuracy"] == found["not masked"]["rlp/accuracy"]


def test_broken_direct_path_inflates_the_gain_and_the_alarm_says_so(tmp_path):
    found = lesson(tmp_path, "inflated_gain")
    worst = max(found["logs"], key=lambda log: log["rlp/gain"])
    assert worst["rlp/gain"] > 2.5 and worst["rlp/gain_frozen"] < -1 and worst["rlp/accuracy"] < 0.2
    assert any("broken direct path" in text for text in found["alarms"])


def test_random_cuts_fail_and_their_selection_learns(tmp_path):
    found = lesson(tmp_path, "dead_groups", "--seeds", "0")
    run = found["seed 0"]
    assert run["before an answer"] > 0.9
    assert run["random cuts"]["gain"] < 0.3 and run["random cuts"]["accuracy"] < 0.25
    assert run["selected"]["gain"] > 1.5 and run["selected"]["accuracy"] > 0.8
