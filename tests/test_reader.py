"""From columns to ids: ids win over text, and every complaint names the column and the row (F31-F33)."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rl_think_ext.data.reader import Reader
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.template import TagIds
from rl_think_ext.trl.rows import rows_of

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<think>", "</think>", "one", "two", "three", "four", "Read", ":", "think")
ID = {word: i for i, word in enumerate(WORDS)}
WHERE = "row 7 of the batch"


def words(bos: bool = True, **special: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; with `bos` it puts <s> before what it encodes, as Llama's does."""
    core = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_tokens(["<think>", "</think>"])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ID["<s>"])])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def reader(tokenizer: Any = None, **settings: Any) -> Reader:
    tokenizer = words() if tokenizer is None else tokenizer
    return Reader(
        tokenizer, RLPConfig(**{"num_target_tokens": 8, **settings}), TagIds((ID["<think>"],), (ID["</think>"],))
    )


def ids(*names: str) -> tuple[int, ...]:
    return tuple(ID[name] for name in names)


def test_text_is_encoded_as_the_trainer_encodes_it() -> None:
    row = {"context": "one two", "target": "three four", "prompt": "one two<think>"}
    read = reader()
    context = read.context(row, WHERE)
    assert context == ids("<s>", "one", "two")
    assert read.target(row, WHERE) == ids("three", "four"), "a target takes no special token"
    assert read.prompt(row, context, WHERE) == ids("<s>", "one", "two", "<think>")


def test_f31_ids_win_over_text() -> None:
    row = {
        "context": "one",
        "context_ids": list(ids("two", "three")),
        "target": "one",
        "target_ids": list(ids("four")),
        "prompt": "one<think>",
    }
    read = reader()
    context = read.context(row, WHERE)
    assert context == ids("two", "three")
    assert read.target(row, WHERE) == ids("four")
    assert read.prompt(row, context, WHERE) == ids("two", "three", "<think>")


