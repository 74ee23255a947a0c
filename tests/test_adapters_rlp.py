"""The same 200 thoughts, good and broken, by the equations alone, under TRL and verl: one reward, one advantage."""

import copy
import random
from types import SimpleNamespace

import hydra
import pytest
import torch
from fake_workers import Queue, Workers
from transformers import AutoTokenizer, Qwen3ForCausalLM

from rl_think_ext.data.reader import Reader
from rl_think_ext.methods.rlp import RLPConfig, group_advantage
from rl_think_ext.scoring.gain import REASONS, GainScorer
from rl_think_ext.scoring.likelihood import Likelihood
from rl_think_ext.template import TagIds
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import rl_rows

SIZE, NUM, LIMIT = 8, 200, 12
EOS, OPEN, CLOSE = 1, 2, 3
POSITIONS = 64
SETTINGS = {
    "appended": {"closing": "append"},
    "unscorable": {"closing": "unscorable"},
    "two targets": {"num_target_tokens": 2, "aggregate": "mean"},
}


@pytest.fixture(scope="module")
def model():
    """In float64: the ways pad and batch differently, and 1e-6 is one rounding of these log-probs in float32."""
    return Qwen3ForCausalLM.from_pretrained(PROGRAMS_MODEL, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PROGRAMS_MODEL)


