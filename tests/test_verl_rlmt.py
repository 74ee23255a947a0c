"""RLMT under verl without a cluster: what a sample says of itself, what is paid, what is asked, what is refused."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import verl_samples
from fake_queue import FakeQueue
from omegaconf import open_dict
from reward_models import save_reward_model
from stub_server import Reply, StubServer
from transformers import AutoTokenizer
from verl_samples import Engine, changed, compose_stock, router_before, run_all, save_policy_tokenizer

from rl_think_ext.errors import UserError
from rl_think_ext.formats import render_zero
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.chat_prompt import prompt_ids
from rl_think_ext.verl import resolved
from rl_think_ext.verl.batching import Waiting
from rl_think_ext.verl.rlmt_sample import FORM
from rl_think_ext.verl.rlmt_step import Step
from rl_think_ext.verl.sample_info import UNSCORABLE
from rl_think_ext.verl.stops import register_engine, stop_at

verl = pytest.importorskip("verl")

QUESTION = [{"role": "user", "content": "Name a colour."}]
OK = "<think>SECRET plan</think>Blue."
OUTPUTS = (
    OK,
    "<think>SECRET two</think>\n\nRed, like a rose.",
    "<think>SECRET never closed",
    "<think>a</think>b<think>",
)
LIMIT = 48
FATAL, KEYS, PREFIX = FORM.fatal_key, FORM.keys, FORM.prefix


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("reward"), "llama")


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return save_policy_tokenizer(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def stock_config():
    return compose_stock("rlmt", "actor_rollout_ref.rollout.name=vllm", "reward.num_workers=1")


@pytest.fixture
def config(stock_config, policy_folder, reward_folder):
    """verl's whole config with RLMT's settings, as hydra makes it."""
    found = copy.deepcopy(stock_config)
    with open_dict(found):
        found.actor_rollout_ref.model.path = str(policy_folder)
        found.actor_rollout_ref.rollout.response_length = LIMIT
        found.actor_rollout_ref.rollout.prompt_length = 64
        found.rl_think.rlmt.reward_model = str(reward_folder)
        found.reward.reward_model.rollout.name = "vllm"
    return found


def manager_of(config, **kwargs):
    from rl_think_ext.verl.rlmt_reward import RLMTRewardManager

    config = copy.deepcopy(config)
    resolved.resolve(config, "rlmt")
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    return RLMTRewardManager(config, tokenizer, None, **kwargs)


def sample_of(tokenizer, text, chat=QUESTION, **given):
    return verl_samples.sample_of(tokenizer, text, chat, **given)


def infos(manager, *texts, **given):
    return [
        one["reward_extra_info"] for one in run_all(manager, [sample_of(manager.tokenizer, t, **given) for t in texts])
    ]


def oracle(folder, answer, chat=QUESTION):
    """The score by transformers alone, in float64."""
    from transformers import AutoModelForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    text = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": answer}], tokenize=False)
    with torch.no_grad():
        return float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0])


def classify(request):
    numbers = [sum(ids) % 1000 / 100 for ids in request.json["input"]]
    return Reply({"data": [{"index": i, "probs": [number]} for i, number in enumerate(numbers)]})


# -- the reward manager ------------------------------------------------------------------------------------------------


def test_the_answer_alone_is_scored_and_every_sample_has_the_same_keys(config, reward_folder):
    manager = manager_of(config)
    found = run_all(manager, [sample_of(manager.tokenizer, text) for text in OUTPUTS])
    said = [one["reward_extra_info"] for one in found]
    blue, red = oracle(reward_folder, "Blue."), oracle(reward_folder, "Red, like a rose.")
    assert [one["reward_score"] for one in found[:2]] == pytest.approx([blue, red], abs=1e-5)
    assert all(math.isnan(one["reward_score"]) for one in found[2:])
    assert [set(info) for info in said] == [set(KEYS)] * 4
    assert [info["rlmt/status"] for info in said] == ["ok", "ok", "no_close", "extra_tags"]
    assert [info["rlmt/answer"] for info in said] == ["Blue.", "Red, like a rose.", None, None]
    assert [info["unscorable"] for info in said] == ["", "", "malformed: no_close", "malformed: extra_tags"]
    assert "acc" not in said[0] and all(info[FATAL] == "" for info in said)


def test_what_ends_the_run_has_the_same_keys_too(config):
    broken = infos(manager_of(changed(config, rl_think__rlmt__reward_model="no/such/model")), OK)[0]
    assert set(broken) == set(KEYS)
    table = np.array([info["rlmt/score"] for info in (broken, *infos(manager_of(config), OK))])
    assert table.dtype == object and table[0] is None


def test_a_thought_never_reaches_the_reward_model(config, reward_folder):
    with StubServer(classify) as server:
        infos(manager_of(changed(config, rl_think__rlmt__server=server.url)), *OUTPUTS)
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    shown = [tokenizer.decode(ids) for request in server.requests for ids in request.json["input"]]
    assert len(shown) >= 2 and not any("SECRET" in text for text in shown)
    assert all("Name a colour." in text and ("Blue." in text or "Red" in text) for text in shown)


def test_the_padding_of_a_colocated_batch_is_no_part_of_a_sample(config):
    manager = manager_of(config)
    samples = [sample_of(manager.tokenizer, OK, pad=pad, prompt="go <think>") for pad in (0, 5)]
    alone, padded = (manager._sample(sample[-1:][0]) for sample in samples)
    assert alone == padded and alone.prefilled and alone.output.finished


def test_hazard_18_a_prompt_that_opens_the_thought_is_a_prefilled_one(config):
    manager = manager_of(config)
    text = "SECRET thought that never ends"
    asked = [infos(manager, text, prompt=prompt)[0] for prompt in ("assistant\n", "assistant\n<think>\n")]
    assert [info["rlmt/status"] for info in asked] == ["no_open", "no_close"]
    assert [info["rlmt/thought"] for info in asked] == [None, text]
    assert infos(manager, "plan</think>Blue.", prompt="<think>")[0]["rlmt/answer"] == "Blue."


def test_an_output_at_the_length_limit_is_cut_off_unless_it_ends_there(config):
    manager = manager_of(config)
    filled = "<think>a</think>" + "b" * LIMIT
    ids = manager.tokenizer.encode(filled, add_special_tokens=False)[: LIMIT - 1]
    text = manager.tokenizer.decode(ids)
    manager._read = _read_with(manager, len(manager.tokenizer.encode(text, add_special_tokens=False)) + 1)
    ended = infos(manager, text)[0]
    cut = infos(manager, text + "b", ended=False)[0]
    assert (ended["rlmt/unfinished"], cut["rlmt/unfinished"]) == (0.0, 1.0)
    assert (ended["rlmt/status"], cut["rlmt/status"]) == ("ok", "truncated")


def _read_with(manager, limit):
    from rl_think_ext.scoring.outputs import reader

    return reader(manager.tokenizer, [manager.tokenizer.eos_token_id], limit)


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a block of `content` is image"),
        ([{"role": "tool", "content": "x"}], "the role 'tool'"),
        ([], "expected a chat"),
        ([{"content": "x"}], "expected `role` and `content`"),
        (3, "expected a chat"),
    ],
)
def test_f32_a_chat_that_is_none_ends_the_run_and_names_its_row(config, chat, said):
    manager = manager_of(config)
    row = {"think_row": {"id": "q7", "where": "train.parquet, row 7"}}
    found = infos(manager, OK, chat=chat, **row)[0]
    assert "train.parquet, row 7, `raw_prompt`" in found[FATAL] and said in found[FATAL]
    with pytest.raises(UserError, match="row 7"):
        FORM.check([found])


@pytest.mark.parametrize(
    "chat",
    [
        np.array(QUESTION, dtype=object),
        "Name a colour.",
        [{"role": "user", "content": [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour."}]}],
        [{"role": "user", "content": "Name a colour.", "name": None}],
    ],
)
def test_f32_the_forms_of_a_chat_are_one(config, chat):
    manager = manager_of(config)
    assert manager._sample(sample_of(manager.tokenizer, OK, chat=chat)[-1:][0]).chat == QUESTION


def test_f9_calls_wait_for_one_another_whatever_loop_they_come_from(config):
    manager = manager_of(config)
    sizes, score = [], manager._score

    def counted(samples):
        sizes.append(len(samples))
        return score(samples)

    manager._waiting = Waiting(counted, seconds=0.2)
    samples = [sample_of(manager.tokenizer, f"<think>a</think>{i}") for i in range(24)]
    with ThreadPoolExecutor(3) as threads:
        parts = list(threads.map(lambda part: run_all(manager, part), (samples[:8], samples[8:16], samples[16:])))
    assert sum(sizes) == 24 and len(sizes) <= 4
    alone = run_all(manager_of(config), samples)
    assert [one["reward_score"] for part in parts for one in part] == pytest.approx(
        [one["reward_score"] for one in alone], abs=1e-6
    )


def test_shares_of_a_call_add_up_to_the_call(config):
    manager = manager_of(config)
    manager._waiting = Waiting(manager._score, seconds=0.3)
    said = infos(manager, *OUTPUTS, OK)
    step = Step.of(said, ["a"] * 5, manager.settings, compared=True)
    # Two answers, one of them twice: the malformed ones are never asked.
    assert step.metrics["reward_model_num_asked"] == pytest.approx(2.0)
    assert step.metrics["reward_model_num_cached"] == 0.0 and step.metrics["reward_model_seconds"] > 0


def test_an_error_of_the_scorer_reaches_everybody_who_waits(config):
    def work(items):
        raise RuntimeError(f"{len(items)} lost")

    waiting = Waiting(work, seconds=0.2)
    futures = [waiting.put(i) for i in range(3)]
    assert [str(future.exception(timeout=5)) for future in futures] == ["3 lost"] * 3
    short = Waiting(lambda items: items[1:], seconds=0.2)
    assert "2 items were given 1 results" in str([short.put(i) for i in range(2)][1].exception(timeout=5))


def test_a_batch_does_not_wait_longer_than_it_says():
    waiting = Waiting(lambda items: [threading.current_thread().name] * len(items), seconds=0.01)
    assert waiting.put(1).result(timeout=2) == "rl_think reward"


def test_f10_what_collects_calls_leaves_its_thread_behind():
    used = Waiting(sorted, seconds=0.5, most=2)
    assert used.put(3).result(timeout=5) == 3
    again = pickle.loads(pickle.dumps(used))  # noqa: S301 - our own
    assert (again.seconds, again.most) == (0.5, 2) and again.put(1).result(timeout=5) == 1


def test_f2_the_deadline_is_a_samples_whatever_hung_before_it(config):
    with StubServer(lambda request: Reply(fault="hang")) as server:
        keys = {"server": server.url, "deadline": 1.0, "timeout": 9.0, "retries": 0}
        manager = manager_of(changed(config, **{f"rl_think__rlmt__{name}": value for name, value in keys.items()}))
        manager._waiting = Waiting(manager._score, seconds=0.0, most=1)
        assert manager.scorer is not None
        started = time.monotonic()
        found = infos(manager, *(f"<think>a</think>{i}" for i in range(3)))
        assert time.monotonic() - started < 2.0
    assert all(info["unscorable"].startswith("reward server: ") and info[FATAL] == "" for info in found)


def test_what_a_worker_cannot_raise_ends_the_run_in_the_trainer(config):
    with StubServer(lambda request: Reply(status=401)) as server:
        manager = manager_of(changed(config, rl_think__rlmt__server=server.url))
        found = infos(manager, OK, "<think>b</think>Red.")
    assert all("401" in info[FATAL] for info in found)
    with pytest.raises(UserError, match="401"):
        Step.of(found, ["a", "a"], manager.settings, compared=True)


def test_samples_that_no_manager_of_ours_has_seen_end_the_run():
    with pytest.raises(UserError, match=r"reward\.reward_manager\.name: rlmt"):
        FORM.check([{"acc": 1.0}])


def test_another_trainer_is_refused_when_the_manager_is_made(config, policy_folder):
    from rl_think_ext.verl.rlmt_reward import RLMTRewardManager

    with pytest.raises(UserError, match=r"trainer\.v1\.trainer_mode=rlmt"):
        RLMTRewardManager(config, AutoTokenizer.from_pretrained(policy_folder), None)


def test_f46_the_limit_on_requests_holds_over_all_reward_workers(config):
    many = changed(config, rl_think__rlmt__server="http://127.0.0.1:9", reward__num_workers=8)
    assert manager_of(many).scorer.model.endpoint.num_at_once == 64 // 8


def test_the_dummy_function_is_never_to_be_called():
    from verl.utils.import_utils import load_extern_object

    with pytest.raises(UserError, match="no reward by itself"):
        load_extern_object("pkg://rl_think_ext.verl.rlmt_reward", "rlmt")(data_source="x")


@pytest.fixture
def router():
    """verl's own router before a stub that answers as vLLM's /classify."""
    with StubServer(classify) as stub, router_before(stub) as address:
        yield SimpleNamespace(address=address, stub=stub)


def test_verls_own_reward_model_is_asked_with_our_ids_through_its_router(config, router, reward_folder):
    """The engine behind the router needs a GPU and is a stub here; the router and the bytes are verl's and ours."""
    served = changed(
        config, rl_think__rlmt__reward_model="", reward__reward_model__enable=True,
        reward__reward_model__model_path=str(reward_folder),
    )  # fmt: skip
    manager = manager_of(served, reward_router_address=router.address, reward_model_tokenizer=None)
    found = infos(manager, *OUTPUTS)
    assert [info[FATAL] for info in found] == [""] * 4
    assert [info["rlmt/score"] is None for info in found] == [False, False, True, True]
    bodies = [request.json for request in router.stub.requests]
    assert {body["model"] for body in bodies} == {str(reward_folder)}
    assert {request.path for request in router.stub.requests} == {"/classify"}
    assert all(isinstance(ids[0], int) for body in bodies for ids in body["input"])


