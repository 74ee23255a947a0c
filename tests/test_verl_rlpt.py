"""RLPT under verl without a cluster: what is judged and paid, where lambda acts, what is asked, what is refused."""

from __future__ import annotations

import asyncio
import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import verl_samples
from fake_queue import FakeQueue
from judges import answer, honest, prompt_of, quotes
from omegaconf import open_dict
from stub_server import Reply, StubServer
from test_trl_rlpt import CONTEXT, REFERENCE, SEGMENTS, row, said
from transformers import AutoTokenizer
from verl_samples import Engine, changed, compose_stock, put_queue, router_before, run_all, save_policy_tokenizer

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.records import Score
from rl_think_ext.verl import resolved
from rl_think_ext.verl.batching import Waiting
from rl_think_ext.verl.rlpt_sample import FORM, settled
from rl_think_ext.verl.sample_info import UNSCORABLE

verl = pytest.importorskip("verl")

RIGHT, WRONG = said("It rained on the hill."), said("The sun came out again.")
OUTPUTS = (RIGHT, WRONG, "I would say that it rained.", said("It rained on the hill. We ran home"), said("It"))
LIMIT = 96


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return save_policy_tokenizer(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def stock_config():
    return compose_stock("rlpt", "actor_rollout_ref.rollout.name=vllm")


@pytest.fixture
def config(stock_config, policy_folder):
    """verl's whole config with RLPT's settings, as hydra makes it, and the judge in this process."""
    found = copy.deepcopy(stock_config)
    with open_dict(found):
        found.actor_rollout_ref.model.path = str(policy_folder)
        found.actor_rollout_ref.rollout.response_length = LIMIT
        found.actor_rollout_ref.rollout.prompt_length = 512
        found.rl_think.rlpt.judge = "rule"
        found.reward.reward_model.rollout.name = "vllm"
    return found


def served(config, url, **settings):
    """The same run with a judge behind a server."""
    given = {"judge": "server", "server": url, "judge_model": "judge", "retries": 0, "num_canaries": 0, **settings}
    return changed(config, **{f"rl_think__rlpt__{name}": value for name, value in given.items()})


def manager_of(config, **kwargs):
    from rl_think_ext.verl.rlpt_reward import RLPTRewardManager

    config = copy.deepcopy(config)
    resolved.resolve(config, "rlpt")
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    return RLPTRewardManager(config, tokenizer, None, **kwargs)


def sample_of(tokenizer, text, task="asr", where="train.parquet, row 7", pad=0, ended=True, **columns):
    think = {**row(7, task), "where": where, **columns}
    return verl_samples.sample_of(tokenizer, text, think["prompt"], pad=pad, ended=ended, think_row=think)


def infos(manager, *texts, **given):
    samples = [sample_of(manager.tokenizer, text, **given) for text in texts]
    return [one["reward_extra_info"] for one in run_all(manager, samples)]


# -- the reward manager ------------------------------------------------------------------------------------------------


def test_the_prediction_is_judged_and_every_sample_has_the_same_keys(config):
    manager = manager_of(config)
    found = run_all(manager, [sample_of(manager.tokenizer, text) for text in OUTPUTS])
    told = [one["reward_extra_info"] for one in found]
    assert [one["reward_score"] for one in found] == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert [set(info) for info in told] == [set(FORM.keys)] * 5
    assert [info["rlpt/status"] for info in told] == ["ok", "ok", "no_open", "ok", "too_short"]
    assert [info["rlpt/prediction"] for info in told[:3]] == [
        "It rained on the hill.", "The sun came out again.", None,
    ]  # fmt: skip
    assert [info["rlpt/judged"] for info in told] == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert {info["rlpt/reference"] for info in told} == {REFERENCE} and {info["rlpt/id"] for info in told} == {"doc:7"}
    assert all(info["rlpt/fatal"] == info[UNSCORABLE] == "" for info in told) and "acc" not in told[0]


def test_the_strict_reward_is_shown_the_one_segment(config):
    manager = manager_of(changed(config, rl_think__rlpt__reward="strict"))
    found = infos(manager, OUTPUTS[0], OUTPUTS[3])
    assert [info["rlpt/score"] for info in found] == [1.0, 0.0]
    assert {info["rlpt/reference"] for info in found} == {SEGMENTS[0]}


def test_both_tasks_are_told_apart(config):
    manager = manager_of(config)
    assert infos(manager, RIGHT, task="msr")[0]["rlpt/task"] == "msr"
    # What the prompt of MSR shows is no part of the reference, so copying it is paid nothing.
    assert infos(manager, said("It rained on the hill. We ran home"), task="msr")[0]["rlpt/score"] == 0.0


def test_what_ends_the_run_has_the_same_keys_too(config):
    broken = infos(manager_of(config), RIGHT, task="neither")[0]
    assert set(broken) == set(FORM.keys)
    table = np.array([info["rlpt/score"] for info in (broken, *infos(manager_of(config), RIGHT))])
    assert table.dtype == object and table[0] is None


def test_reasoning_and_context_never_reach_the_judge(config):
    with StubServer(honest) as server:
        manager = manager_of(served(config, server.url))
        found = infos(manager, said("It rained on the hill.", "<think>SECRET plan</think> SECRET draft. "))
        asked = [prompt_of(request) for request in server.requests]
    assert found[0]["rlpt/score"] == 1.0
    assert [quotes(text) for text in asked] == [(REFERENCE, "It rained on the hill.")]
    assert not any("SECRET" in text or CONTEXT.strip() in text for text in asked)


def test_f5_no_verdict_is_no_score_and_says_why(config):
    with StubServer(lambda request: answer("I cannot decide.")) as server:
        manager = manager_of(served(config, server.url))
        (found,) = run_all(manager, [sample_of(manager.tokenizer, RIGHT)])
    info = found["reward_extra_info"]
    assert math.isnan(found["reward_score"]) and info["rlpt/score"] is None
    assert info[UNSCORABLE].startswith("judge: unparsable") and info["rlpt/status"] == "ok"
    assert info["rlpt/fatal"] == ""
    step = settled([info, *infos(manager_of(config), WRONG)], ["a", "a"], compared=True)
    assert [score.value for score in step.scores] == [None, 0.0]
    assert step.metrics["no_verdict"] == step.metrics["unscorable"] == 0.5
    assert step.metrics["judge_no_verdict/unparsable"] == 1.0


def test_the_padding_of_a_colocated_batch_is_no_part_of_a_sample(config):
    manager = manager_of(config)
    alone, padded = (manager._sample(sample_of(manager.tokenizer, RIGHT, pad=pad)[-1:][0]) for pad in (0, 5))
    assert alone == padded and alone.output.finished


def test_an_output_at_the_length_limit_was_cut_off(config):
    manager = manager_of(config)
    text = "word " * LIMIT
    ids = manager.tokenizer.encode(text, add_special_tokens=False)[:LIMIT]
    assert infos(manager, manager.tokenizer.decode(ids), ended=False)[0]["rlpt/status"] == "truncated"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"reference": None}, "column `reference`"),
        ({"segment_ends": [3, 2]}, "column `segment_ends`"),
        ({"task": "both"}, "column `task`"),
        ({"context": 3}, "column `context`"),
    ],
)
def test_f33_a_row_that_is_none_ends_the_run_and_is_named(config, columns, words):
    found = infos(manager_of(config), RIGHT, **columns)[0]
    assert "train.parquet, row 7" in found["rlpt/fatal"] and words in found["rlpt/fatal"]
    with pytest.raises(UserError, match="row 7"):
        settled([found], ["a"], compared=True)


