"""RPT, VeriFree and RLPR under TRL's real trainer on tiny models: what is paid, trained, kept and refused."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_related_rewards import direct, flat
from test_trl_rlp import TINY, logs, rows, same, weights

import rl_think_ext.trl as door
from rl_think_ext import cli
from rl_think_ext.errors import UserError
from rl_think_ext.methods import rlpr
from rl_think_ext.methods.rlp import RLPConfig, group_advantage
from rl_think_ext.methods.rlpr import RLPRConfig
from rl_think_ext.methods.rpt import RPTConfig
from rl_think_ext.methods.verifree import VeriFreeConfig
from rl_think_ext.scoring.load import load_model, load_tokenizer
from rl_think_ext.scoring.token_bytes import token_bytes
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.text import save_text_model
from rl_think_ext.trl import AnswerProbability, MeanProbability, PrefixMatch, ThinkGRPOTrainer

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

# --- VeriFree under TRL ---------------------------------------------------------------------------------------------


def answers(n: int = 64) -> Dataset:
    """Questions whose reference answer has three tokens."""
    return rows(n).map(lambda row: {"target": row["target"] + " b=a+4"})


def answer_trainer(out, reward, data=None, model=str(PROGRAMS_MODEL), **settings):
    args = reward.arguments(str(out), **{**TINY, "max_steps": 2, **settings})
    return ThinkGRPOTrainer(model, args, reward_funcs=[reward], train_dataset=data or answers())


def stock_answer_trainer(out, reward, **settings):
    args = trl.GRPOConfig(str(out), **{**TINY, "max_steps": 2, **settings})
    return trl.GRPOTrainer(str(PROGRAMS_MODEL), reward, args=args, train_dataset=answers())


def losses_and_gradients(trainer) -> list[tuple[dict, float, torch.Tensor]]:
    """What each call of the trainer's own loss gives; filled by training."""
    found, original = [], trainer._compute_loss

    def spy(model, inputs):
        loss = original(model, inputs)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradient = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        found.append((inputs, float(loss.detach()), flat(gradient)))
        return loss

    trainer._compute_loss = spy
    return found


def log_prob_alone(model, prefix: list[int], target: list[int]) -> torch.Tensor:
    """Log-prob of a target, one row alone, the whole text through the model."""
    logits = model(torch.tensor([[*prefix, *target]])).logits[0, -len(target) - 1 : -1]
    return logits.log_softmax(-1)[range(len(target)), target].sum()


@pytest.mark.parametrize("both", [True, False])
def test_verifree_trains_both_terms_of_the_gradient_in_one_scale(tmp_path, both):
    reward = AnswerProbability(VeriFreeConfig(answer_term=both))
    trainer = answer_trainer(tmp_path, reward, max_steps=1, gradient_accumulation_steps=2, learning_rate=0.0)
    found = losses_and_gradients(trainer)
    trainer.train()
    assert len(found) == 2
    _, rollouts, gains = reward.batch
    known = {r.prompt + r.thought.ids: i for i, r in enumerate(rollouts)}
    model = trainer.model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    length, advantage = trainer.max_completion_length, group_advantage(gains.column("gain"), 4)
    for inputs, _, gradient in found:
        total, num = torch.zeros(()), len(inputs["prompt_ids"])
        for b in range(num):
            prompt = inputs["prompt_ids"][b][inputs["prompt_mask"][b].bool()].tolist()
            sampled = inputs["completion_ids"][b][inputs["completion_mask"][b].bool()].tolist()
            rollout = next(
                r for r in rollouts if [*r.prompt] == prompt and [*r.thought.ids][: len(sampled) - 1] == sampled[:-1]
            )
            i = known[rollout.prompt + rollout.thought.ids]
            value = float(gains.column("gain")[i])
            if math.isnan(value):
                continue
            total = total - advantage[i] * log_prob_alone(model, prompt, sampled)
            if both:
                answered = log_prob_alone(model, [*rollout.prompt, *rollout.thought.ids], [*rollout.target])
                assert math.exp(float(answered.detach())) == pytest.approx(value, rel=1e-3)
                total = total - value * answered
        wanted = flat(torch.autograd.grad(total / (num * length * 2), parameters))
        torch.testing.assert_close(gradient, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=0)


