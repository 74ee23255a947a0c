"""The real main_ppo loop on a CPU, in one Ray cluster: every case trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judges import answer, prompt_of, quotes
from stub_server import Reply, Request, StubServer
from verl_runs import CHAT_MODEL, ONE_TYPE, TWO_RANKS, compose, run

from rl_think_ext.methods.rlpt import begins
from rl_think_ext.offline.replay import ReplayConfig, run_replay
from rl_think_ext.tiny import PROGRAMS_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def letters(folder: Path, num_rows: int = 8) -> Path:
    """Rows of verl's own dataset: chats of the miniature task, a letter as ground truth."""
    requests = [f"letters {first} {second} , sorted" for first, second in zip("kcambegh", "bdfgacek", strict=True)]
    rows = [
        {
            "data_source": "letters",
            "prompt": [{"role": "user", "content": request}],
            "reward_model": {"ground_truth": request[8]},
            "extra_info": {"index": number},
        }
        for number, request in enumerate(requests[:num_rows])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "letters.parquet")
    return folder / "letters.parquet"


def test_stock_grpo_trains_on_the_test_support(tmp_path: Path) -> None:
    data = letters(tmp_path)
    config = compose(
        tmp_path,
        f"data.train_files={data}",
        f"data.val_files={data}",
        "reward.custom_reward_function.path=pkg://support.reward",
        "reward.custom_reward_function.name=share_of_letter",
    )
    steps = run(config)
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["actor/grad_norm"] > 0 for row in steps)
    # the replica samples from the actor's weights, the pushed ones in the second step
    assert all(row["rollout_corr/kl"] < 1e-6 for row in steps)


TINY = Path(__file__).parents[1] / "recipes/rlmt/tiny"


def rlmt(folder: Path, *overrides: str) -> list[str]:
    """Overrides of a run of RLMT on the miniature task, whose policy often breaks off or forgets a tag."""
    return [
        "+rl_think=rlmt",
        f"data.train_files={TINY / 'data/train.parquet'}",
        f"data.val_files={TINY / 'data/test.parquet'}",
        f"rl_think.rlmt.reward_model={TINY / 'models/reward'}",
        "data.val_max_samples=8",
        "data.val_batch_size=8",
        "data.max_response_length=40",
        "trainer.val_before_train=True",
        "trainer.test_freq=1",
        f"trainer.rollout_data_dir={folder / 'dumps'}",
        f"trainer.validation_data_dir={folder / 'validation'}",
        *overrides,
    ]


