"""The rollout that stands in for vLLM in the runs of verl on a CPU: what it samples, and that it does so again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from rl_think_ext.tiny import PROGRAMS_MODEL

pytest.importorskip("verl")

from support.rollout import HFServer
from support.sampling import Sampling, draw


@pytest.fixture(scope="module")
def server() -> HFServer:
    return HFServer(str(PROGRAMS_MODEL), response_length=12, seed=3)


def ids(server: HFServer, text: str) -> list[int]:
    return list(server.tokenizer(text)["input_ids"])


def ask(server: HFServer, text: str = "a=2 b=a+5 b?<think>", step: int = 0, **params: Any) -> Any:
    """One answer, as if nothing had been asked in this step."""
    asyncio.run(server.load(server.model.state_dict(), step))
    return asyncio.run(server.generate("id", ids(server, text), {"logprobs": True, **params}))


def test_a_draw_depends_on_seed_step_prompt_rollout_and_turn_alone(server: HFServer) -> None:
    first = ask(server).token_ids
    assert ask(server).token_ids == first, "a run that was resumed samples the same"
    again = [asyncio.run(server.generate("x", ids(server, "a=2 b=a+5 b?<think>"), {})).token_ids for _ in range(3)]
    others = [ask(server, step=1), ask(server, rollout=1), ask(server, "a=3 b=a+5 b?<think>")]
    assert len({tuple(first), *map(tuple, again), *(tuple(other.token_ids) for other in others)}) >= 5
    other = HFServer(str(PROGRAMS_MODEL), response_length=12, seed=4)
    assert ask(other).token_ids != first


def test_log_probs_are_those_of_one_forward_over_the_whole(server: HFServer) -> None:
    answer = ask(server, temperature=0.7)
    prompt = ids(server, "a=2 b=a+5 b?<think>")
    with torch.no_grad():
        logits = server.model(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1] / 0.7
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0]
    assert answer.log_probs == pytest.approx(wanted.tolist(), abs=1e-4)
    assert ask(server, logprobs=False).log_probs is None


def test_greedy_top_k_of_one_and_a_small_top_p_agree(server: HFServer) -> None:
    greedy = ask(server, temperature=0).token_ids
    assert ask(server, top_k=1).token_ids == ask(server, top_p=1e-6).token_ids == greedy


def test_top_p_keeps_the_smallest_head_that_holds_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    sampling = Sampling(4, frozenset(), top_p=0.7)
    drawn = [draw(logits, sampling, uniform / 100) for uniform in range(100)]
    assert [token for token, _ in drawn].count(0) == 63, "0.5 of 0.8"
    assert {token for token, _ in drawn} == {0, 1}
    assert drawn[0][1] == pytest.approx(torch.tensor(0.5 / 0.8).log().item())


def test_a_stop_token_and_the_tokens_of_a_stop_text_stay_in(server: HFServer) -> None:
    whole = ask(server, temperature=0, max_tokens=8, ignore_eos=True).token_ids
    assert len(whole) == 8
    token = next(token for token in whole if whole.index(token) >= 2)
    until = whole[: whole.index(token) + 1]
    assert ask(server, temperature=0, max_tokens=8, ignore_eos=True, stop_token_ids=[token]).token_ids == until
    text = server.tokenizer.decode([token], skip_special_tokens=False)
    stop = {"stop": [text], "include_stop_str_in_output": True}
    assert ask(server, temperature=0, max_tokens=8, ignore_eos=True, **stop).token_ids == until


def test_prompt_log_probs_are_shifted_and_closed_by_a_zero(server: HFServer) -> None:
    prompt = ids(server, "a=2 b=a+5 b?<think>")
    for num in (0, 3):
        extra = ask(server, prompt_logprobs=num, max_tokens=1).extra_fields
        assert len(extra["prompt_logprobs"]) == len(extra["prompt_ids"]) == len(prompt)
        assert {len(row) for row in extra["prompt_ids"]} == {max(1, num)}
        assert extra["prompt_logprobs"][-1] == [0.0] * max(1, num)
    assert [row[0] for row in ask(server, prompt_logprobs=0, max_tokens=1).extra_fields["prompt_ids"]] == [
        *prompt[1:],
        0,
    ]


def test_a_parameter_that_vllm_does_not_know_raises(server: HFServer) -> None:
    with pytest.raises(TypeError, match="stop_tokens"):
        ask(server, stop_tokens=[3])


def test_weights_of_another_model_raise(server: HFServer) -> None:
    weights = dict(server.model.state_dict())
    weights["model.norm.wrong"] = weights.pop("model.norm.weight")
    with pytest.raises(ValueError, match=r"missing .*norm.weight.* unexpected .*norm.wrong"):
        asyncio.run(server.load(weights, 1))