# -- a step ------------------------------------------------------------------------------------------------------------


def said(score=1.0, status="ok", answer="x", **more):
    """What the manager says of a sample."""
    numbers = {PREFIX + name: None for name in ("score", "thought_length", "answer_length", "repetition", "copied")}
    zeros = {
        PREFIX + name: 0.0 for name in ("malformed", "unfinished", "num_cut", "seconds", "num_asked", "num_cached")
    }
    good = status == "ok"
    texts = {"rlmt/status": status, "rlmt/thought": "t", "rlmt/answer": answer if good else None}
    reason = "" if good and score is not None else "reward server: late" if good else f"malformed: {status}"
    mine = {"rlmt/score": score if good else None, "rlmt/malformed": float(not good), "rlmt/noise": None}
    return {**numbers, **zeros, **texts, **mine, UNSCORABLE: reason, FATAL: "", **more}


def paid(step):
    return [score.value for score in step.scores]


def test_the_floor_is_the_lowest_score_of_the_whole_step():
    rows = [said(2.0), said(status="no_open"), said(-3.0, answer="y"), said(1.0, answer="z")]
    step = Step.of(rows, ["a", "a", "b", "b"], RLMTConfig(), compared=True)
    assert paid(step) == [2.0, -3.0, -3.0, 1.0]
    fixed = Step.of(rows, ["a", "a", "b", "b"], RLMTConfig(floor=-9.0), compared=True)
    assert paid(fixed) == [2.0, -9.0, -3.0, 1.0]
    left_out = Step.of(rows, ["a", "a", "b", "b"], RLMTConfig(malformed="unscorable"), compared=True)
    assert paid(left_out) == [2.0, None, -3.0, 1.0] and left_out.scores[1].reason == "malformed: no_open"


