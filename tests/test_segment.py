"""Sentence spans: exact offsets on any text, bounded time, and the cases that a plain splitter gets wrong."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_think_ext.segment import sentence_spans

# Pieces that have broken segmenters: ends without words, brackets, controls, marks, pieces of formulas and of lines.
PIECES = [
    *("? ", "! ", ". ", "...", ".", "[111 ", "Fig. ", "e.g. ", "Dr. ", "$x. y$", "$", "$$", "\\[", "\\]", "\\begin{a}"),
    *("```", "\r\n", "\n\n", "\n \t\n", "\0", "\u200f", "\u202e", "\u200b", "👩‍👩‍👧", "é", "e\u0301", "。", "\ud800"),
    *(" ", "\u00a0", "A", "the ", "Word ", "3.5 ", "1. ", '"', ")", "\x1c", "\x85"),
]


def sentences(text, **kwargs):
    return [text[start:end] for start, end in sentence_spans(text, **kwargs)]


def assert_exact(text, spans):
    before = 0
    for start, end in spans:
        assert before <= start < end <= len(text)
        assert not text[before:start].strip()
        assert text[start:end] == text[start:end].strip()
        before = end
    assert not text[before:].strip()


@pytest.mark.parametrize(
    "text",
    [
        "See Fig. 3 for it.",
        "Some fruit, e.g. apples, i.e. these.",
        "Then Dr. Smith came to J. Smith.",
        "It is 3.5 m, or 1,000.25 in all.",
        "We have $a = 3. b$ and \\(x. Y\\) here.",
        "So \\[ x = 1. \\text{ Then. Bar } \\] holds.",
        "\\begin{align*} a. B \\end{align*} holds.",
        "Clearly 5! = 120 holds.",
        '"Why?" he said.',
        "See Eq. (3) and Sec. 4 and No. 5 and p. 6.",
        "1. Solve it.",
    ],
)
def test_does_not_split(text):
    assert sentences(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We get $x = 3.$ Also this.", ["We get $x = 3.$", "Also this."]),
        ("It costs $5. I pay $6. Done.", ["It costs $5.", "I pay $6.", "Done."]),
        ("The point is B. Then it ends.", ["The point is B.", "Then it ends."]),
        ("A heading\r\n\r\nText. (More.) End", ["A heading", "Text.", "(More.)", "End"]),
        ("Is it? No. It is!", ["Is it?", "No.", "It is!"]),
        ("第一句。第二句！", ["第一句。", "第二句！"]),
        ("", []),
        (" \r\n\t", []),
    ],
)
def test_splits(text, expected):
    assert sentences(text) == expected


def test_long_sentences_are_cut_at_white_space_and_hard_only_where_there_is_none():
    assert sentences("aaa bbb ccc", max_chars=8) == ["aaa bbb", "ccc"]
    assert sentences("a" * 10, max_chars=4) == ["aaaa", "aaaa", "aa"]
    with pytest.raises(ValueError, match="at least 1"):
        sentence_spans("a", max_chars=0)


def test_windows_do_not_move_ends():
    text = "The cat saw Dr. Smith in Fig. 3 of it. Then it left! " * 60
    assert sentence_spans(text, max_chars=200) == sentence_spans(text, max_chars=100_000)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=60).map("".join), st.integers(1, 50))
def test_f29_offsets_slice_back_exactly(text, max_chars):
    assert_exact(text, sentence_spans(text))
    short = sentence_spans(text, max_chars=max_chars)
    assert_exact(text, short)
    # Formulas are masked before windows are cut, so the bound holds for them as well.
    assert all(end - start <= max_chars for start, end in short)


WORST = {
    "questions": "? " * 200_000,
    "brackets": "..[111 " + "111 " * 10_000,
    "one line of words": "The cat sat, e.g. there. " * 10_000,
    "one word": "x" * 1_000_000,
    "bangs": "! " * 10_000,
    "question marks": "?" * 20_000,
    "closers": "?)" * 10_000,
    "quotes": "a?" + '"' * 20_000 + " B",
    "dots": "." * 20_000,
    "spaced dots": ". " * 10_000,
    "numbers": "1. " * 6_600,
    "spaces": "?" + " " * 20_000 + "B",
    "gaps": ("A!" + " " * 300) * 66,
    "lines": "\n \t" * 6_600,
    "dollars": "$" * 20_000,
    "open dollars": "$a\n" * 6_600,
    "escaped dollars": "$" + "\\$" * 10_000,
    "environments": "\\begin{a}" * 2_200,
    "brackets of formulas": "\\[" * 10_000,
    "fences": "`" * 20_000,
    "lower case": "a! a " * 4_000,
    "ideographic": "。" * 20_000,
}


@pytest.mark.parametrize("name", WORST)
def test_f30_worst_cases_take_under_a_second_per_20_000_characters(name):
    text = WORST[name]
    sentence_spans("Warm. Up.")
    begin = time.process_time()
    spans = sentence_spans(text)
    assert time.process_time() - begin < max(len(text) / 20_000, 1.0)
    assert_exact(text, spans)


def test_long_runs_do_not_fill_a_table():
    from rl_think_ext.segment import _punkt

    sentence_spans("Dr. Aaa e.g. Bbb. Ccc J. Ddd.")
    size = len(_punkt()._params.ortho_context)
    sentence_spans("".join(f"Dr. W{i} sat. " for i in range(200)))
    assert len(_punkt()._params.ortho_context) == size
