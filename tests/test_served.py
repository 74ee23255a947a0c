"""A reward model behind a server that speaks vLLM's /classify; the real one is in test_servers.py."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from reward_models import Chat, chat, reward_tokenizer
from stub_server import Reply, Request, StubServer

from rl_think_ext.errors import UserError
from rl_think_ext.records import Score
from rl_think_ext.scoring.endpoint import EndpointConfig
from rl_think_ext.scoring.reward_cache import ScoreCache
from rl_think_ext.scoring.reward_input import RewardInput, RewardTemplate
from rl_think_ext.scoring.served import INPUTS_PER_REQUEST, ServedRewardModel

CHATS = [chat(f"question {i}", f"answer {i * i}") for i in range(40)]
LONG = chat("question", "answer " * 200)


def score(ids: list[int]) -> float:
    return sum(i * number for i, number in enumerate(ids)) % 1000 / 100


def rows(request: Request) -> list[dict[str, Any]]:
    return [{"index": i, "probs": [score(ids)], "num_classes": 1} for i, ids in enumerate(request.json["input"])]


def classify(request: Request) -> Reply:
    num_tokens = sum(map(len, request.json["input"]))
    return Reply({"data": rows(request)[::-1], "usage": {"prompt_tokens": num_tokens}})


def served(server: StubServer | str, max_length: int = 512, **changes: Any) -> ServedRewardModel:
    url = server if isinstance(server, str) else server.url
    more = {name: changes.pop(name) for name in ("time_limit", "cache_size", "noise_share", "model") if name in changes}
    config = EndpointConfig(url, **({"retries": 0, "timeout": 5.0, "max_concurrency": 2} | changes))
    return ServedRewardModel(config, RewardTemplate(reward_tokenizer("llama"), max_length), **more)


def expected(model: ServedRewardModel, chats: list[Chat]) -> list[Score]:
    found = [model.encode(messages) for messages in chats]
    return [Score(score(list(one.ids))) if isinstance(one, RewardInput) else one for one in found]


def reasons(answer: Callable[[Request], Reply], num: int = 3, **changes: Any) -> list[str | None]:
    with StubServer(answer) as server:
        model = served(server, noise_share=0.0, **changes)
        scores = model(CHATS[:num])
    assert model.stats["num_unscorable"] == sum(one.value is None for one in scores)
    return [one.reason for one in scores]


def test_f7_scores_go_by_the_servers_index() -> None:
    with StubServer(classify) as server:
        model = served(server, model="rm")
        assert model(CHATS) == expected(model, CHATS)
    assert {request.path for request in server.requests} == {"/classify"}
    assert {(r.json["model"], r.json["use_activation"]) for r in server.requests} == {("rm", False)}
    assert max(len(request.json["input"]) for request in server.requests) == INPUTS_PER_REQUEST


def test_token_ids_with_one_bos_are_all_that_is_sent() -> None:
    with StubServer(classify) as server:
        model = served(server)
        model(CHATS[:5])
    sent = [ids for request in server.requests for ids in request.json["input"]]
    bos = model.template.tokenizer.bos_token_id
    assert sent and all(ids.count(bos) == 1 and ids[0] == bos for ids in sent)
    assert all(set(request.json) == {"input", "use_activation"} for request in server.requests)


def test_f8_equal_inputs_are_asked_once_and_scored_alike() -> None:
    with StubServer(lambda r: Reply({"data": [row | {"probs": [r.number]} for row in rows(r)]})) as server:
        model = served(server, noise_share=0.0)
        first = model([CHATS[0], CHATS[1], CHATS[0]])
        assert first[0] == first[2] and model.stats["num_asked"] == 2
        assert model([CHATS[1], CHATS[2]])[0] == first[1]
        assert (model.stats["num_asked"], model.stats["num_cached"]) == (1, 1)
    assert sum(len(request.json["input"]) for request in server.requests) == 3


def test_f8_noise_is_the_difference_in_other_company() -> None:
    def noisy(request: Request) -> Reply:
        alone = len(request.json["input"]) == 1
        return Reply({"data": [row | {"probs": [row["probs"][0] + 0.25 * alone]} for row in rows(request)]})

    with StubServer(noisy) as server:
        model = served(server, noise_share=0.1)
        scores = model(CHATS)
        assert scores == expected(model, CHATS) and model.stats["noise"] == pytest.approx(0.25)
        model(CHATS)
        assert math.isnan(model.stats["noise"])


def test_what_could_not_be_scored_is_asked_anew() -> None:
    with StubServer(lambda r: Reply(status=500) if r.number == 0 else classify(r)) as server:
        model = served(server, noise_share=0.0)
        assert [one.reason for one in model(CHATS[:2])] == ["reward server: http 500: {}", None]
        assert model(CHATS[:2]) == expected(model, CHATS[:2])
        assert (model.stats["num_asked"], model.stats["num_cached"]) == (1, 1)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e39, 10**400, None, "0.5", True, [0.5], {}], ids=str
)  # fmt: skip
def test_f5_f12_a_value_that_is_no_number_is_none(value: Any) -> None:
    def answer(request: Request) -> Reply:
        return Reply({"data": [row | ({"probs": [value]} if row["index"] == 1 else {}) for row in rows(request)]})

    found = reasons(answer, num=3, max_concurrency=1)
    assert found[0] is None and found[2] is None
    assert found[1] is not None and found[1].startswith("reward server: not finite")


@pytest.mark.parametrize("probs", [[], [0.1, 0.9], 0.5, None])
def test_f5_several_labels_are_no_reward(probs: Any) -> None:
    found = reasons(lambda r: Reply({"data": [row | {"probs": probs} for row in rows(r)]}))
    assert all(reason is not None and "not one number" in reason for reason in found)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: [*data, data[0]],
        lambda data: [row | {"index": 0} for row in data],
        lambda data: [row | {"index": row["index"] + 1} for row in data],
        lambda data: [row | {"index": str(row["index"])} for row in data],
        lambda data: [{"probs": row["probs"]} for row in data],
        lambda data: [row | {"index": []} for row in data],
        lambda data: {"0": 1},
        lambda data: None,
        lambda data: [None] * len(data),
    ],
)
def test_f5_f7_scores_that_cannot_be_told_apart_are_none(change: Callable[[Any], Any]) -> None:
    found = reasons(lambda r: Reply({"data": change(rows(r))}), num=4, max_concurrency=1)
    assert all(reason is not None and reason.startswith("reward server: unreadable") for reason in found)


@pytest.mark.parametrize("body", [b"<html></html>", b"", b"null", b"[]", b"5", b'{"data": [{"index": 0, "pro'])
def test_f5_another_servers_reply_is_none(body: bytes) -> None:
    found = reasons(lambda _: Reply(body))
    assert all(reason is not None and reason.startswith("reward server: unreadable") for reason in found)


def test_a_server_that_read_other_tokens_than_were_sent_is_not_believed() -> None:
    def one_more(request: Request) -> Reply:
        num_tokens = sum(len(ids) + 1 for ids in request.json["input"])
        return Reply({"data": rows(request), "usage": {"prompt_tokens": num_tokens}})

    assert all(reason is not None and "other input" in reason for reason in reasons(one_more))


def test_an_input_that_the_server_refuses_does_not_take_others_along() -> None:
    def picky(request: Request) -> Reply:
        too_long = any(len(ids) > 200 for ids in request.json["input"])
        return Reply({"error": "too long"}, 400) if too_long else classify(request)

    with StubServer(picky) as server:
        model = served(server, max_length=10_000, max_concurrency=1)
        scores = model([*CHATS[:3], LONG])
        assert scores[:3] == expected(model, CHATS[:3])
        assert scores[3].reason == 'reward server: http 400: {"error": "too long"}'


@pytest.mark.parametrize("status", [400, 404])
def test_f4_a_server_that_refuses_everything_is_a_wrong_setting(status: int) -> None:
    with (
        StubServer(lambda _: Reply({"error": "The model `x` does not exist."}, status)) as server,
        pytest.raises(UserError, match="The model `x` does not exist"),
    ):
        served(server)(CHATS)


def test_f2_a_call_takes_no_longer_than_its_time_limit() -> None:
    with StubServer(lambda r: Reply(fault="hang") if r.number else classify(r)) as server:
        model = served(server, time_limit=0.5)
        scores = model(CHATS)
    assert model.stats["seconds"] < 2
    assert scores[0].value is not None and scores[-1].reason == "reward server: deadline: no answer within 0.5 s"


def test_f2_the_second_look_at_refused_inputs_is_within_the_same_limit() -> None:
    def slow(request: Request) -> Reply:
        return Reply({"error": "no"}, 400, delay=0.6) if len(request.json["input"]) > 1 else Reply(fault="hang")

    with StubServer(slow) as server:
        model = served(server, time_limit=1.0, noise_share=0.0)
        assert {one.value for one in model(CHATS)} == {None}
    assert model.stats["seconds"] < 1.4


def test_f11_the_same_numbers_are_told_whether_or_not_the_server_answers() -> None:
    with StubServer(classify) as server:
        good = served(server)
        good(CHATS)
    bad = served("http://127.0.0.1:1")
    assert [one.value for one in bad(CHATS)] == [None] * len(CHATS)
    nothing = served("http://127.0.0.1:1")
    assert nothing([]) == []
    assert set(good.stats) == set(bad.stats) == set(nothing.stats)
    assert good.endpoint.config.max_concurrency == 2


def test_f10_a_pickled_model_gives_equal_scores() -> None:
    with StubServer(classify) as server:
        model = served(server)
        first = model(CHATS[:5])
        sent = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
        assert sent(CHATS) == expected(model, CHATS)
        assert model(CHATS[:5]) == first


def test_an_answer_that_is_too_long_is_not_sent() -> None:
    with StubServer(classify) as server:
        model = served(server, max_length=64, noise_share=0.0)
        scores = model([LONG, chat("word " * 100, "answer"), CHATS[0]])
    assert scores[0].value is None and scores[1].value is not None
    assert (model.stats["num_cut"], model.stats["num_unscorable"]) == (1, 1)
    assert max(len(ids) for request in server.requests for ids in request.json["input"]) == 64


def test_the_cache_keeps_the_last_scores() -> None:
    asked: list[tuple[int, ...]] = []

    def compute(keys: list[tuple[int, ...]]) -> list[Score]:
        asked.extend(keys)
        return [Score(float(sum(key))) if sum(key) else Score.unscorable("zero") for key in keys]

    cache = ScoreCache(2)
    assert [one.value for one in cache.ask([(1,), (2,), (1,), (0,)], compute)] == [1.0, 2.0, 1.0, None]
    assert asked == [(1,), (2,), (0,)] and (cache.num_asked, cache.num_cached) == (3, 0)
    cache.ask([(1,), (3,), (0,)], compute)  # 2 is the oldest now and goes
    assert asked[3:] == [(3,), (0,)] and (cache.num_asked, cache.num_cached) == (2, 1)
    cache.ask([(1,), (2,)], compute)
    assert asked[5:] == [(2,)]
    assert cache.ask([], compute) == [] and (cache.num_asked, cache.num_cached) == (0, 0)
    assert [one.value for one in ScoreCache(0).ask([(1,), (1,)], compute)] == [1.0, 1.0]
    assert asked[6:] == [(1,)]
    with pytest.raises(ValueError, match="2 inputs were given 1 scores"):
        cache.ask([(7,), (8,)], lambda keys: [Score(1.0)])
    with pytest.raises(ValueError, match="0 or more"):
        ScoreCache(-1)
