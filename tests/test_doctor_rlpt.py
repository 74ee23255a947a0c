"""`rl-think doctor` for RLPT: set-ups that are broken in one way each, and one row taken through the real parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from doctor_chats import make_policy, run_file, write
from stub_server import Reply, StubServer
from test_doctor_rlmt import finding, live, part, saying
from test_doctor_setups import doctor

from rl_think_ext import cli
from rl_think_ext.methods.rlpt import render_asr, render_msr
from rl_think_ext.scoring.load import load_tokenizer

CONTEXT, FIRST, NEXT = "The clouds were dark. ", "It rained on us.", " We ran."
WELL = "They were dark, so <|startofprediction|>It rained on us.<|endofprediction|>"


def row(i: int, task: str = "asr", **changes: Any) -> dict[str, Any]:
    shown = NEXT if task == "msr" else ""
    prompt = render_msr(CONTEXT, shown) if shown else render_asr(CONTEXT)
    reference = FIRST if shown else FIRST + NEXT
    return {
        "id": f"d:{i}", "prompt": [{"role": "user", "content": prompt}], "task": task, "context": CONTEXT,
        "next_segment": shown, "reference": reference, "segment_ends": [len(FIRST), len(reference)][: 2 - bool(shown)],
        "source": "d", "position": i, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `policy` and the dataset `segments`."""
    place = tmp_path_factory.mktemp("house")
    make_policy(place / "policy", max_position_embeddings=512)
    write(place / "segments", [row(i, "msr" if i % 3 else "asr") for i in range(6)])
    return place


