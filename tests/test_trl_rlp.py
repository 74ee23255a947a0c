"""RLP under TRL's real trainer on the embedded model: rewards, advantages, averages, resume, hazards."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig, group_advantage
from rl_think_ext.scoring.gain import Gains
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.template import CLOSE_TAG
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import rl_rows
from rl_think_ext.trl import InformationGain, ThinkGRPOConfig, ThinkGRPOTrainer
from rl_think_ext.trl.callback import RLPCallback
from rl_think_ext.trl.launch import checkpoint_of

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

TINY = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "save_strategy": "no",
}


def rows(n=64, **columns):
    return Dataset.from_list([{**row, **columns} for row in rl_rows(0, n)])


def think_trainer(out, rlp=None, data=None, model=str(PROGRAMS_MODEL), **settings):
    args = ThinkGRPOConfig(str(out), **{**TINY, "max_steps": 3, **settings})
    return ThinkGRPOTrainer(model, args, rlp=rlp or RLPConfig(), train_dataset=data or rows())


def stock_trainer(out, reward=None, model=str(PROGRAMS_MODEL), **settings):
    values = {**TINY, "max_steps": 3, "loss_type": "grpo", "scale_rewards": "none", **settings}
    reward = reward or InformationGain(RLPConfig())
    return trl.GRPOTrainer(model, reward, args=trl.GRPOConfig(str(out), **values), train_dataset=rows())


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logs(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


# --- the five baselines -------------------------------------------------------------------------------------------

BASELINES = [
    {"baseline": "none"},
    {"baseline": "init"},
    {"baseline": "live"},
    {"baseline": "ema", "ema_decay": 0.9},
    {"baseline": "ema", "ema_decay": 0.999},
]


def test_five_baselines_give_the_same_policy_to_the_bit(tmp_path):
    policies, gains = [], []
    for i, kind in enumerate(BASELINES):
        trainer = think_trainer(tmp_path / str(i), RLPConfig(**kind))
        trainer.train()
        policies.append(weights(trainer))
        gains.append(logs(trainer, "rlp/gain"))
    assert all(same(policies[0], other) for other in policies[1:])
    assert len({tuple(g) for g in gains}) == len(BASELINES), "the baselines are not told apart"


class Replay:
    """The plain reward on completions that were recorded once, so that rounding cannot change what is sampled."""

    def __init__(self, trainer, record):
        self.trainer, self.record, self.calls = trainer, record, 0
        self.original = trainer._generate_single_turn
        trainer._generate_single_turn = self

    def __call__(self, prompt_ids, *args, **kwargs):
        if self.calls == len(self.record):
            self.record.append(self.original(prompt_ids, *args, **kwargs))
        self.calls += 1
        return copy.deepcopy(self.record[self.calls - 1])


def test_five_baselines_agree_to_1e5_through_the_plain_reward(tmp_path):
    record, policies = [], []
    for i, kind in enumerate(BASELINES):
        trainer = stock_trainer(tmp_path / str(i), InformationGain(RLPConfig(**kind)), max_steps=20)
        Replay(trainer, record)
        trainer.train()
        policies.append(torch.cat([p.flatten() for p in weights(trainer).values()]))
    for other in policies[1:]:
        assert (other - policies[0]).norm() / policies[0].norm() < 1e-5


# --- advantage ------------------------------------------------------------------------------------------------------


def test_advantage_is_equation_7_of_the_reasoned_scores(tmp_path):
    trainer = think_trainer(tmp_path, max_steps=1)
    seen = {}
    original = ThinkGRPOTrainer._generate_and_score_completions

    def spy(self, inputs):
        seen["output"] = original(self, inputs)
        return seen["output"]

    trainer._generate_and_score_completions = spy.__get__(trainer)
    trainer.train()
    reasoned = trainer.information_gain.last.column("reasoned").double().reshape(-1, 4)
    expected = (4 / 3 * (reasoned - reasoned.mean(1, keepdim=True))).flatten()
    assert torch.allclose(seen["output"]["advantages"].double(), expected, atol=1e-6)
    assert list(trainer._logs["advantages"]) == seen["output"]["advantages"].tolist()


def test_hazard_15_unscorable_sample_leaves_the_group_and_n_counts_the_rest(tmp_path):
    trainer = think_trainer(tmp_path)
    table = torch.zeros(8, 10)
    table[:, 0] = torch.tensor([1.0, 2.0, 3.0, torch.nan, 5.0, torch.nan, torch.nan, torch.nan])
    trainer.information_gain.last = Gains(table, 0.0)
    trainer._rewards = torch.full((8, 1), 7.0)
    assert trainer._advantages().tolist() == [-1.5, 0.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_other_rewards_join_by_weight(tmp_path):
    def length(completions, **kwargs):
        return [float(len(text)) for text in completions]

    args = ThinkGRPOConfig(str(tmp_path), **{**TINY, "max_steps": 1, "reward_weights": [1.0, 0.5]})
    trainer = ThinkGRPOTrainer(str(PROGRAMS_MODEL), args, rlp=RLPConfig(), reward_funcs=length, train_dataset=rows())
    trainer.train()
    gains = trainer.information_gain.last
    expected = group_advantage(gains.column("reasoned") + 0.5 * trainer._rewards[:, 1], 4, gains.noise)
    assert torch.allclose(torch.tensor(list(trainer._logs["advantages"])), expected, atol=1e-5)


def test_f12_a_reward_that_says_none_to_one_sample_makes_it_unscorable_and_not_0(tmp_path):
    def judge(completions, **kwargs):
        return [None] * len(completions)

    args = ThinkGRPOConfig(str(tmp_path), **{**TINY, "reward_weights": [0.01, 1.0]})
    trainer = ThinkGRPOTrainer(str(PROGRAMS_MODEL), args, rlp=RLPConfig(), reward_funcs=judge, train_dataset=rows())
    table = torch.zeros(8, 10)
    table[:, 0] = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    # The noise is the gain's and counts by its weight: 0.02 * 0.01 is far below these spreads.
    trainer.information_gain.last = Gains(table, 0.02)
    nan = torch.nan
    trainer._rewards = torch.stack([torch.zeros(8), torch.tensor([nan, 0.7, 0.8, 0.9, nan, nan, nan, nan])], dim=1)
    found = trainer._advantages()
    assert torch.allclose(found[:4], torch.tensor([0.0, -0.15, 0.0, 0.15]), atol=1e-6)
    # A reward that applies to no sample of a group leaves the gain alone.
    assert torch.allclose(found[4:], torch.tensor([-0.02, -1 / 150, 1 / 150, 0.02]), atol=1e-6)


def test_stock_trainer_with_further_rewards_is_refused(tmp_path):
    def length(completions, **kwargs):
        return [1.0] * len(completions)

    with pytest.raises(UserError, match="counts an unscorable thought as a gain of 0"):
        stock_trainer(tmp_path, [InformationGain(RLPConfig()), length]).train()


# --- averages -------------------------------------------------------------------------------------------------------


def test_f21_one_ema_update_per_optimizer_step_under_accumulation(tmp_path):
    trainer = think_trainer(tmp_path, gradient_accumulation_steps=2, max_steps=3, num_iterations=2)
    trainer.train()
    assert trainer.information_gain.averages["ema"].updates == 3


def test_f20_six_steps_are_three_plus_resume_plus_three_to_the_bit(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = think_trainer(tmp_path / "whole", RLPConfig(ema_decay=0.9), **settings)
    whole.train()
    half = think_trainer(tmp_path / "half", RLPConfig(ema_decay=0.9), **{**settings, "max_steps": 3})
    half.train()
    resumed = think_trainer(tmp_path / "half", RLPConfig(ema_decay=0.9), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half/checkpoint-3"))
    assert logs(whole, "rlp/gain")[3:] == logs(resumed, "rlp/gain")[-3:]
    assert same(weights(whole), weights(resumed))
    for name in ("ema", "frozen"):
        one, other = whole.information_gain.averages[name], resumed.information_gain.averages[name]
        assert same(one.average, other.average)
        assert one.updates == other.updates == 6


def test_f20_resume_by_true_and_through_the_stock_trainer(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    first = stock_trainer(tmp_path, **settings)
    first.train()
    kept = load_file(tmp_path / "checkpoint-2/rl_think/ema.safetensors")
    second = stock_trainer(tmp_path, **{**settings, "max_steps": 3})
    reward = second.reward_funcs[0]
    seen = []
    reward.bind(second)
    start = reward._start
    reward._start = lambda: (start(), seen.append({k: v.clone() for k, v in reward.averages["ema"].average.items()}))[0]
    second.train(resume_from_checkpoint=True)
    assert same(seen[0], kept)


def run_to_four_and_from_two(tmp_path):
    """The EMA after four steps, and a trainer that stands before its resume from step two."""
    config, settings = RLPConfig(ema_decay=0.5), {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = think_trainer(tmp_path, config, **settings)
    whole.train()
    return whole, think_trainer(tmp_path / "other", config, **settings), str(tmp_path / "checkpoint-2")


def test_f19_resume_of_the_same_trainer_takes_the_checkpoint(tmp_path):
    whole, _, checkpoint = run_to_four_and_from_two(tmp_path)
    ema = {name: value.clone() for name, value in whole.information_gain.averages["ema"].average.items()}
    gains = logs(whole, "rlp/gain")
    whole.train(resume_from_checkpoint=checkpoint)
    assert logs(whole, "rlp/gain")[-2:] == gains[2:]
    assert whole.information_gain.averages["ema"].updates == 4
    assert same(whole.information_gain.averages["ema"].average, ema)


def test_f19_scoring_before_the_resume_does_not_keep_its_averages(tmp_path):
    whole, other, checkpoint = run_to_four_and_from_two(tmp_path)
    other.evaluate(rows(8))
    assert other.information_gain.averages
    other.train(resume_from_checkpoint=checkpoint)
    assert same(other.information_gain.averages["ema"].average, whole.information_gain.averages["ema"].average)


def test_f19_stock_resume_never_takes_the_averages_of_another_run(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    stock_trainer(tmp_path / "a", **settings).train()
    stock_trainer(tmp_path / "b", **settings, seed=7).train()
    trainer = stock_trainer(tmp_path / "b", **{**settings, "max_steps": 3})
    with pytest.raises(UserError, match="belongs to another policy"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))


@pytest.mark.parametrize(("when", "whole"), [("before", "checkpoint-1"), ("after", "checkpoint-2")])
def test_f18_killed_around_the_trainers_own_files_leaves_one_whole_checkpoint(tmp_path, when, whole):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 3}
    trainer = think_trainer(tmp_path, **settings)
    original = trainer._save_checkpoint

    def killed(*args, **kwargs):
        last = trainer.state.global_step == 2
        if not last or when == "after":
            original(*args, **kwargs)  # deletes the older checkpoint at its end
        if last:
            raise KeyboardInterrupt

    trainer._save_checkpoint = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.args.resume_from_checkpoint = "true"
    found = checkpoint_of(trainer.args, RLPConfig().averages)
    assert found == str(tmp_path / whole)
    resumed = think_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=found)
    assert resumed.information_gain.averages["ema"].updates == 3


def test_a_reward_that_goes_back_and_forth_updates_once_a_step(tmp_path):
    reward = InformationGain(RLPConfig())
    first, second = (stock_trainer(tmp_path / name, reward, max_steps=3) for name in "ab")
    first.evaluate(rows(8))
    second.evaluate(rows(8))
    first.train()
    assert reward.averages["ema"].updates == 3


@pytest.mark.parametrize("broken", ["folder", "ema.safetensors", "ema.json", "frozen.safetensors"])
def test_hazard_13_f19_missing_average_raises_and_says_which(tmp_path, broken):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    think_trainer(tmp_path, **settings).train()
    kept = tmp_path / "checkpoint-1/rl_think"
    shutil.rmtree(kept) if broken == "folder" else (kept / broken).unlink()
    with pytest.raises(UserError, match=broken.split(".")[0] if broken != "folder" else "averaged weights"):
        think_trainer(tmp_path, **{**settings, "max_steps": 2}).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_f19_other_decay_raises(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    think_trainer(tmp_path, **settings).train()
    with pytest.raises(UserError, match=r"decay 0\.999, the settings say 0\.9"):
        think_trainer(tmp_path, RLPConfig(ema_decay=0.9), max_steps=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_lora_average_is_of_the_adapter_alone(tmp_path):
    from peft import LoraConfig

    args = ThinkGRPOConfig(str(tmp_path), **{**TINY, "max_steps": 2})
    trainer = ThinkGRPOTrainer(
        str(PROGRAMS_MODEL),
        args,
        rlp=RLPConfig(ema_decay=0.5),
        train_dataset=rows(),
        peft_config=LoraConfig(target_modules=["q_proj"], r=2),
    )
    trainer.train()
    average = trainer.information_gain.averages["ema"].average
    assert average
    assert all("lora_" in name for name in average)
    assert trainer.information_gain.averages["ema"].distance() > 0
    # B starts at zero, so the frozen start is the base model.
    frozen = trainer.information_gain.averages["frozen"].average
    assert all(not v.any() for name, v in frozen.items() if "lora_B" in name)


def test_f20_lora_resumes_to_the_bit(tmp_path):
    from peft import LoraConfig

    def adapted(out, steps):
        args = ThinkGRPOConfig(str(out), **{**TINY, "max_steps": steps, "save_strategy": "steps", "save_steps": 1})
        lora = LoraConfig(target_modules=["q_proj"], r=2)
        return ThinkGRPOTrainer(
            str(PROGRAMS_MODEL), args, rlp=RLPConfig(ema_decay=0.5), train_dataset=rows(), peft_config=lora
        )

    whole, resumed = adapted(tmp_path / "whole", 2), adapted(tmp_path / "other", 2)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-1"))
    assert same(weights(whole), weights(resumed))
    assert same(whole.information_gain.averages["ema"].average, resumed.information_gain.averages["ema"].average)


# --- the host's hazards ---------------------------------------------------------------------------------------------


def test_hazard_1_baseline_is_the_average_and_not_the_policy(tmp_path):
    """A teacher that is a copy of the patched model computes the policy, whatever its own weights are."""
    trainer = think_trainer(tmp_path, max_steps=1)
    reward = trainer.information_gain
    seen = {}

    def scale(scorer):
        def call(rollouts):
            before = scorer(rollouts).column("baseline").clone()
            for value in reward.averages["ema"].average.values():
                value.mul_(1.5)
            seen["change"] = (scorer(rollouts).column("baseline") - before).abs().max()
            return scorer(rollouts)

        return call

    start = reward._start
    reward._start = lambda: scale(start())
    trainer.train()
    assert seen["change"] > 0.01


def test_hazard_2_scores_at_temperature_1_whatever_the_sampling(tmp_path):
    record, values = [], []
    for i, temperature in enumerate((1.0, 0.5)):
        trainer = stock_trainer(tmp_path / str(i), max_steps=1, temperature=temperature)
        Replay(trainer, record)
        trainer.train()
        values.append(trainer.reward_funcs[0].last.column("reasoned"))
    assert torch.equal(values[0], values[1])


def test_hazard_7_the_model_is_back_in_training_mode(tmp_path):
    trainer = think_trainer(tmp_path, max_steps=1)
    modes = []
    original = trainer._calculate_rewards

    def spy(*args, **kwargs):
        found = original(*args, **kwargs)
        modes.append(all(module.training for module in trainer.model.modules()))
        return found

    trainer._calculate_rewards = spy
    trainer.train()
    assert modes == [True]


def test_hazard_9_scoring_builds_no_graph_and_no_cache(tmp_path):
    trainer = think_trainer(tmp_path, max_steps=1)
    seen = []

    def watch(module, args, kwargs, output):
        if "logits_to_keep" in kwargs and "labels" not in kwargs and not trainer.model.training:
            seen.append(
                (output.logits.requires_grad, output.get("past_key_values") is not None, torch.is_grad_enabled())
            )

    calls = trainer._calculate_rewards

    def inside(*args, **kwargs):
        handle = trainer.model.register_forward_hook(watch, with_kwargs=True)
        try:
            return calls(*args, **kwargs)
        finally:
            handle.remove()

    trainer._calculate_rewards = inside
    trainer.train()
    assert seen
    assert all(found == (False, False, False) for found in seen)


def test_hazard_10_rollouts_stop_at_the_closing_tag(tmp_path):
    trainer = think_trainer(tmp_path, max_steps=2, max_completion_length=20)
    close = trainer._tokenizer.convert_tokens_to_ids(CLOSE_TAG)
    found = []
    original = trainer._calculate_rewards

    def spy(inputs, prompts, completions, ids):
        found.extend(ids)
        return original(inputs, prompts, completions, ids)

    trainer._calculate_rewards = spy
    trainer.train()
    closed = [ids for ids in found if close in ids]
    assert closed
    assert all(ids.index(close) == len(ids) - 1 for ids in closed)


def test_hazard_10_stock_trainer_that_would_run_on_is_refused(tmp_path):
    shutil.copytree(PROGRAMS_MODEL, tmp_path / "model")
    path = tmp_path / "model/generation_config.json"
    config = json.loads(path.read_text())
    eos = config["eos_token_id"]
    path.write_text(json.dumps({**config, "eos_token_id": eos[0] if isinstance(eos, list) else eos}))
    with pytest.raises(UserError, match=r"would not stop at </think>.*generation_config\.json"):
        stock_trainer(tmp_path / "out", model=str(tmp_path / "model")).train()
    # The same model under our trainer stops by itself.
    trainer = think_trainer(tmp_path / "ours", model=str(tmp_path / "model"), max_steps=1, max_completion_length=20)
    trainer.train()
    assert logs(trainer, "completions/clipped_ratio")[0] < 1


def test_hazard_18_prefilled_opening_tag_is_no_fault(tmp_path):
    trainer = think_trainer(tmp_path, max_steps=1, max_completion_length=20)
    trainer.train()
    assert logs(trainer, "rlp/unscorable")[0] < 0.2
    assert logs(trainer, "rlp/unscorable/thought_not_opened") == [0.0]


def test_prompts_are_sampled_from_the_very_ids(tmp_path):
    tokenizer = think_trainer(tmp_path)._tokenizer
    data = [
        {
            **row,
            # "aa" is no word: the last two ids do not survive decoding and encoding.
            "context_ids": [*tokenizer(row["context"])["input_ids"], *[tokenizer.convert_tokens_to_ids("a")] * 2],
            "target_ids": tokenizer(row["target"])["input_ids"],
        }
        for row in rl_rows(0, 16)
    ]
    data = [{**row, "context": tokenizer.decode(row["context_ids"])} for row in data]
    data = [{**row, "prompt": row["context"] + "<think>"} for row in data]
    trainer = think_trainer(tmp_path, data=Dataset.from_list(data), max_steps=1)
    seen = []
    original = trainer._generate_single_turn

    def spy(prompt_ids, *args, **kwargs):
        seen.extend(prompt_ids)
        return original(prompt_ids, *args, **kwargs)

    trainer._generate_single_turn = spy
    trainer.train()
    open_id = tokenizer.convert_tokens_to_ids("<think>")
    wanted = {(*row["context_ids"], open_id) for row in data}
    assert seen
    assert all(tuple(ids) in wanted for ids in seen)


def test_eval_uses_its_own_groups_and_leaves_training_alone(tmp_path):
    args = ThinkGRPOConfig(
        str(tmp_path),
        **{**TINY, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2},
        per_device_eval_batch_size=4,
    )
    trainer = ThinkGRPOTrainer(str(PROGRAMS_MODEL), args, rlp=RLPConfig(), train_dataset=rows(), eval_dataset=rows(8))
    trainer.train()
    assert len(logs(trainer, "eval_rlp/gain")) == 2
    assert trainer.information_gain.averages["ema"].updates == 2


def test_thoughts_that_the_policy_opens_itself(tmp_path):
    data = Dataset.from_list([{**row, "prompt": row["context"]} for row in rl_rows(0, 64)])
    trainer = think_trainer(tmp_path, RLPConfig(elicit="generate"), data=data, max_steps=1, max_completion_length=20)
    trainer.train()
    unopened = logs(trainer, "rlp/unscorable/thought_not_opened")[0]
    assert 0 < unopened < 1
    assert logs(trainer, "rlp/unscorable")[0] >= unopened


def test_hazard_4_sharded_weights_are_refused_whatever_the_baseline(tmp_path):
    trainer = stock_trainer(tmp_path, InformationGain(RLPConfig(baseline="live", frozen_gain=False)))
    next(trainer.model.parameters()).ds_id = 0
    with pytest.raises(UserError, match="sharded over processes"):
        trainer.train()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_f33_missing_column_names_row_and_columns(tmp_path):
    data = rows().remove_columns("target")
    with pytest.raises(UserError, match=r"row programs/train/0/\d+: column `target` is missing; there are context"):
        think_trainer(tmp_path, data=data).train()


@pytest.mark.parametrize("ids", [False, True])
def test_context_longer_than_the_model_is_one_sentence_before_training(tmp_path, ids):
    tokenizer = load_tokenizer(str(PROGRAMS_MODEL))
    long = dict(rl_rows(0, 1)[0])
    long["context"] = long["context"] * 12
    long["prompt"] = long["context"] + "<think>"
    data = [*map(dict, rl_rows(1, 100)), {**long, "id": "long"}]
    if ids:
        for row in data:
            row["context_ids"] = tokenizer(row["context"])["input_ids"]
            row["target_ids"] = tokenizer(row["target"])["input_ids"]
    match = (
        r"row long: a prompt of 1\d\d tokens, max_completion_length 12 and 1 more do not fit.*--max-context-tokens 114"
    )
    with pytest.raises(UserError, match=match):
        think_trainer(tmp_path, data=Dataset.from_list(data))


def test_f06_no_scorable_sample_for_several_steps_raises(tmp_path):
    data = rows().map(lambda row: {"target": ""})
    with pytest.raises(UserError, match="no sample was scorable in 2 steps in a row: no target tokens"):
        think_trainer(tmp_path, RLPConfig(max_failed_steps=2), data=data, max_steps=5).train()


def test_f12_infinite_scores_never_reach_the_trainer(tmp_path):
    trainer = think_trainer(tmp_path, max_steps=1)
    reward = trainer.information_gain
    start = reward._start

    def poisoned():
        scorer = start()
        likelihood = scorer.likelihood

        def broken(queries, forbid_first=None):
            scored = likelihood(queries, forbid_first)
            scored.logprob[0, 0] = -torch.inf
            return scored

        scorer.likelihood = broken
        return scorer

    reward._start = poisoned
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert all(abs(a) < 100 for a in trainer._logs["advantages"])
    assert logs(trainer, "rlp/unscorable/score_not_finite")[0] > 0


def test_f13_empty_batch_is_empty():
    assert InformationGain(RLPConfig())([], [], []) == []


def test_reward_cannot_be_sent_to_another_process():
    import pickle

    with pytest.raises(UserError, match="AsyncGRPO"):
        pickle.dumps(InformationGain(RLPConfig()))


def test_f43_binding_twice_changes_nothing(tmp_path):
    trainer = think_trainer(tmp_path)
    before = len(trainer.callback_handler.callbacks)
    trainer.information_gain.bind(trainer)
    assert len(trainer.callback_handler.callbacks) == before


def test_the_ready_object_serves_a_second_trainer_from_the_start(tmp_path):
    reward = InformationGain(RLPConfig())
    first = stock_trainer(tmp_path / "first", reward, max_steps=2)
    first.train()
    used = reward.averages["ema"]
    second = stock_trainer(tmp_path / "second", reward, max_steps=1)
    second.train()
    assert reward.trainer is second
    assert reward.averages["ema"] is not used
    assert (used.updates, reward.averages["ema"].updates) == (2, 1)
    assert logs(second, "rlp/ema_distance") == [0.0]


def test_settings_travel_by_environment_and_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "rlp.yaml"
    path.write_text("rlp:\n  num_target_tokens: 1\n  baseline: live\n")
    monkeypatch.setenv("RL_THINK_CONFIG", str(path))
    trainer = stock_trainer(tmp_path / "out", InformationGain(), max_steps=1)
    trainer.train()
    kept = json.loads((tmp_path / "out/rl_think/settings.json").read_text())
    assert kept["rlp"]["baseline"] == "live"


def test_ranks_with_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda marks: [*marks, "another"])
    with pytest.raises(UserError, match=r"the ranks have different RLP settings \(\w{12}, another\)"):
        think_trainer(tmp_path)


def test_alarms_are_kept_with_the_run(tmp_path):
    trainer = think_trainer(tmp_path)
    watch = next(c for c in trainer.callback_handler.callbacks if isinstance(c, RLPCallback))
    watch.begin_record(trainer.state)
    for step in range(5):
        trainer.state.global_step = step
        watch.on_log(trainer.args, trainer.state, trainer.control, logs={"rlp/zero_variance_groups": 0.95})
    kept = [json.loads(line) for line in (tmp_path / "rl_think/alarms.jsonl").read_text().splitlines()]
    assert [alarm["step"] for alarm in kept] == [2]
    assert kept[0]["alarm"].startswith("95% of the groups")


def test_an_unscorable_sample_is_not_printed(tmp_path, caplog):
    data = rows().map(lambda row: {"target": ""})
    think_trainer(tmp_path, RLPConfig(max_failed_steps=9), data=data, max_steps=1).train()
    assert "All reward functions returned None" not in caplog.text


def test_the_ready_object_is_the_named_one():
    import rl_think_ext.trl as door

    assert isinstance(door.rlp, InformationGain)
    assert door.rlp.__name__ == "rlp"
    assert Path(door.__file__).parent.joinpath("rlp.py").exists() is False
