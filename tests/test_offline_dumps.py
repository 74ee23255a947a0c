"""`rl-think replay` on verl's dumps of rollouts: equal samples give equal numbers, and stock dumps are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rl_think_ext import cli
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.offline.bench import Bench, Place
from rl_think_ext.offline.dumps import read_dump
from rl_think_ext.offline.replay import ReplayConfig, run_replay, score
from rl_think_ext.offline.rollouts import IDS, Run
from rl_think_ext.report.folder import read
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import rl_rows

MODEL = str(PROGRAMS_MODEL)
SETTINGS = RLPConfig(baseline="init", frozen_gain=False, num_target_tokens=2)
THOUGHTS = ("b = a </think>", "</think>", "a b c", "c = 1 </think>")


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    """Eight samples of two steps with their scores, closed and not, as the trainer's columns have them."""
    encode = load_tokenizer(MODEL)
    rows = []
    for i, row in enumerate(rl_rows(0, 8)):
        ids = [encode(row["context"] + "<think>"), encode(row["context"]), encode(row["target"] + " :")]
        values = [list(each["input_ids"]) for each in (*ids, encode(THOUGHTS[i % 4]))]
        rows.append({"id": f"doc{i}", **dict(zip(IDS, values, strict=True)), "step": 1 + i // 4})
    found = score(Bench.of(MODEL, SETTINGS, Place("cpu", "float32", False), MODEL), rows)
    return [{**row, **scores} for row, scores in zip(rows, found, strict=True)]


@pytest.fixture
def dumps(samples: list[dict[str, Any]], tmp_path: Path) -> Path:
    """Written by verl's own function, with run.json in the run's folder above."""
    trainer_base = pytest.importorskip("verl.trainer.ppo.v1.trainer_base")
    folder = tmp_path / "run/dumps"
    for step in (1, 2):
        rows = [row for row in samples if row["step"] == step]
        extra = {name: [row[name] for row in rows] for name in rows[0] if name != "step"}
        words = [["text\u2028of\x85lines"] * 4] * 3
        gains = [row["gain"] for row in rows]
        trainer_base.PPOTrainer._write_generations(*words, gains, {"uid": ["u"] * 4, **extra}, str(folder), step)
    about = {"method": "rlp", "trainer": "verl RLPTrainer", "model": MODEL, "settings": vars(SETTINGS)}
    (tmp_path / "run/rl_think").mkdir()
    (tmp_path / "run/rl_think/run.json").write_text(json.dumps(about))
    return folder


def test_dumps_are_scored_again_to_the_same_numbers(
    dumps: Path, samples: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", str(dumps), "--device", "cpu"]) == 0
    assert "replay-1" in capsys.readouterr().out.replace("\n", "")
    found = json.loads((dumps / "replay-1/replay.json").read_text())
    assert found["steps"] == [1, 2] and found["num_samples"] == 8
    assert found["gain"]["largest_difference"] < 1e-6
    assert found["became_unscorable"] == found["became_scorable"] == 0
    assert found["unscorable_old"] == {reason: 2 for row in samples if (reason := row["unscorable"])} != {}


def test_other_settings_are_answered_too(dumps: Path, tmp_path: Path) -> None:
    found = run_replay(ReplayConfig(run=dumps, set=["baseline=none"], steps="2", output=tmp_path / "out"))
    assert found["num_samples"] == 4 and found["baseline"]["new"]["mean"] == 0.0
    assert found["settings"]["old"]["baseline"] == "init"


def test_run_json_is_found_beside_the_dumps_and_missed_by_name(dumps: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(dumps, tmp_path / "alone/dumps")
    with pytest.raises(UserError, match=r"no run.json says how they were scored; looked for .*alone/dumps/run.json"):
        Run.of(alone)
    shutil.copy(dumps.parent / "rl_think/run.json", alone)
    assert Run.of(alone).model == MODEL
    assert list(Run.of(alone).steps) == [1, 2]


def test_stock_dumps_say_which_trainer_writes_the_ids(dumps: Path) -> None:
    line = {"input": "a", "output": "b", "gts": None, "score": 1.0, "step": 3, "uid": "u"}
    (dumps / "3.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"3.jsonl, line 1: no column `prompt_ids`, only input, .*trainer_mode=rlp"):
        Run.of(dumps).read(3)


@pytest.mark.parametrize("with_run", [True, False])
def test_stock_dumps_are_refused_before_run_json_is_asked_for(dumps: Path, with_run: bool) -> None:
    line = {"input": "a", "output": "b", "gts": None, "score": 1.0, "step": 1, "uid": "u"}
    (dumps / "1.jsonl").write_text(json.dumps(line) + "\n")
    if not with_run:
        (dumps.parent / "rl_think/run.json").unlink()
    with pytest.raises(UserError, match=r"1.jsonl, line 1: no column `prompt_ids`"):
        Run.of(dumps)


@pytest.mark.parametrize("folder", [".", "dumps"])
def test_a_run_of_another_method_is_called_one(dumps: Path, folder: str) -> None:
    path = dumps.parent / "rl_think/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "method": "rlmt"}))
    (dumps / "1.jsonl").write_text('{"input": "a", "output": "b", "thought": "c", "answer": "d"}\n')
    with pytest.raises(UserError, match="is a run of RLMT; replay scores RLP's thoughts") as said:
        Run.of(dumps.parent / folder)
    assert str(said.value).startswith(str(dumps.parent / folder))
    assert "log_completions" not in str(said.value)


@pytest.mark.parametrize(
    "about", [{"method": "rlp"}, {"method": "rlp", "settings": {"baselin": "none"}, "model": MODEL}]
)
def test_errors_name_the_run_json_that_was_read(dumps: Path, about: dict[str, Any]) -> None:
    path = dumps.parent / "rl_think/run.json"
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match=str(path)):
        run_replay(ReplayConfig(run=dumps))
    with pytest.raises(UserError, match="does not name the model"):
        _ = Run(dumps, {}, {}, path).model


def test_the_report_of_dumps_points_to_their_run(dumps: Path) -> None:
    with pytest.raises(UserError, match=f"holds verl's dumps of rollouts.*default_local_dir, {dumps.parent}$"):
        read(dumps)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"completion_ids": None}, "line 1: `completion_ids` is no list of token ids"),
        ({"completion_ids": [1, True]}, "line 1: `completion_ids` is no list of token ids"),
        ({"target_ids": "12"}, "line 1: `target_ids` is no list of token ids"),
    ],
)
def test_what_are_no_ids_is_named_by_its_line(dumps: Path, changes: dict[str, Any], words: str) -> None:
    row = json.loads((dumps / "1.jsonl").read_text().split("\n")[0])
    (dumps / "1.jsonl").write_text(json.dumps({**row, **changes}) + "\n")
    with pytest.raises(UserError, match=words):
        Run.of(dumps).read(1)


def test_a_dump_that_was_cut_off_is_named_and_a_nan_is_no_number(dumps: Path) -> None:
    path = dumps / "1.jsonl"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0].replace('"score": ', '"score": NaN, "was": '), lines[1][:40]]))
    with pytest.raises(UserError, match=r"1.jsonl, line 2: no JSON. A run that was stopped"):
        Run.of(dumps).read(1)
    path.write_text(path.read_text().split("\n")[0])
    assert read_dump(path, IDS, ())[0]["score"] is None
