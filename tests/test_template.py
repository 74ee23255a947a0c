"""Thinking formats: what is thought is never shown as an answer, whatever a model writes (F22, F23, F28)."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl_think_ext.errors import UserError
from rl_think_ext.records import Parts
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.template import (
    CLOSE_TAG,
    INSTRUCTION,
    OPEN_TAG,
    TagIds,
    ThoughtIds,
    canonical_closing,
    close_thought,
    find,
    instruction_sides,
    render,
    split,
)
from rl_think_ext.tiny import TEXT_TOKENIZER

# Tags that are none, to the letter: upper case, blanks, full width, a zero-width character, a homoglyph.
LOOK_ALIKES = ("</THINK>", "</think >", "< /think>", "＜/think＞", "<\u200b/think>", "</th\u0456nk>", "&lt;/think&gt;")
PIECES = (
    OPEN_TAG,
    CLOSE_TAG,
    *LOOK_ALIKES,
    "<THINK>",
    " ",
    "\n",
    "\u2028",
    "a",
    "<",
    ">",
    "</",
    "think>",
    "\x00",
    "\ud800",
)
hostile_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>2 and 2</think>4", Parts("2 and 2", "4", "ok")),
        ("2 and 2</think>4", Parts("2 and 2", "4", "ok")),
        ("\n <think>\nplan\n</think>\n\nAnswer.", Parts("\nplan\n", "\n\nAnswer.", "ok")),
        (" 2 and 2</think>4", Parts(" 2 and 2", "4", "ok")),
        ("<think>never closed", Parts("never closed", None, "unclosed")),
        ("no tag at all", Parts("no tag at all", None, "unclosed")),
        ("", Parts("", None, "unclosed")),
        ("<think>a<think>b</think>c", Parts("a<think>b", None, "nested")),
        ("<think>a</think>b</think>c", Parts("a", None, "nested")),
        ("<think>a</think>b<think>c", Parts("a", None, "nested")),
        ("before<think>a</think>b", Parts("before<think>a", None, "nested")),
        ("<think><think>", Parts("<think>", None, "nested")),
        ("<THINK>secret</THINK>4", Parts("<THINK>secret</THINK>4", None, "unclosed")),
    ],
)
def test_f22_f23_split_by_hand(text: str, expected: Parts) -> None:
    assert split(text) == expected


@given(hostile_text)
@example("<think>" * 3 + "</think>" * 3)
@example("</think>")
def test_f23_split_agrees_with_a_grammar(text: str) -> None:
    parts = split(text)
    # Another algorithm: one regular expression for the only form that has an answer.
    whole = re.fullmatch(r"(?:\s*<think>)?((?:(?!</?think>).)*)</think>((?:(?!</?think>).)*)", text, re.DOTALL)
    assert (parts.status == "ok") == (whole is not None)
    if whole is None:
        assert parts.answer is None
        unclosed = re.fullmatch(r"(?:\s*<think>)?(?:(?!</?think>).)*", text, re.DOTALL)
        assert parts.status == ("unclosed" if unclosed else "nested")
    else:
        assert (parts.thought, parts.answer) == whole.groups()


@given(hostile_text, st.sampled_from(LOOK_ALIKES), hostile_text)
def test_f23_thought_never_is_the_answer(before: str, closer: str, after: str) -> None:
    marked = f"{OPEN_TAG}{before.replace(CLOSE_TAG, '')}SECRET{closer}{after}"
    answer = split(marked).answer
    if answer is None:
        return
    # An answer exists only behind the one real closing tag, and this one stands behind the secret.
    assert marked.endswith(CLOSE_TAG + answer)
    assert "SECRET" not in answer
    assert not any(tag in answer for tag in (OPEN_TAG, CLOSE_TAG))


@given(hostile_text)
def test_plain_style_shows_a_text_only_without_tags(text: str) -> None:
    parts = split(text, style="none")
    assert parts.thought is None
    assert parts.answer == (text if text and OPEN_TAG not in text and CLOSE_TAG not in text else None)
    assert parts.status == ("empty" if not text else "ok" if parts.answer is not None else "nested")


@pytest.mark.parametrize(
    ("style", "mode", "message"), [("think", "kind", "mode is 'strict', got 'kind'"), ("tink", "strict", "got 'tink'")]
)
def test_unknown_style_or_mode_raises(style: str, mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split("text", style, mode)


def test_render_puts_what_asks_for_a_thought_around_the_context() -> None:
    assert render("1 + 1 =", "prefill") == "1 + 1 =<think>"
    assert render("1 + 1 =", "generate") == "1 + 1 ="
    assert render("1 + 1 =", "instruct") == INSTRUCTION.replace("{context}", "1 + 1 =")
    assert render("x", "instruct", "Think of {context}!") == "Think of x!"


@given(st.text())
def test_f28_braces_and_percents_stay_verbatim(context: str) -> None:
    context += "{context} {0} {{x}} %s $x {% raw %}"
    before, behind = instruction_sides("instruct", "{a} {{ %d {context} {b}")
    assert (before, behind) == ("{a} {{ %d ", " {b}")
    assert render(context, "instruct", "{a} {{ %d {context} {b}") == before + context + behind


@pytest.mark.parametrize(("instruction", "times"), [("Think!", 0), ("{context} and {context}", 2), ("", 0)])
def test_instruction_holds_the_context_exactly_once(instruction: str, times: int) -> None:
    with pytest.raises(UserError, match=rf"holds {times} times \{{context\}}"):
        instruction_sides("instruct", instruction)


def tokenizer(*words: str, unknown: str | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown) if unknown else models.BPE(vocabulary, []))
    if unknown:
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=unknown)


def test_tags_of_one_and_of_several_tokens() -> None:
    single = TagIds.of(tokenizer("?", OPEN_TAG, CLOSE_TAG, unknown="?"))
    assert (single.open, single.close, single.single) == ((1,), (2,), True)
    letters = tokenizer(*sorted(set(OPEN_TAG + CLOSE_TAG)))
    several = TagIds.of(letters)
    assert not several.single
    assert "".join(letters.convert_ids_to_tokens(list(several.close))) == CLOSE_TAG


def test_tokenizer_that_cannot_write_a_tag_is_refused() -> None:
    with pytest.raises(UserError, match="cannot write </think>: add it"):
        TagIds.of(tokenizer("?", OPEN_TAG, unknown="?"))
    with pytest.raises(UserError, match="cannot write <think>"):
        TagIds.of(tokenizer("a", "b"))


TAGS = (TagIds((1,), (2,)), TagIds((1, 3), (2, 3, 4)))


@pytest.mark.parametrize(
    ("completion", "opened", "expected"),
    [
        ([5, 6, 2, 9], True, ThoughtIds((5, 6, 2), 3, "ok")),
        ([5, 6, 2, 9, 2], True, ThoughtIds((5, 6, 2), 3, "ok")),  # nothing behind the first closer belongs to it
        ([5, 6], True, ThoughtIds((5, 6, 2), 2, "unclosed")),
        ([5, 6, 0, 0], True, ThoughtIds((5, 6, 2), 4, "unclosed")),  # ended the text instead of closing
        ([5, 0, 6, 2], True, ThoughtIds((5, 0, 6, 2), 4, "ok")),
        ([2, 5], True, ThoughtIds((2,), 1, "empty")),
        ([], True, ThoughtIds((2,), 0, "empty")),
        ([0], True, ThoughtIds((2,), 1, "empty")),
        ([1, 5, 2], True, ThoughtIds((1, 5, 2), 3, "nested")),
        ([1, 5, 2], False, ThoughtIds((1, 5, 2), 3, "ok")),
        ([1, 5], False, ThoughtIds((1, 5, 2), 2, "unclosed")),
        ([1, 2], False, ThoughtIds((1, 2), 2, "empty")),
        ([5, 2], False, ThoughtIds((5, 2), 2, "unopened")),
        ([1, 5], True, ThoughtIds((1, 5, 2), 2, "unclosed")),  # cut off before it was nested for good
        ([5, 1, 2], False, ThoughtIds((5, 1, 2), 3, "unopened")),
        ([1, 1, 2], False, ThoughtIds((1, 1, 2), 3, "nested")),
        ([], False, ThoughtIds((2,), 0, "unopened")),
    ],
)
def test_f22_close_thought_by_hand(completion: list[int], opened: bool, expected: ThoughtIds) -> None:
    assert close_thought(completion, TAGS[0], ends=[0], opened=opened) == expected


def as_text(ids: tuple[int, ...] | list[int]) -> str:
    return "".join(map(str, ids))


@given(
    st.lists(st.integers(0, 5), max_size=14), st.sampled_from(TAGS), st.sampled_from([[], [0], [0, 5]]), st.booleans()
)
@example([1, 3, 1, 3, 2, 3, 4], TAGS[1], [0], False)
@example([2, 3, 2, 3, 4], TAGS[1], [0], True)
def test_close_thought_agrees_with_text(completion: list[int], tags: TagIds, ends: list[int], opened: bool) -> None:
    got = close_thought(completion, tags, ends, opened)
    text, opening, closing = as_text(completion), as_text(tags.open), as_text(tags.close)
    # Another algorithm: digits as text, and its own search.
    thought, found, _ = text.partition(closing)
    if not found:
        thought = text.rstrip(as_text(ends)) if ends else text
    assert as_text(got.ids) == thought + closing
    assert got.num_sampled == (len(thought + closing) if found else len(text))
    assert as_text(got.ids).index(closing) == len(thought), "the thought is closed once, at its end"
    body = thought if opened else thought.removeprefix(opening)
    begun = opened or thought.startswith(opening)
    if not begun:
        assert got.status == "unopened"
    elif not body:
        assert got.status == "empty"
    elif not found:
        assert got.status == "unclosed"
    else:
        assert got.status == ("nested" if opening in body else "ok")


@given(st.lists(st.integers(0, 2), max_size=10), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_find_agrees_with_text(ids: list[int], part: list[int]) -> None:
    assert find(ids, part) == as_text(ids).find(as_text(part))


@pytest.mark.parametrize("closing", [["</", "think", ">"], ["</thi", "nk>"]])
def test_f31_closing_tag_in_other_pieces_keeps_what_was_sampled(closing: list[str]) -> None:
    """vLLM stops at the text of a tag of several tokens, whatever the pieces were."""
    tokenizer = load_tokenizer(str(TEXT_TOKENIZER))
    tags = TagIds((1, 2), tuple(tokenizer.convert_tokens_to_ids(list("</think>"))))
    sampled = [i for word in ("in", "form", "ation") for i in tokenizer(word)["input_ids"]]
    assert list(tokenizer("information")["input_ids"]) != sampled
    pieces = [i for word in closing for i in tokenizer(word)["input_ids"]]
    assert tuple(canonical_closing([*sampled, *pieces], tags, tokenizer)) == (*sampled, *tags.close)
    assert tuple(canonical_closing([*sampled, *tags.close], tags, tokenizer)) == (*sampled, *tags.close)
    assert canonical_closing(sampled, tags, tokenizer) == sampled