def test_verifree_answer_term_reaches_the_weights(tmp_path):
    moved = []
    for both in (True, False):
        trainer = answer_trainer(tmp_path / str(both), AnswerProbability(VeriFreeConfig(answer_term=both)), max_steps=1)
        trainer.train()
        moved.append(weights(trainer))
    assert not same(*moved)


def test_verifree_pays_the_probability_of_the_answer_behind_thought_and_prefix(tmp_path):
    reward = AnswerProbability(VeriFreeConfig(answer_prefix=" d?"))
    trainer = answer_trainer(tmp_path, reward, max_steps=1, learning_rate=0.0)
    trainer.train()
    tokenizer, model = trainer._tokenizer, trainer.model.eval()
    before = tokenizer(" d?")["input_ids"]
    kept, rollouts, gains = reward.batch
    paid = reward.reward(gains)
    assert len({round(value, 9) for value in paid if value is not None}) > 2
    for row, rollout, value in zip(kept, rollouts, paid, strict=True):
        if value is None:
            continue
        sampled = [i for i in row["completion_ids"] if i not in trainer.eos_token_ids]
        thought = [*tokenizer(row["prompt"])["input_ids"], *sampled, tokenizer.convert_tokens_to_ids("</think>")]
        assert [*rollout.prompt, *rollout.thought.ids] == [*thought, *before]
        answer = tokenizer(row["target"])["input_ids"]
        assert len(answer) == 3
        assert value == pytest.approx(
            math.exp(float(log_prob_alone(model, [*thought, *before], answer).detach())), rel=1e-3
        )
    assert logs(trainer, "verifree/probability") == logs(trainer, "verifree/reward")
    assert logs(trainer, "verifree/probability_direct") == [None], "nobody asked for it"
    assert not any(key.startswith("rlp/") for log in trainer.state.log_history for key in log)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reward", [AnswerProbability(VeriFreeConfig()), MeanProbability(RLPRConfig(std_filter_start=2))]
)
def test_a_run_learns_what_its_rewards_say(tmp_path, reward):
    given = {"max_steps": 25, "per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 20}
    trainer = answer_trainer(tmp_path, reward, data=rows(512), **given)
    trainer.train()
    probability = logs(trainer, f"{reward.method}/probability")
    assert statistics.fmean(probability[:3]) < 0.3
    assert statistics.fmean(probability[-3:]) > 0.6


def test_verifree_under_the_stock_trainer_says_that_it_trains_one_term(tmp_path):
    exact = {"loss_type": "dr_grpo", "scale_rewards": "none"}
    with pytest.raises(UserError, match=r"first term of the gradient alone.*answer_term: false"):
        stock_answer_trainer(tmp_path, AnswerProbability(VeriFreeConfig()), **exact).train()
    reward = AnswerProbability(VeriFreeConfig(answer_term=False))
    trainer = stock_answer_trainer(tmp_path, reward, **exact)
    trainer.train()
    assert logs(trainer, "rewards/verifree/mean") == pytest.approx(logs(trainer, "verifree/reward"))


def test_a_refused_trainer_is_refused_at_the_second_call_too(tmp_path):
    reward = AnswerProbability(VeriFreeConfig())
    trainer = stock_answer_trainer(tmp_path, reward, loss_type="dr_grpo", scale_rewards="none")
    for _ in range(2):
        with pytest.raises(UserError, match="first term"):
            reward.bind(trainer)


@pytest.mark.parametrize(
    ("reward", "name", "value"),
    [
        (AnswerProbability, "loss_type", "grpo"),
        (AnswerProbability, "scale_rewards", "group"),
        (AnswerProbability, "importance_sampling_level", "sequence"),
        (AnswerProbability, "remove_unused_columns", True),
        (MeanProbability, "scale_rewards", "batch"),
        (MeanProbability, "importance_sampling_level", "sequence"),
        (MeanProbability, "multi_objective_aggregation", "normalize_then_sum"),
        (PrefixMatch, "remove_unused_columns", True),
    ],
)
def test_setting_that_makes_it_another_method_is_refused(tmp_path, reward, name, value):
    kind = getattr(reward, "arguments", trl.GRPOConfig)
    args = kind(str(tmp_path), **{**TINY, name: value})
    if reward is PrefixMatch:
        trainer = trl.GRPOTrainer(str(PROGRAMS_MODEL), reward(), args=args, train_dataset=answers())
    else:
        trainer = None

    def start():
        return (
            reward(RPTConfig()).bind(trainer)
            if trainer
            else ThinkGRPOTrainer(str(PROGRAMS_MODEL), args, reward_funcs=[reward()], train_dataset=answers())
        )

    with pytest.raises(UserError, match=rf"{name}: .* is not (VeriFree|RLPR|RPT): .*Say `{name}: "):
        start()


def test_setting_that_differs_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="mask_truncated_completions: True differs from VeriFree"):
        answer_trainer(tmp_path, AnswerProbability(VeriFreeConfig()), mask_truncated_completions=True)
    with pytest.warns(UserWarning, match="keeps the probabilities of when it was sampled"):
        answer_trainer(tmp_path, AnswerProbability(VeriFreeConfig()), num_iterations=2)