def test_a_lost_score_is_no_bad_answer_and_a_step_without_any_has_no_floor():
    step = Step.of([said(2.0), said(None, answer="y"), said(1.0, answer="z")], ["a"] * 3, RLMTConfig(), compared=True)
    assert paid(step) == [2.0, None, 1.0] and step.scores[1].reason == "reward server: late"
    assert step.metrics["no_score"] == pytest.approx(1 / 3)
    empty = Step.of([said(status="no_open"), said(status="no_close")], ["a", "a"], RLMTConfig(), compared=True)
    assert paid(empty) == [None, None] and empty.metrics["unscorable"] == 1.0
    assert all(value == value for value in empty.metrics.values())


def test_groups_of_different_sizes_and_in_any_order_are_counted_as_they_are():
    rows = [said(float(i), answer=str(i)) for i in range(5)]
    step = Step.of(rows, ["a", "b", "a", "b", "a"], RLMTConfig(), compared=True)
    assert paid(step) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert step.metrics["score"] == pytest.approx(2.0) and step.metrics["status/ok"] == 1.0
    assert step.metrics["score_spread"] == pytest.approx((2.0 + math.sqrt(2.0)) / 2)


def test_f47_a_group_within_the_noise_is_paid_alike_and_told_to_the_trainer():
    rows = [said(1.0), said(1.01, answer="y"), said(5.0, **{"rlmt/noise": 0.02}), said(7.0, answer="y")]
    step = Step.of(rows, ["a", "a", "b", "b"], RLMTConfig(), compared=True)
    assert paid(step) == pytest.approx([1.005, 1.005, 5.0, 7.0]) and step.quiet == (True, True, False, False)
    assert step.metrics["score_noise"] == pytest.approx(0.02) and step.metrics["zero_variance_groups"] == 0.5
    alone = Step.of(rows, list("abcd"), RLMTConfig(), compared=False)
    assert paid(alone) == pytest.approx([1.0, 1.01, 5.0, 7.0]) and not any(alone.quiet)
    assert "score_spread" not in alone.metrics and alone.metrics["score"] == pytest.approx(3.5025)


