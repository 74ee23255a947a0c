"""verl's door: registration, settings on their way, and samples without a score."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_queue import FakeQueue
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.records import Score
from rl_think_ext.verl import plugin, resolved, trainer
from rl_think_ext.verl.advantage import group_advantages
from rl_think_ext.verl.trainer import ThinkTrainer, placed

FRAGMENTS = Path(plugin.__file__).parent / "config" / "rl_think"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)


# -- registration ---------------------------------------------------------------------------------------------------


def test_import_verl_brings_our_names_and_nothing_heavy() -> None:
    done = python(
        """
        import sys, verl
        assert "rl_think_ext.verl.plugin" in sys.modules
        heavy = {"verl.trainer.ppo.v1", "rl_think_ext.verl.trainer", "trl", "rl_think_ext.scoring.gain"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        from rl_think_ext.verl import plugin
        found = plugin.report()
        assert not plugin.FAILURES, plugin.FAILURES
        print(sorted(name for names in found.values() for name in names))
        """
    )
    assert done.returncode == 0, done.stderr
    names = ["rl_think_chat", "rl_think_prediction", "rl_think_thought", "rlmt", "rlmt", "rlp", "rlp", "rlpt", "rlpt"]
    assert done.stdout.strip().endswith(str(names))


def test_any_module_of_ours_can_come_first() -> None:
    """Ours import verl's, whose registries then appear while ours are not yet whole."""
    done = python(
        """
        import rl_think_ext.verl.rlmt_reward
        from rl_think_ext.verl import plugin
        assert not plugin.FAILURES, plugin.FAILURES
        """
    )
    assert done.returncode == 0, done.stderr


def test_installing_twice_changes_nothing() -> None:
    plugin.install()
    plugin.install()
    assert sum(isinstance(finder, plugin.AfterImport) for finder in sys.meta_path) == 1
    before = plugin.report()
    for action in plugin.WAITING.values():
        action()
    assert plugin.report() == before


def test_a_registry_that_is_imported_later_gets_our_names(tmp_path: Path) -> None:
    (tmp_path / "late_registry.py").write_text("NAMES = []\n", encoding="utf-8")
    done = python(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from rl_think_ext.verl.plugin import AfterImport
        join = lambda: sys.modules["late_registry"].NAMES.append("ours")
        sys.meta_path.insert(0, AfterImport({{"late_registry": join}}))
        import late_registry
        assert late_registry.NAMES == ["ours"]
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_registration_that_fails_is_met_by_whoever_uses_the_name() -> None:
    """F44: verl swallows what a plugin raises; here the first use raises, with the trace."""
    done = python(
        """
        import sys, verl
        sys.modules["rl_think_ext.verl.rlmt_reward"] = None  # an import that fails
        from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
        manager = get_reward_manager_cls("rlmt")
        try:
            manager(config=None, tokenizer=None, compute_score=None)
        except Exception as error:
            print(type(error).__name__, "Traceback" in str(error), "rlmt_reward" in str(error))
        from rl_think_ext.verl import plugin
        assert "rlmt_reward" in plugin.FAILURES[0]
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["UserError", "True", "True"]
    assert "cannot be used" in done.stderr


def test_verl_does_not_look_for_trls_value_head() -> None:
    """verl 0.9.1 imports trl.experimental.ppo at the start of every actor; TRL 1.16 has it no more."""
    done = python(
        """
        import verl
        from verl.utils.import_utils import is_trl_available
        from rl_think_ext.verl.plugin import trl_lacks_value_head
        assert trl_lacks_value_head()
        assert not is_trl_available()
        import verl.models.transformers.monkey_patch as patch
        assert not patch.is_trl_available()
        """
    )
    assert done.returncode == 0, done.stderr


def test_another_trl_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "trl" / "experimental" / "ppo").mkdir(parents=True)
    (tmp_path / "trl" / "__init__.py").write_text("")
    done = python(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import verl
        from verl.utils.import_utils import is_trl_available
        assert is_trl_available()
        """
    )
    assert done.returncode == 0, done.stderr


def test_other_versions_are_warned_about() -> None:
    assert plugin.check_version("0.9.3") is None
    assert "verl==0.9.1" in (plugin.check_version("0.10.0") or "")


# -- settings -------------------------------------------------------------------------------------------------------


def config_of(text: str) -> OmegaConf:
    config = OmegaConf.create(yaml.safe_load(text))
    OmegaConf.set_struct(config, True)
    return config


@pytest.mark.parametrize(("name", "kind"), [("rlp", RLPConfig), ("rlmt", RLMTConfig), ("rlpt", RLPTConfig)])
def test_the_fragment_holds_every_setting_with_its_default(name: str, kind: type) -> None:
    block = yaml.safe_load((FRAGMENTS / f"{name}.yaml").read_text(encoding="utf-8"))["rl_think"]
    assert block.pop(name) == dataclasses.asdict(kind())
    assert block == dataclasses.asdict(resolved.DoorConfig())


def test_files_that_settings_name_are_found_from_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RL_THINK_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    given = "{judge: server, server: 'http://judge', judge_model: m, judge_prompt: words.txt}"
    config = config_of(f"{{data: {{}}, rl_think: {{rlpt: {given}}}}}")
    found, _ = resolved.resolve(config, "rlpt")
    monkeypatch.chdir("/")
    assert resolved.settings_of(config, "rlpt").judge_prompt == str(tmp_path / "words.txt")
    assert found.judge_prompt == "words.txt" and resolved.settings_of(config, "rlpt").cache_file is None


def test_settings_are_resolved_once_and_travel_with_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("{data: {seed: 1}, rl_think: {rlp: {baseline: none, num_target_tokens: 4}}}")
    found, source = resolved.resolve(config, "rlp")
    assert (found.baseline, found.num_target_tokens, source) == ("none", 4, "rl_think.rlp")
    # Whatever stands in the environment of another process or machine says nothing there.
    monkeypatch.setenv("RL_THINK_CONFIG", "rlp: {num_target_tokens: 9}")
    shipped = OmegaConf.create(OmegaConf.to_yaml(config))
    assert resolved.settings_of(shipped, "rlp") == found
    assert resolved.settings_of(shipped.data, "rlp") == found
    assert resolved.is_ours(shipped) and not resolved.is_ours(config_of("{data: {}}"))


def test_the_environment_is_read_where_the_config_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_THINK_CONFIG", "rlp: {num_target_tokens: 9}")
    config = config_of("{data: {}, rl_think: {rlp: {num_target_tokens: 1}}}")
    found, source = resolved.resolve(config, "rlp")
    assert found.num_target_tokens == 9 and "RL_THINK_CONFIG" in source
    assert config.data.rl_think.rlp.num_target_tokens == 9


def test_a_default_in_the_config_gives_way_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RL_THINK_CONFIG", "rlp: {num_target_tokens: 9}")
    resolved.resolve(config_of("{data: {}, rl_think: {rlp: {num_target_tokens: 1, baseline: ema}}}"), "rlp")
    [said] = [record.getMessage() for record in caplog.records]
    assert "num_target_tokens: 9" in said and "default 1" in said


def test_the_variable_reaches_a_driver_on_another_machine(tmp_path: Path) -> None:
    """verl's driver is a process of Ray's: on a cluster that was there before it does not see the shell's variables."""
    (tmp_path / "settings.yaml").write_text("rlp: {num_target_tokens: 9}\n")
    done = python(
        f"""
        import os
        os.chdir({str(tmp_path)!r})
        import verl
        from verl.trainer.main_ppo import get_ppo_ray_runtime_env
        assert "RL_THINK_CONFIG" not in get_ppo_ray_runtime_env()["env_vars"]
        os.environ["RL_THINK_CONFIG"] = "settings.yaml"
        print(get_ppo_ray_runtime_env()["env_vars"]["RL_THINK_CONFIG"])
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "settings.yaml")


def test_a_name_that_somebody_else_has_is_no_silent_loss() -> None:
    done = python(
        """
        import verl
        from rl_think_ext.verl import plugin
        try:
            plugin._join({"rlp": int}, plugin.TRAINERS)
        except Exception as error:
            print(type(error).__name__, "rlp" in str(error))
        """
    )
    assert done.stdout.split() == ["UserError", "True"], done.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{trainer: {v1: {sync: {parameter_sync_step: 2}}}}", "parameter_sync_step"),
        ("{actor_rollout_ref: {actor: {strategy: fsdp2}, model: {use_fused_kernels: true}}}", "logprob_kernel"),
        ("{actor_rollout_ref: {actor: {strategy: megatron}, model: {use_fused_kernels: false}}}", "logprob_kernel"),
    ],
)
def test_what_the_door_would_not_see_is_refused(text: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        resolved.check_door(config_of(text), resolved.DoorConfig(logprob_kernel=True))


def test_settings_in_two_places_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_THINK_CONFIG", "rlp: {num_target_tokens: 9}")
    with pytest.raises(UserError, match="RL_THINK_CONFIG"):
        resolved.resolve(config_of("{data: {}, rl_think: {rlp: {num_target_tokens: 2}}}"), "rlp")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{rl_think: {rlp: {num_target_token: 2}}}", "did you mean `num_target_tokens`"),
        ("{rl_think: {rpl: {}}}", "did you mean `rlp`"),
        ("{rl_think: {rlp: 3}}", "expected `key: value`"),
        ("{rl_think: {rlp: {num_target_tokens: many}}}", "is a int"),
        ("{rl_think: {logprob_kernel: maybe}}", "logprob_kernel"),
        ("{rl_think: {prefill_think: true}}", "does nothing for rlp"),
        ("{rl_think: {rlmt: {style: none}}}", "holds settings, and this is a run of rlp"),
        ("{rl_think: 7}", "expected the block of a method"),
    ],
)
def test_wrong_settings_name_the_key(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolved.resolve(config_of(text), "rlp")


# -- samples without a score ----------------------------------------------------------------------------------------

LENGTHS = (3, 1, 4, 2, 5, 2)
UIDS = ("a", "a", "a", "b", "b", "b")
SCORES = (Score(1.0), Score.unscorable("broken"), Score(3.0), Score(-2.0), Score(0.5), Score.unscorable("broken"))


def dense(fields: dict) -> dict:
    """What verl's estimators take."""
    return {
        "token_level_rewards": fields["rm_scores"].to_padded_tensor(0.0),
        "response_mask": fields["response_mask"].to_padded_tensor(0),
        "index": fields["uid"],
    }


def settled(rows: list[int]) -> dict:
    return dense(
        placed(
            [SCORES[i] for i in rows],
            [torch.ones(LENGTHS[i], dtype=torch.int64) for i in rows],
            [UIDS[i] for i in rows],
        )
    )


KEPT = [i for i, score in enumerate(SCORES) if score.value is not None]


@pytest.mark.parametrize("name", ["rloo", "grpo", "rlp"])
def test_advantages_are_those_of_the_batch_without_the_unscorable(name: str) -> None:
    estimate = group_advantages if name == "rlp" else core_algos.get_adv_estimator_fn(name)
    everything, kept = settled(list(range(6))), settled(KEPT)
    advantages, _ = estimate(**everything)
    expected, _ = estimate(**kept)
    torch.testing.assert_close(advantages[KEPT][:, : expected.shape[1]], expected, rtol=0, atol=1e-6)
    assert not advantages[[1, 5]].any()


def test_whitening_and_returns_do_not_see_the_unscorable() -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 5)
    everything, kept = settled(list(range(6))), settled(KEPT)
    for fields in (everything, kept):
        del fields["index"]
    whole, returns = core_algos.compute_gae_advantage_return(**everything, values=values, gamma=1.0, lam=0.95)
    alone, expected = core_algos.compute_gae_advantage_return(**kept, values=values[KEPT], gamma=1.0, lam=0.95)
    mask = kept["response_mask"].bool()
    torch.testing.assert_close(whole[KEPT][mask], alone[mask])
    torch.testing.assert_close(returns[KEPT][mask], expected[mask])


def test_our_advantage_is_verls_rloo() -> None:
    torch.manual_seed(1)
    rewards = torch.zeros(12, 4)
    rewards[:, 2] = torch.randn(12)
    fields = {"token_level_rewards": rewards, "response_mask": torch.ones(12, 4), "index": np.repeat(list("abc"), 4)}
    ours, _ = group_advantages(**fields)
    torch.testing.assert_close(ours, core_algos.get_adv_estimator_fn("rloo")(**fields)[0], rtol=0, atol=1e-6)


def test_our_advantage_by_hand() -> None:
    """Group of 1, 2, 3 and one without a score: 3/2 * (r - 2)."""
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0]])
    rewards = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    advantages, _ = group_advantages(rewards, mask, ["g"] * 4)
    assert advantages.tolist() == [[-1.5, -1.5], [0.0, 0.0], [1.5, 0.0], [0.0, 0.0]]


