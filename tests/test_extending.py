"""The rewards of docs/extending.md pay what the page says; the page's own files are imported, none is copied here."""

import importlib.util

import pytest
import torch
from docs_runner import ROOT, blocks

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig, group_advantage
from rl_think_ext.scoring.gain import FIELDS, Gains
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import rl_rows
from rl_think_ext.trl import InformationGain, ThinkGRPOConfig, ThinkGRPOTrainer

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

SETTINGS = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture
def page(tmp_path):
    """The files that the page shows, as modules by name."""
    modules = {}
    for block in blocks(ROOT / "docs/extending.md"):
        if block.language == "python" and block.file:
            path = tmp_path / block.file
            path.write_text(block.text)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            modules[path.stem] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[path.stem])
    return modules


class Seen:
    """A reward that does not apply anywhere and keeps what it was shown."""

    __name__ = "seen"

    def __init__(self):
        self.lengths = []

    def __call__(self, completion_ids, **columns):
        self.lengths += [len(ids) for ids in completion_ids]
        return [None] * len(completion_ids)


def rows():
    return Dataset.from_list([dict(row) for row in rl_rows(0, 64)])


def think(out, rewards, weights, closing="unscorable", **changes):
    args = ThinkGRPOConfig(str(out), **{**SETTINGS, "reward_weights": weights, **changes})
    return ThinkGRPOTrainer(
        str(PROGRAMS_MODEL),
        args,
        rlp=RLPConfig(closing=closing),
        reward_funcs=rewards,
        train_dataset=rows(),
        eval_dataset=rows(),
    )


def column(trainer, name):
    return torch.tensor(list(trainer._logs["rewards"][name]))


def gain_and_length(trainer):
    gains = trainer.information_gain.last
    return gains.column("gain"), gains.column("length")


def test_gain_per_token_is_the_gain_by_the_sampled_tokens(tmp_path, page):
    seen = Seen()
    trainer = think(tmp_path, [page["my_rewards"].GainPerToken(), seen], [1.0, 1.0])
    trainer.train()
    gain, length = gain_and_length(trainer)
    paid = column(trainer, "gain_per_token")[-8:]
    assert length.tolist() == seen.lengths[-8:]
    assert 0 < paid.isnan().sum() < 8, "scorable and unscorable thoughts both have to occur"
    assert torch.allclose(paid, gain / torch.tensor(seen.lengths[-8:]), atol=1e-6, equal_nan=True)
    advantages = torch.tensor(list(trainer._logs["advantages"]))[-8:]
    assert torch.allclose(advantages, group_advantage(paid, 4), atol=1e-5)


def test_likeliest_is_1_where_the_target_is_the_likeliest_token(tmp_path, page):
    trainer = think(tmp_path, [page["my_rewards"].likeliest], [1.0], max_completion_length=20)
    trainer.train()
    paid, gains = column(trainer, "likeliest")[-8:], trainer.information_gain.last
    assert paid.isnan().equal(gains.column("accuracy").isnan())
    assert paid.isnan().equal(gains.column("gain").isnan())
    # Whatever is likeliest has at least the share of one entry of the vocabulary.
    assert (gains.column("reasoned")[paid == 1] > -torch.tensor(80.0).log()).all()
    assert set(paid[~paid.isnan()].tolist()) <= {0.0, 1.0}


def test_own_reward_is_of_the_batch_that_is_evaluated(tmp_path, page):
    trainer = think(tmp_path, [page["my_rewards"].GainPerToken()], [1.0], per_device_eval_batch_size=8)
    trainer.train()
    trainer.evaluate(rows().select(range(2)))
    gain, length = gain_and_length(trainer)
    assert torch.allclose(column(trainer, "gain_per_token")[-8:], gain / length, atol=1e-6, equal_nan=True)


def test_gain_per_token_of_the_stock_trainer(tmp_path, page):
    reward = page["my_rewards"].GainPerToken(RLPConfig())
    args = trl.GRPOConfig(str(tmp_path), **SETTINGS, loss_type="grpo", scale_rewards="none")
    trainer = trl.GRPOTrainer(str(PROGRAMS_MODEL), [reward], args=args, train_dataset=rows())
    trainer.train()
    paid, gains = column(trainer, "gain_per_token")[-8:], reward.last
    assert torch.allclose(paid, gains.column("gain") / gains.column("length"), atol=1e-6, equal_nan=True)


def test_two_rewards_that_both_score_every_thought_are_refused(tmp_path, page):
    both = [page["my_rewards"].gain_per_token, page["my_rewards"].likeliest]
    with pytest.raises(UserError, match="gain_per_token, likeliest each score every thought; give one"):
        think(tmp_path, both, [1.0, 1.0])


def test_settings_of_ones_own_that_are_not_the_trainers_are_refused(tmp_path, page):
    own = page["my_rewards"].GainPerToken(RLPConfig(num_target_tokens=2))
    with pytest.raises(UserError, match="gain_per_token has settings of its own"):
        think(tmp_path, [own], [1.0])


def test_own_reward_that_is_not_the_first_is_refused_because_weights_would_swap(tmp_path, page):
    with pytest.raises(UserError, match="put gain_per_token first, and its weight too"):
        think(tmp_path, [Seen(), page["my_rewards"].gain_per_token], [0.01, 1.0])


def test_settings_given_to_one_trainer_are_not_those_of_the_next(tmp_path, monkeypatch):
    reward = InformationGain()
    args = ThinkGRPOConfig(str(tmp_path / "a"), **SETTINGS)
    first = RLPConfig(baseline="none")
    ThinkGRPOTrainer(str(PROGRAMS_MODEL), args, rlp=first, reward_funcs=reward, train_dataset=rows())
    assert (reward.config, reward.source) == (first, "given in code")
    monkeypatch.setenv("RL_THINK_CONFIG", "rlp: {baseline: live}")
    args = trl.GRPOConfig(str(tmp_path / "b"), **SETTINGS, loss_type="grpo", scale_rewards="none")
    trl.GRPOTrainer(str(PROGRAMS_MODEL), [reward], args=args, train_dataset=rows()).train()
    assert reward.config.baseline == "live"


def test_f47_own_reward_of_scores_that_differ_by_noise_has_no_advantage(tmp_path, page):
    trainer = think(tmp_path, [page["my_rewards"].GainPerToken()], [1.0], max_steps=1)
    trainer.train()
    gains = trainer.information_gain.last
    table = gains.table.clone()
    paid = torch.tensor([0.10, 0.20, 0.30, float("nan"), 1.0, 2.0, 3.0, 4.0])
    table[:, FIELDS.index("reasoned")] = torch.tensor([0.0, 0.001, 0.002, float("nan"), 0.0, 0.5, 1.0, 2.0])
    trainer.information_gain.last, trainer._rewards = Gains(table, 0.01), paid[:, None]
    trainer.model.train()
    advantages = trainer._advantages()
    assert advantages[:4].tolist() == [0.0] * 4
    assert torch.allclose(advantages[4:], group_advantage(paid[4:], 4))


def test_alarm_of_the_page_is_said_once(tmp_path, page):
    trainer = think(tmp_path, [], [1.0], closing="append", max_completion_length=2, max_steps=3)
    trainer.add_callback(page["my_alarms"].CutOff())
    trainer.train()
    said = (tmp_path / "rl_think/alarms.jsonl").read_text().splitlines()
    assert len([line for line in said if "raise max_completion_length" in line]) == 1