def test_f47_equal_answers_to_one_prompt_have_one_score_whichever_worker_scored_them():
    rows = [said(1.0), said(1.25), said(None), said(1.5), said(status="no_open")]
    step = Step.of(rows, ["a", "a", "a", "b", "a"], RLMTConfig(), compared=True)
    assert paid(step) == [1.0, 1.0, 1.0, 1.5, 1.0]


def test_an_empty_step_is_empty():
    step = Step.of([], [], RLMTConfig(), compared=True)
    assert step.scores == () and step.quiet == ()


# -- the trainer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(config):
    """The trainer's own methods, without workers or a queue."""
    from rl_think_ext.verl.rlmt_trainer import RLMTTrainer

    made = object.__new__(RLMTTrainer)
    made.config = copy.deepcopy(config)
    made.settings, made.source = resolved.resolve(made.config, "rlmt")
    made.scores, made.columns, made._quiet, made._failed, made._shown = {}, {}, [], 0, None
    return made


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def validation(trainer, rows, sources=None):
    rewards = [math.nan if row["rlmt/score"] is None else row["rlmt/score"] for row in rows]
    columns = {"reward": rewards, **columns_of(rows)}
    return trainer._val_metrics_update(
        sources or ["letters"] * len(rows), [f"u{i}" for i in range(len(rows))], columns, [2] * len(rows),
        expected_acc_counts={},
    )  # fmt: skip


