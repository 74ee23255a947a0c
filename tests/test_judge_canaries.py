"""Canaries: pairs whose verdict is known go with every batch, and are neither kept nor rewarded."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from judges import PAIRS, RIGHT, VERDICTS, WRONG, answer, honest, prompt_of, quotes, served, values
from stub_server import StubServer

from rl_think_ext.scoring.judge import Pair
from rl_think_ext.scoring.judge_canaries import canaries


def test_canaries_are_sent_beside_the_pairs_and_are_no_rewards() -> None:
    with StubServer(honest) as server:
        judge = served(server, num_canaries=4)
        for _ in range(4):
            assert values(judge(PAIRS)) == VERDICTS
            judge.cache = type(judge.cache)(0)
            assert (judge.stats["canary_wrong_accepted"], judge.stats["canary_right_accepted"]) == (0.0, 1.0)
            assert (judge.stats["num_canaries"], judge.stats["num_asked"]) == (4, len(PAIRS))
    assert len(server.requests) == 4 * (len(PAIRS) + 4)
    own = {prompt for prompt in map(prompt_of, server.requests) if quotes(prompt) not in PAIRS}
    assert any("Score: 1" in quotes(prompt)[1] for prompt in own)
    assert any(quotes(prompt)[1].startswith("The ") for prompt in own)


@pytest.mark.parametrize("reward", ["prefix", "strict"])
def test_a_judge_that_accepts_all_is_seen(reward: str) -> None:
    with StubServer(lambda _: answer("Score: 1")) as server:
        judge = served(server, num_canaries=4, reward=reward)
        judge(PAIRS)
        assert (judge.stats["canary_wrong_accepted"], judge.stats["canary_right_accepted"]) == (1.0, 1.0)


def test_a_judge_that_accepts_nothing_is_seen() -> None:
    with StubServer(lambda _: answer("Score: 0")) as server:
        judge = served(server, num_canaries=4)
        judge(PAIRS)
        assert (judge.stats["canary_wrong_accepted"], judge.stats["canary_right_accepted"]) == (0.0, 0.0)


def test_canaries_without_a_verdict_are_neither_right_nor_wrong() -> None:
    with StubServer(lambda _: answer("Perhaps.")) as server:
        judge = served(server, num_canaries=4)
        judge(PAIRS)
        assert all(math.isnan(judge.stats[f"canary_{kind}_accepted"]) for kind in ("wrong", "right"))
        assert judge.stats["num_unscorable"] == len(PAIRS)


def test_canaries_are_never_kept(tmp_path: Path) -> None:
    with StubServer(honest) as server:
        judge = served(server, num_canaries=4, cache_file=str(tmp_path / "verdicts.sqlite"))
        judge(PAIRS)
        assert judge.stats["cache_size"] == len(PAIRS)
        num_before = len(server.requests)
        assert values(judge(PAIRS)) == VERDICTS
        assert len(server.requests) == num_before and math.isnan(judge.stats["canary_right_accepted"])


def test_few_pairs_have_few_canaries() -> None:
    with StubServer(honest) as server:
        judge = served(server, num_canaries=4)
        for i in range(4):
            judge(PAIRS[i : i + 1])
            assert judge.stats["num_canaries"] == 1
    assert len(server.requests) == 8


def test_canaries_of_two_judges_are_the_same() -> None:
    prompts = []
    for _ in range(2):
        with StubServer(honest) as server:
            judge = served(server, num_canaries=4)
            judge(PAIRS), judge(WRONG), judge(RIGHT)
        prompts.append(sorted(quotes(prompt_of(request)) for request in server.requests))
    assert prompts[0] == prompts[1]


def test_a_wrong_canary_has_nothing_in_common_with_its_reference() -> None:
    texts = ["The captain inspected engine {} before breakfast. He smiled."] * 2
    texts += ["Purple clouds gathered above meadow {} yesterday. It poured."] * 2
    pairs = [Pair(text.format(i), "x") for i, text in enumerate(texts * 5)] + [Pair("水は流れる。", "y"), *PAIRS[:3]]
    own = 0
    for turn in range(40):
        for canary in canaries(pairs, 4, turn, whole=False):
            said = set(re.findall(r"\w{5,}", canary.pair.prediction.lower()))
            assert canary.right or not said & set(re.findall(r"\w{5,}", canary.pair.reference.lower()))
            assert not canary.right or canary.pair.reference.startswith(canary.pair.prediction)
            own += not canary.right and any(pair.reference.startswith(canary.pair.prediction) for pair in pairs)
    assert own >= 20  # of 40 that no order is in