def dump(folder: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{step}.jsonl").read_text(encoding="utf-8").splitlines()]


def some_lost(request: Request) -> Reply:
    """A score out of the ids; every fifth is no number."""
    sums = [sum(ids) % 100 for ids in request.json["input"]]
    probs = [[float("nan") if number % 5 == 0 else number / 100] for number in sums]
    return Reply({"data": [{"index": i, "probs": one} for i, one in enumerate(probs)]})


def check_rlmt(folder: Path, steps: list[dict[str, Any]], broken: bool = True) -> None:
    """What every run of RLMT leaves: metrics of each step and validation, dumps that say what was paid."""
    assert [row["step"] for row in steps] == [0, 1, 2]
    for row in steps:
        assert all(value == value for value in row.values())
        assert row["val-aux/rlmt/status/ok"] <= 1.0 and row["val-core/rlmt/reward/mean@1"] < 100
        assert not any("acc" in name.split("/") for name in row)
    for row in steps[1:]:
        assert row["rlmt/status/ok"] > 0 and row["rlmt/thought_length"] > 0
        shown = dump(folder / "dumps", row["step"])
        assert len(shown) == 16 and ({one["rlmt/status"] for one in shown} > {"ok"}) is broken
        scored = [one["score"] for one in shown if one["score"] is not None]
        floor = min(one["rlmt/score"] for one in shown if one["rlmt/score"] is not None)
        for one in shown:
            assert (one["score"] is None) == (one["unscorable"] is not None)
            if one["rlmt/status"] != "ok" and one["score"] is not None:
                assert one["score"] == pytest.approx(floor)
        assert row["rlmt/unscorable"] == pytest.approx(1 - len(scored) / 16)
        assert row["critic/score/mean"] == pytest.approx(sum(scored) / len(scored), abs=1e-5)
        said = dump(folder / "validation", row["step"])
        assert len(said) == 8 and all("rlmt/answer" in one for one in said)


def test_rlmt_trains_with_a_reward_model_in_its_own_process(tmp_path: Path) -> None:
    kl = ["actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.actor.kl_loss_coef=0.01"]
    steps = run(compose(tmp_path, *rlmt(tmp_path, *kl)))
    check_rlmt(tmp_path, steps)
    assert steps[1]["actor/kl_loss"] == pytest.approx(0.0, abs=1e-6) and steps[2]["actor/kl_loss"] > 0
    assert all(row["actor/grad_norm"] > 0 and row["rlmt/unscorable"] == 0 for row in steps[1:])
    assert all(row["rlmt/reward_model_num_asked"] > 0 for row in steps[1:])


def test_rlmt_trains_on_two_ranks_with_a_reward_model_behind_a_server_that_loses_some(tmp_path: Path) -> None:
    with StubServer(some_lost) as server:
        settings = [f"rl_think.rlmt.server={server.url}", "algorithm.adv_estimator=rloo", "rl_think.prefill_think=True"]
        steps = run(compose(tmp_path, *rlmt(tmp_path, *settings, *TWO_RANKS)))
    check_rlmt(tmp_path, steps, broken=False)
    assert len(server.requests) > 0 and any(row["rlmt/no_score"] > 0 for row in steps[1:])


def test_rlmt_trains_by_ppo_with_a_critic(tmp_path: Path) -> None:
    critic = [
        "algorithm.adv_estimator=gae",
        "actor_rollout_ref.rollout.n=1",
        "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "critic.strategy=fsdp2",
        f"critic.model.path={CHAT_MODEL}",
        "critic.model.use_remove_padding=False",
        "critic.model.enable_gradient_checkpointing=False",
        "critic.ppo_micro_batch_size_per_gpu=8",
        "critic.fsdp.strategy=fsdp2",
        f"++critic.fsdp.mixed_precision={ONE_TYPE}",
        "critic.fsdp.use_torch_compile=False",
    ]
    with StubServer(some_lost) as server:
        steps = run(compose(tmp_path, *rlmt(tmp_path, f"rl_think.rlmt.server={server.url}", *critic)))
    check_rlmt(tmp_path, steps)
    assert all(row["critic/grad_norm"] > 0 and row["actor/grad_norm"] > 0 for row in steps[1:])
    assert "rlmt/score_spread" not in steps[1]


def test_rlmt_trains_with_a_reward_model_in_verls_own_service(tmp_path: Path) -> None:
    """Colocated, behind verl's own router: only the engine, which needs a GPU, is a stub."""
    with StubServer(some_lost) as server:
        served = [
            "reward.reward_model.enable=True",
            f"reward.reward_model.model_path={TINY / 'models/reward'}",
            "reward.reward_model.rollout.name=vllm",
            "reward.reward_model.rollout.tensor_model_parallel_size=1",
            f"+reward.reward_model.rollout.engine_kwargs.vllm.address='127.0.0.1:{server.port}'",
            "reward.custom_reward_function.path=pkg://rl_think_ext.verl.rlmt_reward",
            "reward.custom_reward_function.name=rlmt",
            "reward.num_workers=2",
        ]
        steps = run(compose(tmp_path, *rlmt(tmp_path, *served)))
    check_rlmt(tmp_path, steps)
    assert {request.path for request in server.requests} == {"/classify"}


def test_f4_a_key_that_is_refused_ends_the_run_of_rlmt(tmp_path: Path) -> None:
    """verl would log the worker's error, leave out its group and go on."""
    import ray

    with StubServer(lambda request: Reply(status=401)) as server:
        config = compose(
            tmp_path, *rlmt(tmp_path, f"rl_think.rlmt.server={server.url}", "trainer.val_before_train=False")
        )
        with pytest.raises(ray.exceptions.RayTaskError, match=r"UserError.*401"):
            run(config)
    assert not list(tmp_path.glob("checkpoints/global_step_*"))


RLPT = Path(__file__).parents[1] / "recipes/rlpt/tiny"


def rlpt(folder: Path, *overrides: str) -> list[str]:
    """Overrides of a run of RLPT on the miniature task, with both of its tasks."""
    return [
        "+rl_think=rlpt",
        f"actor_rollout_ref.model.path={RLPT / 'models/policy'}",
        f"data.train_files={RLPT / 'data/train.parquet'}",
        f"data.val_files={RLPT / 'data/train.parquet'}",
        "actor_rollout_ref.rollout.n=8",
        "data.max_prompt_length=96",
        "data.max_response_length=48",
        "data.val_max_samples=8",
        "data.val_batch_size=8",
        "trainer.val_before_train=True",
        "trainer.test_freq=1",
        f"trainer.rollout_data_dir={folder / 'checkpoints/dumps'}",
        f"trainer.validation_data_dir={folder / 'validation'}",
        *overrides,
    ]


def verdict(prediction: str) -> int | None:
    """What a judge without any taste says, whoever asks; about every third prediction it says nothing."""
    number = sum(map(ord, prediction))
    return number % 2 if number % 3 else None


def judge(request: Request) -> Reply:
    _, prediction = quotes(prompt_of(request))
    found = verdict(prediction)
    return answer("I would rather not say." if found is None else f"Score: {found}")


def check_rlpt(folder: Path, steps: list[dict[str, Any]], expected: Callable[[str, str], int | None]) -> None:
    """What every run of RLPT leaves: metrics of each step and validation, dumps that say what was paid and why."""
    assert [row["step"] for row in steps] == [0, 1, 2]
    for row in steps:
        assert all(value == value for value in row.values())
        assert 0 <= row["val-aux/rlpt/asr/score"] <= 1 and 0 <= row["val-aux/rlpt/msr/score"] <= 1
        assert not any("acc" in name.split("/") for name in row)
    paid = []
    for row in steps[1:]:
        shown = dump(folder / "checkpoints/dumps", row["step"])
        scored = [one["score"] for one in shown if one["score"] is not None]
        assert len(shown) == 32 and row["rlpt/status/ok"] > 0 and row["rlpt/judge_num_asked"] > 0
        assert row["rlpt/asr/share"] + row["rlpt/msr/share"] == pytest.approx(1.0)
        assert row["critic/score/mean"] == pytest.approx(sum(scored) / len(scored), abs=1e-5)
        assert row["rlpt/unscorable"] == row["rlpt/no_verdict"] == pytest.approx(1 - len(scored) / 32)
        for one in shown:
            judged = one["rlpt/status"] == "ok"
            assert one["score"] == (expected(one["rlpt/reference"], one["rlpt/prediction"]) if judged else 0.0)
            assert (one["score"] is None) == (one["unscorable"] is not None)
        said = dump(folder / "validation", row["step"])
        assert len(said) == 8 and {one["rlpt/task"] for one in said} == {"asr", "msr"}
        paid += [(one["rlpt/task"], one["score"]) for one in shown]
    assert set(paid) >= {("asr", 0.0), ("msr", 0.0)} and 1.0 in {score for _, score in paid}
    assert any(row["actor/grad_norm"] > 0 for row in steps[1:])


def test_rlpt_trains_with_the_rule_judge_and_lambda(tmp_path: Path) -> None:
    settings = ["rl_think.rlpt.judge=rule", "rl_think.rlpt.msr_weight=0.5"]
    steps = run(compose(tmp_path, *rlpt(tmp_path, *settings)))
    check_rlpt(tmp_path, steps, lambda reference, prediction: int(begins(prediction, reference)))
    again = run_replay(ReplayConfig(run=tmp_path / "checkpoints/dumps"))
    assert again["num_samples"] == 64 and again["all"]["largest_difference"] == 0.0
    assert again["became_unscorable"] == again["became_scorable"] == 0


def test_rlpt_trains_on_two_ranks_with_a_judge_behind_a_server_that_loses_some(tmp_path: Path) -> None:
    with StubServer(judge) as server:
        settings = [f"rl_think.rlpt.server={server.url}", "rl_think.rlpt.judge_model=judge"]
        steps = run(compose(tmp_path, *rlpt(tmp_path, *settings, "algorithm.adv_estimator=rloo", *TWO_RANKS)))
    check_rlpt(tmp_path, steps, lambda _, prediction: verdict(prediction))
    assert all(row["rlpt/judge_num_canaries"] > 0 and row["rlpt/no_verdict"] > 0 for row in steps[1:])


def test_rlpt_trains_with_a_judge_in_verls_own_service(tmp_path: Path) -> None:
    """Colocated, behind verl's own router: only the engine, which needs a GPU, is a stub."""
    path = TINY / "models/reward"
    with StubServer(judge) as server:
        served = [
            "reward.reward_model.enable=True",
            f"reward.reward_model.model_path={path}",
            "reward.reward_model.rollout.name=vllm",
            "reward.reward_model.rollout.tensor_model_parallel_size=1",
            f"+reward.reward_model.rollout.engine_kwargs.vllm.address='127.0.0.1:{server.port}'",
            "reward.custom_reward_function.path=pkg://rl_think_ext.verl.rlpt_reward",
            "reward.custom_reward_function.name=rlpt",
            "reward.num_workers=2",
        ]
        steps = run(compose(tmp_path, *rlpt(tmp_path, *served)))
    check_rlpt(tmp_path, steps, lambda _, prediction: verdict(prediction))
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert {request.json["model"] for request in server.requests} == {str(path)}


def rlp(*overrides: str) -> list[str]:
    """RLP on the miniature task's data: two prompts a step, four thoughts each."""
    return [
        "+rl_think=rlp",
        f"actor_rollout_ref.model.path={PROGRAMS_MODEL}",
        "algorithm.adv_estimator=rlp",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.temperature=1.0",
        "data.train_files=recipes/rlp/tiny/data/train.parquet",
        "data.val_files=recipes/rlp/tiny/data/train.parquet",
        "data.val_max_samples=4",
        "data.max_prompt_length=64",
        "data.max_response_length=20",
        "data.train_batch_size=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        *overrides,
    ]


def told(steps: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """What RLP says of each training step, without what depends on the machine."""
    return {
        row["step"]: {k: v for k, v in row.items() if k.startswith("rlp/") and "scoring" not in k}
        for row in steps
        if "rlp/gain" in row
    }


def test_rlp_resumes_to_the_bit_and_not_without_its_averages(tmp_path: Path) -> None:
    """F20 and F19: four steps in a row, against two, a kill in the fourth, and the rest from the checkpoint."""
    import ray

    saved = ["trainer.total_training_steps=4", "trainer.save_freq=2", "trainer.resume_mode=auto"]
    one, two = tmp_path / "one", tmp_path / "two"
    kept_too = ["rl_think.log_completions=True", f"trainer.rollout_data_dir={one / 'checkpoints/dumps'}"]
    whole = run(compose(one, *rlp(*saved, "trainer.test_freq=4", *kept_too)))
    found = told(whole)
    assert list(found) == [1, 2, 3, 4]
    assert [found[step]["rlp/ema_updates"] for step in found] == [0.0, 1.0, 2.0, 3.0]
    assert found[1]["rlp/ema_distance"] == 0.0 < found[4]["rlp/ema_distance"]
    assert found[1]["rlp/gain"] == found[1]["rlp/gain_frozen"] != found[4]["rlp/gain"]
    for row in whole:
        # What was sampled is what the actor scores, and a batch's advantages are eq. 7 of its gains.
        assert row["training/rollout_probs_diff_max"] < 1e-5
        assert row["critic/score/mean"] == pytest.approx(row["rlp/gain"], abs=1e-5)
        assert abs(row["critic/advantages/max"]) > 0 and row["actor/grad_norm"] > 0
        assert abs(row["actor/pg_loss"]) < 1e-5  # on policy: ratios of 1, advantages that sum to 0 in every group
    assert "val-aux/rlp/gain/mean@1" in whole[-1] and whole[-1]["val-aux/rlp/unscorable"] == 0.0
    kept = pq.read_table(one / "checkpoints/rl_think/rollouts")
    assert kept.num_rows == 4 * 8
    for folder in (one / "checkpoints", one / "checkpoints/dumps"):
        again = run_replay(ReplayConfig(run=folder, steps="first", device="cpu"))
        assert again["num_samples"] == 8 and again["gain"]["largest_difference"] < 1e-5

    killed = run(compose(two, *rlp(*saved)), kill_after_step=3)
    resumed = run(compose(two, *rlp(*saved)))
    assert [row["step"] for row in resumed] == [3, 4]
    assert told(killed)[2] == found[2]
    assert told(resumed) == {step: found[step] for step in (3, 4)}

    (two / "checkpoints/global_step_4/actor/rl_think/ema.rank0of1.json").unlink()
    more = ["trainer.total_training_steps=5", "trainer.resume_mode=auto"]
    with pytest.raises(ray.exceptions.RayTaskError, match="holds no averaged weights"):
        run(compose(two, *rlp(*more)))


def test_rlp_on_two_ranks_with_an_average_that_follows_at_once(tmp_path: Path) -> None:
    """tau = 0: the average is the actor on both ranks, so the baseline is the live policy's."""
    actor = "actor_rollout_ref.actor"
    settings = [
        "rl_think.rlp.ema_decay=0.0",
        f"{actor}.ppo_mini_batch_size=1",
        f"{actor}.ppo_micro_batch_size_per_gpu=2",
    ]
    found = told(run(compose(tmp_path, *rlp(*settings, *TWO_RANKS, "trainer.total_training_steps=3"))))
    assert [found[step]["rlp/ema_updates"] for step in found] == [0.0, 2.0, 4.0]  # two mini-batches a step
    for step in found.values():
        assert step["rlp/ema_distance"] == 0.0
        assert step["rlp/ema_checksum"] == step["rlp/policy_checksum"]
    assert found[1]["rlp/policy_checksum"] != found[3]["rlp/policy_checksum"]
    assert found[3]["rlp/gain"] != found[3]["rlp/gain_frozen"]
