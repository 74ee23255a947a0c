"""RLP under verl without a cluster: what workers are asked, what is settled and refused, how a thought is sampled."""

from __future__ import annotations

import asyncio
import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
import torch
from fake_workers import Queue, Workers
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from transformers import AutoTokenizer, Qwen3ForCausalLM
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import trainer_base
from verl.utils.torch_functional import logprobs_from_logits_v2
from verl.workers.config import ActorConfig
from verl.workers.rollout.replica import TokenOutput

from rl_think_ext.data.reader import Reader
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring.gain import FIELDS as COLUMNS
from rl_think_ext.scoring.gain import Gains, GainScorer, gain_metrics
from rl_think_ext.scoring.likelihood import Likelihood, Query
from rl_think_ext.template import TagIds
from rl_think_ext.tiny import PROGRAMS_MODEL, TEXT_TOKENIZER
from rl_think_ext.verl import logprob_kernel, resolved, rlp_checks, rlp_trainer, trainer
from rl_think_ext.verl.likelihood import RemoteLikelihood, Sampled, deal
from rl_think_ext.verl.rlp_trainer import RLPTrainer
from rl_think_ext.verl.targets import FIELDS
from rl_think_ext.verl.thought_loop import ThoughtLoop, end_of_thought
from rl_think_ext.verl.trainer import UNSCORABLE, nested

EOS, CLOSE = 1, 3


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(PROGRAMS_MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(PROGRAMS_MODEL)


def ids(*numbers: int) -> tuple[int, ...]:
    return numbers


QUERIES = [
    Query(ids(9, 21, 5, 13), ids(11)),
    Query(ids(6, 14, 9, 30, 12, 8, 22), ids(10, 25, 6)),
    Query(ids(15, 7), ids(7, 19)),
    Query(ids(9, 21, 5, 13), ids(28, 9, 16, 5)),
    Query(ids(6, 14, 9, 30, 12, 8, 22), ids(10, 25, 6)),
]


# -- the likelihood --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
@pytest.mark.parametrize("forbidden", [None, 7])
def test_workers_say_what_the_model_says(model: Qwen3ForCausalLM, shares: int, forbidden: int | None) -> None:
    workers = Workers(model, shares)
    found = RemoteLikelihood(workers, shares, 16)(QUERIES, forbidden)
    wanted = Likelihood(model, pad_id=0)(QUERIES, forbidden)
    for got, own in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, own, rtol=0, atol=1e-4, equal_nan=True)
    # Four different queries; what fills the shares up is the shortest of them.
    (_, rows) = workers.asked[0]
    assert len(rows) == math.ceil(4 / shares) * shares
    assert len(set(rows)) == 4 and rows.count((15, 7, 7)) == 1 + len(rows) - 4


def test_rows_that_fill_a_share_leave_no_trace(model: Qwen3ForCausalLM) -> None:
    """The same row in another micro-batch is a little off: its own answer counts, not its copy's."""
    workers = Workers(model, 4)

    def off(data: Any) -> dict[str, torch.Tensor]:
        answer = workers(data)
        for name in FIELDS:
            values = list(answer[name].unbind())
            seen: set[tuple[int, ...]] = set()
            for i in sorted(range(len(values)), key=lambda i: i % 2):
                key = tuple(data["input_ids"].unbind()[i].tolist())
                values[i] = values[i] + (1.0 if key in seen else 0.0)
                seen.add(key)
            answer[name] = nested(values)
        return answer

    # One query, three copies of it in the other shares.
    found = RemoteLikelihood(off, 4, 16)(QUERIES[:1])
    wanted = Likelihood(model, pad_id=0)(QUERIES[:1])
    torch.testing.assert_close(found.logprob, wanted.logprob, rtol=0, atol=1e-4)


def test_averages_answer_inside_their_context_only(model: Qwen3ForCausalLM) -> None:
    workers = Workers(model, 1)
    remote = RemoteLikelihood(workers, 1, 16)
    with remote.weights("half"):
        inside = remote(QUERIES[:1])
    with pytest.raises(ZeroDivisionError), remote.weights("half"):
        _ = 1 / 0
    outside = remote(QUERIES[:1])
    assert [name for name, _ in workers.asked] == ["half", "policy"]
    assert float(inside.logprob) != float(outside.logprob)