def test_answer_that_is_too_long_is_refused_by_row_before_training_and_never_cut(tmp_path):
    with pytest.raises(UserError, match=r"row programs/train/0/\d+: the reference answer has more than 2 tokens"):
        answer_trainer(tmp_path, AnswerProbability(VeriFreeConfig(max_answer_tokens=2)))
    answer_trainer(tmp_path, AnswerProbability(VeriFreeConfig(max_answer_tokens=3)))
    stream = answers().to_iterable_dataset()
    trainer = answer_trainer(tmp_path, MeanProbability(RLPRConfig(max_answer_tokens=2)), data=stream)
    with pytest.raises(UserError, match="more than 2 tokens"):
        trainer.train()


def test_settings_of_another_method_are_refused(tmp_path):
    args = AnswerProbability.arguments(str(tmp_path), **TINY)
    with pytest.raises(UserError, match="the reward verifree takes VeriFreeConfig, not RLPConfig"):
        ThinkGRPOTrainer(
            str(PROGRAMS_MODEL), args, rlp=RLPConfig(), reward_funcs=[AnswerProbability()], train_dataset=answers()
        )


@pytest.mark.parametrize("reward", [AnswerProbability(VeriFreeConfig()), MeanProbability(RLPRConfig())])
def test_f15_row_without_an_answer_is_unscorable_and_no_0(tmp_path, reward):
    data = answers().map(lambda row, i: {"target": "" if i % 2 else row["target"]}, with_indices=True)
    trainer = answer_trainer(tmp_path, reward, data=data, per_device_train_batch_size=32)
    trainer.train()
    name = reward.__name__
    assert 0 < logs(trainer, f"{name}/unscorable/no_target_tokens")[0] < 1
    paid = reward.reward(reward.batch[2])
    missing = [row["target"] == "" for row in reward.batch[0]]
    assert any(missing) and not all(missing)
    assert all(value is None for value, gone in zip(paid, missing, strict=True) if gone)
    assert any(value is not None for value in paid)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_f06_an_evaluation_in_small_batches_does_not_end_a_run(tmp_path):
    """Ten batches of one group each; those without an answer are unscorable."""
    config = VeriFreeConfig(answer_term=False, max_failed_steps=2)
    sizes = {"num_generations_eval": 1, "per_device_eval_batch_size": 1}
    trainer = answer_trainer(tmp_path, AnswerProbability(config), max_steps=1, **sizes)
    trainer.train()
    found = trainer.evaluate(answers(10).map(lambda row, i: {"target": row["target"] if i else ""}, with_indices=True))
    assert found["eval_verifree/unscorable"] == pytest.approx(0.1)
    found = trainer.evaluate(answers(10).map(lambda row: {"target": ""}))
    assert found["eval_verifree/unscorable"] == 1.0


