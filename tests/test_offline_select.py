"""`rl-think gain --select`: what is kept carries a signal, what is left out is counted, no row changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_think_ext import cli
from rl_think_ext.data.card import Card
from rl_think_ext.data.rlp import RLPDataConfig, build
from rl_think_ext.errors import UserError
from rl_think_ext.offline.config import GainConfig
from rl_think_ext.offline.gain import run_gain
from rl_think_ext.offline.rows import Dataset, Rows
from rl_think_ext.offline.select import MIN_GAIN, REASONS, Selection, judge, write
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import plain_text, random_cuts, rl_rows

MODEL = str(PROGRAMS_MODEL)


def test_the_cuts_are_at_words_of_the_program() -> None:
    rows = list(rl_rows(0, 200))
    for row, cut in zip(rows, random_cuts(rows), strict=True):
        if cut["cut"] == "random":
            assert row["context"].startswith(cut["context"] + cut["target"])
        else:
            assert cut == {**row, "cut": "answer"}
    assert sum(cut["cut"] == "random" for cut in random_cuts(rows)) == pytest.approx(150, abs=20)


@pytest.mark.parametrize(
    ("gains", "reason"),
    [
        ([0.6, 0.0], "kept"),
        ([0.5, -3.0], "no thought helps"),  # at the threshold is not above it
        ([0.51, 2.0], "every thought helps"),
        ([0.51, 0.02], "the thoughts hardly differ"),
        ([], "no thought can be scored"),
    ],
)
def test_a_position_is_kept_when_some_thought_helps_and_some_does_not(gains: list[float], reason: str) -> None:
    assert judge(gains, 0.5) == reason


def test_the_default_of_the_command_is_the_rules_own() -> None:
    fields = {f.name: f.default for f in dataclasses.fields(GainConfig)}
    assert fields["min_gain"] == MIN_GAIN == 0.5


def selected(tmp_path: Path, rows: Sequence[Any], **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    data = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), data)
    out = {"output": tmp_path / "out", "select": tmp_path / "chosen", "max_thought_tokens": 20}
    found = run_gain(GainConfig(**{"model": MODEL, "data": str(data), **out, **changes}))
    return found, pq.read_table(tmp_path / "chosen/train.parquet").to_pylist()


def test_random_cuts_are_left_out_and_answers_stay(tmp_path: Path) -> None:
    rows = random_cuts(rl_rows(11, 120))
    found, kept = selected(tmp_path, rows)
    counts = found["select"]
    assert sum(counts[reason] for reason in REASONS) == 120 and counts["kept"] == len(kept)
    # A quarter is cut before an answer: at least nine in ten of what is kept, and nearly half of those that there are.
    answers = [row for row in kept if row["cut"] == "answer"]
    assert len(answers) >= 0.9 * len(kept)
    assert len(answers) >= 0.3 * sum(row["cut"] == "answer" for row in rows)
    by_id = {row["id"]: row for row in rows}
    assert all(row == by_id[row["id"]] for row in kept)


def test_the_selected_folder_is_a_dataset_with_a_card_that_says_how(tmp_path: Path) -> None:
    from datasets import load_dataset

    text = tmp_path / "programs.jsonl"
    text.write_text("".join(f'{{"text": "{plain_text(row).removesuffix("<eos>")}"}}\n' for row in rl_rows(3, 40)))
    built = RLPDataConfig(
        input=str(text), output=str(tmp_path / "data"), tokenizer=MODEL, sampler="random", test_share=0.3,
    )  # fmt: skip
    before = build(built)
    words = ["gain", "--model", MODEL, "--data", built.output, "--output", str(tmp_path / "out"), "--num-thoughts", "4"]
    words += ["--max-thought-tokens", "20", "--select", str(tmp_path / "chosen"), "--max-positions", "60"]
    assert cli.main([*words, "--min-gain", "0.05"]) == 0
    source = {name: pq.read_table(tmp_path / f"data/{name}.parquet") for name in ("train", "test")}
    made = {name: pq.read_table(tmp_path / f"chosen/{name}.parquet") for name in ("train", "test")}
    assert made["train"].schema.equals(source["train"].schema)
    assert made["test"].equals(source["test"])
    rows = source["train"].to_pylist()
    assert [row for row in made["train"].to_pylist() if row not in rows] == []
    card = Card.read(tmp_path / "chosen")
    assert card.num_rows == {"train": len(made["train"]), "test": len(source["test"])}
    assert card.skipped_positions["not measured"] == len(rows) - 60
    dropped = {name: n for name, n in card.skipped_positions.items() if name in REASONS}
    assert sum(dropped.values()) + len(made["train"]) == 60
    assert card.settings["selected_from_hash"] == before.content_hash
    assert card.settings["selected"]["min_gain"] == 0.05 and card.settings["selected"]["model"] == "programs_model"
    assert card.tokenizer == before.tokenizer
    assert "rl-think gain --select" in (tmp_path / "chosen/README.md").read_text()
    assert load_dataset(str(tmp_path / "chosen"))["train"].to_list() == made["train"].to_pylist()
    # Another threshold reads the same samples; the folder stands until it may be replaced.
    assert cli.main([*words, "--min-gain", "0.2"]) == 1
    assert cli.main([*words, "--min-gain", "0.2", "--overwrite"]) == 0
    assert Card.read(tmp_path / "chosen").settings["selected"]["min_gain"] == 0.2


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    row = dict.fromkeys(("prompt", "context", "target"), "")
    dataset = Dataset("d", {"train": Rows(pa.Table.from_pylist([row] * 3))}, None)
    with pytest.raises(UserError, match=r"no position carries a signal above 0.5 nats \(no thought helps 3\)"):
        write(str(tmp_path / "x"), dataset, "train", Selection([], 0.5, {"kept": 0, "no thought helps": 3}), {})
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_real_text_under_random_weights_has_no_signal(tmp_path: Path) -> None:
    from rl_think_ext.tiny.prose import prose
    from rl_think_ext.tiny.text import save_text_model

    text = tmp_path / "prose.txt"
    text.write_text("\n\n".join(prose(1, 40)))
    model = str(save_text_model(tmp_path / "model"))
    out = {"output": tmp_path / "out", "select": tmp_path / "chosen", "max_thought_tokens": 16, "num_positions": 30}
    with pytest.raises(UserError, match="no position carries a signal"):
        run_gain(GainConfig(model=model, data=str(text), **out))