def test_a_query_without_ids_is_named() -> None:
    with pytest.raises(ValueError, match="row 1: prefix and target need"):
        RemoteLikelihood(lambda data: {}, 1, 16)([QUERIES[0], Query((), (3,))])
    assert RemoteLikelihood(lambda data: {}, 1, 16)([]).logprob.shape == (0, 0)


def test_one_forward_answers_for_thoughts_and_targets(model: Qwen3ForCausalLM) -> None:
    workers = Workers(model, 2)
    remote = RemoteLikelihood(workers, 2, 16, max_length=9)
    sampled = [
        Sampled((9, 21), (5, CLOSE), Query((9, 21, 5, CLOSE), (11, 6))),
        Sampled((6, 14), (30, 12, 8), Query((6, 14, 30, 12, 8, CLOSE), (10,))),  # cut off, closed behind it
        Sampled((15, 7), (7, EOS), Query((15, 7, 7, CLOSE), (19,))),  # the end that was sampled is no thought
        Sampled((15, 7), (9, 9, 9), Query((15, 7, 9, 9, 9, CLOSE), (3, 4, 5, 6))),  # nine ids are read
        Sampled((15, 7), (9, 9, 9), Query((15, 7, 9, 9, 9, CLOSE), (3, 4, 5, 6, 7))),  # one more than there are
        Sampled((EOS,) * 4, (EOS,), None),  # verl's padding
    ]
    found = remote.respond(sampled, 0.7)
    for one, said in zip(sampled, found, strict=True):
        shown = one.prompt + one.response
        with torch.no_grad():
            logprob = (model(input_ids=torch.tensor([shown])).logits[0] / 0.7).log_softmax(-1)
        span = slice(len(one.prompt) - 1, len(shown) - 1)
        wanted = logprob[span].gather(-1, torch.tensor(one.response)[:, None])[:, 0]
        torch.testing.assert_close(said.logprob[span], wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(said.entropy[span], -(logprob.exp() * logprob).sum(-1)[span], rtol=0, atol=1e-4)
        assert len(said.logprob) == len(said.entropy) == len(shown)
    assert len(workers.asked) == 1
    queries = [one.query for one in sampled if one.query]
    got, wanted = remote(queries), Likelihood(model, pad_id=0)(queries)
    torch.testing.assert_close(got.logprob, wanted.logprob, rtol=0, atol=1e-4, equal_nan=True)
    assert len(workers.asked) == 2 and len(workers.asked[1][1]) == 2  # the two that were not beside their responses


def test_noise_is_measured_with_a_forward_of_its_own(model: Qwen3ForCausalLM) -> None:
    workers = Workers(model, 1)
    remote = RemoteLikelihood(workers, 1, 64)
    query = Query((9, 21, 5, CLOSE), (11, 6))
    remote.respond([Sampled((9, 21), (5, CLOSE), query)], 0.7)
    remote([query])
    assert len(workers.asked) == 1
    remote([query])
    assert len(workers.asked) == 2


def test_what_is_ready_is_the_policys_and_without_a_ban(model: Qwen3ForCausalLM) -> None:
    workers = Workers(model, 1)
    remote = RemoteLikelihood(workers, 1, 64)
    query = Query((9, 21, 5, CLOSE), (11, 6))
    remote.respond([Sampled((9, 21), (5, CLOSE), query)], 0.7)
    with remote.weights("half"):
        remote([query])
    remote([query], 2)
    assert len(workers.asked) == 3
    remote([query])
    assert len(workers.asked) == 3


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 8))
def test_shares_are_equal_in_size_and_about_as_long(lengths: list[int], shares: int) -> None:
    order = deal(lengths, shares)
    assert sorted(i for i in order if i is not None) == list(range(len(lengths)))
    assert len(order) % shares == 0 and len(order) < len(lengths) + shares
    size = len(order) // shares
    loads = [sum(lengths[i] for i in order[k : k + size] if i is not None) for k in range(0, len(order), size)]
    assert max(loads) - min(loads) <= max(lengths)