def test_f33_a_sample_of_another_dataset_ends_the_run(config):
    manager = manager_of(config)
    stray = verl_samples.sample_of(manager.tokenizer, RIGHT, [{"role": "user", "content": "x"}], index=4)
    (found,) = run_all(manager, [stray])
    assert "row 4 comes without its segment" in found["reward_extra_info"]["rlpt/fatal"]


def test_f42_no_row_says_who_judges(config):
    with StubServer(honest) as right, StubServer(lambda request: answer("Score: 1")) as wrong:
        manager = manager_of(served(config, right.url))
        found = infos(manager, WRONG, server=wrong.url, judge_model="mine", judge_prompt="x", judge="rule")
        assert (found[0]["rlpt/score"], len(right.requests), len(wrong.requests)) == (0.0, 1, 0)
        assert right.requests[0].json["model"] == "judge"


def test_what_a_worker_cannot_raise_ends_the_run_in_the_trainer(config):
    with StubServer(lambda request: Reply(status=401)) as server:
        found = infos(manager_of(served(config, server.url)), RIGHT, WRONG)
    assert all("401" in info["rlpt/fatal"] for info in found)
    with pytest.raises(UserError, match="401"):
        settled(found, ["a", "a"], compared=True)


def test_samples_that_no_manager_of_ours_has_seen_end_the_run():
    with pytest.raises(UserError, match=r"reward\.reward_manager\.name: rlpt.*rl_think_prediction"):
        settled([{"acc": 1.0}], ["a"], compared=True)


