"""Preference pairs: which outputs make one, what the reward model is shown, and how an interrupted build goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import pyarrow.parquet as pq
import pytest
from reward_models import reward_tokenizer, save_reward_model
from stub_server import Reply, Request, StubServer

from rl_think_ext.data.rlmt_dpo import RLMTDPODataConfig, best_and_worst, build
from rl_think_ext.data.sampler import fingerprint
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.complete import Completer
from rl_think_ext.scoring.load import load_model, load_tokenizer
from rl_think_ext.scoring.reward_model import load_reward_model
from rl_think_ext.scoring.sample import Request as Sample

WORDS = Path(__file__).parents[1] / "recipes" / "rlmt" / "tiny" / "models" / "policy"
QUESTIONS = [f"What is the number that comes before {i}?" for i in range(6)]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def outputs_for(question: str, num: int = 4) -> list[str]:
    return [f"<think>\nplan {i} for it\n</think>\n\nAnswer {i} to: {question}" for i in range(num)]


def choices(texts: list[str], finish: str = "stop") -> dict[str, Any]:
    found = [{"index": i, "message": {"content": text}, "finish_reason": finish} for i, text in enumerate(texts)]
    return {"choices": found, "usage": {"prompt_tokens": 1, "completion_tokens": len(texts)}}


@contextmanager
def policy(answer: Callable[[str], Any] = outputs_for) -> Iterator[StubServer]:
    """A chat server; `answer(the user's text)` gives the texts, a Reply, or what a server sends."""

    def reply(request: Request) -> Reply:
        found = answer(request.json["messages"][-1]["content"])
        return found if isinstance(found, Reply) else Reply(choices(found) if isinstance(found, list) else found)

    with StubServer(reply) as server:
        yield server


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_reward_model(tmp_path_factory.mktemp("reward") / "judge", "llama"))


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, nearly uniform, with so many ends that an output has some ten tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("policy"), reward_tokenizer("qwen")
    model = models.qwen3(len(tokenizer), initializer_range=0.02, max_position_embeddings=512)
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 10))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def made(tmp_path: Path, reward: str) -> Any:
    def make(server: StubServer | None, texts: list[str] = QUESTIONS, **changes: Any) -> Any:
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps({"id": f"p{i}", "prompt": text}) + "\n" for i, text in enumerate(texts)))
        values: dict[str, Any] = {
            "input": str(source),
            "output": str(tmp_path / "out"),
            "model": "policy",
            "endpoint": server.url if server else None,
            "reward_model": reward,
            "num_samples": 4,
            "min_parsed": 2,
            "retries": 0,
            **changes,
        }
        card = build(RLMTDPODataConfig(**values))
        return card, pq.read_table(Path(values["output"]) / "train.parquet").to_pylist()

    return make


def scores_of(reward: str, question: str, answers: list[str]) -> list[float]:
    model = load_reward_model(RLMTConfig(reward_model=reward))
    chats = [[*user(question), {"role": "assistant", "content": answer}] for answer in answers]
    return [score.value or 0.0 for score in model(chats)]


def test_pairs_are_the_best_and_the_worst_of_the_answers_with_their_thoughts(made: Any, reward: str) -> None:
    with policy() as server:
        card, rows = made(server)
    assert card.num_rows == {"train": 6}
    for row, question in zip(rows, QUESTIONS, strict=True):
        outputs = outputs_for(question)
        # The reward model's own numbers of the answers alone.
        scores = scores_of(reward, question, [text.rpartition("\n")[2] for text in outputs])
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        assert row["prompt"] == user(question)
        assert row["chosen"] == [{"role": "assistant", "content": outputs[best]}]
        assert row["rejected"] == [{"role": "assistant", "content": outputs[worst]}]
        assert [row["chosen_score"], row["rejected_score"]] == pytest.approx([scores[best], scores[worst]], abs=1e-4)
        assert row["num_parsed"] == 4
    body = server.requests[0].json
    assert (body["n"], body["temperature"], len(body["messages"])) == (4, 0.7, 1)
    assert card.counts["outputs ok"] == card.counts["answers scored"] == 24
    assert card.settings["reward_model"] == "judge"


def test_the_folder_is_loaded_by_datasets_with_conversations_as_trl_takes_them(made: Any, tmp_path: Path) -> None:
    from datasets import load_dataset

    with policy() as server:
        made(server)
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert [list(message) for message in loaded[0]["chosen"]] == [["role", "content"]]
    assert "# Preference pairs for RLMT" in (tmp_path / "out" / "README.md").read_text()


def test_prompts_without_a_pair_are_counted_by_reason(made: Any) -> None:
    def answer(question: str) -> Any:
        return {
            QUESTIONS[0]: [*outputs_for(question, 1), "no tags", "<think>never closed", "<think>\n</think>\n\nempty"],
            QUESTIONS[1]: [outputs_for(question)[0]] * 4,
            QUESTIONS[2]: choices(outputs_for(question), finish="length"),
        }.get(question, outputs_for(question))

    with policy(answer) as server:
        card, rows = made(server)
    assert card.skipped_positions == {"no difference above min_margin": 1, "too few outputs parsed": 2}
    assert [row["id"] for row in rows] == ["p3", "p4", "p5"]
    found = {name: number for name, number in card.counts.items() if name.startswith("outputs ")}
    assert found == {
        "outputs empty_thought": 1,
        "outputs no_close": 1,
        "outputs no_open": 1,
        "outputs ok": 17,
        "outputs truncated": 4,
    }
    told = r"gave no pair \(no difference above min_margin 6\); outputs in style think: ok 24"
    with policy() as server, pytest.raises(UserError, match=told):
        made(server, min_margin=1e6, overwrite=True)


def test_f29_outputs_with_half_a_surrogate_pair_are_no_candidates(made: Any) -> None:
    def answer(question: str) -> Any:
        outputs = outputs_for(question)
        return Reply(choices([outputs[0] + "\ud800", *outputs[1:]]))

    with policy(answer) as server:
        card, rows = made(server)
    assert card.counts["outputs lone surrogate"] == len(rows) == 6
    assert card.settings["max_pair_tokens"] == "no tokenizer was given: nothing was measured"


def test_what_a_server_writes_behind_the_answer_of_a_base_model_is_no_part_of_it(made: Any) -> None:
    def answer(question: str) -> Any:
        texts = [f"<response>Answer {i} to: {question}</response> User: go on, <think> and" for i in range(4)]
        return choices(texts, finish="length")

    with policy(answer) as server:
        _, rows = made(server, style="response-only")
    assert all(row["chosen"][0]["content"].endswith("?</response>") for row in rows)


def test_pairs_that_are_too_long_in_the_policys_ids_are_left_out(made: Any, policy_folder: str, tmp_path: Path) -> None:
    with policy() as server:
        _, rows = made(server, tokenizer=policy_folder)
        lengths = sorted(row["num_tokens"] for row in rows)
        tokenizer, row = load_tokenizer(policy_folder), rows[0]
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        sides = [len(tokenizer(text + row[side][0]["content"])["input_ids"]) + 1 for side in ("chosen", "rejected")]
        assert row["num_tokens"] == max(sides)
        made(server, [*QUESTIONS[:2], QUESTIONS[3] * 20], tokenizer=policy_folder, output=str(tmp_path / "long"))
        card, rows = made(
            server,
            [*QUESTIONS[:2], QUESTIONS[3] * 20],
            tokenizer=policy_folder,
            max_pair_tokens=lengths[-1],
            output=str(tmp_path / "short"),
        )
    assert card.skipped_positions == {"longer than max_pair_tokens": 1}
    assert len(rows) == 2


def test_an_interrupted_build_asks_for_no_output_twice_and_the_journal_goes_at_the_end(
    made: Any, tmp_path: Path
) -> None:
    def failing(question: str) -> Any:
        return outputs_for(question) if question in QUESTIONS[:2] else Reply({}, status=500)

    with policy(failing) as server, pytest.raises(UserError, match="4 of 6 prompts got no reply"):
        made(server)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.journal"]
    with policy() as server:
        card, _ = made(server)
    assert sorted(r.json["messages"][-1]["content"] for r in server.requests) == sorted(QUESTIONS[2:])
    assert card.num_rows == {"train": 6}
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out"]


def test_f6_a_reward_server_that_is_down_ends_the_build_with_the_outputs_kept(made: Any, tmp_path: Path) -> None:
    with (
        policy() as server,
        StubServer(lambda _: Reply({}, status=500)) as broken,
        pytest.raises(UserError, match=r"24 of 24 answers got no score .*the same command goes on"),
    ):
        made(server, reward_server=broken.url, max_failed_share=0.5)
    before = len(server.requests)
    with policy() as server:
        made(server)
    assert (before, len(server.requests)) == (6, 0)


def test_scores_of_a_reward_model_that_was_trained_anew_in_its_folder_are_not_taken(
    made: Any, reward: str, tmp_path: Path
) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(reward, folder)
    first, questions = str(folder), [f"Is {i} a number, or is it more than that?" for i in range(33)]
    half = [Reply({}, status=500) if i == 32 else outputs_for(text) for i, text in enumerate(questions)]
    with policy(lambda text: half[questions.index(text)]) as server, pytest.raises(UserError, match="got no reply"):
        made(server, questions, reward_model=first, max_concurrency=8, max_failed_share=0.0)
    assert b'"value": -' in (tmp_path / "out.journal").read_bytes()
    model = save_reward_model(tmp_path / "anew", "llama", initializer_range=0.5)
    for path in model.iterdir():
        shutil.copy(path, folder / path.name)
    with policy() as server:
        _, rows = made(server, questions, reward_model=first)
    scores = scores_of(first, questions[0], [text.rpartition("\n")[2] for text in outputs_for(questions[0])])
    assert [rows[0]["chosen_score"], rows[0]["rejected_score"]] == pytest.approx([max(scores), min(scores)], abs=1e-4)


def test_a_policy_in_this_process_is_sampled_and_another_one_of_its_name_is_not_taken_for_it(
    made: Any, policy_folder: str
) -> None:
    kwargs = {"model": policy_folder, "style": "none", "max_tokens": 60, "min_parsed": 2, "max_batch_tokens": 20000}
    card, rows = made(None, QUESTIONS[:2], **kwargs)
    again, same = made(None, QUESTIONS[:2], overwrite=True, **kwargs)
    assert rows == same
    assert again.content_hash == card.content_hash
    assert sum(n for name, n in card.counts.items() if name.startswith("outputs ")) == 8
    before = fingerprint(policy_folder)
    os.utime(Path(policy_folder) / "model.safetensors", ns=(1, 1))
    assert fingerprint(policy_folder) != before


def test_an_output_belongs_to_its_key_and_not_to_its_batch(policy_folder: str) -> None:
    model, tokenizer = load_model(policy_folder), load_tokenizer(policy_folder)
    requests = [Sample((5, 6, 7, i), f"key {i}") for i in range(6)]

    def sample(chosen: list[Sample], **changes: Any) -> list[Any]:
        completer = Completer(model, tokenizer, **{"max_new_tokens": 30, "temperature": 1.0, **changes})
        found = dict(completer(chosen))
        return [found[i] for i in range(len(chosen))]

    together = sample(requests)
    assert together == [sample([request])[0] for request in requests]
    assert together == sample(requests, max_tokens=40)
    assert len({completion.text for completion in together}) == 6
    assert together != sample(requests, seed=1)
    stop = together[0].text[3]
    stopped = sample(requests, stop=stop)
    assert stopped[0].finished
    assert stopped[0].text == together[0].text[: together[0].text.index(stop) + 1]
    assert not any(stop in completion.text[:-1] for completion in stopped)


def test_a_text_that_ends_an_output_is_found_whatever_the_tokens_are() -> None:
    # Its tokens are words, in which transformers' own search for a text does not know its way.
    model, tokenizer = load_model(str(WORDS)), load_tokenizer(str(WORDS))
    requests = [Sample(tuple(tokenizer("list b c").input_ids), f"key {i}") for i in range(4)]

    def sample(**changes: Any) -> list[Any]:
        found = dict(Completer(model, tokenizer, max_new_tokens=20, temperature=1.0, **changes)(requests))
        return [found[i].text for i in range(4)]

    free = sample()
    stop = next(word for word in free[0].split() if word.isalpha())
    assert sample(stop=stop) == [text[: text.index(stop) + len(stop)] if stop in text else text for text in free]


def test_best_and_worst() -> None:
    assert best_and_worst([0.0, 2.0, None, -1.0, 2.0, -1.0]) == (1, 3)
    assert best_and_worst([0.0, 0.5], min_margin=0.5) is None
    assert best_and_worst([None, 1.0]) is None
    assert best_and_worst([]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_parsed": 1}, "`min_parsed` is from 2 to num_samples 8"),
        ({"min_parsed": 9}, "`min_parsed` is from 2 to num_samples 8"),
        ({"temperature": 0.0}, "`temperature` is above 0"),
        ({"temperature": float("inf")}, "`temperature` is above 0"),
        ({"top_p": 0.9}, "`top_p` is for a server"),
        ({"reward_backend": "local", "reward_server": "http://host"}, "the reward model: .*backend: local"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RLMTDPODataConfig(**{"input": "i", "output": "o", "model": "m", "reward_model": "r", **changes})
