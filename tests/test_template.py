"""Thinking formats: what is thought is never shown as an answer, whatever a model writes (F22, F23, F28)."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl_think_ext.errors import UserError
from rl_think_ext.records import Parts
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.template import (
    CLOSE_RESPONSE,
    CLOSE_TAG,
    INSTRUCTION,
    OPEN_RESPONSE,
    OPEN_TAG,
    Style,
    TagIds,
    ThoughtIds,
    canonical_closing,
    close_thought,
    find,
    find_tag,
    instruction_sides,
    join,
    render,
    split,
    with_short_runs,
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
        ("\n <think>\nplan\n</think>\n\nAnswer.", Parts("plan", "Answer.", "ok")),
        (" 2 and 2</think>4", Parts("2 and 2", "4", "ok")),
        ("<think>never closed", Parts("never closed", None, "no_close")),
        ("no tag at all", Parts(None, None, "no_open")),
        ("", Parts(None, None, "no_open")),
        ("<think></think>4", Parts("", None, "empty_thought")),
        ("</think>4", Parts("", None, "empty_thought")),
        ("<think>a</think> \n", Parts("a", None, "empty_response")),
        ("<think>a<think>b</think>c", Parts("a<think>b", None, "extra_tags")),
        ("<think>a</think>b</think>c", Parts("a", None, "extra_tags")),
        ("<think>a</think>b<think>c", Parts("a", None, "extra_tags")),
        ("before<think>a</think>b", Parts("before<think>a", None, "extra_tags")),
        ("<think><think>", Parts("<think>", None, "extra_tags")),
        ("<THINK>secret</THINK>4", Parts(None, None, "no_open")),
        # A thought that was written twice, once in tags that only look like some.
        ("<think>a</think>4 <THINK>secret</THINK>", Parts("a", None, "extra_tags")),
        ("<think>a</think>4 ＜think＞secret", Parts("a", None, "extra_tags")),
        ("<think>a</think>4 <th\u200bink>secret", Parts("a", None, "extra_tags")),
        ("<think>a</think>4 <th\u0456nk>secret", Parts("a", None, "extra_tags")),
        # Inside a thought they do no harm, and <response> is a word like any other behind one.
        ("<think>a </THINK> b</think>4", Parts("a </THINK> b", "4", "ok")),
        ("<think>a</think><response>4</response>", Parts("a", "<response>4</response>", "ok")),
    ],
)
def test_f22_f23_split_by_hand(text: str, expected: Parts) -> None:
    assert split(text) == expected


@pytest.mark.parametrize(
    ("text", "response", "only"),
    [
        ("<think>a</think><response>b</response>", Parts("a", "b", "ok"), Parts(None, None, "extra_tags")),
        ("a</think>\n<response> b </response> and on", Parts("a", "b", "ok"), Parts(None, None, "extra_tags")),
        (" <response>b</response>", Parts(None, None, "no_open"), Parts(None, "b", "ok")),
        ("b", Parts(None, None, "no_open"), Parts(None, None, "no_open")),
        # What is thought before the response, without a tag, would be the control's way around its rule.
        ("Let me see. <response>b</response>", Parts(None, None, "no_open"), Parts(None, None, "no_open")),
        ("<think>a</think>so <response>b</response>", Parts("a", None, "no_open"), Parts(None, None, "extra_tags")),
        ("<think>a</think>b", Parts("a", None, "no_open"), Parts(None, None, "extra_tags")),
        ("<think>a <response>b</response>", Parts("a", None, "no_close"), Parts(None, None, "extra_tags")),
        ("<think>a</think><response>b", Parts("a", None, "no_close"), Parts(None, None, "extra_tags")),
        ("<response>b", Parts(None, None, "no_open"), Parts(None, None, "no_close")),
        ("<think> </think><response>b</response>", Parts("", None, "empty_thought"), Parts(None, None, "extra_tags")),
        ("<think>a</think><response> </response>", Parts("a", None, "empty_response"), Parts(None, None, "extra_tags")),
        ("<response></response>", Parts(None, None, "no_open"), Parts(None, None, "empty_response")),
        ("<response>b<response>c</response>", Parts(None, None, "extra_tags"), Parts(None, None, "extra_tags")),
        (
            "<response>b</response><response>c</response>",
            Parts(None, None, "extra_tags"),
            Parts(None, None, "extra_tags"),
        ),
        ("<response>b <THINK>c</response>", Parts(None, None, "extra_tags"), Parts(None, None, "extra_tags")),
    ],
)
def test_f22_f23_split_of_zero_styles_by_hand(text: str, response: Parts, only: Parts) -> None:
    assert split(text, "response") == response
    assert split(text, "response-only") == only


@pytest.mark.parametrize(
    ("text", "style", "prefilled", "status"),
    [
        ("<think>a", "think", False, "truncated"),
        ("a", "think", True, "truncated"),
        ("a", "think", False, "no_open"),
        ("<think>a</think>half an ans", "think", False, "truncated"),
        ("<think>a</think>", "think", False, "truncated"),
        ("half an ans", "none", False, "truncated"),
        ("<think>a", "response", False, "truncated"),
        ("<think>a</think>\n<resp", "response", False, "truncated"),
        ("<think>a</think>\nsomething", "response", False, "no_open"),
        ("<think>a</think><response>half", "response", False, "truncated"),
        ("<think>a</think><response>b</response>", "response", False, "ok"),
        ("<think>a <response>b</response>", "response", False, "no_close"),
        ("<resp", "response-only", False, "truncated"),
        ("", "response-only", False, "truncated"),
        ("<response>half", "response-only", False, "truncated"),
        ("Sure", "response-only", False, "no_open"),
    ],
)
def test_f22_what_the_length_limit_cut_is_truncated(text: str, style: Style, prefilled: bool, status: str) -> None:
    assert split(text, style, finished=False, prefilled=prefilled).status == status
    assert split("a", prefilled=True).status == "no_close"


NULL = "[NULL]"


@pytest.mark.parametrize(
    ("style", "text", "lenient", "strict"),
    [
        # The table of the authors' parser, row by row.
        ("think", "<think>\nplan\n</think>\n\nAnswer.", "Answer.", "Answer."),
        ("think", " <think>\nplan, never closed ", " <think>\nplan, never closed ", NULL),
        ("think", "Answer.", "Answer.", NULL),
        ("think", "</think>Answer.", "Answer.", "Answer."),
        ("think", "<think>a</think> b </think> c ", "b </think> c ", "b </think> c "),
        ("think", "<think>a</think> b </response> c", "b </response> c", "b </response> c"),
        ("think", " b </response> c ", " b </response> c ", NULL),
        ("response", "<think>a</think><response> b </response> c", "b", "b"),
        ("response", "<response>\nb", "b", NULL),
        ("response", "<response>\nb  ", "b  ", NULL),
        ("response", "<response>\nb  </response>", "b", "b"),
        ("response", " no tags ", " no tags ", NULL),
        ("response", " no opener </response> c", " no opener", NULL),
        ("response", "</response><response>b</response>", "b", "b"),
        ("response", "<response>a<response>b</response>", "a<response>b", "a<response>b"),
        ("response-only", "x <response> b </response>", "b", "b"),
        ("response-only", "", "", NULL),
        ("none", " <think>a</think> b ", " <think>a</think> b ", " <think>a</think> b "),
    ],
)
def test_paper_modes_to_the_letter(style: Style, text: str, lenient: str, strict: str) -> None:
    assert split(text, style, "paper-lenient").answer == lenient
    assert split(text, style, "paper-strict").answer == strict
    assert split(text, style, "paper-strict").status == split(text, style).status


@given(hostile_text)
@example("<think>" * 3 + "</think>" * 3)
@example("</think>")
def test_f23_split_agrees_with_a_grammar(text: str) -> None:
    parts = split(text)
    # Another algorithm: one regular expression for the only form that has an answer.
    whole = re.fullmatch(r"(?:\s*<think>)?((?:(?!</?think>).)*)</think>((?:(?!</?think>).)*)", text, re.DOTALL)
    if parts.status == "ok":
        assert whole is not None
        assert (parts.thought, parts.answer) == (whole[1].strip(), whole[2].strip())
        return
    assert parts.answer is None
    if whole is not None:
        blank = {"empty_thought": whole[1].strip() == "", "empty_response": whole[2].strip() == ""}
        assert blank.get(parts.status) or (parts.status == "extra_tags" and find_tag(whole[2]))
        return
    unclosed = re.fullmatch(r"(\s*<think>)?(?:(?!</?think>).)*", text, re.DOTALL)
    assert parts.status == ("extra_tags" if unclosed is None else "no_close" if unclosed[1] else "no_open")


@given(hostile_text, st.sampled_from(LOOK_ALIKES), hostile_text)
def test_f23_thought_never_is_the_answer(before: str, closer: str, after: str) -> None:
    marked = f"{OPEN_TAG}{before.replace(CLOSE_TAG, '')}SECRET{closer}{after}"
    answer = split(marked).answer
    if answer is None:
        return
    # An answer exists only behind the one real closing tag, and this one stands behind the secret.
    assert marked.rstrip().endswith(answer) and marked.count(CLOSE_TAG) == 1
    assert "SECRET" not in answer
    assert find_tag(answer, "think") is None


@given(hostile_text)
def test_plain_style_shows_a_text_only_without_tags(text: str) -> None:
    parts = split(text, style="none")
    assert parts.thought is None
    tagged = find_tag(text, "think") is not None
    assert tagged or not (OPEN_TAG in text or CLOSE_TAG in text)
    assert parts.status == ("extra_tags" if tagged else "ok" if text.strip() else "empty_response")
    assert parts.answer == (text.strip() if parts.status == "ok" else None)


def test_100000_hostile_texts_never_show_a_thought_and_never_crash() -> None:
    rng, styles = random.Random(0), get_args(Style)
    pieces = [*PIECES, OPEN_RESPONSE, CLOSE_RESPONSE, "<RESPONSE>", "<query>", "word ", "é日本", "x" * 50, "\u200d"]
    for number in range(100_000):
        before, after = ("".join(rng.choices(pieces, k=rng.randrange(6))) for _ in range(2))
        style: Style = styles[number % len(styles)]
        closer = CLOSE_TAG if rng.random() < 0.5 else rng.choice(LOOK_ALIKES)
        before = before.replace(CLOSE_TAG, "")  # what stands before the secret does not end its thought
        text = f"{OPEN_TAG}{before}SECRET{closer}{after}" if style != "response-only" else f"{before}SECRET{after}"
        parts = split(text, style, finished=bool(number % 3), prefilled=bool(number % 2))
        assert (parts.answer is None) == (parts.status != "ok")
        if parts.answer is None:
            continue
        if style in ("think", "response"):
            assert parts.thought and "SECRET" in parts.thought and "SECRET" not in parts.answer, text
        assert find_tag(parts.answer, style) is None, text


@given(
    st.text().filter(lambda text: text.strip() and not find_tag(text)),
    st.text().filter(lambda text: text.strip() and not find_tag(text)),
    st.sampled_from(get_args(Style)),
    st.booleans(),
)
def test_every_well_formed_output_is_ok_and_join_is_split_backwards(
    thought: str, answer: str, style: Style, prefilled: bool
) -> None:
    text = join(thought, answer, style)
    kept = thought.strip() if style in ("think", "response") else None
    assert split(text, style) == Parts(kept, answer.strip(), "ok")
    assert split(text.removeprefix(OPEN_TAG), style, prefilled=prefilled) == Parts(kept, answer.strip(), "ok")


@pytest.mark.parametrize(
    ("thought", "answer", "style"),
    [
        ("a</think>b", "c", "think"),
        (None, "c", "response"),
        ("", "c", "think"),
        ("a", " ", "none"),
        ("a", "<think>", "none"),
    ],
)
def test_join_refuses_what_could_not_be_told_apart(thought: str | None, answer: str, style: Style) -> None:
    with pytest.raises(ValueError, match="do not make a text of style"):
        join(thought, answer, style)


def test_f29_a_tag_is_looked_for_in_linear_time_among_marks() -> None:
    begin = time.process_time()
    assert find_tag("a < b " + "\u0301\u0327" * 60_000 + "\u200b</ think>") == "</ think>"
    assert find_tag("a < b " + "\u0f73" * 60_000) is None
    assert time.process_time() - begin < 2


def test_no_other_character_is_made_of_marks() -> None:
    """F29: what NFKC begins with a mark is bounded as marks are."""
    for i in range(0x300, 0x110000):
        first = unicodedata.normalize("NFKD", chr(i))[0]
        if unicodedata.combining(first):
            assert len(with_short_runs(chr(i) * 40)) == 30, hex(i)


@pytest.mark.parametrize("style", get_args(Style))
def test_a_long_output_is_split_in_bounded_time(style: Style) -> None:
    texts = [
        "<think>" + "plan é " * 800 + "</think>" + "<response>" + "word ＜x> " * 450 + "</response>",
        "<think>" + "< " * 2500 + "</think>" + "<" * 5000,
        "<think>a</think>" + ("<" + " " * 4990) * 2,
        "<" * 10_000,
        "\u200b" * 5000 + "＜" * 5000,
    ]
    for text in texts:
        assert len(text) > 9_000
        taken = []
        for _ in range(9):
            begin = time.perf_counter()
            split(text, style)
            taken.append(time.perf_counter() - begin)
        # Twenty times what it takes alone: a machine under load is slow, a square of the length is a thousand times.
        assert min(taken) < 0.02, text[:40]


@pytest.mark.parametrize(
    ("style", "mode", "message"),
    [("think", "kind", "mode is one of strict, .*got 'kind'"), ("tink", "strict", "style is one of .*got 'tink'")],
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
        ([5, 6], True, ThoughtIds((5, 6, 2), 2, "no_close")),
        ([5, 6, 0, 0], True, ThoughtIds((5, 6, 2), 4, "no_close")),  # ended the text instead of closing
        ([5, 0, 6, 2], True, ThoughtIds((5, 0, 6, 2), 4, "ok")),
        ([2, 5], True, ThoughtIds((2,), 1, "empty_thought")),
        ([], True, ThoughtIds((2,), 0, "empty_thought")),
        ([0], True, ThoughtIds((2,), 1, "empty_thought")),
        ([1, 5, 2], True, ThoughtIds((1, 5, 2), 3, "extra_tags")),
        ([1, 5, 2], False, ThoughtIds((1, 5, 2), 3, "ok")),
        ([1, 5], False, ThoughtIds((1, 5, 2), 2, "no_close")),
        ([1, 2], False, ThoughtIds((1, 2), 2, "empty_thought")),
        ([5, 2], False, ThoughtIds((5, 2), 2, "no_open")),
        ([1, 5], True, ThoughtIds((1, 5, 2), 2, "no_close")),  # cut off before it was nested for good
        ([5, 1, 2], False, ThoughtIds((5, 1, 2), 3, "no_open")),
        ([1, 1, 2], False, ThoughtIds((1, 1, 2), 3, "extra_tags")),
        ([], False, ThoughtIds((2,), 0, "no_open")),
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
        assert got.status == "no_open"
    elif not body:
        assert got.status == "empty_thought"
    elif not found:
        assert got.status == "no_close"
    else:
        assert got.status == ("extra_tags" if opening in body else "ok")


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