def test_validation_pays_the_floor_over_all_of_it_and_leaves_out_what_has_no_score(trainer):
    rows = [said(2.0), said(status="no_open"), said(None, answer="y"), said(-1.0, answer="z")]
    found = validation(trainer, rows, ["a", "a", "a", "b"])
    assert found["val-core/a/reward/mean@1"] == pytest.approx((2.0 - 1.0) / 2)
    assert found["val-core/b/reward/mean@1"] == pytest.approx(-1.0)
    assert found["val-aux/rlmt/unscorable"] == pytest.approx(0.25)
    assert found["val-aux/rlmt/status/ok"] == pytest.approx(0.75)
    assert all(isinstance(value, float | int | np.number) and value == value for value in found.values())
    assert not any("acc" in name.split("/") for name in found)


def test_f13_a_validation_without_any_score_has_no_mean_and_says_so(trainer):
    found = validation(trainer, [said(None), said(status="no_open")])
    assert found["val-aux/rlmt/unscorable"] == 1.0 and "val-core/letters/reward/mean@1" not in found


def test_a_validation_that_cannot_go_on_ends_the_run(trainer):
    with pytest.raises(UserError, match="wrong key"):
        validation(trainer, [said(1.0), {**said(None), FATAL: "wrong key"}])


def test_a_training_step_settles_what_its_real_rows_said(trainer, monkeypatch):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from rl_think_ext.verl import reward_trainer

    keys = ["p_0_0", "q_0_0", "p_1_0", "padx_0_0", "q_1_0"]
    rows = [said(2.0), said(3.0), said(status="no_open"), said(-99.0), said(None, answer="y")]
    queue = FakeQueue({key: {"extra_fields": {"reward_extra_info": row}} for key, row in zip(keys, rows, strict=True)})
    settled = {}

    def settle(batch, scores, metrics, quiet=(), columns=None):
        settled.update(scores=scores, quiet=quiet, columns=columns)

    monkeypatch.setattr(reward_trainer, "tq", queue)
    monkeypatch.setattr(trainer, "settle", settle)
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: batch)
    metrics = {}
    trainer._compute_old_log_prob(queue.batch({"padx_0_0"}), metrics)
    assert {i: score.value for i, score in settled["scores"].items()} == {0: 2.0, 1: 3.0, 2: 2.0, 4: None}
    assert settled["quiet"] == [0, 1, 2, 4]
    assert settled["columns"][2]["rlmt/status"] == "no_open"
    assert settled["columns"][2]["rlmt/unscorable"] == "malformed: no_open"
    assert metrics["rlmt/status/no_open"] == 0.25 and metrics["rlmt/unscorable"] == 0.25


def test_what_a_colocated_reward_model_says_is_kept_where_it_is_otherwise(trainer, monkeypatch):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from rl_think_ext.verl import reward_trainer

    refused = {**said(1.0), FATAL: "too long"}
    rows = [{"where": "a.parquet, row 3"}, {"where": "a.parquet, row 4"}]
    told = [said(2.0), said(np.float64(2.5), answer=np.str_("y"))]
    kept = [{"min_global_steps": 3}, {"reward_extra_info": refused}]
    queue = FakeQueue(
        {
            f"p_{i}_0": {"extra_fields": extra, "think_row": row, **info}
            for i, (extra, row, info) in enumerate(zip(kept, rows, told, strict=True))
        }
    )
    data = SimpleNamespace(non_tensor_batch={"raw_prompt": [QUESTION] * 2})

    def colocated(self, batch, metrics=None):
        self.reward_loop_manager.compute_rm_score(data)
        return batch

    monkeypatch.setattr(reward_trainer, "tq", queue)
    monkeypatch.setattr(PPOTrainer, "_compute_reward_colocate", colocated)
    seen = []
    own = trainer.reward_loop_manager = SimpleNamespace(compute_rm_score=seen.append)
    trainer._compute_reward_colocate(queue.batch())
    first, second = (queue.rows[key]["extra_fields"] for key in ("p_0_0", "p_1_0"))
    assert first == {"min_global_steps": 3, "reward_extra_info": said(2.0)}
    assert second["reward_extra_info"][FATAL] == "too long"
    # verl shows the chats alone: a row that is wrong could not be named.
    assert seen == [data] and list(data.non_tensor_batch["think_row"]) == rows
    assert trainer.reward_loop_manager is own


