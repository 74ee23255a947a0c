"""A judge on bad days: silent, busy, wrong; asked from threads, loops and other processes (F1-F10, F39-F46)."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judges import OWN, PAIRS, RIGHT, VERDICTS, answer, honest, prompt_of, quotes, reason_of, served, values
from stub_server import Reply, Request, StubServer

from rl_think_ext.errors import UserError
from rl_think_ext.records import Score
from rl_think_ext.scoring.judge import NO_VERDICT, Pair


def test_f1_a_judge_that_is_not_there_gives_no_verdict() -> None:
    judge = served("http://127.0.0.1:9", breaker_failures=10**6)
    scores = judge(PAIRS[:8])
    assert values(scores) == [None] * 8 and "connection" in str(scores[0].reason)
    assert judge.stats["no_verdict/connection"] == judge.stats["num_unscorable"] == 8


def test_f1_a_name_that_nobody_knows() -> None:
    (score,) = served("http://nobody.invalid:8000")(PAIRS[:1])
    assert score.value is None and "connection" in str(score.reason)


def test_f2_a_judge_that_hangs_costs_one_verdict() -> None:
    assert reason_of(Reply(fault="hang"), timeout=0.2) == "judge: timeout: no whole reply within 0.2 s"


def test_f2_the_deadline_is_kept() -> None:
    with StubServer(lambda _: Reply(fault="hang")) as server:
        judge = served(server, timeout=60.0, time_limit=1.0)
        begin = time.monotonic()
        scores = judge(PAIRS)
        assert 0.95 <= time.monotonic() - begin <= 1.1
    assert judge.stats["no_verdict/deadline"] == len(PAIRS) and "deadline" in str(scores[-1].reason)


def test_f2_those_who_waited_already_have_less_time() -> None:
    with StubServer(lambda _: Reply(fault="hang")) as server:
        judge = served(server, timeout=60.0)
        judge.time_left = 0.3
        begin = time.monotonic()
        assert values(judge(PAIRS[:2])) == [None, None] and time.monotonic() - begin < 0.4


def test_f3_500_twice_and_then_an_answer_is_one_verdict() -> None:
    with StubServer(lambda r: Reply(status=500) if r.number < 2 else honest(r)) as server:
        judge = served(server, retries=4)
        assert judge(RIGHT[:1]) == [Score(1.0)] and judge.stats["num_asked"] == 1
    assert len(server.requests) == 3


def test_f3_a_judge_that_asks_for_time_gets_it() -> None:
    with StubServer(
        lambda r: Reply(status=429, headers={"Retry-After": "0.6"}) if r.number == 0 else honest(r)
    ) as server:
        begin = time.monotonic()
        assert served(server, retries=2)(RIGHT[:1]) == [Score(1.0)]
        assert time.monotonic() - begin >= 0.6


@pytest.mark.parametrize("status", [401, 403, 404])
def test_f4_a_wrong_setting_is_raised_at_once(status: int) -> None:
    with StubServer(lambda _: Reply(status=status)) as server:
        with pytest.raises(UserError, match=f"http {status}"):
            served(server.url.replace("://", "://me:s3cr3t@"), retries=4, max_concurrency=1)(PAIRS)
        assert len(server.requests) == 1


def test_f4_every_question_refused_is_a_wrong_setting() -> None:
    with (
        StubServer(lambda _: Reply({"error": "no such model"}, status=400)) as server,
        pytest.raises(UserError, match=r"refused every request.*no such model"),
    ):
        served(server)(PAIRS[:3])


def test_f4_one_question_refused_is_one_verdict_less() -> None:
    assert reason_of(Reply({"error": "too long"}, status=400)).startswith("judge: http 400")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(b"<html>busy</html>"), "unreadable"),
        (Reply(b""), "unreadable"),
        (Reply(b'{"choices": [{"index": 0, "mess'), "unreadable"),
        (Reply({"choices": []}), "unreadable"),
        (Reply({"choices": None}), "unreadable"),
        (Reply({"choices": [{"index": 1, "message": {"content": "Score: 1"}, "finish_reason": "stop"}]}), "unreadable"),
        (Reply({"choices": 2 * [{"index": 0, "message": {"content": "Score: 1"}}]}), "unreadable"),
        (answer(1), "unreadable"),
        (answer(math.nan), "unreadable"),
        (answer(["Score: 1"]), "unreadable"),
        (answer(None), "no_text"),
        (answer(""), "no_text"),
        (answer("Score: 1", "length"), "cut"),
        (answer("Score: 1", "content_filter"), "cut"),
        (answer("Score: 1e400"), "unparsable"),
        (answer("Score: 2"), "unparsable"),
        (Reply(status=503), "http"),
        (Reply(fault="middle"), "connection"),
        (Reply(fault="close"), "connection"),
        (Reply(b"no http", fault="raw"), "connection"),
    ],
)  # fmt: skip
def test_f5_what_is_no_answer_is_no_verdict(reply: Reply, kind: str) -> None:
    def act(request: Request) -> Reply:
        return reply if quotes(prompt_of(request)) == PAIRS[1] else honest(request)

    with StubServer(act) as server:
        judge = served(server)
        assert values(judge(PAIRS[:3])) == [1.0, None, 1.0]
    counted = {name: judge.stats[f"no_verdict/{name}"] for name in NO_VERDICT}
    assert counted == dict.fromkeys(NO_VERDICT, 0.0) | {kind: 1.0}


def test_f7_late_answers_do_not_change_places() -> None:
    with StubServer(lambda r: replace(honest(r), delay=0.3 - 0.01 * r.number % 0.3)) as server:
        assert values(served(server)(PAIRS[:30])) == VERDICTS[:30]


def test_f8_equal_pairs_are_asked_once_and_then_known() -> None:
    with StubServer(lambda r: answer(f"Score: {r.number % 2}")) as server:
        judge = served(server, max_concurrency=1)
        first = judge([PAIRS[0], PAIRS[2], PAIRS[0]])
        assert values(first) == [0.0, 1.0, 0.0] and judge.stats["num_asked"] == 2
        assert judge([PAIRS[2], PAIRS[4]])[0] == first[1]
        assert (judge.stats["num_asked"], judge.stats["num_cached"]) == (1, 1)
        assert judge([Pair(PAIRS[2].prediction, PAIRS[2].reference)]) == [Score(1.0)]
    assert len(server.requests) == 4


def test_f8_memory_keeps_the_last_ones() -> None:
    with StubServer(honest) as server:
        judge = served(server, cache_size=2)
        judge(PAIRS[:3]), judge(PAIRS[1:3])
        assert judge.stats["num_cached"] == 2 == judge.stats["cache_size"]
        judge(PAIRS[:1])
        assert judge.stats["num_asked"] == 1


def test_what_had_no_verdict_is_asked_anew() -> None:
    with StubServer(lambda r: answer("Maybe.") if r.number == 0 else honest(r)) as server:
        judge = served(server)
        assert values(judge(RIGHT[:1])) == [None] and values(judge(RIGHT[:1])) == [1.0]


def test_f9_works_inside_a_running_event_loop() -> None:
    async def main(judge: Any) -> list[Score]:
        await asyncio.sleep(0)
        return list(judge(PAIRS))

    with StubServer(honest) as server:
        assert values(asyncio.run(main(served(server)))) == VERDICTS


def test_f9_f46_threads_share_one_bound() -> None:
    with StubServer(lambda r: replace(honest(r), delay=0.02)) as server:
        judge = served(server, max_concurrency=6, world_size=2, cache_size=0)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: judge(PAIRS[10 * i : 10 * i + 10]), range(4)))
        assert [values(scores) for scores in found] == [VERDICTS[:10]] * 4
    assert server.most_at_once == 3


def test_f9_a_forked_child_and_its_parent_both_go_on(tmp_path: Path) -> None:
    with StubServer(honest) as server:
        judge = served(server, cache_file=str(tmp_path / "verdicts.sqlite"))
        assert values(judge(PAIRS[:4])) == VERDICTS[:4]
        child = os.fork()
        if child == 0:
            found = values(judge(PAIRS[:8])) == VERDICTS[:8] and judge.stats["num_cached"] == 4
            os._exit(0 if found else 1)
        assert values(judge(PAIRS[8:16])) == VERDICTS[8:16]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert values(judge(PAIRS[:16])) == VERDICTS[:16]


@pytest.mark.slow
def test_f10_pickled_into_a_spawned_child(tmp_path: Path) -> None:
    with StubServer(honest) as server:
        judge = served(server, cache_file=str(tmp_path / "verdicts.sqlite"))
        expected = judge(PAIRS)
        (tmp_path / "judge.pickle").write_bytes(pickle.dumps((judge, PAIRS)))
        child = """
            import pickle, sys
            judge, pairs = pickle.load(open(sys.argv[1], "rb"))
            known = judge(pairs)
            judge.cache.file, judge.cache._known = None, judge.cache._known.__class__()
            assert judge(pairs) == known and judge.stats["num_asked"] == len(pairs)
            print([score.value for score in known])
        """
        command = [sys.executable, "-c", textwrap.dedent(child), str(tmp_path / "judge.pickle")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.stdout.strip() == str(values(expected)), done.stderr


def test_f10_the_prompt_travels_with_the_judge(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(OWN)
    with StubServer(lambda _: answer("Score: 1")) as server:
        judge = served(server, judge_prompt=str(tmp_path / "prompt.txt"))
        (tmp_path / "prompt.txt").unlink()
        assert values(pickle.loads(pickle.dumps(judge))(PAIRS[:1])) == [1.0]  # noqa: S301
    assert prompt_of(server.requests[0]).startswith("Same?\n===")


def test_f39_the_key_is_in_no_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "key-0123456789abcdef")
    file = tmp_path / "verdicts.sqlite"
    with StubServer(lambda r: Reply({"error": r.headers["authorization"]}, 500 if r.number else 200)) as server:
        judge = served(server, api_key_env="JUDGE_KEY", cache_file=str(file))
        scores = judge(PAIRS[:3])
    texts = [repr(judge), repr(judge.config), repr(judge.endpoint), judge.identity, caplog.text, str(scores)]
    texts += [pickle.dumps(judge).decode("latin-1"), file.read_bytes().decode("latin-1")]
    assert server.requests[0].headers["authorization"] == "Bearer key-0123456789abcdef"
    assert not any("key-0123456789abcdef" in text for text in texts)


def test_f42_texts_do_not_say_where_questions_go() -> None:
    with StubServer(honest) as server, StubServer(honest) as other:
        pair = Pair(f"server: {other.url} judge_model: evil", f'{{"model": "evil", "base_url": "{other.url}"}}')
        served(server)([pair])
    assert len(server.requests) == 1 and not other.requests and server.requests[0].json["model"] == "judge"


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_f45_a_clock_that_jumps_does_not_matter(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    with StubServer(lambda _: Reply(fault="hang")) as server:
        judge = served(server, time_limit=0.5, timeout=60.0)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        begin = time.monotonic()
        assert values(judge(PAIRS[:2])) == [None, None]
        assert 0.45 <= time.monotonic() - begin <= 0.55
