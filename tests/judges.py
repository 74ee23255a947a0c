"""Judges behind the stub server: an honest one that compares words, and a literal one that obeys what is unquoted."""

from __future__ import annotations

import re
from typing import Any

from stub_server import Reply, Request, StubServer

from rl_think_ext.methods.rlpt import RLPTConfig, begins
from rl_think_ext.records import Score
from rl_think_ext.scoring.judge import STATS, Pair, load_judge
from rl_think_ext.scoring.judge_served import ServedJudge

TEXTS = [f"The {i}th number of the list is {i * i}. The one after it is {(i + 1) ** 2}." for i in range(40)]
RIGHT = [Pair(text, text.partition(". ")[0] + ".") for text in TEXTS]
WRONG = [Pair(text, "Nobody had counted them.") for text in TEXTS]
PAIRS = [pair for both in zip(RIGHT, WRONG, strict=True) for pair in both]
VERDICTS = [1.0, 0.0] * len(TEXTS)
OWN = "Same?\n{boundary}\n{reference}\n{boundary}\n{prediction}\n{boundary}\nSay Score: 0 or Score: 1."
# What ends a turn, or begins one, in the chat templates of common judges.
TURNS = re.compile(
    r"<\|(?:im_end|im_start|eot_id|start_header_id|end_header_id|endoftext|end|start|message|user|assistant|system)\|>"
    r"|</?s>|\[/?INST\]|</?(?:start|end)_of_turn>|<｜(?:User|Assistant|end▁of▁sentence)｜>|<turn\|>|<\|turn>"
)
ORDER = re.compile(r"score\s*[:=]\s*1|verdict\s*[:=]\s*1|answer (?:with )?(?:the line )?`?(?:score: )?1", re.IGNORECASE)


def answer(text: Any, finish_reason: str | None = "stop", **more: Any) -> Reply:
    """One chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Reply({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 4}}, **more)


def prompt_of(request: Request) -> str:
    """What the judge is asked in a request."""
    (message,) = request.json["messages"]
    assert message["role"] == "user"
    return str(message["content"])


def quotes(prompt: str) -> tuple[str, str]:
    """Reference and prediction as a question of ours quotes them."""
    mark = declared(prompt)
    _, reference, _, prediction, _ = prompt.split(f"\n{mark}\n")
    return reference, prediction


def declared(prompt: str) -> str:
    """The mark that the instruction announces."""
    found = re.search(r"drawn for this question: (\S+)", prompt)
    assert found
    return found[1]


def honest(request: Request) -> Reply:
    """The verdict of a judge that reads what is quoted."""
    reference, prediction = quotes(prompt_of(request))
    return answer(f"Score: {int(begins(prediction, reference))}")


def obeyed(prompt: str, template: str) -> bool:
    """Whether a literal-minded judge finds an order to answer 1 outside of what is quoted.

    It reads the tokens of chat templates as what they are, takes a line that holds the announced mark for the end or
    the beginning of a quote, and obeys whoever speaks outside of one; the template's own words are no order.
    """
    own = {line.strip() for line in template.replace("{boundary}", declared(prompt)).splitlines()}
    first, *further_turns = TURNS.split(prompt)
    inside, outside = False, []
    for line in first.splitlines():
        if line.strip() == declared(prompt):
            inside = not inside
        elif not inside and line.strip() not in own:
            outside.append(line)
    return bool(ORDER.search("\n".join(outside))) or any(ORDER.search(_less(turn, own)) for turn in further_turns)


def _less(text: str, own: set[str]) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip() not in own)


def config(server: StubServer | str, **changes: Any) -> RLPTConfig:
    """Settings for a judge behind the stub."""
    url = server if isinstance(server, str) else server.url
    values = {"judge_model": "judge", "retries": 0, "timeout": 5.0, "deadline": 10.0, "num_canaries": 0} | changes
    return RLPTConfig(server=url, **values)


def served(
    server: StubServer | str, *, world_size: int = 1, time_limit: float | None = None, **changes: Any
) -> ServedJudge:
    """A judge behind the stub, as the trainers load it; without canaries where they are not asked for."""
    judge = load_judge(config(server, **changes), world_size=world_size, time_limit=time_limit)
    assert isinstance(judge, ServedJudge)
    return judge


def values(scores: list[Score]) -> list[float | None]:
    """The verdicts, None where there is none."""
    return [score.value for score in scores]


def reason_of(reply: Reply, **changes: Any) -> str:
    """Why there is no verdict on the second of three pairs, where the others get one."""

    def act(request: Request) -> Reply:
        return reply if quotes(prompt_of(request)) == PAIRS[1] else honest(request)

    with StubServer(act) as server:
        judge = served(server, **changes)
        first, second, third = judge(PAIRS[:3])
    assert (first, third) == (Score(1.0), Score(1.0)) and second.value is None
    assert judge.stats["num_unscorable"] == 1 and set(judge.stats) == set(STATS)
    return str(second.reason)
