"""`rl-think replay`: the start model gives the numbers that were logged; other settings give what they should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from rl_think_ext import cli
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.offline.replay import NUMBERS, ReplayConfig, compare, run_replay
from rl_think_ext.offline.rollouts import Run
from rl_think_ext.scoring.load import load_model, load_tokenizer
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import rl_rows
from rl_think_ext.tiny.text import save_text_model

MODEL = str(PROGRAMS_MODEL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of RLP that kept their rollouts; the targets are two tokens."""
    pytest.importorskip("trl")
    from datasets import Dataset

    from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer

    folder = tmp_path_factory.mktemp("run") / "out"
    args = ThinkGRPOConfig(
        str(folder), max_steps=3, per_device_train_batch_size=16, num_generations=4, max_completion_length=12,
        learning_rate=1e-3, bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", logging_steps=1,
        disable_tqdm=True, save_strategy="no", log_completions=True,
    )  # fmt: skip
    trainer = ThinkGRPOTrainer(
        MODEL, args, rlp=RLPConfig(ema_decay=0.9, num_target_tokens=2, closing="unscorable"),
        train_dataset=Dataset.from_list([{**row, "target": row["target"] + " :"} for row in rl_rows(0, 64)]),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder))
    return folder


def replay(run: Path, tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = run_replay(ReplayConfig(run=run, output=tmp_path / "replay", **changes))
    written = json.loads((tmp_path / "replay/replay.json").read_text())
    assert written == {name: value for name, value in found.items() if name != "folder"}
    return found, pq.read_table(tmp_path / "replay/replay.parquet").to_pylist()


def test_the_start_model_reproduces_the_first_steps_log(run: Path, tmp_path: Path) -> None:
    found, rows = replay(run, tmp_path, steps="first")
    assert found["steps"] == [1] and len(rows) == 16
    scorable = [row for row in rows if row["unscorable"] is None]
    assert 4 <= len(scorable) < 16, "both kinds are there"
    for row in rows:
        assert row["new_unscorable"] == row["unscorable"]
        for name in NUMBERS:
            known = row[name] is not None
            assert (row[f"new_{name}"] is not None) == known
            assert not known or row[f"new_{name}"] == pytest.approx(row[name], abs=1e-5)
    assert found["gain"]["largest_difference"] < 1e-5
    assert found["gain"]["correlation"] == pytest.approx(1.0, abs=1e-6)
    assert found["became_unscorable"] == found["became_scorable"] == 0


def test_later_steps_differ_by_what_was_learned_but_not_in_the_frozen_score(run: Path, tmp_path: Path) -> None:
    found, _ = replay(run, tmp_path, steps="last")
    assert found["steps"] == [3]
    assert found["frozen"]["largest_difference"] < 1e-5
    assert found["reasoned"]["largest_difference"] > 1e-3


def test_another_model_is_scored_against_the_runs_start(run: Path, tmp_path: Path) -> None:
    found, rows = replay(run, tmp_path, steps="first", model=str(run), set=["baseline=init"])
    assert found["frozen"]["largest_difference"] < 1e-5, "the start's weights are the frozen ones"
    assert found["baseline"]["largest_difference"] < 1e-5
    assert found["reasoned"]["largest_difference"] > 1e-3
    live, _ = replay(run, tmp_path / "live", steps="first", model=str(run), set=["baseline=live", "frozen_gain=false"])
    assert live["baseline"]["largest_difference"] > 1e-3
    assert live["frozen"]["new"]["mean"] is None
    assert rows[0]["step"] == 1


def test_other_settings_give_what_they_should(run: Path, tmp_path: Path) -> None:
    none, rows = replay(run, tmp_path / "none", steps="first", set=["baseline=none", "aggregate=mean"])
    for row in rows:
        if row["unscorable"] is None:
            assert row["new_gain"] == pytest.approx(row["reasoned"] / 2, abs=1e-5)
    assert none["baseline"]["new"]["mean"] == 0.0
    closed, rows = replay(run, tmp_path / "closed", set=["closing=append"])
    cut_off = [row for row in rows if row["unscorable"] == "thought not closed"]
    assert closed["became_scorable"] == len(cut_off) > 0
    assert all(row["new_gain"] is not None for row in cut_off)
    back, _ = replay(run, tmp_path / "one", set=["num_target_tokens=1"])
    assert back["settings"]["new"]["num_target_tokens"] == 1 != back["settings"]["old"]["num_target_tokens"]


def test_old_and_new_are_compared_pair_by_pair() -> None:
    def row(gain: float | None, reason: str | None = None) -> dict[str, Any]:
        return {"step": 1, "prompt_ids": [1], "unscorable": reason, **dict.fromkeys(NUMBERS, gain)}

    old = [row(1.0), row(2.0), row(None, "empty thought"), row(5.0)]
    new = [row(3.0), row(5.0), row(9.0), row(None, "longer than the model")]
    found = compare(old, new)
    assert found["gain"]["difference"]["mean"] == 2.5 and found["gain"]["difference"]["num_values"] == 2
    assert found["gain"]["correlation"] == pytest.approx(1.0)
    assert found["gain"]["largest_difference"] == 3.0
    assert (found["became_unscorable"], found["became_scorable"]) == (1, 1)
    assert found["unscorable_old"] == {"empty thought": 1} and found["unscorable_new"] == {"longer than the model": 1}
    assert compare(old, old)["reasoned"]["difference"]["mean"] == 0.0


def test_the_command_prints_and_numbers_its_folders(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        assert cli.main(["replay", str(run), "--steps", "1,3", "--set", "baseline=live"]) == 0
        folder = run / f"rl_think/replay-{number}"
        assert json.loads((folder / "replay.json").read_text())["steps"] == [1, 3]
        shown = capsys.readouterr().out
        assert f"replay-{number}" in shown.replace("\n", "")
        assert "settings that changed: {'baseline': 'live'}" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "baselin=none"], "unknown key `baselin`; did you mean `baseline`?"),
        (["--set", "baseline=emma"], "`baseline` is one of ema, init, live, none, got 'emma'"),
        (["--set", "num_target_tokens=3"], "the rollouts hold 2 target tokens at most"),
        (["--set", "elicit=generate"], "these thoughts were asked for with elicit prefill"),
        (["--steps", "9"], "--steps 9: no rollouts of that step; there are 1, 2, 3"),
        (["--steps", "one"], "--steps one: no rollouts of that step"),
        (["--model", "./no-model"], "could not load a tokenizer from"),
    ],
)
def test_what_rollouts_cannot_answer_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert cli.main(["replay", str(run), *words]) == 1
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown


def test_another_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    other = str(save_text_model(tmp_path / "text"))
    with pytest.raises(UserError, match=r"token \d+ is `.+` in the tokenizer of the run and `.+` in that of"):
        run_replay(ReplayConfig(run=run, model=other))
    # A vocabulary that is too small is seen without the run's own tokenizer.
    small = tmp_path / "small"
    shutil.copytree(run / "rl_think", tmp_path / "moved/rl_think")
    about = json.loads((tmp_path / "moved/rl_think/run.json").read_text())
    (tmp_path / "moved/rl_think/run.json").write_text(json.dumps({**about, "model": other}))
    load_model(MODEL).save_pretrained(small)
    tokenizer = load_tokenizer(MODEL)
    tokenizer.save_pretrained(small)
    words = json.loads((small / "tokenizer.json").read_text())
    words["model"]["vocab"] = {word: i for word, i in words["model"]["vocab"].items() if i < 20}
    (small / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match="made with another tokenizer"):
        run_replay(ReplayConfig(run=tmp_path / "moved", model=str(small), set=["baseline=live", "frozen_gain=false"]))


def test_a_model_of_another_shape_needs_its_own_baseline(run: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(MODEL, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "shallow")
    load_tokenizer(MODEL).save_pretrained(tmp_path / "shallow")
    words = {"run": run, "model": str(tmp_path / "shallow"), "output": tmp_path / "out"}
    with pytest.raises(UserError, match="use --set baseline=live frozen_gain=false"):
        run_replay(ReplayConfig(**words))
    assert run_replay(ReplayConfig(**words, set=["baseline=live", "frozen_gain=false"]))["num_samples"] == 48


def test_a_folder_without_a_run_or_rollouts_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run's folder"):
        Run.of(tmp_path)
    (tmp_path / "rl_think").mkdir()
    (tmp_path / "rl_think/run.json").write_text('{"settings": {}}')
    with pytest.raises(UserError, match="train with `log_completions: true`"):
        Run.of(tmp_path)
    (tmp_path / "rl_think/run.json").write_text("[]")
    with pytest.raises(UserError, match=r"run.json holds no settings of a run, but a list"):
        Run.of(tmp_path)


def test_ranks_are_read_in_their_order(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "rl_think", tmp_path / "rl_think", ignore=shutil.ignore_patterns("replay-*"))
    first = tmp_path / "rl_think/rollouts/0000001.rank0.parquet"
    shutil.copy(first.with_name("0000002.rank0.parquet"), first.with_name("0000001.rank10.parquet"))
    shutil.copy(first.with_name("0000003.rank0.parquet"), first.with_name("0000001.rank2.parquet"))
    (first.with_name("0000001.rank3.partial")).write_bytes(b"half")
    about = json.loads((tmp_path / "rl_think/run.json").read_text())
    (tmp_path / "rl_think/run.json").write_text(json.dumps({**about, "num_processes": 11}))
    found = Run.of(tmp_path)
    assert [row["step"] for row in found.read(1)] == [1] * 16 + [3] * 16 + [2] * 16
    # An earlier run with more processes left files in the same folder.
    (tmp_path / "rl_think/run.json").write_text(json.dumps({**about, "num_processes": 3}))
    assert [row["step"] for row in Run.of(tmp_path).read(1)] == [1] * 16 + [3] * 16
    assert found.choose("1,2") == [1, 2] and found.choose("all") == [1, 2, 3]