# -- the trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed() -> Any:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose(
            "ppo_trainer",
            [
                "hydra.searchpath=[pkg://rl_think_ext.verl.config]",
                "+rl_think=rlp",
                "actor_rollout_ref.rollout.name=vllm",
                "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
            ],
            return_hydra_config=False,
        )


@pytest.fixture
def config(composed: Any) -> Any:
    return copy.deepcopy(composed)


def sample(context: str, target: str, response: tuple[int, ...], tokenizer: Any) -> dict[str, Any]:
    context_ids, target_ids = tokenizer(context)["input_ids"], tokenizer(target)["input_ids"]
    row = {
        "id": context,
        "where": f"row {context}",
        "prompt_ids": [*context_ids, 2],
        "context_ids": context_ids,
        "target_ids": target_ids[:1],
        "all_target_ids": target_ids,
        "context": context,
        "target": target,
    }
    mask = torch.ones(len(response), dtype=torch.long)
    return {
        "think_row": row,
        "prompts": torch.tensor(row["prompt_ids"]),
        "responses": torch.tensor(response),
        "response_mask": mask,
        "loss_mask": mask,
        "rollout_log_probs": torch.zeros(len(response)),
        "extra_fields": {"turn_scores": []},
    }


# Two prompts with two thoughts each in an order that is none of theirs, the second with an empty thought; a copy.
def queue(tokenizer: Any) -> Queue:
    one, two = "=0=1", "=2=3"
    rows = {
        "b_0_0": sample(two, "=4=5", (17, 9, CLOSE), tokenizer),
        "a_1_0": sample(one, "=2", (30, 8), tokenizer),
        "b_1_0": sample(two, "=4=5", (CLOSE,), tokenizer),
        "a_0_0": sample(one, "=2", (12, CLOSE), tokenizer),
        "padx_0_0": {**sample(one, "=2", (EOS,), tokenizer), "response_mask": torch.zeros(1, dtype=torch.long)},
    }
    return Queue({key: {**row, "uid": key.split("_")[0]} for key, row in rows.items()})


