"""The report: what it reads, what it says, that the same folder gives the same bytes, and that no text in it acts."""

from __future__ import annotations

import json
import math
import re
import time
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import (
    HOSTILE,
    TEXT,
    document_rows,
    held_out,
    log_of,
    make_gain,
    make_run,
    row,
    short_rows,
    whole_run,
)

from rl_think_ext.cli import main
from rl_think_ext.errors import UserError
from rl_think_ext.methods.interval import mean_interval
from rl_think_ext.report import headline, tiles, write
from rl_think_ext.report.folder import read
from rl_think_ext.report.samples import ends, last, table
from rl_think_ext.report.strip import assemble, strips


def page_of(*folders: Path) -> str:
    return write(folders, folders[0].parent / "page.html").read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """The words of a page as they are read, tags taken away."""
    import html

    body = page[page.index("<body") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_a_whole_run_has_everything(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "run"))
    for name in ("gain", "logprobs", "accuracy", "length", "entropy", "dead", "unscorable", "scoring", "loss", "rate"):
        assert f'<figure id="fig-{name}">' in page
    words = words_of(page)
    assert words.index("1 alarm step 7 the baseline fell to -3.00 nats") < words.index("Before and after")
    assert "Training samples, not held out: step 5 (96 samples of 12 texts) → step 20 (96 samples of 12 texts)" in words
    assert "thought 3</think>" in words and "Thoughts before and after" in words
    assert "ThinkGRPOTrainer" in words and "trl 1.16.0" in words and "learning_rate 0.0005" in words
    assert "Not logged: Other rewards, Gain on the evaluation set, Accuracy on the evaluation set." in words


def test_paths_on_this_machine_stay_out(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "run", model="/somewhere/on/a/disk/tiny-model"))
    assert "tiny-model" in page
    assert "/somewhere" not in page and str(tmp_path) not in page


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", measured=held_out())
    first = write([run]).read_bytes()
    assert write([run]) == run / "report.html"
    assert (run / "report.html").read_bytes() == first
    assert list(run.glob(".*")) == []


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "a"), make_gain(tmp_path / "b"))
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//[a-z]|<script|<link|<iframe|@import|\son\w+=", page)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == set(re.findall(r'href="(#[^"]*)"', page))


def test_ids_are_unique_and_every_reference_has_one(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "a"), whole_run(tmp_path / "b", log=log_of(9)))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 100
    assert {*re.findall(r"url\(#([^)]+)\)", page), *re.findall(r'href="#([^"]+)"', page)} <= set(ids)


def test_numbers_beside_the_axes_are_not_cut_with_the_paths(tmp_path: Path) -> None:
    log = [{"step": step, "eval_rlp/gain": 0.2 + 0.005 * step} for step in range(1, 4)]
    page = page_of(make_run(tmp_path / "run", log=log))
    figure = page[page.index('id="fig-eval-gain"') :]
    ticks = re.findall(r"<text[^>]*>([\d.]+)</text>", figure[: figure.index("</figure>")])
    values = [float(tick) for tick in ticks if "." in tick]
    assert len(values) >= 3
    widths = [b - a for a, b in pairwise(values)]
    assert max(widths) == pytest.approx(min(widths))


def test_hostile_text_is_inert_wherever_it_stands(tmp_path: Path) -> None:
    rows = short_rows(5, 0.1) + short_rows(9, 1.0)
    rows = [
        r | {"completion": HOSTILE.replace("\ud800", "") * 40, "rlp/context": HOSTILE[:-1] + str(i)}
        for i, r in enumerate(rows)
    ]
    log = [entry | {f"rewards/{HOSTILE}/mean": 0.5, f"rlp/unscorable/{HOSTILE}": 0.3} for entry in log_of(9)]
    run = make_run(
        tmp_path / "run",
        log=log,
        tables={5: rows[:96], 9: rows[96:]},
        alarms=[{"step": 5, "alarm": HOSTILE}],
        measured=held_out() | {"what": HOSTILE},
        model=HOSTILE,
        settings={HOSTILE: HOSTILE, "baseline": HOSTILE},
        dataset={"name": HOSTILE, "num_rows": 3, "card": {"source": HOSTILE, "skipped_documents": {HOSTILE: 1}}},
    )
    page = page_of(run)
    assert "<script" not in page and "<img" not in page and page.count("</style>") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]", page)
    assert "⟨202E⟩abc⟨D800⟩" in page