def test_a_validations_dump_says_what_is_paid(trainer, monkeypatch, tmp_path):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    written = {}
    monkeypatch.setattr(
        PPOTrainer, "_dump_generations",
        lambda self, inputs, outputs, gts, scores, extra, path: written.update(scores=scores, **extra),
    )  # fmt: skip
    rows = [said(2.0), said(status="no_open"), said(None, answer="y")]
    extra = columns_of(rows) | {"reward": [2.0, math.nan, math.nan], "uid": ["u_0_0", "v_0_0", "w_0_0"]}
    trainer._dump_generations(["i"] * 3, ["o"] * 3, [""] * 3, [2.0, math.nan, math.nan], extra, str(tmp_path))
    assert written["scores"] == [2.0, 2.0, None]
    assert written["unscorable"] == [None, None, "reward server: late"]
    assert written["rlmt/status"] == ["ok", "no_open", "ok"] and FATAL not in written


# -- the agent loop ----------------------------------------------------------------------------------------------------


def loop_of(config, engine):
    from rl_think_ext.verl.chat_loop import ChatLoop

    config = copy.deepcopy(config)
    resolved.resolve(config, "rlmt")
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    return verl_samples.loop_of(ChatLoop, config, engine, tokenizer)


def ask(config, ids=(5, 6), chat=QUESTION, **row):
    engine = Engine(ids)
    loop = loop_of(config, engine)
    row = {"raw_prompt": chat, "global_steps": 4, "index": 2, **row}
    return asyncio.run(loop.run({"top_k": -1, "logprobs": True}, **row)), engine, loop.tokenizer


def test_a_chat_is_asked_in_the_policys_own_template(config):
    several = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "content": "Blue."},
        *QUESTION,
    ]
    out, engine, tokenizer = ask(config, chat=np.array(several, dtype=object))
    expected = tokenizer.apply_chat_template(several, add_generation_prompt=True, return_dict=False)
    assert engine.asked == [(expected, {"top_k": -1, "logprobs": True})]
    assert (out.prompt_ids, out.response_ids, out.response_mask) == (expected, [5, 6], [1, 1])
    assert out.response_logprobs == [0.0, -0.5] and out.extra_fields == {"min_global_steps": 1}
    assert out.reward_score is None


def test_the_templates_own_options_are_used(config):
    with_options = changed(config, data__apply_chat_template_kwargs={"enable_thinking": True})
    _, engine, tokenizer = ask(with_options)
    assert tokenizer.decode(engine.asked[0][0]).endswith("assistant\n<think>\n")


def test_the_opening_tag_is_put_there_once(config):
    _, engine, tokenizer = ask(changed(config, rl_think__prefill_think=True))
    assert tokenizer.decode(engine.asked[0][0]).endswith("assistant\n<think>")
    opens = {"enable_thinking": True}
    _, engine, tokenizer = ask(changed(config, rl_think__prefill_think=True, data__apply_chat_template_kwargs=opens))
    assert tokenizer.decode(engine.asked[0][0]).count("<think>") == 1


@pytest.mark.parametrize("style", ["response", "response-only"])
def test_a_raw_base_model_is_asked_in_its_frame_and_stops_behind_the_answer(config, style):
    _, engine, tokenizer = ask(
        changed(config, rl_think__rlmt__style=style, actor_rollout_ref__rollout__prompt_length=999)
    )
    asked, params = engine.asked[0]
    assert tokenizer.decode(asked) == render_zero(QUESTION, style)
    assert params["stop"] == ["</response>"] and params["include_stop_str_in_output"]