# --- RLPR under TRL -------------------------------------------------------------------------------------------------


def test_rlpr_pays_the_clipped_difference_of_mean_probabilities(tmp_path):
    reward = MeanProbability(RLPRConfig(baseline="live", answer_prefix=" b=a", std_filter=None))
    trainer = answer_trainer(tmp_path, reward, max_steps=1, learning_rate=0.0, per_device_train_batch_size=16)
    trainer.train()
    model, (kept, rollouts, gains) = trainer.model.eval(), reward.batch
    paid, wanted = reward.reward(gains), []
    for row, rollout in zip(kept, rollouts, strict=True):
        with_it = statistics.fmean(direct(model, rollout.prompt + rollout.thought.ids, rollout.target))
        question = tuple(trainer._tokenizer(row["context"] + " b=a")["input_ids"])
        without = statistics.fmean(direct(model, question, rollout.target))
        wanted.append(min(1.0, max(0.0, with_it - without)))
    scored = [(one, other) for one, other in zip(paid, wanted, strict=True) if one is not None]
    assert len(scored) > 4
    assert [one for one, _ in scored] == pytest.approx([other for _, other in scored], abs=1e-5)
    assert 0.0 in paid or logs(trainer, "rlpr/reward_clipped")[0] == 0.0
    assert any(value and value > 0 for value in paid)


def test_rlpr_frozen_start_stays_where_it_was(tmp_path):
    reward = MeanProbability(RLPRConfig(std_filter=None))
    trainer = answer_trainer(tmp_path, reward, data=answers(2), max_steps=6, learning_rate=5e-3)
    trainer.train()
    start = load_model(str(PROGRAMS_MODEL))
    _, rollouts, gains = reward.batch
    without = [statistics.fmean(direct(start, r.context, r.target)) for r in rollouts]
    assert gains.column("baseline").tolist() == pytest.approx(without, abs=1e-5)
    now = [statistics.fmean(direct(trainer.model.eval(), r.context, r.target)) for r in rollouts]
    assert max(abs(one - other) for one, other in zip(now, without, strict=True)) > 1e-3


def test_rlpr_left_out_prompts_have_no_advantage_and_are_no_unscorable_ones(tmp_path):
    config = RLPRConfig(std_filter=1.0, std_decay=0.5, std_filter_start=1)
    reward = MeanProbability(config)
    trainer = answer_trainer(tmp_path, reward, per_device_train_batch_size=32, max_steps=3, learning_rate=0.0)
    steps = []
    settle = reward.settle

    def spy():
        settle()
        steps.append((rlpr.group_std(reward.paid(reward.last), 4), reward._left_out.view(-1, 4)[:, 0].clone()))

    reward.settle = spy
    seen = []
    original = ThinkGRPOTrainer._generate_and_score_completions

    def outputs(inputs):
        output = original(trainer, inputs)
        seen.append(output["advantages"].view(-1, 4))
        return output

    trainer._generate_and_score_completions = outputs
    trainer.train()
    average = None
    for number, (std, left_out) in enumerate(steps, start=1):
        now = statistics.fmean(x for x in std.tolist() if x == x)
        average = now if average is None else 0.5 * average + 0.5 * now
        wanted = [number > 1 and x == x and x < average for x in std.tolist()]
        assert left_out.tolist() == wanted
        assert not seen[number - 1][left_out].any()
        assert seen[number - 1][~left_out & (std > 0)].abs().amax(-1).gt(0).all()
    assert any(left.any() and not left.all() for _, left in steps[1:])
    assert logs(trainer, "rlpr/left_out") == pytest.approx([float(left.float().mean()) for _, left in steps])
    assert logs(trainer, "rlpr/std_average")[-1] == pytest.approx(average, rel=1e-5)
    assert logs(trainer, "rlpr/unscorable")[0] < 0.3