def test_a_thought_of_any_length_is_bounded(tmp_path: Path) -> None:
    rows = [
        r | {"completion": "x" * 100_000, "rlp/context": "c" * 100_000, "rlp/target": "t" * 50_000}
        for r in short_rows(5, 1.0)
    ]
    page = page_of(make_run(tmp_path / "run", tables={5: rows, 9: [r | {"step": 9} for r in rows]}))
    assert len(page) < 200_000
    assert "98,500 more characters" in page


def test_the_last_line_of_a_step_wins_and_a_resume_drops_what_it_did_again(tmp_path: Path) -> None:
    log = [{"step": 5, "rlp/gain": 1.0}, {"step": 10, "rlp/gain": 2.0}, {"step": 15, "rlp/gain": 3.0}]
    log += [{"step": 10, "rlp/gain": 2.5}, {"step": 10, "eval_rlp/gain": 0.5}, {"step": 10, "train_runtime": 9.0}]
    found = read(make_run(tmp_path / "run", log=log, tables={15: short_rows(15, 9.0)}))
    assert list(found.log) == [5, 10]
    assert found.log[10] == {"step": 10, "rlp/gain": 2.5, "eval_rlp/gain": 0.5, "train_runtime": 9.0}
    assert found.tables == ()  # of the run that was given up


