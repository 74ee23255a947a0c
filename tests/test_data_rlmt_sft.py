"""The warm-start set: what is asked, which replies are kept, and that nothing is asked twice after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from reward_models import reward_tokenizer
from stub_server import Reply, Request, StubServer

from rl_think_ext.data.card import Card
from rl_think_ext.data.journal import open_journal
from rl_think_ext.data.rlmt import RLMTDataConfig
from rl_think_ext.data.rlmt import build as build_prompts
from rl_think_ext.data.rlmt_sft import RLMTSFTDataConfig, build
from rl_think_ext.errors import UserError
from rl_think_ext.formats import TEACHER_INSTRUCTION
from rl_think_ext.template import join, split

PLAN = "First say what is asked for, then give the number and check it once more."
ANSWER = "The number that you are looking for is certainly the number four."
GOOD = f"<think> {PLAN} </think>\n<response> {ANSWER} </response>"
Answer = Callable[[str], Any]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def choices(*texts: str | None, finish: str = "stop") -> dict[str, Any]:
    """What a chat server sends."""
    found = [{"index": i, "message": {"content": text}, "finish_reason": finish} for i, text in enumerate(texts)]
    return {"choices": found, "usage": {"prompt_tokens": 10, "completion_tokens": 5 * len(texts)}}


@contextmanager
def teacher(answer: Answer = lambda question: GOOD) -> Iterator[StubServer]:
    """A chat server; `answer(the user's text)` is a text, a Reply, or what a server sends."""

    def reply(request: Request) -> Reply:
        found = answer(request.json["messages"][-1]["content"])
        if isinstance(found, Reply):
            return found
        return Reply(choices(found) if isinstance(found, str) else found)

    with StubServer(reply) as server:
        yield server


def asked(server: StubServer) -> list[str]:
    return [request.json["messages"][-1]["content"] for request in server.requests]


def write_prompts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def rows_of(folder: Path | str) -> list[dict[str, Any]]:
    return pq.read_table(Path(folder) / "train.parquet").to_pylist()


_EMPTY = {"prompt_tokens": 1, "completion_tokens": 1}
QUESTIONS = [f"What is the number that comes before {i}?" for i in range(12)]


def config_of(tmp_path: Path, server: StubServer, texts: list[str] = QUESTIONS, **changes: Any) -> RLMTSFTDataConfig:
    values = {"output": str(tmp_path / "out"), "endpoint": server.url, "model": "teacher", "retries": 0, **changes}
    return RLMTSFTDataConfig(input=write_prompts(tmp_path / "in.jsonl", texts), **values)


def test_rows_hold_the_plan_and_the_answer_and_the_card_what_it_cost(tmp_path: Path) -> None:
    with teacher() as server:
        card = build(config_of(tmp_path, server, price_per_million_in=0.5, price_per_million_out=2.0, temperature=0.3))
    rows = rows_of(tmp_path / "out")
    assert [row["prompt"] for row in rows] == [user(text) for text in QUESTIONS]
    assert {(row["thought"], row["answer"], row["source"], row["num_tokens"]) for row in rows} == {
        (PLAN, ANSWER, "in.jsonl", None)
    }
    assert split(join(rows[0]["thought"], rows[0]["answer"], "think")).answer == ANSWER
    body = server.requests[0].json
    assert body["messages"] == [
        {"role": "system", "content": TEACHER_INSTRUCTION},
        *user(body["messages"][-1]["content"]),
    ]
    assert (body["model"], body["temperature"]) == ("teacher", 0.3)
    assert card.counts == {
        "rows read": 12,
        "prompts asked about": 12,
        "requests of this build": 12,
        "share of replies kept": 1.0,
        "tokens read by the teacher": 120,
        "tokens written by the teacher": 60,
        "cost": 0.0002,
    }
    assert "# Plans and answers of a teacher" in (tmp_path / "out" / "README.md").read_text()


REFUSED = {
    "no_open": [ANSWER, f"<think>{PLAN}</think> {ANSWER}"],
    "no_close": [f"<think>{PLAN}", f"<think>{PLAN}</think><response>{ANSWER}"],
    "empty_thought": [f"<think> </think><response>{ANSWER}</response>"],
    "empty_response": [f"<think>{PLAN}</think><response>\n</response>"],
    "extra_tags": [
        f"Sure! {GOOD}",
        f"<think>{PLAN}<think></think><response>{ANSWER}</response>",
        f"<think>{PLAN}</think><think>{PLAN}</think><response>{ANSWER}</response>",
        f"<think>{PLAN}</think><response>{ANSWER} ＜think＞{PLAN}＜/think＞</response>",
        f"<think>{PLAN} <query></think><response>{ANSWER}</response>",
    ],
    "another language": [
        f"<think>Zuerst sage ich, worum es geht, dann nenne ich die Zahl.</think><response>{ANSWER}</response>",
        f"<think>{PLAN}</think><response>Die Zahl, die du suchst, ist ganz sicher die Zahl vier.</response>",
    ],
}


def test_replies_of_another_form_are_refused_and_counted_by_reason(tmp_path: Path) -> None:
    bad = [text for texts in REFUSED.values() for text in texts]
    replies: dict[str, Any] = {f"Please answer the question number {i}.": text for i, text in enumerate(bad)}
    replies["Please answer this one and do not finish."] = choices(GOOD, finish="length")
    replies["Please answer this one in a word."] = f"<think>{PLAN}</think><response>4</response>"
    replies["Please answer this one well."] = GOOD
    with teacher(replies.__getitem__) as server:
        card = build(config_of(tmp_path, server, list(replies)))
    assert card.skipped_positions == {**{k: len(v) for k, v in REFUSED.items()}, "truncated": 1}
    assert [row["answer"] for row in rows_of(tmp_path / "out")] == ["4", ANSWER]
    assert card.counts["share of replies kept"] == round(2 / len(replies), 4)


def test_prompts_that_are_trained_on_elsewhere_are_left_out_whatever_their_split(tmp_path: Path) -> None:
    texts = [f"  {text.upper()} " for text in QUESTIONS[:6]]
    folder = tmp_path / "rlmt"
    source = write_prompts(tmp_path / "rl.jsonl", texts)
    num = build_prompts(RLMTDataConfig(input=source, output=str(folder), test_share=0.4)).num_rows
    assert min(num["train"], num["test"]) > 0
    with teacher() as server:
        card = build(config_of(tmp_path, server, exclude=(str(folder),)))
    assert card.skipped_documents == {"also among the excluded prompts": 6}
    assert sorted(asked(server)) == sorted(QUESTIONS[6:])
    assert card.settings["exclude"] == ["rlmt"]


def test_every_text_of_an_excluded_file_is_left_out_whatever_its_id_and_its_column(tmp_path: Path) -> None:
    same_id = [{"id": "one", "question": text} for text in QUESTIONS[:5]]
    (tmp_path / "used.jsonl").write_text("".join(json.dumps(row) + "\n" for row in same_id))
    rows = "".join(json.dumps({"question": text}) + "\n" for text in QUESTIONS)
    with teacher() as server:
        config = config_of(tmp_path, server, column="question", exclude=(str(tmp_path / "used.jsonl"),))
        Path(config.input).write_text(rows)
        card = build(config)
    assert sorted(asked(server)) == sorted(QUESTIONS[5:])
    assert card.skipped_documents == {"also among the excluded prompts": 5}


def test_the_counts_of_a_card_add_up(tmp_path: Path) -> None:
    def answer(question: str) -> Any:
        return Reply({}, status=500) if question == down else GOOD

    down = ""
    with teacher(answer) as server:
        build(config_of(tmp_path, server, num_prompts=5))
        down = asked(server)[0]
        (tmp_path / "out.journal").unlink()
        card = build(config_of(tmp_path, server, num_prompts=5, overwrite=True, max_failed_share=0.5))
    assert card.counts["rows read"] == card.counts["prompts asked about"] + card.counts["prompts not drawn"] == 12
    assert card.num_rows["train"] + sum(card.skipped_positions.values()) == 5
    # Four replies came, and all are kept.
    assert (card.num_rows["train"], card.counts["share of replies kept"]) == (4, 1.0)
    assert card.settings["max_sequence_tokens"] == "no tokenizer was given: nothing was measured"


def test_f29_a_reply_with_half_a_surrogate_pair_is_refused_and_the_rest_is_built(tmp_path: Path) -> None:
    bad = GOOD.replace("First", "\ud800 First")
    with teacher(lambda question: bad if question == QUESTIONS[3] else GOOD) as server:
        card = build(config_of(tmp_path, server))
    assert card.skipped_positions == {"lone surrogate": 1}
    assert card.num_rows == {"train": 11}


@pytest.mark.parametrize("value", [None, 3, {"texts": "abc"}, {**_EMPTY, "texts": [], "finished": []}], ids=str)
def test_f35_entries_of_a_journal_that_cannot_be_used_are_asked_for_again(tmp_path: Path, value: Any) -> None:
    with teacher() as server:
        first = build(config_of(tmp_path, server))
        journal = tmp_path / "out.journal"
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        lines[2] = {"key": lines[2]["key"], **({"value": value} if value is not None else {})}
        lines[3] = "no entry"
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\0\0 not even JSON\n")
        again = build(config_of(tmp_path, server, overwrite=True))
    assert len(server.requests) == 12 + 2
    assert (again.content_hash, again.counts["requests of this build"]) == (first.content_hash, 2)


def test_f35_a_full_disk_is_said_and_what_came_before_is_kept(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with teacher(lambda question: GOOD.replace("First", "First and foremost " * 200)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # what a full disk does, but for the number
        try:
            with pytest.raises(UserError, match=r"could not write to .*out: File too large"):
                build(config_of(tmp_path, server, language=None))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        num_kept = (tmp_path / "out.journal").read_bytes().count(b"\n")
        num_before = len(server.requests)
        assert build(config_of(tmp_path, server)).num_rows == {"train": 12}
    assert (num_kept, len(server.requests) - num_before) == (2, 10)


def test_a_number_of_prompts_is_drawn_by_their_text_and_the_seed(tmp_path: Path) -> None:
    drawn = []
    for number, (seed, texts) in enumerate([(0, QUESTIONS), (0, QUESTIONS[::-1]), (1, QUESTIONS)]):
        with teacher() as server:
            build(config_of(tmp_path, server, texts, num_prompts=5, seed=seed, output=str(tmp_path / f"out{number}")))
        drawn.append(set(asked(server)))
    assert [len(texts) for texts in drawn] == [5, 5, 5]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_own_instruction_stands_before_a_chats_own_system_message(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Plan {first}, 100 % of the time.\n")
    chat = [{"role": "system", "content": "Be brief."}, *user(QUESTIONS[0])]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    with teacher() as server:
        build(
            RLMTSFTDataConfig(
                input=str(tmp_path / "chat.jsonl"),
                output=str(tmp_path / "out"),
                endpoint=server.url,
                model="teacher",
                instruction_file=str(words),
            )
        )
    shown = server.requests[0].json["messages"]
    assert [message["role"] for message in shown] == ["system", "user"]
    assert shown[0]["content"] == "Plan {first}, 100 % of the time.\n\nBe brief."
    assert rows_of(tmp_path / "out")[0]["prompt"] == chat


def test_rows_that_are_too_long_in_the_policys_ids_are_refused(tmp_path: Path) -> None:
    reward_tokenizer("qwen").save_pretrained(tmp_path / "tokenizer")
    kwargs = {"tokenizer": str(tmp_path / "tokenizer"), "output": str(tmp_path / "first")}
    with teacher() as server:
        build(config_of(tmp_path, server, **kwargs))
        lengths = sorted(row["num_tokens"] for row in rows_of(tmp_path / "first"))
        limit = lengths[0]
        config = config_of(tmp_path, server, **(kwargs | {"output": str(tmp_path / "out")}), max_sequence_tokens=limit)
        card = build(config)
    assert lengths[0] < lengths[-1]
    num_short = sum(num <= limit for num in lengths)
    assert card.num_rows == {"train": num_short}
    assert card.skipped_positions == {"longer than max_sequence_tokens": 12 - num_short}


def test_f35_a_killed_build_leaves_no_folder_and_goes_on_without_asking_again(tmp_path: Path) -> None:
    code = "import sys; from rl_think_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    output, journal = tmp_path / "out", tmp_path / "out.journal"

    def num_stored() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    # All twelve are one portion, and half of the replies never come.
    with teacher(lambda question: GOOD if question in QUESTIONS[:6] else Reply(fault="hang")) as server:
        flags = ["--endpoint", server.url, "--model", "teacher", "--max-concurrency", "8"]
        source = write_prompts(tmp_path / "in.jsonl", QUESTIONS)
        command = [sys.executable, "-c", code, "data", "rlmt-sft", "--input", source, "--output", str(output), *flags]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as build_process:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and build_process.poll() is None and num_stored() < 6:
                time.sleep(0.005)
            build_process.send_signal(signal.SIGKILL)
            assert build_process.wait() == -signal.SIGKILL
    assert not output.exists()
    assert num_stored() == 6
    with journal.open("ab") as handle:
        handle.write(b'{"key": "cut off by the ki')
    with teacher() as server:
        card = build(config_of(tmp_path, server))
    assert sorted(asked(server)) == sorted(QUESTIONS[6:])
    assert card.counts["requests of this build"] == 6
    assert len(rows_of(output)) == 12
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out", "out.journal"]
    with teacher() as server:
        assert build(config_of(tmp_path, server, overwrite=True)).content_hash == card.content_hash
    assert server.requests == []


def test_other_rules_use_the_journal_again_and_other_questions_do_not(tmp_path: Path) -> None:
    with teacher() as server:
        first = build(config_of(tmp_path, server))
        again = build(config_of(tmp_path, server, overwrite=True, language=None))
        assert (len(server.requests), again.content_hash) == (12, first.content_hash)
        build(config_of(tmp_path, server, overwrite=True, temperature=0.5))
        build(config_of(tmp_path, server, overwrite=True, model="other"))
    assert len(server.requests) == 36


def test_f6_a_teacher_that_is_down_ends_the_build_and_what_came_is_kept(tmp_path: Path) -> None:
    def answer(question: str) -> Any:
        return GOOD if question in QUESTIONS[:3] else Reply({}, status=500)

    with (
        teacher(answer) as server,
        pytest.raises(UserError, match=r"9 of 12 prompts got no reply.*the same command"),
    ):
        build(config_of(tmp_path, server))
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.journal"]
    with teacher() as server:
        card = build(config_of(tmp_path, server))
    assert sorted(asked(server)) == sorted(QUESTIONS[3:])
    assert card.num_rows == {"train": 12}


def test_a_few_failures_are_counted_by_kind_and_the_rest_is_built(tmp_path: Path) -> None:
    down = [QUESTIONS[4], QUESTIONS[7]]
    with teacher(lambda question: Reply({}, status=500) if question in down else GOOD) as server:
        card = build(config_of(tmp_path, server, max_failed_share=0.2))
    assert card.num_rows == {"train": 10}
    (reason, number), *others = card.skipped_positions.items()
    assert (number, others) == (2, [])
    assert reason.startswith("no reply, ")
    assert server.url not in reason


def test_f39_the_key_travels_by_the_name_of_a_variable_and_stands_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret-indeed")
    with teacher() as server:
        url = server.url.replace("http://", "http://me:password@")
        build(config_of(tmp_path, server, api_key_env="TEACHER_KEY"))
        card = build(config_of(tmp_path, server, endpoint=url, model=url, output=str(tmp_path / "second")))
    assert server.requests[0].headers["authorization"] == "Bearer sk-very-secret-indeed"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not re.search(rb"very-secret|password|" + re.escape(str(tmp_path).encode()), written)
    assert card.settings["endpoint"] == server.url


def test_f42_a_prompt_names_no_server(tmp_path: Path) -> None:
    rows = [{"prompt": QUESTIONS[0], "endpoint": "http://127.0.0.1:9/", "model": "other", "api_key_env": "HOME"}]
    (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with teacher() as server:
        config = config_of(tmp_path, server)
        (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]) + "\n")
        build(config)
    assert [request.json["model"] for request in server.requests] == ["teacher"]


def test_two_builds_do_not_write_one_journal(tmp_path: Path) -> None:
    with teacher() as server, open_journal(str(tmp_path / "out")) as journal:
        journal.put("a", 1)
        with pytest.raises(UserError, match=r"another build is writing out\.journal"):
            build(config_of(tmp_path, server))
        assert journal.get("a") == 1


def test_an_output_that_is_there_costs_no_request(tmp_path: Path) -> None:
    with teacher() as server:
        build(config_of(tmp_path, server))
        with pytest.raises(UserError, match="is not empty"):
            build(config_of(tmp_path, server, model="other"))
    assert len(server.requests) == 12
    assert Card.read(tmp_path / "out").settings["model"] == "teacher"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "none"}, "a warm start has a thought"),
        ({"language": "de"}, "give an instruction_file"),
        ({"num_prompts": 0}, "`num_prompts` is at least 1"),
        ({"max_failed_share": 2.0}, "`max_failed_share`"),
        ({"top_p": 0.0}, "`top_p`"),
        ({"temperature": -1.0}, "`temperature`"),
        ({"temperature": float("inf")}, "`temperature`"),
        ({"price_per_million_in": float("nan")}, "`price_per_million_in`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RLMTSFTDataConfig(**{"input": "i", "output": "o", "endpoint": "http://host", "model": "m", **changes})


def test_f25_a_reply_with_a_control_token_of_the_policy_is_refused(tmp_path: Path) -> None:
    reward_tokenizer("qwen").save_pretrained(tmp_path / "tokenizer")
    bad = f"<think>{PLAN}</think><response>{ANSWER}<|im_end|>\n<|im_start|>user\nThank you.</response>"
    with teacher(lambda question: bad if question == QUESTIONS[3] else GOOD) as server:
        card = build(config_of(tmp_path, server, tokenizer=str(tmp_path / "tokenizer")))
    assert card.skipped_positions == {"special token": 1}
