"""What names a person: the table of docs/text-filters.md to the letter, keys, check digits, hostile text."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from rl_think_ext.data.pii import MASKS, Pii, has_mask

DOCS = Path(__file__).parents[1] / "docs" / "text-filters.md"
MATH = Path(__file__).parents[2] / "shared/data/math_text.jsonl"
TABLE = re.findall(r"^\| `(.+)` \| `(.+)` \| (found|missed|left alone|wrong) \|$", DOCS.read_text(), re.MULTILINE)


def test_the_table_is_whole() -> None:
    """F37: every kind is in it, with what is found and what is not."""
    words = Counter(verdict for *_, verdict in TABLE)
    assert words["found"] >= 20
    assert words["missed"] >= 8
    assert words["left alone"] >= 8
    assert words["wrong"] >= 3
    assert all(any(mask in becomes for _, becomes, _ in TABLE) for mask in MASKS.values())


@pytest.mark.parametrize(("text", "becomes", "verdict"), TABLE)
def test_hit_and_miss(text: str, becomes: str, verdict: str) -> None:
    """F37. Each row of the table, alone and inside a sentence; what is masked once stays as it is."""
    pii = Pii()
    masked, found = pii(text)
    assert masked == becomes
    assert (masked == text) is (verdict in ("missed", "left alone"))
    assert found.total() == sum(becomes.count(mask) for mask in MASKS.values())
    assert all(becomes.count(MASKS[kind]) == num for kind, num in found.items())
    assert pii(masked) == (masked, Counter())
    assert pii(f"Und so, ( {text} ) ist es.")[0] == f"Und so, ( {becomes} ) ist es."


# In two parts, so that nobody's scanner takes them for keys.
KEYS = [
    ("sk-", "proj-Abcdefghij0123456789"),
    ("sk-", "ant-api03-Abcdefghij0123456789"),
    ("ghp", "_" + "a1" * 18),
    ("github", "_pat_" + "a1" * 11),
    ("glpat", "-" + "a1" * 10),
    ("npm", "_" + "a1" * 18),
    ("hf", "_" + "aB" * 10),
    ("AIza", "a1-_b" * 7),
    ("xoxb", "-0123456789-abc"),
    ("sk_live", "_" + "a1" * 10),
    ("eyJ", "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmnop"),
    ("-----BEGIN RSA", " PRIVATE KEY-----\nMIIB" + "a1+/" * 40 + "==\n-----END RSA PRIVATE KEY-----"),
]


@pytest.mark.parametrize("key", ["".join(parts) for parts in KEYS])
def test_keys(key: str) -> None:
    assert Pii()(f'token = "{key}"') == ('token = "<KEY>"', Counter(key=1))
    # Inside a longer word it is none.
    assert Pii()(f"x{key}")[0] == f"x{key}"


@pytest.mark.parametrize("number", ["4012888888881881", "5555555555554444", "30569309025904", "6011111111111117"])
def test_a_card_has_its_check_digit(number: str) -> None:
    assert Pii()(number) == ("<CARD>", Counter(card=1))
    for digit in range(10):
        if digit != int(number[-1]):
            assert Pii()(f"{number[:-1]}{digit}")[0] == f"{number[:-1]}{digit}"


def test_a_mask_is_known() -> None:
    assert all(has_mask(f"a {mask} b") for mask in MASKS.values())
    assert not any(has_mask(text) for text in ("<email>", "EMAIL", "< IP >", "<IPX", "<KEYS>"))


def test_user_text_stays_verbatim() -> None:
    """F28: what a replacement could take for a reference, a format or a template."""
    text = r"\1 \g<0> {x} %s ${y} {{ z }} {% if %} jane@mail.org \2"
    assert Pii()(text)[0] == text.replace("jane@mail.org", "<EMAIL>")


@pytest.mark.parametrize("text", ["\ud800 a@b.org", "\0 a@b.org", "\u202e a@b.org", "a\r\n a@b.org", "😀 a@b.org"])
def test_odd_characters_stay(text: str) -> None:
    """F29."""
    assert Pii()(text)[0] == text.replace("a@b.org", "<EMAIL>")


UNITS = """
    a@ 1. 1.1.1.1 : a: +1 1- a- a. sk- eyJ eyJaaaaaaaaaaaaa. @ a@[ 222-222- +1(((  sk-1A 1: 2001: 2:: a 1 A1B2 <EMAIL>
    a@a. x@y- a@1.1.1. hf_ 222. AA11 AA1122223333 -----BEGIN\u00a0PRIVATE\u00a0KEY----- a-a-a-a-a-a-a@b-b-b-b-b-b-b-b-b-
""".replace("\u00a0", "~").split()
SPACED = [
    "1 ",
    "AA11 ",
    "1111 ",
    "tel ",
    "tel. us us us ",
    "phone 1",
    "(222) ",
    "+1 2",
    "4111 1111 1111 1111 ",
    "8 (9 ",
]


@pytest.mark.parametrize("unit", [*(unit.replace("~", " ") for unit in UNITS), *SPACED, "\u0301", "é", "é@é"])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    """F29, F37: a pattern that takes the square of a length would take many seconds for these 60,000 characters."""
    text = unit * (60_000 // len(unit))
    pii = Pii()
    pii("a@b.org")
    start = time.process_time()
    pii(text)
    pii(text + "@")
    assert time.process_time() - start < 2.5


@pytest.mark.parametrize("unit", ["a-", "a.", "!a"])
def test_a_long_word_before_an_at_takes_linear_time(unit: str) -> None:
    """F37: datatrove's pattern begins anew at each of its parts, and takes seconds for these 20,000 characters."""
    pii = Pii()
    pii("a@b.org")
    start = time.process_time()
    pii(unit * 10_000 + "@")
    assert time.process_time() - start < 0.4


def test_worker_processes_get_their_own() -> None:
    pii = Pii()
    pii("a@b.org 8.8.8.8")
    assert pickle.loads(pickle.dumps(pii))("a@b.org") == ("<EMAIL>", Counter(email=1))  # noqa: S301


def test_mathematics_holds_nothing_to_mask() -> None:
    if not MATH.exists():
        pytest.skip(f"absent: {MATH.name} is not shipped")
    for line in MATH.read_text().splitlines():
        text = json.loads(line)["text"]
        assert Pii()(text) == (text, Counter())