def test_another_trainer_is_refused_when_the_manager_is_made(config, policy_folder):
    from rl_think_ext.verl.rlpt_reward import RLPTRewardManager

    with pytest.raises(UserError, match=r"trainer\.v1\.trainer_mode=rlpt"):
        RLPTRewardManager(config, AutoTokenizer.from_pretrained(policy_folder), None)


def test_f46_the_limit_on_requests_holds_over_all_reward_workers(config):
    many = changed(served(config, "http://127.0.0.1:9"), reward__num_workers=8)
    assert manager_of(many).scorer.judge.endpoint.num_at_once == 64 // 8


def test_f2_the_deadline_is_a_samples_whatever_hung_before_it(config):
    with StubServer(lambda request: Reply(fault="hang")) as server:
        manager = manager_of(served(config, server.url, deadline=0.5, timeout=9.0))
        left, score = [], manager._score

        def seen(samples):
            found = score(samples)
            left.append(manager.scorer.judge.time_left)
            return found

        manager._waiting = Waiting(seen, seconds=0.0, most=1)
        found = infos(manager, *(said(f"It rained, and it was {i} degrees.") for i in range(3)))
    assert left[0] > 0 and max(left[1:]) < 0.1
    assert all(info["rlpt/score"] is None and info["rlpt/fatal"] == "" for info in found)


def test_verls_own_service_is_asked_as_a_judge_through_its_router(config):
    """The engine behind the router needs a GPU and is a stub here; the router and the bytes are verl's and ours."""
    asked = served(config, None, judge_model="", num_canaries=2)
    asked = changed(asked, reward__reward_model__enable=True, reward__reward_model__model_path="/models/judge")
    with StubServer(honest) as stub, router_before(stub) as address:
        found = infos(manager_of(asked, reward_router_address=address, reward_model_tokenizer=None), RIGHT, WRONG)
    assert [info["rlpt/score"] for info in found] == [1.0, 0.0] and {info["rlpt/fatal"] for info in found} == {""}
    assert {request.path for request in stub.requests} == {"/v1/chat/completions"}
    assert {request.json["model"] for request in stub.requests} == {"/models/judge"}


def test_the_dummy_function_is_never_to_be_called():
    from verl.utils.import_utils import load_extern_object

    with pytest.raises(UserError, match="rlpt is no reward by itself"):
        load_extern_object("pkg://rl_think_ext.verl.rlpt_reward", "rlpt")(data_source="x")


# -- a step ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(config):
    """A function: what the rule judge's manager says of some outputs, with other values where they are given."""
    manager = manager_of(config)

    def tell(*texts, task="asr", **values):
        return [{**info, **values} for info in infos(manager, *texts, task=task)]

    return tell


LOST = {"rlpt/score": None, UNSCORABLE: "judge: deadline"}


def test_what_samples_say_is_the_table_that_the_scorer_made(config):
    manager = manager_of(config)
    samples = [manager._sample(sample_of(manager.tokenizer, text)[-1:][0]) for text in OUTPUTS]
    made = manager.scorer([one.segment for one in samples], [one.output for one in samples])
    table = FORM.table(infos(manager, *OUTPUTS))
    assert torch.equal(table.nan_to_num(nan=-1.0), made.table.nan_to_num(nan=-1.0))


