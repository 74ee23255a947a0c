"""`rl-think doctor` for RLMT: set-ups that are broken in one way each, and one row taken through the real parts."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_chats import PLAN, TEMPLATE, grpo, make_house, make_policy, stock, supervised, write
from reward_models import reward_tokenizer, save_reward_model
from stub_server import Reply, StubServer
from test_doctor_setups import Report, doctor

from rl_think_ext import cli
from rl_think_ext.scoring.load import load_tokenizer


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_house(tmp_path_factory.mktemp("house"))


def finding(report: Report, name: str, state: str = "ok") -> str:
    """The one finding of a name and state."""
    (found,) = [one for one in report.at(state) if one["name"] == name]
    return str(found["found"])


# --- What is well ---


def test_a_run_of_grpo_is_looked_at_as_a_whole(house: Path, tmp_path: Path) -> None:
    report = doctor(grpo(house, tmp_path))
    assert report.status == 0 and not report.at("broken") and not report.at("warn")
    given, _, rest = finding(report, "RLMT settings").partition("By default")
    assert "style=think" in given and "malformed=floor" in rest
    assert "RLMTGRPOConfig" in finding(report, "TRL's keys")
    assert "<think> is the policy's to write; sampling ends at [4096]" in finding(report, "template")
    assert "llama, 0.1 M weights, one number per chat; every process loads it whole" in finding(report, "reward model")
    assert "1 BOS per chat, up to 512 tokens" in finding(report, "reward input")
    assert "6 rows are chats of up to 12 tokens; they fit into 256 positions with outputs of 24" in finding(
        report, "rows"
    )
    assert "rl_think_ext.trl.rlmt" in finding(report, "rewards") and "rlmt" in finding(report, "start")


def test_a_file_of_the_stock_command(house: Path, tmp_path: Path) -> None:
    report = doctor(stock(house, tmp_path))
    assert report.status == 0 and "is for `trl grpo`" in finding(report, "file")
    assert "From inline YAML in RL_THINK_CONFIG: reward_model=" in finding(report, "RLMT settings")
    # A reward of another name: the settings tell the method.
    report = doctor(stock(house, tmp_path, reward_funcs=["rl_think_ext.trl.rlmt_format"]))
    assert "rl_think_ext.trl.rlmt stands first" in finding(report, "start", "broken")


@pytest.mark.parametrize(("trainer", "kind"), [("sft", "ThinkSFTConfig"), ("dpo", "ThinkDPOConfig")])
def test_warm_start_and_pairs(house: Path, tmp_path: Path, trainer: str, kind: str) -> None:
    report = doctor(supervised(house, tmp_path, trainer))
    assert report.status == 0 and kind in finding(report, "TRL's keys")
    assert "6 of the first 6 rows make examples of style think within 200" in finding(report, "rows")
    assert not [one for one in report.findings if one["group"] == "reward model"]
    report = doctor(supervised(house, tmp_path, trainer, max_length=33))
    assert report.status == (trainer == "sft")
    if trainer == "sft":
        assert "all 6 rows are longer than max_length 33" in finding(report, "rows", "broken")


def test_some_rows_that_are_too_long_are_counted(house: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Name letters.", "thought": PLAN, "answer": "A. " * (1 + 200 * (i == 2))} for i in range(3)]
    data = write(tmp_path / "data", rows)
    report = doctor(supervised(house, tmp_path, "sft", dataset_name=str(data)))
    assert "Of the first 3 rows 1 are longer than max_length 200" in finding(report, "rows", "warn")


def test_a_prefilled_thought_is_said(house: Path, tmp_path: Path) -> None:
    opened = TEMPLATE.replace("<|assistant|>\n{% endif", "<|assistant|>\n<think>\n{% endif")
    model = make_policy(tmp_path / "opened", opened)
    report = doctor(grpo(house, tmp_path, model_name_or_path=str(model)))
    assert "the prompt ends with <think> (prefilled)" in finding(report, "template")
    report = doctor(grpo(house, tmp_path, rlmt={"style": "none"}, model_name_or_path=str(model)))
    assert "style none is to have no thought" in finding(report, "template", "broken")


def test_nothing_is_sent_to_a_server(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "sk-abcdefghijkl")
    with StubServer(lambda request: Reply(status=500)) as server:
        url = f"http://user:secret@127.0.0.1:{server.port}"
        path = grpo(house, tmp_path, rlmt={"server": url, "api_key_env": "REWARD_KEY"})
        report = doctor(path)
        assert server.requests == []
    said = finding(report, "server", "unchecked")
    assert "with the key in REWARD_KEY; it was not asked" in said
    assert "secret" not in json.dumps(report.findings) and "sk-abc" not in json.dumps(report.findings)


# --- Set-ups, each broken in one way ---


def no_reward_model(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rlmt={"reward_model": ""})


def reward_model_is_not_there(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rlmt={"reward_model": "./no-reward"})


def reward_model_of_two_labels(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rlmt={"reward_model": str(save_reward_model(place / "two", num_labels=2))})


def reward_model_without_a_template(house: Path, place: Path, patch: Any) -> Path:
    folder = save_reward_model(place / "bare")
    tokenizer = reward_tokenizer("llama")
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return grpo(house, place, rlmt={"reward_model": str(folder)})


def reward_model_is_a_pickle(house: Path, place: Path, patch: Any) -> Path:
    folder = place / "pickled"
    shutil.copytree(house / "reward", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return grpo(house, place, rlmt={"reward_model": str(folder)})


def reward_model_is_large(house: Path, place: Path, patch: Any) -> Path:
    patch.setattr("rl_think_ext.cli.doctor.reward.count_weights", lambda folder: 8_030_000_000)
    return grpo(house, place)


def reward_model_is_large_and_wanted_here(house: Path, place: Path, patch: Any) -> Path:
    patch.setattr("rl_think_ext.cli.doctor.reward.count_weights", lambda folder: 8_040_000_000)
    return grpo(house, place, rlmt={"backend": "local"})


def reward_model_is_not_cached(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rlmt={"reward_model": "nobody/reward-8B"})


def key_of_the_server_is_not_set(house: Path, place: Path, patch: Any) -> Path:
    patch.delenv("NO_SUCH_KEY", raising=False)
    return grpo(house, place, rlmt={"server": "http://localhost:9", "api_key_env": "NO_SUCH_KEY"})


def server_is_no_address(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rlmt={"server": "localhost:8000"})


def policy_without_a_template(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, model_name_or_path=str(make_policy(place / "raw", None)))


def turns_end_where_sampling_does_not(house: Path, place: Path, patch: Any) -> Path:
    model = make_policy(place / "endless", TEMPLATE.replace("<|end|>", "<|user|>"))
    return grpo(house, place, model_name_or_path=str(model))


def template_takes_thoughts_out(house: Path, place: Path, patch: Any) -> Path:
    cut = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
    return supervised(house, place, "sft", model_name_or_path=str(make_policy(place / "cutting", cut)))


def two_methods(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rl_think={"rlmt": {}, "rlp": {}})


def unknown_trainer(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rl_think={"trainer": "ppo", "rlmt": {}})


def one_output_a_prompt(house: Path, place: Path, patch: Any) -> Path:
    return stock(house, place, reward_funcs=["rl_think_ext.trl.rlmt", "trl.rewards.think_format_reward"])


def zero_style_under_the_stock_trainer(house: Path, place: Path, patch: Any) -> Path:
    rows = [{"prompt": "User: Name letters.\nAssistant:", "messages": [{"role": "user", "content": "Name letters."}]}]
    data = write(place / "framed", rows)
    return stock(house, place, rlmt={"style": "response"}, dataset_name=str(data))


def text_without_a_chat(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, dataset_name=str(write(place / "texts", [{"prompt": "Name letters."}])))


def warm_start_from_prompts(house: Path, place: Path, patch: Any) -> Path:
    return supervised(house, place, "sft", dataset_name=str(house / "chats"))


def pairs_of_another_style(house: Path, place: Path, patch: Any) -> Path:
    return supervised(house, place, "dpo", rlmt={"style": "response"})


def outputs_have_no_room(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, max_completion_length=250)


def prompt_holds_a_tag(house: Path, place: Path, patch: Any) -> Path:
    rows = [{"prompt": [{"role": "user", "content": "What does <think> mean?"}]}]
    return grpo(house, place, dataset_name=str(write(place / "tagged", rows)))


def reward_model_has_no_room(house: Path, place: Path, patch: Any) -> Path:
    return grpo(house, place, rlmt={"max_length": 16})


Setup = Callable[[Path, Path, Any], Path]
SETUPS: dict[Setup, tuple[str, str]] = {
    no_reward_model: ("broken", "The settings name no reward model"),
    reward_model_is_not_there: ("broken", "there is no folder ./no-reward"),
    reward_model_of_two_labels: ("broken", "gives 2 numbers (`num_labels`)"),
    reward_model_without_a_template: ("broken", "its tokenizer has no `chat_template`"),
    reward_model_is_a_pickle: ("broken", "reward model's folder {} holds pytorch_model.bin, and only safetensors"),
    reward_model_is_large: ("broken", "8.0 billion weights, one number per chat; every process loads it whole. Above"),
    reward_model_is_large_and_wanted_here: ("warn", "Above 2 billion it belongs on a server"),
    reward_model_is_not_cached: ("unchecked", "nobody/reward-8B is taken as a hub name and is not in the cache"),
    key_of_the_server_is_not_set: ("broken", "the variable NO_SUCH_KEY, which is not set"),
    server_is_no_address: ("broken", "a server's address looks like http://host:8000"),
    policy_without_a_template: ("broken", "the policy's tokenizer has no chat template"),
    turns_end_where_sampling_does_not: ("warn", "the chat template ends an assistant's turn with '<|user|>'"),
    template_takes_thoughts_out: ("broken", "the chat template changes what the model is to learn"),
    two_methods: ("broken", "rlmt and rlp are given; a run has one method"),
    unknown_trainer: ("broken", "`trainer` is one of grpo, sft, dpo for rlmt, got 'ppo'"),
    one_output_a_prompt: ("broken", "the stock trainer counts an answer without a score as a score of 0"),
    zero_style_under_the_stock_trainer: ("broken", "the stock trainer cannot stop at </response> without vLLM"),
    text_without_a_chat: ("broken", "column `prompt` is text, and there is no column `messages`"),
    warm_start_from_prompts: ("broken", "column `answer` is missing; there are id, prompt"),
    pairs_of_another_style: ("broken", "column `chosen`: no output of style response"),
    outputs_have_no_room: ("broken", "a prompt of 12 tokens and max_completion_length 250 do not fit"),
    prompt_holds_a_tag: ("warn", "row 0 holds the tag '<think>'"),
    reward_model_has_no_room: ("warn", "Of the first 6 prompts 6 have no room in the reward model's 16 tokens"),
}


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.__name__)
def test_set_up_is_told_by_its_own_sentence(house: Path, tmp_path: Path, setup: Setup) -> None:
    state, words = SETUPS[setup]
    with pytest.MonkeyPatch.context() as patch:
        report = doctor(setup(house, tmp_path, patch))
    said = [one for one in report.at(state) if words.replace("{}", str(tmp_path / "pickled")) in one["found"]]
    assert len(said) == 1, report.findings
    assert said[0]["todo"].strip()
    assert len(report.at("broken")) == report.status == (state == "broken"), report.at("broken")


# --- One row, live ---


def live(*words: Any) -> Any:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main(["doctor", "--live", *map(str, words), "--json"]) == 0, said.getvalue()
    return json.loads(said.getvalue())


def saying(text: str, coder: Any, prompt: str, ends: bool = True) -> dict[str, Any]:
    """Arguments of `generate` under which a policy with any weights writes this text."""
    before = coder.encode(prompt, add_special_tokens=False)
    ids = [*coder.encode(text, add_special_tokens=False), *([coder.eos_token_id] if ends else [])]
    return {"sequence_bias": [[before[-3:] + ids[: i + 1], 1e4] for i in range(len(ids))]}


@pytest.fixture
def says(house: Path) -> Callable[..., dict[str, Any]]:
    coder = load_tokenizer(str(house / "policy"))
    return lambda text, prompt="<|end|>\n<|assistant|>\n", **more: saying(text, coder, prompt, **more)


def part(record: Any, name: str) -> str:
    return "".join(text for one in record["parts"] if one["name"] == name for text in one["text"])


WELL = f"<think>\n{PLAN}\n</think>\n\nA, B, C."


def test_the_reward_model_is_shown_the_answer_in_its_own_template(house: Path, tmp_path: Path, says: Any) -> None:
    record = live(grpo(house, tmp_path, generation_kwargs=says(WELL), max_completion_length=64), "--row", "2")
    assert (record["row"], record["status"], record["thought"], record["answer"]) == ("row c2", "ok", PLAN, "A, B, C.")
    assert part(record, "open tag") == "<think>" and part(record, "close tag") == "</think>"
    assert part(record, "end") == "<|end|>" and part(record, "sampled").startswith("\nSay what")
    assert part(record, "prompt") == "<|user|>\nName 2 letters.<|end|>\n<|assistant|>\n"
    shown = record["shown"]
    chat = [{"role": "user", "content": "Name 2 letters."}, {"role": "assistant", "content": "A, B, C."}]
    tokenizer = load_tokenizer(str(house / "reward"))
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert shown["text"] == text and text.startswith("<|begin_of_text|>") and "think" not in text
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (shown["num_tokens"], shown["num_bos"], shown["num_cut"]) == (len(ids), 1, 0)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(house / "reward")
    with torch.no_grad():
        expected = float(model(torch.tensor([ids])).logits[0, 0])
    assert record["score"] == pytest.approx(expected, abs=1e-4)
    (remark,) = record["remarks"]
    assert remark == {"moves": False, "text": remark["text"]} and "The thought is not in there" in remark["text"]


def test_a_thought_that_reaches_the_reward_model_is_said(house: Path, tmp_path: Path, says: Any) -> None:
    echo = f"<think>\n{PLAN}\n</think>\n\nI think: {PLAN}"
    record = live(grpo(house, tmp_path, generation_kwargs=says(echo), max_completion_length=64))
    assert [(r["moves"], r["text"][:27]) for r in record["remarks"]] == [(True, "The words of the thought st")]
    full = {"score": "full"}
    record = live(grpo(house, tmp_path, rlmt=full, generation_kwargs=says(WELL), max_completion_length=64))
    assert PLAN in record["shown"]["text"] and record["remarks"][0]["text"].startswith("`score: full`")


def test_without_an_answer_a_stand_in_is_shown_and_nothing_scored(house: Path, tmp_path: Path, says: Any) -> None:
    record = live(grpo(house, tmp_path, generation_kwargs=says("<think>\nSay", ends=False), max_completion_length=4))
    assert record["status"] == "truncated" and record["answer"] is None and record["score"] is None
    assert record["reason"] == "malformed: truncated" and record["shown"]["stand_in"]
    assert "(the answer)<|eot_id|>" in record["shown"]["text"]


def test_a_prompt_that_is_cut_is_counted(house: Path, tmp_path: Path, says: Any) -> None:
    record = live(
        grpo(house, tmp_path, rlmt={"max_length": 24}, generation_kwargs=says(WELL), max_completion_length=64)
    )
    assert record["shown"]["num_tokens"] == 24 and record["shown"]["num_cut"] > 0
    assert any("were cut on the left" in r["text"] for r in record["remarks"])
    assert "A, B, C." in record["shown"]["text"]


def test_a_raw_base_model_stops_at_its_response(house: Path, tmp_path: Path, says: Any) -> None:
    text = "<think>Plan.</think> <response>A, B.</response> and on"
    record = live(
        grpo(
            house,
            tmp_path,
            rlmt={"style": "response"},
            generation_kwargs=says(text, "</query>\nAssistant:"),
            max_completion_length=64,
            model_name_or_path=str(make_policy(tmp_path / "raw", None, max_position_embeddings=512)),
        )
    )
    assert (record["status"], record["thought"], record["answer"]) == ("ok", "Plan.", "A, B.")
    assert part(record, "close response") == "</response>" and "and on" not in json.dumps(record["parts"])
    assert "<query>Name 0 letters.</query>" in part(record, "prompt") and "query" not in record["shown"]["text"]


def test_live_is_what_asks_a_server(house: Path, tmp_path: Path, says: Any) -> None:
    def answer(request: Any) -> Reply:
        rows = request.json["input"]
        data = [{"index": i, "probs": [1.5]} for i in range(len(rows))]
        return Reply({"data": data, "usage": {"prompt_tokens": sum(map(len, rows))}})

    with StubServer(answer) as server:
        rlmt = {"server": f"http://127.0.0.1:{server.port}", "score_noise_share": 0.0}
        record = live(grpo(house, tmp_path, rlmt=rlmt, generation_kwargs=says(WELL), max_completion_length=64))
        sent = [row for request in server.requests for row in request.json["input"]]
    assert record["score"] == 1.5 and "on its server" in record["shown"]["model"]
    assert sent and all(len(row) == record["shown"]["num_tokens"] for row in sent)
    tokenizer = load_tokenizer(str(house / "reward"))
    assert all("Say what" not in tokenizer.decode(row) for row in sent)


def test_what_a_warm_start_trains_is_marked(house: Path, tmp_path: Path, capsys: Any) -> None:
    record = live(supervised(house, tmp_path, "sft"), "--row", "1")
    (side,) = record["sides"]
    assert record["prompt"] == "<|user|>\nName 1 letters.<|end|>\n<|assistant|>\n"
    assert side["text"] == f"{WELL}<|end|>\n" and side["status"] == "ok"
    assert cli.main(["doctor", "--live", str(supervised(house, tmp_path, "sft"))]) == 0
    shown = capsys.readouterr().out
    assert "> <think>\n> Say what three letters are.\n> </think>" in shown and "| Name 0 letters." in shown


def test_both_sides_of_a_pair_are_shown(house: Path, tmp_path: Path) -> None:
    record = live(supervised(house, tmp_path, "dpo"))
    assert [(side["name"], side["text"][-14:]) for side in record["sides"]] == [
        ("chosen", "k>\n\nA.<|end|>\n"),
        ("rejected", ">\n\nNo.<|end|>\n"),
    ]
    assert "beta 0.1" in record["loss"]


def test_shown_at_80_columns(house: Path, tmp_path: Path, says: Any, capsys: Any) -> None:
    path = grpo(house, tmp_path, generation_kwargs=says(WELL), max_completion_length=64)
    assert cli.main(["doctor", "--live", str(path)]) == 0
    shown = capsys.readouterr().out
    place = str(house)
    assert max(len(line) for line in shown.splitlines() if place not in line) <= 80
    words = " ".join(shown.split())
    assert f"thought: | {PLAN} answer: | A, B, C." in words
    assert "1 BOS, nothing cut | <|begin_of_text|><|start_header_id|>user<|end_header_id|>" in words
    assert "The thought is not in there" in words and "score: " in words
