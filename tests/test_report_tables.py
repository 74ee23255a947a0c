"""Which of a folder's tables and alarms the report takes for the run's own, and what it calls their numbers."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from report_runs import held_out, keep_rollouts, log_of, make_run, row, short_rows, whole_run
from test_report import page_of, words_of

from rl_think_ext.report.folder import read
from rl_think_ext.report.samples import ends, table


def test_a_table_of_an_evaluation_or_of_an_earlier_run_is_left_out(tmp_path: Path) -> None:
    tables = {step: short_rows(step, step / 10) for step in (5, 10, 15, 20)}
    tables[5] += [row(5, None), row(5, 3.3)]
    run = make_run(tmp_path / "run", log=log_of(20), tables=tables, num_processes=2)
    assert [step for step, _ in read(run).tables] == [5, 10, 15, 20]  # nothing to compare with
    for step in (5, 20):
        keep_rollouts(run, step, tables[step][:40])
        keep_rollouts(run, step, tables[step][40:], rank=1)
        keep_rollouts(run, step, tables[step], rank=2)  # an earlier run had a third process
    keep_rollouts(run, 10, short_rows(10, -1.0))  # the table is an evaluation's, as many rows
    found = read(run)
    assert [step for step, _ in found.tables] == [5, 20]
    assert "Completions tables left out: 2 of 4." in words_of(page_of(run))
    assert {s.step for side in ends(found, 64) for s in side} == {5, 20}
    keep_rollouts(run, 20, tables[20][40:-1], rank=1)
    assert [step for step, _ in read(run).tables] == [5]


def test_rollouts_and_table_agree_row_by_row(tmp_path: Path) -> None:
    rows = short_rows(5, 1.0)
    run = make_run(tmp_path / "run", log=log_of(5), tables={5: rows})
    keep_rollouts(run, 5, rows[::-1])
    assert read(run).tables == ()
    assert "Completions tables left out: 1 of 1." in words_of(page_of(run))


def test_the_gain_of_the_table_is_not_the_reward(tmp_path: Path) -> None:
    plain = [r | {"rlp/frozen_gain": None} for r in short_rows(1, 1.0)]
    paths = [tmp_path / f"completions_0000{i}.parquet" for i in (1, 2)]
    pq.write_table(pa.Table.from_pylist(plain), paths[0])
    pq.write_table(pa.Table.from_pylist([r | {"rlp/gain": -r["rlp"]} for r in plain]), paths[1])
    rewards, gains = map(table, paths)
    assert [s.value for s in rewards] == [r["rlp"] for r in plain]
    assert [s.value for s in gains] == [-r["rlp"] for r in plain]
    assert not any(s.frozen for s in rewards + gains)


def test_whose_accuracy_without_a_thought_is_said(tmp_path: Path) -> None:
    run, other = whole_run(tmp_path / "run"), whole_run(tmp_path / "other", settings={"baseline": "init"})
    words = words_of(page_of(run))
    assert "Accuracy without a thought (baseline: ema)" in words and "without (baseline: ema)" in words
    assert "Accuracy without a thought (run: baseline: ema; other: baseline: init)" in words_of(page_of(run, other))
    measured = page_of(whole_run(tmp_path / "measured", measured=held_out()))
    assert "<h3>Accuracy without a thought</h3>" in measured


def test_alarms_of_steps_that_were_given_up_are_not_shown(tmp_path: Path) -> None:
    alarms = [{"step": step, "alarm": f"alarm at {step}"} for step in (7, 20, 21)]
    found = read(whole_run(tmp_path / "run", alarms=alarms))
    assert [entry["step"] for entry in found.alarms] == [7, 20]