def test_metrics_are_told_per_task_over_groups_of_any_size(told):
    rows = [*told(RIGHT, WRONG), *told(RIGHT, "no tags", task="msr"), *told(WRONG)]
    step = settled(rows, ["a", "a", "b", "b", "a"], compared=True)
    found = step.metrics
    assert (found["asr/score"], found["msr/score"]) == pytest.approx((1 / 3, 1 / 2))
    assert (found["asr/share"], found["msr/share"]) == pytest.approx((0.6, 0.4))
    assert found["status/no_open"] == pytest.approx(0.2) and found["score"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found["judge_num_asked"] == pytest.approx(4.0)
    assert not any(step.quiet) and all(value == value for value in found.values())
    assert "score_spread" not in settled(rows, list("aabba"), compared=False).metrics


def test_f47_equal_predictions_of_a_reference_have_one_verdict_whichever_worker_asked(told):
    rows = [*told(RIGHT), *told(RIGHT, **{"rlpt/score": 0.0}), *told(RIGHT, **LOST), *told(WRONG, **LOST)]
    step = settled([*rows, *told(RIGHT, task="msr", **LOST)], list("abbab"), compared=True)
    assert [score.value for score in step.scores] == [1.0, 1.0, 1.0, None, None]
    assert step.scores[3].reason == "judge: deadline"


def test_f13_an_empty_step_is_empty():
    assert settled([], [], compared=True).scores == ()


# -- the trainer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer_of(config):
    """A function: the trainer's own methods, without workers or a queue."""
    from rl_think_ext.verl.rlpt_trainer import RLPTTrainer

    def make(**keys):
        made = object.__new__(RLPTTrainer)
        made.config = changed(config, **keys)
        made.settings, made.source = resolved.resolve(made.config, "rlpt")
        made.scores, made.columns, made._quiet, made._failed, made._shown = {}, {}, [], 0, None
        return made

    return make


@pytest.fixture
def step_of(trainer_of, monkeypatch):
    """A function: a batch of samples after verl's own advantages behind the trainer; the queue that holds it."""

    def run(rows, groups, factor=1.0, **keys):
        """`factor` is put on the rewards of MSR, where it does nothing."""
        queue = FakeQueue()
        for i, (info, group) in enumerate(zip(rows, groups, strict=True)):
            queue.rows[f"{group}_{i}_0"] = {
                "uid": group, "response_mask": torch.ones(3 + i % 2), "extra_fields": {"reward_extra_info": info},
                "values": torch.linspace(0.1, 0.4, 3 + i % 2),
            }  # fmt: skip
        put_queue(monkeypatch, queue)
        trainer, metrics = trainer_of(**keys), {}
        batch = trainer._compute_old_log_prob(queue.batch(), metrics)
        for info, kept in zip(rows, queue.rows.values(), strict=True):
            kept["rm_scores"] = kept["rm_scores"] * (factor if info["rlpt/task"] == "msr" else 1.0)
        trainer._compute_advantage(batch, metrics)
        return SimpleNamespace(rows=list(queue.rows.values()), metrics=metrics, trainer=trainer)

    return run


def mixed(told):
    """A group of either task, each with a right and a wrong sample, and one without a verdict."""
    other = said("Nothing at all happened there.")
    return [*told(RIGHT, WRONG, "none"), *told(RIGHT, WRONG, task="msr"), *told(other, task="msr", **LOST)], "aaabbb"


def gradient(rows):
    """The gradient of verl's own policy loss in the log-probs, on policy."""
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    pad = [
        torch.nn.utils.rnn.pad_sequence([one[name] for one in rows], True) for name in ("advantages", "response_mask")
    ]
    logprob = torch.zeros_like(pad[0], requires_grad=True)
    actor = ActorConfig(strategy="fsdp2", rollout_n=3, ppo_micro_batch_size_per_gpu=1)
    loss, _ = core_algos.compute_policy_loss_vanilla(
        old_log_prob=torch.zeros_like(pad[0]), log_prob=logprob, advantages=pad[0], response_mask=pad[1], config=actor
    )
    return torch.autograd.grad(loss, logprob)[0]


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_lambda_weighs_the_gradient_of_msr_and_of_nothing_else(told, step_of, estimator):
    rows, groups = mixed(told)
    keys = {"algorithm__adv_estimator": estimator}
    even, half = (step_of(rows, groups, rl_think__rlpt__msr_weight=weight, **keys).rows for weight in (1.0, 0.5))
    for i, (one, other) in enumerate(zip(even, half, strict=True)):
        torch.testing.assert_close(other["advantages"], one["advantages"] * (0.5 if i > 2 else 1.0), rtol=0, atol=0)
    assert all(bool(one["advantages"].abs().sum() > 0) for one in even[:5])
    assert not even[5]["advantages"].any() and not even[5]["response_mask"].any()
    before, behind = gradient(even), gradient(half)
    assert bool(before[:5].abs().sum(-1).bool().all())
    torch.testing.assert_close(behind, before * torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])[:, None], rtol=0, atol=0)