@pytest.fixture
def bound(
    model: Qwen3ForCausalLM, tokenizer: Any, config: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[RLPTrainer, Queue, Workers]:
    """A trainer as it is behind `init`, with workers and a queue of this process."""
    config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.rollout.temperature = 2, 0.7
    stored, workers = queue(tokenizer), Workers(model, 2)
    for module in (rlp_trainer, trainer, trainer_base):
        monkeypatch.setattr(module, "tq", stored)
    made: Any = object.__new__(RLPTrainer)
    made.config, made.tokenizer, made.global_steps = config, tokenizer, 3
    made.settings, made.source = resolved.resolve(config, "rlp")
    made.door = resolved.door_of(config)
    made.tags = TagIds.of(tokenizer)
    made.reader = Reader(tokenizer, made.settings, made.tags)
    made._ends, made._positions, made._finished, made._failed = [EOS, CLOSE], 64, 0.0, 0
    made.scores, made.columns, made._quiet = {}, {}, []
    made.actor_rollout_wg = SimpleNamespace(think_state=lambda: [{"policy_checksum": 1.0, "ema_checksum": 2.0}])
    made.likelihood = RemoteLikelihood(workers, 2, 64, 64)
    half = lambda: made.likelihood.weights("half")  # noqa: E731
    made.scorer = GainScorer(made.settings, made.likelihood, made.tags, half, half, 64)
    return made, stored, workers


def wanted_gain(model: Qwen3ForCausalLM, row: dict[str, Any], response: tuple[int, ...]) -> float:
    """Eq. 5 by hand: half as sure without the thought, the opening tag ruled out there."""
    thought = [*row["prompt_ids"], *(response if CLOSE in response else (*response, CLOSE))]
    target = row["target_ids"][0]
    with torch.no_grad():
        reasoned = model(input_ids=torch.tensor([thought])).logits[0, -1].double().log_softmax(-1)[target]
        without = model(input_ids=torch.tensor([row["context_ids"]])).logits[0, -1].double() * 0.5
    without[2] = -torch.inf
    return float(reasoned - without.log_softmax(-1)[target])


def test_a_step_settles_gains_beside_verls_own_log_probs(bound: Any, model: Qwen3ForCausalLM) -> None:
    made, stored, workers = bound
    metrics: dict[str, Any] = {}
    made._compute_old_log_prob(stored.batch(["padx_0_0"]), metrics)
    for key in ("b_0_0", "a_1_0", "a_0_0"):
        row = stored.rows[key]
        response = tuple(row["responses"].tolist())
        assert row["rm_scores"][:-1].abs().sum() == 0
        assert float(row["rm_scores"][-1]) == pytest.approx(wanted_gain(model, row["think_row"], response), abs=1e-4)
        shown = [*row["think_row"]["prompt_ids"], *response]
        with torch.no_grad():
            logprob = (model(input_ids=torch.tensor([shown])).logits[0] / 0.7).log_softmax(-1)[-len(response) - 1 : -1]
        old = logprob.gather(-1, row["responses"][:, None])[:, 0]
        torch.testing.assert_close(row["old_log_probs"], old, rtol=0, atol=1e-4)
        torch.testing.assert_close(row["entropy"], -(logprob.exp() * logprob).sum(-1), rtol=0, atol=1e-4)
        assert row["response_mask"].tolist() == [1] * len(response)
    # An empty thought keeps its place and loses its vote.
    empty = stored.rows["b_1_0"]
    assert empty["response_mask"].tolist() == empty["loss_mask"].tolist() == [0]
    assert made.scores["b_1_0"].reason == "empty thought"
    assert "rm_scores" not in stored.rows["padx_0_0"] and len(stored.rows["padx_0_0"]["old_log_probs"]) == 1
    assert metrics["rlp/unscorable"] == 0.25 and metrics["actor/entropy"] > 0
    assert {"rlp/gain", "rlp/accuracy", "rlp/policy_checksum", "rlp/scoring_seconds"} <= metrics.keys()
    assert metrics["training/rollout_probs_diff_valid"] == 1
    # One forward for all thoughts, one for the baseline of both contexts, one for the frozen start, one for the noise.
    assert [name for name, _ in workers.asked] == ["policy", "half", "half", "policy"]
    assert len(made.columns["b_0_0"]["target_ids"]) == 2  # all of the row's, not the one that is scored
    assert made.columns["b_0_0"]["completion_ids"] == [17, 9, CLOSE] and made.columns["b_1_0"]["gain"] is None


def test_with_verls_bypass_the_reward_is_settled_all_the_same(bound: Any, model: Qwen3ForCausalLM) -> None:
    made, stored, workers = bound
    made.config.algorithm.rollout_correction.bypass_mode = True
    made._compute_old_log_prob(stored.batch(["padx_0_0"]), {})
    row = stored.rows["a_0_0"]
    assert row["old_log_probs"].tolist() == [0.0, 0.0]
    assert float(row["rm_scores"][-1]) == pytest.approx(wanted_gain(model, row["think_row"], (12, CLOSE)), abs=1e-4)
    assert [name for name, _ in workers.asked] == ["policy", "half", "half", "policy"]


def test_f6_the_run_ends_when_nothing_can_be_scored(bound: Any) -> None:
    made, stored, _ = bound
    for row in stored.rows.values():
        row["responses"], row["think_row"] = torch.tensor([CLOSE]), {**row["think_row"]}
        row["response_mask"] = row["loss_mask"] = torch.ones(1, dtype=torch.long)
        row["rollout_log_probs"] = torch.zeros(1)
    batch = stored.batch()
    for _ in range(made.settings.max_failed_steps - 1):
        made._compute_old_log_prob(batch, {})
    with pytest.raises(UserError, match="no sample was scorable in 3 steps in a row: empty thought"):
        made._compute_old_log_prob(batch, {})


def test_validation_is_scored_in_the_driver_with_the_same_names_for_all(bound: Any, model: Qwen3ForCausalLM) -> None:
    made, stored, _ = bound
    batch = stored.batch()
    assert made._compute_reward_colocate(batch, metrics={}) is batch and "rm_scores" not in stored.rows["a_0_0"]
    made._compute_reward_colocate(batch)
    infos = {key: row["extra_fields"]["reward_extra_info"] for key, row in stored.rows.items()}
    assert len({tuple(info) for info in infos.values()}) == 1
    assert infos["b_1_0"][UNSCORABLE] == "empty thought" and infos["a_0_0"][UNSCORABLE] == ""
    row = stored.rows["a_0_0"]
    wanted = wanted_gain(model, row["think_row"], (12, CLOSE))
    assert infos["a_0_0"]["gain"] == pytest.approx(wanted, abs=1e-4)
    assert float(row["rm_scores"].sum()) == pytest.approx(wanted, abs=1e-4)
    assert row["extra_fields"]["turn_scores"] == [] and row["response_mask"].tolist() == [1, 1]


def gains_of(reasoned: list[float], noise: float = 0.0) -> Gains:
    table = torch.zeros(len(reasoned), len(COLUMNS))
    for name in ("reasoned", "gain"):
        table[:, COLUMNS.index(name)] = torch.tensor(reasoned)
    table[:, COLUMNS.index("reason")] = torch.where(torch.tensor(reasoned).isnan(), 0.0, -1.0)
    return Gains(table, noise)


def test_f47_groups_within_the_noise_are_quiet() -> None:
    rows, nan = [7, 2, 5, 4, 9, 1], math.nan
    groups = [[7, 5], [2, 4], [9, 1]]
    gains = gains_of([1.0, 1.0, 1.25, 1.0625, 3.0, nan], noise=0.0625)
    assert rlp_trainer.quiet(groups, rows, gains) == [2, 4, 9, 1]  # a lonely one has no spread


def test_metrics_are_of_all_samples_in_groups_of_their_own_order() -> None:
    """Where sampling failed, a group is smaller: its samples are trained, and count."""
    rows, groups = [0, 1, 2, 3, 4], [[0, 3], [1, 2], [4]]
    gains = gains_of([1.0, 5.0, 7.0, 1.5, 100.0])
    found = rlp_trainer.group_metrics(groups, rows, gains, 2)
    assert found["gain"] == pytest.approx(22.9) and found["unscorable"] == 0.0
    assert found["gain_spread"] == pytest.approx((0.25 + 1.0 + 0.0) / 3)
    assert found["zero_variance_groups"] == pytest.approx(1 / 3)  # who is alone has nobody to differ from
    whole = rlp_trainer.group_metrics(groups[:2], rows[:4], gains_of([1.0, 5.0, 7.0, 1.5]), 2)
    wanted = gain_metrics(gains_of([1.0, 1.5, 5.0, 7.0]), 2)
    assert {k: v for k, v in whole.items() if v == v} == {k: v for k, v in wanted.items() if v == v}
    lost = rlp_trainer.group_metrics([[0, 3], [1, 2]], rows[:4], gains_of([1.0, 5.0, 7.0, 1.5]), 3)
    assert lost["gain_spread"] == whole["gain_spread"] and lost["zero_variance_groups"] == 0.0


def test_parts_of_the_weights_add_up() -> None:
    parts = [
        {"policy_checksum": 1.0, "ema_checksum": 2.0, "ema_distance": 9.0, "ema_updates": 4.0, "frozen_distance": 1.0},
        {"policy_checksum": 3.0, "ema_checksum": 5.0, "ema_distance": 16.0, "ema_updates": 4.0, "frozen_distance": 1.0},
    ]
    wanted = {"policy_checksum": 4.0, "ema_checksum": 7.0, "ema_distance": 5.0, "ema_updates": 4.0}
    assert rlp_trainer.weights_metrics(parts) == wanted
    assert rlp_trainer.weights_metrics([{"policy_checksum": 1.0}]) == {"policy_checksum": 1.0}


def test_a_collapse_of_verls_own_entropy_is_an_alarm() -> None:
    watch, said = object.__new__(RLPTrainer).watch(), []
    for entropy in [2.0] * 3 + [0.1] * 5:
        said += watch({"gain_frozen": 0.0, "actor/entropy": entropy})
    assert len(said) == 1 and "entropy" in said[0]


# -- settings --------------------------------------------------------------------------------------------------------


def test_the_shipped_settings_are_rlp(config: Any) -> None:
    assert rlp_checks.check_config(config, RLPConfig()) == []


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("algorithm.adv_estimator", "grpo", "adv_estimator=rlp"),
        ("algorithm.use_kl_in_reward", True, "use_kl_in_reward=false"),
        ("algorithm.filter_groups.enable", True, "filter_groups.enable=false"),
        ("algorithm.rollout_correction.rollout_rs", "token_k1", "rollout_rs=null"),
        ("actor_rollout_ref.actor.loss_agg_mode", "token-mean", "loss_agg_mode=seq-mean-token-mean"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "gspo", "loss_mode=vanilla"),
        ("actor_rollout_ref.actor.clip_ratio_c", 3.0, "clip_ratio_c=1e9"),
        ("actor_rollout_ref.actor.strategy", "fsdp", "strategy=fsdp2"),
        ("actor_rollout_ref.actor.strategy", "megatron", "strategy=fsdp2"),
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size", 2, "ulysses_sequence_parallel_size=1"),
        ("actor_rollout_ref.model.use_fused_kernels", True, "use_fused_kernels=false"),
        ("actor_rollout_ref.rollout.n", 1, "at least 2"),
        ("actor_rollout_ref.rollout.multi_turn.enable", True, "multi_turn.enable=false"),
        ("actor_rollout_ref.rollout.name", "trtllm", "cannot be told where an output ends"),
        ("actor_rollout_ref.actor.fsdp_config.model_dtype", "bf16", "model_dtype=fp32"),
        ("actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype", "fp16", "fp32 or bf16"),
        ("actor_rollout_ref.rollout.temperature", 0.0, "above 0"),
        ("critic.enable", True, "critic.enable=false"),
        ("reward.custom_reward_function.path", "mine.py", "custom_reward_function.path=null"),
        ("reward.reward_manager.name", "dapo", "reward_manager.name=naive"),
        ("reward.reward_model.enable", True, "reward_model.enable=false"),
        ("data.custom_cls.name", None, "data.custom_cls.name=RLPDataset"),
    ],
)
def test_what_would_be_something_else_is_refused(config: Any, key: str, value: Any, named: str) -> None:
    with open_dict(config):
        OmegaConf.update(config, key, value)
    with pytest.raises(UserError) as raised:
        rlp_checks.check_config(config, RLPConfig())
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("algorithm.adv_estimator", "rloo", "rlp also where some have none"),
        ("actor_rollout_ref.actor.use_kl_loss", True, "eq. 8 has no KL term"),
        ("actor_rollout_ref.actor.entropy_coeff", 0.01, "no entropy bonus"),
        ("algorithm.rollout_correction.bypass_mode", True, "bypass_mode"),
        ("algorithm.rollout_correction.rollout_is", "token", "reweights tokens"),
        ("actor_rollout_ref.actor.fsdp_config.mixed_precision", None, "computes in bf16"),
    ],
)
def test_what_differs_is_said(config: Any, key: str, value: Any, said: str) -> None:
    with open_dict(config):
        OmegaConf.update(config, key, value)
    (warning,) = rlp_checks.check_config(config, RLPConfig())
    assert said in warning


