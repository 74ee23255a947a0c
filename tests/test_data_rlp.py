"""From documents to rows: where a text is cut, and what stands in a row."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_think_ext.data.positions import sample_positions, splits_character, token_ends
from rl_think_ext.data.rlp import RLPDataConfig, build
from rl_think_ext.data.sources import read_documents
from rl_think_ext.errors import UserError
from rl_think_ext.template import INSTRUCTION, OPEN_TAG

ATTACKS = Path(__file__).parent / "attacks"
MATH_TEXT = Path(__file__).parents[2] / "shared" / "data" / "math_text.jsonl"
TEXT = "The first sentence stands here at the start. Dr. Smith wrote the second one. A third follows it, i.e. this."


def write_jsonl(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(folder, split="train"):
    return pq.read_table(Path(folder) / f"{split}.parquet").to_pylist()


@pytest.fixture
def made(tmp_path):
    """Builds from rows, a text or a path, and gives the card and the rows."""

    def make(given, **kwargs):
        source = given
        if isinstance(given, str):
            given = [{"id": "a", "text": given}]
        if isinstance(given, list):
            source = write_jsonl(tmp_path / f"in{len(list(tmp_path.iterdir()))}.jsonl", given)
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        card = build(RLPDataConfig(input=str(source), output=str(output), **kwargs))
        return card, rows_of(output)

    return make


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A byte-level BPE with a BOS; its merges join a full stop and the line breaks behind it, as Qwen's do."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    core.train_from_iterator([TEXT, "One.\n\nTwo.\n\nThree.\n\n"] * 20, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    from rl_think_ext.scoring.load import load_tokenizer

    return load_tokenizer(tokenizer_folder)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["sentence", "random", "stride", "entropy"]),
    st.integers(0, 200),
    st.integers(0, 40),
    st.none() | st.integers(1, 60),
    st.none() | st.integers(1, 9),
    st.integers(1, 30),
)
def test_positions_are_ordered_within_bounds_and_as_many_as_asked(sampler, length, low, high, number, stride):
    ends, entropies = range(5, 200, 7), [math.nan] + [float(i % 5) for i in range(1, length)]
    found = sample_positions(
        sampler,
        length,
        seed=3,
        document_id="d",
        num_positions=number,
        min_context=low,
        max_context=high,
        stride=stride,
        ends=ends,
        entropies=entropies[:length],
    )
    assert found == sorted(set(found))
    assert all(max(low, 1) <= cut <= min(length - 1, high or length) for cut in found)
    assert len(found) <= (number or length)
    assert sampler != "sentence" or set(found) <= set(ends)


def test_positions_depend_on_seed_and_document_only():
    def draw(seed, document):
        return sample_positions("random", 1000, seed=seed, document_id=document, num_positions=5)

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(*pair)) for pair in [(0, "a"), (1, "a"), (0, "b")]}) == 3


def test_sentence_rows_on_characters_put_the_white_space_into_the_target(made):
    card, rows = made(TEXT + "\n")
    assert card.num_rows == {"train": 2}
    first, second = rows
    assert first["context"] == "The first sentence stands here at the start."
    assert first["target"] == " Dr. Smith wrote the second one."
    assert first["prompt"] == first["context"] + OPEN_TAG
    assert (first["id"], first["source"], first["position"]) == ("a:44", "in0.jsonl", 44)
    assert second["context"] == TEXT[: second["position"]]
    assert second["target"] == " A third follows it, i.e. this."


@pytest.mark.parametrize("sampler", ["sentence", "random", "stride"])
def test_f29_cuts_on_characters_slice_back_and_tear_nothing(made, sampler):
    text = (ATTACKS / "document_controls.txt").read_bytes().decode()
    card, rows = made(ATTACKS / "document_controls.txt", sampler=sampler, stride=1, min_context_chars=1)
    assert rows
    for row in rows:
        at = row["position"]
        assert row["context"] == text[:at]
        assert text[at:].startswith(row["target"])
        assert text[at - 1 : at + 1] != "\r\n"
        assert "\u200d" not in (text[at - 1], text[at])
    assert sampler == "sentence" or card.skipped_positions["inside a character"] > 5


def test_targets_of_a_given_length_and_contexts_cut_on_the_left(made):
    card, rows = made(TEXT, max_target_chars=5, max_context_chars=20)
    assert [row["target"] for row in rows] == [" Dr. ", " A th"]
    assert [row["context"] for row in rows] == [TEXT[24:44], TEXT[row_end(TEXT) - 20 : row_end(TEXT)]]
    assert card.num_cut_contexts == 2
    card, rows = made(TEXT, max_context_chars=50, overlong="skip")
    assert (len(rows), card.num_cut_contexts, card.skipped_positions) == (1, 0, {"context too long": 1})


def row_end(text):
    return text.index(" A third")


def test_rows_on_ids_are_the_documents_ids_behind_the_bos(made, tokenizer, tokenizer_folder):
    _, rows = made(TEXT, tokenizer=tokenizer_folder, num_target_tokens=4, min_context_tokens=2)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert len(rows) == 2
    for row in rows:
        cut = len(row["context_ids"]) - 1
        assert row["context_ids"] == [tokenizer.bos_token_id, *ids[:cut]]
        assert row["target_ids"] == ids[cut : cut + 4]
        assert row["context"] == TEXT[: row["position"]] == tokenizer.decode(ids[:cut])
        assert row["target"] == tokenizer.decode(row["target_ids"])
        assert row["prompt"] == row["context"] + OPEN_TAG
    assert rows[0]["context"].endswith("start.")


def test_f31_a_paragraph_end_that_shares_a_token_with_white_space_is_a_position(made, tokenizer, tokenizer_folder):
    text = "One whole sentence.\n\nTwo of them here. Three of them."
    assert any("\n" in token and "." in token for token in map(tokenizer.decode, tokenizer(text)["input_ids"]))
    card, rows = made(text, tokenizer=tokenizer_folder, min_context_tokens=1)
    assert card.skipped_positions == {}
    assert [row["position"] for row in rows] == [text.index("Two"), text.index(" Three")]
    assert rows[0]["context"].endswith(".\n\n")


def test_f31_a_sentence_that_ends_inside_a_token_is_no_position():
    assert token_ends([4], [(0, 3), (3, 6)], "One.T o") == ([], 1)


def test_f31_no_cut_tears_the_bytes_of_a_character(made, tokenizer, tokenizer_folder):
    text = "Smile 😀😀 é 漢字 ends it here." * 2
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    torn = sum(splits_character(cut, offsets) for cut in range(1, len(offsets)))
    card, rows = made(text, tokenizer=tokenizer_folder, sampler="random", min_context_tokens=1, max_context_tokens=9)
    assert torn > 10
    assert card.skipped_positions == {"inside a character": torn}
    for row in rows:
        assert "\ufffd" not in tokenizer.decode(row["context_ids"])
        assert tokenizer.decode(row["context_ids"][1:]) == row["context"]
        assert len(row["context_ids"]) <= 9
        assert row["context_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize(("text", "reason"), [("Plain </s> text. And more of it.", "special"), ("A <s> b. C d", "unk")])
def test_documents_with_control_or_unknown_tokens_are_skipped(made, tokenizer_folder, text, reason):
    card, _ = made([{"text": text}, {"text": TEXT}], tokenizer=tokenizer_folder)
    assert card.skipped_documents == {f"{reason}nown token" if reason == "unk" else "special token in the text": 1}


def test_f24_documents_with_thinking_tags_are_skipped_and_counted(made, tmp_path):
    planted = (ATTACKS / "document_with_tags.txt").read_text()
    card, rows = made([{"text": planted}, {"text": TEXT}])
    assert card.skipped_documents == {"thinking tag in the text": 1}
    assert not any("planted" in str(row) for row in rows)
    with pytest.raises(UserError, match=r"gave no row \(thinking tag in the text 1\)"):
        made(planted)


def test_f28_braces_stay_verbatim_around_an_instruction_of_ones_own(made, tmp_path):
    (tmp_path / "ask.txt").write_text("Think {hard} about: {context}\nGo on: %s")
    card, rows = made(ATTACKS / "document_braces.txt", elicit="instruct", instruction_file=str(tmp_path / "ask.txt"))
    for row in rows:
        assert row["prompt"] == f"Think {{hard}} about: {row['context']}\nGo on: %s"
    assert "{context} stays {0} and %s, $HOME, {{ jinja }}" in rows[0]["context"]
    assert len(card.settings["instruction_sha256"]) == 64
    _, rows = made(ATTACKS / "document_braces.txt", elicit="instruct")
    assert rows[0]["prompt"] == INSTRUCTION.replace("{context}", rows[0]["context"])
    _, rows = made(ATTACKS / "document_braces.txt", elicit="generate")
    assert rows[0]["prompt"] == rows[0]["context"]
    (tmp_path / "bad.txt").write_text("no place")
    with pytest.raises(UserError, match="exactly once"):
        made(TEXT, elicit="instruct", instruction_file=str(tmp_path / "bad.txt"))


def test_entropy_cuts_where_the_model_is_least_certain(made, tokenizer_folder, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rl_think_ext.data.cut import entropy_of

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, max_position_embeddings=512, **shape)).eval()
    model.save_pretrained(tmp_path / "model")
    given = {"tokenizer": tokenizer_folder, "model": str(tmp_path / "model"), "sampler": "entropy"}
    _, rows = made(TEXT, num_positions=3, min_context_tokens=1, num_target_tokens=1000, **given)
    ids = [*rows[-1]["context_ids"], *rows[-1]["target_ids"]]
    logprob = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -(logprob.exp() * logprob).sum(-1)[:-1]
    whole = entropy_of(model, ids[:1], 2048)(ids[1:])
    assert torch.tensor(whole) == pytest.approx(expected.detach(), abs=1e-5)
    cuts = sorted(range(1, len(whole)), key=lambda k: -whole[k])[:3]
    assert sorted(cuts) == [len(row["context_ids"]) - 1 for row in rows]
    # A window of 9 sees less of the past, but every position gets a number.
    assert all(map(math.isfinite, entropy_of(model, ids[:1], 9)(ids[1:])))


def test_rows_depend_on_seed_and_document_not_on_order(made):
    rows = [{"id": f"d{i}", "text": f"Text {i}. {TEXT}"} for i in range(30)]
    first, again, other = (made(rows, sampler="random", num_positions=3, seed=s) for s in (0, 0, 1))
    positions = [[(row["id"], row["position"]) for row in found] for _, found in (first, again, other)]
    assert positions[0] == positions[1] != positions[2]
    backwards = made(rows[::-1], sampler="random", num_positions=3)[1]
    assert sorted(row["id"] for row in backwards) == sorted(row["id"] for row in first[1])


def test_real_text_is_cut_at_every_sentence(tmp_path, tokenizer_folder):
    if not MATH_TEXT.is_file():
        pytest.skip("absent: ../shared/data/math_text.jsonl")
    card = build(RLPDataConfig(input=str(MATH_TEXT), output=str(tmp_path / "a")))
    assert card.num_documents > 240
    assert 1000 < card.num_rows["train"] < 2000
    ids = {"tokenizer": tokenizer_folder, "max_context_tokens": 100_000}
    card = build(RLPDataConfig(input=str(MATH_TEXT), output=str(tmp_path / "b"), **ids))
    assert card.num_rows["train"] > 500
    texts = {d.id: d.text for d in read_documents(str(MATH_TEXT))}
    for row in rows_of(tmp_path / "b"):
        text = texts[row["id"].rsplit(":", 1)[0]]
        assert text[: row["position"]] == row["context"]
        assert text[row["position"] :].startswith(row["target"])