def test_a_factor_on_the_reward_would_change_nothing_under_grpo(told, step_of):
    """Why lambda acts on the advantage: a group divides by its own spread."""
    rows, groups = mixed(told)
    even, scaled = (step_of(rows, groups, factor=factor).rows for factor in (1.0, 0.25))
    torch.testing.assert_close(gradient(scaled), gradient(even), rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradient(step_of(rows, groups, rl_think__rlpt__msr_weight=0.25).rows), gradient(even))


def test_a_critic_learns_what_the_judge_says_whatever_lambda_is(told, step_of):
    rows, _ = mixed(told)
    keys = {"algorithm__adv_estimator": "gae", "actor_rollout_ref__rollout__n": 1}
    even, half = (step_of(rows, "abcdef", rl_think__rlpt__msr_weight=weight, **keys).rows for weight in (1.0, 0.5))
    for i, (one, other) in enumerate(zip(even, half, strict=True)):
        assert torch.equal(one["returns"], other["returns"])
        torch.testing.assert_close(other["advantages"], one["advantages"] * (0.5 if i > 2 else 1.0), rtol=0, atol=0)


def test_f13_groups_of_equal_rewards_and_lone_samples_teach_nothing(told, step_of):
    rows = [*told(RIGHT, RIGHT), *told(WRONG, said("Nothing at all happened there.")), *told(RIGHT)]
    lost = told(said("And then the sky was clear again."), **LOST)
    found = step_of([*rows, *lost], "aabbcc", rl_think__rlpt__msr_weight=0.5)
    assert not any(bool(one["advantages"].any()) for one in found.rows)
    assert found.metrics["rlpt/zero_variance_groups"] == 1.0 and found.metrics["rlpt/unscorable"] == pytest.approx(
        1 / 6
    )


def test_a_step_says_what_was_paid_in_metrics_and_dumps(told, step_of):
    rows, groups = mixed(told)
    found = step_of(rows, groups)
    assert [score.value for score in found.trainer.scores.values()] == [1.0, 0.0, 0.0, 1.0, 0.0, None]
    shown = found.trainer.columns["b_5_0"]
    assert shown["rlpt/task"] == "msr" and shown["rlpt/prediction"] == "Nothing at all happened there."
    assert shown["rlpt/reference"] == SEGMENTS[0] and shown["rlpt/unscorable"] == "judge: deadline"
    assert {"rlpt/id", "rlpt/status", "rlpt/score", "rlpt/covered"} < set(shown)
    assert found.metrics["rlpt/msr/score"] == 0.5 and found.metrics["rlpt/no_verdict"] == pytest.approx(1 / 6)


def test_f6_steps_without_a_verdict_end_the_run(told, step_of, trainer_of, monkeypatch):
    lost = told(RIGHT, WRONG, **LOST)
    first = step_of(lost, "aa")
    assert first.trainer.nothing_scored and not any(bool(one["advantages"].any()) for one in first.rows)
    trainer = first.trainer
    trainer._count_failures()
    with pytest.raises(UserError, match="no sample was scorable in 3 steps in a row: judge: deadline"):
        trainer._count_failures()
    trainer.scores = dict.fromkeys(trainer.scores, Score(0.0))
    trainer._count_failures()
    assert trainer._failed == 0  # a wrong prediction is a score


def test_f6_what_is_wrong_without_a_question_hides_no_dead_judge(told, step_of):
    beside = [*told(RIGHT, WRONG, **LOST), *told("none")]
    trainer = step_of(beside, "aaa").trainer
    assert not trainer.nothing_scored and trainer._failed == 1
    trainer._count_failures()
    with pytest.raises(UserError, match="no sample was scorable in 3 steps in a row: judge: deadline"):
        trainer._count_failures()
    assert step_of(told("none", "nothing"), "aa").trainer._failed == 0  # nobody was asked
    assert step_of([*told(RIGHT, **LOST), *told(WRONG)], "aa").trainer._failed == 0


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_validation_says_what_each_task_got_and_leaves_out_what_has_no_verdict(told, trainer_of):
    rows, _ = mixed(told)
    rewards = [math.nan if info["rlpt/score"] is None else info["rlpt/score"] for info in rows]
    found = trainer_of()._val_metrics_update(
        ["rlpt"] * 6, [f"u{i}" for i in range(6)], {"reward": rewards, **columns_of(rows)}, [2] * 6,
        expected_acc_counts={},
    )  # fmt: skip
    assert found["val-core/rlpt/reward/mean@1"] == pytest.approx(2 / 5)
    assert found["val-aux/rlpt/asr/score"] == pytest.approx(1 / 3) and found["val-aux/rlpt/msr/score"] == 0.5
    assert found["val-aux/rlpt/unscorable"] == pytest.approx(1 / 6)
    assert all(isinstance(value, float | int | np.number) and value == value for value in found.values())