@pytest.fixture(scope="module")
def rows():
    """25 rows; one has no target, and one group will have one thought that can be scored."""
    found = [{**row, "id": f"row-{i}"} for i, row in enumerate(rl_rows(0, NUM // SIZE))]
    found[3]["target"] = ""
    return found


@pytest.fixture(scope="module")
def thoughts(tokenizer):
    """Closed and open, empty, with an end of text, with further tags, as long as the limit."""
    draw = random.Random(0)

    def plain(num):
        return [draw.randrange(6, len(tokenizer)) for _ in range(num)]

    kinds = (
        lambda: [*plain(draw.randrange(1, 9)), CLOSE],
        lambda: [*plain(draw.randrange(1, 9)), CLOSE],
        lambda: plain(LIMIT),
        lambda: [CLOSE],
        lambda: [*plain(3), EOS],
        lambda: [*plain(2), OPEN, *plain(2), CLOSE],
        lambda: [EOS],
        lambda: [*plain(1), CLOSE],
    )
    found = [kinds[i % len(kinds)]() for i in range(NUM)]
    for i in range(5 * SIZE, 6 * SIZE - 1):
        found[i] = [CLOSE]
    return found


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def settings(request):
    return RLPConfig(baseline="live", frozen_gain=False, score_noise_share=0.0, **request.param)


def reader_of(tokenizer, settings):
    return Reader(tokenizer, settings, TagIds.of(tokenizer))


@pytest.fixture
def core(model, tokenizer, rows, thoughts, settings):
    """Rewards by the equations alone, [200], NaN where there is none, and eq. 7 of them."""
    read = reader_of(tokenizer, settings)
    rollouts = [read.rollout(rows[i // SIZE], ids, [EOS, CLOSE], f"row {i}") for i, ids in enumerate(thoughts)]
    scorer = GainScorer(settings, Likelihood(model, tokenizer.pad_token_id), TagIds.of(tokenizer), max_length=POSITIONS)
    scores = scorer(rollouts).scores()
    reasons = {score.reason for score in scores}
    assert reasons >= {None, REASONS[0], REASONS[1]}
    assert (REASONS[2] in reasons) == (settings.closing == "unscorable")
    rewards = torch.tensor([float("nan") if score.value is None else score.value for score in scores])
    return rewards, group_advantage(rewards, SIZE)


@pytest.fixture
def under_trl(tmp_path, model, rows, thoughts, settings):
    """Rewards and advantages of TRL's real trainer, whose sampler writes the stored thoughts."""
    from datasets import Dataset

    from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer

    class Scripted(ThinkGRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            return copy.deepcopy(thoughts), None

    args = ThinkGRPOConfig(
        str(tmp_path), per_device_train_batch_size=NUM, num_generations=SIZE, max_completion_length=LIMIT, max_steps=1,
        bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_steps=1,
    )  # fmt: skip
    trainer = Scripted(copy.deepcopy(model), args, rlp=settings, train_dataset=Dataset.from_list(rows))
    trainer.model.train()
    found = trainer._generate_and_score_completions([dict(row) for row in rows for _ in range(SIZE)])
    return trainer.information_gain.last.column("gain"), found["advantages"]


def stored(rows, thoughts, read):
    """The 200 samples as verl's agent loop leaves them in the queue."""
    found = {}
    for i, ids in enumerate(thoughts):
        row = rows[i // SIZE]
        context = read.context(row, "row")
        kept = {"prompt_ids": list(read.prompt(row, context, "row")), "context_ids": list(context)}
        target = list(read.target(row, "row"))
        mask = torch.ones(len(ids), dtype=torch.int64)
        found[f"g{i // SIZE}_{i % SIZE}_0"] = {
            "uid": f"g{i // SIZE}", "prompts": torch.tensor(kept["prompt_ids"]), "responses": torch.tensor(ids),
            "response_mask": mask, "loss_mask": mask, "rollout_log_probs": torch.zeros(len(ids)),
            "extra_fields": {"turn_scores": []},
            "think_row": {**row, **kept, "where": row["id"], "target_ids": target, "all_target_ids": target},
        }  # fmt: skip
    return found


@pytest.fixture
def under_verl(model, tokenizer, rows, thoughts, settings, monkeypatch):
    """A function from an estimator to rewards and advantages of verl's own code behind our trainer."""
    from verl.trainer.ppo.v1 import trainer_base

    from rl_think_ext.verl import resolved, rlp_trainer, trainer
    from rl_think_ext.verl.likelihood import RemoteLikelihood

    read = reader_of(tokenizer, settings)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        places = ["hydra.searchpath=[pkg://rl_think_ext.verl.config]", "+rl_think=rlp"]
        config = hydra.compose("ppo_trainer", [*places, f"actor_rollout_ref.rollout.n={SIZE}"])

    def run(estimator):
        rows_there = stored(rows, thoughts, read)
        order = list(rows_there)
        random.Random(1).shuffle(order)
        queue = Queue({key: rows_there[key] for key in order})
        for module in (trainer_base, trainer, rlp_trainer):
            monkeypatch.setattr(module, "tq", queue)
        made = object.__new__(rlp_trainer.RLPTrainer)
        made.config, made.tokenizer, made.global_steps = copy.deepcopy(config), tokenizer, 1
        made.config.algorithm.adv_estimator = estimator
        made.settings, made.door, made.tags, made.reader = settings, resolved.DoorConfig(), read.tags, read
        made._ends, made._finished, made._failed = [EOS, CLOSE], 0.0, 0
        made.scores, made.columns, made._quiet = {}, {}, []
        made.actor_rollout_wg = SimpleNamespace(think_state=lambda: [{"policy_checksum": 1.0}])
        made.likelihood = RemoteLikelihood(Workers(model, 2), 2, 512, POSITIONS)
        made.scorer = GainScorer(settings, made.likelihood, read.tags, max_length=POSITIONS)
        batch = made._compute_old_log_prob(queue.batch(), {})
        made._compute_advantage(batch, {})
        values = [made.scores[key].value for key in rows_there]
        rewards = torch.tensor([float("nan") if value is None else value for value in values])
        return rewards, torch.stack([of_a_row(queue.rows[key]) for key in rows_there])

    return run


def of_a_row(row):
    """The one advantage of a sample's tokens; 0 where none is trained."""
    trained = row["advantages"][row["response_mask"] > 0]
    assert not len(trained) or bool((trained == trained[0]).all())
    return trained[0] if len(trained) else torch.tensor(0.0)


def same(one, other):
    assert torch.equal(one.isnan(), other.isnan())
    torch.testing.assert_close(one.nan_to_num(), other.nan_to_num(), rtol=0, atol=1e-6)


def test_rewards_and_advantages_are_the_same_by_all_three_ways(core, under_trl, under_verl):
    rewards, advantages = core
    assert not advantages[5 * SIZE : 6 * SIZE].any() and int((advantages != 0).sum()) > NUM // 3
    same(under_trl[0], rewards)
    same(under_trl[1], advantages)
    for estimator in ("rlp", "rloo"):
        found, verls = under_verl(estimator)
        same(found, rewards)
        same(verls, advantages)
