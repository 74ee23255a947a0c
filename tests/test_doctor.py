"""`rl-think doctor` where all is well, what its table looks like, and what it needs itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_doctor_setups import STOCK, TRAIN, doctor, plugin_raises, run_file

from rl_think_ext import cli


@pytest.mark.parametrize("path", [TRAIN, STOCK])
def test_recipes_are_fit_to_run_and_nothing_is_left_behind(path, monkeypatch):
    monkeypatch.delenv("RL_THINK_CONFIG", raising=False)
    before = dict(os.environ)
    out = Path(yaml.safe_load(Path(path).read_text())["output_dir"])
    existed = out.exists()
    report = doctor(path)
    assert report.status == 0, report.at("broken")
    assert {f["name"] for f in report.at("ok")} >= {"TRL's keys", "model", "tags", "stop", "dataset", "rows", "disk"}
    assert dict(os.environ) == before and out.exists() == existed


def test_every_setting_is_shown_with_its_place(tmp_path):
    path = run_file(tmp_path, rl_think={"rlp": {"baseline": "init"}})
    (finding,) = [f for f in doctor(path).findings if f["name"] == "RLP settings"]
    given, _, rest = finding["found"].partition("By default")
    assert given == f"From {path}, rl_think: rlp: baseline=init. "
    assert "ema_decay=0.999" in rest


def test_settings_that_nobody_gave_are_said_to_be_defaults(tmp_path, monkeypatch):
    monkeypatch.delenv("RL_THINK_CONFIG", raising=False)
    (finding,) = [f for f in doctor(run_file(tmp_path, STOCK, env=None)).findings if f["name"] == "RLP settings"]
    assert finding["found"].startswith("All by default (RL_THINK_CONFIG is not set): num_target_tokens=1")


def test_trl_reads_inline_settings(tmp_path):
    path = run_file(tmp_path, STOCK, env={"RL_THINK_CONFIG": "rlp: {baseline: live}"})
    (finding,) = [f for f in doctor(path).findings if f["name"] == "RLP settings"]
    assert "From inline YAML in RL_THINK_CONFIG: baseline=live" in finding["found"]


OWN_REWARD = """
from rl_think_ext.trl import InformationGain

class GainPerToken(InformationGain):
    pass

gain_per_token = GainPerToken()

def other(completions, **columns):
    return [0.0 for _ in completions]
"""


@pytest.mark.parametrize(
    ("rewards", "status", "said"),
    [
        (["gain_per_token"], 0, "The reward own_rewards_{}.gain_per_token is built on RLP's gain"),
        (["gain_per_token", "other"], 1, "Beside own_rewards_{}.other the stock trainer would count"),
        (["other"], 1, "Of `reward_funcs:` own_rewards_{}.other none that can be imported is RLP's gain"),
    ],
)
def test_a_file_with_the_variable_is_for_the_stock_command(tmp_path, monkeypatch, rewards, status, said):
    module = f"own_rewards_{len(rewards)}{status}"
    (tmp_path / f"{module}.py").write_text(OWN_REWARD)
    recipe = yaml.safe_load(Path(STOCK).read_text())
    path = run_file(
        tmp_path,
        STOCK,
        env={"RL_THINK_CONFIG": "rlp: {baseline: live}"},
        reward_funcs=[f"{module}.{name}" for name in rewards],
        reward_weights=recipe["reward_weights"] * len(rewards),
        dataset_name=str(Path(recipe["dataset_name"]).resolve()),
        model_name_or_path=str(Path(recipe["model_name_or_path"]).resolve()),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    report = doctor(path)
    words = {finding["name"]: finding["found"] for finding in report.findings}
    assert "is for `trl grpo`" in words["file"] and "baseline=live" in words["RLP settings"]
    assert report.status == status, report.at("broken")
    assert any(said.format(f"{len(rewards)}{status}") in finding["found"] for finding in report.findings)


def test_tested_versions_are_those_of_the_constraints():
    from rl_think_ext.cli.doctor.place import TESTED, requirements, tested_versions

    constraints = Path("constraints.txt").read_text().splitlines()
    assert set(TESTED.read_text().splitlines()) <= set(constraints)
    pinned = {line.partition("==")[0].lower() for line in constraints if "==" in line}
    assert tested_versions().keys() >= requirements().keys() & pinned


def test_table_is_80_columns_and_folds_traces(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    argv = plugin_raises(tmp_path, monkeypatch)
    assert cli.main(["doctor", *argv]) == 1
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "lines more with --trace" in shown and "1 broken" in shown
    assert "hf_***" in shown and "hf_abc" not in shown
    cli.main(["doctor", *argv, "--trace"])
    assert len(capsys.readouterr().out) > len(shown)


def test_table_names_what_was_not_looked_at_in_one_line(tmp_path, capsys):
    assert cli.main(["doctor", str(run_file(tmp_path, max_step=1))]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Not looked at because of what is broken: reward_funcs, model, tags, stop, dataset" in shown
    assert shown.count("Mend that first") == 0


def test_without_torch_the_doctor_still_speaks(tmp_path):
    """Nothing that it imports by itself needs what it looks for."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "real = PathFinder.find_spec\n"
        "gone = ('torch', 'transformers', 'trl')\n"
        "PathFinder.find_spec = lambda name, *rest: None if name in gone else real(name, *rest)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "rl_think_ext.cli", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "torch is not installed" in done.stdout
    assert "Traceback" not in done.stderr