def test_a_validation_that_cannot_go_on_ends_the_run(told, trainer_of):
    rows = [*told(RIGHT), *told(RIGHT, **{"rlpt/fatal": "wrong key"})]
    with pytest.raises(UserError, match="wrong key"):
        trainer_of()._val_metrics_update(["rlpt"] * 2, ["a", "b"], {"reward": [1.0, 1.0], **columns_of(rows)}, [2, 2])


def test_a_validations_dump_shows_predictions_and_references(told, trainer_of, monkeypatch, tmp_path):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    written = {}
    monkeypatch.setattr(
        PPOTrainer, "_dump_generations",
        lambda self, inputs, outputs, gts, scores, extra, path: written.update(scores=scores, **extra),
    )  # fmt: skip
    rows, _ = mixed(told)
    extra = columns_of(rows) | {"reward": [0.0] * 6, "uid": [f"{i}_0_0" for i in range(6)]}
    trainer_of()._dump_generations(["i"] * 6, ["o"] * 6, [""] * 6, [0.0] * 6, extra, str(tmp_path))
    assert written["scores"] == [1.0, 0.0, 0.0, 1.0, 0.0, None]
    assert written["unscorable"][5] == "judge: deadline" and written["rlpt/task"] == ["asr"] * 3 + ["msr"] * 3
    assert written["rlpt/reference"][3] == SEGMENTS[0] and "rlpt/fatal" not in written


# -- the agent loop ----------------------------------------------------------------------------------------------------


def ask(config, prompt, ids=(5, 6), **columns):
    from rl_think_ext.verl.prediction_loop import PredictionLoop

    config = copy.deepcopy(config)
    resolved.resolve(config, "rlpt")
    tokenizer, engine = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path), Engine(ids)
    loop = verl_samples.loop_of(PredictionLoop, config, engine, tokenizer)
    given = {"raw_prompt": prompt, "global_steps": 4, "index": 2, **columns}
    return asyncio.run(loop.run({"top_k": -1, "logprobs": True}, **given)), engine, tokenizer


def test_a_chat_is_asked_in_the_policys_template_and_a_text_as_it_is(config):
    chat = row()["prompt"]
    out, engine, tokenizer = ask(config, np.array(chat, dtype=object))
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert engine.asked == [(expected, {"top_k": -1, "logprobs": True})]
    assert (out.prompt_ids, out.response_ids, out.reward_score) == (expected, [5, 6], None)
    _, engine, tokenizer = ask(config, chat[0]["content"])
    assert engine.asked[0][0] == tokenizer(chat[0]["content"])["input_ids"]


def test_the_templates_own_options_are_used(config):
    with_options = changed(config, data__apply_chat_template_kwargs={"enable_thinking": True})
    _, engine, tokenizer = ask(with_options, row()["prompt"])
    assert tokenizer.decode(engine.asked[0][0]).endswith("assistant\n<think>\n")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([{"role": "user", "content": "word " * 600}], "row 3: its prompt has"),
        ([{"role": "tool", "content": "x"}], "row 3, column `prompt`, message 1: the role 'tool'"),
        (7, "row 3, column `prompt`: expected a chat"),
    ],
    ids=["long", "tool", "number"],
)
def test_f32_a_row_that_cannot_be_asked_ends_the_run_and_asks_nobody(config, prompt, words):
    out, engine, _ = ask(config, prompt, think_row={"where": "row 3"})
    info = out.extra_fields["reward_extra_info"]
    assert engine.asked == [] and set(info) == set(FORM.keys) and info["rlpt/fatal"].startswith(words)
    assert out.response_mask == [0] and math.isnan(out.reward_score)


# -- settings ----------------------------------------------------------------------------------------------------------


def check(config):
    from rl_think_ext.verl.rlpt_checks import check_config

    found = copy.deepcopy(config)
    settings, _ = resolved.resolve(found, "rlpt")
    return check_config(found, settings)