def test_rlpr_advantage_is_that_of_the_stock_trainer(tmp_path):
    found = []
    for kind in ("think", "stock"):
        reward = MeanProbability(RLPRConfig(std_filter=None, score_noise_share=0.0))
        make = answer_trainer if kind == "think" else stock_answer_trainer
        trainer = make(tmp_path / kind, reward, max_steps=1)
        trainer.train()
        found.append(list(trainer._logs["advantages"]))
    assert any(found[0])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_rlpr_evaluation_leaves_the_moving_average_alone_and_nothing_out(tmp_path):
    reward = MeanProbability(RLPRConfig(std_filter=9.0, std_filter_start=0))
    trainer = answer_trainer(tmp_path, reward, max_steps=1)
    trainer.train()
    before = reward.filter
    assert before.steps == 1
    result = trainer.evaluate(answers(8))
    assert reward.filter == before
    assert result["eval_rewards/rlpr/mean"] == pytest.approx(result["eval_rlpr/reward"])
    assert "eval_rlpr/left_out" not in result


def test_f19_f20_rlpr_resumes_with_the_moving_average_of_its_checkpoint(tmp_path):
    config = RLPRConfig(std_decay=0.5, std_filter_start=1)
    given = {"save_strategy": "steps", "save_steps": 2}
    whole = answer_trainer(tmp_path / "whole", MeanProbability(config), max_steps=4, **given)
    whole.train()
    other = answer_trainer(tmp_path / "other", MeanProbability(config), max_steps=4, **given)
    other.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert logs(other, "rlpr/std_average")[-2:] == logs(whole, "rlpr/std_average")[-2:]
    assert same(weights(whole), weights(other))
    assert other.information_gain.filter == whole.information_gain.filter
    (tmp_path / "whole/checkpoint-2/rl_think/rlpr.json").unlink()
    third = answer_trainer(tmp_path / "third", MeanProbability(config), max_steps=4, **given)
    with pytest.raises(UserError, match=r"rlpr\.json: the moving average of RLPR's filter cannot be read"):
        third.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))


# --- RPT under TRL --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    return str(save_text_model(tmp_path_factory.mktemp("text") / "model", 32, 1))


SAID = [
    "hm</think>\\boxed{ the}",
    "hm</think>\\boxed{ the th}",
    "hm</think>\\boxed{the}",
    "hm \\boxed{ the}",
    "hm</think>\\boxed{ the} or \\boxed{ the thé}",
    "hm</think> the",
    "",
    "hm</think>\\boxed{ the thé 中}",
]


def next_token_rows(folder: str, ids: bool = True, n: int = 8) -> Dataset:
    tokenizer = load_tokenizer(folder)
    target = " the thé 中"
    row = {"prompt": "It was<think>", "target": target}
    if ids:
        row["target_ids"] = tokenizer(target)["input_ids"]
    return Dataset.from_list([{"id": f"r{i}", **row} for i in range(n)])


def rpt_trainer(out, folder, config=None, data=None, said=SAID, **settings):
    """A real trainer whose sampler says what is given."""
    args = trl.GRPOConfig(str(out), **{**TINY, "max_steps": 1, "num_generations": 8, **settings})
    reward = PrefixMatch(config or RPTConfig())
    trainer = trl.GRPOTrainer(folder, reward, args=args, train_dataset=data or next_token_rows(folder))
    if said:
        end = trainer._tokenizer.eos_token_id
        texts = itertools.cycle(said)
        trainer._generate_single_turn = lambda prompt_ids, *args, **kwargs: (
            [[*trainer._tokenizer(next(texts))["input_ids"], end] for _ in prompt_ids],
            None,
        )
    return trainer


def paid_by(trainer) -> list[float | None]:
    reward, found = trainer.reward_funcs[0], []
    call = type(reward).__call__

    class Spy(type(reward)):
        def __call__(self, *args, **kwargs):
            found.extend(call(self, *args, **kwargs))
            return found[-len(args[0] if args else kwargs["prompts"]) :]

    reward.__class__ = Spy
    trainer.train()
    return found


