"""RLPT under TRL's real trainer: what is judged, what is paid, where lambda acts, what is logged, what is refused."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from reward_models import reward_tokenizer
from stub_server import Reply, StubServer
from tokenizers import normalizers
from transformers import AutoTokenizer
from trl_runs import TINY, ScriptedMixin, logs, save_policy, table_of

from rl_think_ext import cli
from rl_think_ext.cli import train
from rl_think_ext.cli.train import method_of
from rl_think_ext.errors import UserError
from rl_think_ext.methods.groups import one_score_each
from rl_think_ext.methods.rlpt import RLPTConfig, render_asr, render_msr
from rl_think_ext.scoring.judge import STATS
from rl_think_ext.scoring.outputs import reader
from rl_think_ext.scoring.prediction import FIELDS, column
from rl_think_ext.scoring.prediction_prompt import check_tags
from rl_think_ext.scoring.prediction_step import judge_metrics
from rl_think_ext.trl import PredictionScore, RLPTGRPOConfig, RLPTTrainer

trl = pytest.importorskip("trl")

CONTEXT = "The clouds were dark all morning. "
SEGMENTS = ("It rained on the hill.", " We ran home.", " The dog was wet.")
REFERENCE = "".join(SEGMENTS)
ENDS = [22, 35, 52]


def said(prediction, thought="So, "):
    return f"{thought}<|startofprediction|> {prediction} <|endofprediction|>"


OUTPUTS = (
    said("It rained on the hill."),
    said("The sun came out again."),
    "I would say that it rained.",
    said("It rained on the hill. We ran home"),
)


def row(i=0, task="asr", **changes):
    shown = " We ran home." if task == "msr" else ""
    text = REFERENCE if task == "asr" else SEGMENTS[0]
    prompt = render_asr(CONTEXT) if task == "asr" else render_msr(CONTEXT, shown)
    return {
        "id": f"doc:{i}", "prompt": [{"role": "user", "content": prompt}], "task": task, "context": CONTEXT,
        "next_segment": shown, "reference": text, "segment_ends": ENDS if task == "asr" else ENDS[:1],
        "source": "doc", "position": i, **changes,
    }  # fmt: skip


def rows(n=8, task="asr", **changes):
    return Dataset.from_list([row(i, task, **changes) for i in range(n)])


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


class Scripted(ScriptedMixin, RLPTTrainer):
    said = OUTPUTS


class Stock(ScriptedMixin, trl.GRPOTrainer):
    said = OUTPUTS


@pytest.fixture
def run(tmp_path, policy_folder):
    """A scripted trainer for settings of RLPT."""

    def make(kind=Scripted, data=None, config=None, **settings):
        args = RLPTGRPOConfig(str(tmp_path / "run"), **{**TINY, **settings})
        given = RLPTConfig(**{"judge": "rule", **(config or {})})
        return kind(str(policy_folder), args, rlpt=given, train_dataset=rows() if data is None else data)

    return make


def test_predictions_are_judged_and_the_rest_is_wrong_without_a_question(run):
    trainer = run()
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlpt"] == [1.0, 0.0, 0.0, 1.0] == shown["rlpt/score"]
    assert shown["rlpt/status"] == ["ok", "ok", "no_open", "ok"]
    assert shown["rlpt/prediction"][:2] == ["It rained on the hill.", "The sun came out again."]
    assert shown["rlpt/prediction"][2] is None
    assert shown["rlpt/reference"] == [REFERENCE] * 4 and shown["rlpt/task"] == ["asr"] * 4
    assert shown["rlpt/covered"] == pytest.approx([1.0, 1 + 1 / 13, None, 1 + 12 / 13])
    assert shown["rlpt/unscorable"] == [None] * 4
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert shown["advantage"] == pytest.approx(((rewards - rewards.mean()) / (rewards.std() + 1e-4)).tolist(), abs=1e-4)


def test_metrics_are_those_of_the_batch(run):
    trainer = run()
    trainer.train()
    encode = trainer.processing_class.encode
    texts = ["It rained on the hill.", "The sun came out again.", "It rained on the hill. We ran home"]
    lengths = [len(encode(text)) for text in texts]
    assert logs(trainer, "rlpt/prediction_length") == [pytest.approx(sum(lengths) / 3)]
    assert logs(trainer, "rlpt/prediction_chars") == [pytest.approx(sum(map(len, texts)) / 3)]
    assert logs(trainer, "rlpt/segments_covered") == [pytest.approx((3 + 1 / 13 + 12 / 13) / 3)]
    assert logs(trainer, "rlpt/segments_covered_right") == [pytest.approx(1 + 6 / 13)]
    wanted = {
        "score": 0.5, "asr/score": 0.5, "asr/share": 1.0, "status/ok": 0.75, "status/no_open": 0.25, "no_verdict": 0.0,
        "unscorable": 0.0, "zero_variance_groups": 0.0, "judge_num_asked": 3.0,
    }  # fmt: skip
    assert {name: logs(trainer, f"rlpt/{name}")[0] for name in wanted} == pytest.approx(wanted)
    for name in ("scoring_seconds", "scoring_share", *(f"judge_{name}" for name in STATS), "msr/score"):
        assert len(logs(trainer, f"rlpt/{name}")) == 1


MIXED = (*OUTPUTS, said("It rained on the hill."), *(said("The dog was dry.") for _ in range(3)))


class Mixed(Scripted):
    """A group of ASR, then one of MSR, in one batch."""

    said = MIXED


class MixedStock(Stock):
    said = MIXED


def mixed_rows():
    return Dataset.from_list([row(0), row(1, "msr")])


MIX = {"per_device_train_batch_size": 8, "shuffle_dataset": False, "loss_type": "grpo"}


def gradient(trainer):
    """The gradient of the loss of one batch, as one vector."""
    trainer.model.train()
    inputs = [row(0)] * 4 + [row(1, "msr")] * 4
    batch = trainer._generate_and_score_completions(inputs)
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch).backward()
    return torch.cat([p.grad.flatten().double() for p in trainer.model.parameters() if p.grad is not None])


def test_lambda_halves_what_msr_adds_to_the_gradient(run):
    whole, half, none = (
        gradient(run(Mixed, mixed_rows(), {"msr_weight": weight}, **MIX)) for weight in (1.0, 0.5, 1e-9)
    )
    msr = whole - none
    assert msr.norm() > 0.05 * whole.norm()
    torch.testing.assert_close(half - none, msr / 2, rtol=0, atol=1e-6 * float(whole.norm()))


def test_a_factor_on_the_reward_disappears_in_the_group(run, tmp_path, policy_folder):
    class Halved(PredictionScore):
        def rewards(self, *args):
            rewards = super().rewards(*args)
            factors = [0.5 if task == "msr" else 1.0 for task in self.tasks()]
            return rewards * torch.tensor(factors).to(rewards)

    def of(reward):
        args = trl.GRPOConfig(str(tmp_path / "stock"), **{**TINY, **MIX})
        return MixedStock(str(policy_folder), reward, args=args, train_dataset=mixed_rows())

    whole, halved = (of(kind(RLPTConfig(judge="rule"))) for kind in (PredictionScore, Halved))
    for trainer in (whole, halved):
        trainer.reward_funcs[0].bind(trainer)
    one, other = gradient(whole), gradient(halved)
    assert halved.reward_funcs[0].paid == [1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * float(one.norm()))


def test_the_advantages_that_are_shown_are_those_that_are_trained(run):
    trainer = run(Mixed, mixed_rows(), {"msr_weight": 0.5}, **MIX)
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlpt/task"] == ["asr"] * 4 + ["msr"] * 4
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64).view(2, 4)
    own = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)
    own[1] /= 2
    assert shown["advantage"] == pytest.approx(own.flatten().tolist(), abs=1e-4)


def test_a_weight_of_one_changes_no_bit(run, tmp_path, policy_folder):
    args = trl.GRPOConfig(str(tmp_path / "stock"), **{**TINY, **MIX})
    stock = MixedStock(
        str(policy_folder), PredictionScore(RLPTConfig(judge="rule")), args=args, train_dataset=mixed_rows()
    )
    stock.reward_funcs[0].bind(stock)
    assert torch.equal(gradient(run(Mixed, mixed_rows(), **MIX)), gradient(stock))


def test_the_stock_trainer_says_which_share_stands_for_lambda(tmp_path, policy_folder):
    args = trl.GRPOConfig(str(tmp_path), **TINY)
    reward = PredictionScore(RLPTConfig(judge="rule", msr_weight=0.25))
    stock = trl.GRPOTrainer(str(policy_folder), reward, args=args, train_dataset=rows())
    with pytest.raises(UserError, match=r"msr_weight 0.25 acts on the advantage.*`msr_weight: 1.0`.*--msr-share 0.2`"):
        stock.train()


def test_f22_outputs_without_a_prediction_may_leave_their_group(run):
    trainer = run(config={"malformed": "unscorable"})
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlpt"] == [1.0, 0.0, None, 1.0]
    assert shown["rlpt/unscorable"] == [None, None, "no prediction: no_open", None]
    assert shown["advantage"][2] == 0.0
    assert logs(trainer, "rlpt/unscorable") == [0.25] and logs(trainer, "rlpt/no_verdict") == [0.0]


@pytest.mark.parametrize(
    ("prediction", "status"),
    [("", "empty"), ("Then,", "too_short"), ("It rained " * 500, "too_long"), ("It rai", "too_short")],
)
def test_f26_what_begins_everything_is_wrong_without_a_question(run, prediction, status):
    class One(Scripted):
        said = (OUTPUTS[0], said(prediction), OUTPUTS[0], OUTPUTS[1])

    trainer = run(One, max_completion_length=4096)
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlpt"] == [1.0, 0.0, 1.0, 0.0] and shown["rlpt/status"][1] == status
    assert logs(trainer, "rlpt/judge_num_asked") == [3.0]


def test_f27_copies_of_the_prompt_are_logged(run):
    class Copies(Scripted):
        said = (said(CONTEXT * 2), said(f"{CONTEXT}It rained on the hill."), said(f"Indeed {CONTEXT}"), OUTPUTS[0])

    trainer = run(Copies, rows(context=f"Once. {CONTEXT}{CONTEXT} \n The end. "))
    trainer.train()
    assert logs(trainer, "rlpt/prediction_copied") == [pytest.approx(1 / 4)]


def chat_reply(verdict):
    """A stub of an OpenAI-compatible server that says what a function of the question says."""

    def reply(request):
        found = verdict(request.json["messages"][-1]["content"])
        if isinstance(found, Reply):
            return found
        choice = {"index": 0, "message": {"role": "assistant", "content": found}, "finish_reason": "stop"}
        return Reply({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})

    return reply


def served(server, **changes):
    return {"judge": "server", "server": server.url, "judge_model": "judge", "num_canaries": 0, "retries": 0, **changes}


def test_a_served_judge_sees_reference_and_prediction_alone(run):
    with StubServer(chat_reply(lambda text: f"Score: {int('We ran home' in text.split(REFERENCE)[-1])}")) as server:
        trainer = run(config=served(server))
        trainer.train()
        questions = [request.json["messages"][-1]["content"] for request in server.requests]
    assert table_of(trainer)["rlpt"] == [0.0, 0.0, 0.0, 1.0]
    assert len(questions) == 3 and all(REFERENCE in question for question in questions)
    assert not any("So," in question or CONTEXT in question for question in questions)
    assert logs(trainer, "rlpt/judge_latency_p95")[0] > 0 and logs(trainer, "rlpt/no_verdict") == [0.0]


def test_f01_no_verdict_is_no_zero_and_the_step_goes_on(run):
    def verdict(text):
        return "Sure! Score: 1" if "We ran home" in text.split(REFERENCE)[-1] else "Score: 1"

    with StubServer(chat_reply(verdict)) as server:
        trainer = run(config=served(server))
        trainer.train()
    shown = table_of(trainer)
    assert shown["rlpt"] == [1.0, 1.0, 0.0, None]
    assert "unparsable" in shown["rlpt/unscorable"][3] and shown["advantage"][3] == 0.0
    assert logs(trainer, "rlpt/no_verdict") == [0.25]
    pair = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    wanted = (pair - pair.mean()) / (pair.std() + 1e-4)
    assert shown["advantage"][:3] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_f06_no_verdict_for_several_steps_raises(run):
    class Judged(Scripted):
        said = (OUTPUTS[0], OUTPUTS[1])

    config = {"judge": "server", "server": "http://127.0.0.1:9", "judge_model": "j", "deadline": 1.0, "retries": 0}
    with pytest.raises(UserError, match=r"no prediction was scored in 2 steps in a row: judge: connection"):
        run(Judged, config={**config, "max_failed_steps": 2}, max_steps=5).train()


def test_f06_what_is_wrong_without_a_question_hides_no_dead_judge(run):
    """A group of four brings an output without tags in every step: its 0 is no verdict of the judge."""
    config = {"judge": "server", "server": "http://127.0.0.1:9", "judge_model": "j", "deadline": 1.0, "retries": 0}
    with pytest.raises(UserError, match=r"no prediction was scored in 2 steps in a row: judge: connection"):
        run(config={**config, "max_failed_steps": 2}, max_steps=5).train()


def test_f06_outputs_about_which_nobody_is_asked_are_no_failure(run):
    class Untagged(Scripted):
        said = (OUTPUTS[2], "It will rain.")

    config = {"judge": "server", "server": "http://127.0.0.1:9", "judge_model": "j", "deadline": 1.0}
    run(Untagged, config={**config, "max_failed_steps": 1}, max_steps=2).train()


def test_f08_equal_predictions_of_a_group_have_one_score():
    table = torch.full((6, len(FIELDS)), torch.nan)
    table[:, FIELDS.index("score")] = torch.tensor([1.0, 0.0, torch.nan, 0.0, 0.0, torch.nan])
    table[:, FIELDS.index("judged")] = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    keys = ["a", "a", "a", "a", "b", "c"]
    found = one_score_each(column(table, "score"), keys, column(table, "judged") == 1)
    assert found[:5].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0] and found[5].isnan()


def test_f10_the_reward_judges_in_another_process_without_a_trainer():
    def ask(reward):
        columns = {name: [row()[name]] * 4 for name in row() if name != "prompt"}
        chats = [[{"role": "assistant", "content": text}] for text in OUTPUTS]
        return reward(prompts=[row()["prompt"]] * 4, completions=chats, **columns)

    with StubServer(chat_reply(lambda text: "Score: 1")) as server:
        reward = PredictionScore(RLPTConfig(**served(server)))
        first = ask(reward)
        again = ask(pickle.loads(pickle.dumps(reward)))  # noqa: S301
    assert first == again == [1.0, 1.0, 0.0, 1.0]
    assert ask(pickle.loads(pickle.dumps(PredictionScore(RLPTConfig(judge="rule"))))) == [1.0, 0.0, 0.0, 1.0]  # noqa: S301
    assert reward(prompts=[], completions=[]) == []


def test_f11_judges_that_asked_nothing_leave_the_same_names():
    nothing = judge_metrics(torch.full((2, len(STATS)), torch.nan))
    stats = torch.zeros(3, len(STATS))
    stats[:, STATS.index("num_asked")] = torch.tensor([3.0, 5.0, torch.nan])
    stats[:, STATS.index("num_cached")] = torch.tensor([2.0, 0.0, torch.nan])
    stats[:, STATS.index("latency_p95")] = torch.tensor([0.5, 2.0, torch.nan])
    stats[:, STATS.index("canary_wrong_accepted")] = torch.tensor([0.5, torch.nan, 0.0])
    found = judge_metrics(stats)
    assert set(found) == set(nothing) and all(value != value for value in nothing.values())
    assert found["judge_num_asked"] == 8 and found["judge_cache_hits"] == pytest.approx(0.2)
    assert found["judge_latency_p95"] == 2.0 and found["judge_canary_wrong_accepted"] == 0.25


@pytest.mark.slow
def test_f11_two_processes_share_scores_slots_and_weights(tmp_path, policy_folder):
    verdicts = itertools.cycle(["Score: 1", "Score: 0"])

    def verdict(text):
        return Reply({}, status=500) if "RANK1" in text else next(verdicts) if "RANK0" not in text else "Score: 0"

    words = ["--standalone", "--nproc_per_node", "2", str(Path(__file__).with_name("rlpt_ranks.py"))]
    with StubServer(chat_reply(verdict)) as server:
        command = [sys.executable, "-m", "torch.distributed.run", *words, str(tmp_path), str(policy_folder), server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (
        [json.loads((tmp_path / run / f"rank{i}.json").read_text()) for i in (0, 1)] for run in ("one", "two")
    )
    assert one[0]["names"] == one[1]["names"] and any("rlpt/no_verdict" in names for names in one[0]["names"])
    # One group over both: the prediction that both made has the verdict that rank 0 got, in both.
    assert [rank["slots"] for rank in one] == [4, 4]
    same = one[0]["paid"][0]
    assert one[0]["paid"] == [same, 0.0, same, 0.0] and one[1]["paid"] == [same, None, same, None]
    # A group on either: the second one is of MSR and counts half.
    assert other[0]["tasks"] == ["asr"] * 4 + ["msr"] * 4
    assert [rank["paid"] for rank in other] == [[1.0, 0.0, 1.0, 0.0]] * 2
    assert [rank["advantages"] for rank in other] == [[0.5, -0.5] * 2, [0.25, -0.25] * 2]


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("how", ["text", "added", "special"])
def test_f31_the_tags_survive_decoding(family, how, tmp_path):
    tokenizer = reward_tokenizer(family)
    tags = ["<|startofprediction|>", "<|endofprediction|>"]
    if how != "text":
        tokenizer.add_tokens(tags, special_tokens=how == "special")
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = said(" a = b ", "<think>\nwell</think>\n")
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    assert all((len(tokenizer.encode(tag, add_special_tokens=False)) == 1) == (how != "text") for tag in tags)
    found = reader(tokenizer, [tokenizer.eos_token_id], 400)(ids)
    assert found.text == text and found.finished
    check_tags(tokenizer)


def test_f31_a_tokenizer_that_loses_the_tags_is_refused():
    tokenizer = reward_tokenizer("qwen")
    tokenizer._tokenizer.normalizer = normalizers.Replace("<|", "")
    with pytest.raises(UserError, match=r"the tags do not survive this tokenizer.*tokens of their own"):
        check_tags(tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": None}, "row 0 of the dataset: column `reference` is None"),
        ({"segment_ends": [3]}, "row 0 of the dataset: column `segment_ends` does not fit"),
        ({"task": "mrs"}, "column `task` is one of asr, msr, got 'mrs'"),
        ({"context": 7}, "column `context` holds int"),
        ({"prompt": None}, "row 0 of the dataset, column `prompt`: expected a chat"),
    ],
)
def test_f33_rows_that_are_none_are_named_at_the_start(run, changes, message):
    with pytest.raises(UserError, match=message):
        run(data=Dataset.from_list([row(**changes)] * 4))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "expected a chat (a text, or a list of role and content), got NoneType"),
        ([], "got an empty list"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "ends with the assistant's message",
        ),
    ],
)
def test_f32_a_prompt_in_the_middle_that_cannot_be_asked_is_named(run, prompt, words):
    data = Dataset.from_list([row(i, id=f"doc:{i}") for i in range(3)] + [row(3, id="doc:3", prompt=prompt)])
    with pytest.raises(UserError, match=r"row doc:3, column `prompt`: .*" + re.escape(words)):
        run(data=data, max_steps=4).train()


def test_f33_a_row_in_the_middle_is_named_by_its_id():
    reward = PredictionScore(RLPTConfig(judge="rule"))
    with pytest.raises(UserError, match="row doc:3: there is no column `task`"):
        reward(prompts=["a"], completions=["b"], id=["doc:3"])


def test_f42_a_row_cannot_name_a_judge(run):
    trainer = run(data=rows(server="http://127.0.0.1:9", judge="server", judge_model="mine"))
    trainer.train()
    assert table_of(trainer)["rlpt"] == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ({"judge": "server"}, {}, "`server` is not set"),
        ({"judge": "server", "server": "http://127.0.0.1:9"}, {}, "`judge_model` is not set"),
        (
            {},
            {"remove_unused_columns": True},
            "the reference would not reach the reward. Say `remove_unused_columns: f",
        ),
    ],
)
def test_settings_that_are_no_rlpt_are_refused(run, config, settings, message):
    with pytest.raises(UserError, match=message):
        run(config=config, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.1}, "beta: 0.1 differs from RLPT: the paper has no KL term"),
        ({"mask_truncated_completions": True}, "outputs that were cut off are wrong, and would not be trained on"),
    ],
)
def test_settings_that_differ_are_warned_about(run, settings, message):
    with pytest.warns(UserWarning, match=message):
        run(**settings)


def test_a_chat_needs_a_template_and_text_needs_none(run, policy_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template, tokenizer.padding_side = None, "left"

    def trainer_of(data):
        args = RLPTGRPOConfig(str(tmp_path), **TINY)
        config = RLPTConfig(judge="rule")
        return Scripted(str(policy_folder), args, rlpt=config, processing_class=tokenizer, train_dataset=data)

    with pytest.raises(UserError, match=r"row 0 of the dataset: column `prompt` is a chat.*--form text"):
        trainer_of(rows())
    trainer = trainer_of(rows(prompt=render_asr(CONTEXT)))
    trainer.train()
    assert table_of(trainer)["rlpt"] == [1.0, 0.0, 0.0, 1.0]


def length_reward(completions, **kwargs):
    return [float(len(str(completion))) for completion in completions]


def test_f12_no_verdict_beside_another_reward_is_no_zero(tmp_path, policy_folder):
    config = RLPTConfig(judge="rule", malformed="unscorable")
    args = RLPTGRPOConfig(str(tmp_path), **TINY)
    trainer = Scripted(str(policy_folder), args, rlpt=config, reward_funcs=[length_reward], train_dataset=rows())
    trainer.train()
    assert table_of(trainer)["advantage"][2] == 0.0 != table_of(trainer)["advantage"][0]
    funcs = [PredictionScore(config), length_reward]
    stock = trl.GRPOTrainer(str(policy_folder), funcs, args=trl.GRPOConfig(str(tmp_path), **TINY), train_dataset=rows())
    with pytest.raises(UserError, match=r"beside other rewards the stock trainer counts a prediction.*trl\.rlpt alone"):
        stock.train()


def test_the_deadline_is_under_half_of_the_processes_own(run):
    config = {"judge": "server", "server": "http://127.0.0.1:9", "judge_model": "j", "deadline": 600.0}
    trainer = run(config=config, ddp_timeout=100)
    assert trainer.prediction.scorer.judge.endpoint.config.deadline == pytest.approx(45.0)


def test_settings_are_announced_kept_and_recorded(run, capsys):
    trainer = run()
    assert "[rl_think] RLPT settings" in capsys.readouterr().out
    trainer.train()
    folder = Path(trainer.args.output_dir) / "rl_think"
    assert json.loads((folder / "settings.json").read_text())["rlpt"]["judge"] == "rule"
    about = json.loads((folder / "run.json").read_text())
    assert about["method"] == "rlpt" and about["trainer"] == "Scripted"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert any("rlpt/score" in line for line in lines)


def test_f39_a_password_in_the_address_is_nowhere(run, capsys):
    address = "http://me:hunter2@127.0.0.1:9/?key=hunter3"
    trainer = run(config={"judge": "server", "server": address, "judge_model": "j", "deadline": 0.5, "retries": 0})
    trainer.train()
    told = capsys.readouterr()
    kept = [path.read_bytes() for path in Path(trainer.args.output_dir).rglob("*") if path.is_file()]
    assert kept and not any(b"hunter" in text for text in (told.out.encode(), told.err.encode(), *kept))


def test_an_evaluation_has_metrics_of_its_own(tmp_path, policy_folder):
    args = RLPTGRPOConfig(str(tmp_path), **{**TINY, "eval_strategy": "steps", "eval_steps": 1})
    trainer = Scripted(
        str(policy_folder), args, rlpt=RLPTConfig(judge="rule"), train_dataset=rows(), eval_dataset=rows(4)
    )
    trainer.train()
    assert logs(trainer, "eval_rlpt/score") == [0.5]


def write(folder, config):
    """A run's YAML file, and its dataset, in a folder."""
    rows(8).to_parquet(folder / "data" / "train.parquet")
    keys = {"dataset_name": str(folder / "data"), "output_dir": str(folder / "out"), **TINY, **config}
    (folder / "run.yaml").write_text(yaml.safe_dump(keys))
    return str(folder / "run.yaml")


