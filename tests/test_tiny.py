"""The miniature task and the text tokenizer: what is held out stays held out, and what is shipped is what was made."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rl_think_ext.tiny import PROGRAMS_MODEL, TEXT_TOKENIZER
from rl_think_ext.tiny.measure import answer, measure
from rl_think_ext.tiny.pretrain import build_model, save, sha256, train
from rl_think_ext.tiny.programs import (
    KEY_STEPS,
    MIX,
    Program,
    classify_thought,
    held_out_rows,
    plain_text,
    rl_rows,
    training_documents,
    worked_text,
)
from rl_think_ext.tiny.prose import prose
from rl_think_ext.tiny.text import docstrings, save_text_model, text_model, train_tokenizer
from rl_think_ext.tiny.tokenizer import VOCABULARY, build_tokenizer

PROGRAM = Program(5, ("+4", "*3", "-6"))


@cache
def words() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(PROGRAMS_MODEL)


@cache
def pieces() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TEXT_TOKENIZER)


@cache
def shipped_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(PROGRAMS_MODEL, dtype="float32").eval()


def beginning(text: str) -> str:
    """The program up to its third operation, read from the text: the split must hold for whoever sees only text."""
    return " ".join(text.split("?")[0].split(" :")[0].split()[: KEY_STEPS + 1])


def test_a_program_is_worked_out_by_hand() -> None:
    assert PROGRAM.source == "a=5 b=a+4 c=b*3 d=c-6"
    assert PROGRAM.values == (5, 9, 7, 1)
    assert PROGRAM.gold == "a=5 b=a+4=9 c=b*3=7 d=c-6=1"
    assert (PROGRAM.question, PROGRAM.answer) == (" d?", "=1")


def test_no_training_text_begins_like_a_held_out_program() -> None:
    held = {beginning(row["context"]) for part in ("dev", "test") for row in held_out_rows(part, 7, 3000)}
    assert len(held) > 3000
    for document in training_documents(3, 20_000):
        # A log has the results in it; without them its assignments are those of the program.
        assert document.program.part == "train"
        assert beginning(document.program.source) not in held
        assert document.program.source in document.text or document.program.gold in document.text
    assert not held & {beginning(row["context"]) for row in rl_rows(3, 20_000)}


def test_the_two_held_out_parts_share_no_beginning() -> None:
    dev, test = ({beginning(row["context"]) for row in held_out_rows(part, 1, 3000)} for part in ("dev", "test"))
    assert not dev & test


def test_the_part_does_not_change_when_the_program_goes_on() -> None:
    for row in held_out_rows("dev", 0, 200):
        first, *lines = row["context"].rsplit(" ", 1)[0].split(" ")
        operations = tuple(line[-2:] for line in lines)
        for length in range(KEY_STEPS, len(operations) + 1):
            assert Program(int(first[-1]), operations[:length]).part == "dev"


def test_each_held_out_part_is_a_twentieth_of_the_programs() -> None:
    operations = [f"{sign}{digit}" for sign in "+-" for digit in range(1, 10)]
    parts = [Program(1, (a, b, c)).part for a in operations for b in operations for c in operations]
    for part in ("dev", "test"):
        assert parts.count(part) / len(parts) == pytest.approx(0.05, abs=0.01)


def test_a_seed_gives_the_same_texts_and_another_seed_others() -> None:
    assert training_documents(1, 50) == training_documents(1, 80)[:50]
    assert training_documents(1, 50) != training_documents(2, 50)
    assert rl_rows(1, 50) == rl_rows(1, 50) != rl_rows(2, 50)
    assert held_out_rows("dev", 1, 50) == held_out_rows("dev", 1, 50) != held_out_rows("dev", 2, 50)
    # Frozen: another Python must not silently give another corpus than the one the model was trained on.
    assert training_documents(0, 1)[0].text == "a=2 b=a-7 c=b-7 d=c-5 e=d+5 f=e+9 f?=7<eos>"


def test_documents_have_the_kinds_of_the_mix_and_fit_the_model() -> None:
    documents = training_documents(0, 5000)
    for kind, share in MIX.items():
        assert sum(d.kind == kind for d in documents) / len(documents) == pytest.approx(share, abs=0.02)
    assert max(len(ids) for ids in words()([d.text for d in documents])["input_ids"]) <= 64


def test_a_row_is_a_document_without_its_thought() -> None:
    for row in rl_rows(0, 20):
        assert row["prompt"] == row["context"] + "<think>"
        assert row["gold"].endswith(row["target"])
        assert len(words()(row["context"])["input_ids"]) == row["position"]
        assert plain_text(row) == row["context"] + row["target"] + "<eos>"
        assert worked_text(row) == f"{row['context']}<think>{row['gold']}</think>{row['target']}<eos>"
    assert len({row["id"] for part in ("dev", "test") for row in held_out_rows(part, 0, 9)}) == 18


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="dev"):
        held_out_rows("train", 0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("thought", "kind"),
    [
        ("a=5 b=a+4=9 c=b*3=7 d=c-6=1", "correct"),
        ("a=5 b=a+4=9 c=b*3=7 d=c-6=1</think>", "correct"),
        ("a=5 b=a+4=9 c=b*3=8 d=c-6=2", "steps"),
        ("a=5 b=a+4=9", "steps"),
        (" c=b*3 b=a+4", "echo"),
        (" hmm okay</think>", "chat"),
        ("", "other"),
        ("=3=3", "other"),
    ],
)
def test_thoughts_are_told_apart(thought: str, kind: str) -> None:
    assert classify_thought(thought, PROGRAM.gold) == kind


def test_words_round_trip_on_every_document() -> None:
    texts = [document.text for document in training_documents(5, 3000)]
    ids = words()(texts)["input_ids"]
    assert words().batch_decode(ids) == texts
    assert not {words().unk_token_id, words().pad_token_id} & {i for text in ids for i in text}


def test_a_foreign_word_is_unknown_and_not_padding() -> None:
    assert words()("a=5 xy").input_ids[-1] == words().unk_token_id != words().pad_token_id


@pytest.mark.parametrize("tokenizer", [words, pieces])
def test_special_entries_are_single_ids_and_nothing_is_added(tokenizer) -> None:
    tok = tokenizer()
    for entry in ("<pad>", "<eos>", "<think>", "</think>"):
        assert tok(entry)["input_ids"] == [tok.convert_tokens_to_ids(entry)]
    assert tok("a=5", add_special_tokens=True)["input_ids"] == tok("a=5", add_special_tokens=False)["input_ids"]
    assert set(tok("a=5")) == {"input_ids", "attention_mask"}
    assert tok.padding_side == "left"
    assert tok.decode(tok("<think></think><eos>")["input_ids"], skip_special_tokens=True) == "<think></think>"


@given(st.text(max_size=80))
@example("line\r\nline\r\n\r\n\x00\u202eright to left\u202c \N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}")
@example("e\u0301 \u00e9 \ufb01 \ufeff \U0010ffff \u2028\t  x  ")
@example("<think>$\\frac{1}{2}$</think><eos><pad> don't 'S Ġ")
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips(text: str) -> None:
    assert pieces().decode(pieces()(text)["input_ids"]) == text


@pytest.mark.parametrize("unit", ["a", " ", " a", "? ", "\n", " \n", "1", "'", "'s", "..[111 "])
def test_long_lines_are_read_in_bounded_time(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    started = time.monotonic()
    pieces()(text)
    assert time.monotonic() - started < 5


def test_english_is_read_in_pieces_longer_than_bytes() -> None:
    text = "First, we subtract 3 from both sides of the equation, and then we divide by $\\frac{1}{2}$."
    assert len(text) / len(pieces()(text)["input_ids"]) > 2.5


def test_the_text_tokenizer_can_be_trained_again() -> None:
    texts = [*prose(0, 300), *docstrings(Path(json.__file__).parent)]
    first, second = (train_tokenizer(texts, entries=400) for _ in range(2))
    assert len(first) == 400
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


@pytest.mark.parametrize(("folder", "record"), [(PROGRAMS_MODEL, "pretrain.json"), (TEXT_TOKENIZER, "built.json")])
def test_shipped_files_have_the_recorded_hashes(folder: Path, record: str) -> None:
    hashes = json.loads((folder / record).read_text())["sha256"]
    assert "tokenizer.json" in hashes
    assert {name: sha256(folder / name) for name in hashes} == hashes


def test_what_is_shipped_is_small() -> None:
    assert sum(path.stat().st_size for path in PROGRAMS_MODEL.iterdir()) < 4e6
    assert sum(path.stat().st_size for path in TEXT_TOKENIZER.iterdir()) < 1e6


def test_the_shipped_word_tokenizer_is_the_one_in_the_code() -> None:
    assert words().get_vocab() == build_tokenizer().get_vocab() == {word: i for i, word in enumerate(VOCABULARY)}


def test_the_shipped_model_stops_at_the_end_of_a_thought() -> None:
    config = shipped_model().generation_config
    assert set(config.eos_token_id) == {words().eos_token_id, words().convert_tokens_to_ids("</think>")}
    assert config.pad_token_id == words().pad_token_id
    assert shipped_model().config.vocab_size == len(words())


def test_the_shipped_model_gains_nothing_from_its_thoughts_yet() -> None:
    # The mean gain is -0.09 and one row's spread 0.86: with 256 rows the bound is 3.6 standard errors away.
    rows = held_out_rows("dev", 11, 256)
    before = measure(shipped_model(), words(), rows)
    assert before["gain"] < 0.1
    assert before["accuracy"] < 0.3
    # 0.077 over 3,000 rows; RLP selects this kind of thought, and without any it has nothing to select.
    assert 0.02 < before["correct"] < 0.2
    assert measure(shipped_model(), words(), rows) == before


def test_the_shipped_model_answers_from_a_worked_thought() -> None:
    rows = held_out_rows("dev", 12, 128)
    given_gold = answer(shipped_model(), words(), rows, [row["gold"] for row in rows])
    assert given_gold.hit.float().mean() > 0.98
    assert answer(shipped_model(), words(), rows).hit.float().mean() < 0.25


def test_the_answer_does_not_depend_on_the_padding() -> None:
    rows = held_out_rows("dev", 13, 8)
    alone = [answer(shipped_model(), words(), [row]).logprob.item() for row in rows]
    assert answer(shipped_model(), words(), rows).logprob.tolist() == pytest.approx(alone, abs=1e-5)


def test_a_few_steps_of_pre_training_write_a_folder_that_loads(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0)
    texts = [document.text for document in training_documents(0, 12 * 8)]
    with pytest.raises(ValueError, match="104 texts, got 96"):
        train(model, texts, tokenizer, steps=13, batch_size=8)
    assert train(model, texts, tokenizer, steps=12, batch_size=8) < 5
    save(model, tokenizer, tmp_path, {"seed": 0})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path))


def test_a_text_model_is_written_whole(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "model", hidden=32, layers=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 4096
    batch = tokenizer(["A proof.", "Let $x$ be odd, then"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (*batch["input_ids"].shape, 4096)
    again = text_model(32, 1).state_dict()
    assert all((again[name] == weight).all() for name, weight in model.state_dict().items())


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, rl_think_ext.tiny.programs; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
