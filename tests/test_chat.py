"""Chat completions, as servers send them and as they should not."""

from __future__ import annotations

from typing import Any

import pytest
from stub_server import Reply as Sent
from stub_server import Request, StubServer

from rl_think_ext.scoring.chat import Reply, chat
from rl_think_ext.scoring.endpoint import Endpoint, EndpointConfig, Failure

QUESTIONS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {i}"}] for i in range(8)
]
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def choice(index: int, text: Any, reason: str | None = "stop") -> dict[str, Any]:
    return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": reason}


def ask(server: StubServer, num: int = 1, n: int = 1, **more: Any) -> list[Reply | Failure]:
    asked = Endpoint(EndpointConfig(server.url + "/v1", retries=0, timeout=5.0))
    return chat(asked, "teacher", QUESTIONS[:num], temperature=0.7, top_p=0.9, max_tokens=64, n=n, **more)


def read(body: Any, n: int = 1) -> Reply | Failure:
    with StubServer(lambda _: Sent(body)) as server:
        (found,) = ask(server, n=n)
    return found


def echo(request: Request) -> Sent:
    text = request.json["messages"][-1]["content"]
    return Sent({"choices": [choice(0, f"answer to {text}")], "usage": USAGE})


def test_what_is_asked_and_what_is_answered() -> None:
    told: list[int] = []
    with StubServer(echo) as server:
        found = ask(server, 8, on_reply=lambda index, reply: told.append(index))
    assert found == [Reply((f"answer to question {i}",), (True,), 5, 7) for i in range(8)]
    assert sorted(told) == list(range(8))
    first = min(server.requests, key=lambda request: request.json["messages"][1]["content"])
    settings = {"model": "teacher", "temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "n": 1}
    assert first.path == "/v1/chat/completions" and first.json == settings | {"messages": QUESTIONS[0]}


def test_f7_several_answers_go_by_their_index() -> None:
    choices = [choice(2, "c"), choice(0, "a", "length"), choice(1, "b", "content_filter")]
    assert read({"choices": choices, "usage": USAGE}, n=3) == Reply(("a", "b", "c"), (False, False, True), 5, 7)


def test_an_answer_without_text_is_not_finished() -> None:
    choices = [choice(0, None), choice(1, ""), choice(2, "c")]
    assert read({"choices": choices, "usage": USAGE}, n=3) == Reply(("", "", "c"), (False, False, True), 5, 7)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": -1}, "many"])
def test_a_server_that_does_not_count(usage: Any) -> None:
    assert read({"choices": [choice(0, "a")], "usage": usage}) == Reply(("a",), (True,), 0, 0)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ([], "0 answers where 2 were asked for"),
        ([choice(0, "a")], "1 answers where 2 were asked for"),
        ([choice(0, "a"), choice(0, "b")], "2 answers where 2 were asked for"),
        ([choice(0, "a"), choice(2, "b")], "2 answers where 2 were asked for"),
        ([choice(0, "a"), choice(1, 5)], "an answer that is no text"),
        ([choice(0, None, "tool_calls"), choice(1, "")], "no text: finish_reason 'tool_calls'"),
        ([{"index": 0}, {"index": 1}], "KeyError"),
        ("choices", "unreadable"),
        (None, "unreadable"),
    ],
)
def test_f5_what_is_no_answer_is_a_failure(choices: Any, said: str) -> None:
    found = read({"choices": choices}, n=2)
    assert isinstance(found, Failure) and said in found.reason