def a_trainer(
    tmp_path: Path, queue: FakeQueue, monkeypatch: pytest.MonkeyPatch, estimator: str = "rloo"
) -> ThinkTrainer:
    """A trainer of which only what it does with scores is there."""
    from rl_think_ext.run_record import Record

    monkeypatch.setattr(trainer, "tq", queue)
    one = object.__new__(ThinkTrainer)
    one.method, one.settings = "rlp", RLPConfig(max_failed_steps=2)
    sizes = {"data": {"train_batch_size": 2}, "actor_rollout_ref": {"rollout": {"n": 4}}}
    one.config = OmegaConf.create({"algorithm": {"adv_estimator": "rloo"}, **sizes})
    one.record, one.alarms = Record(tmp_path, 0), lambda metrics: []
    one.record.begin(0)
    one.scores, one.columns, one._quiet, one._failed, one._shown = {}, {}, [], 0, None
    return one


def a_queue() -> FakeQueue:
    rows = {
        f"{uid}_{i}_0": {"response_mask": torch.ones(length, dtype=torch.int64), "uid": uid}
        for i, (uid, length) in enumerate(zip(UIDS, LENGTHS, strict=True))
    }
    return FakeQueue(rows)


def test_settling_masks_rows_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = a_queue()
    one, metrics = a_trainer(tmp_path, queue, monkeypatch), {}
    batch = queue.batch()
    one.settle(batch, dict(enumerate(SCORES)), metrics)
    # Two prompts with four samples each were asked for; two samples were lost on the way.
    assert metrics == {"rlp/unscorable": pytest.approx(1 / 3), "rlp/lost": 0.25}
    for key, score in zip(batch.keys, SCORES, strict=True):
        row = queue.rows[key]
        assert bool(row["response_mask"].any()) == bool(row["loss_mask"].any()) == (score.value is not None)
        assert row["rm_scores"].tolist() == [0.0] * (len(row["rm_scores"]) - 1) + [score.value or 0.0]
    assert queue.rows["a_1_0"]["uid"] != "a" and queue.rows["a_0_0"]["uid"] == "a"