def test_the_second_clip_never_acts_at_the_smallest_value_that_is_taken() -> None:
    """verl's own loss at the largest ratio that it lets pass, against eq. 8 by hand."""
    loss = core_algos.get_policy_loss_fn("vanilla")
    old, new = torch.zeros(1, 1), torch.full((1, 1), 30.0)
    config = ActorConfig(strategy="fsdp2", rollout_n=2, ppo_micro_batch_size_per_gpu=1)
    found = {}
    for clip in (3.0, rlp_checks.NO_DUAL_CLIP):
        config = replace(config, clip_ratio_c=clip)
        arguments = {"old_log_prob": old, "log_prob": new, "advantages": -torch.ones(1, 1)}
        found[clip], _ = loss(**arguments, response_mask=torch.ones(1, 1), config=config)
    assert float(found[3.0]) == pytest.approx(3.0)
    assert float(found[rlp_checks.NO_DUAL_CLIP]) == pytest.approx(math.exp(20.0), rel=1e-5)


# -- sampling --------------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, tokens: list[int], logprobs: list[float] | None) -> None:
        self.output = TokenOutput(token_ids=tokens, log_probs=logprobs)
        self.asked: dict[str, Any] = {}

    async def generate(self, **kwargs: Any) -> TokenOutput:
        self.asked = kwargs
        return self.output


