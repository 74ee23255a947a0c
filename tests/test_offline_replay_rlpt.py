"""RLPT's stored predictions judged again: the same settings give the run's own rewards, others give theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from stub_server import StubServer
from test_trl_rlpt import MIXED, OUTPUTS, RLPTGRPOConfig, Scripted, chat_reply, row, rows, said, served
from trl_runs import TINY, save_policy, table_of

from rl_think_ext import cli
from rl_think_ext.data.prediction_rows import sample_of
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.offline.replay import ReplayConfig, run_replay
from rl_think_ext.offline.rollouts import Run
from rl_think_ext.scoring.judge import RuleJudge
from rl_think_ext.scoring.prediction import PredictionScorer


class Mixed(Scripted):
    said = (*MIXED, said("It rai"), said(""), said("We ran home."), *OUTPUTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps over both tasks, with every kind of output."""
    place = tmp_path_factory.mktemp("run")
    settings = {"max_steps": 3, "per_device_train_batch_size": 16, "num_generations": 8, "shuffle_dataset": False}
    args = RLPTGRPOConfig(str(place / "out"), **{**TINY, **settings})
    config = RLPTConfig(judge="rule", malformed="unscorable", msr_weight=0.5)
    data = Dataset.from_list([row(i, "msr" if i % 2 else "asr") for i in range(6)])
    Mixed(str(save_policy(place / "policy")), args, rlpt=config, train_dataset=data).train()
    return place / "out"