def test_the_only_scored_sample_of_a_group_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F13: verl's rloo and grpo would take its raw reward for its advantage."""
    queue = a_queue()
    one = a_trainer(tmp_path, queue, monkeypatch)
    scores = dict(
        enumerate([Score(5.0), Score.unscorable("x"), Score.unscorable("x"), Score(1.0), Score(2.0), Score(6.0)])
    )
    batch = queue.batch()
    one.settle(batch, scores, {})

    def verls(self: ThinkTrainer, batch: object, metrics: dict) -> object:
        for key in batch.keys:
            queue.rows[key]["advantages"] = queue.rows[key]["returns"] = torch.full((3,), 7.0)
        return batch

    monkeypatch.setattr(trainer.PPOTrainerSync, "_compute_advantage", verls)
    one._compute_advantage(batch, {})
    assert not queue.rows["a_0_0"]["advantages"].any() and not queue.rows["a_0_0"]["returns"].any()
    assert queue.rows["b_3_0"]["advantages"].tolist() == [7.0] * 3
    one.config.algorithm.adv_estimator = "gae"  # with a critic nothing is compared within a group
    one._compute_advantage(batch, {})
    assert queue.rows["a_0_0"]["advantages"].any()


def test_a_step_without_any_score_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F6: twice in a row ends the run, and in between no weight is touched."""
    queue = a_queue()
    one = a_trainer(tmp_path, queue, monkeypatch)
    batch, nothing = queue.batch(), {i: Score.unscorable("judge is down") for i in range(6)}
    one.settle(batch, nothing, {})
    for name in ("_update_actor", "_update_critic", "_compute_advantage"):
        monkeypatch.setattr(trainer.PPOTrainerSync, name, lambda *args: pytest.fail("touched"))
    assert one._update_actor(batch, {}) is batch and one._update_critic(batch, {}) is batch
    one._compute_advantage(batch, {})
    assert not any(row["advantages"].any() for row in queue.rows.values())
    with pytest.raises(UserError, match="no sample was scorable in 2 steps in a row: judge is down"):
        one.settle(batch, nothing, {})


def test_a_scored_step_ends_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = a_queue()
    one, nothing = a_trainer(tmp_path, queue, monkeypatch), {i: Score.unscorable("x") for i in range(6)}
    for scores in (nothing, dict(enumerate(SCORES)), nothing):
        one.settle(queue.batch(), scores, {})
    assert one._failed == 1


def test_dumps_say_null_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = a_queue()
    one = a_trainer(tmp_path, queue, monkeypatch)
    one.settle(queue.batch(), dict(enumerate(SCORES)), {}, columns={0: {"gain": 1.0}, 1: {"gain": None}})
    seen = {}
    monkeypatch.setattr(
        trainer.PPOTrainerSync,
        "_dump_generations",
        lambda self, inputs, outputs, gts, scores, extra, path: seen.update(scores=scores, outputs=outputs, **extra),
    )
    keys = ["a_0_0", "a_1_0", "pad123_0_0"]
    one._dump_generations(["i"] * 3, ["o0", "o1", "filler"], [None] * 3, [1.0, 0.0, 0.0], {"uid": keys}, "x")
    assert seen["scores"] == [1.0, None] and seen["outputs"] == ["o0", "o1"]
    assert seen["unscorable"] == [None, "broken"] and seen["gain"] == [1.0, None]


def test_validation_means_leave_the_unscorable_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = a_trainer(tmp_path, FakeQueue(), monkeypatch)
    extra = {"reward": [1.0, 0.0, 3.0], "unscorable": ["", "broken", ""], "score": [1.0, None, 3.0]}
    found = one._val_metrics_update(["s"] * 3, ["u", "v", "w"], extra, [2, 2, 2])
    assert found["val-core/s/reward/mean@1"] == found["val-core/s/reward/mean"] == 2.0
    assert found["val-aux/rlp/unscorable"] == pytest.approx(1 / 3)


def test_validation_means_are_over_all_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's mean@4 is the mean of the prompts that kept four samples: here of the good one alone."""
    one = a_trainer(tmp_path, FakeQueue(), monkeypatch)
    extra = {"reward": [1.0] * 4 + [-3.0] * 3 + [0.0], "unscorable": [""] * 7 + ["broken"]}
    found = one._val_metrics_update(["s"] * 8, ["a"] * 4 + ["b"] * 4, extra, [2] * 8)
    assert found["val-core/s/reward/mean"] == -1.0  # (1 - 3) / 2
    assert found["val-core/s/reward/mean@4"] == 1.0


