"""A judge behind a server: what it is asked, what its answer means, a prompt of the user's own."""

from __future__ import annotations

import importlib.util
import math
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judges import (
    OWN,
    PAIRS,
    RIGHT,
    TEXTS,
    VERDICTS,
    answer,
    config,
    honest,
    prompt_of,
    quotes,
    reason_of,
    served,
    values,
)
from stub_server import Reply, Request, StubServer

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.methods.verdict import PROMPTS, judge_prompt, parse_verdict, template_fault
from rl_think_ext.scoring.judge import STATS, Pair, RuleJudge, load_judge


def test_what_is_asked_and_what_comes_back() -> None:
    with StubServer(honest) as server:
        judge = served(server)
        assert values(judge(PAIRS)) == VERDICTS
    bodies = [request.json for request in server.requests]
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert sorted(quotes(prompt_of(request)) for request in server.requests) == sorted(PAIRS)
    same = {"model": "judge", "temperature": 0.0, "top_p": 1.0, "max_tokens": 16, "n": 1}
    assert all({name: body[name] for name in body if name != "messages"} == same for body in bodies)
    stats = judge.stats
    assert set(stats) == set(STATS) and (stats["num_asked"], stats["num_cached"]) == (80, 0)
    assert (stats["prompt_tokens"], stats["completion_tokens"]) == (8000, 320)
    assert 0 < stats["latency_p50"] <= stats["latency_p95"] < stats["seconds"]


def test_every_question_has_a_mark_of_its_own() -> None:
    with StubServer(honest) as server:
        judge = served(server, cache_size=0)
        judge(PAIRS), judge(PAIRS)
    marks = {
        mark for request in server.requests for mark in re.findall(r"^=+\w{16}$", prompt_of(request), re.MULTILINE)
    }
    assert len(marks) == len(server.requests) == 2 * len(PAIRS)


@pytest.mark.parametrize(
    ("thinks", "sent"), [(None, None), (False, {"enable_thinking": False}), (True, {"enable_thinking": True})]
)
def test_the_chat_template_is_told_whether_to_think(thinks: bool | None, sent: Any) -> None:
    with StubServer(honest) as server:
        served(server, judge_thinking=thinks)(PAIRS[:1])
    sent = None if thinks is None else {"enable_thinking": thinks}
    assert server.requests[0].json.get("chat_template_kwargs") == sent


def test_nothing_to_judge() -> None:
    judge = served("http://127.0.0.1:9", num_canaries=4)
    assert judge([]) == []
    assert set(judge.stats) == set(STATS) and judge.stats["num_asked"] == 0 and math.isnan(judge.stats["latency_p50"])


def test_the_rule_has_the_same_stats() -> None:
    judge = load_judge(RLPTConfig(judge="rule"))
    assert values(judge(PAIRS)) == VERDICTS and set(judge.stats) == set(STATS)
    strict = RuleJudge(RLPTConfig(judge="rule", reward="strict"))
    assert values(strict([RIGHT[0], Pair(TEXTS[0], TEXTS[0].upper())])) == [0.0, 1.0]


@pytest.mark.parametrize("missing", ["server", "judge_model"])
def test_settings_without_a_judge_are_refused(missing: str) -> None:
    with pytest.raises(UserError, match=f"`{missing}` is not set"):
        load_judge(replace(config("http://host:8000"), **{missing: None}))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Score: 1", 1), ("Score: 0", 0), (" Score:1\n", 1), ("\n\nScore: 0\n", 0),
        ("", None), ("1", None), ("score: 1", None), ("Score: 1.", None), ("**Score: 1**", None), ("Score: 10", None),
        ("Score: 0\nScore: 1", None), ("Score: 1 Score: 1", None), ("Score:\n1", None), ("Score: 2", None),
        ("The text says Score: 1", None), ("Score: 1 because", None), ("Score: １", None), ("Score: 1\x00", None),
        ("<think></think>Score: 1", None), ("Score： 1", None), ('{"Score": 1}', None),
    ],
)  # fmt: skip
def test_f25_an_output_is_one_verdict_and_nothing_else(text: str, verdict: int | None) -> None:
    assert parse_verdict(text) == verdict
    if verdict is None and text:
        assert reason_of(answer(text)).startswith("judge: unparsable: it said ")


def test_f12_a_verdict_is_0_or_1_or_none() -> None:
    def mixed(request: Request) -> Reply:
        return answer(["Score: nan", "Score: inf", "Score: -1", "Score: 0.5", "NaN", "Score: 1"][request.number % 6])

    with StubServer(mixed) as server:
        judge = served(server, max_concurrency=1)
        assert values(judge(PAIRS[:6])) == [None] * 5 + [1.0]
    assert judge.stats["no_verdict/unparsable"] == 5


@pytest.mark.parametrize(
    "text",
    [
        "{reference} {prediction} {boundary} {0} {} %s %(x)d $x {{x}} {% if %}", "\\1 \\g \\n", "a\r\nb\tc",
        "emoji 🙂 👩\u200d👧, RTL \u202eabc\u202c, zero\u200bwidth",
        "“quotes” and 'ticks' `code`", "x" * 4000, "第一句。第二句。",
        "[1] [2, 3] and a sic [sic]", "5 < 6, x <= y",
    ],
)  # fmt: skip
def test_f28_texts_arrive_as_they_are(text: str) -> None:
    with StubServer(lambda _: answer("Score: 0")) as server:
        assert values(served(server)([Pair(f"It says {text}", text)])) == [0.0]
    assert quotes(prompt_of(server.requests[0])) == (f"It says {text}", text)


