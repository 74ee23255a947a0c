"""`rl-think judge check`: labelled pairs against judges that are good, gullible, silent, slow."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judges import answer, honest, prompt_of, quotes
from stub_server import Reply, Request, StubServer

from rl_think_ext import cli
from rl_think_ext.errors import UserError
from rl_think_ext.methods.interval import share_interval
from rl_think_ext.offline.judge_agreement import agreement, repeatability
from rl_think_ext.offline.judge_check import JudgeCheckConfig, run_check
from rl_think_ext.offline.judge_pairs import OWN_PAIRS, Labelled, read_pairs
from rl_think_ext.records import Score
from rl_think_ext.scoring.judge import Pair

RUN = "learning_rate: 1e-6\nrl_think:\n  rlpt:\n    judge_model: judge\n    retries: 0\n"


def labelled(num_right: int, num_wrong: int) -> list[Labelled]:
    pairs = [Pair(f"Row {i} is full. Row {i + 1} is not.", f"Row {i} is full.") for i in range(num_right)]
    wrong = [Pair(f"Row {i} is full.", f"Row {i} is empty.") for i in range(num_wrong)]
    return [Labelled(pair, 1, "", "") for pair in pairs] + [Labelled(pair, 0, "", "") for pair in wrong]


def write(path: Path, pairs: list[Labelled]) -> Path:
    rows = [{**one.pair._asdict(), "label": one.label} for one in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(server: StubServer, **changes: Any) -> dict[str, Any]:
    settings = [f"{key}={value}" for key, value in ({"retries": 0, "timeout": 5.0} | changes.pop("set", {})).items()]
    return run_check(JudgeCheckConfig(server=server.url, judge_model="judge", set=settings, **changes))


def test_the_shares_by_hand() -> None:
    # Of 4 right ones 3 accepted; of 5 wrong ones with a verdict 1 accepted; 1 without a verdict.
    verdicts = [1, 1, 1, 0, 0, 1, 0, None, 0, 0]
    scores = [Score(float(v)) if v is not None else Score.unscorable("judge: timeout: x") for v in verdicts]
    found = agreement(labelled(4, 6), scores)
    assert found["outcomes"] == {
        "right accepted": 3, "wrong rejected": 4, "wrong accepted": 1, "right rejected": 1, "no verdict": 1,
    }  # fmt: skip
    shares = {key: found[key]["share"] for key in ("accuracy", "wrong_accepted", "right_rejected", "no_verdict")}
    assert shares == {"accuracy": 7 / 9, "wrong_accepted": 1 / 5, "right_rejected": 1 / 4, "no_verdict": 1 / 10}
    assert [case["outcome"] for case in found["disagreements"]] == ["wrong accepted", "right rejected", "no verdict"]
    assert found["disagreements"][2]["reason"] == "judge: timeout: x"


def test_wilson_by_hand() -> None:
    # The middle of 8 of 10 is (0.8 + z²/20) / (1 + z²/10), half its width z / (1 + z²/10) * sqrt(0.016 + z²/400).
    found = share_interval(8, 10)
    assert (found.mean, round(found.low, 4), round(found.high, 4)) == (0.8, 0.4902, 0.9433)
    assert math.isnan(share_interval(0, 0).mean) and share_interval(10, 10).high == 1.0


def test_the_same_verdict_twice_is_counted_where_there_are_two() -> None:
    first = [Score(1.0), Score(0.0), Score(1.0), Score.unscorable("x")]
    second = [Score(1.0), Score(1.0), Score.unscorable("x"), Score(1.0)]
    found = repeatability(first, second)
    assert found["num_pairs"] == 2 and found["same"]["share"] == 0.5


def test_a_good_judge_agrees() -> None:
    with StubServer(honest) as server:
        found = check(server, set={"num_canaries": 4})
    own = [json.loads(line) for line in OWN_PAIRS.read_text().splitlines()]
    assert found["num_pairs"] == len(own) == len(server.requests) - 4
    assert found["repeated"] is None and found["stats"]["canary_wrong_accepted"] == 0.0
    assert found["outcomes"]["no verdict"] == 0 and 0.5 < found["accuracy"]["share"] < 1.0


def test_a_judge_that_accepts_all_accepts_every_wrong_one(tmp_path: Path) -> None:
    with StubServer(lambda _: answer("Score: 1")) as server:
        found = check(server, pairs=write(tmp_path / "pairs.jsonl", labelled(10, 30)))
    assert found["wrong_accepted"]["share"] == 1.0 == found["stats"]["canary_wrong_accepted"]
    assert found["accuracy"]["share"] == 0.25 and len(found["disagreements"]) == 30


def test_a_judge_that_samples_is_asked_twice(tmp_path: Path) -> None:
    draw = random.Random(0)
    file = write(tmp_path / "pairs.jsonl", labelled(100, 0))
    with StubServer(lambda _: answer(f"Score: {draw.randint(0, 1)}")) as server:
        found = check(server, pairs=file, set={"judge_temperature": 1.0, "num_canaries": 0})
        assert len(server.requests) == 200 and 0.3 < found["repeated"]["same"]["share"] < 0.7
        assert check(server, pairs=file, set={"judge_temperature": 1.0}, twice=False)["repeated"] is None
        found = check(server, pairs=file, twice=True)
        assert found["repeated"]["num_pairs"] == 100


def test_what_a_step_needs_against_what_was_measured(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", labelled(40, 0))
    with StubServer(lambda r: replace(honest(r), delay=0.1)) as server:
        set_ = {"max_concurrency": 4, "num_canaries": 4}
        found = check(server, pairs=file, set=set_, batch_size=396, step_seconds=5.0)["load"]
        # 44 answers, 4 at a time, 0.1 s each: 40 a second at the very most, and 80 are needed.
        assert 20 < found["measured_requests_per_second"] <= 40 and found["at_once"] == 4
        assert (found["requests_per_step"], found["needed_requests_per_second"]) == (400, 80.0)
        assert found["needed_tokens_per_second"] == 80 * 104 and not found["keeps_up"]
        assert check(server, pairs=file, set=set_, batch_size=396, step_seconds=60.0)["load"]["keeps_up"]


def test_answers_that_never_came_are_no_speed(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", labelled(20, 0))
    with StubServer(lambda r: Reply(status=500) if r.number % 2 else honest(r)) as server:
        found = check(server, pairs=file, set={"num_canaries": 0, "max_concurrency": 1})
    assert found["outcomes"]["no verdict"] == 10
    measured = found["load"]["measured_requests_per_second"] * found["stats"]["seconds"]
    assert measured == pytest.approx(10) and found["load"]["prompt_tokens_per_request"] == 100


def test_a_judge_that_is_not_there_keeps_up_with_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", labelled(5, 0) * 3)
    with StubServer(lambda _: Reply(status=500)) as server:
        found = check(server, pairs=file, set={"num_canaries": 4}, batch_size=1, step_seconds=1000.0)
    assert found["load"]["measured_requests_per_second"] == 0.0 and not found["load"]["keeps_up"]


def test_half_characters_of_a_pair_are_written_down(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", [Labelled(Pair("It rained \ud800.", "It snowed."), 0, "", "")])
    with StubServer(honest) as server:
        check(server, pairs=file, output=tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["answers"][0]["reference"] == "It rained \ud800."


def test_the_command_says_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(
        "learning_rate: 1e-6\nrl_think:\n  rlpt:\n    judge_model: judge\n    retries: 0\n"
    )

    def gullible(request: Request) -> Reply:
        return answer("Score: 1") if "Score: 1" in quotes(prompt_of(request))[1] else honest(request)

    with StubServer(gullible) as server:
        arguments = ["judge", "check", "--config", str(tmp_path / "run.yaml"), "--server", server.url]
        arguments += ["--batch-size", "64", "--step-seconds", "30", "--output", str(tmp_path / "out/check.json")]
        assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "wrong accepted" in said and "speaks to the judge" in said and "it keeps up" in said
    assert "latency p95, seconds" in said and f"judge at {server.url}" in said
    stored = json.loads((tmp_path / "out/check.json").read_text())
    assert len(stored["answers"]) == stored["num_pairs"] and stored["stats"]["breaker_open"] == 0.0
    assert stored["judge"]["judge_model"] == "judge" and stored["repeated"] is None


def test_a_judge_without_one_verdict_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with StubServer(lambda _: answer("I would rather not say.")) as server:
        assert cli.main(["judge", "check", "--server", server.url, "--judge-model", "judge"]) == 1
    said = capsys.readouterr().out
    assert "NOT ONE VERDICT" in said and "unparsable" in said


def test_the_rule_can_be_checked_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["judge", "check", "--set", "judge=rule"]) == 0
    assert "the rule, prefix reward" in capsys.readouterr().out


def test_f39_no_secret_is_shown_or_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "key-0123456789abcdef")
    with StubServer(honest) as server:
        url = server.url.replace("://", "://me:s3cr3t@") + "/?token=q-secret"
        arguments = ["judge", "check", "--server", url, "--judge-model", "judge", "--set", "api_key_env=JUDGE_KEY"]
        assert cli.main([*arguments, "--output", str(tmp_path / "check.json")]) == 0
    shown = capsys.readouterr()
    for text in (shown.out, shown.err, (tmp_path / "check.json").read_text()):
        assert not any(secret in text for secret in ("s3cr3t", "q-secret", "key-0123456789abcdef"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "`server` is not set"),
        (["--server", "http://h:1"], "`judge_model` is not set"),
        (["--server", "nonsense", "--judge-model", "m"], "looks like http://host:8000"),
        (["--config", "none.yaml"], "could not read the settings file none.yaml"),
        (["--set", "reward=prefx"], "did you mean `prefix`?"),
        (["--set", "judge_modle=m"], "did you mean `judge_model`?"),
        (["--set", "judge"], "expected key=value"),
        (["--set", "judge=rule", "--pairs", "none.jsonl"], "could not read the labelled pairs none.jsonl"),
    ],
)
def test_wrong_flags_are_told(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["judge", "check", *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"batch_size": 512}, "belong together"),
        ({"batch_size": 0, "step_seconds": 1.0}, "`batch_size` is at least 1"),
        ({"batch_size": 1, "step_seconds": 0.0}, "`step_seconds` is a number above 0"),
    ],
)
def test_a_step_is_a_size_and_a_time(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        JudgeCheckConfig(**flags)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "line 2: not a JSON object"),
        ("[1]", "line 2: not a JSON object"),
        ("[" * 100_000, "line 2: not a JSON object"),
        ('{"reference": "a", "prediction": "b"}', "line 2: `label` is 0 or 1, got None"),
        ('{"reference": "a", "prediction": "b", "label": "1"}', "line 2: `label` is 0 or 1, got '1'"),
        ('{"reference": "a", "prediction": "b", "strict": 1}', "line 2: `label` is 0 or 1, got None"),
        ('{"prediction": "b", "label": 1}', "line 2: `reference` holds no text"),
        ('{"reference": "a", "prediction": " ", "label": 1}', "line 2: `prediction` holds no text"),
        ('{"reference": "a", "prediction": ["b"], "label": 1}', "line 2: `prediction` holds no text"),
    ],
    ids=str,
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"reference": "a", "prediction": "b", "label": 1}\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_pairs(file, "prefix")
    assert said in str(error.value) and "pairs.jsonl" in str(error.value)


def test_a_file_without_pairs_or_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"reference": "\xe9"}')
    for name, said in (("empty.jsonl", "holds no labelled pair"), ("latin.jsonl", "not UTF-8")):
        with pytest.raises(UserError, match=said):
            read_pairs(tmp_path / name, "prefix")


def test_the_pairs_of_the_package_serve_both_rewards() -> None:
    rows = [json.loads(line) for line in OWN_PAIRS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 40 and len({row["id"] for row in rows}) == len(rows)
    for reward in ("prefix", "strict"):
        found = read_pairs(None, reward)
        assert [one.label for one in found] == [row[reward] for row in rows]
        assert 8 <= sum(one.label for one in found) <= len(found) - 8
    # What says all that the reference says also begins as it does.
    assert all(row["prefix"] for row in rows if row["strict"])
