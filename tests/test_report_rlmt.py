"""The report of RLMT: what it says of scores, form, lengths and outputs, of its control, and of SFT and DPO."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_runs import (
    HOSTILE,
    PLAN,
    SAID,
    held_out,
    interval,
    make_run,
    rlmt_log,
    rlmt_row,
    rlmt_rows,
    rlmt_run,
    trainer_run,
    whole_run,
    without_thoughts,
)
from test_report import page_of, words_of

from rl_think_ext.methods.interval import mean_interval
from rl_think_ext.methods.rlmt import STATUSES
from rl_think_ext.report import headline, tiles
from rl_think_ext.report.folder import read
from rl_think_ext.report.kinds import DPO, RLMT, RLP, SFT, kind_of
from rl_think_ext.report.samples import ends, table


def figure(page: str, key: str) -> str:
    start = page.index(f'<figure id="fig-{key}">')
    return page[start : page.index("</figure>", start)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    rlmt_run(root / "think")
    rlmt_run(root / "nothink", thinks=False)
    return root


@pytest.fixture(scope="module")
def think(runs: Path) -> str:
    return page_of(runs / "think")


@pytest.fixture(scope="module")
def rlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_run(tmp_path_factory.mktemp("rlp") / "rlp")


def test_a_run_is_spoken_of_in_the_methods_words(think: str) -> None:
    page = think
    words = words_of(page)
    for key in "score status length spread dead kl cut unscored scoring seconds asked".split():
        assert f'<figure id="fig-rlmt-{key}">' in page
    assert "RLMT report" in words and "answers scored by tiny-reward-model, logged up to step 20" in words
    assert "Score of the reward model −0.28 → +1.71" in words
    assert "Outputs with the right form 75.0 % → 100.0 %" in words
    assert "Rose: the two 95 % intervals do not touch (prompts: 12 and 12)." in words
    assert "step 5 (96 samples of 12 prompts) → step 20 (96 samples of 12 prompts)" in words
    assert "their thoughts were not shown to the reward model; intervals: 95 %, over whole prompts" in words
    assert "reward_model tiny-reward-model default –" in words and "/a/disk" not in page
    for of_rlp in ("Gain", "nats.", "Where in the text", "frozen"):
        assert of_rlp not in words.split("Settings and origin")[0]


def test_statuses_that_occurred_are_one_figure(think: str) -> None:
    shown = figure(think, "rlmt-status")
    labels = re.findall(r"<span>(?:<b>[^<]*</b> )?([^<]+)</span>", shown)
    assert labels == ["ok", "no close", "truncated"]
    assert "70.0 % → 98.5 %" in shown


def test_thoughts_stand_apart_from_what_the_reward_model_saw(think: str, tmp_path: Path) -> None:
    words = words_of(think)
    assert f"thought, not shown to the reward model {PLAN} step 5, output" in words
    assert f"answer {SAID}" in words and "score −0.47 ok" in words
    full = words_of(page_of(rlmt_run(tmp_path / "full", log=(), settings={"style": "think", "score": "full"})))
    assert "thought, shown to the reward model, too" in full and "saw whole outputs (score: full)" in full
    assert "not shown" not in full


def test_outputs_without_a_score_are_shown_with_the_reason(tmp_path: Path) -> None:
    rows = rlmt_rows(9, 1.0, bad=3)
    rows += [rlmt_row(9, None, status="ok", answer="x") | {"rlmt": None, "rlmt/unscorable": "reward server: 500"}]
    words = words_of(page_of(make_run(tmp_path / "run", tables={9: rows}, method="rlmt")))
    start = words.index("Outputs without a score One of each reason")
    said = words[start : words.index("Settings and origin")]
    assert said.count("no score") == 2
    assert "no score, paid −3.00 no_close" in said
    assert "whole output, no answer was taken from it <think>No" in said
    assert "no score: reward server: 500 ok" in said
    assert "Outputs with the right form 62.9 %" in words


def test_the_control_has_no_empty_figures(runs: Path) -> None:
    page = page_of(runs / "nothink")
    words = words_of(page)
    assert "tile-thought_length" not in page and "tile-answer_length" in page
    assert "thought" not in figure(page, "rlmt-length").split("<figcaption>")[0]
    assert "thought," not in words and "Length of a thought" not in words
    assert "their thoughts" not in words
    for drawn in re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL):
        assert "<path" in drawn and "<li>" in drawn


def test_think_against_no_think(runs: Path) -> None:
    page = page_of(runs / "think", runs / "nothink")
    words = words_of(page)
    assert (
        "think and nothink: The two 95 % intervals overlap, the difference can be chance (prompts: 12 and 12)." in words
    )
    assert page.count('<figure id="fig-rlmt-score">') == 1 and figure(page, "rlmt-score").count("<li>") == 4
    assert figure(page, "rlmt-length").count("<li>") == 5
    assert "style think none" in words
    assert "thought, not shown" in words[words.index("think Outputs before") : words.index("nothink Outputs before")]
    assert "thought, not shown" not in words[words.index("nothink Outputs before") :]


def test_a_run_beside_one_of_another_method(runs: Path, rlp: Path) -> None:
    page = page_of(runs / "think", rlp)
    words = words_of(page)
    assert "RLMT and RLP report" in words and "Gain of a thought" in words and "Score of the reward model" in words
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert figure(page, "gain").count("<li>") == 2 and figure(page, "entropy").count("<li>") == 2


def test_intervals_are_over_prompts(runs: Path) -> None:
    found = headline.measured(read(runs / "think"))
    first, final = ends(read(runs / "think"), 64)
    assert found is not None and len(first) == len(final) == 96
    for side, when in ((first, "before"), (final, "after")):
        expected = mean_interval([s.value for s in side], [s.context for s in side])
        assert found.quantities["score"][when] == expected and expected.num_clusters == 12
    assert found.quantities["score"]["before"].num_values == 72  # malformed outputs have no score, and are no 0
    assert found.quantities["form"]["before"].mean == 0.75


def test_each_end_takes_tables_until_it_has_enough_prompts(tmp_path: Path) -> None:
    tables = {step: rlmt_rows(step, 0.5) for step in range(1, 7)}
    sides = ends(read(rlmt_run(tmp_path / "run", log=rlmt_log(6), tables=tables)), 64)
    assert [{s.step for s in side} for side in sides] == [{1, 2}, {5, 6}]


def test_a_length_that_rises_is_no_success(runs: Path) -> None:
    found = headline.measured(read(runs / "think"))
    assert found is not None
    made = {tile.key: tile for tile in tiles.tiles([("run", found)])}
    assert [kind for kind, _ in made["score"].verdicts] == ["rose"]
    assert [kind for kind, _ in made["answer_length"].verdicts] == ["moved"]
    assert made["answer_length"].low == 0.0 and made["score"].low < -0.3
    assert [name for _, name in made["score"].marks] == ["0", "1"]


def test_no_interval_reaches_what_cannot_be(tmp_path: Path) -> None:
    rows = {
        s: [rlmt_row(s, 1.0 if i == 1 else None, f"{i}?", answer="A" * 9 ** (i % 3)) for i in range(3)] for s in (5, 9)
    }
    words = words_of(page_of(rlmt_run(tmp_path / "run", log=(), tables=rows)))
    assert "33.3 % before 0.0 … 100.0 % after 0.0 … 100.0 % 0 50 % 100 %" in words
    assert "characters before 0 … " in words


def test_alarms_of_the_method_are_asked_where_nobody_did(tmp_path: Path) -> None:
    log = [entry | {"rlmt/status/ok": 0.2, "rlmt/answer_length": 100.0 * entry["step"]} for entry in rlmt_log(20)]
    found = read(rlmt_run(tmp_path / "run", log=log))
    assert [(entry["step"], entry["alarm"][:24]) for entry in found.alarms] == [
        (3, "80% of the outputs have "),
        (9, "answers grew from 200 to"),
    ]


def test_tables_of_an_evaluation_are_left_out(tmp_path: Path) -> None:
    log = rlmt_log(20)
    log.insert(10, {"step": 10, "eval_loss": 0.1, "eval_rlmt/score": 0.5, "eval_rlmt/status/ok": 0.9})
    tables = {step: rlmt_rows(step, 0.5) for step in (5, 10, 20)}
    found = read(rlmt_run(tmp_path / "run", log=log, tables=tables))
    assert [step for step, _ in found.tables] == [5, 20]
    assert "Completions tables left out: 1 of 3. An evaluation wrote them" in found.notes[0]
    page = page_of(tmp_path / "run")
    assert '<figure id="fig-rlmt-eval-score">' in page and "Lengths on the evaluation set" in words_of(page)
    every = [entry | {"eval_loss": 0.1} for entry in rlmt_log(20)]
    found = read(rlmt_run(tmp_path / "every", log=every, tables=tables))
    assert len(found.tables) == 3 and "holds its samples, too" in found.notes[0]


def test_prompts_of_several_messages_keep_their_roles(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
    run = make_run(tmp_path / "run", tables={1: [rlmt_row(1, 1.0, chat), rlmt_row(1, 2.0, chat[1:])]}, method="rlmt")
    one, other = table(run / "completions" / "completions_00001.parquet")
    assert one.context == "system: Be short.\nuser: 2 + 2?" and other.context == "2 + 2?"
    assert (one.thought, one.answer, one.text, one.paid) == (PLAN, SAID, SAID, 1.0)


def test_held_out_scores_come_before_training_samples(tmp_path: Path) -> None:
    measured = held_out() | {
        "what": "held-out prompts",
        "before": {"score": interval(-0.15, 0.05), "form": interval(0.5, 0.02)},
        "after": {"score": interval(2.15, 0.04), "form": interval(0.98, 0.01)},
        "ceiling": None,
    }
    words = words_of(page_of(rlmt_run(tmp_path / "run", log=(), measured=measured)))
    assert "Score of the reward model −0.15 → +2.15" in words and "1,024 held-out prompts. Scores of" in words


def test_hostile_outputs_are_inert(tmp_path: Path) -> None:
    bad = HOSTILE.replace("\ud800", "")
    hostile = {"thought": bad, "answer": bad, "status": bad, "rlmt/unscorable": bad, "completion": bad}
    rows = [rlmt_row(s, None if i % 2 else 1.0, f"{bad}{i}", **hostile) for s in (5, 9) for i in range(140)]
    log = [entry | {f"rlmt/status/{HOSTILE}": 0.3} for entry in rlmt_log(9)]
    run = rlmt_run(
        tmp_path / "run",
        log=log,
        tables={5: rows[:140], 9: rows[140:]},
        settings={"reward_model": HOSTILE, "style": [], "score": {}},
        dataset={"name": "x", "num_rows": 1, "card": {"method": [HOSTILE], "counts": {HOSTILE: HOSTILE}}},
    )
    page = page_of(run)
    assert "<script" not in page and "<img" not in page and page.count("</style>") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]", page)
    assert not re.search(r"<script|<link|<iframe|@import|\son\w+=\"", page)


def test_long_outputs_are_bounded(tmp_path: Path) -> None:
    long = {"thought": "t" * 100_000, "answer": "a" * 100_000}
    rows = {s: [rlmt_row(s, 1.0, "p" * 50_000 + str(i), **long) for i in range(70)] for s in (5, 9)}
    page = page_of(rlmt_run(tmp_path / "run", log=(), tables=rows))
    assert len(page) < 300_000 and "98,500 more characters" in page


@pytest.mark.parametrize(
    ("trainer", "keys"), [("SFTTrainer", "sft-loss sft-accuracy"), ("DPOTrainer", "dpo-margin dpo-accuracy")]
)
def test_warm_starts_and_pairs_have_a_modest_page(tmp_path: Path, trainer: str, keys: str) -> None:
    page = page_of(trainer_run(tmp_path / "run", trainer))
    words = words_of(page)
    assert f"{trainer[:3]} report" in words and "Before and after" not in words and "log_completions" not in words
    assert all(f'<figure id="fig-{key}">' in page for key in keys.split())
    assert "No alarms" not in words and "Not logged" not in words  # nobody watches it
    assert "training 0.70 → 0.70" in words


def test_a_warm_start_beside_the_run_that_it_began(runs: Path, tmp_path: Path) -> None:
    page = page_of(trainer_run(tmp_path / "sft", "SFTTrainer"), runs / "think")
    assert "SFT and RLMT report" in words_of(page)
    assert figure(page, "loss").count("<li>") == 1 and figure(page, "rate").count("<li>") == 2


def test_the_kind_is_told_by_what_is_there(tmp_path: Path) -> None:
    assert kind_of({"method": "rlmt", "trainer": "ThinkSFTTrainer"}, ()) is SFT
    assert kind_of({"method": "rlmt", "trainer": "GRPOTrainer"}, {"rlp/gain"}) is RLMT
    assert [
        kind_of({}, names) for names in (["rlmt/score"], ["rewards/margins"], ["mean_token_accuracy"], ["rlp"])
    ] == [
        RLMT,
        DPO,
        SFT,
        RLP,
    ]
    only_tables = make_run(tmp_path / "run", tables={1: rlmt_rows(1, 0.5)})
    (only_tables / "rl_think" / "run.json").unlink()
    (only_tables / "rl_think" / "log.jsonl").unlink()
    assert read(only_tables).kind is RLMT
    (only_tables / "rl_think" / "settings.json").write_text(
        json.dumps({"rlmt": {"style": "none"}, "fingerprint": "ab"})
    )
    assert not read(only_tables).thinks


def test_every_status_has_a_place(tmp_path: Path) -> None:
    rows = [rlmt_row(1, None, f"{i}?", status=status, answer=None) for i, status in enumerate(STATUSES)]
    rows = [r | {"rlmt/unscorable": f"malformed: {r['rlmt/status']}"} for r in without_thoughts(rows)]
    words = words_of(page_of(make_run(tmp_path / "run", tables={1: rows}, method="rlmt")))
    assert all(f"no score, paid −3.00 {status}" in words for status in STATUSES[:6])
    assert "Not one answer among them got a score; intervals" in words