def test_f29_half_characters_and_controls_can_be_sent() -> None:
    with StubServer(honest) as server:
        judge = served(server)
        assert values(judge([Pair("A\ud800 b\x00 c. More.", "A\ud800 b\x00 c.")])) == [1.0]
        assert values(judge([Pair("A\ud800 b\x00 c. More.", "A\ud800 b\x00 c.")])) == [1.0]
    assert quotes(prompt_of(server.requests[0]))[1] == "A\ufffd b\ufffd c."


def test_a_mark_that_stands_in_a_text_is_refused() -> None:
    for pair in (("a m5 b", "c"), ("a", "c m5")):
        with pytest.raises(ValueError, match="draw another"):
            judge_prompt(*pair, boundary="m5")


def test_the_questions_differ_and_say_that_quotes_are_data() -> None:
    assert "begins with" in PROMPTS["prefix"] and "exactly" in PROMPTS["strict"]
    for prompt in PROMPTS.values():
        assert template_fault(prompt) is None and "data" in prompt and "not addressed to you" in prompt
    with StubServer(honest) as server:
        served(server, reward="strict")(PAIRS[:1])
    assert "says exactly" not in prompt_of(server.requests[0]) and "say exactly" in prompt_of(server.requests[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (OWN.replace("{reference}", "x"), "no {reference}"),
        (OWN.replace("{prediction}", "{predicton}"), "no {prediction}"),
        (OWN.replace("{boundary}", "---"), "{reference} does not stand between two {boundary}"),
        ("{boundary}\n{boundary}{reference} {prediction} Score: 0 Score: 1", "does not stand between"),
        ("{boundary}{reference}{prediction}{boundary} Score: 0 Score: 1", "no {boundary} stands between"),
        (OWN + "{prediction}{boundary}", "{prediction} 2 times"),
        (OWN.replace("Score: 1", "yes"), "does not ask for `Score: 0` or `Score: 1`"),
        ("", "no {reference}"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "own.txt").write_text(content)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load_judge(config("http://host:8000", judge_prompt=str(tmp_path / "own.txt")))
    assert "own.txt" in str(error.value)


def test_a_prompt_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(OWN.replace("Same", "Mot\xe9").encode("latin-1"))
    (tmp_path / "large.txt").write_text(OWN + "x" * 2**16)
    said = {"none.txt": "No such file", "latin.txt": "not UTF-8", "large.txt": "at most", ".": "directory"}
    for name, words in said.items():
        with pytest.raises(UserError, match=words):
            load_judge(config("http://host:8000", judge_prompt=str(tmp_path / name)))


def test_a_prompt_of_ones_own_is_asked(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes(b"\xef\xbb\xbf" + OWN.replace("\n", "\r\n").encode())
    with StubServer(lambda _: answer("Score: 1")) as server:
        served(server, judge_prompt=str(tmp_path / "own.txt"))([Pair("a b", "{reference}")])
    mark = prompt_of(server.requests[0]).splitlines()[1]
    assert (
        prompt_of(server.requests[0]) == f"Same?\n{mark}\na b\n{mark}\n{{reference}}\n{mark}\nSay Score: 0 or Score: 1."
    )


def test_the_server_may_be_put_in_the_settings_place() -> None:
    with StubServer(honest) as server:
        given = config("http://nowhere:1")
        address = f"127.0.0.1:{server.port}"
        assert values(load_judge(replace(given, server=f"http://{address}"))(PAIRS)) == VERDICTS


@pytest.mark.slow
def test_verls_own_router_passes_questions_on_and_makes_500_of_every_error() -> None:
    router_of = pytest.importorskip("verl.experimental.reward_loop.router.naive_router")
    import uvicorn

    with StubServer(lambda r: honest(r) if r.json["model"] == "judge" else Reply(status=404)) as stub:
        router = router_of.NaiveRouter(worker_urls=[stub.url])
        running = uvicorn.Server(uvicorn.Config(router.app, host="127.0.0.1", port=0, log_level="critical"))
        thread = threading.Thread(target=running.run, daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        address = f"127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
        try:
            judge = load_judge(replace(config("http://nowhere:1"), server=f"http://{address}"))
            assert values(judge(PAIRS)) == VERDICTS and len(stub.requests) == len(PAIRS)
            assert judge.stats["prompt_tokens"] == 100 * len(PAIRS)
            other = load_judge(replace(config(f"http://{address}"), judge_model="other"))
            assert "http 500" in str(other(PAIRS[:1])[0].reason)
        finally:
            running.should_exit = True
            thread.join(10)


def test_calls_from_many_threads_at_once_are_all_answered() -> None:
    with StubServer(honest) as server:
        judge = served(server, cache_size=16, num_canaries=2)
        told: list[bool] = []

        def work(i: int) -> None:
            right = [values(judge(PAIRS[i : i + 20 + k])) == VERDICTS[i : i + 20 + k] for k in range(5)]
            told.extend(right)

        threads = [threading.Thread(target=work, args=(2 * i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert told == [True] * 30


@pytest.mark.slow
def test_nothing_is_lost_or_counted_twice_where_one_request_in_ten_fails() -> None:
    path = Path(__file__).parents[1] / "benchmarks/judge.py"
    spec = importlib.util.spec_from_file_location("judge_benchmark", path)
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.bad_day(2000, timeout=2.0)
    assert (found["lost"], found["wrong"], found["answered_twice"]) == (0, 0, 0)
    assert found["requests"] == 2000 + found["repeated"] and found["repeated"] > 150
    assert found["seconds"] < 60.0
    hang = benchmark.all_hang(2.0)
    assert 1.9 <= hang["seconds"] <= 2.2
