"""The commands: what they cost to start, what they say, what they refuse."""

import json
import subprocess
import sys

import pytest
import yaml

from rl_think_ext import cli


def command(*words, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "rl_think_ext.cli", *words], capture_output=True, text=True, timeout=120, **kwargs
    )


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, rl_think_ext, rl_think_ext.cli, rl_think_ext.settings, rl_think_ext.methods.rlp, "
        "rl_think_ext.template, rl_think_ext.trl, rl_think_ext.kernels, rl_think_ext.tiny, rl_think_ext.data.rlp;"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'nltk', 'numpy', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_imports_none(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_help_of_every_command_works():
    for name in cli.COMMANDS:
        done = command(name, "--help")
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert "Did you mean `train`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_step": 3}, "unknown key `max_step`; did you mean `max_steps`?"),
        ({"rl_think": {"rlpx": {}}}, "rl_think: unknown key `rlpx`; did you mean `rlp`?"),
        ({"rl_think": {"rlp": {"baselin": "ema"}}}, "unknown key `baselin`; did you mean `baseline`?"),
        ({"rl_think": {"rlp": {"baseline": "emma"}}}, "`baseline` is one of ema, init, live, none, got 'emma'"),
        ({"rl_think": {"rlp": {"num_target_tokens": 0}}}, "`num_target_tokens` is at least 1"),
        ({"dataset_name": "./nowhere"}, "there is no ./nowhere"),
        ({"dataset_train_split": "trian"}, "has no split `trian`; there are train"),
        ({"resume_from_checkpoint": "./gone"}, "resume_from_checkpoint: there is no ./gone"),
        ({"resume_from_checkpoint": True}, "there is no whole checkpoint in"),
        ({"output_dir": "/proc/run"}, "output_dir: cannot write to /proc/run"),
        ({"reward_funcs": ["nowhere.reward"]}, "reward_funcs: cannot import nowhere.reward"),
        ({"reward_funcs": "no_reward"}, "reward_funcs: cannot import no_reward"),
        ({"model_name_or_path": None}, "say `model_name_or_path:`"),
        ({"scale_rewards": "group"}, "scale_rewards: 'group' is not RLP"),
        ({"model_name_or_path": "./no-model"}, "could not load a tokenizer from"),
    ],
)
def test_train_refuses_in_one_sentence(tmp_path, capsys, change, sentence):
    with open("recipes/rlp/tiny/train.yaml") as file:
        config = yaml.safe_load(file) | {"output_dir": str(tmp_path / "out")} | change
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    assert cli.main(["train", "--config", str(path)]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_f40_yaml_that_makes_objects_is_refused(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: !!python/object/apply:os.system ['touch pwned']\n")
    assert cli.main(["train", "--config", str(path)]) == 1
    assert "not plain YAML" in capsys.readouterr().err


def test_f39_no_secret_is_in_an_error(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: https://me:secret@host/model\ndataset_name: https://me:secret@host/data\n"
        "output_dir: out\nuse_cpu: true\nbf16: false\nreport_to: none\nenv:\n  HF_TOKEN: hf_abcdefghijklmnop\n"
    )
    assert cli.main(["train", "--config", str(path)]) == 1
    shown = "".join(capsys.readouterr())
    assert "https://***@host/data" in shown
    assert "secret" not in shown
    assert "hf_abc" not in shown


def test_f38_pickled_weights_are_refused(tmp_path, capsys):
    import shutil

    import torch
    from safetensors.torch import load_file

    from rl_think_ext.errors import UserError
    from rl_think_ext.scoring.load import load_model
    from rl_think_ext.tiny import PROGRAMS_MODEL

    shutil.copytree(PROGRAMS_MODEL, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    torch.save(load_file(weights), tmp_path / "model/pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="Weights must be safetensors"):
        load_model(str(tmp_path / "model"))
    with open("recipes/rlp/tiny/train.yaml") as file:
        config = yaml.safe_load(file) | {
            "model_name_or_path": str(tmp_path / "model"),
            "output_dir": str(tmp_path / "o"),
        }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["train", "--config", str(tmp_path / "run.yaml")]) == 1
    assert "Weights must be safetensors" in capsys.readouterr().err


def test_train_runs_and_leaves_a_model(tmp_path):
    done = command(
        "train",
        "--config",
        "recipes/rlp/tiny/train.yaml",
        *("--output_dir", str(tmp_path), "--max_steps", "2", "--per_device_train_batch_size", "8"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "rl_think/settings.json").exists()
    assert done.stdout.rstrip().endswith(f"report: {tmp_path / 'report.html'}")
    assert json.loads((tmp_path / "rl_think/run.json").read_text())["dataset"]["name"] == "recipes/rlp/tiny/data"


def test_train_whose_report_cannot_be_written_says_so_and_has_not_failed(tmp_path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html/report.html").mkdir()
    settings = ("--output_dir", str(tmp_path), "--max_steps", "1", "--per_device_train_batch_size", "8")
    done = command("train", "--config", "recipes/rlp/tiny/train.yaml", *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no report: cannot write" in done.stdout


def test_demo_of_three_steps_shows_everything(tmp_path):
    done = command("demo", "--output", str(tmp_path), "--steps", "3", "--test-rows", "32", "--controls")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["runs"][0]["before"]["gain"] < 0.1
    assert len(result["runs"][0]["history"]) == 3
    assert result["runs"][0]["worked"]["train_steps"] >= 1
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert "before → after" in done.stdout
    assert done.stdout.rstrip().endswith(f"report: {tmp_path / 'report.html'}")
    measured = json.loads((tmp_path / "seed-0/rl_think/measured.json").read_text())
    for when in ("before", "after"):
        found = measured[when]["gain"]
        assert found["mean"] == pytest.approx(result["runs"][0][when]["gain"], abs=1e-6)
        assert found["low"] < found["mean"] < found["high"] and found["num_values"] == 32


def test_demo_that_cannot_write_says_so(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "file/x")]) == 1
    assert "choose another --output" in capsys.readouterr().err