def test_hazard_10_nothing_behind_the_stop_is_kept(config, policy_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    ids = tokenizer.encode("<response>Blue.</response> and then", add_special_tokens=False)
    kept = len(tokenizer.encode("<response>Blue.</response>", add_special_tokens=False))
    given = changed(config, rl_think__rlmt__style="response-only", actor_rollout_ref__rollout__prompt_length=999)
    out, _, _ = ask(given, ids)
    assert len(ids) > kept and tokenizer.decode(out.response_ids).startswith("<response>Blue.</response>")
    assert " and" not in tokenizer.decode(out.response_ids)
    assert len(out.response_logprobs) == len(out.response_mask) == len(out.response_ids) <= kept + 1


def test_an_output_without_a_token_is_one_that_was_not_sampled(config):
    out, _, tokenizer = ask(config, ())
    assert (out.response_ids, out.response_mask, out.response_logprobs) == ([tokenizer.eos_token_id], [0], [0.0])


def test_an_output_is_no_longer_than_the_limit(config):
    out, _, _ = ask(config, range(10, 10 + 2 * LIMIT))
    assert len(out.response_ids) == len(out.response_mask) == len(out.response_logprobs) == LIMIT


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([{"role": "user", "content": "word " * 200}], "train.parquet, row 3: its prompt has"),
        ([{"role": "tool", "content": "x"}], "train.parquet, row 3, `raw_prompt`, message 1: the role 'tool'"),
    ],
)
def test_a_row_that_cannot_be_asked_ends_the_run_and_asks_nobody(config, chat, said):
    out, engine, _ = ask(config, chat=chat, think_row={"where": "train.parquet, row 3"})
    info = out.extra_fields["reward_extra_info"]
    assert engine.asked == [] and set(info) == set(KEYS) and info[FATAL].startswith(said)
    assert out.response_mask == [0] and math.isnan(out.reward_score) and out.response_logprobs == [0.0]
    fields = out.as_dict()
    assert fields["extra_fields"]["min_global_steps"] == 4 and len(fields["rm_scores"]) == 1


def test_f24_a_tag_in_a_chat_breaks_the_frame_and_is_refused(config):
    chat = [{"role": "user", "content": "What does </query> do?"}]
    out, _, _ = ask(changed(config, rl_think__rlmt__style="response"), chat=chat)
    assert "holds the tag '</query>'" in out.extra_fields["reward_extra_info"][FATAL]


def test_a_template_that_refuses_a_chat_is_named_with_the_row(policy_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match="row 9: the policy's chat template refuses this chat: no system here"):
        prompt_ids(QUESTION, RLMTConfig(), tokenizer, "row 9")


# -- stops -------------------------------------------------------------------------------------------------------------


def test_every_engine_is_told_its_stops_in_its_own_words():
    given = {"stop": "x", "stop_token_ids": [1]}
    assert stop_at(given, "vllm", text="y") == {**given, "stop": ["x", "y"], "include_stop_str_in_output": True}
    assert stop_at(given, "sglang", text="y") == {**given, "stop": ["x", "y"], "no_stop_trim": True}
    assert stop_at(given, "vllm", token=2) == {**given, "stop_token_ids": [1, 2]}
    assert stop_at(given, "vllm", token=1) == given and given == {"stop": "x", "stop_token_ids": [1]}
    assert stop_at({}, "trtllm") == {}


def test_an_engine_that_cannot_be_told_is_refused_until_it_is_registered(monkeypatch):
    from rl_think_ext.verl import stops

    monkeypatch.setattr(stops, "_KEEPS", dict(stops._KEEPS))
    with pytest.raises(UserError, match=r"rollout\.name: mine cannot be told"):
        stop_at({}, "mine", token=3)
    register_engine("mine")
    assert stop_at({}, "mine", token=3) == {"stop_token_ids": [3]}
    with pytest.raises(UserError, match="known are"):
        register_engine("other", like="nobody")


# -- settings ----------------------------------------------------------------------------------------------------------


def check(config):
    from rl_think_ext.verl.rlmt_checks import check_config

    found = copy.deepcopy(config)
    settings, _ = resolved.resolve(found, "rlmt")
    return check_config(found, settings)


