"""The frame for raw base models, as a text and as a template; and chats in whatever form they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_think_ext.errors import UserError
from rl_think_ext.formats import TEACHER_INSTRUCTION, read_instruction, render_zero, zero_chat_template
from rl_think_ext.messages import messages_of
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.template import find_tag, split
from rl_think_ext.tiny import TEXT_TOKENIZER

HOSTILE = '{{ 7 * 7 }} {% raw %} %s {0} $HOME it\'s "q" \\n \r\n\t 😀 \\u0041 {# c #}'
plain = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not find_tag(text))


def rendered(messages, style, instruction=None, generate=True):
    tokenizer = load_tokenizer(str(TEXT_TOKENIZER))
    tokenizer.chat_template = zero_chat_template(style, instruction)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)


@pytest.mark.parametrize("style", ["response", "response-only"])
def test_f28_text_and_template_are_the_same_whatever_stands_in_them(style):
    chat = [
        {"role": "system", "content": HOSTILE},
        {"role": "user", "content": f" {HOSTILE}\n"},
        {"role": "assistant", "content": HOSTILE},
        {"role": "user", "content": "last"},
    ]
    for instruction in (None, HOSTILE):
        assert rendered(chat, style, instruction) == render_zero(chat, style, instruction)
    text = render_zero(chat, style, HOSTILE)
    assert text.count(HOSTILE) == 4 and text.endswith("<query>last</query>\nAssistant:")


@given(plain.filter(str.strip), plain)
def test_f28_any_words_and_question_are_verbatim(words, question):
    chat = [{"role": "user", "content": question}]
    kept = words.rstrip("\n")
    assert render_zero(chat, "response", words) == f"User: {kept}\n<query>{question}</query>\nAssistant:"
    assert rendered(chat, "response", words) == render_zero(chat, "response", words)


def test_the_frame_by_hand():
    assert render_zero(messages_of("2 + 2?", "here"), "response-only", "Answer.") == (
        "User: Answer.\n<query>2 + 2?</query>\nAssistant:"
    )
    own = render_zero(messages_of("2 + 2?", "here"), "response")
    assert "<think> your thoughts </think> <response> your answer </response>\n<query>2 + 2?</query>" in own
    assert "think" not in render_zero(messages_of("2 + 2?", "here"), "response-only").lower()
    assert split(TEACHER_INSTRUCTION, "response").status != "ok"


@pytest.mark.parametrize("tag", ["<think>", "</query>", "< RESPONSE >", "＜/query＞", "<th\u200bink>"])
def test_f24_a_tag_in_the_question_would_break_the_frame(tag):
    with pytest.raises(UserError, match=r"a user message holds the tag .*leave this row out"):
        render_zero(messages_of(f"what is {tag}?", "here"), "response")


def test_styles_that_a_template_asks_for_have_no_frame(tmp_path):
    with pytest.raises(UserError, match="style think has no instruction of its own"):
        zero_chat_template("think")
    with pytest.raises(UserError, match="the instruction is empty"):
        zero_chat_template("response", " \n")
    with pytest.raises(UserError, match="could not read the instruction file"):
        read_instruction(str(tmp_path / "none.txt"))
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_instruction(str(tmp_path / "blank.txt"))
    assert read_instruction(None) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hi", [("user", "hi")]),
        ([{"role": "user", "content": None}], [("user", "")]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [("user", "ab")],
        ),
        ([{"role": "user", "content": []}], [("user", "")]),
        (
            ({"role": "system", "content": "s", "name": "x"}, {"role": "user", "content": "u"}),
            [("system", "s"), ("user", "u")],
        ),
    ],
)
def test_f32_chats_in_every_usual_form(value, expected):
    assert [(m["role"], m["content"]) for m in messages_of(value, "row 1")] == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "row 1: expected a chat .*got NoneType"),
        ([], "row 1: expected a chat .*got an empty list"),
        (3, "got int"),
        ({"role": "user"}, "got a mapping with role"),
        (["hi"], "row 1, message 1: expected `role` and `content`, got str"),
        ([{"content": "x"}], "message 1: expected `role` and `content`, got a mapping with content"),
        ([{"role": "tool", "content": "x"}], "the role 'tool' is none of system, user, assistant"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "tool calls cannot be used here"),
        ([{"role": "user", "content": [{"type": "image", "image": 1}]}], "a block of `content` is image; only text"),
        ([{"role": "user", "content": [3]}], "a block of `content` is int"),
        ([{"role": "user", "content": 3}], "`content` is a text or a list of text blocks, got int"),
    ],
)
def test_f32_anything_else_is_refused_by_place(value, message):
    with pytest.raises(UserError, match=message):
        messages_of(value, "row 1")
