"""The circuit breaker: a judge that is down is given up, looked for with one request, and asked again when back."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from judges import PAIRS, VERDICTS, honest, served, values
from stub_server import Reply, StubServer


def test_a_judge_that_is_down_is_not_asked_for_every_pair() -> None:
    with StubServer(lambda _: Reply(status=500)) as server:
        judge = served(server, breaker_failures=5, max_concurrency=2)
        scores = judge(PAIRS)
        assert 5 <= len(server.requests) <= 6 and values(scores) == [None] * len(PAIRS)
        assert "breaker: given up after 5 failed requests in a row" in str(scores[-1].reason)
        assert judge.stats["breaker_open"] == 1.0 and judge.stats["no_verdict/breaker"] >= len(PAIRS) - 6


def test_an_open_breaker_looks_with_one_request_and_closes_on_an_answer() -> None:
    state = {"down": True}
    with StubServer(lambda r: Reply(status=500) if state["down"] else honest(r)) as server:
        judge = served(server, breaker_failures=3, retries=0, max_concurrency=2)
        judge(PAIRS)
        num_before = len(server.requests)
        scores = judge(PAIRS)
        assert len(server.requests) == num_before + 1 and judge.stats["breaker_open"] == 1.0
        assert "one request that looked for it failed too" in str(scores[-1].reason)
        state["down"] = False
        assert values(judge(PAIRS)) == VERDICTS and judge.stats["breaker_open"] == 0.0
    assert len(server.requests) == num_before + 1 + len(PAIRS)


def test_the_look_is_one_try_and_no_retries() -> None:
    with StubServer(lambda _: Reply(status=500)) as server:
        judge = served(server, breaker_failures=1, retries=1, max_concurrency=1)
        judge(PAIRS)
        assert len(server.requests) == 2
        judge(PAIRS)
        assert len(server.requests) == 3


def test_good_answers_between_failures_keep_the_breaker_closed() -> None:
    with StubServer(lambda r: Reply(status=500) if r.number % 3 else honest(r)) as server:
        judge = served(server, breaker_failures=3, max_concurrency=1)
        found = values(judge(PAIRS))
    assert len(server.requests) == len(PAIRS) and judge.stats["breaker_open"] == 0.0
    assert [i for i, value in enumerate(found) if value is not None] == list(range(0, len(PAIRS), 3))


def test_one_refused_question_opens_no_breaker() -> None:
    with StubServer(lambda r: Reply({"error": "too long"}, 400) if r.number else honest(r)) as server:
        judge = served(server, breaker_failures=3, max_concurrency=1)
        judge(PAIRS)
        assert len(server.requests) == len(PAIRS) and judge.stats["breaker_open"] == 0.0


def test_a_deadline_without_one_answer_opens_the_breaker() -> None:
    with StubServer(lambda _: Reply(fault="hang")) as server:
        judge = served(server, breaker_failures=64, timeout=0.4, deadline=0.4, max_concurrency=4)
        judge(PAIRS)
        num_before = len(server.requests)
        judge(PAIRS)
        assert judge.stats["breaker_open"] == 1.0 and len(server.requests) == num_before + 1


def test_a_judge_that_refuses_is_not_silent() -> None:
    with StubServer(lambda r: Reply({"error": "too long"}, 400) if r.number else Reply(fault="hang")) as server:
        judge = served(server, breaker_failures=64, timeout=5.0, deadline=0.5, max_concurrency=4)
        assert values(judge(PAIRS[:8])) == [None] * 8
        assert judge.stats["no_verdict/http"] == 7 and judge.stats["breaker_open"] == 0.0


def test_a_short_time_that_is_left_does_not_open_the_breaker() -> None:
    with StubServer(lambda r: replace(honest(r), delay=0.3)) as server:
        judge = served(server, breaker_failures=2)
        judge.time_left = 0.05
        judge(PAIRS[:8])
        assert judge.stats["breaker_open"] == 0.0
        judge.time_left = None
        assert values(judge(PAIRS[:8])) == VERDICTS[:8]


def test_f10_another_process_looks_for_itself() -> None:
    with StubServer(lambda r: Reply(status=500) if r.number < 3 else honest(r)) as server:
        judge = served(server, breaker_failures=3, max_concurrency=1)
        judge(PAIRS)
        assert judge.stats["breaker_open"] == 1.0
        again = pickle.loads(pickle.dumps(judge))  # noqa: S301
        assert not again.endpoint.breaker.is_open and values(again(PAIRS)) == VERDICTS


def test_the_breaker_is_one_for_all_threads() -> None:
    with StubServer(lambda _: Reply(status=500, delay=0.01)) as server:
        judge = served(server, breaker_failures=8, max_concurrency=2)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: judge(PAIRS[20 * i : 20 * i + 20]), range(4)))
        assert all(values(scores) == [None] * 20 for scores in found)
    # Eight to open it, the two that were under way, and at most one look of each of the others.
    assert len(server.requests) <= 14