def test_rpt_pays_by_bytes_and_boundaries_through_the_real_trainer(tmp_path, text_folder):
    tokenizer = load_tokenizer(text_folder)
    ends = list(itertools.accumulate(len(p) for p in token_bytes(tokenizer, tokenizer(" the thé 中")["input_ids"])))
    assert 4 in ends and len(" the thé 中".encode()) == ends[-1]
    trainer = rpt_trainer(tmp_path, text_folder)
    assert paid_by(trainer) == [1.0, float(7 in ends), 0.0, 0.0, float(9 in ends), 0.0, 0.0, 1.0]
    assert logs(trainer, "rpt/predicted") == [5 / 8]
    assert logs(trainer, "rpt/prefix") == pytest.approx([4 / 5])
    assert logs(trainer, "rpt/reward") == logs(trainer, "rewards/rpt/mean")
    kept = json.loads((tmp_path / "rl_think/run.json").read_text())
    assert kept["method"] == "rpt"


def test_rpt_ids_and_text_of_the_same_continuation_pay_the_same(tmp_path, text_folder):
    by_ids = paid_by(rpt_trainer(tmp_path / "a", text_folder))
    by_text = paid_by(rpt_trainer(tmp_path / "b", text_folder, data=next_token_rows(text_folder, ids=False)))
    assert by_ids == by_text


def test_rpt_continuation_ends_at_its_longest_and_at_an_end_of_text(tmp_path, text_folder):
    short = paid_by(rpt_trainer(tmp_path / "a", text_folder, RPTConfig(num_target_tokens=1)))
    assert short == [1.0, *[0.0] * 7]
    tokenizer = load_tokenizer(text_folder)
    ids = tokenizer(" the")["input_ids"]
    data = next_token_rows(text_folder).map(lambda row: {"target_ids": [*ids, tokenizer.eos_token_id, *ids]})
    said = ["</think>\\boxed{ the}", "</think>\\boxed{ the<eos>}", "</think>\\boxed{ the the}", *SAID[5:], *SAID[5:7]]
    assert paid_by(rpt_trainer(tmp_path / "b", text_folder, data=data, said=said)) == [1.0, *[0.0] * 7]


def test_rpt_output_without_a_prediction_is_as_the_settings_say(tmp_path, text_folder):
    found = paid_by(rpt_trainer(tmp_path, text_folder, RPTConfig(malformed="unscorable")))
    assert [value is None for value in found] == [False, False, False, True, False, True, True, False]


def test_f06_rpt_steps_without_a_scorable_sample_end_the_run(tmp_path, text_folder):
    config, untagged = RPTConfig(malformed="unscorable", max_failed_steps=2), ["hm", "</think> the"]
    with pytest.raises(UserError, match=r"no sample was scorable in 2 steps in a row: .*malformed: unscorable"):
        rpt_trainer(tmp_path / "a", text_folder, config, said=untagged, max_steps=5).train()
    wrong = RPTConfig(malformed="zero", max_failed_steps=1)
    rpt_trainer(tmp_path / "b", text_folder, wrong, said=untagged, max_steps=2).train()


def test_rpt_row_without_a_target_is_none_and_a_broken_one_is_named(tmp_path, text_folder):
    empty = next_token_rows(text_folder).map(lambda row: {"target_ids": []})
    assert paid_by(rpt_trainer(tmp_path / "a", text_folder, data=empty)) == [None] * 8
    gone = next_token_rows(text_folder).remove_columns(["target", "target_ids"])
    with pytest.raises(UserError, match=r"row r\d: no column `target_ids` \(a list\) or `target` \(text\); there are"):
        rpt_trainer(tmp_path / "b", text_folder, data=gone).train()
    foreign = next_token_rows(text_folder).map(lambda row: {"target_ids": [99_999]})
    with pytest.raises(UserError, match=r"row r\d: token 99999 is unknown"):
        rpt_trainer(tmp_path / "c", text_folder, data=foreign).train()


def test_rpt_sampler_that_stops_at_the_closing_tag_is_refused(tmp_path, text_folder):
    with pytest.raises(UserError, match=r"would stop at </think>, and RPT's prediction stands behind it"):
        rpt_trainer(tmp_path, str(PROGRAMS_MODEL), data=rows(), said=None).train()