def test_f31_ids_that_do_not_survive_decode_and_encode() -> None:
    vocabulary = {"<think>": 0, "a": 1, "b": 2, "ab": 3}
    core = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    core.add_tokens(["<think>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    cut = [1, 2]  # a text cut on ids between a and b
    assert tokenizer(tokenizer.decode(cut, clean_up_tokenization_spaces=False).replace(" ", ""))["input_ids"] == [3]
    row = {"context": "ab", "context_ids": cut, "target": "ab", "target_ids": [2], "prompt": "ab<think>"}
    read = reader(tokenizer)
    assert read.context(row, WHERE) == (1, 2)
    assert read.prompt(row, read.context(row, WHERE), WHERE) == (1, 2, 0)
    assert read.target(row, WHERE) == (2,)
    plain = {"context": "ab", "target": "ab", "prompt": "ab<think>"}
    assert read.context(plain, WHERE) == (3,)


@pytest.mark.parametrize("bos", [True, False])
def test_bos_stays_first(bos: bool) -> None:
    given = ids("<s>", "one", "two") if bos else ids("one", "two")
    row = {"context": "one two", "context_ids": list(given), "prompt": "Read : one two : think"}
    read = reader(elicit="instruct")
    expected = (*ids("<s>")[: int(bos)], *ids("Read", ":", "one", "two", ":", "think"))
    assert read.prompt(row, read.context(row, WHERE), WHERE) == expected


@pytest.mark.parametrize("num", [1, 2, 3])
def test_targets_are_as_many_as_one_reward_covers(num: int) -> None:
    row = {"target": "one two three", "target_ids": list(ids("one", "two", "three"))}
    read = reader(num_target_tokens=num)
    assert read.target(row, WHERE) == ids("one", "two", "three")[:num]
    del row["target_ids"]
    assert read.target(row, WHERE) == ids("one", "two", "three")[:num]


def test_f15_empty_target_is_no_error_here() -> None:
    assert reader().target({"target": ""}, WHERE) == ()
    assert reader().target({"target_ids": []}, WHERE) == ()


@pytest.mark.parametrize("row", [{"context_ids": []}, {"context": ""}])
def test_empty_context_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{WHERE}: the context is empty"):
        reader(words(bos=False)).context(row, WHERE)


@pytest.mark.parametrize(
    ("method", "row", "words_of_the_error"),
    [
        ("context", {"prompt": "x", "target": "y"}, "column `context` is missing; there are prompt, target"),
        ("context", {}, "column `context` is missing; there are none"),
        ("target", {"prompt": "x"}, "column `target` is missing; there are prompt"),
        ("context", {"context": None}, "column `context` holds NoneType, RLP needs plain text there"),
        ("context", {"context": ["one"]}, "column `context` holds list, RLP needs plain text there"),
        ("target", {"target": 4}, "column `target` holds int, RLP needs plain text there"),
        ("context", {"context_ids": "6 7"}, "column `context_ids` holds str, expected a list of token ids"),
        ("context", {"context_ids": b"67"}, "column `context_ids` holds bytes, expected a list of token ids"),
        ("target", {"target_ids": 6}, "column `target_ids` holds int, expected a list of token ids"),
        ("target", {"target_ids": {6: 7}}, "column `target_ids` holds dict, expected a list of token ids"),
        ("context", {"context_ids": [6, 13]}, "column `context_ids` holds something that is no id below 13"),
        ("context", {"context_ids": [-1]}, "column `context_ids` holds something that is no id below 13"),
        ("context", {"context_ids": [6.0]}, "column `context_ids` holds something that is no id below 13"),
        ("context", {"context_ids": ["one"]}, "column `context_ids` holds something that is no id below 13"),
        ("context", {"context_ids": [None]}, "column `context_ids` holds something that is no id below 13"),
        ("target", {"target_ids": [True]}, "column `target_ids` holds something that is no id below 13"),
        ("context", {"context": "one five"}, "`context` holds the unknown token 3 at position 2"),
        ("target", {"target": "five"}, "`target` holds the unknown token 3 at position 0"),
        ("context", {"context_ids": [6, 0]}, "`context` holds the padding token 0 at position 1"),
        ("target", {"target_ids": [6, 3]}, "`target` holds the unknown token 3 at position 1"),
    ],
)
def test_f33_complaints_name_column_and_row(method: str, row: dict[str, Any], words_of_the_error: str) -> None:
    with pytest.raises(UserError) as caught:
        getattr(reader(), method)(row, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: {words_of_the_error}")


def test_unknown_token_behind_the_targets_is_not_scored_and_no_error() -> None:
    assert reader(num_target_tokens=1).target({"target": "one five"}, WHERE) == ids("one")


def test_pad_or_unknown_that_is_an_end_of_text_may_be_in_a_text() -> None:
    # GPT-2: one token is beginning, end and unknown; many others pad with their end.
    gpt2_like = words(bos=True, bos_token="</s>", unk_token="</s>", pad_token="</s>")
    row = {"context_ids": list(ids("</s>", "one", "</s>", "two")), "target_ids": list(ids("</s>"))}
    assert reader(gpt2_like).context(row, WHERE) == ids("</s>", "one", "</s>", "two")
    assert reader(gpt2_like).target(row, WHERE) == ids("</s>")


def test_tokenizer_without_pad_or_unknown() -> None:
    core = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    bare = PreTrainedTokenizerFast(tokenizer_object=core)
    assert bare.pad_token_id is None
    assert reader(bare).context({"context_ids": [0, 3, 6]}, WHERE) == (0, 3, 6)


@pytest.mark.parametrize(
    ("elicit", "prompt", "words_of_the_error"),
    [
        ("generate", "one<think>", "the prompt ends with <think>, the settings say `elicit: generate`"),
        ("instruct", "one<think>", "the prompt ends with <think>, the settings say `elicit: instruct`"),
        ("prefill", "one", "the prompt does not end with <think>, the settings say `elicit: prefill`"),
        ("prefill", "one<think> ", "the prompt does not end with <think>, the settings say `elicit: prefill`"),
    ],
)
def test_prompt_for_another_way_of_asking_is_refused(elicit: str, prompt: str, words_of_the_error: str) -> None:
    read = reader(elicit=elicit)
    for extra in ({}, {"context_ids": list(ids("one"))}):
        with pytest.raises(UserError) as caught:
            read.prompt({"prompt": prompt, "context": "one", **extra}, ids("one"), WHERE)
        assert str(caught.value).startswith(f"{WHERE}: {words_of_the_error}")


@pytest.mark.parametrize(
    ("row", "words_of_the_error"),
    [
        ({"context": "two"}, "the prompt does not hold the context"),
        ({"context": ""}, "the prompt does not hold the context"),
        ({}, "column `context` is missing or no text"),
        ({"context": None}, "column `context` is missing or no text"),
        ({"context": ["one"]}, "column `context` is missing or no text"),
    ],
)
def test_f33_prompt_is_built_around_the_context(row: dict[str, Any], words_of_the_error: str) -> None:
    given = {"prompt": "one<think>", "context_ids": list(ids("one")), **row}
    with pytest.raises(UserError) as caught:
        reader().prompt(given, ids("one"), WHERE)
    assert str(caught.value).startswith(f"{WHERE}: {words_of_the_error}")


def test_rows_carry_their_columns_and_their_place() -> None:
    columns = {
        "context": ["one", "two"],
        "id": ["a-1", ""],
        "trainer_state": object(),  # what TRL hands on beside the columns
        "completions": ["x"],
        "name": "xy",
    }
    assert rows_of(["p", "q"], columns) == [
        ({"context": "one", "id": "a-1", "prompt": "p"}, "row a-1"),
        ({"context": "two", "id": "", "prompt": "q"}, "row 1 of the batch"),
    ]
    assert rows_of([], {"context": []}) == []


@pytest.mark.parametrize(
    "prompt",
    [[{"role": "user", "content": "one"}], [{"role": "user", "content": [{"type": "text", "text": "one"}]}], None, 7],
    ids=["messages", "blocks", "none", "number"],
)
def test_f32_prompts_that_are_no_plain_text_are_refused(prompt: Any) -> None:
    with pytest.raises(UserError) as caught:
        rows_of(["fine", prompt], {"id": ["a", "b"]})
    kind = type(prompt).__name__
    assert str(caught.value) == f"row b: column `prompt` holds {kind}; RLP predicts plain text, not chats"


def test_a_prompt_of_another_text_is_refused_without_ids_too() -> None:
    row = {"context": "one two", "target": "three", "prompt": "four<think>"}
    with pytest.raises(UserError, match="the prompt does not hold the context"):
        reader().prompt(row, ids("one", "two"), WHERE)


def test_a_tokenizer_that_ends_every_text_is_refused() -> None:
    tokenizer = words()
    single = "<s> $A </s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", ID["<s>"]), ("</s>", ID["</s>"])]
    )
    with pytest.raises(UserError, match=r"puts its end of text </s> behind `context`.*add_eos_token: false"):
        reader(tokenizer).context({"context": "one two"}, WHERE)


class Forwarding:
    """A tokenizer that can be watched."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.inner)


def test_the_size_of_the_vocabulary_is_looked_up_once() -> None:
    """len() of a tokenizer takes 26 ms at 152k entries: once per id, a run would never start."""
    calls = []

    class Counting(Forwarding):
        def __len__(self) -> int:
            calls.append(1)
            return len(self.inner)

    read = reader(Counting(words()))
    for _ in range(5):
        read.context({"context_ids": list(ids("one", "two")) * 50}, WHERE)
    assert len(calls) == 1


def test_the_rows_of_a_group_are_encoded_once() -> None:
    calls: list[str] = []
    tokenizer = words()

    class Counting(Forwarding):
        def __call__(self, text: str, **kwargs: Any) -> Any:
            calls.append(text)
            return self.inner(text, **kwargs)

    read, row = reader(Counting(tokenizer)), {"context": "one two", "target": "three", "prompt": "one two<think>"}
    for _ in range(8):
        context = read.context(row, WHERE)
        read.prompt(row, context, WHERE)
        read.target(row, WHERE)
    assert sorted(calls) == ["one two", "one two<think>", "three"]
