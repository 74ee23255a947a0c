"""The report of RLPT: verdicts, form, length, what predictions cover, the judge, and predictions beside their truth."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import HOSTILE, TRUTH, make_run, rlpt_log, rlpt_row, rlpt_rows, rlpt_run, whole_run
from test_report import page_of, words_of
from test_report_rlmt import figure
from test_trl_rlpt import RLPTGRPOConfig, Scripted, rows
from trl_runs import TINY, save_policy

from rl_think_ext.methods.interval import mean_interval
from rl_think_ext.methods.rlpt import STATUSES, RLPTConfig, render_asr, render_msr
from rl_think_ext.report import headline, tiles
from rl_think_ext.report.folder import read
from rl_think_ext.report.kinds import RLPT, kind_of
from rl_think_ext.report.samples import ends, table


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(rlpt_run(tmp_path_factory.mktemp("runs") / "run"))


def test_a_run_is_spoken_of_in_the_methods_words(page: str) -> None:
    words = words_of(page)
    keys = "score status length covered spread dead copied unscored reasons canaries latency asked seconds scoring"
    for key in keys.split():
        assert f'<figure id="fig-rlpt-{key}">' in page, key
    assert "RLPT report" in words and "predictions judged by tiny-judge, logged up to step 20" in words
    assert "Predictions that are right 12.5 % → 87.5 %" in words
    assert "Outputs with a prediction to judge 100.0 % → 100.0 %" in words
    assert "Segments covered 0.68 → 0.95" in words
    assert "Rose: the two 95 % intervals do not touch (segments: 12 and 12)." in words
    assert "Verdicts; where there is none, none is counted; intervals: 95 %, over whole segments" in words
    assert "/a/disk" not in page
    for of_others in ("nats.", "Where in the text", "frozen", "reward model", "thought"):
        assert of_others not in words.split("Settings and origin")[0], of_others


def test_a_prediction_stands_beside_what_was_true(page: str) -> None:
    words = words_of(page)
    said = words[words.index("Outputs before and after") : words.index("Settings and origin")]
    assert f"Dark clouds came over the hill. {TRUTH} before score 0.00 ok The sun shone." in said
    assert "after score +1.00 ok It rained on the hill." in said


def test_a_sample_shows_the_text_and_not_the_words_that_ask(tmp_path: Path) -> None:
    asked = [render_asr("It rained. "), render_msr("It rained. ", " So we left."), "Go on: It rained."]
    rows = [
        {"step": 1, "completion": "", "rlpt/status": "no_open", "prompt": [{"role": "user", "content": text}]}
        for text in asked
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "completions_00001.parquet")
    shown = [sample.context for sample in table(tmp_path / "completions_00001.parquet")]
    assert shown == ["It rained. ", "It rained. <MASK> So we left.", "Go on: It rained."]


def test_statuses_and_reasons_that_occurred_are_drawn(page: str) -> None:
    def labels(key: str) -> list[str]:
        return re.findall(r"<span>(?:<b>[^<]*</b> )?([^<]+)</span>", figure(page, key))

    assert labels("rlpt-status") == ["ok", "no open", "too short"] and labels("rlpt-reasons") == ["timeout"]
    assert labels("rlpt-canaries") == ["known-right pairs", "known-wrong pairs"]
    for drawn in re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL):
        assert "<path" in drawn and "<li>" in drawn


def test_intervals_are_over_segments_and_no_verdict_is_no_zero(tmp_path: Path) -> None:
    kept = [*rlpt_rows(9, 4), *(rlpt_row(9, None, f"Text {i}.") for i in range(12))]
    run = rlpt_run(tmp_path / "run", log=(), tables={3: rlpt_rows(3, 4), 9: kept})
    found = headline.measured(read(run))
    assert found is not None
    first, final = ends(read(run), 64)
    assert found.quantities["right"]["after"] == mean_interval([s.value for s in final], [s.context for s in final])
    assert found.quantities["right"]["after"].num_values == 96 and found.quantities["right"]["after"].mean == 0.5
    assert len(first) == 96 and found.quantities["judged"]["after"].mean == 1.0


def test_each_end_takes_tables_until_it_has_enough_segments(tmp_path: Path) -> None:
    tables = {
        step: [{**r, "prompt": [{"role": "user", "content": f"{step}: {r['rlpt/id']}"}]} for r in rlpt_rows(step, 4)]
        for step in range(1, 7)
    }
    sides = ends(read(rlpt_run(tmp_path / "run", log=rlpt_log(6), tables=tables)), 64)
    assert [{s.step for s in side} for side in sides] == [{1, 2}, {5, 6}]


def test_a_length_that_moves_is_no_success(tmp_path: Path) -> None:
    found = headline.measured(read(rlpt_run(tmp_path / "run")))
    assert found is not None
    made = {tile.key: tile for tile in tiles.tiles([("run", found)])}
    assert [kind for kind, _ in made["right"].verdicts] == ["rose"]
    assert [kind for kind, _ in made["covered"].verdicts] == ["moved"] and made["covered"].low == 0.0


def test_outputs_without_a_verdict_are_shown_with_the_reason(tmp_path: Path) -> None:
    kept = [*rlpt_rows(9, 4), rlpt_row(9, None)]
    kept.append(rlpt_row(9, None, status="no_open", prediction=None, unscorable="no prediction: no_open"))
    words = words_of(page_of(make_run(tmp_path / "run", tables={9: kept}, method="rlpt")))
    start = words.index("Outputs without a score One of each reason")
    said = words[start : words.index("Settings and origin")]
    assert "no score: judge: timeout ok" in said and "no score: no prediction: no_open no_open" in said
    assert "whole output, no answer was taken from it So <|startofprediction|>" in said


def test_every_status_has_a_place(tmp_path: Path) -> None:
    without = ("no_open", "no_close", "truncated")
    kept = [
        rlpt_row(1, 0.0, f"Text {i}.", status=status, **({"prediction": None} if status in without else {}))
        for i, status in enumerate(STATUSES)
    ]
    run = make_run(tmp_path / "run", tables={1: kept}, method="rlpt")
    found = table(run / "completions" / "completions_00001.parquet")
    assert [s.status for s in found] == list(STATUSES) and [s.has_form for s in found] == [1.0, *[0.0] * 6]
    words = words_of(page_of(run))
    assert "Outputs with a prediction to judge 14.3 %" in words and "score 0.00 too_short The sun shone." in words
    assert "score 0.00 no_open whole output So <|startofprediction|>" in words


def test_beside_a_run_of_another_method(tmp_path: Path) -> None:
    page = page_of(rlpt_run(tmp_path / "one"), whole_run(tmp_path / "two"))
    assert "RLPT and RLP report" in words_of(page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_alarms_of_the_method_are_asked_where_nobody_did(tmp_path: Path) -> None:
    log = [entry | {"rlpt/prediction_length": 40.0 / entry["step"]} for entry in rlpt_log(20)]
    found = read(rlpt_run(tmp_path / "run", log=log))
    assert [(entry["step"], entry["alarm"][:42]) for entry in found.alarms] == [
        (6, "predictions shrank from 24.4 to 6.67 token")
    ]


def test_what_a_folder_is_a_run_of(tmp_path: Path) -> None:
    assert kind_of({"method": "rlpt"}, ()) is RLPT and kind_of({}, ["rlpt/score"]) is RLPT
    run = rlpt_run(tmp_path / "run", log=())
    (run / "rl_think" / "run.json").unlink()
    assert read(run).kind is RLPT
    (run / "rl_think" / "settings.json").write_text(json.dumps({"rlpt": {"judge": "rule"}, "fingerprint": "ab"}))
    assert "predictions judged by the rule" in words_of(page_of(run))


def test_f25_hostile_predictions_are_inert(tmp_path: Path) -> None:
    kept = [rlpt_row(1, 1.0, prediction=HOSTILE, reference=HOSTILE, status=HOSTILE, id=HOSTILE) for _ in range(3)]
    for row in kept:
        row["rlpt/prediction"] = row["rlpt/reference"] = HOSTILE.encode("utf-8", "replace").decode()
        row["rlpt/status"] = row["rlpt/id"] = row["rlpt/prediction"]
    page = page_of(make_run(tmp_path / "run", tables={1: kept}, method="rlpt"))
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page


def test_a_real_run_under_trl(tmp_path: Path) -> None:
    args = RLPTGRPOConfig(str(tmp_path / "run"), **{**TINY, "max_steps": 4})
    policy = str(save_policy(tmp_path / "policy"))
    Scripted(policy, args, rlpt=RLPTConfig(judge="rule"), train_dataset=rows(8)).train()
    page = page_of(tmp_path / "run")
    words = words_of(page)
    assert "RLPT report" in words and "logged up to step 4" in words and "judged by the rule" in words
    assert "Predictions that are right 50.0 % → 50.0 %" in words
    assert "No alarms in 4 logged steps" in words
    for key in ("rlpt-score", "rlpt-status", "rlpt-length", "rlpt-covered", "rlpt-asked"):
        assert f'<figure id="fig-{key}">' in page
