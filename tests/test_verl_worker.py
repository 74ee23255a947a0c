"""The actor's worker: targets out of verl's own forward, averages of its weights, losses without unscorable samples."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import verl_worker_run as worker_run
from torch import Tensor
from transformers import Qwen3ForCausalLM
from verl.utils import tensordict_utils as tu

from rl_think_ext.errors import UserError
from rl_think_ext.verl import targets
from rl_think_ext.verl.targets import Row, pack

VOCABULARY = 11


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process saw (verl_worker_run.py)."""
    return worker_run.start(tmp_path_factory.mktemp("one") / "worker")[0]


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(worker_run.MODEL, dtype=torch.float64).eval()


@torch.no_grad()
def next_token(model: Qwen3ForCausalLM, ids: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """[T, V] float64 log-probs of what follows each of the ids."""
    return (model(input_ids=torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)


def of_targets(
    model: Qwen3ForCausalLM, prefix: tuple[int, ...], target: tuple[int, ...], without: int | None = None
) -> tuple[Tensor, Tensor]:
    """[K] log-probs of a target behind a prefix, and 1 where it is the likeliest; an id may be ruled out at first."""
    logprob = next_token(model, prefix + target)[len(prefix) - 1 : -1]
    if without is not None:
        logprob[0, without] = -torch.inf
        logprob[0] -= logprob[0].logsumexp(-1)
    return logprob.gather(-1, torch.tensor(target)[:, None])[:, 0], (
        logprob.argmax(-1) == torch.tensor(target)
    ).double()


# -- targets out of logits -------------------------------------------------------------------------------------------


def test_rows_are_packed_as_the_engine_takes_them() -> None:
    data = pack([Row((5, 6, 7, 8), 2), Row((3, 4), 0)], temperature=1.0)
    assert data["input_ids"].values().tolist() == [5, 6, 7, 3, 4]  # the last target is predicted, never read
    assert data["input_ids"].offsets().tolist() == [0, 3, 5]
    assert data["position_ids"].values().tolist() == [0, 1, 2, 0, 1]
    assert data["labels"].values().tolist() == [6, 7, 8, 4, 3]
    assert data["loss_mask"].values().tolist() == [0, 1, 1, 0, 0]
    assert data["temperature"] == 1.0


# Rows of other lengths, one of a single target, one of none, targets in the middle of a padded batch.
ROWS = [Row((5, 6, 7, 8, 9), 2), Row((3, 4), 0), Row((1, 2), 1), Row((9, 3, 3, 3), 3)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_layouts_against_float64(packed: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    data = tu.assign_non_tensor(pack(ROWS), use_remove_padding=packed)
    lengths, forbidden = [row.length for row in ROWS], 8
    per_row = [(torch.randn(n, VOCABULARY) * 4).to(dtype) for n in lengths]
    if packed:
        # What `pad_to_length` puts behind the last row is no position of any.
        logits = torch.cat([*per_row, torch.randn(3, VOCABULARY).to(dtype)])[None]
    else:
        logits = torch.nn.utils.rnn.pad_sequence(per_row, batch_first=True, padding_value=99.0)
    found = targets.of_logits(logits, data, forbidden)
    for i, row in enumerate(ROWS):
        wanted = torch.zeros(3, lengths[i], dtype=torch.float64)
        for k in range(row.num_targets):
            at, label = lengths[i] - row.num_targets + k, row.ids[len(row.ids) - row.num_targets + k]
            exact = per_row[i][at].double()
            allowed = exact.clone()
            if k == 0:
                allowed[forbidden] = -torch.inf
            wanted[0, at] = exact[label] - exact.logsumexp(-1)
            wanted[1, at] = allowed[label] - allowed.logsumexp(-1)
            wanted[2, at] = float(int(allowed.argmax()) == label)
        got = torch.stack([found[name].unbind()[i].double() for name in targets.FIELDS])
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)


def test_a_micro_batch_without_a_target() -> None:
    found = targets.of_logits(torch.randn(1, 5, VOCABULARY), pack([Row((1, 2, 3), 0), Row((4, 5), 0)]), 3)
    assert all(values.values().tolist() == [0.0] * 5 for values in found.values())


def test_the_engine_is_left_as_it_was() -> None:
    class Engine:
        def prepare_model_outputs(self, **kwargs: Any) -> dict[str, Any]:
            return {"own": 1}

    engine, data = Engine(), pack([Row((1, 2, 3), 1)])
    output = SimpleNamespace(logits=torch.randn(1, 2, VOCABULARY))
    rest = {"output_args": {}, "micro_batch": data, "logits_processor_func": None}
    with targets.answered(engine, None, True):
        assert set(engine.prepare_model_outputs(output=output, **rest)) == {*targets.FIELDS, "own"}
    assert engine.prepare_model_outputs() == {"own": 1} and not vars(engine)
    with pytest.raises(ZeroDivisionError), targets.answered(engine, None, True):
        _ = 1 / 0
    assert not vars(engine)
    with targets.answered(engine, None, False):
        assert set(engine.prepare_model_outputs(output=output, **rest)) == set(targets.FIELDS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_fused_kernels": True}, "use_fused_kernels"),
        ({"ulysses_sequence_parallel_size": 2}, "ulysses_sequence_parallel_size"),
        ({"strategy": "megatron"}, "strategy: megatron"),
        ({"strategy": "fsdp"}, "strategy: fsdp "),
    ],
)
def test_engines_that_cannot_score_are_refused(changes: dict[str, Any], named: str) -> None:
    config = {"strategy": "fsdp2", "use_fused_kernels": False, "ulysses_sequence_parallel_size": 1}
    targets.refuse(SimpleNamespace(**config))
    with pytest.raises(UserError, match=named):
        targets.refuse(SimpleNamespace(**{**config, **changes}))


# -- a real engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "without"), [("plain", None), ("restricted", worker_run.FORBIDDEN)])
def test_targets_are_scored_as_the_model_says(
    seen: dict[str, Any], model: Qwen3ForCausalLM, case: str, without
) -> None:
    for i, (prefix, target) in enumerate(worker_run.QUERIES):
        plain, _ = of_targets(model, prefix, target)
        restricted, hit = of_targets(model, prefix, target, without)
        for got, wanted in zip(seen[case], (plain, restricted, hit), strict=True):
            torch.testing.assert_close(torch.tensor(got[i]).double(), wanted, rtol=0, atol=1e-4)


def test_equal_queries_get_one_score_to_the_bit(seen: dict[str, Any]) -> None:
    assert worker_run.QUERIES[1] == worker_run.QUERIES[4]
    assert seen["plain"][0][1] == seen["plain"][0][4]


def test_targets_beside_responses_are_scored_at_temperature_1(seen: dict[str, Any], model: Qwen3ForCausalLM) -> None:
    asked = [(p + r + c, t) for p, r, c, t in worker_run.SAMPLES if t]
    assert len(seen["beside"][0]) == len(asked)
    for i, (prefix, target) in enumerate(asked):
        plain, hit = of_targets(model, prefix, target)
        for got, wanted in zip(seen["beside"], (plain, plain, hit), strict=True):
            torch.testing.assert_close(torch.tensor(got[i]).double(), wanted, rtol=0, atol=1e-4)


def test_responses_are_scored_at_the_sampling_temperature(seen: dict[str, Any], model: Qwen3ForCausalLM) -> None:
    for i, (prompt, response, _, _) in enumerate(worker_run.SAMPLES):
        logprob = next_token(model, prompt + response, worker_run.TEMPERATURE)[len(prompt) - 1 : -1]
        wanted = logprob.gather(-1, torch.tensor(response)[:, None])[:, 0]
        entropy = -(logprob.exp() * logprob).sum(-1)
        torch.testing.assert_close(torch.tensor(seen["logprob"][i]).double(), wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(seen["entropy"][i]).double(), entropy, rtol=0, atol=1e-4)


def test_the_fused_forward_says_what_verls_own_says(seen: dict[str, Any]) -> None:
    for field, own in zip(("logprob", "entropy"), seen["stock"], strict=True):
        for i, (prompt, response, _, _) in enumerate(worker_run.SAMPLES):
            wanted = torch.tensor(own[i][len(prompt) - 1 : len(prompt + response) - 1])
            torch.testing.assert_close(torch.tensor(seen[field][i]), wanted, rtol=1e-6, atol=1e-5)


def test_the_loss_is_a_mean_over_the_samples_with_a_score(seen: dict[str, Any]) -> None:
    # Advantages 1 and 3 at ratios of 1; verl would have divided by the four samples of the mini-batch.
    assert seen["step"]["actor/pg_loss"] == pytest.approx([-2.0], abs=1e-4)
    assert seen["step"]["steps_without_score"] == [0.0]


def test_a_mini_batch_without_a_score_is_no_step(seen: dict[str, Any]) -> None:
    assert seen["none"]["loss"] == [0.0] and seen["none"]["steps_without_score"] == [1.0]
    assert seen["none"]["lr"] == seen["step"]["lr"]  # the schedule goes on
    assert seen["after_none"] == seen["trained"]


def test_f21_one_update_of_the_averages_per_optimizer_step(seen: dict[str, Any]) -> None:
    start, trained = seen["start"], seen["trained"]
    assert [start[f"{name}_updates"] for name in ("ema", "slow", "frozen")] == [0.0] * 3
    assert [trained[f"{name}_updates"] for name in ("ema", "slow", "frozen")] == [1.0] * 3
    assert trained["ema_checksum"] == trained["policy_checksum"] != start["policy_checksum"]  # tau = 0
    assert trained["ema_distance"] == 0.0 < trained["slow_distance"]
    assert trained["slow_checksum"] == pytest.approx(seen["slow_by_hand"], rel=1e-7)
    assert trained["frozen_checksum"] == start["policy_checksum"]


def test_a_step_that_verl_skips_updates_no_average(seen: dict[str, Any]) -> None:
    assert not torch.tensor(seen["not_finite"]["grad_norm"]).isfinite().any()
    assert seen["after_not_finite"] == seen["trained"]


def test_averages_answer_and_the_weights_come_back_to_the_bit(seen: dict[str, Any]) -> None:
    assert seen["plain_frozen"] == seen["plain"] != seen["plain_policy"]
    assert seen["plain_ema"] == seen["plain_policy"]  # tau = 0
    assert seen["same_bits"]


def test_averages_answer_where_a_forward_leaves_gathered_weights(seen: dict[str, Any]) -> None:
    assert seen["plain_frozen_gathered"] == seen["plain"]


def test_f19_averages_are_saved_with_the_checkpoint_and_taken_up_again(seen: dict[str, Any]) -> None:
    endings = ("json", "safetensors")
    assert seen["files"] == [f"{name}.rank0of1.{end}" for name in ("ema", "frozen", "slow") for end in endings]
    assert seen["refused"] is None
    assert seen["loaded"] == seen["saved"] == seen["trained"]


def test_f19_a_missing_average_raises(seen: dict[str, Any]) -> None:
    assert "another.rank0of1.json or its .safetensors is missing" in (seen["missing"] or "")


def test_f19_averages_of_another_number_of_processes_raise(seen: dict[str, Any]) -> None:
    assert "in the parts of 64 processes, here are 1" in (seen["other_ranks"] or "")


def test_with_an_adapter_the_average_is_the_adapters(seen: dict[str, Any]) -> None:
    assert seen["adapter"] and all("lora_" in name for name in seen["adapter"])
    assert seen["adapter_state"]["ema_updates"] == 2.0 and seen["adapter_state"]["ema_distance"] > 0.0
    scores = {
        name: torch.tensor([v for row in seen[f"adapter_{name}"][0] for v in row])
        for name in ("policy", "ema", "by_hand")
    }
    torch.testing.assert_close(scores["ema"], scores["by_hand"], rtol=0, atol=2e-6)
    assert (scores["ema"] - scores["policy"]).abs().max() > 1e-4


def test_an_adapter_and_its_average_are_saved_and_taken_up_by_another_worker(seen: dict[str, Any]) -> None:
    assert seen["adapter_refused"] is None
    assert seen["adapter_loaded"] == seen["adapter_state"]
    for name in ("policy", "ema"):
        assert seen[f"adapter_{name}_loaded"] == seen[f"adapter_{name}"]


def test_weights_that_are_offloaded_between_steps_are_averaged_all_the_same(seen: dict[str, Any]) -> None:
    for name in ("policy_checksum", "ema_checksum", "ema_updates"):
        assert seen["offloaded"][name] == seen["trained"][name]


@pytest.mark.slow
def test_two_processes_say_what_one_says(seen: dict[str, Any], tmp_path: Path) -> None:
    first, second = worker_run.start(tmp_path / "worker", 2)
    for name in ("plain", "restricted", "beside", "logprob", "entropy"):
        assert first[name] == second[name]
        assert close(first[name], seen[name])
    # The second process has one sample of two with a score as well: the denominator is counted over both.
    assert first["step"]["loss"] == pytest.approx(seen["step"]["loss"], abs=1e-4)
    for state in ("start", "trained", "after_none", "after_not_finite", "saved", "loaded", "offloaded"):
        for name, value in seen[state].items():
            # The parts' sums and squared distances add up; every process counts every update.
            both = max if name.endswith("updates") else sum
            assert both([first[state][name], second[state][name]]) == pytest.approx(value, rel=1e-5), (state, name)
    assert first["same_bits"] and second["same_bits"]
    assert first["trained"]["ema_distance"] == second["trained"]["ema_distance"] == 0.0  # tau = 0 on both
    assert first["plain_frozen_gathered"] == first["plain"]
    assert first["plain_frozen"] == first["plain"] and first["plain_ema"] == first["plain_policy"]
    assert len(first["files"]) == 12
    assert "ema.rank1of2.safetensors" in first["files"]


def close(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    return one == other or abs(one - other) < 1e-4  # -inf: the target is the id that is ruled out