def test_the_table_of_a_validation_shows_no_score_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, seen = a_trainer(tmp_path, FakeQueue(), monkeypatch), []
    table = "_maybe_log_val_generations"
    monkeypatch.setattr(trainer.PPOTrainerSync, table, lambda self, *columns: seen.append(columns))
    one._maybe_log_val_generations(["i", "j"], ["o", "p"], [1.0, 0.0])
    assert not seen
    one._val_metrics_update(["s"] * 2, ["u", "v"], {"reward": [1.0, 0.0], "unscorable": ["", "broken"]}, [2, 2])
    [(inputs, outputs, scores)] = seen
    assert (inputs, outputs, scores[0]) == (["i", "j"], ["o", "p"], 1.0) and np.isnan(scores[1])


def test_metrics_leave_padding_and_unscorable_rows_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = a_queue()
    queue.rows["pad1_0_0"] = {"response_mask": torch.zeros(1, dtype=torch.int64), "uid": "pad1"}
    one, seen = a_trainer(tmp_path, queue, monkeypatch), {}
    batch = queue.batch(padding=["pad1_0_0"])
    assert one.real_rows(batch) == list(range(6))
    one.settle(batch, dict(enumerate(SCORES)), {})
    monkeypatch.setattr(
        trainer.PPOTrainerSync, "_compute_metrics", lambda self, batch, *args, **kwargs: seen.update(tags=batch.tags)
    )
    one._compute_metrics(batch, {"critic/score/mean": 1.0}, {}, global_steps=4, epoch=0)
    assert [tag["is_padding"] for tag in seen["tags"]] == [False, True, False, False, False, True, True]
    assert not any(tag["is_padding"] for tag in batch.tags[:6])
    line = json.loads((tmp_path / "rl_think" / "log.jsonl").read_text(encoding="utf-8"))
    assert line == {"step": 4, "critic/score/mean": 1.0}