def test_a_killed_run_is_reported_and_said_to_be_killed(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    path = run / "rl_think" / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    newest = run / "completions" / "completions_00019.parquet"
    newest.write_bytes((run / "completions" / "completions_00020.parquet").read_bytes()[:1000])
    newest.with_name("completions_00020.parquet").unlink()
    page = page_of(run)
    assert "completions_00019.parquet is cut off and left out" in page
    assert "The last line of log.jsonl is cut off" in page
    assert "logged up to step 19" in page


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    path = run / "rl_think" / "log.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{broken", *lines[3:]]) + "\n")
    with pytest.raises(UserError, match=r"log\.jsonl, line 3: not JSON"):
        write([run])
    path.write_text('{"step": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: expected an object, got list"):
        write([run])
    path.write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, entry 1: no number under `step`"):
        write([run])


@pytest.mark.parametrize(
    "name", ["rl_think/run.json", "rl_think/measured.json", "completions/completions_00005.parquet"]
)
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    run = whole_run(tmp_path / "run")
    (run / name).write_text("{")
    with pytest.raises(UserError, match=re.escape(Path(name).name)):
        write([run])


def test_folders_that_hold_no_run_say_what_would_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        write([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no run: .*rl-think train --config RUN\.yaml.*rl-think gain"):
        write([tmp_path / "empty"])
    whole_run(tmp_path / "demo" / "seed-0")
    with pytest.raises(UserError, match="seed-0 in it do"):
        write([tmp_path / "demo"])
    with pytest.raises(UserError, match="one folder or two"):
        write([tmp_path] * 3)


def test_the_log_of_a_run_without_one_of_ours(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log_of(step)}))
    assert max(read(tmp_path / "run").log) == 10
    assert "No alarms in 10 logged steps" in words_of(page_of(tmp_path / "run"))


def test_alarms_that_nobody_asked_are_asked_now(tmp_path: Path) -> None:
    log = [entry | {"rlp/logprob_baseline": -9.0} for entry in log_of(9)]
    found = read(make_run(tmp_path / "run", log=log))
    assert [(entry["step"], "baseline fell" in entry["alarm"]) for entry in found.alarms] == [(3, True)]


def test_without_a_log_nothing_is_called_calm(tmp_path: Path) -> None:
    words = words_of(page_of(make_run(tmp_path / "run")))
    assert "No alarms" not in words and "Nothing was logged" in words
    assert "`log_completions: true`" in words


def test_intervals_are_clustered_by_context(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    first, final = ends(read(run), 64)
    found = headline.measured(read(run))
    assert found is not None
    for side, when in ((first, "before"), (final, "after")):
        assert len(side) == 96
        expected = mean_interval([s.value for s in side], [s.context for s in side])
        assert found.quantities["gain"][when] == expected
        assert expected.num_clusters == 12
    tile = tiles.tiles([("run", found)])[0]
    assert [r.shown for r in tile.rows] == ["−0.29", "+1.71"]
    assert tile.verdicts == (("rose", "Rose: the two 95 % intervals do not touch (texts: 12 and 12)."),)


def test_both_ends_take_tables_until_they_have_enough_and_never_share_one(tmp_path: Path) -> None:
    tables = {step: short_rows(step, float(step), num_texts=3) for step in range(1, 6)}
    first, final = ends(read(make_run(tmp_path / "run", log=log_of(9), tables=tables)), 64)
    assert [{s.step for s in side} for side in (first, final)] == [{1, 2}, {3, 4, 5}]


def test_overlap_and_too_few_texts_are_said(tmp_path: Path) -> None:
    same = make_run(tmp_path / "same", tables={1: short_rows(1, 0.5), 2: short_rows(2, 0.51)})
    assert "The two 95 % intervals overlap, the difference can be chance (texts: 12 and 12)." in words_of(page_of(same))
    one = make_run(tmp_path / "one", tables={s: short_rows(s, 0.5, num_texts=1, group=80) for s in (1, 2)})
    assert "Too few texts to tell (texts: 1 and 1)." in words_of(page_of(one))
    single = make_run(tmp_path / "single", tables={1: short_rows(1, 0.5, num_texts=1, group=80)})
    assert "Too few texts to tell (texts: 1)." in words_of(page_of(single))


def test_a_fall_is_no_success(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tables={1: short_rows(1, 2.0), 2: short_rows(2, -2.0)})
    assert '<p class="verdict fell">Fell: the two 95 % intervals do not touch (texts: 12 and 12).</p>' in page_of(run)


def test_unscorable_thoughts_are_never_zero(tmp_path: Path) -> None:
    rows = [row(1, None, context="a") for _ in range(70)] + [row(1, 2.0, context=str(i % 7)) for i in range(70)]
    found = headline.measured(read(make_run(tmp_path / "run", tables={1: rows})))
    assert found is not None
    assert found.quantities["gain"]["after"].mean == 2.0
    assert found.quantities["gain"]["after"].num_values == 70


def test_held_out_numbers_come_before_training_samples(tmp_path: Path) -> None:
    words = words_of(page_of(make_run(tmp_path / "run", tables={5: short_rows(5, 1.0)}, measured=held_out())))
    assert "−0.15 → +2.15 nats" in words and "15.0 % → 98.0 %" in words
    assert "1,024 held-out programs" in words and "Training samples" not in words
    assert "ceiling 2.30" in words
    assert "a=1 b=a+2=3" in words
    bare = words_of(page_of(make_run(tmp_path / "bare", log=log_of(2), measured=held_out())))
    assert "Where in the text thinking helped: No completions table of training: `log_completions: true`" in bare
    assert "Dotted: the ceiling, 2.30." in bare


def test_without_the_frozen_gain_the_page_says_so(tmp_path: Path) -> None:
    rows = [r | {"rlp/frozen_gain": None, "rlp/frozen": None} for r in short_rows(1, 1.0)]
    page = page_of(make_run(tmp_path / "run", tables={1: rows}))
    assert "because `frozen_gain` is off" in page and "+1.23" in page


@pytest.mark.parametrize("cut", [0, 30])
def test_a_document_is_put_together_out_of_its_contexts(tmp_path: Path, cut: int) -> None:
    gains = [0.5, -1.0, None, 2.0, 0.1, 0.2]
    run = make_run(tmp_path / "run", tables={1: document_rows(1, gains, cut=cut) * 2})
    (strip,) = strips(last(read(run), 64)).long
    text = "".join(span.text for span in strip.spans)
    assert text in TEXT and len(text) > 40
    scored = [span for span in strip.spans if span.num_samples]
    assert [span.gain for span in scored] == gains
    assert [span.label for span in scored] == ["+0.5", "−1.0", "n/a", "+2.0", "+0.1", "+0.2"]
    assert all(span.num_samples == 2 for span in scored)
    words = words_of(page_of(run))
    assert "doc7 6 scored places" in words and "no score: empty thought, 2 thoughts" in page_of(run)


def test_a_gap_between_contexts_is_marked() -> None:
    text, starts = assemble([("alpha beta", " gamma"), ("lorem ipsum dolor", " sit")])
    assert text == "alpha beta gamma […] lorem ipsum dolor sit"
    assert [text[start : start + 4] for start in starts] == [" gam", " sit"]


def test_repeated_text_keeps_the_order_of_places() -> None:
    whole = "round and round and round and round and stop"
    places = [(whole[max(0, at - 12) : at], whole[at : at + 4]) for at in (15, 25, 35)]
    text, starts = assemble(places)
    assert starts == sorted(set(starts)) and text[starts[-1] :].strip() in whole


def test_two_runs_share_figures_and_show_what_differs(tmp_path: Path) -> None:
    one = whole_run(tmp_path / "one")
    other = whole_run(
        tmp_path / "other", log=log_of(12, offset=-1), arguments={"learning_rate": 1e-5, "num_generations": 8}
    )
    page = page_of(one, other)
    words = words_of(page)
    assert page.count('<figure id="fig-gain">') == 1
    figure = page[page.index('id="fig-gain"') :]
    assert figure[: figure.index("</figure>")].count("<li>") == 4
    assert words.index("other 1 alarm") < words.index("Before and after")
    assert "learning_rate 0.0005 1e-05" in words
    assert words.index("learning_rate 0.0005") < words.index("num_generations 8 8")
    assert "one and other: The two 95 % intervals overlap" in words


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    words = words_of(page_of(make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")))
    assert "a/run" in words and "b/run" in words


def test_a_setting_off_its_default_is_shown_with_it(tmp_path: Path) -> None:
    words = words_of(page_of(make_run(tmp_path / "run", log=log_of(3), settings={"baseline": "live", "discount": 1.0})))
    assert "baseline live default ema" in words
    assert words.index("baseline live") < words.index("at their defaults: 1")


def test_a_gain_folder(tmp_path: Path) -> None:
    page = page_of(make_gain(tmp_path / "gain"))
    words = words_of(page)
    assert '<figure id="fig-along">' in page and "fig-gain" not in page
    assert "How much thinking helps" in words and "No evidence that thinking helps" in words
    assert "8 thoughts at 4 places of 1 documents, no training" in words and "over positions" in words
    assert "least gain here" in words and "doc7 4 scored places" in words
    assert "unscorable: empty thought 2" in words


def test_conversations_are_their_contents(tmp_path: Path) -> None:
    said = [{"role": "assistant", "content": "so it is"}]
    path = tmp_path / "completions_00001.parquet"
    pq.write_table(pa.Table.from_pylist([{"step": 1, "prompt": said, "completion": said, "rlp": 1.0}]), path)
    (sample,) = table(path)
    assert sample.text == "so it is" and sample.context == "so it is" and sample.value == 1.0


def test_numbers_that_are_none(tmp_path: Path) -> None:
    log = [{"step": 1, "rlp/gain": None, "loss": 1e400}, {"step": 2, "rlp/gain": True, "entropy": "0.5"}]
    text = "".join(json.dumps(entry) + "\n" for entry in log)
    assert "Infinity" in text
    run = make_run(tmp_path / "run", log=log)
    words = words_of(page_of(run))
    assert "Not logged: Gain of a thought" in words and "<figure" not in page_of(run)


def test_a_long_log_is_thinned_and_quick(tmp_path: Path) -> None:
    log = [{"step": s, "rlp/gain": math.sin(s), "rlp/gain_frozen": 0.5, "loss": 1 / s} for s in range(1, 50_001)]
    run = make_run(tmp_path / "run", log=log)
    start = time.process_time()
    page = page_of(run)
    assert time.process_time() - start < 5
    assert len(page) < 200_000 and "the mean of stretches of steps" in page
    assert "logged up to step 50,000." in page


def test_only_the_tables_that_are_needed_are_read(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    broken = run / "completions" / "completions_00010.parquet"
    broken.write_text("never opened")
    found = headline.measured(read(run))
    assert found is not None and found.quantities["gain"]["after"].num_values == 96


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert main(["report", str(run), str(make_gain(tmp_path / "gain"))]) == 0
    assert (tmp_path / "report.html").is_file()
    assert main(["report", str(run), "--output", "there/page.html"]) == 0
    assert (tmp_path / "there" / "page.html").is_file()
    assert main(["report"]) == 1
    assert "name one run's folder, or two" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(run), "--output", "file/page.html"]) == 1
    assert "cannot write file/page.html" in capsys.readouterr().err
