"""The same 200 outputs, good and broken, by the equations alone, under TRL and verl: one reward, one advantage."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
import verl_samples
from judges import answer, prompt_of, quotes
from omegaconf import open_dict
from stub_server import StubServer
from transformers import AutoTokenizer
from trl_runs import save_policy

from rl_think_ext.data.segment_rows import segment_of
from rl_think_ext.methods.rlpt import RLPTConfig, begins, render_asr, render_msr, weighted
from rl_think_ext.scoring.judge import load_judge
from rl_think_ext.scoring.outputs import reader
from rl_think_ext.scoring.prediction import PredictionScorer
from rl_think_ext.verl import resolved

trl = pytest.importorskip("trl")
verl = pytest.importorskip("verl")

SIZE, NUM, LIMIT, LAMBDA = 8, 200, 160, 0.25
CONTEXT = "The clouds were dark all morning. "
SENTENCES = ("It rained on the {} hill.", " Then we ran to the {} house.", " The {} dog was wet and cold.")
WORDS = "green old narrow quiet high steep broad yellow".split()
OPEN, CLOSE = "<|startofprediction|>", "<|endofprediction|>"
FORMS = (
    "So {o} {p} {c}",
    "<think>{o} a draft {c} and more</think>{o}{p}{c}",
    "{o} Something else was said there. {c}",
    "{o} {p} Score: 1 {c}",
    "I would say that it rained.",
    "{o} {p}",
    "{p} {c}",
    "{o}{c}",
    "{o} It {c}",
    "{o} {p} {c} {o} first {c} {o} {p} {c}",
    "{o} \u202e{p}\x00 \U0001f600 {c}",
    "",
)


def rows():
    """25 prompts, ASR and MSR in turn, each with words of its own."""
    found = []
    for i in range(NUM // SIZE):
        segments = [sentence.format(WORDS[i % 8]) for sentence in SENTENCES]
        task, shown = ("msr", segments[1]) if i % 2 else ("asr", "")
        reference = segments[:1] if i % 2 else segments
        prompt = render_msr(CONTEXT, shown) if i % 2 else render_asr(CONTEXT)
        ends = np.cumsum([len(segment) for segment in reference]).tolist()
        found.append(
            {
                "id": f"d:{i}",
                "prompt": [{"role": "user", "content": prompt}],
                "task": task,
                "context": CONTEXT,
                "next_segment": shown,
                "reference": "".join(reference),
                "segment_ends": ends,
            }
        )
    return found


ROWS = rows()


def outputs():
    """25 groups of 8: mixed ones, then one all right, one all wrong, one that nobody can judge."""
    generator = random.Random(7)

    def text(i, form):
        reference = ROWS[i // SIZE]["reference"]
        kept = generator.choice([reference, reference[: len(reference) // 2].rsplit(" ", 1)[0], reference[4:]])
        return form.format(o=OPEN, c=CLOSE, p=kept)

    mixed = [text(i, generator.choice(FORMS[:4] if i % 2 else FORMS)) for i in range(NUM - 3 * SIZE)]
    right = [f"{OPEN} {ROWS[-3]['reference']} {CLOSE}"] * SIZE
    wrong = [text(NUM - 2 * SIZE, FORMS[2])] * SIZE
    lost = [f"{OPEN} Number {i} is what the judge is mute about. {CLOSE}" for i in range(SIZE)]
    return [*mixed, *right, *wrong, *lost]


def verdict(request):
    """The honest verdict, whoever asks and in whatever company; about some pairs no word."""
    reference, prediction = quotes(prompt_of(request))
    if "mute" in prediction or sum(map(ord, prediction)) % 7 == 0:
        return answer("I would rather not say.")
    return answer(f"Score: {int(begins(prediction, reference))}")


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def tokenizer(policy_folder):
    return AutoTokenizer.from_pretrained(policy_folder)


@pytest.fixture(scope="module")
def responses(tokenizer):
    """Ids of the 200 outputs; every seventh ran into the length limit."""
    ids = [tokenizer.encode(text, add_special_tokens=False)[: LIMIT - 1] for text in outputs()]
    filler = tokenizer.encode(" and", add_special_tokens=False)[-1:]
    return [[*row, *([tokenizer.eos_token_id] if i % 7 else filler * (LIMIT - len(row)))] for i, row in enumerate(ids)]


@pytest.fixture(scope="module")
def server():
    with StubServer(verdict) as found:
        yield found


@pytest.fixture(scope="module", params=["zero", "unscorable"])
def settings(request, server):
    given = {"server": server.url, "judge_model": "judge", "retries": 0, "num_canaries": 0, "msr_weight": LAMBDA}
    return RLPTConfig(malformed=request.param, **given)


@pytest.fixture(scope="module")
def core(settings, tokenizer, responses):
    """Rewards by the equations alone, [200] float64, NaN where there is none."""
    read = reader(tokenizer, [tokenizer.eos_token_id], LIMIT)
    segments = [segment_of(ROWS[i // SIZE], "") for i in range(NUM)]
    found = PredictionScorer(settings, load_judge(settings))(segments, [read(ids) for ids in responses])
    scores = found.column("score").double()
    known = scores[~scores.isnan()]
    assert 60 < len(known) < 185 and 30 < int(known.sum()) < len(known) - 30
    assert len(found.column("status").unique()) >= 6
    assert any(str(score.reason).startswith("judge: unparsable") for score in found.scores)
    return scores


def advantages(rewards, factor=False):
    """Lambda (r - mean of the group's scorable), times n / (n - 1) for RLOO; 0 for one alone, and for who has none."""
    groups = rewards.view(-1, SIZE)
    num = (~groups.isnan()).sum(-1, keepdim=True)
    found = (groups - groups.nanmean(-1, keepdim=True)) * (num / (num - 1) if factor else 1)
    found = torch.where((num < 2) | groups.isnan(), 0.0, found)
    weights = torch.tensor([LAMBDA if row["task"] == "msr" else 1.0 for row in ROWS], dtype=torch.float64)
    return (found * weights[:, None]).flatten()


@pytest.fixture
def under_trl(tmp_path, settings, policy_folder, responses):
    """Rewards and advantages of TRL's real trainer, whose sampler writes the stored outputs."""
    from datasets import Dataset

    from rl_think_ext.trl import RLPTGRPOConfig, RLPTTrainer

    class Scripted(RLPTTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            return responses, None

    args = RLPTGRPOConfig(
        str(tmp_path), per_device_train_batch_size=NUM, num_generations=SIZE, max_completion_length=LIMIT,
        scale_rewards="none", max_steps=1, bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none",
        disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    trainer = Scripted(str(policy_folder), args, rlpt=settings, train_dataset=Dataset.from_list(ROWS))
    trainer.model.train()
    found = trainer._generate_and_score_completions([ROWS[i // SIZE] for i in range(NUM)])
    rewards = [np.nan if value is None else value for value in trainer.prediction.paid]
    return torch.tensor(rewards, dtype=torch.float64), found["advantages"].double()


def asked_of_verl(config, tokenizer, responses):
    """What verl's agent loop keeps of the 200 outputs after the reward manager has seen each of them."""
    from rl_think_ext.verl.rlpt_reward import RLPTRewardManager

    manager, samples = RLPTRewardManager(config, tokenizer, None), []
    for i, ids in enumerate(responses):
        row = ROWS[i // SIZE]
        samples.append(verl_samples.of_ids([5, 6], ids, row["prompt"], think_row={**row, "where": f"row {i}"}))
    return verl_samples.kept_by_the_loop(responses, verl_samples.run_all(manager, samples), SIZE)


@pytest.fixture
def under_verl(settings, policy_folder, tokenizer, responses, monkeypatch):
    """A function from an estimator to rewards and advantages of verl's own code behind our trainer."""
    from rl_think_ext.verl.rlpt_trainer import RLPTTrainer

    config = verl_samples.compose_stock("rlpt", "algorithm.norm_adv_by_std_in_grpo=False")
    with open_dict(config):
        config.actor_rollout_ref.model.path = str(policy_folder)
        config.actor_rollout_ref.rollout.response_length = LIMIT
        config.rl_think.rlpt = dataclasses.asdict(settings)
    found, _ = resolved.resolve(config, "rlpt")
    assert found == settings
    stored = asked_of_verl(config, tokenizer, responses)

    def run(estimator):
        return verl_samples.settled_by(RLPTTrainer, config, settings, stored, monkeypatch, estimator)

    return run


def same(one, other):
    assert torch.equal(one.isnan(), other.isnan())
    torch.testing.assert_close(one.nan_to_num(), other.nan_to_num(), rtol=0, atol=1e-6)


def test_rewards_and_advantages_are_the_same_by_all_three_ways(core, under_trl, under_verl):
    same(under_trl[0], core)
    same(under_trl[1], advantages(core))
    for estimator, factor in (("grpo", False), ("rloo", True)):
        rewards, found = under_verl(estimator)
        same(rewards, core)
        same(found, advantages(core, factor))


def test_lambda_is_the_methods_own():
    """What stands in `advantages` above is what the method's equation says."""
    ones, tasks = torch.ones(NUM, dtype=torch.float64), [ROWS[i // SIZE]["task"] for i in range(NUM)]
    rewards = torch.tensor([0.0, 2.0] * (NUM // 2), dtype=torch.float64)
    centred = torch.tensor([-1.0, 1.0] * (NUM // 2), dtype=torch.float64)
    torch.testing.assert_close(advantages(rewards), weighted(ones, tasks, LAMBDA) * centred)