def loop_of(tokenizer: Any, server: Server, length: int = 6) -> ThoughtLoop:
    made: Any = object.__new__(ThoughtLoop)
    made.tokenizer, made.server_manager = tokenizer, server
    made.rollout_config = OmegaConf.create({"name": "vllm", "response_length": length, "full_determinism": False})
    return made


def sampled_by(tokenizer: Any, tokens: list[int], logprobs: list[float] | None = None, length: int = 6) -> Any:
    server = Server(tokens, logprobs)
    row = {"think_row": {"prompt_ids": [5, 6, 2]}, "priority": 4}
    parameters = {"temperature": 0.7, "logprobs": logprobs is not None}
    return server, asyncio.run(loop_of(tokenizer, server, length).run(parameters, **row))


def test_a_thought_ends_at_its_closing_tag(tokenizer: Any) -> None:
    server, output = sampled_by(tokenizer, [7, 8, CLOSE, 9], [-1.0, -2.0, -3.0, -4.0])
    assert server.asked["prompt_ids"] == [5, 6, 2] and server.asked["priority"] == 4
    assert server.asked["sampling_params"] == {"temperature": 0.7, "logprobs": True, "stop_token_ids": [CLOSE]}
    assert output.prompt_ids == [5, 6, 2] and output.response_ids == [7, 8, CLOSE]
    assert output.response_mask == [1, 1, 1] and output.response_logprobs == [-1.0, -2.0, -3.0]
    assert output.reward_score is None


