"""What a run leaves in its folder: enough to be read, drawn and scored again, and nothing of an earlier run."""

import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.run_record import plain
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import rl_rows
from rl_think_ext.trl import InformationGain, ThinkGRPOConfig, ThinkGRPOTrainer
from rl_think_ext.trl.announce import arguments

trl = pytest.importorskip("trl")

TINY = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "save_strategy": "no",
    "log_completions": True,
    "num_completions_to_print": 0,
    "max_steps": 2,
}


def trainer_in(out, kind=ThinkGRPOTrainer, rows=32, **settings):
    data = Dataset.from_list([{**row, "id": f"doc{i}:0"} for i, row in enumerate(rl_rows(0, rows))])
    if kind is ThinkGRPOTrainer:
        args = ThinkGRPOConfig(str(out), **{**TINY, **settings})
        return kind(str(PROGRAMS_MODEL), args, rlp=RLPConfig(), train_dataset=data)
    args = trl.GRPOConfig(str(out), **{**TINY, "loss_type": "grpo", "scale_rewards": "none", **settings})
    return kind(str(PROGRAMS_MODEL), InformationGain(RLPConfig()), args=args, train_dataset=data)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", [ThinkGRPOTrainer, trl.GRPOTrainer])
def test_run_leaves_log_settings_and_rollouts_under_both_trainers(tmp_path, kind):
    trainer = trainer_in(tmp_path, kind)
    trainer.train()
    folder = tmp_path / "rl_think"
    logged = [log for log in trainer.state.log_history if "rlp/gain" in log]
    kept = [log for log in lines(folder / "log.jsonl") if "rlp/gain" in log]
    assert [log["step"] for log in kept] == [1, 2]
    for ours, theirs in zip(kept, logged, strict=True):
        assert ours["rlp/gain"] == theirs["rlp/gain"]
        assert ours["rlp/accuracy"] == theirs["rlp/accuracy"]
    run = json.loads((folder / "run.json").read_text())
    assert run["settings"]["baseline"] == "ema" and run["trainer"] == kind.__name__
    assert run["model"] == str(PROGRAMS_MODEL) and run["num_processes"] == 1
    assert run["arguments"]["max_steps"] == 2 and "output_dir" not in run["arguments"]
    assert run["dataset"] == {"name": None, "num_rows": 32, "card": None}
    assert {"torch", "trl", "python", "rl_think_ext"} <= run["versions"].keys()
    table = pq.read_table(folder / "rollouts/0000002.rank0.parquet").to_pylist()
    completions = pq.read_table(tmp_path / "completions/completions_00002.parquet").to_pylist()
    assert len(table) == len(completions) == 8
    for ours, theirs in zip(table, completions, strict=True):
        assert ours["id"] == theirs["rlp/id"] and theirs["prompt"] == theirs["rlp/context"] + "<think>"
        assert ours["gain"] == pytest.approx(theirs["rlp"]) or (ours["gain"] is None and math.isnan(theirs["rlp"]))
        decoded = trainer.processing_class.decode(ours["completion_ids"], skip_special_tokens=True)
        assert decoded == theirs["completion"]
        assert trainer.processing_class.decode(ours["target_ids"]) == theirs["rlp/target"]
        assert ours["accuracy"] == theirs["rlp/accuracy"]


def test_fresh_run_takes_away_what_an_earlier_one_left(tmp_path):
    trainer_in(tmp_path, max_steps=2).train()
    folder = tmp_path / "rl_think"
    (folder / "alarms.jsonl").write_text('{"step": 1, "alarm": "of an earlier run"}\n')
    (folder / "measured.json").write_text("{}")
    (folder / "rollouts/0000002.rank1.parquet").write_text("of an earlier run of two processes")
    trainer_in(tmp_path, max_steps=1).train()
    assert [log["step"] for log in lines(folder / "log.jsonl") if "rlp/gain" in log] == [1]
    assert [path.name for path in (folder / "rollouts").iterdir()] == ["0000001.rank0.parquet"]
    assert not (folder / "measured.json").exists()
    assert not (folder / "alarms.jsonl").exists()


def test_resumed_run_keeps_what_came_before_its_checkpoint_and_no_more(tmp_path):
    trainer_in(tmp_path, save_strategy="steps", save_steps=2, max_steps=4).train()
    folder = tmp_path / "rl_think"
    alarms = [{"step": 1, "alarm": "kept"}, {"step": 4, "alarm": "abandoned"}]
    (folder / "alarms.jsonl").write_text("".join(json.dumps(alarm) + "\n" for alarm in alarms))
    (folder / "measured.json").write_text("{}")
    trainer_in(tmp_path, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    steps = [log["step"] for log in lines(folder / "log.jsonl") if "rlp/gain" in log]
    assert steps == [1, 2, 3, 4, 3]
    assert [alarm["alarm"] for alarm in lines(folder / "alarms.jsonl")] == ["kept"]
    assert sorted(path.name[:7] for path in (folder / "rollouts").iterdir()) == ["0000001", "0000002", "0000003"]
    assert (folder / "measured.json").exists()


def test_evaluation_alone_leaves_the_record_of_a_run_as_it_is(tmp_path):
    trainer_in(tmp_path, max_steps=2).train()
    before = {
        path: path.read_bytes()
        for path in (tmp_path / "rl_think").rglob("*")
        if path.name != "settings.json" and path.is_file()
    }
    trainer = trainer_in(tmp_path)
    trainer.evaluate(Dataset.from_list(rl_rows(1, 8)))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_without_log_completions_no_rollouts_are_kept(tmp_path):
    trainer_in(tmp_path, log_completions=False, max_steps=1).train()
    assert not (tmp_path / "rl_think/rollouts").exists()


def test_scores_of_evaluation_do_not_pass_for_training(tmp_path):
    trainer = trainer_in(tmp_path, max_steps=1)
    trainer.eval_dataset = Dataset.from_list(rl_rows(1, 8))
    trainer.train()
    before = trainer.information_gain.batch
    trainer.evaluate()
    assert trainer.information_gain.batch is before
    assert any("eval_rlp/gain" in log for log in lines(tmp_path / "rl_think/log.jsonl"))


def test_secrets_of_the_arguments_are_masked(tmp_path):
    args = ThinkGRPOConfig(str(tmp_path), **{**TINY, "hub_token": "hf_secret"})
    assert "hf_secret" not in json.dumps(arguments(args))
    assert arguments(args)["max_completion_length"] == 12


def test_plain_json_holds_no_nan():
    value = {"a": math.nan, "b": [math.inf, 1.5, None, True], 3: torch.float32}
    assert plain(value) == {"a": None, "b": [None, 1.5, None, True], "3": "torch.float32"}


def test_rollouts_keep_every_target_of_the_row(tmp_path):
    """Scored is one token, as the settings say; replay may score more of them."""
    trainer = trainer_in(tmp_path, max_steps=1)
    tokenizer = trainer.processing_class
    rows = []
    for row in rl_rows(0, 8):
        ids = tokenizer(row["context"])["input_ids"]
        rows.append({**row, "context_ids": ids, "target_ids": tokenizer(row["target"] + "<eos>")["input_ids"]})
    trainer.train_dataset = Dataset.from_list(rows)
    trainer.train()
    table = pq.read_table(tmp_path / "rl_think/rollouts/0000001.rank0.parquet").to_pylist()
    assert {len(row["target_ids"]) for row in table} == {2}