def replay(run: Path, place: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = run_replay(ReplayConfig(run=run, output=place / "replay", **changes))
    written = json.loads((place / "replay/replay.json").read_text())
    assert written == {name: value for name, value in found.items() if name != "folder"}
    return found, pq.read_table(place / "replay/replay.parquet").to_pylist()


def test_the_same_settings_give_the_runs_own_rewards(run: Path, tmp_path: Path) -> None:
    found, judged = replay(run, tmp_path)
    assert found["steps"] == [1, 2, 3] and found["num_samples"] == 48 == len(judged) and found["num_groups"] == 6
    assert found["all"]["largest_difference"] <= 1e-6 and found["judge"] == "rule"
    assert {one["score"] for one in judged} == {0.0, 1.0, None}
    for one in judged:
        assert one["new_score"] == one["score"] and one["new_status"] == one["status"]
        assert one["new_unscorable"] == one["unscorable"]
    paid = pq.read_table(min((run / "completions").glob("*.parquet"))).to_pydict()["rlpt"]
    assert [one["score"] for one in judged[:16]] == paid
    assert found["became_unscorable"] == found["became_scorable"] == 0
    assert found["unscorable_new"] == {"no prediction: no_open": 6}


def test_other_settings_are_answered(run: Path, tmp_path: Path) -> None:
    found, judged = replay(run, tmp_path, set=["malformed=zero"], steps="first")
    assert found["became_scorable"] == 2 and found["settings"]["old"]["malformed"] == "unscorable"
    assert [one["new_score"] for one in judged if one["score"] is None] == [0.0, 0.0]
    strict, judged = replay(run, tmp_path / "strict", set=["reward=strict"], steps="1")
    # Of ASR, "… We ran home" is a prefix of the reference, and more than its first segment.
    assert strict["asr"]["became_wrong"] == 1 and strict["all"]["became_right"] == 0
    assert [one["new_prediction"] for one in judged if one["new_score"] == 0.0 and one["score"] == 1.0] == [
        "It rained on the hill. We ran home"
    ]


def test_another_judge(run: Path, tmp_path: Path) -> None:
    with StubServer(chat_reply(lambda text: "Score: 1")) as server:
        pairs = [f"{name}={value}" for name, value in served(server).items()]
        found, judged = replay(run, tmp_path, set=pairs, steps="last")
        num = len(server.requests)
    assert found["judge"] == "judge" and found["all"]["became_wrong"] == 0
    assert all(one["new_score"] == 1.0 for one in judged if one["status"] == "ok")
    # Equal pairs are asked once; who is too short, or empty, is asked about by nobody.
    assert num == len({(one["reference"], one["new_prediction"]) for one in judged if one["status"] == "ok"})


def test_a_served_run_is_judged_again_by_the_rule(run: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(run, served)
    about = json.loads((served / "rl_think/run.json").read_text())
    about["settings"] |= {"judge": "server", "server": "http://127.0.0.1:9", "judge_model": "j"}
    (served / "rl_think/run.json").write_text(json.dumps(about))
    found = replay(served, tmp_path / "out", set=["judge=rule"])[0]
    assert found["judge"] == "rule" and found["became_unscorable"] == 0


def test_the_command_shows_it(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["replay", str(run), "--set", "reward=strict", "--output", str(tmp_path / "out")]
    assert cli.main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "judged by rule" in shown and "became right" in shown and "'reward': 'strict'" in shown


def test_the_pairs_of_every_set_count(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["replay", str(run), "--set", "reward=strict", "--output", str(tmp_path / "out"), "--set", "malformed=zero"]
    assert cli.main(words) == 0
    changed = json.loads((tmp_path / "out" / "replay.json").read_text())["settings"]["new"]
    assert (changed["reward"], changed["malformed"]) == ("strict", "zero")


@pytest.mark.parametrize("reward", ["prefix", "strict"])
def test_verls_dumps_are_judged_again(run: Path, tmp_path: Path, reward: str) -> None:
    """What verl's dumps hold is what its reward workers say of a sample."""
    from rl_think_ext.verl.rlpt_sample import FORM, infos_of

    rows = Run.of(run).read(1)
    config = RLPTConfig(judge="rule", malformed="unscorable", reward=reward)
    segments, outputs = zip(*(sample_of(row, "row") for row in rows), strict=True)
    found = PredictionScorer(config, RuleJudge(config))(segments, outputs)
    infos = infos_of(found, [row["id"] for row in rows], segments, outputs, reward)
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    about = json.loads((run / "rl_think/run.json").read_text())
    (dumps / "run.json").write_text(json.dumps(about | {"settings": about["settings"] | {"reward": reward}}))
    own = {"input": "p", "output": "no tags", "score": -7.0}
    lines = [
        {**own, **{name: info[name] for name in FORM.shown}, "rlpt/unscorable": info["unscorable"] or None}
        for info in infos
    ]
    (dumps / "1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = replay(dumps, tmp_path)[1]
    assert [one["new_score"] for one in judged] == [score.value for score in found.scores]
    assert [one["score"] for one in judged] == [one["new_score"] for one in judged]
    if reward == "strict":
        with pytest.raises(UserError, match="hold the one true segment, and no longer reference for `reward: prefix`"):
            run_replay(ReplayConfig(run=dumps, set=["reward=prefix"]))
    (dumps / "1.jsonl").write_text(json.dumps(own) + "\n")
    with pytest.raises(UserError, match=r"1.jsonl, line 1: no column `task`, only input, output, score.*rlpt"):
        run_replay(ReplayConfig(run=dumps))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "x"}, "predictions are judged, not scored by a model"),
        ({"set": ["judge=server"]}, "`server` is not set"),
        ({"set": ["rewrd=strict"]}, "unknown key `rewrd`; did you mean `reward`?"),
        ({"steps": "7"}, "no rollouts of that step; there are 1, 2, 3"),
    ],
)
def test_what_cannot_be_is_refused(run: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_replay(ReplayConfig(run=run, output=tmp_path / "out", **changes))


def test_rollouts_are_those_of_training(tmp_path: Path) -> None:
    """An evaluation between the batch and its log changes nothing of what is kept."""
    # A batch serves two steps: the evaluation behind the first comes before the log behind the second.
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "num_iterations": 2, "logging_steps": 2}
    args = RLPTGRPOConfig(str(tmp_path / "out"), **{**TINY, **settings})

    class Judged(Scripted):
        @property
        def said(self) -> tuple[str, ...]:
            return OUTPUTS if self.model.training else OUTPUTS[:1]

    policy = str(save_policy(tmp_path / "policy"))
    trainer = Judged(
        policy, args, rlpt=RLPTConfig(judge="rule"), train_dataset=rows(), eval_dataset=rows(4, context="Other. ")
    )
    trainer.train()
    kept = Run.of(tmp_path / "out")
    assert list(kept.steps) == [2]
    assert [one["score"] for one in kept.read(2)] == [1.0, 0.0, 0.0, 1.0]
    assert not any(one["context"] == "Other. " for step in kept.steps for one in kept.read(step))
    assert table_of(trainer)["rlpt/id"]