SERVED = {
    "reward__reward_model__enable": True,
    "reward__reward_model__model_path": "some/model",
    "rl_think__rlmt__reward_model": "",
    "reward__custom_reward_function__path": "pkg://rl_think_ext.verl.rlmt_reward",
    "reward__custom_reward_function__name": "rlmt",
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"algorithm__adv_estimator": "rloo"},
        {"algorithm__adv_estimator": "gae", "actor_rollout_ref__rollout__n": 1},
        {"actor_rollout_ref__actor__use_kl_loss": True},
        {"rl_think__rlmt__style": "response"},
        SERVED,
    ],
    ids=str,
)
def test_what_makes_rlmt_is_taken_as_it_is(config, keys):
    assert check(changed(config, **keys)) == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rl_think__rlmt__reward_model": ""}, r"rl_think\.rlmt\.reward_model names no model"),
        ({"actor_rollout_ref__rollout__n": 1}, r"rollout\.n: 1 with algorithm\.adv_estimator: grpo"),
        ({"algorithm__adv_estimator": "reinforce_plus_plus"}, "say one of grpo, rloo, gae"),
        ({"algorithm__use_kl_in_reward": True}, r"algorithm\.use_kl_in_reward: True"),
        ({"algorithm__filter_groups__enable": True}, r"algorithm\.filter_groups\.enable: True"),
        ({"reward__reward_manager__name": "naive"}, r"reward\.reward_manager\.name: rlmt"),
        ({"reward__custom_reward_function__path": "mine.py"}, "mine.py is never called"),
        ({**SERVED, "reward__custom_reward_function__path": None}, r"custom_reward_function\.path: pkg://"),
        ({**SERVED, "reward__reward_model__rollout__name": "sglang"}, "no /classify"),
        ({**SERVED, "rl_think__rlmt__reward_model": "another/model"}, "have to name one model"),
        ({**SERVED, "rl_think__rlmt__server": "http://x:1"}, "take `server`"),
        ({"actor_rollout_ref__rollout__multi_turn__enable": True}, "one turn and no tools"),
        ({"actor_rollout_ref__rollout__multi_turn__tool_config_path": "t.yaml"}, "tool_config_path: RLMT has one turn"),
        ({"actor_rollout_ref__rollout__agent__default_agent_loop": "tool_agent"}, "default_agent_loop: tool_agent"),
        ({"rl_think__rlmt__style": "response", "actor_rollout_ref__rollout__name": "trtllm"}, "trtllm cannot be told"),
        ({"rl_think__rlmt__style": "response", "actor_rollout_ref__rollout__name": "sglang"}, "skip_tokenizer_init"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_another_method_is_refused_by_its_key(config, keys, said):
    with pytest.raises(UserError, match=said):
        check(changed(config, **keys))


def test_a_reward_model_in_many_processes_is_warned_about(config):
    many = changed(config, reward__num_workers=8)
    assert "8 processes load the reward model" in check(many)[0]
    assert check(changed(many, rl_think__rlmt__server="http://x:1")) == []


def test_hazard_18_templates_are_checked_before_anything_starts(config, policy_folder):
    from rl_think_ext.verl.rlmt_checks import check_template

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    ends = {tokenizer.eos_token_id}

    def look(style="think", **keys):
        given = changed(config, rl_think__rlmt__style=style, **keys)
        settings, _ = resolved.resolve(given, "rlmt")
        return check_template(given, settings, tokenizer, ends)

    thinks = {"data__apply_chat_template_kwargs": {"enable_thinking": True}}
    assert look() == [] and look(**thinks) == [] and look("response") == []
    with pytest.raises(UserError, match=r"data\.apply_chat_template_kwargs: \{enable_thinking: false\}"):
        look("none", **thinks)
    with pytest.raises(UserError, match=r"rl_think\.prefill_think: true"):
        look("none", rl_think__prefill_think=True)
    ends.clear()
    assert "sampling does not end there" in look()[0]
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        look()


def test_what_samples_say_is_the_table_that_the_scorer_made(config):
    manager = manager_of(config)
    rows = [manager._sample(sample_of(manager.tokenizer, text)[-1:][0]) for text in OUTPUTS]
    made = manager.scorer([row.chat for row in rows], [row.output for row in rows])
    table = FORM.table(infos(manager, *OUTPUTS))
    assert torch.equal(table.nan_to_num(nan=-1.0), made.table.nan_to_num(nan=-1.0))


def test_noise_is_measured_on_a_share_of_samples_that_come_one_by_one(config):
    """One sample a call is what verl sends: the first is scored twice, then one in a hundred; the rest remember."""
    manager = manager_of(changed(config, rl_think__rlmt__score_noise_share=0.01))
    forward, asked = manager.scorer.model.forward, []
    own = forward.noise

    def noise(rows, scores, num):
        asked.append(num)
        return own(rows, scores, num) if own(rows, scores, num) >= 0 else 0.0

    forward.noise = noise
    found = [infos(manager, f"<think>a</think>{'ab' * (i + 1)}")[0] for i in range(6)]
    assert asked == [1]
    assert all(one["rlmt/noise"] is not None and one["rlmt/noise"] < 1e-4 for one in found)


def test_an_output_has_room_to_end_before_the_context_does(config):
    """verl's servers cut where the context ends and call that completed: half an answer would be scored as whole."""
    from rl_think_ext.verl.reward_checks import check_room

    rollout = config.actor_rollout_ref.rollout
    need = rollout.prompt_length + rollout.response_length
    check_room(config, need)
    check_room(config, None)
    with pytest.raises(UserError, match=rf"data\.max_response_length: .* need {need} positions"):
        check_room(config, need - 1)
    with pytest.raises(UserError, match="max_response_length"):
        check_room(changed(config, actor_rollout_ref__rollout__name="sglang"), need)