def grpo(house: Path, place: Path, *, rlpt: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A YAML file of an RLPT run."""
    block = {"rlpt": {"judge": "rule"} if rlpt is None else rlpt}
    return run_file(house, place, "segments", **({"rl_think": block, "max_completion_length": 80} | changes))


def stock(house: Path, place: Path, rlpt: dict[str, Any], **changes: Any) -> Path:
    env = {"RL_THINK_CONFIG": yaml.safe_dump({"rlpt": rlpt})}
    keys = {"env": env, "reward_funcs": ["rl_think_ext.trl.rlpt"], "max_completion_length": 80}
    return run_file(house, place, "segments", **(keys | changes))


def served(server: str = "http://127.0.0.1:9", **changes: Any) -> dict[str, Any]:
    return {"server": server, "judge_model": "some/judge", **changes}


def test_a_run_is_looked_at_as_a_whole(house: Path, tmp_path: Path) -> None:
    report = doctor(grpo(house, tmp_path))
    assert report.status == 0 and not report.at("broken") and not report.at("warn")
    assert "judge=rule" in finding(report, "RLPT settings") and "RLPTGRPOConfig" in finding(report, "TRL's keys")
    assert "survive decoding, as " in finding(report, "tags") and "tokens; sampling ends at" in finding(report, "tags")
    assert "The rule: the words of a prediction begin those of the reference" in finding(report, "judge")
    assert "The first 6 rows are 2 of asr, 4 of msr, up to" in finding(report, "rows")
    assert "they fit into 512 positions with outputs of 80" in finding(report, "rows")
    assert "rl_think_ext.trl.rlpt" in finding(report, "rewards") and "rlpt" in finding(report, "start")


def test_nothing_is_sent_to_a_judge(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-abcdefghijkl")
    with StubServer(lambda request: Reply(status=500)) as server:
        url = f"http://user:secret@127.0.0.1:{server.port}"
        report = doctor(grpo(house, tmp_path, rlpt=served(url, api_key_env="JUDGE_KEY")))
        assert server.requests == []
    assert report.status == 0
    assert "is to serve some/judge, with the key in JUDGE_KEY; it was not asked" in finding(
        report, "server", "unchecked"
    )
    assert "the prompt of this package; verdicts kept for this run; 4 canaries" in finding(report, "judge")
    assert "secret" not in json.dumps(report.findings) and "sk-abc" not in json.dumps(report.findings)


def test_the_stock_command(house: Path, tmp_path: Path) -> None:
    report = doctor(stock(house, tmp_path, {"judge": "rule"}))
    assert report.status == 0 and "is for `trl grpo`" in finding(report, "file")
    assert "From inline YAML in RL_THINK_CONFIG: judge=rule" in finding(report, "RLPT settings")


# --- Set-ups, each broken in one way ---


def no_server(house: Path, place: Path) -> Path:
    return grpo(house, place, rlpt={})


def no_name_of_the_judge(house: Path, place: Path) -> Path:
    return grpo(house, place, rlpt={"server": "http://127.0.0.1:9"})


def server_is_no_address(house: Path, place: Path) -> Path:
    return grpo(house, place, rlpt=served("localhost:8000"))


def key_is_not_set(house: Path, place: Path) -> Path:
    return grpo(house, place, rlpt=served(api_key_env="NO_SUCH_KEY"))


def prompt_without_its_fields(house: Path, place: Path) -> Path:
    (place / "prompt.txt").write_text("{boundary}{reference}{boundary} Score: 0 or Score: 1?")
    return grpo(house, place, rlpt=served(judge_prompt=str(place / "prompt.txt")))


def no_canaries(house: Path, place: Path) -> Path:
    return grpo(house, place, rlpt=served(num_canaries=0))


def unknown_setting(house: Path, place: Path) -> Path:
    return grpo(house, place, rlpt={"judge": "rule", "msr_wieght": 0.5})


def weight_under_the_stock_trainer(house: Path, place: Path) -> Path:
    return stock(house, place, {"judge": "rule", "msr_weight": 0.25})


def other_reward_under_the_stock_trainer(house: Path, place: Path) -> Path:
    rewards = ["rl_think_ext.trl.rlpt", "trl.rewards.think_format_reward"]
    return stock(house, place, {"judge": "rule"}, reward_funcs=rewards)


def reward_of_another_method(house: Path, place: Path) -> Path:
    return grpo(house, place, reward_funcs=["rl_think_ext.trl.rlmt"])


def cold_start_by_us(house: Path, place: Path) -> Path:
    return grpo(house, place, rl_think={"trainer": "sft", "rlpt": {}})


def dataset_of_chats(house: Path, place: Path) -> Path:
    return grpo(house, place, dataset_name=str(write(place / "chats", [{"prompt": "a", "id": "x"}])))


def ends_that_do_not_fit(house: Path, place: Path) -> Path:
    return grpo(house, place, dataset_name=str(write(place / "odd", [row(0), row(1, segment_ends=[3])])))


def outputs_without_room(house: Path, place: Path) -> Path:
    return grpo(house, place, max_completion_length=500)


def policy_without_a_template(house: Path, place: Path) -> Path:
    policy = make_policy(place / "raw", None, max_position_embeddings=512)
    return grpo(house, place, model_name_or_path=str(policy))


def reference_runs_into_what_is_shown(house: Path, place: Path) -> Path:
    reference = FIRST + NEXT
    rows = [row(0, "msr", reference=reference, segment_ends=[len(FIRST), len(reference)])]
    return grpo(house, place, dataset_name=str(write(place / "leaky", rows)))


def targets_longer_than_a_prediction(house: Path, place: Path) -> Path:
    return grpo(house, place, rlpt={"judge": "rule", "max_prediction_chars": 10})


def kl_term(house: Path, place: Path) -> Path:
    return grpo(house, place, beta=0.04)


Setup = Callable[[Path, Path], Path]
SETUPS: dict[Setup, tuple[str, str]] = {
    no_server: ("broken", "`server` is not set"),
    no_name_of_the_judge: ("broken", "`judge_model` is not set"),
    server_is_no_address: ("broken", "a server's address looks like http://host:8000"),
    key_is_not_set: ("broken", "NO_SUCH_KEY"),
    prompt_without_its_fields: ("broken", "it has no {prediction}"),
    no_canaries: ("warn", "nobody sees when the judge is talked round"),
    unknown_setting: ("broken", "unknown key `msr_wieght`; did you mean `msr_weight`?"),
    weight_under_the_stock_trainer: ("broken", "--msr-share 0.2`, which stands for it"),
    other_reward_under_the_stock_trainer: ("broken", "the stock trainer counts a prediction without a score"),
    reward_of_another_method: ("broken", "rl_think_ext.trl.rlmt is another method's reward"),
    cold_start_by_us: ("broken", "use `trl sft` with TRL's keys alone"),
    dataset_of_chats: ("broken", "column `task` is missing; there are prompt, id"),
    ends_that_do_not_fit: ("broken", "row d:1: column `segment_ends` does not fit column `reference`"),
    outputs_without_room: ("broken", "max_completion_length 500 do not fit into the model's 512 positions"),
    policy_without_a_template: ("broken", "--form text`, or give the tokenizer one"),
    reference_runs_into_what_is_shown: ("warn", "1 have a reference that holds the next segment"),
    targets_longer_than_a_prediction: ("warn", "6 are longer than max_prediction_chars 10"),
    kl_term: ("warn", "beta: 0.04 differs from RLPT: the paper has no KL term"),
}


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.__name__)
def test_set_up_is_told_by_its_own_sentence(
    house: Path, tmp_path: Path, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    state, words = SETUPS[setup]
    report = doctor(setup(house, tmp_path))
    told = [one for one in report.at(state) if words in one["found"]]
    assert len(told) == 1, report.findings
    assert told[0]["todo"].strip()
    assert len(report.at("broken")) == report.status == (state == "broken"), report.at("broken")


# --- One row, live ---


@pytest.fixture
def says(house: Path) -> Callable[..., dict[str, Any]]:
    coder = load_tokenizer(str(house / "policy"))
    return lambda text: saying(text, coder, "<|end|>\n<|assistant|>\n")


def test_live_asks_the_judge_about_the_prediction_alone(house: Path, tmp_path: Path, says: Any) -> None:
    def answer(request: Any) -> Reply:
        text = request.json["messages"][-1]["content"]
        said = "Score: 1" if text.count(FIRST) == 2 else "Score: 0"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return Reply({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})

    with StubServer(answer) as server:
        path = grpo(house, tmp_path, rlpt=served(server.url, num_canaries=0), generation_kwargs=says(WELL))
        record = live(path, "--row", "1")
        (request,) = server.requests
    assert (record["row"], record["task"], record["status"]) == ("row d:1", "msr", "ok")
    assert record["prediction"] == record["reference"] == FIRST and record["score"] == 1.0
    assert "startofprediction|>" in part(record, "opens") and part(record, "end") == "<|end|>"
    sent = request.json["messages"][-1]["content"]
    assert record["question"].split("===")[0] == sent.split("===")[0] and FIRST in record["question"]
    assert CONTEXT not in sent and "They were dark" not in sent
    assert "The reasoning and the context are not in the question" in record["remarks"][0]["text"]


def test_live_without_a_prediction_asks_nobody(house: Path, tmp_path: Path, says: Any) -> None:
    with StubServer(lambda request: Reply(status=500)) as server:
        path = grpo(house, tmp_path, rlpt=served(server.url), generation_kwargs=says("It rained, I think."))
        record = live(path)
        assert server.requests == []
    assert record["status"] == "no_open" and record["score"] == 0.0 and record["question"] is None
    assert "The judge was not asked: the output is no_open" in record["remarks"][0]["text"]


def test_live_by_the_rule_at_80_columns(house: Path, tmp_path: Path, says: Any, capsys: Any) -> None:
    assert cli.main(["doctor", "--live", str(grpo(house, tmp_path, generation_kwargs=says(WELL)))]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if str(house) not in line) <= 80
    words = " ".join(shown.split())
    assert f"prediction: | {FIRST} reference: | {FIRST}{NEXT}" in words and "score: 1, by the rule" in words