SERVICE = {
    "reward__reward_model__enable": True,
    "reward__reward_model__model_path": "some/judge",
    "rl_think__rlpt__judge": "server",
    "reward__custom_reward_function__path": "pkg://rl_think_ext.verl.rlpt_reward",
    "reward__custom_reward_function__name": "rlpt",
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"algorithm__adv_estimator": "rloo", "rl_think__rlpt__msr_weight": 0.5},
        {"algorithm__adv_estimator": "gae", "actor_rollout_ref__rollout__n": 1},
        {"actor_rollout_ref__rollout__name": "trtllm"},
        SERVICE,
        {**SERVICE, "reward__reward_model__rollout__name": "sglang"},
    ],
    ids=str,
)
def test_what_makes_rlpt_is_taken_as_it_is(config, keys):
    assert check(changed(config, **keys)) == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"actor_rollout_ref__rollout__n": 1}, r"rollout\.n: 1 with algorithm\.adv_estimator: grpo"),
        ({"algorithm__adv_estimator": "reinforce_plus_plus"}, "say one of grpo, rloo, gae"),
        ({"algorithm__use_kl_in_reward": True}, r"algorithm\.use_kl_in_reward: True"),
        ({"algorithm__filter_groups__enable": True}, r"algorithm\.filter_groups\.enable: True"),
        ({"reward__reward_manager__name": "rlmt"}, r"reward\.reward_manager\.name: rlpt"),
        ({"data__custom_cls__name": "RLMTDataset"}, r"data\.custom_cls\.name=RLPTDataset"),
        ({"actor_rollout_ref__rollout__agent__default_agent_loop": "rl_think_chat"}, "those of `rl_think_prediction`"),
        ({"actor_rollout_ref__rollout__multi_turn__enable": True}, "RLPT has one turn and no tools"),
        ({"rl_think__prefill_think": True}, "does nothing for rlpt: it is for rlmt"),
        ({"rl_think__log_completions": True}, "does nothing for rlpt: it is for rlp"),
        ({"rl_think__rlmt": {"style": "none"}}, "holds settings, and this is a run of rlpt"),
        ({"rl_think__rlpt__msr_wieght": 0.5}, "did you mean `msr_weight`"),
        ({**SERVICE, "reward__custom_reward_function__path": None}, r"pkg://rl_think_ext\.verl\.rlpt_reward"),
        ({**SERVICE, "reward__custom_reward_function__name": "rlmt"}, "is never called beside"),
        ({**SERVICE, "reward__reward_model__rollout__name": "trtllm"}, "/v1/chat/completions"),
        ({**SERVICE, "rl_think__rlpt__judge_model": "another"}, "have to name one model"),
        ({**SERVICE, "rl_think__rlpt__server": "http://x:1"}, "take `server` and"),
        ({**SERVICE, "rl_think__rlpt__judge": "rule"}, "take `server` and"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_another_method_is_refused_by_its_key(config, keys, words):
    with pytest.raises(UserError, match=words):
        check(changed(config, **keys))


def test_what_is_not_the_papers_is_warned_about(config):
    (warning,) = check(changed(config, actor_rollout_ref__actor__use_kl_loss=True))
    assert warning.startswith("actor_rollout_ref.actor.use_kl_loss")
    assert "length limit" in check(changed(config, actor_rollout_ref__rollout__ignore_eos=True))[0]


def test_a_judge_that_cannot_be_asked_ends_the_run_before_it_starts(config, trainer_of):
    for settings, words in (({}, "`server` is not set"), ({"server": "http://x:1"}, "`judge_model` is not set")):
        keys = {f"rl_think__rlpt__{name}": value for name, value in {"judge": "server", **settings}.items()}
        with pytest.raises(UserError, match=words):
            trainer_of(**keys).check()
    assert trainer_of(**SERVICE).check() == []


def test_a_tokenizer_that_loses_the_tags_is_refused(policy_folder):
    from rl_think_ext.verl.rlpt_checks import check_tokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    assert check_tokenizer(tokenizer, {tokenizer.eos_token_id}) == []
    assert "sampling does not end there" in check_tokenizer(tokenizer, set())[0]
    tokenizer.chat_template = None
    assert check_tokenizer(tokenizer, set()) == []
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|startofprediction|>"]})
    assert check_tokenizer(tokenizer, set()) == []  # a tag that is a special token is kept


def test_the_settings_are_those_of_rlpt(config):
    found, _ = resolved.resolve(copy.deepcopy(config), "rlpt")
    assert found == RLPTConfig(judge="rule")
