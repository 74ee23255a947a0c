"""`rl-think gain`: the trainer's own number, whatever interrupts it, and texts that thinking helps told from others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_think_ext import cli
from rl_think_ext.data.reader import Reader
from rl_think_ext.data.rlp import RLPDataConfig, build
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.offline import rows as rows_of
from rl_think_ext.offline.bench import Bench, Place, place
from rl_think_ext.offline.compare import check_ids
from rl_think_ext.offline.config import GainConfig
from rl_think_ext.offline.gain import run_gain
from rl_think_ext.offline.measure import sample_rows, sampler_of
from rl_think_ext.offline.rows import Position
from rl_think_ext.offline.segments import by_segment, text_of
from rl_think_ext.offline.store import Store
from rl_think_ext.offline.summary import Measured, summary
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import held_out_rows, plain_text, rl_rows
from rl_think_ext.tiny.text import save_text_model

MODEL = str(PROGRAMS_MODEL)
SHORT = {"max_thought_tokens": 8, "num_thoughts": 3}


def write_rows(path: Path, rows: Any) -> Path:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def config_of(data: Path, out: Path, **changes: Any) -> GainConfig:
    return GainConfig(**{"model": MODEL, "data": str(data), "output": out, **SHORT, **changes})


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "programs.jsonl"
    lines = [{"id": row["id"], "text": plain_text(row).removesuffix("<eos>")} for row in rl_rows(3, 12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def measured(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GainConfig, dict[str, Any]]:
    """A text that was cut and measured, two positions in each of twelve programs."""
    config = config_of(texts, tmp_path_factory.mktemp("gain") / "out", sampler="random", num_positions=2)
    return config, run_gain(config)


# --- the number ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"num_target_tokens": 1}, {"num_target_tokens": 3, "aggregate": "mean"}, {"closing": "unscorable"}]
)
def test_the_trainers_reward_and_the_measurement_say_the_same_number(tmp_path: Path, settings: Any) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset

    from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer

    tokenizer = load_tokenizer(MODEL)
    data = [dict(row) for row in rl_rows(5, 6)]
    for row in data[:3]:  # half of the rows bring ids, the other half are text
        row["context_ids"] = tokenizer(row["context"])["input_ids"]
        row["target_ids"] = tokenizer(row["target"] + " :a")["input_ids"]
    pairs = [f"{name}={value}" for name, value in settings.items()]
    config = config_of(tmp_path, tmp_path, set=pairs, max_thought_tokens=14)
    bench = Bench.of(MODEL, config.rlp(), Place())
    positions = rows_of.read_positions(data, Reader(bench.tokenizer, config.rlp(), bench.tags), None, 0)
    ours = list(sample_rows(bench, sampler_of(bench, config), positions, 3))

    args = ThinkGRPOConfig(
        str(tmp_path / "run"), per_device_train_batch_size=3, num_generations=3, max_completion_length=14, bf16=False,
        use_cpu=True, report_to="none", gradient_checkpointing=False,
    )  # fmt: skip
    columns = ["prompt", "context", "target", "context_ids", "target_ids"]
    trainer = ThinkGRPOTrainer(
        MODEL, args, rlp=RLPConfig(**settings), train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )
    asked = [{c: data[row["row"]].get(c) for c in columns} for row in ours]
    theirs = trainer.information_gain(
        [row["prompt"] for row in asked],
        [row["thought"] for row in ours],
        [row["thought_ids"] for row in ours],
        **{c: [row[c] for row in asked] for c in columns[1:]},
    )
    assert [value is None for value in theirs] == [row["gain"] is None for row in ours]
    both = [(a, row["gain"]) for a, row in zip(theirs, ours, strict=True) if a is not None]
    assert len(both) >= 6
    assert max(abs(a - b) for a, b in both) < 1e-5
    assert {row["unscorable"] for row in ours} - {None, "empty thought"} == (
        {"thought not closed"} if "closing" in settings else set()
    )


def test_rows_that_share_an_id_draw_their_own_thoughts(tmp_path: Path) -> None:
    row = next(iter(rl_rows(1, 1)))
    config = config_of(tmp_path, tmp_path)
    bench = Bench.of(MODEL, config.rlp(), Place())
    reader, drawn = Reader(bench.tokenizer, config.rlp(), bench.tags), []
    for ids in (["one"] * 24, [f"d{i}" for i in range(24)]):
        positions = rows_of.read_positions([{**row, "id": name} for name in ids], reader, None, 0)
        found = sample_rows(bench, sampler_of(bench, config), positions, 3)
        drawn.append([tuple(sample["thought_ids"]) for sample in found])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 24


# --- what is written ----------------------------------------------------------------------------------------------


def test_the_folder_holds_what_was_measured(measured: Any) -> None:
    config, found = measured
    assert json.loads((config.output / "gain.json").read_text()) == found
    samples = pq.read_table(config.output / "samples.parquet").to_pylist()
    assert len(samples) == found["num_samples"] == 24 * 3
    assert found["num_positions"] == 24 and found["num_documents"] == 12
    gains = {}
    for row in samples:
        gains.setdefault(row["row"], []).append(row["gain"])
        assert row["gain"] is None or row["gain"] == pytest.approx(row["reasoned"] - row["baseline"], abs=1e-5)
        assert row["id"] == f"{row['document']}:{row['position']}"
    scorable = [known for row in gains.values() if (known := [gain for gain in row if gain is not None])]
    means = [sum(known) / len(known) for known in scorable]
    assert found["gain"]["mean"] == pytest.approx(sum(means) / len(means))
    assert found["gain"]["low"] < found["gain"]["mean"] < found["gain"]["high"]
    assert found["gain"]["num_clusters"] == 12
    assert sum(row["unscorable"] is not None for row in samples) == sum(found["unscorable"].values())
    assert (config.output / "gain.png").read_bytes().startswith(b"\x89PNG")
    assert not (config.output / "parts").exists()
    assert config.model not in json.dumps(found), "a machine's own path is nobody else's business"


def test_a_text_is_cut_by_the_builder_and_its_ids_are_used(measured: Any, texts: Path) -> None:
    config, _ = measured
    built = pq.read_table(config.output / "data/train.parquet").to_pylist()
    samples = pq.read_table(config.output / "samples.parquet").to_pylist()
    for row in samples:
        source = built[row["row"]]
        assert row["context_ids"] == source["context_ids"]
        assert row["target_ids"] == source["target_ids"][:1]
        assert row["prompt_ids"] == [*source["context_ids"], 2]


def test_segments_are_the_documents_sentences_with_the_gain_of_what_begins_in_them() -> None:
    text = "One is one. Two is two. Three is three."
    cuts = (11, 14, 23)
    positions = [
        Position(i, f"d:{at}", "d", at, (), (), (), {"context": text[:at], "target": text[at : at + 16]})
        for i, at in enumerate(cuts)
    ]
    assert text_of(positions) == text
    rows, num_left_out = by_segment(positions, {0: [1.0, 2.0], 1: [4.0], 2: []})
    assert [row["text"] for row in rows] == ["One is one.", "Two is two.", "Three is three."]
    assert [row["num_positions"] for row in rows] == [0, 2, 1]
    # The white space at 11 belongs to the target behind it, so both cuts are of the second sentence.
    assert rows[1]["gain"]["mean"] == pytest.approx(7 / 3) and rows[1]["gain"]["num_clusters"] == 2
    assert rows[0]["gain"] is None and rows[2]["gain"] is None
    assert all(text[row["start"] : row["end"]] == row["text"] for row in rows)
    assert num_left_out == 0


def columns_of(gains: Any, reasons: Any = None) -> dict[str, list[Any]]:
    """The table of samples for gains by position."""
    flat = [(i, gain) for i, row in enumerate(gains) for gain in row]
    known = [gain for _, gain in flat]
    numbers = dict.fromkeys(("reasoned", "gain", "baseline", "accuracy", "baseline_accuracy"), known)
    return {
        **numbers,
        "row": [i for i, _ in flat],
        "length": [3.0] * len(flat),
        "unclosed": [False] * len(flat),
        "unscorable": [None if gain is not None else "empty thought" for gain in known],
        "noise": [0.0] * len(flat),
    }


def positions_of(documents: str) -> list[Position]:
    row = {"context": "abcd", "target": " e"}
    return [Position(i, f"{name}{i}", name, 4, (), (), (), row) for i, name in enumerate(documents)]


def measured_of(positions: list[Position], columns: Any) -> Measured:
    return Measured.of(positions, columns, {p.document: 6 for p in positions})


def test_intervals_are_over_documents_and_an_unscorable_thought_is_no_zero() -> None:
    found = summary(measured_of(positions_of("aab"), columns_of([[1.0, 3.0], [None, 4.0], [None, None]])))
    assert found["gain"]["mean"] == 3.0 and found["gain"]["num_values"] == 2 and found["gain"]["num_clusters"] == 1
    assert found["unscorable"] == {"empty thought": 3}
    assert found["helping"]["mean"] == 1.0
    both = summary(measured_of(positions_of("aab"), columns_of([[1.0], [1.0], [4.0]])))
    assert (both["gain"]["num_clusters"], both["clustered_by"]) == (2, "document")
    # One document: its positions are resampled instead, and the summary says so.
    alone = summary(measured_of(positions_of("aaa"), columns_of([[1.0], [1.0], [4.0]])))
    assert (alone["gain"]["num_clusters"], alone["clustered_by"]) == (3, "position")
    assert alone["gain"]["high"] - alone["gain"]["low"] < both["gain"]["high"] - both["gain"]["low"]
    assert summary(measured_of(positions_of("a"), columns_of([[1.0]])))["verdict"].startswith("no interval")


def test_a_place_is_one_in_all_that_the_data_holds_and_not_in_what_was_measured(tmp_path: Path) -> None:
    row = next(iter(rl_rows(1, 1)))
    texts = [row["context"], row["context"] + " :a", row["context"] + " :a" * 8]
    rows = [
        {**row, "id": f"d:{len(text)}", "position": len(text), "context": text, "prompt": text + "<think>"}
        for text in texts
    ]
    data = write_rows(tmp_path / "rows.parquet", rows)
    length = len(texts[-1] + row["target"])
    assert rows_of.lengths(rows_of.Rows(pq.read_table(data))) == {"d": length}
    config = config_of(data, tmp_path / "out", max_positions=1, num_thoughts=8)
    found = run_gain(config)
    at = pq.read_table(config.output / "samples.parquet")["position"][0].as_py()
    assert at < len(texts[-1]), "the last position alone would say nothing"
    assert [place["from"] for place in found["by_position"]] == [int(10 * at / length) / 10]
    assert "end of its last target in the data" in found["by_position_scale"]


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([[1.0], [1.2]] * 15, "thinking helps"),
        ([[-1.0], [1.0]] * 15, "no evidence that thinking helps"),
        ([[-1.0], [-2.0]] * 15, "thinking hurts"),
        (
            [[0.2], [3.0]],
            "no evidence that thinking helps",
        ),  # two documents that differ say little, whatever their signs
    ],
)
def test_the_verdict_follows_the_interval(gains: Any, words: str) -> None:
    named = positions_of("abcdefghijklmnopqrstuvwxyzABCD"[: len(gains)])
    assert summary(measured_of(named, columns_of(gains)))["verdict"].startswith(words)


# --- going on ------------------------------------------------------------------------------------------------------


def samples_without(folder: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "samples.parquet").to_pylist())


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_think_ext.offline.measure._THOUGHTS_PER_PART", 6)


def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    data = write_rows(tmp_path / "rows.parquet", rl_rows(1, 8))
    run_gain(config_of(data, tmp_path / "whole"))
    config = config_of(data, tmp_path / "half")
    bench = Bench.of(MODEL, config.rlp(), Place())
    calls = []
    original = Store.write

    def stop_after_two(self: Store, part: int, rows: Any) -> None:
        if len(calls) == 2:
            (self.folder / "parts" / f".{part:06d}.parquet.partial").write_bytes(b"half a fi")
            raise KeyboardInterrupt
        calls.append(part)
        original(self, part, rows)

    monkeypatch.setattr(Store, "write", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_gain(config)
    monkeypatch.setattr(Store, "write", lambda self, part, rows: (calls.append(part), original(self, part, rows))[0])
    run_gain(config)
    assert calls == [0, 1, 2, 3], "what was there was sampled again"
    assert samples_without(tmp_path / "half") == samples_without(tmp_path / "whole")
    one, other = (json.loads((tmp_path / name / "gain.json").read_text()) for name in ("whole", "half"))
    assert one == other
    assert bench.bits == json.loads((tmp_path / "half/settings.json").read_text())["weights"]


def test_a_finished_measurement_is_read_and_not_made_again(measured: Any) -> None:
    config, found = measured
    samples = config.output / "samples.parquet"
    made = samples.stat().st_mtime_ns
    assert run_gain(config) == found
    assert samples.stat().st_mtime_ns == made


def test_a_part_that_cannot_be_read_is_sampled_again_and_a_cut_table_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "out", {})
    for part in range(3):
        store.write(part, [])
    paths = [tmp_path / f"out/parts/{part:06d}.parquet" for part in range(3)]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    assert [store.has(part) for part in range(4)] == [False, False, True, False]
    for part in range(2):
        store.write(part, [])
    store.finish(3)
    whole = tmp_path / "out/samples.parquet"
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"samples.parquet cannot be read: .+; delete it, and the same command"):
        store.columns("gain")


def test_other_settings_are_refused_by_name_and_overwrite_begins_anew(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.parquet", rl_rows(1, 2))
    folder = tmp_path / "out"
    first = {"temperature": 1.0, "num_thoughts": 2}
    Store(folder, first).write(0, [])
    assert Store(folder, first).has(0)
    with pytest.raises(UserError, match=r"`temperature` 1.0, and now it is 0.5: name another --output, or pass --over"):
        Store(folder, {**first, "temperature": 0.5})
    assert Store(folder, first).has(0), "a refusal takes nothing away"
    assert not Store(folder, {**first, "temperature": 0.5}, overwrite=True).has(0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").write_text("")
    with pytest.raises(UserError, match="holds files, but no measurement"):
        Store(tmp_path / "photos", first, overwrite=True)
    assert data.exists()


def test_other_data_or_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(MODEL, tmp_path / "model")
    data = write_rows(tmp_path / "rows.parquet", rl_rows(1, 3))
    config = config_of(data, tmp_path / "out", model=str(tmp_path / "model"))
    run_gain(config)
    write_rows(data, rl_rows(2, 3))
    with pytest.raises(UserError, match="holds a measurement with `content`"):
        run_gain(config)
    write_rows(data, rl_rows(1, 3))
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="holds a measurement with `weights`"):
        run_gain(config)


@pytest.mark.slow
def test_killed_and_started_again_is_the_same_to_the_bit(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.parquet", rl_rows(1, 400))
    words = [sys.executable, "-m", "rl_think_ext.cli", "gain", "--model", MODEL, "--data", str(data)]
    words += ["--max-thought-tokens", "20", "--num-thoughts", "8", "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words, str(tmp_path / "killed")], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("parts/000001.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    num_parts = len(list((tmp_path / "killed/parts").glob("0*.parquet")))
    assert 2 <= num_parts < 7
    for name in ("killed", "whole"):
        subprocess.run([*words, str(tmp_path / name)], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert samples_without(tmp_path / "killed") == samples_without(tmp_path / "whole")


# --- two models -----------------------------------------------------------------------------------------------------


def test_a_model_compared_with_itself_differs_nowhere_and_another_by_its_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    data = write_rows(tmp_path / "rows.parquet", rl_rows(2, 6))
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(0.3)
    model.save_pretrained(tmp_path / "other")
    load_tokenizer(MODEL).save_pretrained(tmp_path / "other")
    words = ["gain", "--model", MODEL, "--data", str(data), "--output", str(tmp_path / "out"), "--num-thoughts", "2"]
    words += ["--max-thought-tokens", "6"]
    assert cli.main([*words, "--compare", MODEL]) == 0
    same = json.loads((tmp_path / "out/gain.json").read_text())["compare"]["difference"]
    assert same["gain"]["low"] == same["gain"]["mean"] == same["gain"]["high"] == 0.0
    assert cli.main([*words, "--compare", str(tmp_path / "other")]) == 0
    found = json.loads((tmp_path / "out/gain.json").read_text())
    assert found["compare"]["difference"]["gain"]["mean"] == pytest.approx(
        found["compare"]["gain"]["mean"] - found["gain"]["mean"]
    )
    assert found["compare"]["difference"]["gain"]["mean"] != 0
    shown = capsys.readouterr().out
    assert "no evidence of a difference: +0.00 nats" in shown and "difference" in shown


def test_models_with_other_tokens_are_not_compared(tmp_path: Path) -> None:
    one, other = load_tokenizer(MODEL), load_tokenizer(str(save_text_model(tmp_path / "text")))
    with pytest.raises(UserError, match=r"token 15 is `a` in the tokenizer of A and `.+` in that of B"):
        check_ids(one, other, [1, 15], ("A", "B"))
    check_ids(one, one, range(80), ("A", "A"))


# --- what is refused ------------------------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["gain", *words]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


def test_what_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [dict(row) for row in rl_rows(1, 3)]
    data = str(write_rows(tmp_path / "rows.parquet", rows))
    out = ("--output", str(tmp_path / "out"), "--num-thoughts", "2")
    use = ("--model", MODEL, "--max-thought-tokens", "4", *out)
    assert "could not load a tokenizer from" in fails(capsys, "--model", str(tmp_path / "no"), "--data", data, *out)
    assert "there is no document in" in fails(capsys, "--data", str(_empty(tmp_path / "empty.txt")), *use)
    poor = str(write_rows(tmp_path / "poor.parquet", [{"text": "One two. Three four."}]))
    assert "no column `txt`; there are `text`" in fails(capsys, "--data", poor, "--column", "txt", *use)
    lone = str(write_rows(tmp_path / "lone.parquet", [{"prompt": "a=5<think>", "context": "a=5"}]))
    assert "column `target` is missing" in fails(capsys, "--data", lone, *use)
    long = fails(capsys, "--data", data, "--model", MODEL, *out)
    assert "do not fit into the model's 128 positions: use --max-thought-tokens 1" in long
    assert "has no split `dev`; there are train" in fails(capsys, "--data", data, "--split", "dev", *use)
    assert "did you mean `baseline`?" in fails(capsys, "--data", data, "--set", "baselin=none", *use)
    assert "the baseline is the measured model itself" in fails(capsys, "--data", data, "--set", "baseline=none", *use)
    assert "expected key=value" in fails(capsys, "--data", data, "--set", "baseline", *use)
    assert "build the data with the same" in fails(capsys, "--data", data, "--set", "elicit=generate", *use)
    assert "cannot write to" in fails(capsys, "--data", data, "--model", MODEL, "--output", "/proc/x", *use[2:4])
    (tmp_path / "text.md").write_text("One two. Three four.")
    odd = fails(capsys, "--data", str(tmp_path / "text.md"), *use)
    assert "a file is one of .txt, .jsonl, .parquet, got `.md`" in odd
    assert "lone.parquet is a file; name a folder" in fails(capsys, "--data", data, "--select", lone, *use)
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.parametrize(
    "change",
    [
        {"num_thoughts": 0},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"max_positions": 0},
        {"min_gain": -0.1},
        {"min_gain": float("nan")},
        {"min_gain": float("inf")},
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, change: Any) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(change))}` is"):
        config_of(tmp_path, tmp_path, **change)


def _empty(path: Path) -> Path:
    path.write_text("")
    return path


def test_nothing_scorable_ends_with_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_rows(tmp_path / "rows.parquet", rl_rows(1, 3)))
    # No thought of one token is closed: the closing tag alone would be an empty one.
    words = ("--model", MODEL, "--data", data, "--output", str(tmp_path / "out"), "--max-thought-tokens", "1")
    shown = fails(capsys, *words, "--set", "closing=unscorable")
    assert "not one thought of" in shown and "thought not closed" in shown


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sum of two and three is five. The product is six. Both are small numbers indeed.")
    other = str(save_text_model(tmp_path / "text"))
    build(RLPDataConfig(input=str(text), output=str(tmp_path / "data"), tokenizer=other, min_context_tokens=2))
    words = ("--model", MODEL, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"))
    assert "it was cut with another one" in fails(capsys, *words, "--max-thought-tokens", "4")


def test_a_random_part_is_drawn_by_the_seed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.parquet", rl_rows(1, 30))
    words = ["gain", "--model", MODEL, "--data", str(data), "--max-thought-tokens", "2", "--num-thoughts", "1"]
    rows = []
    for seed in ("0", "0", "1"):
        out = tmp_path / f"{seed}-{len(rows)}"
        assert cli.main([*words, "--output", str(out), "--max-positions", "5", "--seed", seed]) == 0
        rows.append(pq.read_table(out / "samples.parquet")["row"].to_pylist())
    assert rows[0] == rows[1] != rows[2] and len(rows[0]) == 5
    assert "5 positions (a random part of 30)" in capsys.readouterr().out


def test_settings_come_from_a_runs_own_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: x\nrl_think:\n  rlp:\n    num_target_tokens: 4\n    aggregate: mean\n")
    found = config_of(tmp_path, tmp_path, config=path, set=["aggregate=sum"], max_tokens_per_batch=77).rlp()
    assert (found.num_target_tokens, found.aggregate, found.max_tokens_per_batch) == (4, "sum", 77)
    assert (found.baseline, found.frozen_gain) == ("live", False)
    path.write_text("model_name_or_path: x\n")
    with pytest.raises(UserError, match="has no block `rl_think:`"):
        config_of(tmp_path, tmp_path, config=path).rlp()


def test_a_device_that_is_not_there_is_refused() -> None:
    import torch

    assert place("cpu", "auto") == ("cpu", "float32")
    assert place("cpu", "bfloat16") == ("cpu", "bfloat16")
    with pytest.raises(UserError, match="is no dtype of torch"):
        place("cpu", "float99")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="sees no CUDA GPU here; use --device cpu"):
            place("cuda", "auto")


def test_help_teaches_with_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gain", "replay"):
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert f"rl-think {name} " in capsys.readouterr().out.split("options")[0]


# --- texts where thinking helps, and where not --------------------------------------------------------------------


def test_two_texts_are_told_apart(tmp_path: Path) -> None:
    answers = held_out_rows("dev", 5, 24)
    # Where no question was asked, a thought is a foreign body: the next assignment is no longer what follows.
    inside = [
        {**row, "context": (head := row["context"].split(" c=")[0]), "prompt": head + "<think>", "target": " c=b"}
        for row in answers
    ]
    one, other = (
        run_gain(config_of(write_rows(tmp_path / f"{name}.parquet", rows), tmp_path / name))
        for name, rows in (("answers", answers), ("inside", inside))
    )
    assert one["gain"]["low"] > other["gain"]["high"]
    assert other["verdict"].startswith("thinking hurts here")


@pytest.mark.slow
def test_where_thinking_was_learned_it_helps_and_elsewhere_it_does_not(tmp_path: Path) -> None:
    model = trained(tmp_path / "model", steps=40)
    answers = held_out_rows("dev", 5, 64)
    # The same words as plain arithmetic: every result is there to be read off, and nothing is asked.
    logs = [
        {**row, "context": (head := row["gold"][:-2]), "prompt": head + "<think>", "target": row["gold"][-2:]}
        for row in answers
    ]
    found = {}
    for name, rows in (("answers", answers), ("logs", logs)):
        data = write_rows(tmp_path / f"{name}.parquet", rows)
        found[name] = run_gain(config_of(data, tmp_path / name, model=model, max_thought_tokens=20))
    assert found["answers"]["verdict"].startswith("thinking helps here")
    assert not found["logs"]["verdict"].startswith("thinking helps here")
    assert found["answers"]["gain"]["low"] > 1.0 > found["logs"]["gain"]["high"]


def trained(folder: Path, steps: int) -> str:
    """The embedded model after some steps of RLP on quizzes, as the demo trains it."""
    import torch
    from datasets import Dataset

    from rl_think_ext.cli.demo import SETTINGS
    from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer

    torch.set_num_threads(1)
    args = ThinkGRPOConfig(str(folder / "run"), **{**SETTINGS, "max_steps": steps, "disable_tqdm": True, "seed": 0})
    data = Dataset.from_list([dict(row) for row in rl_rows(0, 16 * steps)])
    trainer = ThinkGRPOTrainer(MODEL, args, rlp=RLPConfig(), train_dataset=data, processing_class=load_tokenizer(MODEL))
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder)


def test_a_folder_of_rows_needs_no_card(tmp_path: Path) -> None:
    """Such as the one a recipe ships: rows that somebody wrote without `rl-think data`."""
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder / "train.parquet", rl_rows(0, 4))
    write_rows(folder / "dev.parquet", held_out_rows("dev", 0, 3))
    found = run_gain(config_of(folder, tmp_path / "out", split="dev"))
    assert (found["num_positions"], found["card"]) == (3, None)