def test_a_thought_is_cut_at_the_longest_response(tokenizer: Any) -> None:
    _, output = sampled_by(tokenizer, [7, 8, 9, 10], [-1.0] * 4, length=3)
    assert output.response_ids == [7, 8, 9] and output.response_logprobs == [-1.0] * 3


def test_where_nothing_was_sampled_there_is_a_row_without_a_mask(tokenizer: Any) -> None:
    _, output = sampled_by(tokenizer, [], [])
    assert output.response_ids == [EOS] and output.response_mask == [0] and output.response_logprobs == [0.0]
    _, output = sampled_by(tokenizer, [])
    assert output.response_logprobs is None


def test_a_tag_of_several_tokens_ends_a_thought_whatever_its_pieces() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEXT_TOKENIZER)
    plain = tokenizer("</think", add_special_tokens=False)["input_ids"]
    pieces = [*tokenizer("so", add_special_tokens=False)["input_ids"], *plain]
    rest = tokenizer("> and on", add_special_tokens=False)["input_ids"]
    tags = TagIds((4094, 4094), (4095, 4095))  # stands for tags that are not what was sampled
    kept = end_of_thought([*pieces, *rest], tags, tokenizer)
    assert "</think>" in tokenizer.decode([*pieces, *rest][:kept])
    assert "</think>" not in tokenizer.decode([*pieces, *rest][: kept - 1])
    assert end_of_thought(pieces, tags, tokenizer) == len(pieces)
    assert end_of_thought([7, 4095, 4095, 8], tags, tokenizer) == 3


# -- the kernel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [True, False])
def test_kernel_and_verls_function_agree_with_their_gradients(inplace: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 257) * 4, torch.randint(0, 257, (9,))
    weight = torch.randn(9)
    found = []
    for function in (logprobs_from_logits_v2, logprob_kernel.logprobs_from_logits):
        leaf = logits.clone().requires_grad_()
        extra = {"inplace_backward": inplace} if function is not logprobs_from_logits_v2 else {}
        values = function(leaf * 1.0, labels, **extra)
        (values * weight).sum().backward()
        found.append((values.detach(), leaf.grad))
    exact = logits.double().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    for values, _ in found:
        torch.testing.assert_close(values.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-5)


def test_the_kernel_takes_verls_place_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(logprobs_from_logits=logprobs_from_logits_v2)
    logprob_kernel._put(engine)
    logprob_kernel._put(engine)
    assert engine.logprobs_from_logits is logprob_kernel.logprobs_from_logits
    with torch.no_grad():
        assert float(engine.logprobs_from_logits(torch.zeros(1, 4), torch.tensor([2]))) == pytest.approx(-math.log(4))