def test_rpt_closing_tag_that_is_a_special_token_is_seen(tmp_path, text_folder):
    shutil.copytree(text_folder, tmp_path / "model")
    tokenizer = load_tokenizer(text_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = rpt_trainer(tmp_path / "out", str(tmp_path / "model"))
    assert "</think>" not in trainer._tokenizer.decode(
        trainer._tokenizer("</think>")["input_ids"], skip_special_tokens=True
    )
    assert paid_by(trainer)[0] == 1.0


def test_rpt_chats_are_prompts_too(tmp_path, text_folder):
    data = next_token_rows(text_folder).map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    trainer = rpt_trainer(tmp_path, text_folder, data=data)
    trainer._tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert paid_by(trainer)[0] == 1.0


def test_f13_empty_batches_are_empty():
    assert PrefixMatch(RPTConfig())([], [], []) == []
    assert AnswerProbability(VeriFreeConfig())([], [], []) == []


def test_the_ready_objects_are_the_named_ones():
    for name, kind in (("rpt", PrefixMatch), ("verifree", AnswerProbability), ("rlpr", MeanProbability)):
        assert type(getattr(door, name)) is kind
        assert getattr(door, name).__name__ == name
        assert not (Path(door.__file__).parent / f"{name}.py").exists()


# --- out of one file ------------------------------------------------------------------------------------------------

RUN = {"model_name_or_path": str(PROGRAMS_MODEL), "dtype": "float32", "dataset_name": "recipes/rlp/tiny/data"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["verifree", "rlpr", "rpt"])
def test_a_run_by_yaml(tmp_path, method, text_folder, capsys):
    run = {**RUN, **TINY, "max_steps": 2, "output_dir": str(tmp_path / "out"), "rl_think": {method: None}}
    if method == "rpt":
        data = tmp_path / "data"
        data.mkdir()
        next_token_rows(text_folder).to_parquet(data / "train.parquet")
        run |= {"model_name_or_path": text_folder, "dataset_name": str(data)}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    assert cli.main(["train", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{method.upper()} settings" in said
    assert "report: " in said
    log = [json.loads(line) for line in (tmp_path / "out/rl_think/log.jsonl").read_text().splitlines()]
    assert f"{method}/reward" in log[0]
    assert json.loads((tmp_path / "out/rl_think/run.json").read_text())["method"] == method


@pytest.mark.slow
@pytest.mark.parametrize("method", ["verifree", "rlpr"])
def test_two_processes_keep_one_policy(tmp_path, method):
    """What a process adds to the loss reaches the others' weights, and all leave the same prompts out."""
    given = {"rlpr": {"std_filter_start": 1}, "verifree": None}
    run = {**RUN, **TINY, "max_steps": 3, "output_dir": str(tmp_path / "out"), "gradient_accumulation_steps": 2}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run | {"rl_think": {method: given[method]}}))
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "rl_think_ext.cli.train"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command, "--config", str(path)], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept = [json.loads((tmp_path / f"out/rl_think/checksums.rank{rank}.json").read_text()) for rank in (0, 1)]
    assert kept[0] == kept[1]
    log = [json.loads(line) for line in (tmp_path / "out/rl_think/log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(entry["grad_norm"]) for entry in log if "grad_norm" in entry)


@pytest.mark.parametrize("method", ["verifree", "rlpr", "rpt"])
def test_doctor_says_what_it_does_not_look_at(tmp_path, method, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**RUN, **TINY, "output_dir": str(tmp_path), "rl_think": {method: None}}))
    assert cli.main(["doctor", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Of {method} tags, stops, dataset and rows are looked at only when" in said
    assert cli.main(["doctor", "--live", str(path)]) == 1
    assert f"is a run of {method}" in capsys.readouterr().err
    path.write_text(path.read_text().replace(f"{method}: null", f"{method}: {{max_failed: 3}}"))
    assert cli.main(["doctor", str(path)]) == 1