def test_rl_think_train_by_one_file(tmp_path, policy_folder, capsys):
    block = {"rl_think": {"rlpt": {"judge": "rule", "msr_weight": 0.5}}, "model_name_or_path": str(policy_folder)}
    assert cli.main(["train", "--config", write(tmp_path, block)]) == 0
    about = json.loads((tmp_path / "out/rl_think/run.json").read_text())
    assert about["trainer"] == "RLPTTrainer" and about["settings"]["msr_weight"] == 0.5
    assert about["dataset"]["num_rows"] == 8
    assert "RLPT settings" in capsys.readouterr().out and (tmp_path / "out/report.html").is_file()


def test_trl_grpo_by_file_and_settings(tmp_path, policy_folder, monkeypatch):
    (tmp_path / "settings.yaml").write_text("rlpt:\n  judge: rule\n")
    keys = {"reward_funcs": ["rl_think_ext.trl.rlpt"], "model_name_or_path": str(policy_folder)}
    monkeypatch.setattr(sys, "argv", ["trl", "--config", write(tmp_path, keys)])
    monkeypatch.setenv("RL_THINK_CONFIG", str(tmp_path / "settings.yaml"))
    runpy.run_module("trl.scripts.grpo", run_name="__main__")
    about = json.loads((tmp_path / "out/rl_think/run.json").read_text())
    assert about["trainer"] == "GRPOTrainer" and about["method"] == "rlpt"
    assert about["source"] == str(tmp_path / "settings.yaml")
    lines = [json.loads(line) for line in (tmp_path / "out/rl_think/log.jsonl").read_text().splitlines()]
    assert sum("rlpt/score" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"trainer": "sft", "rlpt": {}}, "RLPT's cold start is plain fine-tuning on instructions: use `trl sft`"),
        ({"trainer": "dpo", "rlpt": {}}, "`trainer` is one of grpo for rlpt, got 'dpo'"),
        ({"rlpt": {"judg": "rule"}}, "unknown key `judg`; did you mean `judge`?"),
        ({"rlpt": {"reward": "prefx"}}, "`reward` is one of prefix, strict, got 'prefx'; did you mean `prefix`?"),
        ({"rlpt": {"msr_weight": 0}}, "`msr_weight` is a number above 0"),
        ({"rlpt": {"judge": "rule", "server": "http://x"}}, "`server` is for a judge behind a server"),
        ({"rlpt": {"judge": "rule", "judge_thinking": False}}, "`judge_thinking` is for a judge behind a server"),
        ({"rlpt": {"judge": "rule", "api_key_env": "KEY"}}, "`api_key_env` is for a judge behind a server"),
    ],
)
def test_f40_blocks_that_are_wrong_name_what_is_right(block, message):
    with pytest.raises(UserError, match=re.escape(message)):
        method_of(block, "run.yaml")


def test_the_reward_of_another_method_is_refused_and_ones_own_may_be_named(tmp_path, policy_folder):
    block = {"rl_think": {"rlpt": {"judge": "rule"}}, "model_name_or_path": str(policy_folder), "max_steps": 1}
    with pytest.raises(UserError, match=r"reward_funcs: rl_think_ext.trl.rlmt is another method's reward"):
        train.run(["--config", write(tmp_path, {**block, "reward_funcs": ["rl_think_ext.trl.rlmt"]})])
    assert train.run(["--config", write(tmp_path, {**block, "reward_funcs": ["rl_think_ext.trl.rlpt"]})]) == 0


def test_f33_a_dataset_of_another_method_is_refused(tmp_path, policy_folder):
    block = {"rl_think": {"rlpt": {"judge": "rule"}}, "model_name_or_path": str(policy_folder)}
    path = write(tmp_path, block)
    rows(4).remove_columns("segment_ends").to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(UserError, match="column `segment_ends` is missing; there are id, prompt"):
        train.run(["--config", path])


def test_help_lists_the_settings(capsys):
    assert cli.main(["train", "--help"]) == 0
    told = capsys.readouterr().out
    assert "settings of rl_think: rlpt:" in told and "msr_weight: float, default 1.0" in told
